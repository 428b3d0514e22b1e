"""Real runs of `crossdock profile` on a tiny model: resumed after an interruption, to the end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tokenizers
from model_folders import make_model_folder
from tokenizers import decoders, models, pre_tokenizers

from cluster.profiling.child import Child
from cluster.profiling.edges import EdgeBatch, EdgeFailed, measure_edges
from cluster.profiling.overhead import AROUND
from cluster.profiling.partial_file import PartialFile, partial_path
from cluster.profiling.run import measure_profile
from cluster.profiling.subject import Subject, choose_subject
from cluster.profiling.tasks import EdgeEnd, EdgeTask, EngineTask, Found, Patience
from cluster.progress import StderrProgress
from core.config import make_spec
from core.errors import CrossdockError
from core.latency_profile import Origin
from core.shards import ParallelShape
from tuner.profile.points import Chunk, Effort, EngineSetting, StepPoint
from tuner.profile.profile_file import read_profile
from tuner.profile.store import find_newest

pytestmark = pytest.mark.processes


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Of a model that speaks bytes, on one core."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = make_model_folder(
        tmp_path / "tiny", vocab_size=300, max_position_embeddings=256, eos_token_id=299
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    chosen = choose_subject(make_spec({"model": str(folder)}), Effort.QUICK, StderrProgress())
    return replace(chosen, cores=chosen.cores[-1:])


def test_a_run_goes_on_where_it_stopped_and_ends_with_a_profile(
    subject: Subject, tmp_path: Path
) -> None:
    out = tmp_path / "profile.json"
    alone, shared = subject.engines
    known = "decode 1 × 64"
    two_hours_ago = time.time() - 7_200
    with PartialFile(partial_path(out), subject.identity, lambda: two_hours_ago) as before:
        for point in subject.points(alone):
            before.add(f"engine {alone.name}", Found(point.name, 1.0 + point.work.rows, 5))
        for batch in subject.overhead_batches:
            before.add(f"engine {alone.name}", Found(f"{AROUND}{batch}", 0.5, 5))
        # It would be seen if this one were measured again.
        before.add(f"engine {shared.name}", Found(known, 123.0, 5))
    result = measure_profile(subject, out, StderrProgress())
    profile = read_profile(out)
    assert profile == result.profile
    assert (profile.origin, profile.model) == (Origin.MEASURED, "tiny")
    assert profile.engine(alone.shape).step.rows.at(1) > 10**15, "as it was found before"
    error = profile.engine(shared.shape, 0.5).error
    assert error is not None
    assert max(error.residuals) > 50, "123 s among milliseconds"
    assert [transfer.transport for transfer in profile.transfers] == ["shm", "tcp"]
    assert profile.message_s > 0
    assert re.match(r"\d+ points are of an earlier run, up to 2\.\d h old", result.warnings[0])
    assert not partial_path(out).exists()
    assert find_newest(profile.model_hash, profile.hardware) == profile


def test_an_interrupted_run_leaves_its_findings_and_no_process(
    subject: Subject, tmp_path: Path
) -> None:
    out = tmp_path / "profile.json"
    command = [sys.executable, "-m", "cluster.cli.main", "profile", "--quick", "--out", str(out)]
    run = subprocess.Popen(
        [*command, "--model", str(subject.model.path)],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        _wait_for_a_finding(run, partial_path(out))
        children = psutil.Process(run.pid).children(recursive=True)
        assert children, "it measures in processes of its own"
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130
    assert said.startswith("interrupted; what was measured is kept")
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not out.exists()
    with PartialFile(partial_path(out), subject.identity) as kept:
        assert len(kept) >= 1


def _wait_for_a_finding(run: subprocess.Popen[str], path: Path) -> None:
    while not path.exists() or len(path.read_text().splitlines()) < 2:
        assert run.poll() is None, "it ended before it measured anything"
        time.sleep(0.05)


def test_blocks_between_replicas_of_several_ranks(subject: Subject) -> None:
    here = subject.cores[-1:]
    task = EdgeTask(
        layout=subject.layout,
        device="cpu",
        transports=("nonsense", "shm", "tcp"),
        num_blocks=16,
        prefill=EdgeEnd(ParallelShape(1, 2), (here, here)),
        decode=EdgeEnd(ParallelShape(2, 1), (here, here)),
        batches=(1, 16),
        patience=Patience(2, 2, 0.0),
    )
    failed, *batches = list(measure_edges(task))
    assert isinstance(failed, EdgeFailed)
    assert failed.transport == "nonsense"
    told = [(batch.transport, batch.blocks) for batch in batches if isinstance(batch, EdgeBatch)]
    assert told == [("shm", 1), ("shm", 16), ("tcp", 1), ("tcp", 16)]
    assert all(batch.verified_s > 0 for batch in batches if isinstance(batch, EdgeBatch))


def task(subject: Subject, setting: EngineSetting, cores: int) -> EngineTask:
    here = subject.cores[-1:]
    return EngineTask(
        worker=subject.worker(setting, here),
        rank_cores=(here,) * cores,
        company=(),
        points=(StepPoint((Chunk(32, 16, draws=True),), 2, 40), StepPoint(decodes=3, context=20)),
        patience=Patience(2, 2, 0.0),
        overhead_batches=(),
        overhead_steps=0,
        shares_cores=True,
    )


def test_a_replica_of_two_stages_computes_the_same_points(subject: Subject) -> None:
    two = EngineSetting(ParallelShape(1, 2), 1)
    with Child("cluster.profiling.engine_child", task(subject, two, 2), 1) as child:
        said = [Found(**line) for line in child.lines()]
    names = [found.name for found in said]
    mixed = "prefill 16 after 32, drawn beside decode 2 × 40"
    assert names == [mixed, "decode 3 × 20", f"again: {mixed}"]
    assert all(found.seconds > 0 and found.runs == 2 for found in said)


def test_what_an_engine_fails_by_is_said(subject: Subject) -> None:
    broken = task(subject, EngineSetting(ParallelShape(), 1), 1)
    nowhere = replace(broken.worker, model_folder=str(subject.model.path / "none"))
    with (
        pytest.raises(CrossdockError, match="none"),
        Child("cluster.profiling.engine_child", replace(broken, worker=nowhere), 1) as child,
    ):
        list(child.lines())
