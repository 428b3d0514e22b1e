"""Says before anything is started that a port is taken."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from core.errors import InvalidField


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """``ports``: flag → port, 0 for any. Raises ``InvalidField`` if one can't be bound."""
    _check_host(host)
    fixed = {flag: port for flag, port in ports.items() if port != 0}
    for flag, port in fixed.items():
        if not 0 < port < 65536:
            raise InvalidField(flag, port, "a port is a number from 1 to 65535, or 0 for any")
        twin = next((other for other, p in fixed.items() if p == port and other != flag), None)
        if twin:
            raise InvalidField(flag, port, f"is wanted by {twin} as well; choose another")
        _check_free(host, flag, port)


def _check_host(host: str) -> None:
    try:
        with socket.socket(_family(host)) as probe:
            probe.bind((host, 0))
    except OSError as error:
        fix = f"is no address of this machine ({error.strerror}); 127.0.0.1 is the safe one"
        raise InvalidField("--host", host, fix) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _check_free(host: str, flag: str, port: int) -> None:
    with socket.socket(_family(host)) as probe:
        # As servers do: a port is not taken by connections that linger after their server's end.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fix = f"can't be used on {host} ({error.strerror}): stop what listens there, or choose"
            raise InvalidField(flag, port, f"{fix} another port", reason="PORT_TAKEN") from None
