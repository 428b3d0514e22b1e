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
        self._answers: dict[tuple[int, ...], OracleAnswer] = {}

    def greedy(self, token_ids: Sequence[int], max_new_tokens: int) -> OracleAnswer:
        """Exactly ``max_new_tokens`` tokens: end-of-sequence tokens do not end the answer."""
        prompt = tuple(token_ids)
        known = self._answers.get(prompt)
        if known is None or len(known.tokens) < max_new_tokens:
            known = self._answers[prompt] = self._compute(prompt, max_new_tokens)
        return OracleAnswer(known.tokens[:max_new_tokens], known.margins[:max_new_tokens])

    def logprobs(self, token_ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """[n, vocab]: row i holds the logarithms of the probabilities of what follows token i."""
        torch = self._torch
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([list(token_ids)])).logits[0]
        return np.asarray(torch.log_softmax(logits.double(), dim=-1).numpy())

    def _compute(self, prompt: tuple[int, ...], max_new_tokens: int) -> OracleAnswer:
        torch = self._torch
        tokens: list[int] = []
        margins: list[float] = []
        ids, cache = torch.tensor([prompt]), None
        with torch.inference_mode():
            for _ in range(max_new_tokens):
                out = self._model(
                    input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                best = out.logits[0, -1].topk(2)
                tokens.append(int(best.indices[0]))
                margins.append(float(best.values[0] - best.values[1]))
                ids, cache = best.indices[:1].view(1, 1), out.past_key_values
        return OracleAnswer(tuple(tokens), tuple(margins))


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
