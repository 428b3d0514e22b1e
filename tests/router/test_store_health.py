"""When the store is asked, and when nobody waits for it any more."""

from router.replication.store_health import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    STEADY_S,
    StoreHealth,
)


def test_nobody_waits_before_the_first_probe_is_answered() -> None:
    health = StoreHealth()
    assert not health.is_shared
    assert health.answered(0.0)
    assert (health.is_shared, health.why) == (True, "")


def test_the_first_failure_ends_sharing_and_one_answer_begins_it_again() -> None:
    health = StoreHealth()
    health.answered(0.0)
    assert health.failed("no answer", 1.0)
    assert (health.is_shared, health.why) == (False, "no answer")
    assert not health.failed("refused", 1.0), "that is no news"
    assert health.why == "refused"
    assert health.answered(2.0)
    assert not health.answered(2.0), "that is no news"


def pauses(health: StoreHealth, count: int) -> list[float]:
    return [health.next_pause_s() for _ in range(count)]


def test_probes_get_rare() -> None:
    health = StoreHealth()
    assert pauses(health, 3) == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses(health, 8)[-1] == LONGEST_PAUSE_S


def test_who_fails_again_soon_is_probed_as_rarely_as_before() -> None:
    health = StoreHealth()
    pauses(health, 8)
    health.answered(100.0)
    health.failed("slow", 100.0 + STEADY_S / 2)
    assert health.next_pause_s() == LONGEST_PAUSE_S
    health.answered(200.0)
    health.failed("gone", 200.0 + STEADY_S)
    assert health.next_pause_s() == FIRST_PAUSE_S
