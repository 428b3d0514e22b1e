"""Logits and draws of all sorts, and when a draw is too near to an edge for paths to agree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis
import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.random import uniform
from kernels.dispatch import forced
from kernels.sampling import sample_reference, sample_tokens
from kernels.sampling_arrays import DrawSpec, SamplingArrays

Sample = Callable[[torch.Tensor, SamplingArrays], torch.Tensor]

# The paths add up the same weights in another order.
EDGE = 1e-9

TEMPERATURES = (0.0, 5e-324, 1e-30, 0.05, 0.8, 1.0, 2.0, 1e30)
TOP_PS = (1e-12, 0.3, 0.9, 0.95, 1.0)
MIN_PS = (0.0, 1e-3, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class Case:
    logits: npt.NDArray[np.float32]
    draws: tuple[DrawSpec, ...]

    def check(self, sample: Sample = sample_tokens) -> None:
        """Raises AssertionError unless ``sample`` draws the reference's tokens."""
        arrays = SamplingArrays.of(self.draws)
        tokens = sample(torch.from_numpy(self.logits), arrays).cpu().numpy()
        decided = ~np.array(
            [near_an_edge(self.logits[draw.row], draw) for draw in self.draws], dtype=bool
        )
        expected = sample_reference(self.logits, self.draws)
        assert tokens[decided].tolist() == expected[decided].tolist()


def near_an_edge(row: npt.NDArray[np.float32], draw: DrawSpec) -> bool:
    """Whether top_p or the draw falls so near to an edge of the mass that rounding decides."""
    if draw.temperature == 0 or not np.isfinite(row.max()):
        return False
    below = np.sort(row.astype(np.float64) - row.max())[::-1]
    if draw.min_p:
        below = below[below >= draw.temperature * math.log(draw.min_p)]
    with np.errstate(over="ignore"):
        cumulated = np.exp(below[: draw.top_k or None] / draw.temperature).cumsum()
    kept = cumulated
    if draw.top_p < 1:
        wanted = draw.top_p * cumulated[-1]
        if (abs(cumulated - wanted) < EDGE * cumulated[-1]).any():
            return True
        kept = cumulated[: int(np.argmax(cumulated >= wanted)) + 1]
    drawn = uniform(draw.seed, draw.sequence_index, draw.position)
    return bool((abs(kept - drawn * kept[-1]) < EDGE * kept[-1]).any())


@st.composite
def _cases(draw: st.DrawFn, largest_vocabulary: int) -> Case:
    rows, vocab = draw(st.integers(1, 3)), draw(st.integers(1, largest_vocabulary))
    logits = draw(st.sampled_from(sorted(_SHAPES)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = _SHAPES[logits](generator, (rows, vocab)).astype(np.float32)
    for token in draw(st.lists(st.integers(0, vocab - 1), max_size=3)):
        values[0, token] = draw(st.sampled_from([-np.inf, np.nan, np.inf, -np.nan, -0.0, 3e38]))
    return Case(values, tuple(draw(st.lists(_draws(rows, vocab), min_size=1, max_size=5))))


def _draws(rows: int, vocab: int) -> st.SearchStrategy[DrawSpec]:
    return st.builds(
        DrawSpec,
        row=st.integers(0, rows - 1),
        temperature=st.sampled_from(TEMPERATURES),
        top_k=st.sampled_from([0, 0, 1, 2, 7, 50, vocab, vocab + 1, 2**31 - 1]),
        top_p=st.sampled_from(TOP_PS),
        min_p=st.sampled_from(MIN_PS),
        seed=st.integers(0, 2**63 - 1),
        sequence_index=st.integers(0, 127),
        position=st.integers(0, 2**34),
    )


_SHAPES = {
    "normal": lambda g, shape: g.normal(0, 3, shape),
    "ties": lambda g, shape: g.normal(0, 1, shape).round(1),
    "equal": lambda g, shape: np.full(shape, -7.25),
    "wide": lambda g, shape: g.normal(0, 1e20, shape),
    "peaked": lambda g, shape: g.normal(0, 1, shape) - 30 * (g.random(shape) > 0.1),
    "impossible": lambda g, shape: np.where(g.random(shape) < 0.7, -np.inf, g.normal(0, 2, shape)),
}


def cases(largest_vocabulary: int) -> st.SearchStrategy[Case]:
    return _cases(largest_vocabulary)


def sample_by_maxima(logits: torch.Tensor, arrays: SamplingArrays) -> torch.Tensor:
    """As after a head that told the maxima of stripes."""
    rows, vocab = logits.shape
    padded = torch.nn.functional.pad(logits, (0, -vocab % 512), value=-torch.inf)
    maxima = padded.view(rows, -1, 32, 16).amax(dim=2).contiguous()
    return sample_tokens(logits, arrays, maxima)


def large_cases(vocab: int, draws: int) -> list[Case]:
    """Few rows over a large vocabulary: likely words over a long tail, and a nearly flat row."""
    generator = np.random.default_rng(vocab)
    likely = generator.normal(0, 2, (1, vocab)) + 9 * (generator.random((1, vocab)) < 2e-3)
    flat = generator.normal(0, 0.3, (1, vocab))
    settings = [
        {"temperature": 0.8, "top_p": 0.95},
        {"temperature": 0.8, "top_p": 0.95, "top_k": 50},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_k": 20_000, "min_p": 1e-4},
        {"temperature": 0.0},
    ]
    specs = tuple(
        DrawSpec(0, seed=seed, **setting)  # type: ignore[arg-type]
        for setting in settings
        for seed in range(draws)
    )
    return [Case(x.astype(np.float32), specs) for x in (likely, flat)]


# More than are kept in registers, of which nearly all are cut off.
_PEAKED = np.linspace(0, 60, 180, dtype=np.float32)[None] ** 2


def check_interpreted_kernels() -> None:
    """In a process with TRITON_INTERPRET=1. Few ranks are kept in registers, most are searched."""
    from kernels.sampling_triton import SamplingConfig, launch_sampling

    def sample(logits: torch.Tensor, arrays: SamplingArrays) -> torch.Tensor:
        return launch_sampling(logits, arrays.on(logits.device), SamplingConfig(64, 16))

    # Without shrinking, which would take the interpreter hours.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)

    @hypothesis.settings(max_examples=20, deadline=None, database=None, phases=phases)
    @hypothesis.example(Case(_PEAKED, (DrawSpec(0, 1.0, top_k=9999, top_p=0.9, min_p=0.3),) * 2))
    @given(cases(largest_vocabulary=300))
    def check(case: Case) -> None:
        case.check(sample)

    check()


def check_interpreted_dispatch() -> None:
    """As above, through the public function and with the configuration that GPUs run."""
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 3, (2, 5000)).astype(np.float32)
    logits[1] = 0.5
    draws = [DrawSpec(0, 0.8, top_p=0.95), DrawSpec(1, 1.0, top_k=2222), DrawSpec(0)]
    with forced("triton"):
        Case(logits, tuple(draws)).check()


def compile_kernels(capability: int) -> None:
    """Compiles all kernels for a GPU of this capability and prints their registers and spills."""
    from cubin import compile_kernel

    from kernels import sampling_arrays as lines
    from kernels import sampling_triton as kernels

    config = kernels.CONFIG
    pointers = {"logits": "*fp32", "values": "*i64", "peaks": "*i64", "masses": "*fp64"}
    pointers |= {"candidates": "*i64", "tokens": "*i64"}
    numbers = dict.fromkeys(("row_stride", "vocab", "draws", "chunks"), "i32")
    for vocab in (49_152, 262_144):
        constants = {"CHUNK": config.chunk, "SHORT": config.short, "CHUNKS": vocab // config.chunk}
        constants["CHUNKS"] = 1 << (constants["CHUNKS"] - 1).bit_length()
        for name in ("ROW", "TOP_K", "SEED", "SEQUENCE_INDEX", "POSITION"):
            constants[name] = getattr(lines, name)
        constants |= {
            "TEMPERATURE": lines.TEMPERATURE,
            "TOP_P": lines.TOP_P,
            "CUTOFF": lines.CUTOFF,
        }
        for kernel in (kernels.largest_kernel, kernels.mass_kernel, kernels.draw_kernel):
            names = kernel.arg_names
            signature = {n: t for n, t in (pointers | numbers).items() if n in names}
            own = {n: value for n, value in constants.items() if n in names}
            done = compile_kernel(kernel, capability, signature, own, num_warps=config.num_warps)
            print("cubin", kernel.__name__, vocab, done.registers, done.spilled)
