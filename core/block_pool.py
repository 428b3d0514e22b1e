"""Who holds which KV block, and which blocks are prefix cache.

Covers: references, the chained-hash prefix cache with leaf-first LRU eviction, quarantine,
generations (which let a reader of shared memory see that a block was given to someone else),
and cache events for the router's index. State lives in arrays, one entry per block.
Does not cover: the bytes of the blocks (``engine``), leases and deadlines (the handoff).

Every block is in exactly one state:

- free: on the free list.
- leased: references > 0. It may be in the cache at the same time and then be shared.
- cached: in the cache with no reference; evicted when the free list is short.
- quarantined: nobody holds it, but something may still write to it; not reusable.

A cached block other than the first of a prompt has its parent in the cache. So a block is
evicted only after its cached children. If only blocks under leased children are left to evict,
these children leave the cache (their holders keep them), so ``num_available`` is exact.
"""

from __future__ import annotations

from itertools import repeat, takewhile

import numpy as np
import numpy.typing as npt

from core.block_hash import HashArray, TokenArray
from core.errors import InternalError, InvalidField
from core.eviction import Entry, LeafQueue

BlockIds = npt.NDArray[np.int32]
Generations = npt.NDArray[np.uint64]

_NO_BLOCK = -1
_NO_HASHES: HashArray = np.empty(0, dtype=np.uint64)


class BlockPool:
    """``num_blocks`` blocks of ``block_size`` tokens each. Not thread-safe."""

    def __init__(
        self, num_blocks: int, block_size: int, generations: Generations | None = None
    ) -> None:
        """``generations`` (uint64 [num_blocks]) may lie in shared memory; the pool writes it."""
        if num_blocks < 1:
            raise InvalidField("num_blocks", num_blocks, "a pool has at least one block")
        if block_size < 1:
            raise InvalidField("block_size", block_size, "a block has at least one token")
        if generations is None:
            generations = np.zeros(num_blocks, dtype=np.uint64)
        elif generations.shape != (num_blocks,) or generations.dtype != np.uint64:
            raise InvalidField("generations", generations.shape, f"must be uint64 [{num_blocks}]")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._generations = generations
        self._refs = np.zeros(num_blocks, dtype=np.int32)
        self._in_cache = np.zeros(num_blocks, dtype=np.bool_)
        self._in_quarantine = np.zeros(num_blocks, dtype=np.bool_)
        self._hash = np.zeros(num_blocks, dtype=np.uint64)
        self._tokens = np.zeros((num_blocks, block_size), dtype=np.int32)
        self._parent = np.full(num_blocks, _NO_BLOCK, dtype=np.int32)
        self._children = np.zeros(num_blocks, dtype=np.int32)
        self._last_used = np.zeros(num_blocks, dtype=np.int64)
        # Views for single entries, which are faster there than the arrays.
        self._generations_of = self._generations.data
        self._refs_of = self._refs.data
        self._in_cache_of = self._in_cache.data
        self._hash_of = self._hash.data
        self._parent_of = self._parent.data
        self._children_of = self._children.data
        self._last_used_of = self._last_used.data
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self._num_free = num_blocks
        self._num_cached = 0
        self._num_leased = 0
        self._num_quarantined = 0
        # Counts the calls that give blocks back.
        self._clock = 0
        self._block_of: dict[int, int] = {}
        self._leaves = LeafQueue(self._is_evictable_leaf, limit=2 * num_blocks + 16)
        # Insertion-ordered sets: what changed since the last drain, with opposites cancelled.
        self._stored: dict[int, None] = {}
        self._removed: dict[int, None] = {}

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def num_cached(self) -> int:
        """Blocks in the cache that nobody holds."""
        return self._num_cached

    @property
    def num_leased(self) -> int:
        return self._num_leased

    @property
    def num_quarantined(self) -> int:
        return self._num_quarantined

    @property
    def num_available(self) -> int:
        """The largest count that ``allocate`` can grant now."""
        return self._num_free + self._num_cached

    @property
    def num_returns(self) -> int:
        """How often blocks were given back. Only that can raise ``num_available``."""
        return self._clock

    @property
    def references(self) -> npt.NDArray[np.int32]:
        """References on each block (int32 [num_blocks]), read-only, for invariant checks."""
        view = self._refs.view()
        view.flags.writeable = False
        return view

    def is_cached(self, value: int) -> bool:
        """Whether some block is in the cache under this hash."""
        return value in self._block_of

    def is_held(self, value: int) -> bool:
        """Whether somebody holds the block that is cached under this hash."""
        block_id = self._block_of.get(value, _NO_BLOCK)
        return block_id != _NO_BLOCK and bool(self._refs[block_id] > 0)

    def match_prefix(self, hashes: HashArray, tokens: TokenArray) -> BlockIds:
        """Blocks of the longest cached prefix; takes no reference.

        ``hashes`` (uint64 [n]) of the first n blocks of ``tokens`` (int32, at least n blocks
        long). A block counts only if its token ids are equal too.
        """
        cached = map(self._block_of.get, hashes.tolist(), repeat(_NO_BLOCK))
        found = list(takewhile(_NO_BLOCK.__ne__, cached))
        block_ids = np.array(found, dtype=np.int32)
        if not found:
            return block_ids
        equal = self._tokens[block_ids] == self._as_blocks(tokens, len(found))
        if _all(equal):
            return block_ids
        return block_ids[: int(equal.all(axis=1).argmin())]

    def acquire(self, block_ids: BlockIds) -> None:
        """One more reference on each block, which is in the cache or held by someone."""
        self._check_ids("acquire", block_ids)
        refs, in_cache = self._refs[block_ids], self._in_cache[block_ids]
        self._check(
            "acquire", block_ids, (refs > 0) | in_cache, "only cached or held blocks can be shared"
        )
        unheld = int(np.count_nonzero(refs == 0))
        self._refs[block_ids] += 1
        self._num_cached -= unheld
        self._num_leased += unheld

    def allocate(self, count: int) -> BlockIds | None:
        """``count`` blocks with one reference and a new generation each, or None: all or nothing.

        Takes the free list first, then evicts cached blocks, least recently used leaves first: so
        two calls together give the same as one for both.
        """
        if count < 0:
            raise InvalidField("count", count, "must be 0 or more")
        if count > self.num_available:
            return None
        return self._take(count)

    def allocate_easily(self, most: int) -> BlockIds:
        """What ``most`` calls for one block each give, up to the first that fails or has to take a
        block out of the cache that somebody holds."""
        return self._take(min(most, self.num_available), leaves_only=True)

    def _take(self, count: int, leaves_only: bool = False) -> BlockIds:
        left = max(0, self._num_free - count)
        block_ids = self._free[left : self._num_free][::-1].copy()
        self._num_free = left
        if len(block_ids) < count:
            evicted = self._evict(count - len(block_ids), leaves_only)
            block_ids = np.concatenate([block_ids, evicted])
        if len(block_ids) == 1:  # A sequence that decodes takes block after block.
            block_id = int(block_ids[0])
            self._refs_of[block_id] = 1
            self._generations_of[block_id] += 1
        else:
            self._refs[block_ids] = 1
            self._generations[block_ids] += np.uint64(1)
        self._num_leased += len(block_ids)
        return block_ids

    def can_extend(self, values: list[int], ends: list[tuple[int, int]]) -> bool:
        """Whether new blocks with these hashes, all different, may be entered by `extend`, be it
        now or after some calls of `allocate_easily`: nobody has published their tokens, and what
        they build on is in the cache: ``ends``, (hash, block id), held by the caller."""
        if not self._block_of.keys().isdisjoint(values):
            return False
        return all(self._block_of.get(value) == block_id for value, block_id in ends)

    def extend(self, block_id: int, value: int, tokens: TokenArray, parent_id: int) -> None:
        """`publish` of one new block, with the hash ``value``, at the end of a chain, where
        `can_extend` has allowed it. ``parent_id``: the block before it, -1 for none."""
        if not self._refs_of[block_id] or self._in_cache_of[block_id]:
            story = self._describe(block_id)
            raise _misuse(f"publish of block {block_id} ({story}): it is not new", block_id)
        self._enter(block_id, value, tokens, parent_id)

    def _enter(self, block_id: int, value: int, tokens: TokenArray, parent_id: int) -> None:
        self._block_of[value] = block_id
        _note(value, self._stored, self._removed)
        self._in_cache_of[block_id] = True
        self._hash_of[block_id] = value
        self._tokens[block_id] = tokens
        self._parent_of[block_id] = parent_id
        if parent_id != _NO_BLOCK:
            self._children_of[parent_id] += 1

    def _note_stored(self, values: list[int]) -> None:
        if not self._removed or self._removed.keys().isdisjoint(values):
            self._stored.update(dict.fromkeys(values))
        else:
            for value in values:
                _note(value, self._stored, self._removed)

    def publish(
        self, block_ids: BlockIds, hashes: HashArray, tokens: TokenArray, parent: int | None
    ) -> None:
        """Enter consecutive full blocks, held by the caller, into the cache.

        ``hashes`` (uint64 [n]) and ``tokens`` (int32 [n * block_size]) belong to ``block_ids``
        (int32 [n]); ``parent`` is the hash of the block before the first, None at the start of
        a prompt. A block stays private if another one is cached under its hash or if its parent
        is not cached. Publishing a block again under the same hash changes nothing.
        """
        if len(block_ids) == 1 and self._publish_one(int(block_ids[0]), hashes, tokens, parent):
            return
        self._check_publish(block_ids, hashes, tokens)
        rows = self._as_blocks(tokens, len(block_ids))
        if self._publish_chain(block_ids, hashes, rows, parent):
            return
        same = ~self._in_cache[block_ids] | (self._hash[block_ids] == hashes)
        self._check("publish", block_ids, same, "it is cached under another hash")
        fresh = self._find_unpublished(block_ids, hashes, rows, parent)
        if not fresh:
            return
        index = np.array([i for i, _ in fresh], dtype=np.intp)
        parents = np.array([parent_id for _, parent_id in fresh], dtype=np.int32)
        ids = block_ids[index]
        self._in_cache[ids] = True
        self._hash[ids] = hashes[index]
        self._tokens[ids] = rows[index]
        self._parent[ids] = parents
        np.add.at(self._children, parents[parents != _NO_BLOCK], 1)

    def _publish_one(
        self, block_id: int, hashes: HashArray, tokens: TokenArray, parent: int | None
    ) -> bool:
        """A new block at the end of a cached chain, as decoding fills them. False: not that, and
        nothing was done.
        """
        if len(hashes) != 1 or len(tokens) != self.block_size:
            return False
        if not 0 <= block_id < self.num_blocks:
            return False
        value = int(hashes[0])
        parent_id = _NO_BLOCK if parent is None else self._block_of.get(parent, _NO_BLOCK)
        has_parent = parent is None or parent_id != _NO_BLOCK
        is_new = value not in self._block_of and not self._in_cache_of[block_id]
        if not (has_parent and is_new and self._refs_of[block_id] > 0):
            return False
        self._enter(block_id, value, tokens, parent_id)
        return True

    def _publish_chain(
        self, block_ids: BlockIds, hashes: HashArray, rows: TokenArray, parent: int | None
    ) -> bool:
        """Blocks none of which is known, after a cached parent, as prefill fills them. False: not
        that, and nothing was done.
        """
        values = hashes.tolist()
        parent_id = _NO_BLOCK if parent is None else self._block_of.get(parent, _NO_BLOCK)
        has_parent = parent is None or parent_id != _NO_BLOCK
        are_new = not np.count_nonzero(
            self._in_cache[block_ids]
        ) and self._block_of.keys().isdisjoint(values)
        if not (has_parent and are_new and len(set(values)) == len(values)):
            return False
        self._block_of.update(zip(values, block_ids.tolist(), strict=True))
        self._note_stored(values)
        self._in_cache[block_ids] = True
        self._hash[block_ids] = hashes
        self._tokens[block_ids] = rows
        self._parent[block_ids[1:]] = block_ids[:-1]
        self._children[block_ids[:-1]] += 1
        if len(block_ids) and parent is not None:
            self._children[parent_id] += 1
            self._parent[block_ids[0]] = parent_id
        return True

    def release(self, block_ids: BlockIds) -> None:
        """One reference less on each. At none, cached blocks stay as cache, others become free."""
        self._check_ids("release", block_ids)
        self._check("release", block_ids, self._refs[block_ids] > 0, "nobody holds it")
        self._refs[block_ids] -= 1
        dropped = block_ids[self._refs[block_ids] == 0]
        in_cache = self._in_cache[dropped]
        self._num_leased -= len(dropped)
        self._push_free(dropped[~in_cache])
        self._retire(dropped[in_cache])

    def quarantine(self, block_ids: BlockIds) -> None:
        """The caller's only reference on uncached blocks becomes quarantine."""
        self._check_ids("quarantine", block_ids)
        private = (self._refs[block_ids] == 1) & ~self._in_cache[block_ids]
        self._check("quarantine", block_ids, private, "it must be uncached with one reference")
        self._refs[block_ids] = 0
        self._in_quarantine[block_ids] = True
        self._num_leased -= len(block_ids)
        self._num_quarantined += len(block_ids)

    def unquarantine(self, block_ids: BlockIds) -> None:
        """Nothing can write to these blocks any more: they become free."""
        self._check_ids("unquarantine", block_ids)
        self._check(
            "unquarantine", block_ids, self._in_quarantine[block_ids], "it is not in quarantine"
        )
        self._clock += 1
        self._in_quarantine[block_ids] = False
        self._num_quarantined -= len(block_ids)
        self._push_free(block_ids)

    def drain_events(self) -> tuple[HashArray, HashArray]:
        """(stored, removed) hashes since the last call, parents before children.

        Only net changes: no hash is in both, so they can be replayed in any order.
        """
        if not self._stored and not self._removed:
            return _NO_HASHES, _NO_HASHES
        stored = np.array(list(self._stored), dtype=np.uint64)
        removed = np.array(list(self._removed), dtype=np.uint64)
        self._stored, self._removed = {}, {}
        return stored, removed

    def snapshot(self) -> HashArray:
        """All hashes in the cache, held blocks included."""
        return np.array(list(self._block_of), dtype=np.uint64)

    def generation(self, block_ids: BlockIds) -> Generations:
        """How often each block has been allocated (uint64 [n])."""
        self._check_ids("generation", block_ids)
        return self._generations[block_ids]

    def _as_blocks(self, tokens: TokenArray, count: int) -> TokenArray:
        return tokens[: count * self.block_size].reshape(count, self.block_size)

    def _push_free(self, block_ids: BlockIds) -> None:
        count = len(block_ids)
        self._free[self._num_free : self._num_free + count] = block_ids[::-1]
        self._num_free += count

    def _retire(self, block_ids: BlockIds) -> None:
        """Cached blocks that lost their last reference become the most recently used."""
        self._clock += 1
        self._last_used[block_ids] = self._clock
        self._num_cached += len(block_ids)
        self._leaves.push(self._clock, block_ids[self._children[block_ids] == 0].tolist())

    def _find_unpublished(
        self, block_ids: BlockIds, hashes: HashArray, rows: TokenArray, parent: int | None
    ) -> list[tuple[int, int]]:
        """(index, parent block id) of the blocks to enter, with ``_block_of`` already updated."""
        parent_id = _NO_BLOCK if parent is None else self._block_of.get(parent, _NO_BLOCK)
        if parent is not None and parent_id == _NO_BLOCK:
            return []
        fresh: list[tuple[int, int]] = []
        in_cache = self._in_cache[block_ids].tolist()
        pairs = zip(block_ids.tolist(), hashes.tolist(), strict=True)
        for i, (block_id, value) in enumerate(pairs):
            owner = self._block_of.setdefault(value, block_id)
            if owner == block_id:
                if not in_cache[i]:
                    fresh.append((i, parent_id))
                    _note(value, self._stored, self._removed)
            elif not np.array_equal(self._tokens[owner], rows[i]):
                break  # Two texts with one hash: what follows must not hang under the other text.
            parent_id = owner
        return fresh

    def _is_evictable_leaf(self, last_used: int, block_id: int) -> bool:
        return bool(
            self._in_cache_of[block_id]
            and self._refs_of[block_id] == 0
            and self._children_of[block_id] == 0
            and self._last_used_of[block_id] == last_used
        )

    def _evict(self, count: int, leaves_only: bool) -> BlockIds:
        """Takes so many blocks out of the cache; they are nobody's then. There are that many.
        ``leaves_only``: fewer if a block with a holder would have to leave the cache for one."""
        evicted: list[int] = []
        leaf: Entry | None = None
        while (missing := count - len(evicted)) > 0:
            block_id = self._leaves.pop(leaf)
            if block_id is None:
                leaf = None
                if leaves_only:
                    break
                leaf = self._forget_held_leaf()
                continue
            chain = self._that_go_next(block_id, missing)
            leaf = self._forget(block_id) if len(chain) == 1 else self._forget_chain(chain)
            evicted += chain
        if leaf is not None:
            self._leaves.push(leaf[0], (leaf[1],))
        self._num_cached -= len(evicted)
        return np.array(evicted, dtype=np.int32)

    def _that_go_next(self, block_id: int, most: int) -> list[int]:
        """``block_id``, the leaf that goes first, and its ancestors that go right after it: they
        were given back with it, and nobody else builds on them."""
        chain, used = [block_id], self._last_used_of[block_id]
        if most == 1 or self._leaves.oldest_use == used:
            return chain
        parents, children, refs = self._parent_of, self._children_of, self._refs_of
        last_used = self._last_used_of
        while len(chain) < most:
            block_id = parents[block_id]
            if block_id == _NO_BLOCK or children[block_id] != 1:
                break
            if refs[block_id] or last_used[block_id] != used:
                break
            chain.append(block_id)
        return chain

    def _forget_chain(self, chain: list[int]) -> Entry | None:
        """`_forget` of blocks each of which is the only child of the next one."""
        block_ids = np.array(chain[:-1], dtype=np.int32)
        values = self._hash[block_ids].tolist()
        for value in values:
            del self._block_of[value]
        if not self._stored or self._stored.keys().isdisjoint(values):
            self._removed.update(dict.fromkeys(values))
        else:
            for value in values:
                _note(value, self._removed, self._stored)
        self._in_cache[block_ids] = False
        self._children[self._parent[block_ids]] = 0
        self._parent[block_ids] = _NO_BLOCK
        return self._forget(chain[-1])

    def _forget_held_leaf(self) -> Entry | None:
        """Every unheld cached block has held descendants: one of the oldest one's goes private.

        Rare: it takes two prompts that computed the same prefix at the same time, so that one of
        them holds blocks under a prefix that the other published. Hence the scan for children.
        """
        unheld = np.flatnonzero(self._in_cache & (self._refs == 0))
        block_id = int(unheld[self._last_used[unheld].argmin()])
        while self._children[block_id]:
            block_id = int(np.flatnonzero(self._parent == block_id)[0])
        return self._forget(block_id)

    def _forget(self, block_id: int) -> Entry | None:
        """Take a block without children out of the cache. If that makes its parent a leaf to
        evict, returns the entry to queue for it."""
        value, parent_id = self._hash_of[block_id], self._parent_of[block_id]
        del self._block_of[value]
        if value in self._stored:
            del self._stored[value]
        else:
            self._removed[value] = None
        self._in_cache_of[block_id] = False
        self._parent_of[block_id] = _NO_BLOCK
        if parent_id == _NO_BLOCK:
            return None
        children = self._children_of[parent_id] - 1
        self._children_of[parent_id] = children
        if children or self._refs_of[parent_id]:
            return None
        return self._last_used_of[parent_id], parent_id

    def _check_ids(self, action: str, block_ids: BlockIds) -> None:
        if len(block_ids) == 0:
            return
        named = set(block_ids.tolist())
        lowest, highest = min(named), max(named)
        if lowest < 0 or highest >= self.num_blocks:
            bad = lowest if lowest < 0 else highest
            raise _misuse(f"{action} of block {bad}: ids go from 0 to {self.num_blocks - 1}", bad)
        if len(named) < len(block_ids):
            ordered = np.sort(block_ids)
            twice = int(ordered[1:][ordered[1:] == ordered[:-1]][0])
            raise _misuse(f"{action} names block {twice} twice in one call", twice)

    def _check(
        self, action: str, block_ids: BlockIds, allowed: npt.NDArray[np.bool_], rule: str
    ) -> None:
        if not _all(allowed):
            bad = int(block_ids[int(allowed.argmin())])
            raise _misuse(f"{action} of block {bad} ({self._describe(bad)}): {rule}", bad)

    def _check_publish(self, block_ids: BlockIds, hashes: HashArray, tokens: TokenArray) -> None:
        self._check_ids("publish", block_ids)
        count = len(block_ids)
        if len(hashes) != count or len(tokens) != count * self.block_size:
            raise _misuse(
                f"publish of {count} blocks with {len(hashes)} hashes and {len(tokens)} tokens: "
                f"each block has one hash and {self.block_size} tokens",
                _NO_BLOCK,
            )
        self._check("publish", block_ids, self._refs[block_ids] > 0, "only its holder may")

    def _describe(self, block_id: int) -> str:
        """The story of one block, for error messages."""
        state = "leased" if self._refs[block_id] else "free"
        if self._in_quarantine[block_id]:
            state = "quarantined"
        elif self._in_cache[block_id]:
            state = f"{'leased and ' if self._refs[block_id] else ''}cached"
        return f"{state}, refs {self._refs[block_id]}, generation {self._generations[block_id]}"

    def validate(self) -> None:
        """Raise ``InternalError`` naming the first broken invariant, with the numbers."""
        held, idle = self._refs > 0, self._in_cache & (self._refs == 0)
        on_free_list = np.zeros(self.num_blocks, dtype=np.bool_)
        free = self._free[: self._num_free]
        on_free_list[free] = True
        _require("references are not negative", (self._refs >= 0).all())
        _require("the free list is unique", on_free_list.sum() == self._num_free)
        _require("num_cached counts cached blocks", idle.sum() == self._num_cached)
        _require("num_leased counts held blocks", held.sum() == self._num_leased)
        _require(
            "num_quarantined counts quarantined blocks",
            self._in_quarantine.sum() == self._num_quarantined,
        )
        states = on_free_list.astype(int) + idle + held + self._in_quarantine
        _require("free + cached + leased + quarantined = total", (states == 1).all())
        self._validate_cache(idle)

    def _validate_cache(self, idle: npt.NDArray[np.bool_]) -> None:
        cached = np.flatnonzero(self._in_cache)
        listed = dict(zip(self._hash[cached].tolist(), cached.tolist(), strict=True))
        _require("hash map and arrays agree", listed == self._block_of)
        parents = self._parent[cached]
        parents = parents[parents != _NO_BLOCK]
        _require("the parent of a cached block is cached", self._in_cache[parents].all())
        _require("uncached blocks have no parent", (self._parent[~self._in_cache] == -1).all())
        counted = np.bincount(parents, minlength=self.num_blocks)
        _require("children counts match", (counted == self._children).all())
        leaves = np.flatnonzero(idle & (self._children == 0))
        wanted = zip(self._last_used[leaves].tolist(), leaves.tolist(), strict=True)
        _require("every evictable leaf is queued", self._leaves.entries().issuperset(wanted))
        both = self._stored.keys() & self._removed.keys()
        _require("no pending event is both stored and removed", not both)


def _all(mask: npt.NDArray[np.bool_]) -> bool:
    """The same as ``mask.all()``, which takes a microsecond longer."""
    return int(np.count_nonzero(mask)) == mask.size


def _note(value: int, into: dict[int, None], opposite: dict[int, None]) -> None:
    """Record a change, or cancel the opposite one that nobody has seen yet."""
    if value in opposite:
        del opposite[value]
    else:
        into[value] = None


def _misuse(message: str, block_id: int) -> InternalError:
    return InternalError(message, reason="BLOCK_MISUSE", metadata={"block": str(block_id)})


def _require(invariant: str, holds: bool | np.bool_) -> None:
    if not holds:
        raise InternalError(
            f"block pool: broken invariant: {invariant}",
            reason="INVARIANT_VIOLATION",
            metadata={"invariant": invariant},
        )
