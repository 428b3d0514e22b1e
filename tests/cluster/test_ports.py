"""Ports that can't be used are found before anything starts."""

from __future__ import annotations

import socket

import pytest

from cluster.ports import check_ports
from core.errors import InvalidField

HOST = "127.0.0.1"


def test_a_taken_port_is_named_with_its_flag() -> None:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(InvalidField) as caught:
            check_ports(HOST, {"--http-port": port, "--grpc-port": 0})
    assert f"--http-port = {port}: can't be used on {HOST}" in caught.value.message
    assert caught.value.reason == "PORT_TAKEN"


def test_a_port_is_free_again_when_its_server_is_gone() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((HOST, 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection((HOST, port))
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    check_ports(HOST, {"--http-port": port})


def test_any_port_is_always_fine() -> None:
    check_ports(HOST, {"--grpc-port": 0, "--http-port": 0})


def test_one_port_for_two_doors_is_refused() -> None:
    with pytest.raises(InvalidField, match="--grpc-port = 40123: is wanted by --http-port"):
        check_ports(HOST, {"--grpc-port": 40123, "--http-port": 40123})


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(InvalidField, match="from 1 to 65535"):
        check_ports(HOST, {"--grpc-port": port})


@pytest.mark.parametrize("host", ["192.0.2.1", "nosuch.invalid", "1.2.3.4.5"])
def test_a_host_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(InvalidField, match=r"--host = .* no address of this machine"):
        check_ports(host, {"--http-port": 0})
