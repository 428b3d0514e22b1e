"""What `crossdock bench` does with its options: checks them, runs the load, saves the records."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from cluster.cli.bench_plans import LoadOptions, choose, make_load
from cluster.cli.identity import door_tls
from cluster.cli.options import refuse_given
from cluster.model_folder import find_model
from cluster.progress import StderrProgress
from cluster.stop_signal import StopSignal
from core.errors import InvalidField, NotFound
from tuner.load.bench import BenchResult, PromptOptions, run_bench
from tuner.load.metrics import Slo
from tuner.load.openai_target import Endpoint, OpenAIOptions, OpenAITarget, check_url
from tuner.load.plan import Plan
from tuner.load.prompts import PromptFormat
from tuner.load.quantities import parse_seconds
from tuner.load.report import Report, Settings, make_report
from tuner.load.runner import RunLimits
from tuner.load.target import Target

# More would do as well, but people should be able to type it again.
_CONTENT_SEEDS = 2**32


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options as they were typed; see ``cluster.cli.bench``."""

    load: LoadOptions
    target: str
    slo_ttft: str
    slo_tpot: str
    model: str | None
    tokenizer: Path | None
    endpoint: str | None
    prompt_format: str | None
    prompt_seed: int | None
    ignore_eos: bool
    api_key: str | None
    request_timeout: str
    drain: str
    max_concurrency: int | None
    by_ticket: bool
    save: Path | None

    @property
    def is_grpc(self) -> bool:
        return self.target.startswith(("grpc://", "grpcs://"))

    @property
    def protocol(self) -> str:
        if self.is_grpc:
            return "grpc by ticket" if self.by_ticket else "grpc"
        return self.endpoint or Endpoint.COMPLETIONS.value


def run(options: BenchOptions) -> Report:
    """Raises ``InvalidField`` for an option, another ``CrossdockError`` if nothing can be run."""
    _check_target(options)
    load = make_load(options.load)
    prompts = _prompts(options)
    slo = Slo(
        parse_seconds("--slo-ttft", options.slo_ttft), parse_seconds("--slo-tpot", options.slo_tpot)
    )
    limits = RunLimits(
        parse_seconds("--request-timeout", options.request_timeout),
        parse_seconds("--drain", options.drain),
        options.max_concurrency,
    )
    _try_to_save(options.save)
    result = uvloop.run(_measure(options, prompts, load.plans, limits))
    if options.save is not None:
        _save(options.save, result)
    settings = Settings(
        target=options.target,
        protocol=options.protocol,
        prompt_format=prompts.format.value,
        arrivals=load.arrivals,
        workload=load.workload,
        content_seed=prompts.content_seed,
        slo=slo,
        max_concurrency=options.max_concurrency,
    )
    return make_report(settings, load.plans, result)


async def _measure(
    options: BenchOptions, prompts: PromptOptions, plans: Sequence[Plan], limits: RunLimits
) -> BenchResult:
    target = _open_target(options)
    stop = StopSignal()
    stop.install()
    try:
        progress = StderrProgress().step
        return await run_bench(target, prompts, plans, limits, stop.drain, progress)
    finally:
        await target.close()


def _check_target(options: BenchOptions) -> None:
    if not options.is_grpc:
        check_url("--target", options.target)
        choose("--endpoint", options.protocol, Endpoint)
        by_ticket = options.by_ticket or None
        refuse_given({"--by-ticket": by_ticket}, "belongs to grpc targets; leave it out")
        return
    only_http = {"--endpoint": options.endpoint, "--model": options.model}
    refuse_given(only_http, "belongs to http targets; leave it out")


def _open_target(options: BenchOptions) -> Target:
    if options.is_grpc:
        from tuner.load.grpc_target import GrpcTarget, grpc_address

        address = grpc_address("--target", options.target)
        tls = door_tls(address, options.target.startswith("grpcs://"))
        return GrpcTarget(address, options.ignore_eos, options.api_key, tls, options.by_ticket)
    endpoint = Endpoint(options.protocol)
    secure = options.target.startswith("https://")
    tls = door_tls(urlsplit(options.target).netloc, wanted=True) if secure else None
    return OpenAITarget(
        OpenAIOptions(
            options.target,
            endpoint,
            options.model,
            options.ignore_eos,
            options.api_key,
            tls=tls,
        )
    )


def _prompts(options: BenchOptions) -> PromptOptions:
    chat = options.protocol == Endpoint.CHAT
    wanted = options.prompt_format or (PromptFormat.TEXT if chat else PromptFormat.IDS)
    kind = choose("--prompt-format", wanted, PromptFormat)
    if chat and kind is PromptFormat.IDS:
        raise InvalidField("--prompt-format", wanted, "chat takes text; use --endpoint completions")
    seed = options.prompt_seed
    content_seed = secrets.randbelow(_CONTENT_SEEDS) if seed is None else seed
    return PromptOptions(kind, content_seed, lambda model: _find_tokenizer(options, model))


def _find_tokenizer(options: BenchOptions, model: str) -> Path | None:
    if options.tokenizer is not None:
        return options.tokenizer
    try:
        return find_model(model)
    except NotFound:
        return None


def _try_to_save(path: Path | None) -> None:
    """Before the load, so that a typing error doesn't cost a whole run."""
    if path is None:
        return
    try:
        path.open("a").close()
    except OSError as error:
        raise InvalidField("--save", str(path), f"can't be written: {error}") from None


def _save(path: Path, result: BenchResult) -> None:
    with path.open("w", encoding="utf-8") as file:
        for measured in result.runs:
            for record in measured.records:
                file.write(json.dumps(record.as_json()) + "\n")
