"""Blocks that can be found by the tokens that they hold, and which of them goes when room is short.

Covers: chained hashes to blocks, whose token ids are compared, too; parents and children; eviction,
least recently used leaves first; what changed. State lives in arrays, one entry per block
(``take`` and ``put`` are twice as fast as indexing).
Does not cover: who holds blocks, where new ones come from, misuse (``core.block_pool``).

A cached block other than the first of a prompt has its parent in the cache. So a block is
evicted only after its cached children. If only blocks under leased children are left to evict,
these children leave the cache (their holders keep them).
"""

from __future__ import annotations

from collections import deque
from itertools import repeat, takewhile

import numpy as np
import numpy.typing as npt

from core.block_checks import all_of, require
from core.block_hash import HashArray, TokenArray
from core.cache_changes import CacheChanges
from core.eviction import Entry, LeafQueue

BlockIds = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

NO_BLOCK = -1


class PrefixCache:
    """Blocks of ``block_size`` tokens each. ``references`` (int32 [num_blocks]) belongs to the pool
    and says how many hold each block. ``changes``: since they were drained."""

    def __init__(self, references: npt.NDArray[np.int32], block_size: int) -> None:
        num_blocks = len(references)
        self.block_size = block_size
        self.changes = CacheChanges()
        self._refs = references
        self._in_cache = np.zeros(num_blocks, dtype=np.bool_)
        self._hash = np.zeros(num_blocks, dtype=np.uint64)
        self._tokens = np.zeros((num_blocks, block_size), dtype=np.int32)
        self._parent = np.full(num_blocks, NO_BLOCK, dtype=np.int32)
        self._children = np.zeros(num_blocks, dtype=np.int32)
        self._last_used = np.zeros(num_blocks, dtype=np.int64)
        # Views for single entries, which are faster there than the arrays.
        self._refs_of = self._refs.data
        self._in_cache_of = self._in_cache.data
        self._hash_of = self._hash.data
        self._parent_of = self._parent.data
        self._children_of = self._children.data
        self._last_used_of = self._last_used.data
        self._block_of: dict[int, int] = {}
        self._leaves = LeafQueue(self._is_evictable_leaf, limit=2 * num_blocks + 16)

    def find(self, value: int) -> int:
        """The block that is cached under this hash; `NO_BLOCK` if none is."""
        return self._block_of.get(value, NO_BLOCK)

    def has(self, block_id: int) -> bool:
        return bool(self._in_cache_of[block_id])

    def has_each(self, block_ids: BlockIds) -> Mask:
        in_cache: Mask = self._in_cache.take(block_ids)
        return in_cache

    def has_under(self, block_ids: BlockIds, hashes: HashArray) -> Mask:
        """Which of these blocks are cached under their hash."""
        same: Mask = self._in_cache[block_ids] & (self._hash[block_ids] == hashes)
        return same

    def match(self, hashes: HashArray, tokens: TokenArray) -> BlockIds:
        """See `core.block_pool.BlockPool.match_prefix`."""
        cached = map(self._block_of.get, hashes.tolist(), repeat(NO_BLOCK))
        found = list(takewhile(NO_BLOCK.__ne__, cached))
        block_ids = np.fromiter(found, dtype=np.int32, count=len(found))
        if not found:
            return block_ids
        equal = self._tokens.take(block_ids, axis=0) == self.as_blocks(tokens, len(found))
        if all_of(equal):
            return block_ids
        return block_ids[: int(equal.all(axis=1).argmin())]

    def as_blocks(self, tokens: TokenArray, count: int) -> TokenArray:
        """int32 [count, block_size]"""
        return tokens[: count * self.block_size].reshape(count, self.block_size)

    def snapshot(self) -> HashArray:
        return np.array(list(self._block_of), dtype=np.uint64)

    def parents_of(self, hashes: HashArray) -> HashArray:
        """See `core.block_pool.BlockPool.parents_of`."""
        found = map(self._block_of.__getitem__, hashes.tolist())
        parents = self._parent[np.fromiter(found, np.int32, len(hashes))]
        return np.where(parents == NO_BLOCK, np.uint64(0), self._hash[parents])

    # What comes in

    def can_extend(self, values: list[int], ends: list[tuple[int, int]]) -> bool:
        """See `core.block_pool.BlockPool.can_extend`."""
        if not self._block_of.keys().isdisjoint(values):
            return False
        return all(self._block_of.get(value) == block_id for value, block_id in ends)

    def extend(self, block_id: int, value: int, tokens: TokenArray, parent_id: int) -> None:
        """Enters a block that is not in the cache, with a hash that nobody has. ``parent_id``: the
        cached block before it, `NO_BLOCK` for none."""
        self._block_of[value] = block_id
        self.changes.stored(value)
        self._in_cache_of[block_id] = True
        self._hash_of[block_id] = value
        self._tokens[block_id] = tokens
        self._parent_of[block_id] = parent_id
        if parent_id != NO_BLOCK:
            self._children_of[parent_id] += 1

    def publish_chain(
        self, block_ids: BlockIds, hashes: HashArray, rows: TokenArray, parent: int | None
    ) -> bool:
        """Blocks none of which is known, after a cached parent, as prefill fills them. False: not
        that, and nothing was done. ``rows``: int32 [n, block_size].
        """
        parent_id = NO_BLOCK if parent is None else self.find(parent)
        has_parent = parent is None or parent_id != NO_BLOCK
        if not has_parent or np.count_nonzero(self._in_cache.take(block_ids)):
            return False
        if not self._list_new(hashes.tolist(), block_ids.tolist()):
            return False
        self.changes.stored(hashes)
        self._in_cache.put(block_ids, True)
        self._hash.put(block_ids, hashes)
        self._tokens[block_ids] = rows
        self._parent.put(block_ids[1:], block_ids[:-1])
        self._children.put(block_ids[:-1], 1)
        if len(block_ids) and parent is not None:
            self._children[parent_id] += 1
            self._parent[block_ids[0]] = parent_id
        return True

    def _list_new(self, values: list[int], block_ids: list[int]) -> bool:
        """Lists all blocks, or none if one of the hashes is known."""
        # What nobody has the first block of, nobody has the others of: so mostly it is the first.
        if values and values[0] in self._block_of:
            return False
        before = len(self._block_of)
        self._block_of.update(zip(values, block_ids, strict=True))
        if len(self._block_of) == before + len(values):
            return True
        cached = np.flatnonzero(self._in_cache)
        self._block_of = dict(zip(self._hash[cached].tolist(), cached.tolist(), strict=True))
        return False

    def publish(
        self, block_ids: BlockIds, hashes: HashArray, rows: TokenArray, parent: int | None
    ) -> None:
        """See `core.block_pool.BlockPool.publish`. ``rows``: int32 [n, block_size]."""
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
        np.add.at(self._children, parents[parents != NO_BLOCK], 1)

    def _find_unpublished(
        self, block_ids: BlockIds, hashes: HashArray, rows: TokenArray, parent: int | None
    ) -> list[tuple[int, int]]:
        """(index, parent block id) of the blocks to enter, with ``_block_of`` already updated."""
        parent_id = NO_BLOCK if parent is None else self.find(parent)
        if parent is not None and parent_id == NO_BLOCK:
            return []
        fresh: list[tuple[int, int]] = []
        in_cache = self._in_cache[block_ids].tolist()
        pairs = zip(block_ids.tolist(), hashes.tolist(), strict=True)
        for i, (block_id, value) in enumerate(pairs):
            owner = self._block_of.setdefault(value, block_id)
            if owner == block_id:
                if not in_cache[i]:
                    fresh.append((i, parent_id))
                    self.changes.stored(value)
            elif not np.array_equal(self._tokens[owner], rows[i]):
                break  # Two texts with one hash: what follows must not hang under the other text.
            parent_id = owner
        return fresh

    # What goes

    def given_back(self, block_ids: BlockIds, time: int) -> None:
        """Cached blocks that lost their last reference become the most recently used. ``time``
        rises from call to call."""
        self._last_used.put(block_ids, time)
        self._leaves.push(time, block_ids[self._children.take(block_ids) == 0].tolist())

    def evict(self, count: int, leaves_only: bool) -> list[BlockIds]:
        """Takes so many blocks out of the cache; they are nobody's then. There are that many.
        ``leaves_only``: fewer if a block with a holder would have to leave the cache for one."""
        evicted: list[BlockIds] = []
        leaf: Entry | None = None
        while count:
            block_id = self._leaves.pop(leaf)
            if block_id is None:
                leaf = None
                if leaves_only:
                    break
                leaf = self._forget_held_leaf()
                continue
            chain = self._that_go_next(block_id, count)
            block_ids = np.fromiter(chain, dtype=np.int32, count=len(chain))
            if len(chain) > 1:
                self._forget_children(block_ids)
            leaf = self._forget(chain[-1])
            evicted.append(block_ids)
            count -= len(chain)
        if leaf is not None:
            self._leaves.push(leaf[0], (leaf[1],))
        return evicted

    def _is_evictable_leaf(self, last_used: int, block_id: int) -> bool:
        return bool(
            self._in_cache_of[block_id]
            and self._refs_of[block_id] == 0
            and self._children_of[block_id] == 0
            and self._last_used_of[block_id] == last_used
        )

    def _that_go_next(self, block_id: int, most: int) -> list[int]:
        """``block_id``, the leaf that goes first, and its ancestors that go right after it: they
        were given back with it, and nobody else builds on them."""
        chain, used = [block_id], self._last_used_of[block_id]
        if most == 1 or self._leaves.oldest_use == used:
            return chain
        parents, children, refs = self._parent_of, self._children_of, self._refs_of
        last_used, add = self._last_used_of, chain.append
        for _ in range(most - 1):
            block_id = parents[block_id]
            if block_id == NO_BLOCK or children[block_id] != 1:
                break
            if refs[block_id] or last_used[block_id] != used:
                break
            add(block_id)
        return chain

    def _forget_children(self, chain: BlockIds) -> None:
        """`_forget` of all but the last of ``chain``, each the only child of the next one."""
        block_ids = chain[:-1]
        hashes = self._hash.take(block_ids)
        # Calls it for each, without a loop in Python.
        deque(map(self._block_of.__delitem__, hashes.tolist()), maxlen=0)
        self.changes.removed(hashes)
        self._in_cache.put(block_ids, False)
        self._children.put(chain[1:], 0)
        self._parent.put(block_ids, NO_BLOCK)

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
        self.changes.removed(value)
        self._in_cache_of[block_id] = False
        self._parent_of[block_id] = NO_BLOCK
        if parent_id == NO_BLOCK:
            return None
        children = self._children_of[parent_id] - 1
        self._children_of[parent_id] = children
        if children or self._refs_of[parent_id]:
            return None
        return self._last_used_of[parent_id], parent_id

    def validate(self, idle: Mask) -> None:
        """Raises ``InternalError`` naming the first broken invariant. ``idle`` (bool [num_blocks]):
        cached and held by nobody."""
        cached = np.flatnonzero(self._in_cache)
        listed = dict(zip(self._hash[cached].tolist(), cached.tolist(), strict=True))
        require("hash map and arrays agree", listed == self._block_of)
        parents = self._parent[cached]
        parents = parents[parents != NO_BLOCK]
        require("the parent of a cached block is cached", self._in_cache[parents].all())
        require("uncached blocks have no parent", (self._parent[~self._in_cache] == -1).all())
        counted = np.bincount(parents, minlength=len(self._refs))
        require("children counts match", (counted == self._children).all())
        leaves = np.flatnonzero(idle & (self._children == 0))
        wanted = zip(self._last_used[leaves].tolist(), leaves.tolist(), strict=True)
        require("every evictable leaf is queued", self._leaves.entries().issuperset(wanted))
