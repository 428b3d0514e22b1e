"""The ways between workers and router in virtual time: each message takes equally long.

Covers: messages of the handoff, outputs and failures on their way to the router, edges on which
one batch of blocks is copied at a time. Does not cover: what the messages lead to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from core.block_hash import HashArray
from core.handoff import ToDecode, ToPrefill
from core.latency_profile import TransferModel, femtoseconds
from core.lease_events import Copied, CopyPieces, FailAttempt, FromPrefill
from core.outputs import Load, TokenOutput
from core.push import ReportFailure
from decode_worker.decoder import DecoderInput
from prefill_worker.messages import FromDecode, PrefillerInput
from tuner.simulate.agenda import Agenda


class RouterDoor(Protocol):
    """Who hears what workers say to the router, when it arrives."""

    def on_output(self, worker: int, output: TokenOutput) -> None: ...

    def on_failure(self, worker: int, failure: FailAttempt | ReportFailure) -> None: ...

    def expect_state(
        self,
        worker: int,
        arrives: int,
        load: Load | None,
        stored: HashArray,
        removed: HashArray,
    ) -> None:
        """To be known from the moment ``arrives`` (femtoseconds) on."""


class Network:
    """Delays, and who is at the other end."""

    def __init__(
        self, agenda: Agenda, message_s: float, transfer: TransferModel | None, block_size: int
    ) -> None:
        self.delay = femtoseconds(message_s)
        self.transferred_tokens = 0
        self.transfer_busy = 0
        self.router: RouterDoor
        self._agenda = agenda
        self._transfer = transfer
        self._block_size = block_size
        self._prefills: dict[str, Callable[[PrefillerInput], None]] = {}
        self._decodes: dict[str, Callable[[DecoderInput], None]] = {}
        self._decode_of: dict[int, Callable[[DecoderInput], None]] = {}
        # (prefill worker, number of the decode worker) → when its last batch has arrived.
        self._edge_free_at: dict[tuple[str, int], int] = {}

    def add_prefill(self, name: str, take: Callable[[PrefillerInput], None]) -> None:
        self._prefills[name] = take

    def add_decode(self, number: int, name: str, take: Callable[[DecoderInput], None]) -> None:
        self._decodes[name] = self._decode_of[number] = take

    # Between workers

    def to_decode(self, sender: str, receiver: str, message: ToDecode) -> None:
        self._send(self._decodes[receiver], FromPrefill(sender, message))

    def to_prefill(self, receiver: str, message: ToPrefill) -> None:
        self._send(self._prefills[receiver], FromDecode(message))

    def copy(self, receiver: int, command: CopyPieces) -> None:
        """Whole blocks travel, whatever they hold. A batch waits for those before it."""
        if self._transfer is None:
            raise ValueError("a cluster with prefill workers has a transfer model")
        edge, now = (command.peer, receiver), self._agenda.now
        tokens = len(command.copies) * self._block_size
        time = max(1, self._transfer.time(tokens))
        end = max(now, self._edge_free_at.get(edge, 0)) + time
        self._edge_free_at[edge] = end
        self.transferred_tokens += tokens
        self.transfer_busy += time
        good = tuple(piece.index for piece in command.copies)
        self._agenda.at(end, self._decode_of[receiver], Copied(command.lease_id, good, ()))

    # To the router

    def tell_output(self, worker: int, output: TokenOutput) -> None:
        self._send(self._on_output, (worker, output))

    def tell_failure(self, worker: int, failure: FailAttempt | ReportFailure) -> None:
        self._send(self._on_failure, (worker, failure))

    def tell_state(
        self, worker: int, now: int, load: Load | None, stored: HashArray, removed: HashArray
    ) -> None:
        """``now`` may be some time ago."""
        self.router.expect_state(worker, now + self.delay, load, stored, removed)

    def _on_output(self, told: tuple[int, TokenOutput]) -> None:
        self.router.on_output(*told)

    def _on_failure(self, told: tuple[int, FailAttempt | ReportFailure]) -> None:
        self.router.on_failure(*told)

    def _send(self, take: Callable[..., None], message: object) -> None:
        self._agenda.at(self._agenda.now + self.delay, take, message)
