"""`crossdock profile` without measuring: resuming, cores, what findings become, what is refused."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from model_folders import make_model_folder
from typer.testing import CliRunner

from cluster.cli.main import new_app
from cluster.engine_bench.cases import OVERHEAD_PROMPT, WARM_UP_STEPS
from cluster.profiling.assemble import TICKET, WAY, assemble
from cluster.profiling.machine import hardware_name, visible_gpus
from cluster.profiling.overhead import AROUND, BESIDE, SERVED_STEP
from cluster.profiling.partial_file import PartialFile, partial_path
from cluster.profiling.placing import Placing, place, place_edge
from cluster.profiling.subject import Subject, choose_subject
from cluster.profiling.tasks import AGAIN, FIRST, Found
from cluster.progress import ProgressBar, StderrProgress
from core.config import make_spec
from core.errors import Incompatible, InvalidField
from core.latency_profile import StepWork, chunk_pairs
from core.shards import ONE_RANK, ParallelShape
from tuner.profile.points import EdgeSetting, Effort, EngineSetting

ALONE = EngineSetting(ONE_RANK, 1)
SHARED = EngineSetting(ONE_RANK, 1, core_share=0.5, company=1)
MODEL = {"model": "tiny", "hardware": "a CPU"}


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    folder = make_model_folder(tmp_path / "tiny")
    spec = make_spec({"model": str(folder)})
    chosen = choose_subject(spec, Effort.QUICK, StderrProgress())
    return replace(chosen, cores=(3,), kv_tokens=60_000)


# Resuming


def begun(path: Path, identity: dict[str, str]) -> None:
    """A file with one finding."""
    with PartialFile(path, identity) as partial:
        partial.add("engine a", Found("decode 1 × 64", 0.25, 5))


def test_nothing_is_left_of_a_run_that_has_found_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p.partial.jsonl"
    with PartialFile(path, MODEL):
        pass
    assert not path.exists()


def test_findings_are_there_again_after_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "p.partial.jsonl"
    with PartialFile(path, MODEL) as partial:
        partial.add("engine a", Found("decode 1 × 64", 0.25, 5))
        partial.add("engine b", Found("decode 1 × 64", 0.5, 5))
    with PartialFile(path, MODEL) as again:
        assert len(again) == 2
        assert again.get("engine a", "decode 1 × 64") == Found("decode 1 × 64", 0.25, 5)
        assert again.get("engine a", "decode 2 × 64") is None
        assert list(again.section("engine b")) == ["decode 1 × 64"]
        again.remove()
    assert not path.exists()


def test_it_is_known_how_old_findings_are(tmp_path: Path) -> None:
    path = tmp_path / "p.partial.jsonl"
    with PartialFile(path, MODEL, clock=lambda: 1_000.0) as partial:
        assert partial.age_s == 0
        partial.add("a", Found("one", 1.0, 1))
    with PartialFile(path, MODEL, clock=lambda: 8_200.0) as again:
        again.add("a", Found("two", 1.0, 1))
        assert again.age_s == 7_200
    with PartialFile(path, MODEL, clock=lambda: 500.0) as before_the_clock_was_set_back:
        assert before_the_clock_was_set_back.age_s == 0


def test_the_line_that_a_kill_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "p.partial.jsonl"
    with PartialFile(path, MODEL) as partial:
        partial.add("a", Found("one", 1.0, 1))
        partial.add("a", Found("two", 2.0, 1))
    path.write_text(path.read_text()[:-20])
    with PartialFile(path, MODEL) as again:
        assert list(again.section("a")) == ["one"]
        again.add("a", Found("two", 3.0, 1))
    with PartialFile(path, MODEL) as third:
        assert [found.seconds for found in third.section("a").values()] == [1.0, 3.0]


def test_findings_of_another_model_or_machine_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "p.partial.jsonl"
    begun(path, MODEL)
    before = path.read_bytes()
    with pytest.raises(Incompatible, match="with hardware a CPU, not a GPU: remove it, or choose"):
        PartialFile(path, MODEL | {"hardware": "a GPU"})
    assert path.read_bytes() == before


def test_few_runs_do_not_stand_for_many(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "p.partial.jsonl"
    begun(path, subject.identity)
    thorough = replace(subject, effort=Effort.THOROUGH)
    with pytest.raises(Incompatible, match="with effort quick, not thorough: remove it, or choose"):
        PartialFile(path, thorough.identity)


NOT_A_TIME = '{"section": "a", "at": 1, "name": "b", "seconds": NaN, "runs": 3}'
NEVER = '{"section": "a", "at": "now", "name": "b", "seconds": 1, "runs": 3}'


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", '{"section": "a"}', '{"name": "b"}', "[" * 100_000, NOT_A_TIME, NEVER],
)
def test_damaged_findings_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.partial.jsonl"
    begun(path, MODEL)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InvalidField, match=r"is damaged \(line 3\); remove it"):
        PartialFile(path, MODEL)
    path.write_text(line + "\n")
    with pytest.raises(InvalidField, match=r"is damaged \(line 1\)"):
        PartialFile(path, MODEL)


# Cores


def test_a_replica_and_its_company_have_cores_of_their_own() -> None:
    assert place(ALONE, [0, 1]) == Placing(((1,),), ())
    assert place(EngineSetting(ONE_RANK, 1, company=1), [0, 1]) == Placing(((1,),), ((0,),))
    assert place(EngineSetting(ONE_RANK, 2), [0, 1]) == Placing(((0, 1),), ())
    assert place(EngineSetting(ParallelShape(1, 2), 1), [0, 1]) == Placing(((1,), (0,)), ())
    four = EngineSetting(ONE_RANK, 2, company=2)
    assert place(four, [1, 3, 4, 5, 6, 8]) == Placing(((6, 8),), ((4, 5), (1, 3)))


def test_company_on_a_shared_core_comes_first() -> None:
    shared = EngineSetting(ONE_RANK, 1, core_share=0.5, company=2)
    assert place(shared, [0, 1]) == Placing(((1,),), ((1,), (0,)))
    assert place(SHARED, [7]) == Placing(((7,),), ((7,),))


def test_each_end_of_a_handoff_has_half_of_the_cores() -> None:
    two, four = ParallelShape(1, 2), ParallelShape(2, 2)
    assert place_edge(ONE_RANK, ONE_RANK, 1, [0, 1]) == (((0,),), ((1,),))
    assert place_edge(ONE_RANK, ONE_RANK, 2, [0, 1, 2, 3]) == (((0, 1),), ((2, 3),))
    assert place_edge(ONE_RANK, ONE_RANK, 1, [0, 1, 2, 3]) == (((0,),), ((3,),))
    assert place_edge(two, ONE_RANK, 2, [0, 1, 2, 3]) == (((0,), (1,)), ((2, 3),))
    # Ranks take turns where cores are fewer.
    assert place_edge(four, two, 1, [0, 1]) == (((0,),) * 4, ((1,),) * 2)
    assert place_edge(ONE_RANK, ONE_RANK, 1, [5]) == (((5,),), ((5,),))


# What findings become

STEP_S = 0.010


def findings(subject: Subject, setting: EngineSetting, factor: float) -> dict[str, Found]:
    """An engine of 10 ms a step and 50 µs a row, times ``factor``."""
    found = {
        point.name: Found(point.name, factor * (STEP_S + 50e-6 * point.work.rows), 5)
        for point in subject.points(setting)
    }
    around = {f"{AROUND}{batch}": (100 + 10 * batch) * 1e-6 for batch in (1, 8, 32)}
    return found | {name: Found(name, seconds, 12) for name, seconds in around.items()}


EDGE = {
    **{str(blocks): Found(str(blocks), 1e-3 + 1e-4 * blocks, 5) for blocks in (1, 4, 16)},
    **{f"{TICKET} {blocks}": Found(f"{TICKET} {blocks}", 6e-4, 5) for blocks in (1, 4, 16)},
}
SHM = EdgeSetting("shm", ONE_RANK, ONE_RANK)
EDGES = {SHM: EDGE}
SERVED = {
    WAY: Found(WAY, 5e-3, 5),
    **{f"{BESIDE}{b}": Found(f"{BESIDE}{b}", (300 + 40 * b) * 1e-6, 40) for b in (1, 8, 16)},
}


def test_a_step_is_what_lies_between_two_steps_of_serving(subject: Subject) -> None:
    engines = {
        ALONE: findings(subject, ALONE, 1.0),
        SHARED: findings(subject, SHARED, 2.0),
    }
    result = assemble(subject, engines, EDGES, {ALONE: SERVED}, "2026-11-21T18:00:00+00:00", {})
    assert result.warnings == ()
    alone, shared = (engine.step for engine in result.profile.engines)
    points = {point.name: point.work for point in subject.points(ALONE)}
    work = points["decode 8 × 64"]
    engine_s = STEP_S + 8 * 50e-6
    assert alone.time(work) / 1e15 == pytest.approx(engine_s + 180e-6 + 620e-6, rel=1e-3)
    # On half of a core gRPC takes twice as long too.
    assert shared.time(work) / 1e15 == pytest.approx(2 * engine_s + 180e-6 + 1240e-6, rel=1e-3)
    # Nothing is drawn in the midst of a prompt.
    chunk = points["prefill 64 after 0"]
    assert chunk.prefill_pairs == chunk_pairs(0, 64)
    assert alone.time(chunk) / 1e15 == pytest.approx(STEP_S + 64 * 50e-6 + 400e-6, rel=1e-3)


def served_steps(seconds: Callable[[int], float]) -> dict[str, Found]:
    """In a worker; of answers whose context is short."""
    names = {batch: f"{SERVED_STEP}{batch}" for batch in (1, 8, 16)}
    return SERVED | {name: Found(name, seconds(batch), 40) for batch, name in names.items()}


def decode_time(subject: Subject, serving: dict[str, Found], point: str = "decode 8 × 64") -> float:
    result = assemble(
        subject, {ALONE: findings(subject, ALONE, 1.0)}, EDGES, {ALONE: serving}, "now", {}
    )
    [work] = [p.work for p in subject.points(ALONE) if p.name == point]
    return result.profile.engines[0].step.time(work) / 1e15


def test_steps_are_as_long_as_those_of_a_worker_that_served(subject: Subject) -> None:
    slower = served_steps(lambda batch: STEP_S + 100e-6 * batch + 3e-3)
    assert decode_time(subject, slower) == pytest.approx(STEP_S + 3.8e-3, rel=1e-3)
    faster = served_steps(lambda batch: STEP_S + 100e-6 * batch - 1e-3)
    assert decode_time(subject, faster) == pytest.approx(STEP_S - 0.2e-3, rel=1e-3)


def test_one_served_batch_that_was_disturbed_changes_nothing(subject: Subject) -> None:
    def seconds(batch: int) -> float:
        return STEP_S + 100e-6 * batch + (0.5 if batch == 8 else 1e-3)

    assert decode_time(subject, served_steps(seconds)) == pytest.approx(STEP_S + 1.8e-3, rel=1e-3)


def test_a_worker_that_is_far_faster_than_its_engine_is_not_believed(subject: Subject) -> None:
    serving = served_steps(lambda batch: 1e-4)
    # The shortest step has one row. A drawn token still has its part around and beside the step.
    fixed = -0.2 * (STEP_S + 50e-6)
    assert decode_time(subject, serving) == pytest.approx(
        STEP_S + 8 * 50e-6 + fixed + 8 * 50e-6, rel=1e-3
    )


def test_an_engine_on_all_cores_is_served_by_itself(subject: Subject) -> None:
    wide = replace(subject, cores=(0, 1))
    whole = EngineSetting(ONE_RANK, 2)
    assert wide.served_engines == (ALONE, whole)
    assert subject.served_engines == (ALONE,)
    engines = {setting: findings(wide, setting, 1.0) for setting in (ALONE, whole)}
    served = {ALONE: SERVED, whole: served_steps(lambda batch: STEP_S + 100e-6 * batch + 3e-3)}
    profile = assemble(wide, engines, EDGES, served, "now", {}).profile
    [work] = [p.work for p in wide.points(ALONE) if p.name == "decode 8 × 64"]
    alone, slower = (engine.step.time(work) / 1e15 for engine in profile.engines)
    assert alone == pytest.approx(STEP_S + 8 * 50e-6 + 800e-6, rel=1e-3)
    assert slower == pytest.approx(STEP_S + 3.8e-3, rel=1e-3)


def test_ways_of_messages_and_requests(subject: Subject) -> None:
    engines = {ALONE: findings(subject, ALONE, 1.0)}
    profile = assemble(subject, engines, EDGES, {ALONE: SERVED}, "now", {}).profile
    assert profile.message_s == pytest.approx(3e-4)
    assert profile.request_s == pytest.approx(2.5e-3 - 3e-4)
    (transfer,) = profile.transfers
    # Without the way back of the news that all is verified.
    assert transfer.model.time(16 * 8) / 1e15 == pytest.approx(1.8e-3 - 3e-4, rel=1e-3)
    assert profile.engine(ONE_RANK).kv_tokens == 60_000


def test_a_machine_that_drifts_is_named(subject: Subject) -> None:
    found = findings(subject, ALONE, 1.0)
    again = f"{AGAIN}decode 8 × 64"
    slower = found | {again: Found(again, 1.2 * found["decode 8 × 64"].seconds, 5)}
    steady = found | {again: Found(again, 1.05 * found["decode 8 × 64"].seconds, 5)}
    (warning,) = assemble(subject, {ALONE: slower}, EDGES, {ALONE: SERVED}, "now", {}).warnings
    assert "decode 8 × 64 took +20% at the end" in warning
    assert assemble(subject, {ALONE: steady}, EDGES, {ALONE: SERVED}, "now", {}).warnings == ()


def test_a_point_that_was_disturbed_at_first_is_named(subject: Subject) -> None:
    found = findings(subject, ALONE, 1.0)
    first = f"{FIRST}decode 8 × 64"
    disturbed = found | {first: Found(first, 1.76 * found["decode 8 × 64"].seconds, 5)}
    told = assemble(subject, {ALONE: disturbed}, EDGES, {ALONE: SERVED}, "now", {})
    (warning,) = told.warnings
    assert "decode 8 × 64 took +76% at first, then not again" in warning
    assert told.profile.engines[0].error is not None
    assert told.profile.engines[0].error.worst < 0.01


def test_other_processes_on_the_same_cores_are_told(subject: Subject) -> None:
    engines = {
        setting: {
            name: replace(one, waited=0.4 if name == "decode 8 × 64" else 0.01)
            for name, one in findings(subject, setting, 1.0).items()
        }
        for setting in (ALONE, SHARED)
    }
    (warning,) = assemble(subject, engines, EDGES, {ALONE: SERVED}, "now", {}).warnings
    assert warning.startswith("engine 1×1, 1 thread: other processes took up to 40% of its cores")


def test_a_bad_fit_is_told_with_its_worst_points(subject: Subject) -> None:
    found = {
        name: replace(one, seconds=one.seconds * (3 if i % 3 else 1))
        for i, (name, one) in enumerate(findings(subject, ALONE, 1.0).items())
    }
    result = assemble(subject, {ALONE: found}, EDGES, {ALONE: SERVED}, "now", {})
    fitted, _ = result.fits
    (warning,) = result.warnings
    assert fitted.worst[0][0] == fitted.error.worst_point
    assert fitted.error.worst_point in warning
    assert result.profile.engines[0].error == fitted.error


def test_what_the_config_asks_for_and_can_not_be_measured_is_told(subject: Subject) -> None:
    wide = make_spec({"pools": {"decode": {"pipeline_parallel_size": 3}}})
    engines = {ALONE: findings(subject, ALONE, 1.0)}
    result = assemble(replace(subject, spec=wide), engines, {}, {ALONE: SERVED}, "now", {})
    assert result.warnings[0] == "1×3 is not measured: it needs 3 cores"
    assert result.warnings[1].startswith("no transfer is measured")


def test_transfers_between_all_shapes_become_part_of_the_profile(subject: Subject) -> None:
    two = ParallelShape(1, 2)
    engines = {ALONE: findings(subject, ALONE, 1.0)}
    slower = {name: replace(one, seconds=2 * one.seconds) for name, one in EDGE.items()}
    edges = {SHM: EDGE, EdgeSetting("shm", two, ONE_RANK): slower}
    failed = {EdgeSetting("tcp", ONE_RANK, ONE_RANK): "no route"}
    result = assemble(subject, engines, edges, {ALONE: SERVED}, "now", failed)
    first, second = result.profile.transfers
    assert (first.source, first.target) == (ONE_RANK, ONE_RANK)
    assert (second.source, second.target) == (two, ONE_RANK)
    assert second.model.time(128) > first.model.time(128)
    assert result.warnings == ("transfer over tcp, 1×1 to 1×1 is not measured: no route",)
    # Who misses it later is told why.
    assert result.profile.left_out == result.warnings
    with pytest.raises(InvalidField, match=r"2×1 .*not profiled.*1×1 is not measured: no route"):
        result.profile.engine(ParallelShape(2, 1))


# Subjects


def test_the_config_says_what_is_profiled(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    wishes = {
        "model": str(folder),
        "max_model_len": 200,
        "engine": {"dtype": "float32"},
        "kv": {"block_size": 4, "transport": "tcp"},
        "pools": {"decode": {"pipeline_parallel_size": 3, "max_num_seqs": 8}},
    }
    subject = choose_subject(make_spec(wishes), Effort.QUICK, StderrProgress())
    subject = replace(subject, cores=(0, 1, 2))
    assert (subject.dtype, subject.model.max_positions) == ("float32", 200)
    assert subject.transports() == ("tcp",)
    assert ParallelShape(1, 3) in [engine.shape for engine in subject.engines]
    points = subject.points(subject.engines[0])
    assert max(point.decodes for point in points) == 8
    # Three layers, two KV heads of 16 numbers of 4 bytes, K and V.
    assert subject.kv_bytes_per_token == 3 * 2 * 16 * 4 * 2
    worker = subject.worker(subject.engines[0], (0,))
    assert worker.num_blocks * 4 > max(point.kv_tokens for point in points)


@pytest.mark.parametrize(
    ("chosen", "gpus"), [("", []), ("-1", []), ("0, 3", ["0", "3"]), ("2,-1,3", ["2"])]
)
def test_a_gpu_must_be_there_to_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == gpus
    spec = make_spec(
        {"model": str(make_model_folder(tmp_path / "tiny")), "engine": {"device": "cuda"}}
    )
    if gpus:
        assert choose_subject(spec, Effort.QUICK, StderrProgress()).edges
    else:
        with pytest.raises(InvalidField, match=r"engine.device = 'cuda': there is no NVIDIA GPU"):
            choose_subject(spec, Effort.QUICK, StderrProgress())


def test_on_a_shared_core_short_steps_are_measured_more_often_long_ones_less(
    subject: Subject,
) -> None:
    alone, shared = subject.patience_for(ALONE), subject.patience_for(SHARED)
    assert alone == subject.patience
    assert shared.seconds > alone.seconds
    assert 1 <= shared.least < alone.least
    assert shared.most == alone.most


def test_a_quick_run_does_not_plan_to_measure_for_minutes(subject: Subject) -> None:
    """Two cores, with steps as long as those of SmolLM2-135M in float32 on such a machine. Of the
    three minutes that a run may take, loading, transfers and serving want about a half."""
    wide = replace(
        subject, cores=(0, 1), model=replace(subject.model, max_positions=8192), kv_tokens=10**6
    )
    planned = 0.0
    for setting in wide.engines:
        slower = (1.15 if setting.company else 1.0) / setting.core_share / setting.threads**0.7
        patience = wide.patience_for(setting)
        for point in wide.points(setting):
            step_s = slower * smollm_step_s(point.work)
            runs = min(patience.most, max(patience.least, math.ceil(patience.seconds / step_s)))
            is_long = step_s >= patience.seconds / 4
            planned += step_s * (runs + (0 if is_long else 2 if point.decodes else 1))
        for batch in wide.overhead_batches:
            prompts = smollm_step_s(StepWork(OVERHEAD_PROMPT * batch, batch, 0, 0, 0))
            decode_s = smollm_step_s(StepWork(batch, batch, 0, batch, 0))
            planned += slower * (prompts + (WARM_UP_STEPS + wide.overhead_steps) * decode_s)
    assert 60 < planned < 92


def smollm_step_s(work: StepWork) -> float:
    rows_s = 0.018 + 2.2e-3 * work.rows
    return rows_s + 0.8e-6 * work.prefill_pairs + 3e-6 * work.decode_context


def test_sequences_that_are_too_short_to_measure(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    spec = make_spec({"model": str(folder), "max_model_len": 20})
    with pytest.raises(InvalidField, match=r"max_model_len = 20: .* leave 3 kinds of steps"):
        choose_subject(spec, Effort.QUICK, StderrProgress())


def test_two_ranks_are_measured_where_the_model_can_be_split(subject: Subject) -> None:
    normal = replace(subject, effort=Effort.NORMAL, cores=(0, 1))
    shapes = {engine.shape for engine in normal.engines}
    assert shapes == {ONE_RANK, ParallelShape(1, 2), ParallelShape(2, 1)}


def test_no_pair_of_shapes_is_left_out(subject: Subject) -> None:
    normal = replace(subject, effort=Effort.NORMAL, cores=(0, 1))
    shapes = {ONE_RANK, ParallelShape(1, 2), ParallelShape(2, 1)}
    pairs = {(edge.transport, edge.source, edge.target) for edge in normal.edges}
    assert pairs == set(product(("shm", "tcp"), shapes, shapes))
    assert normal.edges[0] == SHM
    # A straight line needs few; the first pair shows whether it is one.
    assert len(normal.transfer_blocks(SHM)) > 5
    wide = EdgeSetting("shm", ONE_RANK, ParallelShape(1, 2))
    few = normal.transfer_blocks(wide)
    assert len(few) == 5
    assert (few[0], few[-1]) == (1, normal.transfer_blocks(SHM)[-1])


def test_nccl_needs_a_gpu_for_each_rank(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    two = ParallelShape(2, 1)
    spec = make_spec(
        {"engine": {"device": "cuda"}, "pools": {"decode": {"tensor_parallel_size": 2}}}
    )
    on_gpus = replace(subject, spec=spec)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert [edge.name for edge in on_gpus.edges] == ["cuda_ipc, 1×1 to 1×1"]
    assert on_gpus.edge_gpus(EdgeSetting("cuda_ipc", ONE_RANK, ONE_RANK)) == ("4", "4")
    assert [edge.name for edge in on_gpus.edges_left_out] == ["nccl, 1×1 to 1×1"]
    engines = {ALONE: findings(subject, ALONE, 1.0)}
    result = assemble(
        on_gpus, engines, dict.fromkeys(on_gpus.edges, EDGE), {ALONE: SERVED}, "now", {}
    )
    assert result.warnings[0] == "2×1 is not measured: it needs 2 GPUs"
    assert result.warnings[1] == "transfer over nccl, 1×1 to 1×1 is not measured: it needs 2 GPUs"
    assert "cuda_ipc, 1×1 to 1×1 is measured within one GPU" in result.warnings[2]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert on_gpus.edge_gpus(EdgeSetting("nccl", two, ONE_RANK)) == ("4", "5", "6")
    names = {edge.name for edge in on_gpus.edges if edge.transport == "nccl"}
    assert names == {"nccl, 1×1 to 1×1", "nccl, 1×1 to 2×1", "nccl, 2×1 to 1×1"}
    left_out = {edge.name for edge in on_gpus.edges_left_out}
    assert left_out == {"cuda_ipc, 2×1 to 2×1", "nccl, 2×1 to 2×1"}


def test_this_machine_has_a_name() -> None:
    assert "core" in hardware_name("cpu")
    assert hardware_name("cuda")


# At the terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_says_how_much_time_is_left() -> None:
    terminal, now = Terminal(), 0.0
    bar = ProgressBar(10.0, terminal, lambda: now)
    now = 30.0
    bar.advance(2.5, "decode 1 × 64")
    assert " 25% 1:30 left  decode 1 × 64" in terminal.getvalue()
    bar.close()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_no_bar_in_a_file() -> None:
    log = io.StringIO()
    bar = ProgressBar(2.0, log)
    bar.advance(1.0, "half")
    bar.close()
    assert log.getvalue() == ""


def invoke(*arguments: str) -> Exception | None:
    error = CliRunner().invoke(new_app(), ["profile", *arguments]).exception
    assert error is None or isinstance(error, Exception)
    return error


def test_what_can_not_be_done_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    folder = str(make_model_folder(tmp_path / "tiny"))
    out = str(tmp_path / "profile.json")
    assert "--thorough" in str(invoke("--out", out, "--quick", "--thorough"))
    assert "no model folder" in str(invoke("--out", out, "--model", "nowhere"))
    nowhere = str(tmp_path / "none" / "p.json")
    assert "there is no folder" in str(invoke("--out", nowhere, "--model", folder, "--quick"))
    assert "is a folder" in str(invoke("--out", str(tmp_path), "--model", folder, "--quick"))
    partial_path(Path(out)).write_text(
        json.dumps({"format": "crossdock profile, unfinished"}) + "\n"
    )
    refused = invoke("--out", out, "--model", folder, "--quick")
    assert isinstance(refused, Incompatible)
    assert sorted(path.name for path in tmp_path.glob("profile*")) == ["profile.json.partial.jsonl"]
