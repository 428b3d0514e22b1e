"""Who holds which KV block: references, the free list, quarantine.

Covers: blocks by allocation or from the prefix cache, their return, generations (which let a reader
of shared memory see that a block was given to someone else), misuse. State lives in arrays, one
entry per block.
Does not cover: which blocks are found by their tokens and which of them goes first
(``core.prefix_cache``), their bytes (``engine``), leases and deadlines (the handoff).

Every block is in exactly one state:

- free: on the free list.
- leased: references > 0. It may be in the cache at the same time and then be shared.
- cached: in the cache with no reference; evicted when the free list is short.
- quarantined: nobody holds it, but something may still write to it; not reusable.

Whatever is cached and held by nobody can be evicted, so ``num_available`` is exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.block_checks import all_of, check_names, misuse, require
from core.block_hash import HashArray, TokenArray
from core.errors import InvalidField
from core.prefix_cache import NO_BLOCK, Mask, PrefixCache

BlockIds = npt.NDArray[np.int32]
Generations = npt.NDArray[np.uint64]


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
        self._in_quarantine = np.zeros(num_blocks, dtype=np.bool_)
        self._cache = PrefixCache(self._refs, block_size)
        # Views for single entries, which are faster there than the arrays.
        self._generations_of = self._generations.data
        self._refs_of = self._refs.data
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self._num_free = num_blocks
        self._num_cached = 0
        self._num_leased = 0
        self._num_quarantined = 0
        # Counts the calls that give blocks back.
        self._clock = 0

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

    # Prefixes

    def is_cached(self, value: int) -> bool:
        """Whether some block is in the cache under this hash."""
        return self._cache.find(value) != NO_BLOCK

    def is_held(self, value: int) -> bool:
        """Whether somebody holds the block that is cached under this hash."""
        block_id = self._cache.find(value)
        return block_id != NO_BLOCK and bool(self._refs[block_id] > 0)

    def match_prefix(self, hashes: HashArray, tokens: TokenArray) -> BlockIds:
        """Blocks of the longest cached prefix; takes no reference.

        ``hashes`` (uint64 [n]) of the first n blocks of ``tokens`` (int32, at least n blocks
        long). A block counts only if its token ids are equal too.
        """
        return self._cache.match(hashes, tokens)

    def can_extend(self, values: list[int], ends: list[tuple[int, int]]) -> bool:
        """Whether new blocks with these hashes, all different, may be entered by `extend`, be it
        now or after some calls of `allocate_easily`: nobody has published their tokens, and what
        they build on is in the cache: ``ends``, (hash, block id), held by the caller."""
        return self._cache.can_extend(values, ends)

    def extend(self, block_id: int, value: int, tokens: TokenArray, parent_id: int) -> None:
        """`publish` of one new block, with the hash ``value``, at the end of a chain, where
        `can_extend` has allowed it. ``parent_id``: the block before it, -1 for none."""
        if not self._refs_of[block_id] or self._cache.has(block_id):
            story = self._describe(block_id)
            raise misuse(f"publish of block {block_id} ({story}): it is not new", block_id)
        self._cache.extend(block_id, value, tokens, parent_id)

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
        rows = self._cache.as_blocks(tokens, len(block_ids))
        if self._cache.publish_chain(block_ids, hashes, rows, parent):
            return
        same = ~self._cache.has_each(block_ids) | self._cache.has_under(block_ids, hashes)
        self._check("publish", block_ids, same, "it is cached under another hash")
        self._cache.publish(block_ids, hashes, rows, parent)

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
        value, cache = int(hashes[0]), self._cache
        parent_id = NO_BLOCK if parent is None else cache.find(parent)
        has_parent = parent is None or parent_id != NO_BLOCK
        is_new = cache.find(value) == NO_BLOCK and not cache.has(block_id)
        if not (has_parent and is_new and self._refs_of[block_id] > 0):
            return False
        cache.extend(block_id, value, tokens, parent_id)
        return True

    def drain_events(self) -> tuple[HashArray, HashArray]:
        """(stored, removed) hashes since the last call, parents before children.

        Only net changes: no hash is in both, so they can be replayed in any order.
        """
        return self._cache.changes.drain()

    def snapshot(self) -> HashArray:
        """All hashes in the cache, held blocks included."""
        return self._cache.snapshot()

    # Blocks to hold

    def acquire(self, block_ids: BlockIds) -> None:
        """One more reference on each block, which is in the cache or held by someone."""
        check_names("acquire", block_ids, self.num_blocks)
        refs = self._refs.take(block_ids)
        allowed = (refs > 0) | self._cache.has_each(block_ids)
        self._check("acquire", block_ids, allowed, "only cached or held blocks can be shared")
        unheld = len(refs) - int(np.count_nonzero(refs))
        self._refs.put(block_ids, refs + 1)
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
            listed = len(block_ids)
            evicted = self._cache.evict(count - listed, leaves_only)
            block_ids = np.concatenate([block_ids, *evicted])
            self._num_cached -= len(block_ids) - listed
        if len(block_ids) == 1:  # A sequence that decodes takes block after block.
            block_id = int(block_ids[0])
            self._refs_of[block_id] = 1
            self._generations_of[block_id] += 1
        else:
            self._refs.put(block_ids, 1)
            self._generations.put(block_ids, self._generations.take(block_ids) + np.uint64(1))
        self._num_leased += len(block_ids)
        return block_ids

    def release(self, block_ids: BlockIds) -> None:
        """One reference less on each. At none, cached blocks stay as cache, others become free."""
        check_names("release", block_ids, self.num_blocks)
        refs = self._refs.take(block_ids)
        self._check("release", block_ids, refs > 0, "nobody holds it")
        self._refs.put(block_ids, refs - 1)
        dropped = block_ids[refs == 1]
        in_cache = self._cache.has_each(dropped)
        kept = dropped[in_cache]
        self._num_leased -= len(dropped)
        self._push_free(dropped[~in_cache])
        self._clock += 1
        self._num_cached += len(kept)
        self._cache.given_back(kept, self._clock)

    def quarantine(self, block_ids: BlockIds) -> None:
        """The caller's only reference on uncached blocks becomes quarantine."""
        check_names("quarantine", block_ids, self.num_blocks)
        private = (self._refs[block_ids] == 1) & ~self._cache.has_each(block_ids)
        self._check("quarantine", block_ids, private, "it must be uncached with one reference")
        self._refs[block_ids] = 0
        self._in_quarantine[block_ids] = True
        self._num_leased -= len(block_ids)
        self._num_quarantined += len(block_ids)

    def unquarantine(self, block_ids: BlockIds) -> None:
        """Nothing can write to these blocks any more: they become free."""
        check_names("unquarantine", block_ids, self.num_blocks)
        self._check(
            "unquarantine", block_ids, self._in_quarantine[block_ids], "it is not in quarantine"
        )
        self._clock += 1
        self._in_quarantine[block_ids] = False
        self._num_quarantined -= len(block_ids)
        self._push_free(block_ids)

    def parents_of(self, hashes: HashArray) -> HashArray:
        """Of cached blocks: the hash of the block before each, 0 at the start of a prompt."""
        return self._cache.parents_of(hashes)

    def generation(self, block_ids: BlockIds) -> Generations:
        """How often each block has been allocated (uint64 [n])."""
        check_names("generation", block_ids, self.num_blocks)
        return self._generations[block_ids]

    def _push_free(self, block_ids: BlockIds) -> None:
        count = len(block_ids)
        self._free[self._num_free : self._num_free + count] = block_ids[::-1]
        self._num_free += count

    # Checks

    def _check(self, action: str, block_ids: BlockIds, allowed: Mask, rule: str) -> None:
        if not all_of(allowed):
            bad = int(block_ids[int(allowed.argmin())])
            raise misuse(f"{action} of block {bad} ({self._describe(bad)}): {rule}", bad)

    def _check_publish(self, block_ids: BlockIds, hashes: HashArray, tokens: TokenArray) -> None:
        check_names("publish", block_ids, self.num_blocks)
        count = len(block_ids)
        if len(hashes) != count or len(tokens) != count * self.block_size:
            raise misuse(
                f"publish of {count} blocks with {len(hashes)} hashes and {len(tokens)} tokens: "
                f"each block has one hash and {self.block_size} tokens",
                NO_BLOCK,
            )
        self._check("publish", block_ids, self._refs.take(block_ids) > 0, "only its holder may")

    def _describe(self, block_id: int) -> str:
        """The story of one block, for error messages."""
        state = "leased" if self._refs[block_id] else "free"
        if self._in_quarantine[block_id]:
            state = "quarantined"
        elif self._cache.has(block_id):
            state = f"{'leased and ' if self._refs[block_id] else ''}cached"
        return f"{state}, refs {self._refs[block_id]}, generation {self._generations[block_id]}"

    def validate(self) -> None:
        """Raise ``InternalError`` naming the first broken invariant, with the numbers."""
        in_cache = self._cache.has_each(np.arange(self.num_blocks, dtype=np.int32))
        held, idle = self._refs > 0, in_cache & (self._refs == 0)
        on_free_list = np.zeros(self.num_blocks, dtype=np.bool_)
        free = self._free[: self._num_free]
        on_free_list[free] = True
        require("references are not negative", (self._refs >= 0).all())
        require("the free list is unique", on_free_list.sum() == self._num_free)
        require("num_cached counts cached blocks", idle.sum() == self._num_cached)
        require("num_leased counts held blocks", held.sum() == self._num_leased)
        require(
            "num_quarantined counts quarantined blocks",
            self._in_quarantine.sum() == self._num_quarantined,
        )
        states = on_free_list.astype(int) + idle + held + self._in_quarantine
        require("free + cached + leased + quarantined = total", (states == 1).all())
        self._cache.validate(idle)
