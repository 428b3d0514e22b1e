"""`crossdock controller` and `crossdock router` beside a Ray cluster: serving, leaving, scaling."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import make_authority, make_worker
from namespaces import why_not
from ray_stage import POD, Stage, ray_stage, write_config

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.timeout(600),
]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with ray_stage() as stage:
        yield stage


def test_a_cluster_in_parts_serves_leaves_a_node_and_follows_its_config(
    stage: Stage, tiny_model: Path, tmp_path: Path
) -> None:
    """Over TLS: the hosts' addresses are in no certificate."""
    make_authority(tmp_path)
    member = make_worker(tmp_path, "member", tmp_path)
    door = make_worker(tmp_path, "door", tmp_path, "llm.example.com")
    tls: dict[str, Any] = {"ca": member.ca, "cert": member.cert, "key": member.key}
    stage.environment |= {f"CROSSDOCK_TLS_{name.upper()}": path for name, path in tls.items()}
    stage.environment["CROSSDOCK_TLS_NAME"] = "llm.example.com"
    tls["doors"] = {"cert": door.cert, "key": door.key}
    write_config(config := tmp_path / "cluster.yaml", tiny_model, 1, tls)
    stage.head()
    first = stage.node(stage.there, prefill=1, decode=1)
    controller, registry, admin = stage.controller(config, stage.here)
    router, grpc_address = stage.router(config, registry)
    stage.ask("scale", "--decode", "1", "--address", admin)  # Returns when the router is attached.
    generate = ["generate", "Once", "--max-tokens", "4", "--tls", "--address", grpc_address]
    assert len(stage.ask(*generate)["token_ids"]) == 4

    # The node goes, after another one has come.
    stage.node(stage.here, prefill=1, decode=2)
    left = stage.ask("drain-node", stage.there.address, "--address", admin)
    assert (left["workers"], left["ended"]) == (["decode-0", "prefill-0"], True)
    first.end()
    write_config(config, tiny_model, 2, tls)
    status = stage.until_settled(admin, decode=2)
    names = {worker["worker"] for worker in status["workers"]}
    assert names == {"prefill-1", "decode-1", "decode-2"}
    hosts = {worker["endpoint"].partition(":")[0] for worker in status["workers"]}
    assert hosts == {stage.here.address}
    assert len(stage.ask(*generate)["token_ids"]) == 4
    assert stage.ask("drain-node", stage.there.address, "--address", admin)["workers"] == []
    assert (router.end(), controller.end()) == (0, 0)


@pytest.fixture
def headless_stage() -> Iterator[Stage]:
    with ray_stage(without_head=True) as stage:
        yield stage


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
def test_serving_goes_on_while_the_head_is_away_and_scaling_when_it_is_back(
    headless_stage: Stage, tiny_model: Path, tmp_path: Path
) -> None:
    stage = headless_stage
    write_config(config := tmp_path / "cluster.yaml", tiny_model, decode=1)
    redis = ["redis-server", "--port", "6390", "--bind", stage.here.address]
    redis += ["--protected-mode", "no", "--save", "", "--dir", str(tmp_path)]
    stage.start(stage.here, redis, "Ready to accept connections")
    stage.environment |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
    state = {
        "RAY_REDIS_ADDRESS": f"{stage.here.address}:6390",
        "RAY_external_storage_namespace": "x",
    }
    head = stage.head(*POD, **state)
    node = stage.node(stage.there, prefill=1, decode=2)
    # A driver takes part by any node at its address: not by the head's.
    controller, registry, admin = stage.controller(config, stage.there)
    router, grpc_address = stage.router(config, registry)
    stage.ask("scale", "--decode", "1", "--address", admin)
    generate = ["generate", "Once", "--max-tokens", "4", "--address", grpc_address]
    assert len(stage.ask(*generate)["token_ids"]) == 4

    head.end()
    assert len(stage.ask(*generate)["token_ids"]) == 4
    status = stage.ask("status", "--address", admin)
    assert {worker["state"] for worker in status["workers"]} == {"ready"}

    stage.head(*POD, **state)
    write_config(config, tiny_model, decode=2)
    status = stage.until_settled(admin, decode=2)
    assert {worker["worker"] for worker in status["workers"]} == {
        "prefill-0",
        "decode-0",
        "decode-1",
    }
    assert status["restarts"] == 0
    assert len(stage.ask(*generate)["token_ids"]) == 4
    assert (router.end(), controller.end()) == (0, 0)
    node.end()
