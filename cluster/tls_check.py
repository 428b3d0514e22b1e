"""Whether the files that a spec's ``tls`` names can be used, before anything starts.

Does not cover: other nodes, where each process reads them at the same paths when it starts.
"""

from __future__ import annotations

from pathlib import Path

from core.config import ClusterSpec
from core.errors import InvalidField
from core.tls_config import DoorsTlsSpec, TlsSpec
from wire.tls_check import check_door, check_member

_OF_MEMBERS = ("ca", "cert", "key")
_OF_DOORS = ("cert", "key", "client_ca")


def usable_tls(tls: TlsSpec, *, opens_doors: bool) -> TlsSpec:
    """The same with absolute paths: workers have working folders of their own. ``opens_doors``:
    this process's host has the files of the doors.

    Raises ``InvalidField`` with the field of the file that is missing or wrong.
    """
    changes: dict[str, object] = _absolute(tls, _OF_MEMBERS)
    if tls.doors is not None:
        changes["doors"] = tls.doors.model_copy(update=_absolute(tls.doors, _OF_DOORS))
    found = tls.model_copy(update=changes)
    _check_readable(found, _OF_MEMBERS, "tls")
    if opens_doors and found.doors is not None:
        _check_readable(found.doors, _OF_DOORS, "tls.doors")
    if found.files is not None:
        check_member(found.files)
    if opens_doors and found.door_files is not None:
        check_door(found.door_files)
    return found


def refuse_relative_doors(tls: TlsSpec) -> None:
    """For a process whose host has none of these files, and that tells workers, which show them to
    clients that read tokens, where they are. Raises ``InvalidField``."""
    given = {} if tls.doors is None else _given(tls.doors, _OF_DOORS)
    for name, path in given.items():
        if not Path(path).is_absolute():
            fix = (
                "must be an absolute path: with token_streams decode workers open it, on other "
                "hosts than this controller's and in folders of their own"
            )
            raise InvalidField(f"tls.doors.{name}", path, fix, reason="TLS_FILES")


def files_for_commands(spec: ClusterSpec) -> dict[str, str]:
    """What commands on this machine need to speak to the cluster; see ``RunningCluster``."""
    files, door = spec.tls_files, spec.door_files
    told: dict[str, str] = {}
    if files is not None:
        told = {"tls_ca": files.ca, "tls_cert": files.cert, "tls_key": files.key}
        told["tls_name"] = files.name
    if door is not None:
        told |= {"door_cert": door.cert, "door_name": next(iter(check_door(door)), "")}
    return told


def _absolute(spec: TlsSpec | DoorsTlsSpec, names: tuple[str, ...]) -> dict[str, object]:
    return {name: str(Path(path).absolute()) for name, path in _given(spec, names).items()}


def _check_readable(spec: TlsSpec | DoorsTlsSpec, names: tuple[str, ...], field: str) -> None:
    for name, path in _given(spec, names).items():
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            fix = f"can't be read: {error.strerror}; must be a PEM file, at this path on every node"
            raise InvalidField(f"{field}.{name}", path, fix, reason="TLS_FILES") from error


def _given(spec: TlsSpec | DoorsTlsSpec, names: tuple[str, ...]) -> dict[str, str]:
    given = {name: getattr(spec, name) for name in names}
    return {name: path for name, path in given.items() if path is not None}
