"""API keys and tokens: how they come, and what the config knows of them.

Only their SHA-256 is ever kept. A plain hash is enough, and quick enough for every request, because
a key is 256 random bits: nobody can try them out, as one can with passwords.
"""

from __future__ import annotations

import hashlib
import secrets

_PREFIX = "cd-"
_SCHEME = "bearer"


def new_api_key() -> str:
    """43 characters of the URL-safe base64 alphabet after a prefix by which scanners know it."""
    return _PREFIX + secrets.token_urlsafe(32)


def api_key_sha256(key: str) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def bearer_token(authorization: str) -> str | None:
    """What comes in an Authorization header as ``Bearer KEY``, maybe ""; None if it has another
    form."""
    scheme, space, token = authorization.partition(" ")
    return token.strip() if space and scheme.lower() == _SCHEME else None
