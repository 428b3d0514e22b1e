"""The cluster's config: defaults, sizes, overrides, and plain words for what is wrong."""

from __future__ import annotations

import pytest

from core.config import ClusterSpec, make_spec
from core.config_paths import field_paths
from core.errors import InvalidField
from core.handoff import LeaseTimes
from core.kv_config import parse_bytes
from core.request import REQUEST_ID_KEPT_S
from core.shards import ONE_RANK, ParallelShape
from core.tls_config import TlsSpec
from core.tls_files import TlsFiles

TLS = {"ca": "ca.pem", "cert": "worker.pem", "key": "worker.key"}


def refusal(settings: dict) -> str:
    with pytest.raises(InvalidField) as caught:
        make_spec(settings)
    return caught.value.message


def test_an_empty_config_is_one_prefill_and_one_decode_worker() -> None:
    spec = make_spec({})
    assert spec == ClusterSpec()
    assert (spec.pools.prefill.replicas, spec.pools.decode.replicas) == (1, 1)


def test_a_full_config_is_taken_as_written() -> None:
    spec = make_spec(
        {
            "model": "models/llama",
            "served_model_name": "llama",
            "max_model_len": 4096,
            "engine": {"device": "cpu", "dtype": "bfloat16", "threads": 2, "affinity": "none"},
            "pools": {
                "prefill": {"replicas": 2, "resources": {"CPU": 0.5}, "max_num_seqs": 4},
                "decode": {
                    "replicas": 3,
                    "max_num_batched_tokens": 256,
                    "tensor_parallel_size": 3,
                    "pipeline_parallel_size": 2,
                },
            },
            "kv": {"block_size": 32, "memory": "1GiB", "transport": "tcp", "lease": 9, "beat": 2},
            "tls": TLS,
        }
    )
    assert spec.tls == TlsSpec(**TLS)
    assert spec.tls_files == TlsFiles(**TLS)
    assert (spec.kv.lease, spec.kv.beat) == (9.0, 2.0)
    assert spec.pools.prefill.resources == {"CPU": 0.5}
    assert spec.pools.decode.max_num_batched_tokens == 256
    assert (spec.pools.prefill.shape, spec.pools.decode.shape) == (ONE_RANK, ParallelShape(3, 2))
    assert (spec.kv.memory, spec.kv.transport) == (2**30, "tcp")


@pytest.mark.parametrize(
    ("text", "count"),
    [("512MiB", 2**29), ("2 gb", 2 * 10**9), ("1.5KiB", 1536), (4096, 4096), ("7", 7)],
)
def test_sizes_are_read_with_their_units(text: object, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "lots", "5 parsecs", "-1MiB", None])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("settings", "path", "suggestion"),
    [
        ({"pools": {"prefil": {}}}, "pools.prefil", "pools.prefill"),
        ({"modle": "x"}, "modle", "model"),
        ({"kv": {"blocksize": 8}}, "kv.blocksize", "kv.block_size"),
        ({"block_size": 8}, "block_size", "kv.block_size"),
        ({"tls": {"certs": "worker.pem"} | TLS}, "tls.certs", "tls.cert"),
        ({"pools": {"decode": {"replica": 2}}}, "pools.decode.replica", "pools.decode.replicas"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(settings, path, suggestion) -> None:
    message = refusal(settings)
    assert message.startswith(f"{path} = ")
    assert f"did you mean `{suggestion}`?" in message


def test_a_setting_like_no_other_is_refused_with_those_of_its_section() -> None:
    assert "valid here: engine.device, engine.dtype" in refusal({"engine": {"zzz": 1}})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pools": {"prefill": {"replicas": -1}}}, "pools.prefill.replicas = -1"),
        ({"pools": {"prefill": {"resources": {"CPU": 0}}}}, "pools.prefill.resources.CPU = 0"),
        ({"pools": {"prefill": {"resources": {}}}}, "pools.prefill.resources"),
        ({"kv": {"memory": "much"}}, "kv.memory = 'much': must be a size"),
        ({"kv": {"memory": "1GiB", "num_blocks": 4}}, "not both"),
        ({"kv": {"transport": "rdma"}}, "kv.transport = 'rdma'"),
        ({"engine": {"dtype": "int3"}}, "engine.dtype = 'int3'"),
        ({"engine": {"device": "tpu"}}, "engine.device = 'tpu'"),
        ({"engine": {"threads": True}}, "engine.threads = True: input should be a valid integer"),
        ({"engine": {"threads": "2"}}, "engine.threads = '2': input should be a valid integer"),
        ({"pools": {"decode": {"replicas": True}}}, "pools.decode.replicas = True"),
        ({"kv": {"tcp_streams": True}}, "kv.tcp_streams = True"),
        ({"max_model_len": False}, "max_model_len = False"),
        ({"pools": {"decode": {"tensor_parallel_size": 0}}},
         "pools.decode.tensor_parallel_size = 0"),
        ({"pools": {"prefill": {"pipeline_parallel_size": 1.5}}},
         "pools.prefill.pipeline_parallel_size = 1.5"),
        ({"pools": {"prefill": {"pipeline_parallel_size": 10**9}}},
         "pools.prefill.pipeline_parallel_size = 1000000000: input should be less than or equal"),
        ({"kv": {"lease": 10}}, "kv.beat = 5.0: must be less than 2.5, a quarter of kv.lease (10)"),
        ({"kv": {"lease": 50}}, "kv.beat = 5.0: with kv.lease = 50 it must be less than 2.5"),
        ({"kv": {"lease": 60, "beat": 1}}, "kv.lease = 60: input should be less than 60"),
        ({"kv": {"lease": float("nan")}}, "kv.lease = nan"),
        ({"kv": {"beat": 0.1}}, "kv.beat = 0.1"),
        ({"pools": 3}, "pools = 3"),
        ({"pools": {"decode": {"replicas": 0}}},
         "pools.decode.replicas = 0: must be at least 1, or nobody streams answers"),
        ({"tls": {"ca": "ca.pem", "cert": "worker.pem"}},
         "tls.key = None: is missing: tls needs it beside the others"),
        ({"tls": {"ca": "", "cert": "worker.pem", "key": "worker.key"}}, "tls.ca = ''"),
        ({"tls": TLS, "engine": {"device": "cuda"}},
             "KV blocks go over NCCL, which is not encrypted: set tls.unencrypted_nccl to true"),
            ({"tls": TLS, "engine": {"device": "cuda"}, "kv": {"transport": "cuda_ipc"},
              "pools": {"decode": {"tensor_parallel_size": 2}}},
             "the ranks of a worker speak over NCCL, which is not encrypted"),
            ({"tls": {}}, "tls = '…': give ca, cert and key, or doors, or leave tls out"),
            ({"tls": TLS | {"name": "*"}}, "tls.name = '*'"),
            ({"tls": TLS | {"name": "x", "operator_name": "x"}},
             "tls.operator_name = 'x': is tls.name, too"),
            ({"tls": {"doors": {"cert": "door.pem"}}}, "tls.doors.key"),
            ({"admin": {"token_sha256": ["secret"]}}, "admin.token_sha256.0 = '…'"),
    ],
)  # fmt: skip
def test_what_can_not_be_served_is_refused_by_name(settings: dict, words: str) -> None:
    assert words in refusal(settings)


@pytest.mark.parametrize(("lease", "beat"), [(30, 5), (1, 0.2), (39.9, 5), (59, 0.2)])
def test_ended_attempts_are_forgotten_before_their_ids_may_come_again(lease, beat) -> None:
    spec = make_spec({"kv": {"lease": lease, "beat": beat}})
    times = LeaseTimes(lease=spec.kv.lease, beat=spec.kv.beat)
    assert times.tombstone < REQUEST_ID_KEPT_S
    assert times.prefill_deadline > 2 * times.beat, "one beat may be late"


def test_flags_win_over_the_file_and_leave_the_rest() -> None:
    settings = {"pools": {"decode": {"replicas": 2, "max_num_seqs": 8}}}
    spec = make_spec(settings, {"pools.decode.replicas": 5, "model": None, "engine.dtype": "auto"})
    assert spec.pools.decode.replicas == 5
    assert spec.pools.decode.max_num_seqs == 8
    assert settings == {"pools": {"decode": {"replicas": 2, "max_num_seqs": 8}}}


def test_every_section_lists_its_paths() -> None:
    assert {"model", "engine.threads", "pools.prefill.resources", "tls", "tls.key"} <= set(
        field_paths(ClusterSpec)
    )


@pytest.mark.parametrize(
    ("device", "transport", "valid"),
    [("cpu", "nccl", "auto, shm, tcp"), ("cuda", "shm", "auto, cuda_ipc, nccl")],
)
def test_a_transport_that_the_device_can_not_have_is_refused(
    device: str, transport: str, valid: str
) -> None:
    with pytest.raises(InvalidField, match=valid) as refused:
        make_spec({"engine": {"device": device}, "kv": {"transport": transport}})
    assert refused.value.metadata["field"] == "kv.transport"


def test_a_replica_of_too_many_ranks_is_refused() -> None:
    pool = {"tensor_parallel_size": 16, "pipeline_parallel_size": 32}
    with pytest.raises(InvalidField, match="must be at most 16"):
        make_spec({"pools": {"decode": pool}})
