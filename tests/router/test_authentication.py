"""API keys: whose they are, and what is refused."""

from __future__ import annotations

import re

import pytest

from core.api_keys import api_key_sha256, new_api_key
from core.errors import Unauthenticated
from router.intake.authentication import Authentication

# Always the same: test runners on several cores compare the names of tests.
KEY = "cd-" + "k3Y-" * 10 + "end"
OWNERS = {api_key_sha256(KEY): "alice"}


def refusal(authentication: Authentication, header: str | None) -> str:
    with pytest.raises(Unauthenticated) as caught:
        authentication.tenant(header)
    assert caught.value.status.http_status == 401
    assert KEY not in caught.value.message
    return caught.value.reason


def test_keys_are_long_and_never_the_same() -> None:
    assert re.fullmatch(r"cd-[A-Za-z0-9_-]{43}", new_api_key())
    assert new_api_key() != new_api_key()


def test_a_key_says_who_comes() -> None:
    authentication = Authentication(OWNERS, required=True)
    for header in (f"Bearer {KEY}", f"bearer {KEY}", f"  Bearer   {KEY} "):
        assert authentication.tenant(header) == "alice"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "API_KEY_MISSING"),
        (f"Bearer {KEY[:-1]}", "WRONG_API_KEY"),
        (f"Bearer {KEY}x", "WRONG_API_KEY"),
        (f"Bearer {api_key_sha256(KEY)}", "WRONG_API_KEY"),
        (KEY, "MALFORMED_API_KEY"),
        (f"Basic {KEY}", "MALFORMED_API_KEY"),
        ("Bearer", "MALFORMED_API_KEY"),
        ("", "MALFORMED_API_KEY"),
        (f"Bearer {'x' * 10_000}", "MALFORMED_API_KEY"),
        ("Bearer \ud800", "WRONG_API_KEY"),
    ],
)
def test_anything_else_is_refused(header: str | None, reason: str) -> None:
    assert refusal(Authentication(OWNERS, required=True), header) == reason


def test_where_a_key_is_needed_and_nobody_has_one_nobody_comes_in() -> None:
    authentication = Authentication({}, required=True)
    assert refusal(authentication, None) == "API_KEY_MISSING"
    assert refusal(authentication, f"Bearer {KEY}") == "WRONG_API_KEY"


def test_where_no_key_is_needed_a_wrong_one_is_refused_all_the_same() -> None:
    authentication = Authentication(OWNERS, required=False)
    assert authentication.tenant(None) == "default"
    assert refusal(authentication, "Bearer none") == "WRONG_API_KEY"


def test_where_nobody_has_a_key_any_will_do() -> None:
    """OpenAI's clients always send one."""
    assert Authentication().tenant("Bearer none") == "default"
    assert Authentication().tenant(None) == "default"
