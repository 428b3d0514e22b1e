"""Who calls: the tenant of an API key, or who may see metrics.

Pure. It comes as ``Authorization: Bearer KEY``, in a header over HTTP, in metadata over gRPC.
Does not cover: what a tenant may ask for (``router.admission.admission``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from core.api_keys import api_key_sha256, bearer_token
from core.errors import Unauthenticated
from core.tenants import DEFAULT_TENANT

_MAX_KEY_LENGTH = 512


class Authentication:
    """``owners``: names of tenants by the SHA-256 of their keys. ``required``: who has no key is
    refused, and not the default tenant."""

    def __init__(self, owners: Mapping[str, str] | None = None, required: bool = False) -> None:
        # Looked up by hash: how long that takes tells nothing about any other key.
        self._owners = dict(owners or {})
        self._required = required

    def tenant(self, authorization: str | None) -> str:
        """Raises Unauthenticated. Where no tenant has a key and none is required, everything is
        the default tenant's, as clients send some key even where none is asked for."""
        if not self._owners and not self._required:
            return DEFAULT_TENANT
        if authorization is None:
            return self._without_key()
        key = bearer_token(authorization.strip())
        if not key or len(key) > _MAX_KEY_LENGTH:
            raise _refused("the Authorization header must be: Bearer KEY", "MALFORMED_API_KEY")
        owner = self._owners.get(api_key_sha256(key))
        if owner is None:
            raise _refused("this API key is not known here", "WRONG_API_KEY")
        return owner

    def _without_key(self) -> str:
        if self._required:
            raise _refused(
                "an API key is needed; send it as Authorization: Bearer KEY", "API_KEY_MISSING"
            )
        return DEFAULT_TENANT


def require_token(authorization: str | None, hashes: Collection[str]) -> None:
    """Of who looks at metrics; ``hashes``: SHA-256 of those that may, none: everybody. Raises
    Unauthenticated."""
    if not hashes:
        return
    token = bearer_token((authorization or "").strip())
    if token is None:
        raise _refused(
            "metrics need a token here; send it as Authorization: Bearer TOKEN", "TOKEN_MISSING"
        )
    if api_key_sha256(token) not in hashes:
        raise _refused("this token is not known here", "WRONG_TOKEN")


def _refused(message: str, reason: str) -> Unauthenticated:
    return Unauthenticated(message, reason=reason, metadata={"field": "authorization"})
