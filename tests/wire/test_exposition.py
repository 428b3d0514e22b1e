"""Families from specs, labels of a whole process, and several texts made one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from core.metric_spec import counter, gauge, histogram
from wire.exposition import (
    OTHER,
    BoundedLabel,
    CountedHistogram,
    Counts,
    Labelled,
    family,
    merge,
    new_gauge,
    new_histogram,
)

SEEN = counter("seen", "How many", "kind")
LEVEL = gauge("level", "How high")
TIME = histogram("time_seconds", "How long", (0.1, 1.0))


def worker_text(name: str, seen: int) -> bytes:
    own = CollectorRegistry()
    Counts(SEEN, own).labels("a").inc(seen)
    new_gauge(LEVEL, own).set(seen)
    new_histogram(TIME, own).observe(0.5)
    labelled = CollectorRegistry()
    labelled.register(Labelled(own, {"worker": name}))
    return generate_latest(labelled)


def values(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in text_string_to_metric_families(text.decode())
        for sample in metric.samples
    }


def test_the_names_of_samples_are_those_that_a_scrape_shows() -> None:
    shown = {name for name, _ in values(worker_text("w", 1))}
    assert shown == {name for spec in (SEEN, LEVEL, TIME) for name in spec.samples}


def test_a_merged_text_has_each_family_once_and_all_samples() -> None:
    texts = [worker_text("w0", 1), b"", worker_text("w1", 2)]
    merged = merge(texts)
    assert values(merged) == values(texts[0]) | values(texts[2])
    heads = [line for line in merged.decode().splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads)) == 3
    assert values(merged)["crossdock_seen_total", (("kind", "a"), ("worker", "w1"))] == 2


def test_labels_of_a_sample_win_over_those_of_the_process() -> None:
    registry = CollectorRegistry()

    class One:
        def collect(self) -> list[object]:
            return [family(SEEN, [(("own",), 1.0)])]

    registry.register(Labelled(One(), {"kind": "process", "worker": "w"}))  # type: ignore[arg-type]
    (key,) = values(generate_latest(registry))
    assert key == ("crossdock_seen_total", (("kind", "own"), ("worker", "w")))


def test_values_beyond_the_bound_share_one() -> None:
    label = BoundedLabel(2)
    assert [label.of(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.0625, 0.25, 1.0, 7.5]), st.integers(1, 3))))
def test_a_histogram_that_counts_many_at_once_reads_like_any_other(
    observed: list[tuple[float, int]],
) -> None:
    one_by_one, at_once = CollectorRegistry(), CollectorRegistry()
    usual, counted = new_histogram(TIME, one_by_one), CountedHistogram(TIME, at_once)
    for value, count in observed:
        counted.observe(value, count)
        for _ in range(count):
            usual.observe(value)
    assert generate_latest(at_once) == generate_latest(one_by_one)
