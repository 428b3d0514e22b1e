"""Reads a cluster's config file (YAML) into a checked ``ClusterSpec``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.tls_check import refuse_relative_doors, usable_tls
from core.config import ClusterSpec, make_spec
from core.errors import InvalidField
from core.yaml_text import parse_yaml

# What only routers need to know.
_OF_TENANTS = ("tenants", "auth")


def load_spec(
    path: Path | None,
    overrides: Mapping[str, object] | None = None,
    *,
    opens_doors: bool = True,
) -> ClusterSpec:
    """The spec in the file at ``path`` (None: all defaults), with ``overrides`` by dotted path.

    Raises ``InvalidField`` if the file can't be read, is not YAML, or says what can't be served,
    or if a file that it names for ``tls`` can't be used; those of its doors are looked at only by
    who ``opens_doors``, on a host that has them.
    """
    return _with_usable_files(read_spec(path, overrides), opens_doors)


def read_spec(path: Path | None, overrides: Mapping[str, object] | None = None) -> ClusterSpec:
    """As ``load_spec``, for a process that needs none of the files of ``tls``."""
    return make_spec(_read(path) if path else None, overrides)


def read_router_spec(path: Path, tenants: Path | None) -> ClusterSpec:
    """As ``load_spec``. ``tenants``: a file whose sections `tenants` and `auth`, it may have no
    others, stand in the place of those in ``path``; such as a mounted Secret."""
    if tenants is None:
        return load_spec(path)
    instead = _read(tenants, "--tenants")
    for name in instead:
        if name not in _OF_TENANTS:
            fix = f"may be no section of {tenants}: it has {' and '.join(_OF_TENANTS)} only"
            raise InvalidField("--tenants", name, fix)
    return _with_usable_files(make_spec({**_read(path), **instead}), opens_doors=True)


def _with_usable_files(spec: ClusterSpec, opens_doors: bool) -> ClusterSpec:
    if spec.tls is None:
        return spec
    if not opens_doors and spec.token_streams.enabled:
        refuse_relative_doors(spec.tls)
    return spec.model_copy(update={"tls": usable_tls(spec.tls, opens_doors=opens_doors)})


def _read(path: Path, field: str = "config") -> Mapping[str, object]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InvalidField(field, str(path), "is no text file") from None
    except OSError as error:
        raise InvalidField(field, str(path), f"can't be read: {error}") from None
    except ValueError as error:
        raise InvalidField(field, str(path), str(error)) from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise InvalidField(field, str(path), "must hold settings such as `model: FOLDER`")
    return {str(key): value for key, value in content.items()}
