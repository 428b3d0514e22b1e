"""The prefill worker's shell: router's prompts in, handoffs to decode workers out.

Covers: one handoff stream per decode worker (opened on first use, reopened on the next after it
broke), carrying out the prefiller's commands.
Does not cover: decisions (`prefill_worker.prefiller`), the common shell (`worker.service`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from core.handoff import FailureCause, LeaseTimes, Reserve, ToDecode, ToPrefill
from core.push import ReportFailure
from core.request import AttemptKey, SamplingParams
from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2 as pb
from engine.runner import LoadedModel
from kv_transfer.handshake import WorkerIdentity
from kv_transfer.prefill_session import Announcement, PrefillSession
from kv_transfer.rank_ports import RankSender
from prefill_worker.messages import (
    Abort,
    AnnouncePieces,
    AttemptEnded,
    DecodeLost,
    FromDecode,
    PrefillerCommand,
    PrefillerInput,
    SendToDecode,
    Submit,
    Tick,
)
from prefill_worker.prefiller import Prefiller
from text.answer import AnswerText
from text.tokenizer import Tokenizer
from wire.attempts import key_from_wire, sampling_from_wire, tokens_from_wire
from worker.metrics import WorkerMetrics
from worker.pool import new_block_pool
from worker.ranks.replica import Replica
from worker.service import WorkerService

# How many bytes of each rank D is told of at once: large enough that messages cost nothing beside
# copies, small enough that both sides work at the same time.
_ANNOUNCEMENT_BYTES = 8 << 20


class PrefillService(WorkerService[PrefillerInput, PrefillerCommand]):
    """Computes prompts and hands them over. ``senders``: of its ranks, in their order."""

    def __init__(
        self,
        settings: WorkerSettings,
        identity: WorkerIdentity,
        model: LoadedModel,
        tokenizer: Tokenizer,
        replica: Replica,
        metrics: WorkerMetrics,
        senders: Sequence[RankSender],
    ) -> None:
        prefiller = Prefiller(
            new_block_pool(model),
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            depth=replica.executor.depth,
            eos=frozenset(tokenizer.eos_token_ids),
            times=LeaseTimes(lease=settings.lease_s, beat=settings.beat_s),
            ends_by_text=self._ends_by_text,
            ttft=settings.ttft_s,
            max_positions=model.config.max_positions,
            observe_phase=metrics.observe_phase,
        )
        super().__init__(settings, identity.epoch, model, tokenizer, prefiller, replica, metrics)
        self._prefiller = prefiller
        self._identity = identity
        self._senders = senders
        announced = _ANNOUNCEMENT_BYTES * identity.shape.num_ranks
        self._blocks_per_announcement = max(1, announced // identity.layout.block_bytes)
        self._stream_numbers = itertools.count(1)
        self._sessions: dict[str, PrefillSession] = {}
        # Where each life of a decode worker is, as the router said: (endpoint, epoch). Kept while
        # there is a stream to it or an attempt for it.
        self._places: dict[str, tuple[str, int]] = {}

    async def stop(self) -> None:
        await asyncio.gather(*(session.close() for session in self._sessions.values()))
        await super().stop()

    def tick_event(self) -> PrefillerInput:
        return Tick()

    def abort_event(self, key: AttemptKey) -> PrefillerInput:
        return Abort(key)

    def stop_text_event(self, key: AttemptKey, index: int) -> PrefillerInput | None:
        del key, index
        # The prefiller knows about stop strings before it sends a token.
        return None

    def on_assignment(self, message: pb.RouterMessage) -> None:
        if message.WhichOneof("message") != "prefill":
            key = key_from_wire(message.open.key)
            self.fail(key, FailureCause.REJECTED, "a prefill worker can't decode")
            return
        prefill = message.prefill
        # A decode worker that starts again is another one: it knows nothing of earlier attempts.
        decode_life = f"{prefill.decode_worker}@{prefill.decode_epoch:x}"
        self._places[decode_life] = (prefill.decode_endpoint, prefill.decode_epoch)
        self.decisions.submit(
            Submit(
                key_from_wire(prefill.key),
                tokens_from_wire(prefill.token_ids),
                sampling_from_wire(prefill.sampling),
                prefill.salt,
                decode_life,
            )
        )

    def carry_out(self, command: PrefillerCommand) -> None:
        match command:
            case SendToDecode(worker, message):
                self._send(worker, message)
            case AnnouncePieces(worker, key, lease_id, first, block_ids, generations):
                self._send(worker, Announcement(key, lease_id, first, block_ids, generations))
            case ReportFailure(key, cause, detail):
                self.fail(key, cause, detail)
                self._forget_places()
            case AttemptEnded(key):
                self.finish(key)
                self._forget_places()

    def edge_stats(self) -> list[pb.EdgeStats]:
        return []

    def _send(self, worker: str, message: ToDecode | Announcement) -> None:
        session = self._sessions.get(worker)
        if session is None:
            if worker not in self._places or not isinstance(message, Reserve):
                # What is said about attempts of a broken stream has no reader. A reserve that was
                # decided just before the stream broke is followed by the news of that.
                return
            session = self._connect(worker)
        session.send(message)

    def _forget_places(self) -> None:
        """Forgets decode workers that have no stream and that no attempt is for any more.

        A reserve of an attempt that ended may still be on its way to `_send`: it is dropped there.
        """
        without_stream = self._places.keys() - self._sessions.keys()
        if not without_stream:
            return
        with self.decisions.lock:
            needed = self._prefiller.decode_workers
        for worker in without_stream - needed:
            del self._places[worker]

    def _connect(self, worker: str) -> PrefillSession:
        endpoint, decode_epoch = self._places[worker]

        def on_lost(cause: FailureCause, detail: str) -> None:
            if self._sessions.get(worker) is session:
                del self._sessions[worker]
                del self._places[worker]
            self.decisions.submit(DecodeLost(worker, cause, detail))

        session = PrefillSession(
            endpoint,
            decode_epoch,
            self._identity,
            self._senders,
            stream=f"{worker}/{next(self._stream_numbers)}",
            blocks_per_announcement=self._blocks_per_announcement,
            on_message=self._on_message,
            on_lost=on_lost,
            tls=self.settings.tls,
        )
        self._sessions[worker] = session
        return session

    def _on_message(self, message: ToPrefill) -> None:
        self.decisions.submit(FromDecode(message))

    def _ends_by_text(self, params: SamplingParams, token: int) -> bool:
        return bool(params.stop) and AnswerText(self.tokenizer, params.stop).push(token)[1]
