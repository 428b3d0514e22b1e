"""The URLs of `store`: what they say, what is refused, and that no password is repeated."""

import pytest

from core.config import make_spec
from core.errors import InvalidField
from core.store_url import RedisPlace, clear_store_warning, redis_place, with_password


def test_memory_is_no_redis() -> None:
    assert redis_place("memory://") is None
    assert make_spec().store == "memory://"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://cache", RedisPlace("cache")),
        ("redis://cache:6380/2", RedisPlace("cache", 6380, database=2)),
        ("redis://u:p%40ss@cache", RedisPlace("cache", username="u", password="p@ss")),
        ("redis://:p@[::1]:7", RedisPlace("::1", 7, password="p")),
        ("rediss://cache?ca=/ca.pem", RedisPlace("cache", tls=True, ca="/ca.pem")),
        ("unix:///run/redis.sock?db=3", RedisPlace(path="/run/redis.sock", database=3)),
        ("redis+unix:///run/redis.sock", RedisPlace(path="/run/redis.sock")),
        ("redis://cache?namespace=blue", RedisPlace("cache", namespace="blue")),
    ],
)
def test_a_url_names_one_redis(url: str, place: RedisPlace) -> None:
    assert redis_place(url) == place


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("cache:6379", "must be memory://"),
        ("http://cache", "must be memory://"),
        ("redis://", "must be memory://"),
        ("unix://", "must be memory://"),
        ("redis://cache:port", "must be memory://"),
        ("redis://cache/first", "the database must be a number"),
        ("redis://cache?ca=/ca.pem", "are for rediss://"),
        ("rediss://cache?cert=/c.pem", "cert and key belong together"),
        ("redis://cache?timeout=1", "timeout is no option of it; there are namespace"),
    ],
)
def test_what_is_no_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidField) as caught:
        make_spec({"store": url})
    assert (caught.value.field, said in caught.value.message) == ("store", True)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("memory://", False),
        ("redis://cache", True),
        ("redis://10.0.0.7:6380/2", True),
        ("redis://[2001:db8::7]", True),
        ("redis://localhost", False),
        ("redis://127.1.2.3", False),
        ("redis://[::1]:7", False),
        ("rediss://cache?ca=/ca.pem", False),
        ("unix:///run/redis.sock", False),
    ],
)
def test_beside_tls_a_store_in_the_clear_is_told_of(url: str, exposed: bool) -> None:
    assert bool(clear_store_warning(url, encrypted=True)) == exposed
    assert clear_store_warning(url, encrypted=False) == ""


def test_what_is_told_of_a_store_in_the_clear_names_the_fix_and_no_password() -> None:
    said = clear_store_warning("redis://user:hunter2@cache/1", encrypted=True)
    assert said.endswith("use rediss://cache:6379/1")
    assert "hunter2" not in said


def test_a_password_is_never_repeated() -> None:
    with pytest.raises(InvalidField) as caught:
        make_spec({"store": "redis://user:hunter2@cache/first"})
    assert "hunter2" not in str(caught.value.metadata) + caught.value.message
    place = redis_place("redis://user:hunter2@cache:6379/1")
    assert str(place) == "redis://cache:6379/1"
    assert "hunter2" not in repr(make_spec({"store": "redis://user:hunter2@cache"}))


def test_a_password_from_elsewhere_completes_the_url() -> None:
    completed = with_password("redis://user@cache:6379/1?namespace=blue", "p@ss/word")
    place = redis_place(completed)
    assert place == RedisPlace(
        "cache", 6379, database=1, username="user", password="p@ss/word", namespace="blue"
    )
    assert with_password("redis://:own@cache", "other") == "redis://:own@cache"
    assert redis_place(with_password("redis://cache", "word")) == RedisPlace(
        "cache", password="word"
    )
    assert redis_place(with_password("unix:///run/r.sock", "word")) == RedisPlace(
        path="/run/r.sock", password="word"
    )
    assert with_password("memory://", "word") == "memory://"
