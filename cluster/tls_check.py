"""Whether the files that a spec's ``tls`` names can be used, before anything starts.

Does not cover: other nodes, where each worker reads them at the same paths when it starts.
"""

from __future__ import annotations

from pathlib import Path

from core.config import TlsSpec
from core.errors import InvalidField
from core.tls_files import TlsFiles
from kv_transfer.tls import server_context


def usable_tls(tls: TlsSpec) -> TlsSpec:
    """The same with absolute paths: workers have working folders of their own.

    Raises ``InvalidField`` with the field of the file that is missing or wrong.
    """
    absolute = {name: str(Path(path).absolute()) for name, path in tls.model_dump().items()}
    for name, path in absolute.items():
        _check_readable(f"tls.{name}", path)
    server_context(TlsFiles(**absolute))
    return TlsSpec(**absolute)


def _check_readable(field: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        fix = f"can't be read: {error.strerror}; must be a PEM file, at this path on every node"
        raise InvalidField(field, path, fix, reason="TLS_FILES") from error
