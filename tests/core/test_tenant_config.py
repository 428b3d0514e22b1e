"""The sections `tenants`, `auth` and `admission` of a config."""

from __future__ import annotations

from typing import Any

import pytest

from core.config import make_spec
from core.door_limits import door_limits
from core.errors import InvalidField
from core.tenants import DoorLimits, Tenant, TenantLimits

ONE, OTHER = "a" * 64, "B" * 64


def refusal(settings: dict[str, Any]) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        make_spec(settings)
    return caught.value


def test_without_tenants_nobody_needs_a_key_and_nothing_waits_at_the_door() -> None:
    spec = make_spec({})
    assert not spec.needs_key
    assert door_limits(spec) == DoorLimits(2048, None, None)


def test_a_tenant_is_taken_as_written() -> None:
    limits = {"requests_per_second": 2.5, "concurrent_sequences": 4, "cache_share": 0.5}
    tenant = {"weight": 2, "priority": 1, "api_key_sha256": [OTHER], "limits": limits}
    spec = make_spec({"tenants": {"team-a": tenant}})
    assert spec.tenants["team-a"].api_key_sha256 == ["b" * 64]
    plain = spec.tenants["team-a"].plain("team-a")
    assert plain == Tenant("team-a", 2.0, 1, TenantLimits(2.5, None, 4, 0.5))
    assert spec.needs_key


def test_with_several_tenants_prompts_wait_where_shares_count() -> None:
    tenants = {"a": {"api_key_sha256": [ONE]}, "b": {"api_key_sha256": [OTHER]}}
    pools = {"prefill": {"max_num_batched_tokens": 300}}
    assert door_limits(make_spec({"tenants": tenants, "pools": pools})) == DoorLimits(2048, 300, 0)
    own = {"max_waiting": 9, "prefill_backlog": 50, "decode_backlog": 3}
    assert door_limits(make_spec({"tenants": tenants, "admission": own})) == DoorLimits(9, 50, 3)


def test_one_with_a_key_and_all_others_are_two_tenants() -> None:
    one = {"a": {"api_key_sha256": [ONE]}}
    assert not make_spec({"tenants": one}).tenants_compete
    assert make_spec({"tenants": one, "auth": {"required": False}}).tenants_compete


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tenants": {"a": {}}}, "tenants.a.api_key_sha256 = []: nobody could be this tenant"),
        (
            {"tenants": {"a": {"api_key_sha256": [ONE]}, "b": {"api_key_sha256": [ONE]}}},
            "tenants.b.api_key_sha256 = 'aaaaaaaa…': is a key of a, too",
        ),
        ({"auth": {"required": True}}, "auth.required = True: no tenant has a key"),
        ({"tenants": {"default": {}}, "auth": {"required": True}}, "nobody could come in"),
        ({"tenants": {"a b": {"api_key_sha256": [ONE]}}}, "tenants.a b"),
        ({"tenants": {"a": {"api_key_sha256": [ONE], "weigth": 2}}}, "`tenants.a.weight`"),
        ({"tenants": {"a": {"api_key_sha256": [ONE], "weight": 0}}}, "tenants.a.weight"),
        ({"tenants": {"a": {"api_key_sha256": [ONE], "priority": 10}}}, "tenants.a.priority"),
    ],
)
def test_what_makes_no_sense_is_refused_in_plain_words(
    settings: dict[str, Any], words: str
) -> None:
    assert words in refusal(settings).message


def test_a_key_where_its_hash_should_be_is_not_printed() -> None:
    error = refusal({"tenants": {"a": {"api_key_sha256": ["cd-my-secret-key"]}}})
    assert "cd-my-secret-key" not in error.message
    assert "cd-my-secret-key" not in str(error.metadata)
