"""What transformers answers to a prompt in float32, greedily: the tokens that ours must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Two orders of adding floats differ by less; a smaller lead of the first token may go either way.
NEAR_TIE = 1e-4


@dataclass(frozen=True, slots=True)
class OracleAnswer:
    """``margins[i]`` is how far the logit of ``tokens[i]`` lay above the runner-up's."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


class Oracle:
    """Remembers its answers, so that many configurations may ask for the same prompt."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._answers: dict[tuple[tuple[int, ...], tuple[int, ...]], OracleAnswer] = {}

    def greedy(
        self, token_ids: Sequence[int], max_new_tokens: int, ours: Sequence[int]
    ) -> OracleAnswer:
        """Its own answer as far as ``ours`` is the same, and what it says instead.

        Each token is the best one after the prompt and those of ``ours`` before it, which one pass
        finds for all. That is another text behind the first difference, where `assert_same_tokens`
        ends. Exactly ``max_new_tokens`` tokens, if ours has as many: end-of-sequence tokens do not
        end the answer.
        """
        prompt, given = tuple(token_ids), tuple(ours[: max_new_tokens - 1])
        if (prompt, given) not in self._answers:
            self._answers[prompt, given] = self._compute(prompt, given)
        return self._answers[prompt, given]

    def logprobs(self, token_ids: Sequence[int], count: int) -> npt.NDArray[np.float64]:
        """[count, vocab]: the logarithms of the probabilities of each of the last ``count``
        tokens."""
        torch = self._torch
        ids = torch.tensor([list(token_ids)])
        with torch.inference_mode():
            logits = self._model(input_ids=ids, logits_to_keep=count + 1).logits[0, :-1]
        return np.asarray(torch.log_softmax(logits.double(), dim=-1).numpy())

    def _compute(self, prompt: tuple[int, ...], given: tuple[int, ...]) -> OracleAnswer:
        torch = self._torch
        ids = torch.tensor([prompt + given])
        with torch.inference_mode():
            logits = self._model(input_ids=ids, logits_to_keep=len(given) + 1).logits[0]
        best = logits.topk(2, dim=-1)
        margins = best.values[:, 0] - best.values[:, 1]
        return OracleAnswer(tuple(best.indices[:, 0].tolist()), tuple(margins.tolist()))


def assert_same_tokens(ours: Sequence[int], answer: OracleAnswer) -> int:
    """Fails at a token that differs, unless the oracle itself nearly tied there.

    What follows a near tie is another text, so the comparison ends there. Returns how many near
    ties were allowed: 0 or 1.
    """
    for i, (our, theirs) in enumerate(zip(ours, answer.tokens, strict=False)):
        if our != theirs:
            assert answer.margins[i] < NEAR_TIE, (
                f"token {i} is {our}, transformers has {theirs} with a margin of "
                f"{answer.margins[i]:.6f}; {list(ours)} against {list(answer.tokens)}"
            )
            return 1
    assert len(ours) == len(answer.tokens)
    return 0
