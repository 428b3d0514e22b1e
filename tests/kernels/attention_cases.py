"""Batches of all sorts over poisoned pools, and what attention must give: for tests and GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import hypothesis
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from interpreter import repair_bfloat16_dot

from kernels.paged_attention import attention_reference
from kernels.paged_sequences import PagedSequences

Launch = Callable[[torch.Tensor, torch.Tensor, int, PagedSequences, int | None, torch.Tensor], None]

HEAD_DIMS = (64, 80, 96, 112, 128, 160, 192, 256)
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
LAYERS = 2
# No block: reading it is an access far outside of the pool.
GARBAGE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Case:
    """``decodes``: lengths, 0 for padding; ``prefills``: (tokens before, new tokens)."""

    dtype: torch.dtype
    head_dim: int
    kv_heads: int
    group: int
    block_size: int
    window: int | None
    decodes: tuple[int, ...]
    prefills: tuple[tuple[int, int], ...]
    seed: int = 0

    @property
    def lengths(self) -> list[int]:
        return [*self.decodes, *(before + new for before, new in self.prefills)]

    @property
    def queries(self) -> list[int]:
        """New tokens of each sequence."""
        return [*(1 for _ in self.decodes), *(new for _, new in self.prefills)]


@dataclass(frozen=True, slots=True)
class Batch:
    """A case made real."""

    q: torch.Tensor
    pool: torch.Tensor
    sequences: PagedSequences


def attention_cases(
    decodes: st.SearchStrategy[tuple[int, ...]],
    prefills: st.SearchStrategy[tuple[tuple[int, int], ...]],
) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        dtype=st.sampled_from(list(TOLERANCES)),
        head_dim=st.sampled_from(HEAD_DIMS),
        kv_heads=st.integers(1, 3),
        group=st.sampled_from([1, 2, 3, 4, 7, 17]),
        block_size=st.sampled_from([1, 3, 8, 16, 64]),
        window=st.none() | st.integers(1, 100),
        decodes=decodes,
        prefills=prefills,
        seed=st.integers(0, 1000),
    )


def tuples(of: st.SearchStrategy[object], most: int) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=most).map(tuple)


# Around the ends of blocks and of tiles, and anything.
counts = st.sampled_from([1, 2, 16, 31, 32, 33, 64, 65, 128]) | st.integers(1, 130)
decode_lengths = tuples(st.just(0) | counts, 4)
chunks = tuples(st.tuples(st.just(0) | counts, counts.map(lambda n: -(-n // 2))), 3)
DECODES = attention_cases(decode_lengths.filter(any), st.just(()))
PREFILLS = attention_cases(st.just(()), chunks.filter(len))
MIXED = attention_cases(decode_lengths.filter(any), chunks.filter(len))


def make_batch(case: Case, device: str = "cpu") -> Batch:
    """Blocks are scattered; every cell that no query may see is NaN; tables end in garbage."""
    rng = np.random.default_rng(case.seed)
    needed = [-(-length // case.block_size) for length in case.lengths]
    ids = rng.permutation(sum(needed) + 3)
    size = (len(ids), LAYERS, 2, case.kv_heads, case.block_size, case.head_dim)
    pool = torch.full(size, torch.nan, dtype=case.dtype)
    tables = np.full((len(needed), max(needed) + 2), GARBAGE, np.int32)
    for i, (length, new) in enumerate(zip(case.lengths, case.queries, strict=True)):
        tables[i, : needed[i]], ids = ids[: needed[i]], ids[needed[i] :]
        begin = 0 if case.window is None else max(0, length - new - case.window + 1)
        # Whole blocks that the window has passed may belong to others by now.
        positions = np.arange(begin // case.block_size * case.block_size, length)
        blocks = tables[i, positions // case.block_size]
        cells = rng.standard_normal((len(positions), LAYERS, 2, case.kv_heads, case.head_dim))
        offsets = torch.from_numpy(positions % case.block_size)
        pool[torch.from_numpy(blocks).long(), :, :, :, offsets] = torch.from_numpy(cells).to(
            case.dtype
        )
    q = rng.standard_normal((sum(case.queries), case.kv_heads * case.group, case.head_dim))
    return Batch(
        torch.from_numpy(q).to(device, case.dtype),
        pool.to(device),
        PagedSequences(
            block_tables=torch.from_numpy(tables).to(device),
            lengths=torch.tensor(case.lengths, dtype=torch.int32, device=device),
            first_rows=torch.tensor(
                np.cumsum([0, *case.queries]), dtype=torch.int32, device=device
            ),
            num_decodes=len(case.decodes),
            longest_query=max(case.queries),
            longest=max(case.lengths),
        ),
    )


def expected_attention(case: Case, batch: Batch, layer: int) -> torch.Tensor:
    """float64 [T, heads, head_dim] on the CPU; zeros for padding."""
    q, pool = batch.q.cpu().double(), batch.pool.cpu().double()
    tables = batch.sequences.block_tables.cpu().numpy()
    parts = []
    for i, (length, new) in enumerate(zip(case.lengths, case.queries, strict=True)):
        rows, q = q[:new], q[new:]
        start = length - new
        parts.append(
            attention_reference(rows, pool, layer, tables[i], start, case.window)
            if length
            else torch.zeros_like(rows)
        )
    return torch.cat(parts)


def check_case(case: Case, launch: Launch, rows: slice, device: str = "cpu") -> None:
    """``launch`` fills these ``rows`` of its output with the right values and no other."""
    batch = make_batch(case, device)
    # One row more than it may touch.
    guarded = torch.full((len(batch.q) + 1, *batch.q.shape[1:]), torch.nan, dtype=case.dtype)
    guarded = guarded.to(device)
    layer = case.seed % LAYERS
    launch(batch.q, batch.pool, layer, batch.sequences, case.window, guarded[:-1])
    out = guarded[:-1].cpu().double()
    expected = expected_attention(case, batch, layer)[rows]
    tolerance = TOLERANCES[case.dtype]
    torch.testing.assert_close(out[rows], expected, rtol=tolerance, atol=tolerance)
    out[rows] = torch.nan
    assert bool(out.isnan().all())
    assert bool(guarded[-1].isnan().all())


def gathered_attention(case: Case, batch: Batch, layer: int) -> torch.Tensor:
    """`expected_attention` where tokens are too many to walk: on the batch's device, [T, …]."""
    heads, dim = batch.q.shape[1:]
    out = torch.zeros_like(batch.q, dtype=torch.float64)
    bounds = batch.sequences.first_rows.tolist()
    for i, (length, new) in enumerate(zip(case.lengths, case.queries, strict=True)):
        if length == 0:
            continue
        rows = slice(bounds[i], bounds[i + 1])
        table = batch.sequences.block_tables[i, : -(-length // case.block_size)].long()
        at = torch.arange(length, device=out.device)
        distance = at[length - new :, None] - at
        hidden = (distance < 0) | (distance >= (case.window or length + 1))
        kv = batch.pool[table, layer].permute(1, 2, 0, 3, 4)
        keys, values = kv.reshape(2, case.kv_heads, -1, dim)[:, :, :length].double().nan_to_num()
        for head in range(heads):
            scores = batch.q[rows, head].double() @ keys[head // case.group].T / dim**0.5
            weights = scores.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
            out[rows, head] = weights @ values[head // case.group]
    return out


TILES = st.sampled_from([16, 32, 64, 128])
# Several parts to add up, of which short contexts leave some empty.
SPLITS = st.sampled_from([1, 2, 4, 16])


def check_interpreted_kernels() -> None:
    """In a process with TRITON_INTERPRET=1."""
    import triton

    from kernels import decode_attention_triton as decode
    from kernels import prefill_attention_triton as prefill
    from kernels.dispatch import forced
    from kernels.paged_attention import paged_attention

    repair_bfloat16_dot()
    settings = hypothesis.settings(max_examples=30, deadline=None, database=None)

    @settings
    @given(DECODES, TILES, SPLITS)
    def check_decode(case: Case, tile: int, splits: int) -> None:
        decode.decode_kernel.configs = [triton.Config({"TILE": tile})]
        with mock.patch.object(decode, "num_splits", return_value=splits):
            check_case(case, decode.launch_decode_attention, slice(None))

    @settings
    @given(PREFILLS, TILES, TILES)
    def check_prefill(case: Case, rows: int, tile: int) -> None:
        prefill.prefill_kernel.configs = [triton.Config({"ROWS": rows, "TILE": tile})]
        check_case(case, prefill.launch_prefill_attention, slice(None))

    @hypothesis.settings(settings, max_examples=10)
    @given(MIXED)
    def check_mixed(case: Case) -> None:
        decodes = len(case.decodes)
        check_case(case, decode.launch_decode_attention, slice(decodes))
        check_case(case, prefill.launch_prefill_attention, slice(decodes, None))

        def launch(*arguments: object) -> None:
            *inputs, out = arguments
            out.copy_(paged_attention(*inputs))

        with forced("triton"):
            check_case(case, launch, slice(None))

    def check_edges() -> None:
        """Every offset of a window and of the causal edge to a tile."""
        decode.decode_kernel.configs = [triton.Config({"TILE": 16})]
        prefill.prefill_kernel.configs = [triton.Config({"ROWS": 16, "TILE": 16})]
        for shift in range(36):
            case = Case(torch.float32, 16, 1, 1, 4, shift + 1, (60,), ((32, 9),), shift)
            check_case(case, decode.launch_decode_attention, slice(1))
            check_case(case, prefill.launch_prefill_attention, slice(1, None))
            case = Case(torch.float32, 16, 1, 3, 4, None, (), ((shift, 7), (1, shift + 1)), shift)
            check_case(case, prefill.launch_prefill_attention, slice(None))

    check_edges()
    check_decode()
    check_prefill()
    check_mixed()
