"""What can be switched on: Redis, gangs, TLS, doors to the outside, monitoring, the test hook."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import helm_python
import pytest
import typer.main
import yaml
from charts import CHART, Manifest, ci_values, containers, groups, kinds, one, pod_templates, render

from cluster.cli.main import new_app
from core.config import make_spec
from core.store_url import PASSWORD_VARIABLE, redis_place
from router.doors.openai_door import OpenAIDoor
from router.doors.tokenize_door import TokenizeDoor

AUTOSCALED: dict[str, Any] = {
    "autoscaling": {"enabled": True},
    "router": {"resources": {"requests": {"cpu": "1"}}},
}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    return str(refused.value)


def ray_cluster(values: dict[str, Any]) -> Manifest:
    return one(render(values), "RayCluster", "crossdock")


def test_little_is_installed_unless_it_is_asked_for() -> None:
    assert kinds(render()) == {
        *("ConfigMap", "Deployment", "NetworkPolicy", "Pod", "PodDisruptionBudget", "RayCluster"),
        *("Service", "ServiceAccount"),
    }


# Redis


def test_the_head_keeps_its_state_in_the_redis_of_the_release() -> None:
    values = {"redis": {"enabled": True, "auth": {"existingSecret": "known"}}}
    options = ray_cluster(values)["spec"]["gcsFaultToleranceOptions"]
    service = one(render(values), "Service", "crossdock-redis")
    [port] = service["spec"]["ports"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port['port']}"
    password = {"name": "known", "key": "password"}
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == password
    [container] = one(render(values), "StatefulSet", "crossdock-redis")["spec"]["template"]["spec"][
        "containers"
    ]
    assert {"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": password}} in container["env"]


def test_a_password_is_made_if_none_is_known() -> None:
    manifests = render({"redis": {"enabled": True}})
    secret = one(manifests, "Secret", "crossdock-redis")
    options = one(manifests, "RayCluster", "crossdock")["spec"]["gcsFaultToleranceOptions"]
    reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "crossdock-redis", "key": "password"}
    assert len(secret["data"]["password"]) >= 40


def test_another_redis_can_be_used_and_is_let_through() -> None:
    external = {"address": "redis.db.svc:6380", "username": "ray", "passwordSecret": {"name": "s"}}
    manifests = render({"redis": {"external": external}})
    options = one(manifests, "RayCluster", "crossdock")["spec"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis.db.svc:6380"
    assert options["redisUsername"] == {"value": "ray"}
    assert "StatefulSet" not in kinds(manifests)
    egress = one(manifests, "NetworkPolicy", "crossdock-egress")["spec"]["egress"]
    assert {"ports": [{"port": 6380, "protocol": "TCP"}]} in egress
    both = {"redis": {"enabled": True, "external": external}}
    assert "redis.external.address: leave it empty" in refusal(both)


@pytest.mark.parametrize("address", ["redis.db.svc", "redis.db.svc:", "rediss://redis.db.svc/0"])
def test_a_redis_without_a_port_is_refused(address: str) -> None:
    said = refusal({"redis": {"external": {"address": address}}})
    assert f"redis.external.address = {address}: must be host:port" in said


def test_a_redis_that_speaks_tls_is_let_through_by_its_port() -> None:
    manifests = render({"redis": {"external": {"address": "rediss://redis.db.svc:6380"}}})
    egress = one(manifests, "NetworkPolicy", "crossdock-egress")["spec"]["egress"]
    assert {"ports": [{"port": 6380, "protocol": "TCP"}]} in egress


def store_of(values: dict[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    """The routers' URL of Redis, and where they have its password from."""
    manifests = render(values)
    config = yaml.safe_load(one(manifests, "ConfigMap", "crossdock-config")["data"]["cluster.yaml"])
    [router] = one(manifests, "Deployment", "crossdock-router")["spec"]["template"]["spec"][
        "containers"
    ]
    passwords = [e for e in router["env"] if e["name"] == PASSWORD_VARIABLE]
    secret = passwords[0]["valueFrom"]["secretKeyRef"] if passwords else None
    return config.get("store"), secret


def test_routers_share_by_the_redis_of_the_release() -> None:
    values = {"redis": {"enabled": True}}
    url, secret = store_of(values)
    assert url == "redis://crossdock-redis:6379/0?namespace=llm.crossdock"
    assert secret == {"name": "crossdock-redis", "key": "password"}
    assert make_spec({"store": url}).store == url
    policy = one(render(values), "NetworkPolicy", "crossdock-redis")["spec"]["ingress"]
    [who] = policy[0]["from"][0]["podSelector"]["matchExpressions"]
    assert who["values"] == ["head", "router"]


@pytest.mark.parametrize(
    ("external", "url"),
    [
        ({"address": "r.db:6380"}, "redis://r.db:6380/0"),
        ({"address": "redis://r.db:6380"}, "redis://r.db:6380/0"),
        ({"address": "rediss://r.db:6380", "username": "ray"}, "rediss://ray@r.db:6380/0"),
    ],
)
def test_routers_share_by_another_redis(external: dict[str, Any], url: str) -> None:
    found, secret = store_of({"redis": {"external": external}})
    assert (found, secret) == (f"{url}?namespace=llm.crossdock", None)
    assert redis_place(f"{url}?namespace=llm.crossdock") is not None
    with_secret = external | {"passwordSecret": {"name": "s"}}
    assert store_of({"redis": {"external": with_secret}})[1] == {"name": "s", "key": "password"}


def test_the_config_may_name_a_store_of_its_own() -> None:
    assert store_of({}) == (None, None)
    external = {"external": {"address": "r:6379", "passwordSecret": {"name": "heads"}}}
    for redis in ({"enabled": True}, external):
        # The password of another one would only be told to a stranger.
        own = {"redis": redis, "cluster": {"store": "redis://r.db:6379/0"}}
        assert store_of(own) == ("redis://r.db:6379/0", None)


@pytest.mark.parametrize(
    ("store", "ports"),
    [
        ("redis://r.db", {6379}),
        ("redis://r.db:6380/0?namespace=a:1", {6380}),
        ("rediss://user:p%40ss@[fd00::7]:6390/2", {6390}),
        ("redis://[fd00::7]/2", {6379}),
        ("unix:///run/redis.sock", set()),
        ("memory://", set()),
    ],
)
def test_a_store_of_the_config_s_own_is_let_through_by_its_port(
    store: str, ports: set[int]
) -> None:
    place = redis_place(store)
    assert {place.port for place in (place,) if place and not place.path} == ports
    egress = one(render({"cluster": {"store": store}}), "NetworkPolicy", "crossdock-egress")[
        "spec"
    ]["egress"]
    anywhere = {port["port"] for rule in egress if "to" not in rule for port in rule["ports"]}
    assert anywhere - {53} == ports


def test_another_store_restarts_routers_and_no_worker() -> None:
    def checksum(url: str, part: str) -> str:
        manifests = render({"cluster": {"store": url}})
        template = one(manifests, *part.split())["spec"]["template"]["metadata"]["annotations"]
        return str(template["checksum/config"])

    first, second = "redis://first:6379/0", "redis://second:6379/0"
    router, controller = "Deployment crossdock-router", "Deployment crossdock-controller"
    assert checksum(first, router) != checksum(second, router)
    assert checksum(first, controller) == checksum(second, controller)


def test_the_made_password_is_under_the_key_that_pods_read() -> None:
    manifests = render({"redis": {"enabled": True, "auth": {"existingSecretKey": "secret"}}})
    options = one(manifests, "RayCluster", "crossdock")["spec"]["gcsFaultToleranceOptions"]
    [key] = one(manifests, "Secret", "crossdock-redis")["data"]
    assert key == options["redisPassword"]["valueFrom"]["secretKeyRef"]["key"] == "secret"


# Gangs


@pytest.mark.parametrize(
    ("scheduler", "labels"),
    [
        ("none", {}),
        (
            "volcano",
            {"ray.io/gang-scheduling-enabled": "true", "volcano.sh/queue-name": "serving"},
        ),
        (
            "yunikorn",
            {
                "ray.io/gang-scheduling-enabled": "true",
                "yunikorn.apache.org/app-id": "llm-crossdock",
                "yunikorn.apache.org/queue": "serving",
            },
        ),
        ("kueue", {"kueue.x-k8s.io/queue-name": "serving"}),
        ("kai", {"kai.scheduler/queue": "serving"}),
    ],
)
def test_each_scheduler_has_its_labels(scheduler: str, labels: dict[str, str]) -> None:
    values = {"gangScheduling": {"scheduler": scheduler, "queue": "serving"}}
    found = ray_cluster(values)["metadata"]["labels"]
    usual = ray_cluster({})["metadata"]["labels"]
    assert {k: v for k, v in found.items() if k not in usual} == labels


@pytest.mark.parametrize("scheduler", ["kueue", "kai"])
def test_a_scheduler_of_queues_needs_one(scheduler: str) -> None:
    assert "gangScheduling.queue" in refusal({"gangScheduling": {"scheduler": scheduler}})


# TLS


def test_the_certificate_is_where_the_config_says() -> None:
    manifests = render(ci_values("tls"))
    config = yaml.safe_load(one(manifests, "ConfigMap", "crossdock-config")["data"]["cluster.yaml"])
    certificate = one(manifests, "Certificate", "crossdock-workers")["spec"]
    for pod, template in pod_templates(manifests):
        if not pod.endswith(("prefill", "decode", "controller", "router")):
            assert "tls" not in [v["name"] for v in template["spec"].get("volumes", [])], pod
            continue
        [volume] = [v for v in template["spec"]["volumes"] if v["name"] == "tls"]
        assert volume["secret"]["secretName"] == certificate["secretName"]
        [container] = template["spec"]["containers"]
        [mount] = [m for m in container["volumeMounts"] if m["name"] == "tls"]
        # Keys of every Secret that cert-manager makes.
        files = {"ca": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
        paths = {k: f"{mount['mountPath']}/{v}" for k, v in files.items()}
        assert config["tls"] | paths == config["tls"]


def test_members_operators_and_monitors_have_names_of_their_own() -> None:
    manifests = render(ci_values("tls"))
    config = yaml.safe_load(one(manifests, "ConfigMap", "crossdock-config")["data"]["cluster.yaml"])

    def names(certificate: str) -> list[str]:
        return one(manifests, "Certificate", f"crossdock-{certificate}")["spec"]["dnsNames"]

    assert [config["tls"]["name"]] == names("workers")
    assert [config["tls"]["operator_name"]] == names("operator")
    opened = {config["tls"]["name"], config["tls"]["operator_name"]}
    assert not opened & {*names("monitoring"), *names("doors")}
    monitor = one(manifests, "PodMonitor", "crossdock-workers")["spec"]["podMetricsEndpoints"][0]
    assert monitor["scheme"] == "https"
    assert [monitor["tlsConfig"]["serverName"]] == names("workers")


def test_doors_are_opened_with_their_own_certificate() -> None:
    manifests = render(ci_values("tls"))
    config = yaml.safe_load(one(manifests, "ConfigMap", "crossdock-config")["data"]["cluster.yaml"])
    spec = one(manifests, "Deployment", "crossdock-router")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    [mount] = [m for m in container["volumeMounts"] if m["name"] == "doors"]
    files = {"cert": "tls.crt", "key": "tls.key"}
    assert config["tls"]["doors"] == {k: f"{mount['mountPath']}/{v}" for k, v in files.items()}
    [volume] = [v for v in spec["volumes"] if v["name"] == "doors"]
    certificate = one(manifests, "Certificate", "crossdock-doors")["spec"]
    assert volume["secret"]["secretName"] == certificate["secretName"]
    assert {"llm.example.com", "crossdock-router.llm.svc"} <= set(certificate["dnsNames"])
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert {probe["scheme"] for probe in probes} == {"HTTPS"}


def test_clients_of_the_doors_need_certificates_where_their_authority_is_given() -> None:
    doors = {"enabled": True, "secretName": "mine", "clientCaSecret": "clients"}
    manifests = render({"tls": {"doors": doors}})
    config = yaml.safe_load(one(manifests, "ConfigMap", "crossdock-config")["data"]["cluster.yaml"])
    assert config["tls"]["doors"]["client_ca"] == "/etc/crossdock-clients/ca.crt"
    assert "ca" not in config["tls"]
    assert "Certificate" not in kinds(manifests)


@pytest.mark.parametrize("doors", [{}, {"secretName": "mine"}])
def test_operators_in_the_controllers_pod_trust_the_doors(doors: dict[str, Any]) -> None:
    """`crossdock status --watch` asks routers. Their key is none of the pod's, and a Secret that
    is not there yet, or has no authority, keeps no controller from starting."""
    manifests = render({"tls": {"doors": {"enabled": True, **doors}}})
    pod = one(manifests, "Deployment", "crossdock-controller")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [trusted] = [e["value"] for e in container["env"] if e["name"] == "CROSSDOCK_TLS_DOOR_CA"]
    [mount] = [m for m in container["volumeMounts"] if m["name"] == "doors"]
    assert trusted == f"{mount['mountPath']}/ca.crt"
    [volume] = [v["secret"] for v in pod["volumes"] if v["name"] == "doors"]
    assert volume["secretName"] == doors.get("secretName", "crossdock-doors")
    assert (volume["optional"], volume["items"]) == (True, [{"key": "ca.crt", "path": "ca.crt"}])


def test_the_controllers_probes_do_without_a_certificate() -> None:
    [container] = one(render(ci_values("tls")), "Deployment", "crossdock-controller")["spec"][
        "template"
    ]["spec"]["containers"]
    named = {port["name"] for port in container["ports"]}
    for kind in ("startup", "liveness", "readiness"):
        probe = container[f"{kind}Probe"]["httpGet"]
        assert (probe["path"], probe["scheme"]) == ("/health", "HTTPS")
        assert probe["port"] in named


def test_a_port_for_operators_by_token_needs_one_for_pods_that_end() -> None:
    cluster = {"admin": {"token_sha256": ["0" * 64]}}
    assert "controller.tokenSecret.name" in refusal({"cluster": cluster})
    manifests = render({"cluster": cluster, "controller": {"tokenSecret": {"name": "operators"}}})
    for pod, template in pod_templates(manifests):
        if pod.endswith(("prefill", "decode", "controller")):
            [container] = template["spec"]["containers"]
            [token] = [e for e in container["env"] if e["name"] == "CROSSDOCK_ADMIN_TOKEN"]
            assert token["valueFrom"]["secretKeyRef"] == {"name": "operators", "key": "token"}


def test_an_authority_is_made_unless_there_is_one() -> None:
    assert len([m for m in render(ci_values("tls")) if m["kind"] == "Issuer"]) == 2
    known = {"tls": {"enabled": True, "issuerRef": {"name": "ours", "kind": "ClusterIssuer"}}}
    manifests = render(known)
    assert "Issuer" not in kinds(manifests)
    issuer = one(manifests, "Certificate", "crossdock-workers")["spec"]["issuerRef"]
    assert issuer == {"name": "ours", "kind": "ClusterIssuer", "group": "cert-manager.io"}


def test_files_of_ones_own_and_made_ones_are_not_mixed() -> None:
    files = {"ca": "/a", "cert": "/b", "key": "/c"}
    assert "cluster.tls" in refusal({"tls": {"enabled": True}, "cluster": {"tls": files}})


# Doors


def test_routes_lead_to_the_routers_service() -> None:
    manifests = render(ci_values("ha"))
    ports = {p["port"] for p in one(manifests, "Service", "crossdock-router")["spec"]["ports"]}
    for kind, name in (("HTTPRoute", "crossdock-http"), ("GRPCRoute", "crossdock-grpc")):
        [rule] = one(manifests, kind, name)["spec"]["rules"]
        [backend] = rule["backendRefs"]
        assert backend["name"] == "crossdock-router"
        assert backend["port"] in ports


@pytest.mark.parametrize(
    ("gateway", "said"),
    [
        ({"http": {"enabled": True, "hostnames": ["a"]}}, "gateway.parentRefs"),
        (
            {"parentRefs": [{"name": "g"}], "grpc": {"enabled": True}},
            "gateway.grpc.hostnames: name at least one",
        ),
        (
            {
                "parentRefs": [{"name": "g"}],
                "http": {"enabled": True, "hostnames": ["a", "b"]},
                "grpc": {"enabled": True, "hostnames": ["b"]},
            },
            "b is one of gateway.http.hostnames",
        ),
    ],
)
def test_routes_that_a_gateway_would_refuse_are_refused(gateway: dict[str, Any], said: str) -> None:
    assert said in refusal({"gateway": gateway})


@pytest.mark.parametrize(
    ("ingress", "said"),
    [
        ({"enabled": True}, "ingress.hosts: name at least one"),
        ({"grpc": {"enabled": True}}, "ingress.grpc.hosts: name at least one"),
        (
            {"enabled": True, "hosts": ["a"], "grpc": {"enabled": True, "hosts": ["b", "a"]}},
            "ingress.grpc.hosts: a is one of ingress.hosts",
        ),
    ],
)
def test_an_ingress_without_a_host_of_its_own_is_refused(
    ingress: dict[str, Any], said: str
) -> None:
    assert said in refusal({"ingress": ingress})


def test_an_ingress_for_each_door() -> None:
    manifests = render(ci_values("tls"))
    for name, host in (("http", "llm.example.com"), ("grpc", "grpc.llm.example.com")):
        [rule] = one(manifests, "Ingress", f"crossdock-{name}")["spec"]["rules"]
        assert rule["host"] == host
        for path in rule["http"]["paths"]:
            service = {"name": "crossdock-router", "port": {"name": name}}
            assert path["backend"]["service"] == service
    grpc = one(manifests, "Ingress", "crossdock-grpc")["metadata"]["annotations"]
    assert grpc["nginx.ingress.kubernetes.io/backend-protocol"] == "GRPCS"


def test_from_outside_all_is_reached_that_a_key_opens_and_no_metrics() -> None:
    [rule] = one(render(ci_values("tls")), "Ingress", "crossdock-http")["spec"]["rules"]
    paths = [path["path"] for path in rule["http"]["paths"]]
    [rule] = one(render(ci_values("ha")), "HTTPRoute", "crossdock-http")["spec"]["rules"]
    assert [match["path"]["value"] for match in rule["matches"]] == paths
    nothing: Any = None
    tokenizing = TokenizeDoor(nothing, nothing, nothing).routes()
    for_clients = OpenAIDoor(nothing, nothing, "").routes() + tokenizing
    for route in for_clients:
        assert any(f"{route.path}/".startswith(f"{path}/") for path in paths), route.path
    assert not [path for path in paths if "/metrics/cluster/".startswith(f"{path.rstrip('/')}/")]


def notes_of(values: dict[str, Any]) -> str:
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name="crossdock", namespace="llm", is_install=True)
    [notes] = [text for path, text in files.items() if path.endswith("NOTES.txt")]
    return str(notes)


@pytest.mark.parametrize(
    ("values", "is_said"),
    [
        ({"router": {"replicas": 1}}, False),
        ({"router": {"replicas": 2}}, True),
        ({"router": {"replicas": 2}, "redis": {"enabled": True}}, False),
        ({"router": {"replicas": 2}, "cluster": {"store": "redis://own:6379"}}, False),
        ({"redis": {"enabled": True}, **AUTOSCALED}, False),
        (AUTOSCALED, True),
    ],
)
def test_the_notes_say_that_routers_without_a_store_count_by_themselves(
    values: dict[str, Any], is_said: bool
) -> None:
    assert ("several routers and no Redis" in notes_of(values)) is is_said


def test_the_notes_show_commands_that_exist() -> None:
    notes = notes_of({})
    shown = [line.partition("-- crossdock ")[2].split() for line in notes.splitlines()]
    app = typer.main.get_command(new_app())
    for command, *options in filter(None, shown):
        known = {name for p in app.commands[command].params for name in p.opts}
        assert {word for word in options if word.startswith("--")} <= known
    ports = {p["port"] for p in one(render(), "Service", "crossdock-router")["spec"]["ports"]}
    live = ["status", "--watch", "--router", "crossdock-router:8000"]
    assert live in shown
    assert 8000 in ports
    # The pod has no certificate of those.
    doors = {"enabled": True, "clientCaSecret": "clients"}
    assert " ".join(live) not in notes_of({"tls": {"doors": doors}})


# Disruptions


@pytest.mark.parametrize("name", ["pd-gpu", "tls"])
def test_a_pod_of_a_pool_is_ready_when_its_worker_is(name: str) -> None:
    """Else the next one would be drained while the first one's replacement loads its model. Workers
    and ranks open the door of their metrics, and /health in it, when they have loaded theirs."""
    for pool, group in groups(render(ci_values(name))).items():
        [container] = group["template"]["spec"]["containers"]
        probe = container["readinessProbe"]["httpGet"]
        assert (probe["path"], probe["port"]) == ("/health", "crossdock-0"), pool
        assert probe.get("scheme") == ("HTTPS" if name == "tls" else None)
        assert probe["port"] in metrics_ports(group["template"])
        assert container["livenessProbe"]["httpGet"]["port"] == 52365


@pytest.mark.parametrize("pool", ["prefill", "decode"])
@pytest.mark.parametrize(("replicas", "away", "left"), [(3, 1, 5), (3, 4, 2), (1, 1, 1), (1, 9, 0)])
def test_nodes_with_workers_can_be_drained(pool: str, replicas: int, away: int, left: int) -> None:
    """Kubernetes takes no `maxUnavailable` for pods whose owner has no scale, and a RayCluster has
    none: it would forbid every eviction. Replicas here have two pods."""
    pools = {pool: {"replicas": replicas, "tensor_parallel_size": 16}}
    values = {"cluster": {"pools": pools}, "pdb": {"workerMaxUnavailable": away}}
    budget = one(render(values), "PodDisruptionBudget", f"crossdock-{pool}")["spec"]
    assert budget["minAvailable"] == left
    assert "maxUnavailable" not in budget


# Routers


def test_autoscaled_routers_have_no_number_of_their_own() -> None:
    manifests = render(ci_values("ha"))
    assert "replicas" not in one(manifests, "Deployment", "crossdock-router")["spec"]
    scaled = one(manifests, "HorizontalPodAutoscaler", "crossdock-router")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "crossdock-router"
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (3, 6)


@pytest.mark.parametrize(
    ("scaling", "resources", "said"),
    [
        ({"minReplicas": 9}, {}, "autoscaling.maxReplicas = 8: must be at least minReplicas = 9"),
        ({"minReplicas": 0}, {}, "and that at least 1"),
        ({}, {"requests": {"cpu": None}}, "router.resources.requests.cpu: is missing"),
    ],
)
def test_autoscaling_that_could_not_work_is_refused(
    scaling: dict[str, Any], resources: dict[str, Any], said: str
) -> None:
    values = {"autoscaling": {"enabled": True, **scaling}, "router": {"resources": resources}}
    assert said in refusal(values)


def test_a_router_has_the_time_to_leave_the_service_and_drain() -> None:
    spec = one(render(), "Deployment", "crossdock-router")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    [drain] = [a.partition("=")[2] for a in container["args"] if a.startswith("--drain-s")]
    assert sleep + int(drain) < spec["terminationGracePeriodSeconds"]


def test_a_router_without_a_pause_has_no_hook_that_old_clusters_refuse() -> None:
    values = {"router": {"preStopSeconds": 0}}
    [container] = containers(
        one(render(values), "Deployment", "crossdock-router")["spec"]["template"]
    )
    assert "lifecycle" not in container


def test_routers_read_tenants_from_a_secret_and_nobody_else_has_it() -> None:
    values = {"router": {"tenantsSecret": {"name": "keys", "key": "who.yaml"}}}
    for owner, template in pod_templates(render(values)):
        volumes = [v for v in template["spec"]["volumes"] if "secret" in v]
        if owner != "crossdock-router":
            assert not volumes
            continue
        assert volumes == [{"name": "tenants", "secret": {"secretName": "keys"}}]
        [container] = containers(template)
        [place] = [m for m in container["volumeMounts"] if m["name"] == "tenants"]
        assert place["readOnly"]
        assert f"--tenants={place['mountPath']}/who.yaml" in container["args"]


# The model


def test_a_token_comes_from_a_secret_and_only_the_download_has_it() -> None:
    for _, template in pod_templates(render(ci_values("pd-gpu"))):
        for container in containers(template):
            tokens = [e for e in container["env"] if e["name"] == "HF_TOKEN"]
            if container["name"] != "download-model":
                assert not tokens
                continue
            secret = {"name": "hugging-face", "key": "token"}
            assert tokens == [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}}]


def downloads(values: dict[str, Any]) -> dict[str, Manifest]:
    """The container that downloads the model, by the pod that it is in."""
    return {
        pod: container
        for pod, template in pod_templates(render(values))
        for container in template["spec"].get("initContainers", [])
    }


def test_routers_download_no_weights_unless_a_profile_is_compared_with_them() -> None:
    weights, values = "--include=*.safetensors", ci_values("pd-gpu")
    who = {pod: weights in container["args"] for pod, container in downloads(values).items()}
    assert not who.pop("crossdock-router")
    assert set(who) == {"crossdock/prefill", "crossdock/decode", "crossdock-controller"}
    assert all(who.values())
    values["cluster"]["router"] = {"profile": "/profiles/llama.json"}
    assert all(weights in container["args"] for container in downloads(values).values())


def test_all_containers_have_the_extra_environment_and_volumes() -> None:
    """But for Redis, which is a chart of its own."""
    values = ci_values("pd-gpu") | {
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraVolumes": [{"name": "authorities", "configMap": {"name": "authorities"}}],
        "extraVolumeMounts": [{"name": "authorities", "mountPath": "/etc/ssl/certs"}],
        "redis": {"enabled": True},
    }
    for pod, template in pod_templates(render(values)):
        if pod == "crossdock-redis":
            continue
        assert values["extraVolumes"][0] in template["spec"]["volumes"], pod
        for container in containers(template):
            assert values["extraEnv"][0] in container["env"], (pod, container["name"])
            assert values["extraVolumeMounts"][0] in container["volumeMounts"], (
                pod,
                container["name"],
            )


@pytest.mark.parametrize(
    ("name", "kind"), [("pd-gpu", "emptyDir"), ("ha", "persistentVolumeClaim"), ("tls", "image")]
)
def test_pods_that_need_the_model_have_it_at_the_same_path(name: str, kind: str) -> None:
    values = ci_values(name)
    for pod, template in pod_templates(render(values)):
        if not pod.endswith(("prefill", "decode", "controller", "router")):
            continue
        [volume] = [v for v in template["spec"]["volumes"] if v["name"] == "model"]
        assert kind in volume, pod
        [container] = template["spec"]["containers"]
        [mount] = [m for m in container["volumeMounts"] if m["name"] == "model"]
        assert (mount["mountPath"], mount["readOnly"]) == (values["model"]["path"], True)


# Monitoring


def test_monitors_find_what_they_scrape() -> None:
    manifests = render(ci_values("ha"))
    monitor = one(manifests, "ServiceMonitor", "crossdock-router")
    service = one(manifests, "Service", "crossdock-router")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_a_token_of_the_metrics_is_for_prometheus_too() -> None:
    hashes = {"cluster": {"metrics": {"token_sha256": ["0" * 64]}}}
    monitor = {"serviceMonitor": {"enabled": True}}
    assert "serviceMonitor.tokenSecret.name" in refusal(hashes | monitor)
    monitor["serviceMonitor"]["tokenSecret"] = {"name": "watcher"}
    manifests = render(hashes | monitor)
    [endpoint] = one(manifests, "ServiceMonitor", "crossdock-router")["spec"]["endpoints"]
    credentials = {"name": "watcher", "key": "token"}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": credentials}


def metrics_ports(template: Manifest) -> dict[str, int]:
    """Of a pod's first container, by name."""
    declared = template["spec"]["containers"][0].get("ports", [])
    ports = {port["name"]: port["containerPort"] for port in declared}
    return {name: port for name, port in ports.items() if name.startswith("crossdock-")}


def endpoints(manifests: list[Manifest], monitor: str) -> set[str]:
    """Names of the ports that a PodMonitor asks."""
    spec = one(manifests, "PodMonitor", monitor)["spec"]
    return {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}


def test_workers_and_controller_tell_their_metrics_where_the_monitor_asks() -> None:
    manifests = render(ci_values("ha"))
    told = yaml.safe_load(one(manifests, "ConfigMap", "crossdock-config")["data"]["cluster.yaml"])
    selector = one(manifests, "PodMonitor", "crossdock-workers")["spec"]["selector"]
    [among] = [e["values"] for e in selector["matchExpressions"]]
    for pod, template in pod_templates(manifests):
        component = template["metadata"]["labels"].get("app.kubernetes.io/component")
        ports = metrics_ports(template)
        assert bool(ports) is (component in among), pod
        if ports:
            assert selector["matchLabels"].items() <= template["metadata"]["labels"].items()
            assert set(ports) <= endpoints(manifests, "crossdock-workers")
            process = "controller" if component == "controller" else "worker"
            assert min(ports.values()) == told["metrics"][f"{process}_port"]


def test_a_pod_has_a_port_for_the_metrics_of_each_of_its_ranks() -> None:
    pools = {
        "prefill": {"tensor_parallel_size": 2},
        "decode": {"tensor_parallel_size": 4, "pipeline_parallel_size": 2},
    }
    metrics = {"worker_port": 9600, "vllm_names": True}
    values = {"cluster": {"pools": pools, "metrics": metrics}, "decode": {"ranksPerHost": 4}}
    manifests = render(values | {"podMonitor": {"enabled": True}})
    found = {pool: metrics_ports(group["template"]) for pool, group in groups(manifests).items()}
    assert found["prefill"] == {"crossdock-0": 9600, "crossdock-1": 9601}
    assert found["decode"] == {f"crossdock-{rank}": 9600 + rank for rank in range(4)}
    assert endpoints(manifests, "crossdock-workers") == set(found["decode"])
    told = yaml.safe_load(one(manifests, "ConfigMap", "crossdock-config")["data"]["cluster.yaml"])
    assert told["metrics"] == metrics | {"controller_port": 9470}


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"controller_port": 50052}, "controller_port = 50052: port 50052 of these pods is taken"),
        ({"worker_port": 8079}, "worker_port = 8079: port 8080 of these pods is taken"),
        ({"worker_port": 65535}, "worker_port = 65535: must leave room"),
    ],
)
def test_a_port_for_metrics_is_nobody_else_s(metrics: dict[str, int], said: str) -> None:
    pools = {"decode": {"tensor_parallel_size": 2}}
    assert said in refusal({"cluster": {"metrics": metrics, "pools": pools}})


def test_ray_s_own_metrics_can_be_left_out() -> None:
    monitored = {"enabled": True, "ray": False}
    manifests = render({"podMonitor": monitored})
    names = {m["metadata"]["name"] for m in manifests}
    assert "crossdock-workers" in names
    assert not names & {"crossdock-ray", "crossdock-ray-monitoring"}


def test_each_dashboard_in_the_folder_becomes_a_config_map(tmp_path: Path) -> None:
    chart = tmp_path / "crossdock"
    shutil.copytree(CHART, chart)
    for old in (chart / "dashboards").glob("*.json"):
        old.unlink()
    (chart / "dashboards").mkdir(exist_ok=True)
    (chart / "dashboards/pools.json").write_text('{"title": "{{ legend }}"}')
    with helm_python.Chart.load(chart) as loaded:
        files = loaded.render({"dashboards": {"enabled": True}}, name="crossdock", namespace="llm")
    [found] = [m for m in yaml.safe_load_all(files["crossdock/templates/monitoring.yaml"]) if m]
    assert found["metadata"]["name"] == "crossdock-dashboard-pools"
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"]["pools.json"].strip() == '{"title": "{{ legend }}"}'


# The test hook


def test_a_dashboard_needs_no_label() -> None:
    values = {"enabled": True, "labels": {"grafana_dashboard": None}}
    found = one(render({"dashboards": values}), "ConfigMap", "crossdock-dashboard-serving")
    assert "grafana_dashboard" not in found["metadata"]["labels"]


def test_the_test_hook_sends_one_request_over_grpc() -> None:
    manifests = render(ci_values("pd-gpu"))
    pod = one(manifests, "Pod", "crossdock-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    [container] = pod["spec"]["containers"]
    assert container["command"] == ["crossdock", "generate"]
    assert "--address=crossdock-router.llm.svc:50051" in container["args"]


def test_the_test_hook_has_an_api_key_from_a_secret_and_nobody_else_has() -> None:
    values = {"test": {"apiKeySecret": {"name": "of-a-tenant", "key": "k"}}}
    for pod, template in pod_templates(render(values)):
        for container in containers(template):
            keys = [e for e in container["env"] if e["name"] == "CROSSDOCK_API_KEY"]
            secret = {"secretKeyRef": {"name": "of-a-tenant", "key": "k"}}
            expected = [{"name": "CROSSDOCK_API_KEY", "valueFrom": secret}]
            assert keys == (expected if pod == "crossdock-test" else [])


def test_groups_take_what_is_set_for_all_unless_they_have_their_own() -> None:
    values = {"nodeSelector": {"pool": "gpu"}, "decode": {"nodeSelector": {"pool": "big"}}}
    found = groups(render(values))
    selectors = {
        pool: group["template"]["spec"]["nodeSelector"]["pool"] for pool, group in found.items()
    }
    assert selectors == {"prefill": "gpu", "decode": "big"}
