"""Handoffs of a cluster with the setting ``tls``: what goes over TCP, and who is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from certificates import make_authority, make_worker
from replicas import DecodeReplica, prefilling, serving
from whole_handoff import hand_over, landed_bit_for_bit

from core.handoff import FailureCause
from core.kv_layout import KVLayout
from core.shards import ParallelShape
from core.tls_files import TlsFiles

pytestmark = pytest.mark.processes

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=2, block_size=4, dtype="bfloat16")
TWO = ParallelShape(2)
STAGES = ParallelShape(1, 2)

NewWorker = Callable[[str], TlsFiles]


@pytest.fixture(scope="module")
def new_worker(tmp_path_factory: pytest.TempPathFactory) -> NewWorker:
    """Call it with a name: a certificate of the cluster's authority."""
    folder = tmp_path_factory.mktemp("cluster")
    make_authority(folder)
    return lambda name: make_worker(folder, name, folder)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("elsewhere")
    make_authority(folder)
    return make_worker(folder, "stranger", folder)


@pytest.mark.parametrize("transport", ["tcp", "shm"])
async def test_workers_with_certificates_of_one_authority_hand_over(
    new_worker: NewWorker, transport: str
) -> None:
    """Shared memory needs none: it leaves no host."""
    decode = DecodeReplica(LAYOUT, STAGES, tls=new_worker("decode"))
    async with (
        prefilling(LAYOUT, TWO, transport, new_worker("prefill")) as prefill,
        serving(decode),
    ):
        session = prefill.connect(decode.endpoint)
        await hand_over(prefill, session)
        assert session.transports == (transport,) * 4
        assert landed_bit_for_bit(prefill, decode)
        await session.close()


async def refusal(prefill_tls: TlsFiles | None, decode_tls: TlsFiles | None) -> str:
    """What P hears of D when there is no way but TCP."""
    decode = DecodeReplica(LAYOUT, STAGES, tls=decode_tls)
    async with prefilling(LAYOUT, TWO, "tcp", prefill_tls) as prefill, serving(decode):
        session = prefill.connect(decode.endpoint)
        cause, detail = await prefill.lost.get()
        await session.close()
    assert cause is FailureCause.INCOMPATIBLE
    assert not any(blocks.any() for blocks in decode.blocks)
    return detail


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        ("prefill", "takes only peers with TLS, and this worker has no certificate"),
        ("decode", "offers TCP without TLS, and this worker takes it only with TLS"),
    ],
)
async def test_one_side_alone_with_tls_is_refused(
    new_worker: NewWorker, side: str, reason: str
) -> None:
    files = new_worker(side)
    detail = await refusal(*((files, None) if side == "prefill" else (None, files)))
    assert f"{reason}: start both with the setting tls, or both without" in detail


async def test_a_worker_of_another_authority_is_refused(
    new_worker: NewWorker, stranger: TlsFiles
) -> None:
    assert "certificate verify failed" in await refusal(new_worker("prefill"), stranger)
