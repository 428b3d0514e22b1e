"""What has to happen in the store at once: scripts that Redis runs, and the names of its keys.

Times are the store's own, in milliseconds, so that clocks of routers don't matter. Each script
touches keys of one hash slot only (`{namespace}` in their names), so a Redis Cluster takes them.
Does not cover: calling them (``router.replication.redis_store``).
"""

from __future__ import annotations

from core.request import RequestKey

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# All or nothing. KEYS: request ids, the tenant's budget. ARGV: router, how long ids are kept, then
# rate per second, burst and cost of requests and of tokens, and what is left of them, for a budget
# that is not there; a rate of 0: no limit.
# Returns {which id is taken, from 1, or 0, milliseconds to wait for requests, for tokens}.
# Budgets are those of router.admission.token_bucket, and kept until they would be full: what is
# paid off for long is not forgotten by a silence.
CLAIM = (
    _NOW
    + """
for number = 1, #KEYS - 1 do
    if redis.call('EXISTS', KEYS[number]) == 1 then return {number, 0, 0} end
end
local budget = KEYS[#KEYS]
local levels, waits, kept = {}, {0, 0}, 600000
for number, name in ipairs({'requests', 'tokens'}) do
    local first = 4 * number - 1
    local rate, burst = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
    local cost, left = tonumber(ARGV[first + 2]), tonumber(ARGV[first + 3])
    if rate > 0 then
        local known = redis.call('HMGET', budget, name, name .. '_at')
        local level, at = tonumber(known[1]) or left, tonumber(known[2]) or now
        level = math.min(burst, level + math.max(0, now - at) * rate / 1000)
        waits[number] = math.ceil(math.max(0, math.min(cost, burst) - level) / rate * 1000)
        levels[#levels + 1] = {name, level - cost, rate}
        kept = math.max(kept, math.ceil((burst - level + cost) / rate * 1000))
    end
end
if waits[1] == 0 and waits[2] == 0 then
    for _, level in ipairs(levels) do
        local name, left, rate = level[1], tostring(level[2]), tostring(level[3])
        redis.call('HSET', budget, name, left, name .. '_at', now, name .. '_rate', rate)
    end
    if #levels > 0 then redis.call('PEXPIRE', budget, kept) end
    for number = 1, #KEYS - 1 do redis.call('SET', KEYS[number], ARGV[1], 'PX', ARGV[2]) end
end
return {0, waits[1], waits[2]}
"""
)

# KEYS: the tenant's budget. ARGV: tokens, below 0 if there were more than expected. What is left of
# a budget that is not there routers know.
GIVE_BACK = """
local rate = tonumber(redis.call('HGET', KEYS[1], 'tokens_rate'))
if rate then
    redis.call('HINCRBYFLOAT', KEYS[1], 'tokens', ARGV[1])
    local longer = math.ceil(-ARGV[1] / rate * 1000)
    if longer > 0 then redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[1]) + longer) end
end
"""

# KEYS: the tenant's places, by router: sequences and blocks that it has, that it wants, since
# when, and when it said so. ARGV: router, sequences and blocks that it has, that it wants, at most
# (-1: no limit), after how long a silent router counts as dead. Returns 1 if it gets them.
# Who has waited longest is first; a tenant that has nothing may always have one.
PLACES = (
    _NOW
    + """
local has, wants = {tonumber(ARGV[2]), tonumber(ARGV[3])}, {tonumber(ARGV[4]), tonumber(ARGV[5])}
local most = {tonumber(ARGV[6]), tonumber(ARGV[7])}
local sum, before = {has[1], has[2]}, {0, 0}
-- In microseconds.
local since = time[1] * 1000000 + time[2]
local others = {}
local all = redis.call('HGETALL', KEYS[1])
for number = 1, #all, 2 do
    local told = {}
    for word in string.gmatch(all[number + 1], '%S+') do told[#told + 1] = tonumber(word) end
    if all[number] == ARGV[1] then
        if told[3] > 0 then since = told[5] end
    elseif now - told[6] > tonumber(ARGV[8]) then
        redis.call('HDEL', KEYS[1], all[number])
    else
        sum = {sum[1] + told[1], sum[2] + told[2]}
        if told[3] > 0 then others[#others + 1] = {told[3], told[4], told[5], all[number]} end
    end
end
local granted = 0
if wants[1] > 0 then
    for _, other in ipairs(others) do
        if other[3] < since or (other[3] == since and other[4] < ARGV[1]) then
            before = {before[1] + other[1], before[2] + other[2]}
        end
    end
    local fits = true
    for number = 1, 2 do
        local all_of_them = sum[number] + before[number] + wants[number]
        if most[number] >= 0 and all_of_them > most[number] then fits = false end
    end
    if fits or (sum[1] == 0 and before[1] == 0) then
        granted = 1
        has, wants = {has[1] + wants[1], has[2] + wants[2]}, {0, 0}
    end
end
if has[1] == 0 and wants[1] == 0 then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    local told = {has[1], has[2], wants[1], wants[2], string.format('%.0f', since), now}
    redis.call('HSET', KEYS[1], ARGV[1], table.concat(told, ' '))
    redis.call('PEXPIRE', KEYS[1], 60000)
end
return granted
"""
)

# KEYS: the leases by worker, the secret of the block hashes. ARGV: for how long, 1 if the
# controller says so, the secret ("" of none), then the number of those that are renewed with key
# and record of each, then the keys of those that have ended.
RENEW = (
    _NOW
    + """
local first_hand, renewed = ARGV[2] == '1', tonumber(ARGV[4])
for number = 1, renewed do
    local key, record = ARGV[3 + 2 * number], ARGV[4 + 2 * number]
    local known = redis.call('HGET', KEYS[1], key)
    if known and not first_hand then record = string.match(known, '^%d+ (.*)$') end
    redis.call('HSET', KEYS[1], key, string.format('%d ', now + ARGV[1]) .. record)
end
for number = 5 + 2 * renewed, #ARGV do redis.call('HDEL', KEYS[1], ARGV[number]) end
local all = redis.call('HGETALL', KEYS[1])
for number = 1, #all, 2 do
    if tonumber(string.match(all[number + 1], '^%d+')) < now then
        redis.call('HDEL', KEYS[1], all[number])
    end
end
if ARGV[3] ~= '' then
    if first_hand then redis.call('SET', KEYS[2], ARGV[3])
    else redis.call('SET', KEYS[2], ARGV[3], 'NX') end
end
"""
)

# KEYS: the leases. Returns the records of those that hold.
LEASED = (
    _NOW
    + """
local found = {}
for _, lease in ipairs(redis.call('HVALS', KEYS[1])) do
    local till, record = string.match(lease, '^(%d+) (.*)$')
    if tonumber(till) >= now then found[#found + 1] = record end
end
return found
"""
)


class StoreKeys:
    """Names of keys: those of one namespace and model never meet another's."""

    def __init__(self, namespace: str, model: str) -> None:
        self._prefix = f"{{{namespace}:{model}}}:"
        self.news = self._prefix + "news"
        self.leases = self._prefix + "workers"
        self.secret = self._prefix + "secret"

    def request(self, key: RequestKey) -> str:
        return f"{self._prefix}request:{key.tenant}:{key.request_id}"

    def budget(self, tenant: str) -> str:
        return f"{self._prefix}budget:{tenant}"

    def places(self, tenant: str) -> str:
        return f"{self._prefix}places:{tenant}"
