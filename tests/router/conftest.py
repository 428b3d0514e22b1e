"""A router in this process, with fake workers behind it and real clients in front."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tokenizers
from fake_worker import FakeRegistry, FakeWorker
from tokenizers import decoders, models, pre_tokenizers, trainers

from crossdock.client import AsyncClient, RetryPolicy
from router.placement import Disaggregation
from router.routing.routing_rules import RoutingRules
from router.server import RouterServer
from router.settings import RouterSettings

MAX_MODEL_LEN = 128


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, chat template and config of a model whose weights the router never needs."""
    folder = tmp_path_factory.mktemp("tiny-model")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, how are you?"] * 4, trainer)
    backend.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": 300, "max_position_embeddings": 256, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    template = (
        "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@dataclass
class RunningCluster:
    """Everything a test talks to."""

    registry: FakeRegistry
    router: RouterServer
    workers: dict[str, FakeWorker]
    client: AsyncClient
    grpc_address: str
    url: str

    def __getitem__(self, name: str) -> FakeWorker:
        return self.workers[name]

    async def until(self, condition: Callable[[RunningCluster], bool]) -> None:
        """Wait until the router has taken something in; pytest's timeout bounds it."""
        while not condition(self):  # noqa: ASYNC110 - the router has no event for "list taken in"
            await asyncio.sleep(0.005)

    def usable(self) -> set[str]:
        return {view.worker.name for view in self.router.dispatcher.pool.candidates()}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def start_cluster(model_folder: Path) -> AsyncIterator[Any]:
    """Call it with fake workers; gives a RunningCluster once the router has attached to all."""
    running: list[RunningCluster] = []

    async def start(*workers: FakeWorker, **settings: Any) -> RunningCluster:
        registry = await FakeRegistry().start()
        for worker in workers:
            await worker.start()
        await registry.list(*(worker.record() for worker in workers))
        options: dict[str, Any] = {
            "max_model_len": MAX_MODEL_LEN,
            "served_model_name": "tiny",
            # The smallest prompts would go to D alone.
            "rules": RoutingRules(disaggregation=Disaggregation.PREFER),
            "drain_s": 5.0,
        }
        options = {"model": model_folder, **options, **settings}
        router = RouterServer(RouterSettings(registry.address, **options))
        grpc_address, http_address = await router.start()
        named = {worker.name: worker for worker in workers}
        # A refusal is what a test wants to see.
        client = AsyncClient(grpc_address, retries=RetryPolicy(max_tries=1))
        url = f"http://{http_address}"
        cluster = RunningCluster(registry, router, named, client, grpc_address, url)
        running.append(cluster)
        await cluster.until(lambda c: c.usable() == set(named))
        return cluster

    yield start
    for cluster in running:
        await cluster.client.close()
        await cluster.router.stop()
        for worker in cluster.workers.values():
            await worker.kill()
        await cluster.registry.stop()
