"""Drives a runner without any scheduler: prompts in chunks and decodes mixed in every step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from core.request import SamplingParams
from core.step import SampleSpec, Slice, StepPlan
from engine.batch import build_batch
from engine.runner import LoadedModel
from kernels.paged_attention import PoolShape


@dataclass
class Text:
    """Prompt and answer of one sequence, and how much of it has its KV computed."""

    id: int
    tokens: list[int]
    prompt_length: int
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.prompt_length :]


class Stepper:
    """Blocks are taken from the far end of the pool and never given back."""

    def __init__(self, model: LoadedModel, chunk: int = 256) -> None:
        self.model = model
        self.chunk = chunk
        self.free = list(range(model.pool.num_blocks))
        self.texts: list[Text] = []

    def add(self, prompt: list[int]) -> Text:
        text = Text(len(self.texts), list(prompt), len(prompt))
        self.texts.append(text)
        return text

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
        """Answers of exactly ``params.max_tokens`` tokens each."""
        texts = [self.add(prompt) for prompt in prompts]
        while pending := [text for text in texts if len(text.answer) < params.max_tokens]:
            self.step(StepPlan(tuple(self.slice(text, params) for text in pending)))
        return [text.answer for text in texts]

    def slice(self, text: Text, params: SamplingParams) -> Slice:
        """The next chunk of a text; asks for a token when it is the last."""
        end = min(text.computed + self.chunk, len(text.tokens))
        while len(text.blocks) * self.model.pool.layout.block_size < end:
            text.blocks.append(self.free.pop())
        sample = SampleSpec(params, position=end, sequence_index=text.id)
        return Slice(
            text.id,
            text.computed,
            np.array(text.tokens[text.computed : end], np.int32),
            np.array(text.blocks, np.int32),
            sample if end == len(text.tokens) else None,
        )

    def step(self, plan: StepPlan) -> None:
        result = self.model.runner.execute(plan)
        for part in plan.slices:
            text = self.texts[part.sequence_id]
            text.computed = part.end
            if part.sample is not None:
                text.tokens.append(result.sampled[part.sequence_id])

    def logits(self, text: Text) -> torch.Tensor:
        """Computes the next chunk and gives the float32 logits [vocab] after its last token."""
        return self.logits_together([text])[0]

    def logits_together(self, texts: list[Text]) -> list[torch.Tensor]:
        """The same for several texts in one step, chunks and single tokens mixed."""
        wanted = SamplingParams(max_tokens=1)
        parts = [
            replace(self.slice(text, wanted), sample=SampleSpec(wanted, position=0))
            for text in texts
        ]
        model, pool = self.model.runner.model, self.model.pool.tensor
        shape = PoolShape.of(pool)
        batch = build_batch(StepPlan(tuple(parts)), shape, model.device, model.config.windows)
        order = [part.sequence_id for part in batch.sampled_slices]
        rows = dict(zip(order, model.forward(batch, pool), strict=True))
        for text, part in zip(texts, parts, strict=True):
            text.computed = part.end
        return [rows[text.id] for text in texts]
