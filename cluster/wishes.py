"""What an operator wants, as a change of the wanted numbers and of one worker. Pure.

Covers: scaling, draining, evicting and flipping, and why one of them can't be done now. Does not
cover: how the workers get there (``cluster.pool_state``), whether there is room
(``cluster.places``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.pool_messages import (
    DrainWorker,
    EvictWorker,
    FlipWorker,
    Member,
    MemberState,
    ScaleTo,
)
from cluster.wanted import Wanted, refusal
from core.errors import NotFound
from core.request import Role

Wish = ScaleTo | DrainWorker | EvictWorker | FlipWorker


@dataclass(frozen=True, slots=True)
class Change:
    """``retire``: the worker that leaves, with its drain limit. ``successor_role``: a new worker of
    this role takes over its place."""

    wanted: Wanted
    retire: Member | None = None
    successor_role: Role | None = None


def plan_change(
    wish: Wish, wanted: Wanted, members: Sequence[Member], *, prefill_required: bool
) -> Change:
    """``wanted``, ``members``: as they are now. ``prefill_required``: decode workers may not
    prefill. Raises ``CrossdockError`` if it can't be done."""
    match wish:
        case ScaleTo():
            change, fix = _scale(wish, wanted)
        case DrainWorker():
            change, fix = _drain(wish, wanted, _find(wish.name, members))
        case EvictWorker():
            change, fix = _evict(wish, wanted, _find(wish.name, members)), ""
        case FlipWorker():
            change, fix = _flip(wanted, _find(wish.name, members))
    change.wanted.check_servable(prefill_required, fix)
    change.wanted.check_range()
    return change


# Each of these also says what would help if nobody could serve then.


def _scale(wish: ScaleTo, wanted: Wanted) -> tuple[Change, str]:
    prefill = wanted.prefill if wish.prefill is None else wish.prefill
    decode = wanted.decode if wish.decode is None else wish.decode
    scaled = Wanted(prefill, decode)
    scaled.check_range()
    return Change(scaled), "scale prefill to at least 1"


def _drain(wish: DrainWorker, wanted: Wanted, member: Member) -> tuple[Change, str]:
    fix = f"drain {wish.name} with a replacement, or scale the pool up first"
    if not member.active:
        return Change(wanted), fix
    if not wish.replace:
        wanted = wanted.plus(member.slot.pool, -1)
    return Change(wanted, replace(member, drain_limit_s=wish.limit_s)), fix


def _evict(wish: EvictWorker, wanted: Wanted, member: Member) -> Change:
    return Change(wanted, replace(member, drain_limit_s=wish.limit_s, evicted=True))


def _flip(wanted: Wanted, member: Member) -> tuple[Change, str]:
    pool = member.slot.pool
    fix = f"scale the {pool} pool up first"
    if member.successor is not None:
        return Change(wanted), fix
    _require_flippable(member)
    other, role = ("decode", Role.DECODE) if pool == "prefill" else ("prefill", Role.PREFILL)
    return Change(wanted.plus(pool, -1).plus(other, +1), member, role), fix


def _require_flippable(member: Member) -> None:
    name = member.slot.name
    if member.slot.role is Role.MIXED:
        raise refusal(f"{name} prefills and decodes already; scale the prefill pool up instead")
    if not member.active:
        raise refusal(f"{name} is being drained; wait for its end")
    if member.state is MemberState.WAITING:
        raise refusal(f"{name} {member.detail}; wait for that")


def _find(name: str, members: Sequence[Member]) -> Member:
    for member in members:
        if member.slot.name == name:
            return member
    names = ", ".join(sorted(member.slot.name for member in members))
    raise NotFound(
        f"there is no worker {name!r}; there are {names}",
        reason="WORKER_NOT_FOUND",
        metadata={"worker": name, "workers": names},
    )
