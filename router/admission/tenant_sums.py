"""What tenants' requests have cost on one router, for fair shares and for budgets. Plain values."""

from __future__ import annotations

from typing import NamedTuple

# A tenant's of one priority class: (class, tenant).
Share = tuple[int, str]


class Paid(NamedTuple):
    """For a share, weighted: what requests cost that have ended since the router started, and what
    those that run are expected to."""

    ended: float = 0.0
    running: float = 0.0


class Charged(NamedTuple):
    """To a tenant's budgets since the router started, less what was given back."""

    requests: int = 0
    tokens: int = 0


class BudgetsLeft(NamedTuple):
    """Of a tenant's budgets; 0 where it has none."""

    requests: float = 0.0
    tokens: float = 0.0
