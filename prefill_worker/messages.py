"""What a prefill worker's decisions take in and give out: events and commands as dataclasses."""

from __future__ import annotations

from core.block_hash import HashArray, TokenArray
from core.handoff import FailureCause, ToDecode, ToPrefill
from core.outputs import TokenOutput
from core.push import ReportFailure
from core.request import AttemptKey, SamplingParams
from core.values import value


# Events.
@value(eq=False)
class Submit:
    """The router wants this prompt computed and handed to ``decode_worker``.

    ``hashes``: of all full blocks of the prompt, from who has computed them already; no wire
    carries them.
    """

    key: AttemptKey
    tokens: TokenArray
    params: SamplingParams
    salt: int
    decode_worker: str
    hashes: HashArray | None = None


@value()
class Abort:
    """The router gave the attempt up."""

    key: AttemptKey


@value()
class FromDecode:
    """A message arrived from a decode worker."""

    message: ToPrefill


@value()
class DecodeLost:
    """The stream to a decode worker broke, or could not be opened."""

    decode_worker: str
    cause: FailureCause
    detail: str


@value()
class Tick:
    """Time passed."""


PrefillerInput = Submit | Abort | FromDecode | DecodeLost | Tick


# Commands.
@value()
class SendToDecode:
    decode_worker: str
    message: ToDecode


@value()
class AnnouncePieces:
    """Announce these finished blocks: prompt block indices ``first``, ``first + 1``, …

    ``generations`` are those of the moment of the decision: what is described later must still be
    the same use of the block, or D refuses it.
    """

    decode_worker: str
    key: AttemptKey
    lease_id: int
    first: int
    block_ids: tuple[int, ...]
    generations: tuple[int, ...]


@value()
class AttemptEnded:
    """Nothing more will come of this attempt on P."""

    key: AttemptKey


PrefillerCommand = SendToDecode | AnnouncePieces | ReportFailure | AttemptEnded | TokenOutput
