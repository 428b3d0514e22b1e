"""When the store is asked, and when nobody waits for it any more."""

from router.replication.store_health import FIRST_PAUSE_S, LONGEST_PAUSE_S, StoreHealth


def test_nobody_waits_before_the_first_probe_is_answered() -> None:
    health = StoreHealth()
    assert not health.is_shared
    assert health.answered()
    assert health.is_shared
    assert not health.why


def test_the_first_failure_ends_sharing_and_one_answer_begins_it_again() -> None:
    health = StoreHealth()
    health.answered()
    assert health.failed("no answer")
    assert not health.is_shared
    assert health.why == "no answer"
    assert not health.failed("refused"), "that is no news"
    assert health.why == "refused"
    assert health.answered()
    assert not health.answered(), "that is no news"


def test_probes_get_rare_and_after_an_answer_frequent() -> None:
    health = StoreHealth()
    pauses = [health.next_pause_s() for _ in range(8)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    health.answered()
    assert health.next_pause_s() == FIRST_PAUSE_S
