"""What routers have under way, told by news that may be lost, late or doubled."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Incompatible
from core.request import RequestKey
from router.admission.tenant_sums import Charged, Paid
from router.placement import WorkerId
from router.replication.router_news import AskedRelay, RouterNews, news_from_text, news_to_text
from router.replication.shared_load import BEAT_S, SILENT_AFTER_S, Heard, SharedLoad
from router.routing.worker_load import NOTHING_SENT, InFlight

W0, W1 = WorkerId("decode-0", 7), WorkerId("decode-1", 2**63)
SOME = InFlight(100, 7, 1, 0)
ALICE = (0, "alice")
PAID = {ALICE: Paid(12.5, 3.0)}
CHARGED = {"alice": Charged(2, 70)}


def test_news_are_the_same_at_the_other_end() -> None:
    news = RouterNews("router-a", True, {W0: SOME, W1: NOTHING_SENT}, PAID, CHARGED)
    assert news_from_text(news_to_text(news)) == news
    aborting = RouterNews("router-a", aborts=(RequestKey("tenant", "request"),))
    assert news_from_text(news_to_text(aborting)) == aborting
    asked = AskedRelay(RequestKey("tenant", "request"), 2**31, 7)
    relaying = RouterNews("router-a", relays=(asked,))
    assert news_from_text(news_to_text(relaying)) == relaying
    leaving = RouterNews("router-a", leaves=True)
    assert news_from_text(news_to_text(leaving)) == leaving


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'{"router":"a","workers":[["w",1]]}',
        b'{"router":"a","workers":[["w",1,-1,0,0,0]]}',
        b'{"router":"a","workers":[["w","x",1,0,0,0]]}',
        b'{"router":"a","workers":7}',
        b'{"router":"a","aborts":[["tenant"]]}',
        b'{"router":"a","relays":[["tenant","request",1]]}',
        b'{"router":"a","relays":[["tenant","request",1,-1]]}',
        b'{"router":"a","paid":[[0,"alice",NaN]]}',
        b'{"router":"a","paid":[[0,"alice",-1]]}',
        b'{"router":"a","paid":[[0,"alice",1e300]]}',
        b'{"router":"a","paid":[[0,"alice",1,-1]]}',
        b'{"router":"a","charged":[["alice",1]]}',
        b'{"router":"a","charged":[["alice",1,-1]]}',
    ],
)
def test_nonsense_is_refused(text: bytes) -> None:
    with pytest.raises(Incompatible):
        news_from_text(text)


def test_only_what_changes_is_told_and_all_of_it_once_a_beat() -> None:
    load = SharedLoad("a")
    first = load.news({W0: SOME, W1: NOTHING_SENT}, {}, {}, 0.0)
    assert first == RouterNews("a", True, {W0: SOME})
    assert load.news({W0: SOME}, {}, {}, 0.1) is None
    assert load.news({W0: SOME, W1: SOME}, {}, {}, 0.2) == RouterNews("a", False, {W1: SOME})
    assert load.news({W1: SOME}, {}, {}, 0.3) == RouterNews("a", False, {W0: NOTHING_SENT})
    assert load.news({W1: SOME}, PAID, {}, 0.4) == RouterNews("a", False, {}, PAID)
    assert load.news({W1: SOME}, PAID, CHARGED, 0.5) == RouterNews("a", False, {}, {}, CHARGED)
    full = RouterNews("a", True, {W1: SOME}, PAID, CHARGED)
    assert load.news({W1: SOME}, PAID, CHARGED, BEAT_S) == full


def test_loads_of_several_routers_add_up() -> None:
    load = SharedLoad("a")
    assert load.take(RouterNews("b", True, {W0: SOME}), 0.0).workers == {W0}
    load.take(RouterNews("c", True, {W0: SOME, W1: SOME}), 0.0)
    assert (load.elsewhere(W0), load.elsewhere(W1)) == (InFlight(200, 14, 2, 0), SOME)
    assert load.peers == 2
    load.take(RouterNews("a", True, {W0: SOME}), 0.0)
    assert load.elsewhere(W0) == InFlight(200, 14, 2, 0), "its own news are no others'"


def test_a_full_account_ends_what_it_does_not_name() -> None:
    load = SharedLoad("a")
    load.take(RouterNews("b", True, {W0: SOME, W1: SOME}), 0.0)
    assert load.take(RouterNews("b", True, {W1: SOME}), 1.0).workers == {W0, W1}
    assert (load.elsewhere(W0), load.elsewhere(W1)) == (NOTHING_SENT, SOME)


def test_who_leaves_or_falls_silent_is_forgotten() -> None:
    load = SharedLoad("a")
    load.take(RouterNews("b", True, {W0: SOME}), 0.0)
    load.take(RouterNews("c", True, {W1: SOME}), 3.0)
    assert load.take(RouterNews("c", leaves=True), 3.0).workers == {W1}
    assert load.forget_silent(SILENT_AFTER_S) == []
    assert load.forget_silent(SILENT_AFTER_S + 0.1) == [Heard(frozenset({W0}))]
    assert (load.peers, load.elsewhere(W0)) == (0, NOTHING_SENT)


def test_without_a_store_loads_are_forgotten_but_not_how_many_routers_there_are() -> None:
    load = SharedLoad("a")
    load.take(RouterNews("b", True, {W0: SOME}), 0.0)
    assert load.forget_running() == [Heard(frozenset({W0}))]
    assert (load.peers, load.elsewhere(W0)) == (1, NOTHING_SENT)
    load.begin_anew(100.0)
    assert load.forget_silent(100.0 + SILENT_AFTER_S) == []
    assert load.news({}, {}, {}, 100.0) == RouterNews("a", True)


def test_what_was_paid_elsewhere_counts_from_when_a_router_is_known() -> None:
    load = SharedLoad("a")
    heard = [
        load.take(RouterNews("b", True, {}, {ALICE: Paid(ended)}), 0.0).paid
        for ended in (50.0, 60.0, 60.0, 40.0, 60.0, 61.0)
    ]
    assert heard == [{}, {ALICE: Paid(10.0)}, {}, {}, {}, {ALICE: Paid(1.0)}], "40 are late news"


def test_what_others_let_in_counts_until_it_ends_or_they_are_forgotten() -> None:
    load = SharedLoad("a")
    heard = [
        load.take(RouterNews("b", True, {}, {ALICE: Paid(50.0, running)}), 0.0).paid
        for running in (7.0, 9.0, 4.0)
    ]
    assert heard == [{ALICE: Paid(0.0, more)} for more in (7.0, 2.0, -5.0)]
    [forgotten] = load.forget_running()
    assert forgotten.paid == {ALICE: Paid(0.0, -4.0)}
    assert load.take(RouterNews("b", leaves=True), 0.0).paid == {}


def test_what_was_charged_elsewhere_is_told_whether_more_or_less() -> None:
    load = SharedLoad("a")
    told = [(9, 900), (10, 1000), (10, 950), (9, 900), (11, 960)]
    heard = [
        load.take(RouterNews("b", True, {}, {}, {"alice": Charged(*sums)}), 0.0).charged
        for sums in told
    ]
    assert [c.get("alice", Charged()) for c in heard] == [
        (0, 0),
        (1, 100),
        (0, -50),
        (-1, -50),
        (2, 60),
    ]


@dataclass
class Stream:
    """Loses, delays and doubles news, as its random numbers say."""

    random: random.Random
    under_way: list[RouterNews] = field(default_factory=list)

    def put(self, news: RouterNews) -> None:
        copies = self.random.choice((0, 1, 1, 2))
        self.under_way += [news_from_text(news_to_text(news))] * copies

    def take(self) -> list[RouterNews]:
        taken = [news for news in self.under_way if self.random.random() < 0.5]
        self.under_way = [news for news in self.under_way if news not in taken]
        return taken


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_all_routers_agree_when_news_come_again(seed: int) -> None:
    chance = random.Random(seed)
    names, workers = ("a", "b", "c"), (W0, W1)
    loads = {name: SharedLoad(name) for name in names}
    stream, truth, now = Stream(chance), {name: {} for name in names}, 0.0
    paid = {name: Paid() for name in names}
    heard = {name: Paid() for name in names}

    def tell(news: RouterNews) -> None:
        for name, load in loads.items():
            more = load.take(news, now).paid.get(ALICE, Paid())
            heard[name] = Paid(*(sum(pair) for pair in zip(heard[name], more, strict=True)))

    # Everybody knows of everybody.
    for name in names:
        tell(RouterNews(name))
    for _ in range(60):
        now += chance.random() / 4
        name = chance.choice(names)
        truth[name] = {w: InFlight(chance.randrange(3), 1, 1, 0) for w in workers}
        paid[name] = Paid(paid[name].ended + chance.randrange(3), float(chance.randrange(5)))
        news = loads[name].news(truth[name], {ALICE: paid[name]}, {}, now)
        if news is not None:
            stream.put(news)
        for taken in stream.take():
            tell(taken)
    # A quiet second: everybody's beat arrives.
    for name in names:
        news = loads[name].news(truth[name], {ALICE: paid[name]}, {}, now + 2 * BEAT_S)
        assert news is not None
        tell(news)
    for name in names:
        others = [truth[other] for other in names if other != name]
        for worker in workers:
            sums = [sent.get(worker, NOTHING_SENT) for sent in others]
            told = InFlight(*(sum(part) for part in zip(NOTHING_SENT, *sums, strict=True)))
            assert loads[name].elsewhere(worker) == told
        all_paid = zip(*(paid[other] for other in names if other != name), strict=True)
        assert heard[name] == tuple(sum(part) for part in all_paid)
