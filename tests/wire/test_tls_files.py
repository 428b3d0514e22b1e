"""Certificates of a cluster: which are taken, which are refused in which words, renewal."""

from __future__ import annotations

import os
import shutil
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import make_authority, make_expired, make_worker

from core.errors import InvalidField
from core.tls_files import ServerFiles, TlsFiles
from wire.certificate_expiry import CertificateExpiry
from wire.renewal import Renewal
from wire.tls_check import check_door, check_member
from wire.tls_contexts import client_context, dns_names, new_client_context, server_context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    make_authority(made)
    return made


@pytest.fixture(scope="module")
def member(folder: Path) -> TlsFiles:
    return make_worker(folder, "worker", folder)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    made = tmp_path_factory.mktemp("elsewhere")
    make_authority(made)
    return make_worker(made, "stranger", made)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[str, ...]:
    """The DNS names that the client is shown."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for end in (one, other):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dns_names(one.getpeercert())


def test_a_member_is_one_by_authority_name_and_date(member: TlsFiles) -> None:
    check_member(member)
    names = shake_hands(client_context(member), server_context(member.as_server), member.name)
    assert names == ("crossdock",)


def test_a_certificate_of_another_authority_is_no_members(
    member: TlsFiles, stranger: TlsFiles
) -> None:
    mixed = TlsFiles(member.ca, stranger.cert, stranger.key)
    with pytest.raises(
        InvalidField, match=r"tls.cert = .* tls.ca = .* signature|self-signed|issuer"
    ):
        check_member(mixed)


def test_an_expired_certificate_is_refused_by_that_word(folder: Path) -> None:
    expired = make_expired(folder, "expired", folder)
    with pytest.raises(InvalidField, match="certificate has expired"):
        check_member(expired)


def test_a_certificate_without_the_members_name_is_no_members(folder: Path) -> None:
    operator = make_worker(folder, "operator", folder, "crossdock-operator")
    with pytest.raises(InvalidField, match="is for crossdock-operator: it must have crossdock"):
        check_member(operator)
    check_member(replace(operator, name="crossdock-operator"))


def test_clients_refuse_a_server_of_another_name(folder: Path, member: TlsFiles) -> None:
    operator = make_worker(folder, "operator2", folder, "crossdock-operator")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(client_context(member), server_context(operator.as_server), member.name)


def test_servers_refuse_who_shows_no_certificate(member: TlsFiles) -> None:
    nobody = ssl.create_default_context(cafile=member.ca)
    with pytest.raises(
        ssl.SSLError, match=r"peer did not return a certificate|certificate required"
    ):
        shake_hands(nobody, server_context(member.as_server), member.name)
    with_open_paths = server_context(member.as_server, open_paths=True)
    assert shake_hands(nobody, with_open_paths, member.name) == ("crossdock",)


def test_a_door_may_be_signed_by_anybody(stranger: TlsFiles) -> None:
    door = ServerFiles(stranger.cert, stranger.key, field="tls.doors")
    assert check_door(door) == ("crossdock",)


def test_a_doors_file_is_named_by_its_own_setting(member: TlsFiles, folder: Path) -> None:
    with pytest.raises(InvalidField, match=r"tls.doors.cert = .* can't be used with tls.doors.key"):
        check_door(ServerFiles(member.cert, f"{folder}/ca.key", field="tls.doors"))
    with pytest.raises(InvalidField, match=r"tls.doors.client_ca"):
        check_door(ServerFiles(member.cert, member.key, member.key, "tls.doors"))


def test_when_certificates_run_out_is_a_metric(member: TlsFiles, stranger: TlsFiles) -> None:
    shown = {"member": member.as_server, "door": ServerFiles(stranger.cert, stranger.key)}
    [metric] = CertificateExpiry({**shown, "none": None}).collect()
    told = {sample.labels["certificate"]: sample.value for sample in metric.samples}
    assert told.keys() == {"member", "door"}
    # They were made for two days.
    assert all(86_400 < value - time.time() <= 2 * 86_400 for value in told.values())


# Renewal


@pytest.fixture
def copied(tmp_path: Path, member: TlsFiles) -> TlsFiles:
    """Files that may be replaced."""
    for path in (member.ca, member.cert, member.key):
        shutil.copy(path, tmp_path)
    names = (Path(path).name for path in (member.ca, member.cert, member.key))
    return TlsFiles(*(str(tmp_path / name) for name in names))


def put(source: TlsFiles, target: TlsFiles) -> None:
    for old, new in ((source.ca, target.ca), (source.cert, target.cert), (source.key, target.key)):
        shutil.copy(old, f"{new}.new")
        os.replace(f"{new}.new", new)


def test_servers_show_the_renewed_certificate(
    copied: TlsFiles, folder: Path, member: TlsFiles
) -> None:
    server = server_context(copied.as_server)
    renewed = make_worker(folder, "renewed", folder, "renewed.crossdock")
    put(renewed, copied)
    client = new_client_context(replace(member, name="renewed.crossdock"))
    assert shake_hands(client, server, "renewed.crossdock") == ("renewed.crossdock",)


def test_servers_trust_the_renewed_authority(copied: TlsFiles, stranger: TlsFiles) -> None:
    server = server_context(copied.as_server)
    with pytest.raises(ssl.SSLError):
        shake_hands(new_client_context(stranger), server, "crossdock")
    put(stranger, copied)
    assert shake_hands(new_client_context(stranger), server, "crossdock") == ("crossdock",)


def test_clients_show_the_renewed_certificate(copied: TlsFiles, stranger: TlsFiles) -> None:
    first = client_context(copied)
    assert client_context(copied) is first
    put(stranger, copied)
    theirs = server_context(stranger.as_server)
    assert shake_hands(client_context(copied), theirs, "crossdock") == ("crossdock",)


def test_files_that_do_not_work_leave_those_from_before(
    copied: TlsFiles, member: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the certificate is there and its key not yet."""
    server = server_context(copied.as_server)
    Path(copied.key).unlink()
    assert shake_hands(client_context(member), server, "crossdock") == ("crossdock",)
    assert "what was read before stays in use: tls.cert" in caplog.text
    put(member, copied)
    assert shake_hands(client_context(member), server, "crossdock") == ("crossdock",)


@pytest.fixture
def counted(tmp_path: Path) -> tuple[Path, Callable[[], int]]:
    """A file, and a load that counts itself."""
    path = tmp_path / "file"
    path.write_text("a")
    loads: list[str] = []

    def load() -> int:
        loads.append(path.read_text())
        return len(loads)

    return path, load


def test_what_did_not_change_is_not_read_again(counted: tuple[Path, Callable[[], int]]) -> None:
    path, load = counted
    renewal = Renewal([str(path)], load)
    assert (renewal.newest(), renewal.newest()) == (1, 1)
    path.write_text("longer")
    assert (renewal.newest(), renewal.newest()) == (2, 2)


def test_a_link_that_turns_is_a_change(
    counted: tuple[Path, Callable[[], int]], tmp_path: Path
) -> None:
    """Kubernetes renews a mounted Secret so."""
    path, load = counted
    other = tmp_path / "other"
    shutil.copy2(path, other)
    link = tmp_path / "link"
    link.symlink_to(path)
    renewal = Renewal([str(link)], load)
    link.unlink()
    link.symlink_to(other)
    assert renewal.newest() == 2
