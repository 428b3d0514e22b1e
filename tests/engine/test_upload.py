"""Packing of arrays for one copy to a device."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.upload import Upload, packed_size, unpacked

shapes = st.lists(st.integers(0, 5), min_size=1, max_size=2).map(tuple)
arrays = st.lists(
    st.tuples(shapes, st.sampled_from([np.int32, np.int64, np.uint8])).map(
        lambda made: np.arange(np.prod(made[0]), dtype=made[1]).reshape(made[0])
    ),
    max_size=6,
)


@given(st.lists(arrays, min_size=1, max_size=3))
def test_what_was_packed_is_found_again_at_aligned_places(steps: list[list[np.ndarray]]) -> None:
    upload = Upload(torch.device("cpu"))
    for step in steps:
        flat = upload.packed(step)
        assert len(flat) == packed_size(step)
        for tensor, array in zip(unpacked(flat, step), step, strict=True):
            assert np.array_equal(tensor.numpy(), array)
            assert tensor.numpy().dtype == array.dtype
            assert (tensor.data_ptr() - flat.data_ptr()) % 16 == 0 or not tensor.numel()


def test_the_buffer_is_kept_while_it_is_large_enough() -> None:
    upload = Upload(torch.device("cpu"))
    first = upload.packed([np.zeros(8)]).data_ptr()
    assert upload.packed([np.zeros(16)]).data_ptr() == first


def test_on_a_cpu_nothing_is_copied() -> None:
    array = np.arange(3)
    (tensor,) = Upload(torch.device("cpu")).to_device((array,))
    assert tensor.data_ptr() == array.ctypes.data
