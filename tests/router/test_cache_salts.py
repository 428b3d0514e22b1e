"""Salts of block hashes: the same at all routers of a cluster, another one for each tenant."""

from router.intake.cache_salts import CacheSalts

SECRET = bytes(range(32))


def salts(model: str = "model", secret: bytes = SECRET) -> CacheSalts:
    made = CacheSalts(model)
    made.use(secret)
    return made


def test_routers_of_one_cluster_agree() -> None:
    assert salts().of("alice") == salts().of("alice")


def test_tenants_models_and_clusters_differ() -> None:
    found = {
        salts().of("alice"),
        salts().of("bob"),
        salts("other").of("alice"),
        salts(secret=SECRET[::-1]).of("alice"),
    }
    assert len(found) == 4


def test_without_a_cluster_nobody_can_know_it() -> None:
    assert CacheSalts("model").of("alice") != CacheSalts("model").of("alice")


def test_another_secret_counts_from_then_on() -> None:
    made = CacheSalts("model")
    before = made.of("alice")
    made.use(SECRET)
    assert made.of("alice") == salts().of("alice") != before
