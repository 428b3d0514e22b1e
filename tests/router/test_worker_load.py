"""A worker's load is its last report and what was sent since."""

from core.outputs import Load
from core.request import AttemptKey, RequestKey
from router.routing.worker_load import SETTLE_S, LoadTable

ONE, TWO = (AttemptKey(RequestKey("default", name), 1) for name in ("one", "two"))


def one_worker() -> LoadTable:
    loads = LoadTable()
    loads.add(0, num_blocks=50)
    return loads


def test_a_prompt_counts_until_a_report_that_must_include_it() -> None:
    loads = one_worker()
    loads.sent_prefill(0, ONE, 300, now=1.0)
    assert loads.current(0).pending_prefill_tokens == 300
    loads.reported(0, Load(0, 0, 50, 10), now=1.0 + SETTLE_S / 2)
    assert loads.current(0).pending_prefill_tokens == 310
    loads.reported(0, Load(0, 1, 40, 250), now=1.0 + SETTLE_S * 2)
    assert loads.current(0) == Load(0, 1, 40, 250)


def test_an_open_counts_until_its_first_output() -> None:
    loads = one_worker()
    loads.sent_open(0, ONE, 20, sequences=1)
    loads.sent_open(0, TWO, 40, sequences=4)
    loads.reported(0, Load(3, 0, 50, 0), now=100.0)
    assert loads.current(0) == Load(3, 5, 0, 0)
    loads.settled(0, TWO)
    assert loads.current(0) == Load(3, 1, 30, 0)
    loads.settled(0, ONE)
    loads.settled(0, ONE)
    assert loads.current(0) == Load(3, 0, 50, 0)


def test_a_prompt_that_is_computed_where_it_is_answered_is_not_counted_twice() -> None:
    """Only its blocks are, until its first output: they are taken while it is computed."""
    loads = one_worker()
    loads.sent_local(0, ONE, 100, 7, sequences=1, now=1.0)
    assert loads.current(0) == Load(0, 1, 43, 100)
    loads.reported(0, Load(0, 1, 50, 100), now=1.0 + SETTLE_S)
    assert loads.current(0) == Load(0, 1, 43, 100)
    loads.settled(0, ONE)
    assert loads.current(0) == Load(0, 1, 50, 100)


def test_columns_are_what_each_worker_is_believed_to_do() -> None:
    loads = LoadTable()
    loads.add(2, num_blocks=50)
    loads.add(0, num_blocks=30)
    loads.reported(2, Load(3, 1, 40, 70), now=1.0)
    loads.sent_local(2, ONE, 5, 45, sequences=2, now=0.0)
    loads.sent_prefill(0, TWO, 300, now=1.0)
    assert len(loads) == 3
    assert loads.sequences.tolist() == [0, 0, 6]
    assert loads.free_blocks.tolist() == [30, 2**31, 0]
    assert loads.pending_prefill_tokens.tolist() == [300, 0, 75]
    loads.remove(2)
    assert loads.sequences.tolist() == [0, 0, 0]


def test_a_prompt_that_is_sent_again_counts_from_then_on() -> None:
    loads = one_worker()
    loads.sent_prefill(0, ONE, 300, now=1.0)
    loads.sent_prefill(0, ONE, 200, now=2.0)
    loads.reported(0, Load(0, 0, 50, 0), now=1.5)
    assert loads.current(0).pending_prefill_tokens == 200
    loads.reported(0, Load(0, 0, 50, 0), now=2.5)
    assert loads.current(0).pending_prefill_tokens == 0


def test_a_late_prompt_is_known_until_its_first_output_and_never_more_than_waits() -> None:
    loads = one_worker()
    loads.sent_prefill(0, ONE, 9000, now=1.0)
    loads.sent_late(0, ONE, 9000)
    loads.sent_prefill(0, TWO, 100, now=1.0)
    assert (loads.pending_prefill_tokens[0], loads.late_tokens[0]) == (9100, 9000)
    loads.reported(0, Load(0, 0, 50, 9100), now=2.0)
    assert (loads.pending_prefill_tokens[0], loads.late_tokens[0]) == (9100, 9000)
    loads.reported(0, Load(0, 0, 50, 2000), now=3.0)
    assert loads.late_tokens[0] == 2000
    loads.settled(0, ONE)
    assert (loads.pending_prefill_tokens[0], loads.late_tokens[0]) == (2000, 0)


def test_context_is_told_in_grains_of_the_pool() -> None:
    loads = LoadTable()
    loads.add(0, num_blocks=160)
    for free, known in ((160, 0), (151, 0), (150, 10), (131, 20), (0, 160)):
        loads.reported(0, Load(1, 0, free, 0), now=1.0)
        assert loads.context_blocks[0] == known
