"""Drives a runner without any scheduler: prompts in chunks and decodes mixed in every step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from replica import Replica, logits_of

from core.request import SamplingParams
from core.step import BlockCopy, SampleSpec, Slice, StepPlan, StepResult
from engine.runner import LoadedModel

ONE_TOKEN = SamplingParams(max_tokens=1)


@dataclass
class Text:
    """Prompt and answer of one sequence, and how much of it has its KV computed."""

    id: int
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    sequence_index: int = 0
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    failed: str | None = None

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def goes_on(self) -> bool:
        return self.failed is None and len(self.answer) < self.params.max_tokens


class Stepper:
    """Blocks are taken from the far end of the pool and never given back."""

    def __init__(self, model: LoadedModel | Replica, chunk: int = 256) -> None:
        self.model = model
        self.chunk = chunk
        self.free = list(range(model.pool.num_blocks))
        self.texts: list[Text] = []
        self.copies: list[BlockCopy] = []

    def add(self, prompt: list[int], params: SamplingParams = ONE_TOKEN, index: int = 0) -> Text:
        text = Text(len(self.texts), list(prompt), len(prompt), params, index)
        self.texts.append(text)
        return text

    def fork(self, prompt: list[int], params: SamplingParams) -> list[Text]:
        """Computes a prompt once and draws the first token of each of its n answers.

        They share the blocks that the prompt fills; the last one of each is copied at its next
        step, except the first answer's.
        """
        source = self.add(prompt, params)
        part = self.slice(source)
        samples = tuple(replace(part.samples[0], sequence_index=i) for i in range(params.n))
        result = self.execute(StepPlan((replace(part, samples=samples),)))
        self.texts.pop()
        return [
            self._fork_one(source, i, drawn.token)
            for i, drawn in enumerate(result.sampled[source.id])
        ]

    def _fork_one(self, source: Text, index: int, token: int) -> Text:
        text = self.add(source.tokens, source.params, index)
        text.tokens.append(token)
        text.computed = source.prompt_length
        text.blocks = list(source.blocks)
        text.prompt_length = source.prompt_length
        if index and text.computed % self.model.pool.layout.block_size:
            text.blocks[-1] = self.free.pop()
            self.copies.append(BlockCopy(source.blocks[-1], text.blocks[-1]))
        return text

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
        """Answers of exactly ``params.max_tokens`` tokens each."""
        texts = [self.add(prompt, params) for prompt in prompts]
        self.run()
        return [text.answer for text in texts]

    def run(self) -> None:
        """Steps until all texts are complete or have failed."""
        while any(text.goes_on for text in self.texts):
            self.step()

    def slice(self, text: Text) -> Slice:
        """The next chunk of a text; asks for a token when it is the last."""
        end = min(text.computed + self.chunk, len(text.tokens))
        while len(text.blocks) * self.model.pool.layout.block_size < end:
            text.blocks.append(self.free.pop())
        tokens = np.array(text.tokens, np.int32)
        spec = SampleSpec(text.params, end, tokens, text.prompt_length, text.sequence_index)
        return Slice(
            text.id,
            text.computed,
            tokens[text.computed : end],
            np.array(text.blocks, np.int32),
            (spec,) if end == len(text.tokens) else (),
        )

    def step(self) -> None:
        """One step of all texts that go on."""
        copies, self.copies = tuple(self.copies), []
        plan = StepPlan(tuple(self.slice(text) for text in self.texts if text.goes_on), copies)
        result = self.execute(plan)
        for part in plan.slices:
            text = self.texts[part.sequence_id]
            text.computed = part.end
            text.failed = result.failed.get(text.id)
            text.tokens += [drawn.token for drawn in result.sampled.get(text.id, ())]

    def execute(self, plan: StepPlan) -> StepResult:
        if isinstance(self.model, Replica):
            return self.model.execute(plan)
        result = self.model.runner.execute(plan)
        assert result is not None
        return result

    def logits(self, text: Text) -> torch.Tensor:
        """Computes the next chunk and gives the float32 logits [vocab] after its last token."""
        return self.logits_together([text])[0]

    def logits_together(self, texts: list[Text]) -> list[torch.Tensor]:
        """The same for several texts in one step, chunks and single tokens mixed."""
        parts = [
            replace(self.slice(text), samples=(SampleSpec(ONE_TOKEN, position=0),))
            for text in texts
        ]
        plan = StepPlan(tuple(parts))
        if isinstance(self.model, Replica):
            rows = self.model.logits(plan)
        else:
            rows = logits_of(self.model, plan)
            assert rows is not None
        for text, part in zip(texts, parts, strict=True):
            text.computed = part.end
        return [rows[text.id] for text in texts]
