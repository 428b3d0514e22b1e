"""The decode worker's shell: handoffs and local prompts in, answers out.

Covers: serving handoff streams, carrying out the decoder's commands. A mixed worker is this
service with LOCAL attempts only. Does not cover: decisions (`decode_worker.decoder`), the common
shell (`worker.service`).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import grpc

from core.handoff import LeaseTimes
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
        self._handoff: HandoffServer | None = None
        if receivers:
            self._handoff = HandoffServer(identity, receivers, self.submit)

    def register(self, server: grpc.aio.Server) -> None:
        super().register(server)
        if self._handoff is not None:
            handoff_pb2_grpc.add_HandoffServicer_to_server(self._handoff, server)

    async def stop(self) -> None:
        if self._handoff is not None:
            await self._handoff.close()
        await super().stop()

    def after_step(self) -> None:
        super().after_step()
        with self.engine.lock:
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
        if opened.mode == pb.Open.HANDOFF:
            self.submit(Opened(key))
            return
        self.submit(
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
