"""Request ids are unique while a request runs and for a minute after."""

import pytest

from core.errors import AlreadyExists
from core.request import REQUEST_ID_KEPT_S, RequestKey
from router.requests.request_ids import RequestIds

KEY = RequestKey("default", "mine")


def test_an_id_is_taken_while_it_runs_and_for_a_minute_after() -> None:
    ids = RequestIds()
    ids.claim(KEY, now=0.0)
    with pytest.raises(AlreadyExists, match="mine"):
        ids.claim(KEY, now=1000.0)
    ids.release(KEY, now=1000.0)
    with pytest.raises(AlreadyExists):
        ids.claim(KEY, now=1000.0 + REQUEST_ID_KEPT_S - 1)
    ids.claim(KEY, now=1000.0 + REQUEST_ID_KEPT_S)


def test_tenants_have_their_own_ids() -> None:
    ids = RequestIds()
    ids.claim(KEY, now=0.0)
    ids.claim(RequestKey("other", "mine"), now=0.0)
