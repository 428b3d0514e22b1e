"""The router's metrics under the names that vLLM gives them, for dashboards, autoscaling rules and
gateway plug-ins that ask for those.

The router stands in the place of a vLLM server, so only it tells them: ``model_name`` is the served
model, ``engine`` always "0". Counts of both pools are one. Older names of the same numbers are told
as well. Names as of vLLM 0.32 (``vllm/v1/metrics/loggers.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from core.metric_spec import MetricSpec
from router.metrics import metric_table as table
from wire.exposition import Collects

# Histograms have this one beside those that are kept.
_BUCKET = "le"


@dataclass(frozen=True, slots=True)
class Alias:
    """``name`` without suffixes of samples; ``labels``: our names and vLLM's of those to keep."""

    spec: MetricSpec
    name: str
    labels: tuple[tuple[str, str], ...] = ()


ALIASES = (
    Alias(table.STREAMING, "num_requests_running"),
    Alias(table.WAITING, "num_requests_waiting"),
    Alias(table.KV_USAGE, "kv_cache_usage_perc"),
    Alias(table.KV_USAGE, "gpu_cache_usage_perc"),
    Alias(
        table.KV_CONFIG,
        "cache_config_info",
        (("block_size", "block_size"), ("num_blocks", "num_gpu_blocks")),
    ),
    Alias(table.PROMPT_TOKENS, "prefix_cache_queries"),
    Alias(table.CACHED_TOKENS, "prefix_cache_hits"),
    Alias(table.PROMPT_TOKENS, "prompt_tokens"),
    Alias(table.CACHED_TOKENS, "prompt_tokens_cached"),
    Alias(table.GENERATED, "generation_tokens"),
    Alias(table.FINISHES, "request_success", (("finish_reason", "finished_reason"),)),
    Alias(table.PROMPT_LENGTH, "request_prompt_tokens"),
    Alias(table.ANSWER_LENGTH, "request_generation_tokens"),
    Alias(table.LONGEST_ANSWER, "request_max_num_generation_tokens"),
    Alias(table.COMPUTED_LENGTH, "request_prefill_kv_computed_tokens"),
    Alias(table.TTFT, "time_to_first_token_seconds"),
    Alias(table.ITL, "inter_token_latency_seconds"),
    Alias(table.ITL, "time_per_output_token_seconds"),
    Alias(table.TPOT, "request_time_per_output_token_seconds"),
    Alias(table.E2E, "e2e_request_latency_seconds"),
    Alias(table.QUEUE, "request_queue_time_seconds"),
    Alias(table.PREFILL_TIME, "request_prefill_time_seconds"),
    Alias(table.DECODE_TIME, "request_decode_time_seconds"),
    Alias(table.INFERENCE_TIME, "request_inference_time_seconds"),
)


class VllmNames(Collector):
    """All of ``inner`` that vLLM has a name for, as metrics of ``model``."""

    def __init__(self, inner: Collects, model: str) -> None:
        self._inner = inner
        self._labels = {"model_name": model, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        found = {metric.name: metric for metric in self._inner.collect()}
        for alias in ALIASES:
            metric = found.get(alias.spec.family)
            if metric is not None:
                yield self._renamed(metric, alias)

    def _renamed(self, metric: Metric, alias: Alias) -> Metric:
        """Samples that differ only in labels that vLLM does not have are added up."""
        name = f"vllm:{alias.name}"
        kept = {_BUCKET: _BUCKET} | dict(alias.labels)
        totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for sample in metric.samples:
            labels = tuple((kept[k], v) for k, v in sample.labels.items() if k in kept)
            place = (name + sample.name.removeprefix(metric.name), labels)
            totals[place] = totals.get(place, 0.0) + sample.value
        renamed = Metric(name, metric.documentation, metric.type)
        renamed.samples = [
            Sample(full, {**self._labels, **dict(labels)}, value)
            for (full, labels), value in totals.items()
        ]
        return renamed
