"""What a client asks and what it gets back: the nouns that every plane speaks of.

Covers: identity of requests and attempts, sampling parameters and their limits, finish reasons.
Does not cover: the life of a request (``core.lifecycle``), the wire format (``protos``).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from core.errors import InvalidField
from core.values import value

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256
SEED_BITS = 63
MAX_SEED = 2**SEED_BITS - 1
# As many as the OpenAI API allows.
MAX_N = 128
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 300
# A request id may come again this long after its request ended. Workers remember ended attempts
# for less than that (``core.handoff.LeaseTimes.tombstone``).
REQUEST_ID_KEPT_S = 60.0


# The keys are tuples because they are looked up for each token of each step: hashing a dataclass
# takes several times as long.
class RequestKey(NamedTuple):
    """Who asks, and the id that is unique within that tenant."""

    tenant: str
    request_id: str


class AttemptKey(NamedTuple):
    """One try at a request. Only the router numbers attempts, upwards from a number of its own."""

    request: RequestKey
    attempt: int

    def __str__(self) -> str:
        return f"{self.request.tenant}/{self.request.request_id}#{self.attempt}"


class Role(Enum):
    """What a worker does. A mixed worker prefills in chunks beside decoding."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"

    @property
    def prefills_for_others(self) -> bool:
        return self is Role.PREFILL

    @property
    def takes_handoffs(self) -> bool:
        return self is Role.DECODE

    @property
    def decodes(self) -> bool:
        return self is not Role.PREFILL


class FinishReason(Enum):
    """Why an answer ended, by the names of the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"


@value()
class SamplingParams:
    """How to choose tokens. ``temperature`` 0 is greedy; ``seed`` is always set when sampling.

    ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 mean "no limit". ``stop_token_ids`` end the answer
    in addition to the model's own end-of-sequence ids (unless ``ignore_eos``).

    ``repetition_penalty`` counts tokens of prompt and answer, ``presence_penalty`` and
    ``frequency_penalty`` those of the answer; ``logit_bias`` pairs a token id with what is added
    to its logit. ``n`` answers are drawn from one prompt. ``logprobs``: how many of the likeliest
    tokens are reported beside each chosen one (0: the chosen one only; None: nothing).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_above_zero("top_p", self.top_p, 1)
        _check_range("top_k", self.top_k, 0, 2**31 - 1)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("n", self.n, 1, MAX_N)
        if self.logprobs is not None:
            _check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        self._check_penalties()
        self._check_stop()

    def _check_penalties(self) -> None:
        _check_above_zero("repetition_penalty", self.repetition_penalty, 2)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            fix = f"at most {MAX_LOGIT_BIASES} biased tokens"
            raise InvalidField("logit_bias", len(self.logit_bias), fix)
        for _, bias in self.logit_bias:
            _check_range("logit_bias", bias, -100.0, 100.0)

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidField("stop", len(self.stop), f"at most {MAX_STOP_STRINGS} stop strings")
        for text in self.stop:
            if not text or len(text) > MAX_STOP_STRING_LENGTH:
                raise InvalidField(
                    "stop", text, f"each stop string has 1 to {MAX_STOP_STRING_LENGTH} characters"
                )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Whether the tokens so far change the next one's logits directly."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)


def _check_range(field: str, value: float, low: float, high: float) -> None:
    # NaN is in no range.
    if not low <= value <= high:
        raise InvalidField(field, value, f"must be between {low} and {high}")


def _check_above_zero(field: str, value: float, high: float) -> None:
    if not 0.0 < value <= high:
        raise InvalidField(field, value, f"must be above 0 and at most {high}")
