"""The settings of a router survive their way into its process, and nothing else comes in."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import InvalidField
from core.tenant_config import TenantSpec
from core.tenants import DoorLimits
from router.access_rules import AccessRules
from router.flow.retries import RetryLimits
from router.placement import Disaggregation
from router.routing.cost_model import ROUGH_COSTS
from router.routing.policies.policy import PolicyName
from router.routing.routing_rules import RoutingRules
from router.settings import RouterSettings, settings_from_json, settings_to_json
from router.slo import SloTargets

TENANTS = {
    "team": TenantSpec(
        weight=2.5,
        priority=1,
        api_key_sha256=["ab" * 32],
        limits={"tokens_per_minute": 1e6, "cache_share": 0.5},
    ),
    "default": TenantSpec(),
}
SETTINGS = RouterSettings(
    registry="127.0.0.1:1",
    model=Path("/models/tiny"),
    served_model_name="tïny",
    max_model_len=640,
    rules=RoutingRules(
        Disaggregation.ALWAYS,
        PolicyName.ROUND_ROBIN,
        SloTargets(0.5, 0.025),
        replace(ROUGH_COSTS, message_s=0.002),
    ),
    limits=RetryLimits(max_attempts=3),
    vllm_names=True,
    metrics_tokens=("0" * 64,),
    access=AccessRules.of(TENANTS, True, DoorLimits(7, 512, None)),
    store="redis://:password@cache:6379/0",
)


def test_they_are_the_same_after_their_way() -> None:
    for settings in (SETTINGS, RouterSettings("host:1", Path("folder"))):
        assert settings_from_json(settings_to_json(settings)) == settings


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"", "settings"),
        (b"[]", "settings"),
        (b"{}", "registry"),
        (b'{"registry": "a:1", "model": "m", "grpc_port": "x"}', "grpc_port"),
        (b'{"registry": "a:1", "model": "m", "rules": {"costs": {"prefill": 3}}}', "rules.costs"),
    ],
)
def test_what_is_none_is_refused_by_name(text: bytes, where: str) -> None:
    with pytest.raises(InvalidField, match="crossdock router") as refused:
        settings_from_json(text)
    assert refused.value.metadata["field"].startswith(where)
