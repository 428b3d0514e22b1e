"""Where workers listen."""

from __future__ import annotations

import pytest

from cluster.addresses import exposure_warning, worker_hosts
from cluster.plan import list_slots
from core.config import make_spec
from core.errors import Unavailable

PREFILL, DECODE = list_slots(make_spec({}))
ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2"}


def test_on_the_node_of_who_serves_workers_listen_on_loopback() -> None:
    hosts = worker_hosts({PREFILL: "aa", DECODE: "a"}, "a", ADDRESSES)
    assert hosts == {PREFILL: ["127.0.0.1", "127.0.0.1"], DECODE: ["127.0.0.1"]}
    assert exposure_warning(hosts, encrypted=False) == ""


def test_on_several_nodes_each_listens_on_the_address_of_its_own() -> None:
    hosts = worker_hosts({PREFILL: "a", DECODE: "b"}, "a", ADDRESSES)
    assert hosts == {PREFILL: ["10.0.0.1"], DECODE: ["10.0.0.2"]}


def test_each_stage_of_a_replica_that_spans_nodes_listens_on_its_own() -> None:
    hosts = worker_hosts({PREFILL: "ab", DECODE: "a"}, "a", ADDRESSES)
    assert hosts == {PREFILL: ["10.0.0.1", "10.0.0.2"], DECODE: ["10.0.0.1"]}
    assert "prefill-0 on 10.0.0.1, prefill-0 on 10.0.0.2" in exposure_warning(
        hosts, encrypted=False
    )


def test_on_one_node_that_is_not_ours_loopback_would_be_out_of_reach() -> None:
    hosts = worker_hosts({PREFILL: "b", DECODE: "b"}, "a", ADDRESSES)
    assert hosts == {PREFILL: ["10.0.0.2"], DECODE: ["10.0.0.2"]}


def test_a_node_that_died_meanwhile_is_said_by_its_name() -> None:
    with pytest.raises(Unavailable, match="node c died"):
        worker_hosts({PREFILL: "a", DECODE: "c"}, "a", ADDRESSES)


def test_listening_on_a_network_is_said_with_names_and_addresses() -> None:
    hosts = {PREFILL: ["10.0.0.1"], DECODE: ["10.0.0.2"]}
    warning = exposure_warning(hosts, encrypted=False)
    assert "decode-0 on 10.0.0.2, prefill-0 on 10.0.0.1" in warning
    assert "authenticate" in warning


def test_with_tls_only_ranks_that_compute_together_are_exposed() -> None:
    assert exposure_warning({PREFILL: ["10.0.0.1"], DECODE: ["10.0.0.2"]}, encrypted=True) == ""
    hosts = {PREFILL: ["10.0.0.1"], DECODE: ["10.0.0.2", "10.0.0.3"]}
    warning = exposure_warning(hosts, encrypted=True)
    assert "gloo, NCCL" in warning
    assert "decode-0 on 10.0.0.2, decode-0 on 10.0.0.3" in warning
    assert "prefill" not in warning


def test_nodes_of_one_machine_that_share_loopback_expose_nothing() -> None:
    hosts = worker_hosts({PREFILL: "a", DECODE: "b"}, "a", dict.fromkeys("ab", "127.0.0.1"))
    assert exposure_warning(hosts, encrypted=False) == ""
