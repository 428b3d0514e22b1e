"""What a worker is made of: the model on its device, and the service of its role."""

from __future__ import annotations

from pathlib import Path

from core.request import Role
from core.worker_settings import WorkerSettings
from decode_worker.service import DecodeService
from engine.model_hash import model_hash
from engine.runner import LoadedModel, load_runner
from kv_transfer.handshake import WorkerIdentity
from prefill_worker.service import PrefillService
from text.tokenizer import Tokenizer

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


def make_service(settings: WorkerSettings, epoch: int, model: LoadedModel) -> Service:
    """The service of the settings' role, not started yet."""
    folder = Path(settings.model_folder)
    identity = WorkerIdentity(settings.worker, epoch, model_hash(folder), model.pool.layout)
    tokenizer = Tokenizer.load(folder)
    if settings.role is Role.PREFILL:
        return PrefillService(settings, identity, model, tokenizer)
    return DecodeService(settings, identity, model, tokenizer)
