"""What the door is told and what it answers: events in, commands out. Plain values."""

from __future__ import annotations

from core.errors import CrossdockError
from core.request import RequestKey
from core.values import value


@value()
class Arrived:
    """A valid request. ``due``: when its first token is wanted (seconds, the caller's clock);
    ``priority``: class, 0 is served first; ``answers``: n; ``max_tokens``: of each answer;
    ``in_budget``: its tenant's budgets were asked for all of its call."""

    key: RequestKey
    priority: int
    due: float
    prompt_tokens: int
    answers: int
    max_tokens: int
    in_budget: bool = False


@value()
class RoomChanged:
    """Workers may take more than before: one told of its load, one came, a prompt was sent."""


@value()
class Started:
    """A request that was let in has its first token."""

    key: RequestKey


@value()
class Ended:
    """A request has ended, wherever it was. ``computed_tokens``: of its prompt, those that were in
    no cache; ``generated_tokens``: of all answers."""

    key: RequestKey
    computed_tokens: int
    generated_tokens: int


DoorEvent = Arrived | RoomChanged | Started | Ended


@value()
class Admit:
    """Send this request to workers now, then say RoomChanged."""

    key: RequestKey


@value()
class Refuse:
    """End it with this error. It may have waited for a while."""

    key: RequestKey
    error: CrossdockError


DoorCommand = Admit | Refuse
