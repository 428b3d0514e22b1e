"""Security settings of every pod, and what the network lets through."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest
from charts import CI, Manifest, ci_values, containers, groups, pod_templates, render

names = pytest.mark.parametrize("name", [path.stem.removesuffix("-values") for path in CI])

COMPONENTS = ("head", "prefill", "decode", "controller", "router")


@names
def test_no_container_may_more_than_it_needs(name: str) -> None:
    for pod, template in pod_templates(render(ci_values(name))):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, pod
        assert spec["securityContext"]["runAsUser"] > 0, pod
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        assert spec["automountServiceAccountToken"] is False, pod
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), pod
        for container in containers(template):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, pod
            assert context["readOnlyRootFilesystem"] is True, pod
            assert context["capabilities"] == {"drop": ["ALL"]}, pod
            assert not context.get("privileged"), pod


@pytest.mark.parametrize("part", COMPONENTS)
@pytest.mark.parametrize("label", ["component", "instance", "name"])
def test_no_pod_gets_out_of_its_network_policies_by_a_label(part: str, label: str) -> None:
    given = {part: {"podLabels": {f"app.kubernetes.io/{label}": "other", "team": "search"}}}
    with pytest.raises(helm_python.HelmError, match=f"{part}.podLabels: .*{label} is the chart"):
        render(given)


@names
def test_no_volume_is_of_the_host(name: str) -> None:
    for pod, template in pod_templates(render(ci_values(name))):
        for volume in template["spec"].get("volumes", []):
            assert "hostPath" not in volume, pod


@names
def test_what_is_written_to_goes_to_a_volume(name: str) -> None:
    for pod, template in pod_templates(render(ci_values(name))):
        for container in containers(template):
            mounted = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
            assert "/tmp" in mounted, pod
            assert {"name": "HOME", "value": "/tmp"} in container["env"], pod


@names
def test_every_serving_container_is_probed_and_bounded(name: str) -> None:
    for pod, template in pod_templates(render(ci_values(name))):
        if template.get("kind") == "Pod":
            continue  # Runs once, as a test.
        for container in template["spec"]["containers"]:
            probes = {"startupProbe", "livenessProbe", "readinessProbe"}
            assert probes <= container.keys(), pod
            assert container["resources"]["limits"]["memory"], pod


def allowed(policies: list[Manifest], component: str, direction: str) -> list[Manifest]:
    """Rules of every policy that covers the pods of ``component``."""
    rules = []
    for policy in policies:
        selector = policy["spec"]["podSelector"]
        own = selector["matchLabels"].get("app.kubernetes.io/component")
        among = [e["values"] for e in selector.get("matchExpressions", [])]
        if own not in (None, component) or any(component not in values for values in among):
            continue
        rules += policy["spec"].get(direction, [])
    return rules


def admits(rule: Manifest, component: str, port: int) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any(
        p["port"] <= port <= p.get("endPort", p["port"]) for p in ports
    ):
        return False
    return "from" not in rule or any(_is(peer, component) for peer in rule["from"])


def _is(peer: dict[str, Any], component: str) -> bool:
    selector = peer.get("podSelector", {})
    if peer.get("namespaceSelector") is not None:
        return False
    own = selector.get("matchLabels", {}).get("app.kubernetes.io/component")
    among = [e["values"] for e in selector.get("matchExpressions", [])]
    return own in (None, component) and all(component in values for values in among)


def network(values: dict[str, Any]) -> list[Manifest]:
    return [m for m in render(values) if m["kind"] == "NetworkPolicy"]


@names
def test_all_pods_are_closed_both_ways_to_begin_with(name: str) -> None:
    policies = network(ci_values(name))
    [deny] = [p for p in policies if p["metadata"]["name"].endswith("default-deny")]
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & deny["spec"].keys()


@pytest.mark.parametrize(
    ("source", "target", "port", "open_"),
    [
        ("controller", "head", 6379, True),
        ("prefill", "head", 6379, True),
        ("router", "head", 6379, False),
        ("router", "controller", 50053, True),
        ("router", "controller", 50052, False),
        ("decode", "controller", 50052, True),
        ("controller", "decode", 33333, True),
        ("router", "decode", 33333, True),
        ("prefill", "decode", 33333, True),
        ("head", "decode", 33333, True),
        ("stranger", "decode", 33333, False),
        ("stranger", "controller", 50052, False),
        ("stranger", "head", 8265, False),
        ("stranger", "router", 50051, True),
        ("stranger", "router", 22, False),
    ],
)
def test_who_reaches_whom(source: str, target: str, port: int, open_: bool) -> None:
    rules = allowed(network({}), target, "ingress")
    assert any(admits(rule, source, port) for rule in rules) is open_


@pytest.mark.parametrize(("source", "port"), [("test", 50051), ("controller", 8000)])
def test_the_release_s_own_clients_are_let_in_beside_named_ones(source: str, port: int) -> None:
    rules = allowed(network(ci_values("pd-gpu")), "router", "ingress")
    assert any(admits(rule, source, port) for rule in rules)


def test_clients_can_be_named() -> None:
    rules = allowed(network(ci_values("pd-gpu")), "router", "ingress")
    assert not any(admits(rule, "stranger", 50051) for rule in rules)
    peers = [peer for rule in rules for peer in rule["from"]]
    assert {"namespaceSelector": {"matchLabels": {"llm-client": "true"}}} in peers


@pytest.mark.parametrize("component", COMPONENTS)
def test_pods_call_names_and_each_other_and_nobody_else(component: str) -> None:
    rules = allowed(network({}), component, "egress")
    anywhere = [port for rule in rules if "to" not in rule for port in rule["ports"]]
    assert {port["port"] for port in anywhere} == {53}
    for rule in rules:
        for peer in rule.get("to", []):
            assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "crossdock"


def scraped_from(values: dict[str, Any], target: str, port: int) -> list[dict[str, Any]]:
    """Peers in other namespaces that reach the port."""
    rules = allowed(network(values), target, "ingress")
    named = [rule for rule in rules if "from" in rule and any(port in r for r in _ranges(rule))]
    return [peer for rule in named for peer in rule["from"] if "namespaceSelector" in peer]


def _ranges(rule: Manifest) -> list[range]:
    return [range(p["port"], p.get("endPort", p["port"]) + 1) for p in rule.get("ports", [])]


MONITORED = {"podMonitor": {"enabled": True}}
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


@pytest.mark.parametrize(
    ("target", "port"),
    [("prefill", 9470), ("decode", 9470), ("controller", 9470), ("head", 8080), ("decode", 8080)],
)
def test_metrics_are_open_to_the_monitoring_namespace_alone(target: str, port: int) -> None:
    assert scraped_from(MONITORED, target, port) == [MONITORING]
    assert not scraped_from({}, target, port)


@pytest.mark.parametrize("target", ["prefill", "decode", "controller", "head"])
def test_monitors_reach_metrics_and_nothing_else(target: str) -> None:
    for port in (22, 6379, 8265, 9469, 9471, 50052, 50053):
        assert not scraped_from(MONITORED, target, port)


def test_every_rank_of_a_pod_can_be_scraped_and_no_port_beyond() -> None:
    pools = {"decode": {"tensor_parallel_size": 4}}
    values = MONITORED | {"cluster": {"pools": pools, "metrics": {"worker_port": 9600}}}
    assert all(scraped_from(values, "decode", port) for port in range(9600, 9604))
    assert not scraped_from(values, "decode", 9604)


@pytest.mark.parametrize("target", ["decode", "controller", "head"])
def test_nobody_scrapes_where_nobody_is_named(target: str) -> None:
    """To Kubernetes a rule without peers is one for everybody."""
    values = {"podMonitor": {"enabled": True}, "networkPolicy": {"monitoring": []}}
    rules = allowed(network(values), target, "ingress")
    assert all(rule.get("from") for rule in rules)


def test_another_namespace_may_scrape_instead() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "sre"}}}
    values = MONITORED | {"networkPolicy": {"monitoring": [peer]}}
    assert scraped_from(values, "controller", 9470) == [peer]


STREAMED = {"cluster": {"token_streams": {"enabled": True}}}


def reached_by_clients(values: dict[str, Any], component: str) -> dict[int, list[Manifest]]:
    """Ports that whoever is a client reaches, and from where; empty: from everywhere."""
    rules = allowed(network(values), component, "ingress")
    return {port["port"]: r.get("from", []) for r in rules for port in r.get("ports", [])}


def test_clients_reach_decode_workers_only_where_they_may_read_tokens() -> None:
    assert 50061 not in reached_by_clients({}, "decode")
    assert reached_by_clients(STREAMED, "decode")[50061] == []
    assert 50061 not in reached_by_clients(STREAMED, "prefill")
    peer = {"namespaceSelector": {"matchLabels": {"team": "apps"}}}
    values = STREAMED | {"networkPolicy": {"clients": [peer]}}
    assert reached_by_clients(values, "decode")[50061] == [peer]


def test_decode_workers_that_clients_read_from_have_the_files_of_the_doors() -> None:
    tls = {"tls": {"enabled": True, "doors": {"enabled": True}}}
    for values, wanted in ((STREAMED | tls, {"decode"}), (tls, set())):
        mounted = {
            pool
            for pool, group in groups(render(values)).items()
            for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
            if mount["mountPath"] == "/etc/crossdock-doors"
        }
        assert mounted == wanted


@pytest.mark.parametrize("port", [8080, 9470, 52365])
def test_a_port_for_tokens_is_nobody_else_s(port: int) -> None:
    values = {"cluster": {"token_streams": {"enabled": True, "port": port}}}
    with pytest.raises(helm_python.HelmError, match=f"token_streams.port = {port}: this port"):
        render(values)
