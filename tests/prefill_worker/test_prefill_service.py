"""The prefill worker's shell: how long it remembers where decode workers are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers

from core.handoff import FailureCause
from core.kv_layout import KVLayout
from core.peak_rates import MEASURED, PeakRates
from core.request import AttemptKey, RequestKey, Role, SamplingParams
from core.shards import ONE_RANK
from core.step_cost import CostModel
from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2 as pb
from engine.kv_pool import KVPool
from engine.local_executor import LocalExecutor
from engine.runner import LoadedModel
from kv_transfer.handshake import WorkerIdentity
from kv_transfer.rank_sender import LocalRankSender
from prefill_worker.messages import DecodeLost
from prefill_worker.service import PrefillService
from text.tokenizer import Tokenizer
from wire.attempts import key_to_wire, sampling_to_wire, tokens_to_wire
from worker.metrics import WorkerMetrics
from worker.pool import sending_pool
from worker.ranks.replica import Replica

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=8, block_size=4, dtype="float32")
SETTINGS = WorkerSettings(
    "P0", Role.PREFILL, "", num_blocks=40, block_size=4, max_num_batched_tokens=8, transport="shm"
)
MAX_POSITIONS = 100
# What the next two steps compute: prompts behind one of this length are not reserved yet.
LONG = 16


def key(name: str) -> AttemptKey:
    return AttemptKey(RequestKey("default", name), 1)


class Shell(PrefillService):
    """A prefill worker that computes nothing: its engine is never started."""

    def assign(self, name: str, decode_worker: str, length: int = LONG) -> None:
        prefill = pb.Prefill(
            key=key_to_wire(key(name)),
            token_ids=tokens_to_wire(np.arange(length, dtype=np.int32)),
            sampling=sampling_to_wire(SamplingParams(5)),
            decode_worker=decode_worker,
            decode_endpoint="127.0.0.1:1",
            decode_epoch=7,
        )
        self.on_router_message(pb.RouterMessage(prefill=prefill))

    def told_to_abort(self, name: str) -> None:
        self.on_router_message(pb.RouterMessage(abort=pb.Abort(key=key_to_wire(key(name)))))

    @property
    def known(self) -> set[str]:
        """Decode workers whose place is remembered."""
        return {life.removesuffix("@7") for life in self._places}


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    pool = KVPool.create(LAYOUT, SETTINGS.num_blocks, "cpu")
    yield LoadedModel(
        SimpleNamespace(execute=None), pool, SimpleNamespace(max_positions=MAX_POSITIONS)
    )
    pool.close()


@pytest.fixture
async def shell(model: LoadedModel) -> AsyncIterator[Shell]:
    identity = WorkerIdentity("P0", epoch=1, model_hash=5, layout=LAYOUT)
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))
    sender = LocalRankSender(
        sending_pool(model.pool), LAYOUT, ONE_RANK, 0, [SETTINGS.transport], "127.0.0.1"
    )
    replica = Replica(LocalExecutor(model.runner.execute), pb.RankStats)
    metrics = WorkerMetrics(SETTINGS, CostModel(1, 1, 1, 1, 4, ()), PeakRates(1.0, 1.0, MEASURED))
    opened = Shell(SETTINGS, identity, model, tokenizer, replica, metrics, [sender])
    yield opened
    await opened.stop()
    sender.close()


async def test_a_place_is_kept_while_an_attempt_may_need_it(shell: Shell) -> None:
    shell.assign("first", "D0")
    shell.assign("second", "D1")
    shell.assign("third", "D1")
    shell.told_to_abort("second")
    assert shell.known == {"D0", "D1"}
    shell.told_to_abort("third")
    assert shell.known == {"D0"}


async def test_a_place_is_kept_while_there_is_a_stream_to_it(shell: Shell) -> None:
    shell.assign("first", "D0")
    shell.told_to_abort("first")
    assert shell.known == {"D0"}


async def test_a_prompt_that_is_refused_leaves_no_place(shell: Shell) -> None:
    shell.assign("too long", "D0", length=4 * SETTINGS.num_blocks + 1)
    assert shell.known == set()


async def test_a_prompt_beyond_the_model_s_last_position_is_refused(shell: Shell) -> None:
    shell.assign("fits", "D0", length=MAX_POSITIONS)
    shell.assign("too long", "D1", length=MAX_POSITIONS + 1)
    assert shell.known == {"D0"}


async def test_a_reserve_of_an_attempt_that_ended_meanwhile_opens_no_stream(shell: Shell) -> None:
    shell.assign("first", "D0")
    shell.assign("second", "D1")
    # As when the engine's thread decides while the event loop is busy: what follows from the end
    # of the first is queued, and so is the end of the second.
    lost = DecodeLost("D0@7", FailureCause.DECODE_LOST, "")
    gone = DecodeLost("D1@7", FailureCause.DECODE_LOST, "")
    for event in (lost, gone):
        shell.decisions._decided.append(shell.brain.handle(event, 0.0))
    shell.decisions._carry_out_decided()
    assert shell.known == {"D0"}
