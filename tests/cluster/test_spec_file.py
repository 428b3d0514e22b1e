"""Config files: read, merged with flags, refused in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest
from certificates import make_authority, make_worker, openssl

from cluster.spec_file import load_spec, read_router_spec
from core.errors import InvalidField


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_without_a_file_there_are_defaults_and_flags() -> None:
    assert load_spec(None, {"pools.decode.replicas": 3}).pools.decode.replicas == 3


def test_a_file_is_read_and_flags_win(tmp_path: Path) -> None:
    path = write(tmp_path, "model: llama\npools:\n  prefill: {replicas: 2}\nkv: {memory: 1GiB}\n")
    spec = load_spec(path, {"pools.prefill.replicas": 0})
    assert (spec.model, spec.kv.memory, spec.pools.prefill.replicas) == ("llama", 2**30, 0)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, "# nothing yet\n")) == load_spec(None)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is not YAML"), ("- 1", "must hold settings"), ("pools: {prefil: {}}", "prefill")],
)
def test_a_bad_file_is_refused_in_plain_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        load_spec(write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match="can't be read"):
        load_spec(tmp_path / "nowhere.yaml")


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ca.pem, worker.pem and worker.key."""
    make_authority(tmp_path)
    make_worker(tmp_path, "worker", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TLS = "tls: {ca: ca.pem, cert: worker.pem, key: worker.key}"


def test_tls_files_are_found_from_wherever_workers_run(certified: Path) -> None:
    tls = load_spec(write(certified, TLS)).tls
    assert tls is not None
    assert (tls.ca, tls.cert) == (str(certified / "ca.pem"), str(certified / "worker.pem"))
    assert tls.key == str(certified / "worker.key")


def test_a_tls_file_that_is_not_there_is_named(certified: Path) -> None:
    (certified / "worker.key").unlink()
    with pytest.raises(InvalidField, match=r"tls.key = .* can't be read: No such file"):
        load_spec(write(certified, TLS))


def test_a_key_with_a_password_is_refused_and_not_asked_for(certified: Path) -> None:
    openssl(
        *["ec", "-in", "worker.key", "-out", "locked.key", "-aes256", "-passout", "pass:secret"]
    )
    with pytest.raises(InvalidField, match=r"tls.cert = .* without a password"):
        load_spec(write(certified, TLS.replace("worker.key", "locked.key")))


def test_a_key_of_another_certificate_is_refused(certified: Path) -> None:
    with pytest.raises(InvalidField, match=r"tls.cert = .* can't be used with tls.key"):
        load_spec(write(certified, TLS.replace("worker.key", "ca.key")))


def test_a_certificate_without_the_members_name_is_refused(certified: Path) -> None:
    with pytest.raises(InvalidField, match=r"tls.cert = .* is for crossdock: it must have others"):
        load_spec(write(certified, TLS.replace("}", ", name: others}")))


DOORS = "tls: {doors: {cert: worker.pem, key: worker.key, client_ca: ca.pem}}"


def test_doors_may_have_tls_without_the_rest(certified: Path) -> None:
    spec = load_spec(write(certified, DOORS))
    assert spec.tls_files is None
    assert spec.door_files is not None
    assert spec.door_files.client_ca == str(certified / "ca.pem")


def test_a_doors_files_are_only_needed_where_it_is_opened(certified: Path) -> None:
    config = write(certified, DOORS.replace("worker.key", "elsewhere.key"))
    with pytest.raises(InvalidField, match=r"tls.doors.key = .* can't be read"):
        load_spec(config)
    elsewhere = load_spec(config, opens_doors=False).door_files
    assert elsewhere is not None
    assert elsewhere.key == str(certified / "elsewhere.key")


def test_workers_elsewhere_are_told_no_path_that_only_holds_here(certified: Path) -> None:
    """A controller's folder means nothing to decode workers that show the doors' certificate."""
    text = DOORS + "\ntoken_streams: {enabled: true}"
    config = write(certified, text)
    assert load_spec(config).door_files is not None
    with pytest.raises(InvalidField, match=r"tls.doors.cert = .* must be an absolute path"):
        load_spec(config, opens_doors=False)
    for name in ("worker.pem", "worker.key", "ca.pem"):
        text = text.replace(name, f"/elsewhere/{name}")
    elsewhere = load_spec(write(certified, text), opens_doors=False).door_files
    assert elsewhere is not None
    assert elsewhere.cert == "/elsewhere/worker.pem"


def test_a_router_of_its_own_looks_at_its_files(certified: Path) -> None:
    (certified / "worker.key").unlink()
    for text in (TLS, DOORS):
        with pytest.raises(InvalidField, match=r"key = .* can't be read"):
            read_router_spec(write(certified, text), None)


# Tenants in a file of their own

KEY = "0" * 64


def test_tenants_of_another_file_stand_in_the_place_of_the_configs(tmp_path: Path) -> None:
    config = write(tmp_path, "model: llama\ntenants: {default: {weight: 2}}\n")
    secret = tmp_path / "tenants.yaml"
    secret.write_text(f"tenants: {{a: {{api_key_sha256: ['{KEY}']}}}}\nauth: {{required: true}}\n")
    spec = read_router_spec(config, secret)
    assert (spec.model, list(spec.tenants), spec.needs_key) == ("llama", ["a"], True)
    assert list(read_router_spec(config, None).tenants) == ["default"]


@pytest.mark.parametrize("text", ["model: other", "tenants: {a: {}}", "tenants: [", "- 1"])
def test_such_a_file_has_nothing_else_and_says_what_can_be(tmp_path: Path, text: str) -> None:
    secret = tmp_path / "tenants.yaml"
    secret.write_text(text)
    with pytest.raises(InvalidField):
        read_router_spec(write(tmp_path, "model: llama\n"), secret)
