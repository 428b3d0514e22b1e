"""Controller and router as processes of their own: what each is told, and that both plan alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_folders import make_model_folder

from cluster.cli.main import main
from cluster.router_settings import Doors
from cluster.separate_router import locate_model, settings_of_router
from cluster.serving_cluster import ServeOptions, ServingCluster
from core.config import make_spec
from core.errors import NotFound
from router.settings import RouterSettings
from router.slo import SloTargets


class Silent:
    def step(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = make_model_folder(tmp_path / "tiny")
    path = tmp_path / "cluster.yaml"
    path.write_text(f"{{model: {folder}, kv: {{num_blocks: 20}}, served_model_name: small}}")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["crossdock", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_router_is_told_what_the_config_says(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[RouterSettings] = []

    def instead(settings: RouterSettings) -> int:
        told.append(settings)
        return 0

    monkeypatch.setattr("router.main.run", instead)
    options = ["--registry", "controller:50053", "--host", "0.0.0.0", "--drain-s", "90"]
    assert run(monkeypatch, "router", "--config", str(config), *options) == 0
    [settings] = told
    assert (settings.registry, settings.host, settings.drain_s) == (
        "controller:50053",
        "0.0.0.0",
        90,
    )
    assert (settings.grpc_port, settings.http_port) == (50051, 8000)
    assert (settings.served_model_name, settings.model.name) == ("small", "tiny")
    # 20 blocks of 16 tokens: less than the model's 1,000.
    assert settings.max_model_len == 320


def test_a_router_judges_by_the_config_s_slos_and_uses_its_names(config: Path) -> None:
    metrics = {"vllm_names": True, "token_sha256": ["0" * 64]}
    said = {"slo": {"ttft": 0.5, "tpot": 0.02}, "metrics": metrics}
    spec = make_spec({"model": str(config.parent / "tiny"), **said})
    model = locate_model(spec, Silent())
    settings = settings_of_router(spec, model, "controller:1", Doors("127.0.0.1", 0, 0, 30.0))
    assert (settings.rules.slo, settings.vllm_names) == (SloTargets(0.5, 0.02), True)
    assert settings.metrics_tokens == ("0" * 64,)


@pytest.mark.parametrize("kv", [{}, {"memory": "64KiB"}, {"num_blocks": 9}])
def test_a_router_knows_the_limits_that_its_controller_plans(
    kv: dict[str, Any], config: Path
) -> None:
    from cluster.memory_plan import plan_max_model_len
    from cluster.serving_cluster import RoutersElsewhere

    spec = make_spec({"model": str(config.parent / "tiny"), "kv": kv})
    elsewhere = RoutersElsewhere(registry_port=0, ray_head="head:6379")
    controller = ServingCluster(ServeOptions(spec, elsewhere=elsewhere), Silent(), lambda: None)
    model = locate_model(spec, Silent())
    settings = settings_of_router(spec, model, "controller:1", Doors("127.0.0.1", 0, 0, 30.0))
    assert settings.max_model_len == plan_max_model_len(spec, model, controller._plan_blocks(model))


def test_a_controller_is_told_where_its_ray_is(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ServeOptions] = []
    monkeypatch.setattr("cluster.launch.run_serve", lambda options, progress: told.append(options))
    options = ["--ray-head", "head:6379", "--node-address", "10.0.0.3", "--patience", "60"]
    assert run(monkeypatch, "controller", "--config", str(config), *options) == 0
    [options_told] = told
    elsewhere = options_told.elsewhere
    assert elsewhere is not None
    assert (elsewhere.ray_head, elsewhere.own_address) == ("head:6379", "10.0.0.3")
    assert (elsewhere.registry_port, options_told.admin_port) == (50053, 50052)
    assert (options_told.patience_s, elsewhere.config) == (60.0, config)
    assert options_told.host == "127.0.0.1"


def test_a_model_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model folder"):
        locate_model(make_spec({"model": str(tmp_path / "missing")}), Silent())


def test_a_router_needs_no_weights(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for weights in (config.parent / "tiny").glob("*.safetensors*"):
        weights.unlink()
    started: list[RouterSettings] = []

    def instead(settings: RouterSettings) -> int:
        started.append(settings)
        return 0

    monkeypatch.setattr("router.main.run", instead)
    given = ["--config", str(config), "--registry", "controller:50053"]
    assert run(monkeypatch, "router", *given) == 0
    assert len(started) == 1
    # A controller would start workers that fail for want of them.
    with pytest.raises(NotFound, match="safetensors"):
        locate_model(make_spec({"model": str(config.parent / "tiny")}), Silent())


@pytest.mark.thorough
def test_a_router_loads_neither_torch_nor_ray() -> None:
    code = "import sys, cluster.separate_router, cluster.spec_file, router.main\n"
    code += "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
