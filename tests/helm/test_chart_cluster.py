"""What follows from the `ClusterSpec` in `cluster`: config, worker groups, GPUs, gangs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from charts import CI, ci_values, groups, one, render

from cluster.cli.main import new_app
from cluster.placement_fit import split_into_bundles
from cluster.plan import list_slots, replica_need
from core.config import ClusterSpec, make_spec
from tuner.search.outputs import values_yaml

NO_RESOURCES = {"num-cpus": "0", "num-gpus": "0"}


def config(values: dict[str, Any]) -> ClusterSpec:
    """As the pods read it."""
    text = one(render(values), "ConfigMap", "crossdock-config")["data"]["cluster.yaml"]
    return make_spec(yaml.safe_load(text))


def ray_resources(group: dict[str, Any]) -> dict[str, float]:
    """Of one pod: KubeRay passes the string to a shell."""
    (given,) = [json.loads(group["rayStartParams"]["resources"])]
    resources: dict[str, float] = json.loads(given)
    return resources


@pytest.mark.parametrize("path", CI, ids=lambda path: path.stem)
def test_the_config_is_the_spec_in_the_values(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    given = make_spec(values.get("cluster"))
    read = config(values)
    ours = {"model", "tls", "pools", "engine", "metrics", "store"}
    assert read.model_dump(exclude=ours) == given.model_dump(exclude=ours)
    for pool in ("prefill", "decode"):
        known, wanted = read.pools.of(pool), given.pools.of(pool)
        assert known.model_copy(update={"resources": None}) == wanted.model_copy(
            update={"resources": None}
        )


@pytest.mark.parametrize(
    ("cpu", "decode_ranks", "threads"),
    [("8", 1, 8), (6, 1, 6), ("7500m", 1, 7), ("8", 2, 4), ("500m", 1, 1), (None, 1, None)],
)
def test_ranks_compute_with_the_cpus_that_their_pods_have(
    cpu: object, decode_ranks: int, threads: int | None
) -> None:
    pools = {"decode": {"tensor_parallel_size": decode_ranks}}
    values: dict[str, Any] = {"cluster": {"pools": pools}}
    if cpu is not None:
        values["resources"] = {"requests": {"cpu": cpu}, "limits": {"memory": "8Gi"}}
    engine = config(values).engine
    # A container sees its node's cores, not which of them are its own.
    assert (engine.threads, engine.affinity) == (threads, "none")


def test_what_the_spec_says_of_threads_and_cores_holds() -> None:
    given = {"threads": 3, "affinity": "auto", "dtype": "float32"}
    engine = config({"cluster": {"engine": given}, "resources": {"limits": {"cpu": 8}}}).engine
    assert engine.model_dump(include=set(given)) == given


def test_the_pool_with_fewer_cpus_sets_the_pace_unless_it_is_empty() -> None:
    few = {"resources": {"limits": {"cpu": 2}}}
    many = {"resources": {"limits": {"cpu": "16"}, "requests": {"cpu": "1"}}}
    assert config({"prefill": few, "decode": many}).engine.threads == 2
    none = {"pools": {"prefill": {"replicas": 0}}}
    assert config({"cluster": none, "prefill": few, "decode": many}).engine.threads == 16


def test_on_gpus_the_engine_is_as_the_spec_says() -> None:
    values = {"cluster": {"engine": {"device": "cuda"}}, "resources": {"limits": {"cpu": 8}}}
    assert config(values).engine == make_spec(values["cluster"]).engine


def test_large_numbers_stay_whole() -> None:
    numbers = {"kv": {"num_blocks": 12345678, "block_size": 64}, "max_model_len": 1048576}
    assert config({"cluster": numbers}).kv.num_blocks == 12345678
    assert config({"cluster": {"kv": {"memory": 137438953472}}}).kv.memory == 137438953472


@pytest.mark.parametrize("path", CI, ids=lambda path: path.stem)
def test_pods_have_room_for_exactly_the_ranks_of_the_spec(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    spec = config(values)
    for pool, group in groups(render(values)).items():
        needs = [replica_need(spec, slot, False) for slot in list_slots(spec) if slot.pool == pool]
        pods = group["replicas"] * group["numOfHosts"]
        for resource, amount in ray_resources(group).items():
            assert amount * pods == sum(need.total[resource] for need in needs)
        assert group["minReplicas"] == group["maxReplicas"] == group["replicas"]


def test_a_pool_takes_a_resource_that_only_its_own_pods_have() -> None:
    found = groups(render())
    assert ray_resources(found["prefill"]) == {"crossdock_prefill": 1}
    assert ray_resources(found["decode"]) == {"crossdock_decode": 1}
    assert config({}).pools.prefill.resources == {"crossdock_prefill": 1}
    [cluster] = [m for m in render() if m["kind"] == "RayCluster"]
    head = cluster["spec"]["headGroupSpec"]["rayStartParams"]
    assert head.items() >= NO_RESOURCES.items()


def test_resources_that_the_spec_asks_for_are_asked_for_as_well() -> None:
    pools = {"decode": {"resources": {"GPU": 1, "accelerator_type:H100": 0.001}}}
    assert config({"cluster": {"pools": pools}}).pools.decode.resources == {
        "GPU": 1,
        "accelerator_type:H100": 0.001,
        "crossdock_decode": 1,
    }


@pytest.mark.parametrize(
    ("tensor", "pipeline", "per_host", "hosts", "ranks"),
    [(1, 1, 0, 1, 1), (8, 1, 0, 1, 8), (8, 2, 0, 2, 8), (4, 3, 0, 3, 4), (2, 2, 1, 4, 1)],
)
def test_a_replica_is_a_gang_of_pods(
    tensor: int, pipeline: int, per_host: int, hosts: int, ranks: int
) -> None:
    pool = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    cluster = {"engine": {"device": "cuda"}, "pools": {"decode": pool}}
    group = groups(render({"cluster": cluster, "decode": {"ranksPerHost": per_host}}))["decode"]
    assert group["numOfHosts"] == hosts
    [container] = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == ranks
    assert ray_resources(group) == {"crossdock_decode": ranks}


@pytest.mark.parametrize("most", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("tensor", "pipeline"),
    [(1, 1), (1, 5), (2, 3), (3, 1), (4, 1), (4, 3), (6, 2), (8, 2), (9, 1), (16, 1)],
)
def test_a_pod_holds_whole_stages_or_nothing_but_a_part_of_one(
    tensor: int, pipeline: int, most: int
) -> None:
    pool = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    values = {"cluster": {"pools": {"decode": pool}}, "decode": {"maxRanksPerHost": most}}
    group = groups(render(values))["decode"]
    [per_host] = ray_resources(group).values()
    assert 1 <= per_host <= most
    assert per_host * group["numOfHosts"] == tensor * pipeline
    assert not per_host % tensor if tensor <= most else not tensor % per_host
    # Where stages fit into pods each of them is placed as one.
    spec = config(values)
    [need] = [replica_need(spec, slot, False) for slot in list_slots(spec) if slot.pool == "decode"]
    nodes = [ray_resources(group)] * group["numOfHosts"]
    bundles = split_into_bundles(need, nodes)
    assert len(bundles.needs) == (pipeline if tensor <= most else tensor * pipeline)


def test_a_host_without_ranks_is_refused() -> None:
    with pytest.raises(helm_python.HelmError, match=r"decode\.maxRanksPerHost = 0: must be"):
        render({"decode": {"maxRanksPerHost": 0}})


def test_without_prefill_replicas_its_group_is_empty() -> None:
    values = {"cluster": {"pools": {"prefill": {"replicas": 0}}}}
    assert groups(render(values))["prefill"]["replicas"] == 0
    assert config(values).pools.prefill.replicas == 0


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        (None, "/models/SmolLM2-135M-Instruct"),
        ("llama-3.1-8b", "/models/llama-3.1-8b"),
        ("/mnt/llama", "/mnt/llama"),
        ("models/SmolLM2-135M-Instruct", "/models/SmolLM2-135M-Instruct"),
        ("./smollm2/", "/models/smollm2"),
    ],
)
def test_the_model_is_where_the_values_say(given: str | None, folder: str) -> None:
    assert config({"cluster": {"model": given} if given else {}}).model == folder


def test_what_tune_writes_installs_as_it_is() -> None:
    spec = make_spec(
        {
            "model": "llama-3.1-8b",
            "engine": {"device": "cuda"},
            "pools": {
                "prefill": {"replicas": 3, "resources": {"GPU": 1.0}, "gpu_hour_price": 2.0},
                "decode": {"replicas": 2, "tensor_parallel_size": 2, "max_num_seqs": 128},
            },
            "kv": {"memory": "40GiB"},
            "slo": {"ttft": 0.5},
        }
    )
    values = yaml.safe_load(values_yaml(spec, "The best of 40 candidates."))
    found = groups(render(values))
    assert {pool: group["replicas"] for pool, group in found.items()} == {"prefill": 3, "decode": 2}
    read = config(values)
    assert (read.kv, read.slo, read.engine) == (spec.kv, spec.slo, spec.engine)
    assert read.pools.decode.max_num_seqs == 128


def test_a_change_of_replicas_alone_restarts_nothing() -> None:
    def templates(values: dict[str, Any]) -> list[Any]:
        found = [m for m in render(values) if m["kind"] == "Deployment"]
        return [deployment["spec"]["template"] for deployment in found]

    def cluster(decode: dict[str, Any]) -> dict[str, Any]:
        return {"cluster": {"pools": {"decode": decode}}}

    assert templates(cluster({"replicas": 3})) == templates({})
    assert templates(cluster({"max_num_seqs": 3})) != templates({})


def test_a_change_of_tenants_restarts_the_routers_and_no_worker() -> None:
    def template(part: str, values: dict[str, Any]) -> Any:
        return one(render(values), "Deployment", f"crossdock-{part}")["spec"]["template"]

    tenants = {"cluster": {"tenants": {"default": {"weight": 2}}, "auth": {"required": False}}}
    assert template("controller", tenants) == template("controller", {})
    assert template("router", tenants) != template("router", {})


@pytest.mark.parametrize("path", CI, ids=lambda path: path.stem)
def test_pods_start_commands_that_exist_with_options_that_they_take(path: Path) -> None:
    import typer

    app = typer.main.get_command(new_app())
    started = []
    for manifest in render(yaml.safe_load(path.read_text())):
        if manifest["kind"] != "Deployment":
            continue
        for container in manifest["spec"]["template"]["spec"]["containers"]:
            program, command = container["command"]
            assert program == "crossdock"
            started.append(command)
            options = {name for p in app.commands[command].params for name in p.opts}
            given = {argument.partition("=")[0] for argument in container["args"]}
            assert given <= options
    assert sorted(started) == ["controller", "router"]


def test_a_pod_that_ends_drains_its_workers_first_and_has_the_time() -> None:
    import typer

    app = typer.main.get_command(new_app())
    group = groups(render({"decode": {"drainSeconds": 90}}))["decode"]
    spec = group["template"]["spec"]
    [container] = spec["containers"]
    line = container["lifecycle"]["preStop"]["exec"]["command"][2]
    drain, stop = line.split(";")
    words = drain.split()
    assert words[:3] == ["crossdock", "drain-node", '"$POD_IP"']
    options = {name for p in app.commands["drain-node"].params for name in p.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert words[words.index("--limit") + 1] == "90"
    assert int(words[words.index("--timeout") + 1]) < spec["terminationGracePeriodSeconds"]
    assert stop.split()[:2] == ["ray", "stop"]
    assert {
        "name": "POD_IP",
        "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
    } in container["env"]


def test_numbers_of_the_gpu_example() -> None:
    decode = groups(render(ci_values("pd-gpu")))["decode"]
    assert (decode["replicas"], decode["numOfHosts"]) == (2, 2)
    spread = decode["template"]["spec"]["topologySpreadConstraints"]
    assert spread[0]["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "decode"
