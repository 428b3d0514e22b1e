"""Which workers there are while the controller is away."""

from crossdock.v1.registry_pb2 import WorkerRecord
from router.placement import WorkerId
from router.replication.registry_mirror import PATIENCE_S, RegistryMirror

P0, D0 = WorkerId("prefill-0", 5), WorkerId("decode-0", 6)


def record(worker: WorkerId, *, draining: bool = False) -> WorkerRecord:
    return WorkerRecord(
        worker=worker.name, epoch=worker.epoch, endpoint="127.0.0.1:1", draining=draining
    )


def told(*records: WorkerRecord) -> list[bytes]:
    return [one.SerializeToString() for one in records]


def test_only_workers_that_somebody_reaches_keep_their_leases() -> None:
    mirror = RegistryMirror(0.0)
    mirror.controller_listed([record(P0), record(D0)], b"secret")
    change = mirror.change([D0])
    assert change.is_first_hand
    assert change.renewed == {"decode-0@6": record(D0).SerializeToString()}
    assert mirror.secret == b"secret"


def test_who_is_no_longer_listed_loses_its_lease_once() -> None:
    mirror = RegistryMirror(0.0)
    mirror.controller_listed([record(P0), record(D0)], b"")
    mirror.controller_listed([record(D0)], b"")
    change = mirror.change([P0, D0])
    assert change.ended == ["prefill-0@5"]
    mirror.told(change)
    assert mirror.change([D0]).ended == []


def test_a_lease_is_not_ended_before_the_store_has_heard_of_it() -> None:
    mirror = RegistryMirror(0.0)
    mirror.controller_listed([record(P0)], b"")
    mirror.controller_listed([], b"")
    assert mirror.change([]).ended == mirror.change([]).ended == ["prefill-0@5"]


def test_the_controller_gets_a_moment_before_leases_count() -> None:
    mirror = RegistryMirror(10.0)
    assert not mirror.goes_by_leases(10.0)
    assert mirror.goes_by_leases(10.0 + PATIENCE_S)
    mirror.controller_listed([record(D0)], b"")
    assert not mirror.goes_by_leases(100.0)
    mirror.controller_lost(100.0)
    mirror.controller_lost(100.0 + PATIENCE_S)
    assert mirror.goes_by_leases(100.0 + PATIENCE_S)


def test_a_router_that_starts_alone_goes_by_the_leases() -> None:
    mirror = RegistryMirror(0.0)
    assert mirror.leased(told(record(P0), record(D0)), []) == [record(P0), record(D0)]
    assert mirror.leased(told(record(P0), record(D0)), [P0, D0]) is None, "nothing new"
    change = mirror.change([P0, D0])
    assert not change.is_first_hand
    assert set(change.renewed) == {"prefill-0@5", "decode-0@6"}


def test_a_worker_without_a_lease_stays_while_it_is_attached() -> None:
    mirror = RegistryMirror(0.0)
    mirror.controller_listed([record(P0), record(D0)], b"")
    mirror.controller_lost(1.0)
    assert mirror.leased([], [P0, D0]) is None, "the store was emptied"
    assert mirror.leased([], [D0]) == [record(D0)]


def test_others_know_of_a_drain() -> None:
    mirror = RegistryMirror(0.0)
    mirror.controller_listed([record(D0)], b"")
    mirror.controller_lost(1.0)
    drained = record(D0, draining=True)
    assert mirror.leased(told(drained), [D0]) == [drained]


def test_a_lease_that_nobody_can_read_hides_no_other() -> None:
    mirror = RegistryMirror(0.0)
    assert mirror.leased([b"\xff", *told(record(P0))], []) == [record(P0)]
