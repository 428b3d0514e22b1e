"""A cluster that is changed while it serves: no request fails, every token is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from served_cluster import ServedCluster, served
from steady_load import SteadyLoad

from crossdock.v1 import inference_pb2

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

PROMPT = list(range(1, 60))


@pytest.fixture(scope="module")
def cluster(tiny_model: Path) -> Iterator[ServedCluster]:
    """One prefill and one decode worker; each test leaves it so."""
    with served(tiny_model, 1, 1, "--dtype", "float32", "--served-model-name", "tiny") as cluster:
        yield cluster
        assert cluster.status().restarts == 0


def names(cluster: ServedCluster, role: str) -> list[str]:
    return sorted(name for name in cluster.worker_names() if name.startswith(role))


def tokens_of(call: Iterator[inference_pb2.GenerateResponse]) -> list[int]:
    return [token for response in call for token in response.chunk.token_ids]


def test_both_pools_grow_and_shrink_under_load(cluster: ServedCluster) -> None:
    with SteadyLoad(cluster) as load:
        for count in (2, 1):
            cluster.scale(prefill=count, decode=count)
            load.answered(10)
            assert len(names(cluster, "prefill")) == len(names(cluster, "decode")) == count


def test_workers_are_replaced_under_load(cluster: ServedCluster) -> None:
    before = cluster.worker_names()
    with SteadyLoad(cluster) as load:
        for name in sorted(before):
            cluster.drain(name)
        cluster.wait_settled()
        load.answered(10)
    after = cluster.worker_names()
    assert len(after) == 2
    assert not after & before


def test_workers_change_roles_under_load(cluster: ServedCluster) -> None:
    cluster.scale(decode=2)
    with SteadyLoad(cluster) as load:
        cluster.flip(names(cluster, "decode")[0])
        load.answered(10)
        assert len(names(cluster, "prefill")) == 2
        cluster.flip(names(cluster, "prefill")[0])
        load.answered(10)
        assert len(names(cluster, "decode")) == 2
    cluster.scale(decode=1)


def test_without_prefill_workers_decode_workers_prefill(cluster: ServedCluster) -> None:
    with SteadyLoad(cluster) as load:
        cluster.scale(prefill=0)
        load.answered(10)
        assert names(cluster, "prefill") == []
        cluster.scale(prefill=1)
        load.answered(10)


def test_a_stream_on_a_draining_worker_comes_to_its_end_there(cluster: ServedCluster) -> None:
    expected = cluster.answer(PROMPT, 1500)
    call = cluster.stream(PROMPT, 1500)
    first = list(next(call).chunk.token_ids)
    [old] = names(cluster, "decode")
    cluster.drain(old)
    states = {w.worker: w.state for w in cluster.status().workers}
    assert states[old] in ("ready", "draining")
    assert cluster.answer(PROMPT, 8) == expected[:8], "others go on meanwhile"
    assert first + tokens_of(call) == expected
    assert old not in {w.worker for w in cluster.wait_settled().workers}


def test_at_the_drain_limit_a_stream_is_cut_and_says_why(cluster: ServedCluster) -> None:
    cluster.scale(decode=2)
    call = cluster.stream(PROMPT, 1900)
    next(call)
    [busy] = [stats.worker for stats in cluster.stats("decode") if stats.load.running]
    cluster.drain(busy, no_replace=True, limit_s=0.0)
    with pytest.raises(grpc.RpcError) as caught:
        tokens_of(call)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert "the drain limit of 0 s was over" in caught.value.details()
    cluster.wait_settled()


def test_the_operators_door_tells_its_health_and_what_it_offers(cluster: ServedCluster) -> None:
    with grpc.insecure_channel(cluster.admin_address) as channel:
        check = health_pb2.HealthCheckRequest(service="crossdock.v1.ClusterAdmin")
        answer = health_pb2_grpc.HealthStub(channel).Check(check)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        [listed] = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([asked])
        )
        names = {service.name for service in listed.list_services_response.service}
        assert "crossdock.v1.ClusterAdmin" in names


def test_the_last_decode_worker_stays(cluster: ServedCluster) -> None:
    [last] = names(cluster, "decode")
    with pytest.raises(grpc.RpcError, match="no decode worker"):
        cluster.drain(last, no_replace=True)
    with pytest.raises(grpc.RpcError, match="no decode worker"):
        cluster.flip(last)
    assert cluster.status().settled


def test_mixed_workers_give_way_to_two_pools_under_load(tiny_model: Path) -> None:
    with served(tiny_model, 0, 1, "--dtype", "float32", "--served-model-name", "tiny") as cluster:
        with SteadyLoad(cluster) as load:
            cluster.scale(prefill=1)
            load.answered(10)
        assert cluster.worker_names() == {"prefill-0", "decode-1"}
        assert cluster.stats("decode")[0].edges[0].blocks > 0
