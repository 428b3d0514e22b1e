"""What a worker is made of: the model on its device, and the service of its role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.request import Role
from core.worker_settings import WorkerSettings
from decode_worker.service import DecodeService
from engine.model_hash import model_hash
from engine.runner import LoadedModel, load_runner
from kv_transfer.handshake import WorkerIdentity
from kv_transfer.rank_ports import RankSender
from kv_transfer.rank_sender import LocalRankSender
from prefill_worker.service import PrefillService
from text.tokenizer import Tokenizer
from worker.pool import local_receiver, local_sender, whole_layout

Service = PrefillService | DecodeService


def load_model(settings: WorkerSettings) -> LoadedModel:
    """Reads weights and pre-faults the KV pool; takes seconds."""
    return load_runner(
        Path(settings.model_folder),
        dtype=settings.dtype,
        device=settings.device,
        num_blocks=settings.num_blocks,
        block_size=settings.block_size,
    )


def make_senders(settings: WorkerSettings, model: LoadedModel) -> list[LocalRankSender]:
    """Of a prefill worker; close them before the model's pool is closed."""
    if settings.role is not Role.PREFILL:
        return []
    return [local_sender(settings, model, 0, settings.host)]


def make_service(
    settings: WorkerSettings, epoch: int, model: LoadedModel, senders: Sequence[RankSender]
) -> Service:
    """The service of the settings' role, not started yet."""
    folder = Path(settings.model_folder)
    layout = whole_layout(settings, model)
    identity = WorkerIdentity(settings.worker, epoch, model_hash(folder), layout, settings.shape)
    tokenizer = Tokenizer.load(folder)
    if settings.role is Role.PREFILL:
        return PrefillService(settings, identity, model, tokenizer, senders)
    # A mixed worker gets no handoffs, so its pool may be in device memory.
    handed_over = settings.role is Role.DECODE
    receivers = [local_receiver(settings, model, 0)] if handed_over else []
    return DecodeService(settings, identity, model, tokenizer, receivers)
