"""Only ranks that were told the same may join a replica."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.errors import Incompatible
from core.request import Role
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings
from worker.ranks.membership import Membership, join_message

SETTINGS = WorkerSettings("d-0", Role.DECODE, "model", 64, shape=ParallelShape(3, 1))


def test_all_have_joined_when_the_last_has() -> None:
    members = Membership(SETTINGS)
    members.join(join_message(SETTINGS, 2))
    assert (members.all_joined, members.missing) == (False, [1])
    members.join(join_message(SETTINGS, 1))
    assert (members.all_joined, members.missing) == (True, [])


@pytest.mark.parametrize(
    ("rank", "told", "reason"),
    [
        (1, {"worker": "d-1"}, "worker: 'd-0' here, 'd-1' there"),
        (1, {"num_blocks": 65}, "num_blocks: 64 here, 65 there"),
        (1, {"dtype": "bfloat16"}, "dtype: 'float32' here, 'bfloat16' there"),
        (1, {"shape": ParallelShape(1, 3)}, "tensor_parallel_size: 3 here, 1 there"),
        (3, {}, r"ranks \[1, 2\] are awaited"),
        (0, {}, r"ranks \[1, 2\] are awaited"),
    ],
)
def test_others_are_refused_by_name(rank: int, told: dict[str, object], reason: str) -> None:
    members = Membership(SETTINGS)
    with pytest.raises(Incompatible, match=reason):
        members.join(join_message(replace(SETTINGS, **told), rank))
    assert members.missing == [1, 2]


def test_a_rank_joins_once() -> None:
    members = Membership(SETTINGS)
    members.join(join_message(SETTINGS, 1))
    with pytest.raises(Incompatible, match=r"ranks \[2\] are awaited"):
        members.join(join_message(SETTINGS, 1))


def test_a_rank_with_another_model_is_named() -> None:
    members = Membership(SETTINGS)
    members.ready(1, model_hash=7)
    members.ready(2, model_hash=8)
    assert members.all_ready
    with pytest.raises(Incompatible, match=r"rank 2 .* model: 0000000000000007 here"):
        members.check_models(7)
