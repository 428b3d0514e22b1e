"""What an hour of each kind of accelerator costs, from the option or the config."""

from __future__ import annotations

import pytest

from cluster.cli.gpu_prices import hour_prices
from core.config import ClusterSpec, make_spec
from core.errors import InvalidField

BOTH = ["h100", "l40s"]


def config(prefill: float | None, decode: float | None) -> ClusterSpec:
    return make_spec(
        {
            "pools": {
                "prefill": {"gpu_hour_price": prefill},
                "decode": {"gpu_hour_price": decode},
            }
        }
    )


@pytest.mark.parametrize(
    ("text", "kinds", "prices"),
    [
        (None, ["h100"], [0.0]),
        ("2.5", ["h100"], [2.5]),
        ("2.5", BOTH, [2.5, 2.5]),
        ("h100=2.5, l40s=0.9", BOTH, [2.5, 0.9]),
        ("l40s=0.9,2.5", BOTH, [2.5, 0.9]),
        ("h100=2.5,l40s=0.9", ["l40s"], [0.9]),
        ("my own GPU=3", ["my own GPU"], [3.0]),
    ],
)
def test_prices_of_the_option(text: str | None, kinds: list[str], prices: list[float]) -> None:
    assert hour_prices(text, ClusterSpec(), kinds) == prices


def test_the_option_goes_before_the_config() -> None:
    assert hour_prices("4", config(2.5, 0.9), BOTH) == [4.0, 4.0]


def test_prices_of_the_config() -> None:
    assert hour_prices(None, config(2.5, 0.9), BOTH) == [2.5, 0.9]
    assert hour_prices(None, config(None, 0.9), ["l40s"]) == [0.9]
    assert hour_prices(None, config(0.9, 0.9), ["l40s"]) == [0.9]
    assert hour_prices(None, config(None, 0.9), ["l40s", "l40s"]) == [0.9, 0.9]


@pytest.mark.parametrize("text", ["cheap", "0", "-1", "nan", "inf", "h100=", "", "h100=2,", "=x"])
def test_what_is_no_price(text: str) -> None:
    with pytest.raises(InvalidField, match="must be a price above zero"):
        hour_prices(text, ClusterSpec(), ["h100"])


@pytest.mark.parametrize(
    ("text", "kinds", "told"),
    [
        ("h10=2", ["h100"], "no such kind here, but h100; did you mean h100"),
        ("mine=2", BOTH, "no such kind here, but h100 and l40s"),
        ("h100=2", BOTH, "no price of l40s: add l40s="),
        ("l40s=2", ["h100"], "no price of h100"),
        ("h100=2,h100=3", ["h100"], "says h100 twice"),
        ("2,3", ["h100"], "says the price of all kinds twice"),
    ],
)
def test_prices_that_leave_it_open(text: str, kinds: list[str], told: str) -> None:
    with pytest.raises(InvalidField, match=told) as caught:
        hour_prices(text, ClusterSpec(), kinds)
    assert caught.value.metadata["field"] == "--gpu-hour-price"


def test_configs_that_leave_it_open() -> None:
    with pytest.raises(InvalidField, match="without a price of l40s") as caught:
        hour_prices(None, config(2.5, None), BOTH)
    assert caught.value.metadata["field"] == "pools.decode.gpu_hour_price"
    with pytest.raises(InvalidField, match="give one price for both"):
        hour_prices(None, config(2.5, 0.9), ["h100"])
