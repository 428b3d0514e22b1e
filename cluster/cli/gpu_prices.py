"""What an hour of each kind of accelerator costs: `--gpu-hour-price`, else the config."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from core.config import ClusterSpec
from core.errors import InvalidField
from tuner.profile.hardware import BUILT_IN

_OPTION = "--gpu-hour-price"
_POOLS = ("prefill", "decode")


def hour_prices(text: str | None, base: ClusterSpec, kinds: Sequence[str]) -> list[float]:
    """Of each of ``kinds``: the one kind of both pools, or that of prefill and that of decode; 0 if
    nobody says any. ``text``: as typed; None: the config says it by pool.

    ``text`` may be a list of prices with kinds that are not there. Raises ``InvalidField`` for an
    unknown kind, and where one kind has a price and another doesn't:
    costs could not be compared.
    """
    if text is None:
        return _of_pools(base, kinds)
    typed = _typed(text)
    for kind in typed:
        if kind not in ("", *kinds, *BUILT_IN):
            raise InvalidField(_OPTION, kind, _other_kinds(kind, kinds))
    prices = [typed.get(kind, typed.get("", 0.0)) for kind in kinds]
    if 0.0 in prices:
        kind = kinds[prices.index(0.0)]
        fix = f"says no price of {kind}: add {kind}=… so that costs can be compared"
        raise InvalidField(_OPTION, text, fix)
    return prices


def _typed(text: str) -> dict[str, float]:
    """By kind of accelerator; "" for all others."""
    prices: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        kind = name.strip()
        try:
            price = float(number)
        except ValueError:
            price = math.nan
        if not (math.isfinite(price) and price > 0):
            fix = "must be a price above zero, such as 2.5, or h100=2.5,l40s=0.9"
            raise InvalidField(_OPTION, text, fix)
        if kind in prices:
            raise InvalidField(_OPTION, text, f"says {kind or 'the price of all kinds'} twice")
        prices[kind] = price
    return prices


def _other_kinds(kind: str, kinds: Sequence[str]) -> str:
    close = difflib.get_close_matches(kind, kinds, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"there is no such kind here, but {' and '.join(dict.fromkeys(kinds))}{meant}"


def _of_pools(base: ClusterSpec, kinds: Sequence[str]) -> list[float]:
    prices = [base.pools.of(pool).gpu_hour_price for pool in _POOLS]
    known = {price for price in prices if price is not None}
    if not known:
        return [0.0] * len(kinds)
    if len(set(kinds)) == 1:
        if len(known) > 1:
            fix = f"and the other pool says another price of {kinds[0]}: give one price for both"
            raise InvalidField("pools.prefill.gpu_hour_price", prices[0], fix)
        return [*known] * len(kinds)
    for pool, kind, price in zip(_POOLS, kinds, prices, strict=True):
        if price is None:
            fix = f"is missing: without a price of {kind} costs can't be compared"
            raise InvalidField(f"pools.{pool}.gpu_hour_price", None, fix)
    return [price or 0.0 for price in prices]
