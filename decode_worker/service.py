"""The decode worker's shell: handoffs and local prompts in, answers out.

Covers: serving handoff streams, carrying out the decoder's commands, tokens for clients with
tickets. A mixed worker is this service with LOCAL attempts only. Does not cover: decisions
(`decode_worker.decoder`, `decode_worker.readable_answers`), the common shell (`worker.service`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence

import grpc

from core.errors import CrossdockError, DeadlineExceeded, InvalidField, RequestAborted
from core.handoff import FailureCause, LeaseTimes
from core.lease_events import (
    Aborted,
    CopyPieces,
    FailAttempt,
    Opened,
    SendToPrefill,
    Tick,
)
from core.request import AttemptKey
from core.worker_settings import WorkerSettings
from crossdock.v1 import handoff_pb2_grpc
from crossdock.v1 import worker_pb2 as pb
from decode_worker.decoder import Decoder, DecoderCommand, DecoderInput, PrefillHere, Stopped
from decode_worker.readable_answers import ReadableAnswers, ReaderLost, RelayUnread, Report
from decode_worker.token_streams import TokenStreams
from engine.runner import LoadedModel
from kv_transfer.decode_session import HandoffServer
from kv_transfer.handshake import WorkerIdentity
from kv_transfer.rank_ports import RankReceiver
from text.tokenizer import Tokenizer
from wire.attempts import key_from_wire, sampling_from_wire, tokens_from_wire
from worker.metrics import WorkerMetrics
from worker.pool import new_block_pool
from worker.ranks.replica import Replica
from worker.service import WorkerService

# That what was read last leaves before the process does.
_READERS_GRACE_S = 1.0


class DecodeService(WorkerService[DecoderInput, DecoderCommand]):
    """Streams answers from blocks that prefill workers hand over, or that it computes itself.

    ``receivers``: of its ranks, in their order; empty if it is to take no handoffs.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        identity: WorkerIdentity,
        model: LoadedModel,
        tokenizer: Tokenizer,
        replica: Replica,
        metrics: WorkerMetrics,
        receivers: Sequence[RankReceiver],
    ) -> None:
        times = LeaseTimes(lease=settings.lease_s, beat=settings.beat_s)
        decoder = Decoder(
            new_block_pool(model),
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            depth=replica.executor.depth,
            eos=frozenset(tokenizer.eos_token_ids),
            times=times,
            ttft=settings.ttft_s,
            max_positions=model.config.max_positions,
            observe_phase=metrics.observe_phase,
            new_lease_id=lambda: secrets.randbits(63) + 1,
        )
        super().__init__(settings, identity.epoch, model, tokenizer, decoder, replica, metrics)
        self._decoder = decoder
        self._readable = ReadableAnswers()
        self._readers = TokenStreams(
            self._readable,
            settings.worker,
            identity.epoch,
            self.streams.ticket_key,
            self._tell_if_due,
        )
        self._handoff: HandoffServer | None = None
        if receivers:
            self._handoff = HandoffServer(identity, receivers, self.decisions.submit)

    def register(self, server: grpc.aio.Server) -> None:
        super().register(server)
        if self._handoff is not None:
            handoff_pb2_grpc.add_HandoffServicer_to_server(self._handoff, server)

    @property
    def token_stream_address(self) -> str:
        return self._readers.address

    async def open_doors(self) -> None:
        await super().open_doors()
        host, port = self.settings.host, self.settings.token_stream_port
        if port is not None:
            await self._readers.start(host, port, self.settings.doors)

    async def close_doors(self) -> None:
        await self._readers.stop(_READERS_GRACE_S)
        await super().close_doors()

    async def stop(self) -> None:
        if self._handoff is not None:
            await self._handoff.close()
        await super().stop()

    def after_step(self) -> None:
        with self.decisions.lock:
            self._decoder.prepare_next()

    def tick_event(self) -> DecoderInput:
        return Tick()

    def abort_event(self, key: AttemptKey) -> DecoderInput:
        return Aborted(key)

    def stop_text_event(self, key: AttemptKey, index: int) -> DecoderInput | None:
        return Stopped(key, index)

    def on_assignment(self, message: pb.RouterMessage) -> None:
        opened = message.open
        key = key_from_wire(opened.key)
        if opened.HasField("read"):
            self._open_to_readers(key, opened.read)
        if opened.mode == pb.Open.HANDOFF:
            self.decisions.submit(Opened(key))
            return
        self.decisions.submit(
            PrefillHere(
                key,
                tokens_from_wire(opened.token_ids),
                sampling_from_wire(opened.sampling),
                opened.salt,
            )
        )

    def carry_out(self, command: DecoderCommand) -> None:
        match command:
            case FailAttempt(key, cause, detail):
                self.fail(key, cause, detail)
            case SendToPrefill(peer, message) if self._handoff is not None:
                self._handoff.send(peer, message)
            case CopyPieces() if self._handoff is not None:
                self._handoff.copy(command)

    # Tokens that clients read with tickets

    def _open_to_readers(self, key: AttemptKey, read: pb.ReadByTicket) -> None:
        ticket_key = self.streams.owners_ticket_key(key)
        self._readable.open(key, read.prompt_tokens, ticket_key, read.valid_s, time.monotonic())
        self._readers.opened()

    def new_output(self, key: AttemptKey) -> pb.SequenceOutput:
        output = self._readable.new_output(key)
        if output is None:
            return super().new_output(key)
        # Whoever reads runs when all outputs of this step are written.
        self._readers.wake(key)
        return output

    def go_on(self, key: AttemptKey, index: int, token: int, text: str) -> bool:
        return key not in self._readable and super().go_on(key, index, token, text)

    def complete(self, key: AttemptKey) -> None:
        if key not in self._readable:
            super().complete(key)
            return
        # Its router is told of the end when it has been read.
        self.end_computing(key)
        self._readable.completed(key, time.monotonic())
        self._readers.wake_last(key)

    def fail(self, key: AttemptKey, cause: FailureCause, detail: str) -> None:
        self._tell(self._readable.report_all(key, time.monotonic()))
        self._end_reading(key, _told_to_readers(cause, detail))
        super().fail(key, cause, detail)

    def finish(self, key: AttemptKey) -> None:
        self._end_reading(key, RequestAborted("its router has ended it", reason="ENDED"))
        super().finish(key)

    def _end_reading(self, key: AttemptKey, why: CrossdockError) -> None:
        self._readable.drop(key, why)
        self._readers.wake_last(key)

    def on_router_message(self, message: pb.RouterMessage) -> None:
        if message.WhichOneof("message") == "relay":
            self._relay(key_from_wire(message.relay.key), message.relay.position)
        else:
            super().on_router_message(message)

    def _relay(self, key: AttemptKey, position: int) -> None:
        """From now on its router gets the tokens, as far as nobody has them."""
        self._tell(self._readable.report_all(key, time.monotonic()))
        try:
            relayed = self._readable.relay(key, position)
        except InvalidField as error:
            self.fail(key, FailureCause.REJECTED, error.message)
            self.decisions.submit(self.abort_event(key))
            return
        if relayed is None:
            return
        self._readers.wake_last(key)
        for output in relayed.outputs:
            super().new_output(key).CopyFrom(output)
        self.tell_state()
        if relayed.complete:
            self.streams.forget(key)

    def on_router_lost(self, attempts: Iterable[AttemptKey]) -> None:
        now = time.monotonic()
        super().on_router_lost(
            [key for key in attempts if not self._readable.lost_router(key, now)]
        )

    @property
    def attempts(self) -> Iterable[AttemptKey]:
        return {*super().attempts, *self._readable}

    def validate(self) -> None:
        super().validate()
        self._readable.validate()

    @property
    def all_told(self) -> bool:
        return self._readable.idle

    def after_tick(self) -> None:
        for key in self._readable:
            self._tell_if_due(key)
        for command in self._readable.tick(time.monotonic()):
            match command:
                case RelayUnread(key):
                    self._relay(key, 0)
                case ReaderLost(key):
                    self.fail(key, FailureCause.READER_LOST, "nobody reads the tokens any more")
                    self.decisions.submit(self.abort_event(key))

    def _tell_if_due(self, key: AttemptKey) -> None:
        self._tell(self._readable.report(key, time.monotonic()))

    def _tell(self, report: Report | None) -> None:
        if report is None:
            return
        for output in report.outputs:
            super().new_output(report.key).CopyFrom(output)
        self.tell_state()
        if report.last:
            self.streams.forget(report.key)
            self._note_idleness()

    def edge_stats(self) -> list[pb.EdgeStats]:
        return [
            pb.EdgeStats(
                peer=edge.peer,
                transport=edge.transport,
                bytes=edge.bytes,
                blocks=edge.blocks,
                seconds=edge.seconds,
                resent_blocks=edge.resent_blocks,
                detail=edge.detail,
                source_rank=edge.source,
                destination_rank=edge.destination,
            )
            for edge in (self._handoff.edge_counters if self._handoff is not None else ())
        ]


def _told_to_readers(cause: FailureCause, detail: str) -> CrossdockError:
    if cause is FailureCause.DEADLINE:
        return DeadlineExceeded(detail, reason=cause.name)
    return RequestAborted(detail, reason=cause.name)
