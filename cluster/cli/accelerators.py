"""From `--gpus h100:16 --gpu-hour-price h100=2.5` and profiles to a budget."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cluster.cli.gpu_prices import hour_prices
from cluster.cli.options import refuse_given
from cluster.cli.profile_choice import ChosenProfile, choose_profile
from cluster.demo_model import ensure_demo_model
from cluster.model_folder import find_model
from cluster.progress import StderrProgress
from core.config import ClusterSpec
from core.errors import InvalidField, NotFound
from core.pool_config import MAX_REPLICAS
from tuner.profile import hardware, model_shape
from tuner.profile.model_shape import ModelShape, read_model_shape
from tuner.profile.modelled import modelled_profile
from tuner.search.space import Accelerators, Budget, Labels
from tuner.simulate.from_spec import PoolProfiles

# As many workers of one rank as a pool may have.
MAX_GPUS = MAX_REPLICAS
# Of Kubernetes: an optional domain, then up to 63 letters, digits and some signs.
_NAME = r"[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?:[a-z0-9](?:[-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}", re.ASCII)
_VALUE = re.compile(rf"{_NAME}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AcceleratorOptions:
    """The options as they were typed; ``base`` names the model if ``model`` doesn't."""

    gpus: str | None
    prefill_gpus: str | None
    decode_gpus: str | None
    gpu_hour_price: str | None
    profile: Path | None
    prefill_profile: Path | None
    decode_profile: Path | None
    model: str | None
    base: ClusterSpec
    prefill_nodes: str | None = None
    decode_nodes: str | None = None


def parse_budget(options: AcceleratorOptions) -> tuple[Budget, tuple[str, ...]]:
    """What there is, and in words where its numbers come from. Raises ``InvalidField``."""
    if options.gpus is not None:
        return _shared_budget(options, options.gpus)
    if options.prefill_gpus is None or options.decode_gpus is None:
        fix = "say how many there are: --gpus 16, or --prefill-gpus h100:8 --decode-gpus l40s:16"
        raise InvalidField("--gpus", None, fix)
    return _separate_budget(options, options.prefill_gpus, options.decode_gpus)


def _shared_budget(options: AcceleratorOptions, gpus: str) -> tuple[Budget, tuple[str, ...]]:
    """The same GPUs for both pools."""
    if options.prefill_gpus or options.decode_gpus:
        raise InvalidField("--gpus", gpus, "leave it out beside --prefill-gpus")
    of_pools = {
        "--prefill-profile": options.prefill_profile,
        "--decode-profile": options.decode_profile,
    }
    refuse_given(of_pools, "belongs to --prefill-gpus and --decode-gpus; use --profile")
    nodes = {"--prefill-nodes": options.prefill_nodes, "--decode-nodes": options.decode_nodes}
    refuse_given(nodes, "belongs to --prefill-gpus and --decode-gpus")
    both, words = _pool(options, "--gpus", gpus, options.profile)
    [price] = hour_prices(options.gpu_hour_price, options.base, [both.profile.hardware])
    both = replace(both, hour_price=price)
    return Budget(both, both), (words,)


def _separate_budget(
    options: AcceleratorOptions, prefill_gpus: str, decode_gpus: str
) -> tuple[Budget, tuple[str, ...]]:
    """Each pool has its own GPUs, of one kind or of two."""
    of_prefill = options.prefill_profile or options.profile
    of_decode = options.decode_profile or options.profile
    prefill, prefill_words = _pool(options, "--prefill-gpus", prefill_gpus, of_prefill)
    decode, decode_words = _pool(options, "--decode-gpus", decode_gpus, of_decode)
    PoolProfiles(prefill.profile, decode.profile)
    kinds = [prefill.profile.hardware, decode.profile.hardware]
    prices = hour_prices(options.gpu_hour_price, options.base, kinds)
    names = kinds if kinds[0] != kinds[1] else ["prefill's", "decode's"]
    places = [
        parse_labels("--prefill-nodes", options.prefill_nodes),
        parse_labels("--decode-nodes", options.decode_nodes),
    ]
    prefill = replace(prefill, hour_price=prices[0], name=names[0], nodes=places[0])
    decode = replace(decode, hour_price=prices[1], name=names[1], nodes=places[1])
    return Budget(prefill, decode), (f"prefill: {prefill_words}", f"decode: {decode_words}")


def parse_labels(option: str, text: str | None) -> Labels:
    """``nvidia.com/gpu.product=NVIDIA-L40S,zone=a`` as Kubernetes takes node labels. Raises
    ``InvalidField``."""
    if text is None:
        return ()
    pairs = [part.strip().partition("=") for part in text.split(",")]
    if not all(_LABEL.fullmatch(key) and _VALUE.fullmatch(value) for key, _, value in pairs):
        fix = "must be labels of nodes, such as nvidia.com/gpu.product=NVIDIA-L40S"
        raise InvalidField(option, text, fix)
    return tuple((key, value) for key, _, value in pairs)


def _pool(
    options: AcceleratorOptions, option: str, text: str, path: Path | None
) -> tuple[Accelerators, str]:
    """Without a price."""
    kind, _, number = text.rpartition(":")
    if not number.isdecimal() or not 1 <= int(number) <= MAX_GPUS:
        fix = f"must be a number up to {MAX_GPUS}, or KIND:NUMBER such as h100:16"
        raise InvalidField(option, text, fix)
    chosen = (
        _built_in(options, option, kind, path) if kind else choose_profile(path, _served(options))
    )
    return Accelerators(chosen.profile, int(number)), chosen.words


def _served(options: AcceleratorOptions) -> ClusterSpec:
    """The config with the model that was named."""
    return options.base.model_copy(update={"model": options.model or options.base.model})


def _built_in(
    options: AcceleratorOptions, option: str, kind: str, path: Path | None
) -> ChosenProfile:
    if path is not None:
        raise InvalidField(option, kind, "a profile says which kind it is; give the number alone")
    if kind not in hardware.BUILT_IN:
        known = ", ".join(hardware.BUILT_IN)
        fix = f"unknown kind; built in: {known}; for others: `crossdock profile --from-spec`"
        raise InvalidField(option, kind, fix)
    dtype = options.base.engine.dtype
    profile = modelled_profile(
        hardware.BUILT_IN[kind],
        _model_shape(options),
        "bfloat16" if dtype == "auto" else dtype,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    words = f"modelled, not measured: {profile.model}, {profile.dtype}, on {kind}"
    return ChosenProfile(profile, words)


def _model_shape(options: AcceleratorOptions) -> ModelShape:
    """Of a built-in name, else of a folder, which need not be one that this engine runs."""
    name = options.model or options.base.model
    if name is None:
        return read_model_shape(ensure_demo_model(StderrProgress()))
    if name in model_shape.BUILT_IN:
        return model_shape.BUILT_IN[name]
    try:
        folder = find_model(name)
    except NotFound as error:
        known = ", ".join(model_shape.BUILT_IN)
        raise InvalidField("--model", name, f"is none of {known}, and {error}") from None
    return read_model_shape(folder)
