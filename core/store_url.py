"""Where routers share what they know: the URLs of `store`, checked and shown without passwords.

Covers: `memory://`, and Redis over TCP, TLS or a Unix socket. Does not cover: connections
(``router.replication.redis_store``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from urllib.parse import parse_qs, quote, unquote, urlsplit

MEMORY = "memory://"
DEFAULT_NAMESPACE = "crossdock"
DEFAULT_PORT = 6379
# What it takes the password from where the URL has none, such as a Secret's.
PASSWORD_VARIABLE = "CROSSDOCK_STORE_PASSWORD"

_TCP = ("redis", "rediss")
_SOCKET = ("unix", "redis+unix")
_FILES = ("ca", "cert", "key")
_FORMS = "memory://, redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH"


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """A Redis: at ``host`` and ``port``, or at the Unix socket ``path``. ``tls``: over TLS, with
    the PEM files ``ca``, ``cert`` and ``key`` where they are not "". ``namespace``: what the names
    of all keys begin with."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    namespace: str = DEFAULT_NAMESPACE

    @property
    def in_clear(self) -> bool:
        """What is said to it can be read on its way over a network."""
        return not (self.path or self.tls or _is_loopback(self.host))

    def __str__(self) -> str:
        """For people: without user and password."""
        if self.path:
            return f"unix://{self.path}"
        return f"redis{'s' * self.tls}://{self.host}:{self.port}/{self.database}"


def redis_place(url: str) -> RedisPlace | None:
    """None for ``memory://``. Raises ``ValueError`` in plain words, which never repeat the URL: it
    may hold a password."""
    if url == MEMORY:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise ValueError(f"must be {_FORMS}") from None
    if parts.scheme not in (*_TCP, *_SOCKET):
        raise ValueError(f"must be {_FORMS}")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    is_socket = parts.scheme in _SOCKET
    if not (parts.path if is_socket else parts.hostname):
        raise ValueError(f"must be {_FORMS}")
    database = options.pop("db", "") if is_socket else parts.path.strip("/")
    place = RedisPlace(
        host="" if is_socket else parts.hostname or "",
        port=port,
        path=unquote(parts.path) if is_socket else "",
        database=_database(database),
        username=_unquoted(parts.username),
        password=_unquoted(parts.password),
        tls=parts.scheme == "rediss",
        namespace=options.pop("namespace", DEFAULT_NAMESPACE),
        **_files(options, parts.scheme == "rediss"),
    )
    if options:
        raise ValueError(f"{sorted(options)[0]} is no option of it; there are {_options(place)}")
    return place


def with_password(url: str, password: str) -> str:
    """The same with a password, if it has none. Raises as ``redis_place``."""
    place = redis_place(url)
    if place is None or place.password is not None or not password:
        return url
    scheme, rest = url.split("://", 1)
    user, at, address = rest.rpartition("@")
    name = user if at else ""
    return f"{scheme}://{name.rstrip(':')}:{quote(password, safe='')}@{address}"


def clear_store_warning(store: str, *, encrypted: bool) -> str:
    """What people should know of a store in the clear; "" if nothing. ``encrypted``: the cluster's
    processes speak to each other by TLS, so nothing should be read on its way."""
    place = redis_place(store)
    if place is None or not place.in_clear or not encrypted:
        return ""
    return (
        f"the cluster has tls, but what goes to its store {place} can be read and changed on its "
        "way, its password, the secret of the block hashes and names of tenants among it; use "
        f"{replace(place, tls=True)}"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _files(options: dict[str, str], tls: bool) -> dict[str, str]:
    files = {name: options.pop(name) for name in _FILES if name in options}
    if files and not tls:
        raise ValueError("ca, cert and key are for rediss://, which speaks TLS")
    if ("cert" in files) != ("key" in files):
        raise ValueError("cert and key belong together")
    return files


def _options(place: RedisPlace) -> str:
    of_kind = ["db"] if place.path else list(_FILES) if place.tls else []
    return ", ".join(["namespace", *of_kind])


def _database(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 4:
        raise ValueError("the database must be a number, such as 0 in redis://HOST:PORT/0")
    return int(text)


def _unquoted(text: str | None) -> str | None:
    return unquote(text) if text else None
