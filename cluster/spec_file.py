"""Reads a cluster's config file (YAML) into a checked ``ClusterSpec``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.tls_check import usable_tls
from core.config import ClusterSpec, make_spec
from core.errors import InvalidField
from core.yaml_text import parse_yaml


def load_spec(path: Path | None, overrides: Mapping[str, object] | None = None) -> ClusterSpec:
    """The spec in the file at ``path`` (None: all defaults), with ``overrides`` by dotted path.

    Raises ``InvalidField`` if the file can't be read, is not YAML, or says what can't be served,
    or if a file that it names for ``tls`` can't be used.
    """
    spec = read_spec(path, overrides)
    if spec.tls is None:
        return spec
    return spec.model_copy(update={"tls": usable_tls(spec.tls)})


def read_spec(path: Path | None, overrides: Mapping[str, object] | None = None) -> ClusterSpec:
    """As ``load_spec``, for a process that needs none of the files of ``tls``."""
    return make_spec(_read(path) if path else None, overrides)


def _read(path: Path) -> Mapping[str, object]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InvalidField("config", str(path), "is no text file") from None
    except OSError as error:
        raise InvalidField("config", str(path), f"can't be read: {error}") from None
    except ValueError as error:
        raise InvalidField("config", str(path), str(error)) from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise InvalidField("config", str(path), "must hold settings such as `model: FOLDER`")
    return {str(key): value for key, value in content.items()}
