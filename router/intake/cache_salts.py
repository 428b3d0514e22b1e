"""The salts of block hashes: made here, from the cluster's secret, the model and the tenant.

Clients neither choose nor see them, so that nobody finds another tenant's blocks, or learns by the
time of an answer what is cached. Routers that follow the same registry share its secret, and with
it what they know of the workers' caches; before its first list a secret of this router's own holds.
"""

from __future__ import annotations

import secrets

from core.block_hash import make_salt

SECRET_BYTES = 32


class CacheSalts:
    """``model``: what tells this model from others."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._salts: dict[str, int] = {}

    def use(self, secret: bytes) -> None:
        """From now on; requests that are under way keep their salt."""
        if secret != self._secret:
            self._secret = secret
            self._salts.clear()

    def of(self, tenant: str) -> int:
        """64 bits."""
        if tenant not in self._salts:
            self._salts[tenant] = make_salt(self._secret, self._model, tenant)
        return self._salts[tenant]
