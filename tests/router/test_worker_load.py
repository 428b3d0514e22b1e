"""A worker's load is its last report and what was sent since."""

from core.outputs import Load
from core.request import AttemptKey, RequestKey
from router.worker_load import SETTLE_S, LoadLedger

ONE, TWO = (AttemptKey(RequestKey("default", name), 1) for name in ("one", "two"))


def test_a_prompt_counts_until_a_report_that_must_include_it() -> None:
    ledger = LoadLedger(num_blocks=50)
    ledger.sent_prefill(ONE, 300, now=1.0)
    assert ledger.current().pending_prefill_tokens == 300
    ledger.reported(Load(0, 0, 50, 10), now=1.0 + SETTLE_S / 2)
    assert ledger.current().pending_prefill_tokens == 310
    ledger.reported(Load(0, 1, 40, 250), now=1.0 + SETTLE_S * 2)
    assert ledger.current() == Load(0, 1, 40, 250)


def test_an_open_counts_until_its_first_output() -> None:
    ledger = LoadLedger(num_blocks=50)
    ledger.sent_open(ONE, 0, 20, sequences=1)
    ledger.sent_open(TWO, 100, 40, sequences=4)
    ledger.reported(Load(3, 0, 50, 0), now=100.0)
    assert ledger.current() == Load(3, 5, 0, 100)
    ledger.settled(TWO)
    assert ledger.current() == Load(3, 1, 30, 0)
    ledger.settled(ONE)
    ledger.settled(ONE)
    assert ledger.current() == Load(3, 0, 50, 0)
