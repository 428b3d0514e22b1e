"""A search told in words, rows, JSON and pictures: by a made-up result of three clusters."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from search_worlds import GOAL, LIMITS, bounded, budget_of, chat_trace, summary_at

from core.config import ClusterSpec
from core.request import Role
from tuner.search.bounds import Bound, Resource, Traffic
from tuner.search.chart_points import (
    Point,
    best_of_each_share,
    neighbours_of,
    pareto_front,
    points,
)
from tuner.search.charts import draw, terminal_text
from tuner.search.evaluate import Trial
from tuner.search.halving import Scored
from tuner.search.rate_search import Reached
from tuner.search.report import COLUMNS, table, tokens_per_accelerator, verdict_lines
from tuner.search.report_json import as_json
from tuner.search.sensitivity import Shift
from tuner.search.space import Candidate, Limits, all_candidates
from tuner.search.tune import Question, TuneResult
from tuner.search.uncertainty import Interval
from tuner.search.verdict import Comparison, Verdict, judge
from tuner.simulate.pools import PoolSummary

TRACE = chat_trace(50)
BUDGET = budget_of("h100", 4)
BOUNDED = bounded(all_candidates(BUDGET, 4000, LIMITS), TRACE)


def pool(role: Role, busy: float) -> PoolSummary:
    return PoolSummary(role, 1, busy, 0.5, 3, 0.4, 1000, 0, 200, 0)


def reached_at(rate: float, share: float, candidate: Candidate) -> Reached:
    roles = [Role.MIXED] if candidate.is_colocated else [Role.PREFILL, Role.DECODE]
    pools = tuple(pool(role, 0.9 - 0.3 * place) for place, role in enumerate(roles))
    trial = Trial(rate, share, replace(summary_at(rate, share), pools=pools))
    return Reached(trial if trial.meets(GOAL) else None, trial, 5)


def scored_of(name: str, rate: float | None, share: float = 0.95) -> Scored:
    """``rate`` None: never simulated."""
    candidate, bound = next((c, b) for c, b in BOUNDED if str(c) == name)
    if rate is None:
        return Scored(candidate, bound)
    return Scored(candidate, bound, reached_at(rate, share, candidate), 3)


WINNER = scored_of("2P:2D, tp 1/tp 1", 12.0)
PREFILL, (DECODE,) = WINNER.candidate.prefill, WINNER.candidate.decode
assert PREFILL is not None
WINNER = replace(
    WINNER,
    candidate=Candidate(
        replace(PREFILL, limits=Limits(64, 8192)), (replace(DECODE, limits=Limits(512, 1024)),)
    ),
)
RIVAL = scored_of("colocated 4, tp 1", 8.0)
UNSEEN = scored_of("1P:3D, tp 1/tp 1", None)
SHIFT = Shift("prompts 20 % longer", UNSEEN.candidate, 11.0, 10.0)


def result(*scored: Scored, verdict: Verdict, rate: float | None = None) -> TuneResult:
    question = Question(TRACE, ClusterSpec(), BUDGET, GOAL, LIMITS, rate)
    shifts = (SHIFT,) if verdict.winner is not None else ()
    return TuneResult(question, Traffic.of(TRACE), scored, verdict, shifts)


def found() -> TuneResult:
    comparison = Comparison(RIVAL, 1.5, Interval(1.3, 1.5, 1.7), 1.5)
    return result(WINNER, RIVAL, UNSEEN, verdict=Verdict(WINNER, WINNER, comparison, None))


def with_an_estimate() -> TuneResult:
    guessed = replace(UNSEEN, estimate=6.0)
    return result(WINNER, guessed, verdict=Verdict(WINNER, WINNER, None, None))


def nobody() -> TuneResult:
    near = scored_of("colocated 4, tp 1", 3.0, share=0.6)
    return result(near, UNSEEN, verdict=Verdict(None, near, None, None))


def test_the_verdict_names_all_that_is_to_be_set() -> None:
    lines = verdict_lines(found())
    assert lines[0].startswith("2P:2D, tp 1/tp 1: 12.00 requests/s, 3.000 per GPU, 90 % within")
    assert "1.50 × colocated (colocated 4, tp 1); likely 1.30 to 1.70" in lines
    limits = next(line for line in lines if line.startswith("scheduler limits"))
    assert "pools.prefill max_num_seqs 64, max_num_batched_tokens 8192" in limits
    assert "pools.decode max_num_seqs 512, max_num_batched_tokens 1024" in limits
    assert "limited by prefill compute (prefill 90%, decode 60% busy)" in lines
    assert lines[-1] == "prompts 20 % longer: 10.00 requests/s; move to 1P:3D, tp 1/tp 1 for 11.00"


def test_without_a_winner_the_nearest_is_told() -> None:
    lines = verdict_lines(nobody())
    assert lines[0].startswith("no cluster of these GPUs meets")
    assert lines[1].startswith("nearest: colocated 4, tp 1 with 60% at 3 requests/s")


def test_the_table_has_the_best_and_the_rivals_with_what_limits_each() -> None:
    columns, rows = table(found(), top=1)
    assert [column for column in columns if column != "price/h"] == list(COLUMNS)
    told = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [row["cluster"] for row in told] == ["2P:2D, tp 1/tp 1", "colocated 4, tp 1"]
    assert told[0]["sequences, tokens of a step"] == "64, 8192 / 512, 1024"
    assert told[1]["sequences, tokens of a step"] == "256, 2048"
    assert all(row["limited by"] in {one.value for one in Resource} for row in told)
    assert [row["price/h"] for row in told] == ["8.00", "8.00"]
    columns, missed = table(nobody(), top=1)
    told_missed = dict(zip(columns, missed[0], strict=True))
    assert (told_missed["requests/s"], told_missed["per GPU"]) == ("3.00 (missed)", "–")


def test_json_has_every_candidate_with_what_limits_it() -> None:
    told = json.loads(json.dumps(as_json(found()), allow_nan=False))
    winner, rival, unseen = told["candidates"]
    assert winner == told["verdict"]["winner"]
    assert [pool["max_num_batched_tokens"] for pool in winner["pools"]] == [8192, 1024]
    assert winner["busy"] == {"prefill": 0.9, "decode": pytest.approx(0.6)}
    assert winner["ttft_p99_s"] == 0.7
    assert unseen["rate"] is None
    assert {one["limited_by"] for one in (winner, rival, unseen)} <= {r.value for r in Resource}
    assert told["verdict"]["over_colocated"]["ratio"] == 1.5
    assert told["verdict"]["lines"] == verdict_lines(found())
    assert json.loads(json.dumps(as_json(nobody()), allow_nan=False))["verdict"]["winner"] is None


def test_what_nothing_limits_is_no_number_in_json() -> None:
    endless = replace(UNSEEN, bound=Bound(math.inf, Resource.LINK, {Resource.LINK: math.inf}))
    one = result(WINNER, endless, verdict=Verdict(WINNER, WINNER, None, None))
    assert json.loads(json.dumps(as_json(one), allow_nan=False))["candidates"][1]["bound_rate"] is (
        None
    )


def test_tokens_are_shared_out_among_all_accelerators() -> None:
    trial = WINNER.reached.trial if WINNER.reached is not None else None
    assert trial is not None
    assert tokens_per_accelerator(WINNER, trial) == 12.0 * 200 / 4
    # Of half the cluster, at half the rate.
    half = replace(trial, summary=summary_at(6.0, 0.95), divided_by=2)
    assert tokens_per_accelerator(WINNER, half) == 12.0 * 200 / 4


def test_it_is_told_of_how_much_traffic_the_numbers_are() -> None:
    """A trace of 50 requests, 100 of which are counted."""
    words = "simulated with 100 counted requests of a trace of 50, in another order and repeated"
    assert words in verdict_lines(found())
    assert WINNER.reached is not None
    trial = replace(WINNER.reached.nearest, divided_by=4)
    part = replace(WINNER, reached=Reached(trial, trial, 1))
    lines = verdict_lines(result(part, verdict=Verdict(part, part, None, None)))
    assert any("on 1/4 of the cluster and of the rate" in line for line in lines)


def test_an_overload_that_passed_is_told_with_the_rate_that_lasts() -> None:
    assert WINNER.reached is not None
    assert WINNER.reached.trial is not None
    trial = replace(WINNER.reached.trial, further_s=6.5, growth=0.25)
    behind = replace(WINNER, reached=replace(WINNER.reached, trial=trial))
    told = result(behind, verdict=Verdict(behind, behind, None, None))
    first, *rest = verdict_lines(told)
    assert first.startswith(
        "2P:2D, tp 1/tp 1: 9.60 requests/s, 2.400 per GPU (for 16.5 s at a time up to 12.00), 90 %"
    )
    words = " ".join(rest)
    assert "of 6.5 s after them" in words
    assert "at 12.00 requests/s, as the ratios compare them, it falls behind by 25%" in words
    assert "prompts 20 % longer: 8.00 requests/s; move to 1P:3D, tp 1/tp 1 for 8.80" in words
    assert table(told, top=1)[1][0][3] == "12.00 (9.60 last)"
    assert "falls behind" not in " ".join(verdict_lines(found()))


def test_who_serves_less_for_now_and_more_in_the_long_run_is_told() -> None:
    assert WINNER.reached is not None
    assert WINNER.reached.trial is not None
    trial = replace(WINNER.reached.trial, growth=0.1)
    behind = replace(WINNER, reached=replace(WINNER.reached, trial=trial))

    def lines(rival_rate: float) -> list[str]:
        rival = scored_of("colocated 4, tp 1", rival_rate)
        verdict = judge([behind, rival], lambda under, all_of: [[1.0, 1.0] for _ in under], 0)
        assert verdict.disaggregate == (rival_rate < 10.5)
        return verdict_lines(result(behind, rival, verdict=verdict))

    assert "1.20 × colocated (colocated 4, tp 1); 1.09 × by the rates that last" in lines(10.0)
    nearly = lines(10.8)
    assert "two pools gain next to nothing over colocated: it is simpler, prefer it" in nearly
    more = "in the long run colocated 4, tp 1 serves more: 11.50 requests/s that last"
    assert more not in nearly
    assert more in lines(11.5)


def test_a_nearest_that_only_falls_behind_is_told_as_that() -> None:
    assert WINNER.reached is not None
    assert WINNER.reached.trial is not None
    trial = replace(WINNER.reached.trial, growth=0.25)
    behind = replace(WINNER, reached=Reached(trial, trial, 5))
    verdict = Verdict(None, behind, None, None)
    lines = verdict_lines(result(behind, verdict=verdict, rate=11.0))
    assert lines[1].endswith("it falls behind, 9.6 last")


def test_one_pool_is_advised_as_far_as_two_were_looked_at() -> None:
    verdict = Verdict(RIVAL, RIVAL, None, None)
    served = " ".join(verdict_lines(result(RIVAL, UNSEEN, verdict=verdict)))
    assert "two pools would serve less" in served
    cheapest = " ".join(verdict_lines(result(RIVAL, UNSEEN, verdict=verdict, rate=5.0)))
    assert "no two pools of this cost or less serve more" in cheapest
    alone = " ".join(verdict_lines(result(RIVAL, verdict=verdict)))
    assert "two pools were no candidate" in alone


@pytest.mark.thorough
def test_both_pictures_are_drawn_in_the_terminal_and_into_files(tmp_path: Path) -> None:
    pytest.importorskip("plotext", reason="the extra `plot` is not installed")
    text = terminal_text(found())
    for words in ("tokens/s/user", "prefill share of GPUs", "goodput", "two pools"):
        assert words in text
    assert "estimated" not in text
    guessed = result(
        WINNER, replace(UNSEEN, estimate=6.0), verdict=Verdict(None, WINNER, None, None)
    )
    assert "two pools, estimated" in terminal_text(guessed)
    draw(guessed, "estimates", tmp_path / "tune.png")
    assert terminal_text(nobody()) == ""
    for name in ("tune.png", "tune.html", "tune.svg"):
        draw(found(), "title", tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5_000
    draw(nobody(), "nobody", tmp_path / "nobody.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_picture_names_each_cluster_once_and_no_mark_is_behind_the_legend(tmp_path: Path) -> None:
    pytest.importorskip("plotext", reason="the extra `plot` is not installed")
    path = tmp_path / "tune.svg"
    draw(found(), "title", path)
    # As comments, beside the outlines of its letters.
    assert path.read_text().count(f"<!-- {WINNER.candidate} -->") == 1
    one_pool = scored_of("colocated 4, tp 1", 12.5)
    best = result(one_pool, WINNER, verdict=Verdict(one_pool, one_pool, None, None))
    over_ratio = terminal_text(best).split("\n\n")[-1]
    # Its mark is beside the axis, and the legend a character off it.
    assert "│o" in over_ratio or "┤o" in over_ratio


def test_points_beside_each_other_are_told_together() -> None:
    places = {1: (0.10, 0.5), 2: (0.50, 0.5), 3: (0.12, 0.54), 4: (0.12, 0.9), 5: (0.14, 0.5)}
    assert neighbours_of(places, (0.03, 0.05)) == [[1, 3], [2], [4], [5]]


def test_points_are_at_the_share_of_prefill() -> None:
    shares = {point.name: point.prefill_share for point in points(found())}
    assert shares == {"2P:2D, tp 1/tp 1": 0.5, "colocated 4, tp 1": 0.0}


def test_what_was_estimated_alone_is_a_point_of_the_ratio_only() -> None:
    simulated, estimated = points(with_an_estimate())
    assert not simulated.is_estimate
    assert estimated == Point(str(UNSEEN.candidate), False, 0.25, 1.5)
    assert pareto_front([simulated, estimated]) == [simulated]
    assert best_of_each_share([simulated, estimated]) == [simulated]


def test_the_line_over_the_ratio_is_that_of_the_best_shapes() -> None:
    def point(name: str, share: float, rate: float) -> Point:
        return Point(name, share == 0.0, share, rate, 1.0, 1.0)

    made = [point("a", 0.5, 2), point("b", 0.5, 3), point("c", 0.25, 1), point("d", 0.0, 9)]
    assert [p.name for p in best_of_each_share(made)] == ["c", "b"]
