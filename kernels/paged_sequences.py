"""Where the sequences of a batch have their keys and values, for attention to read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class PagedSequences:
    """S sequences, each with some new tokens in consecutive rows of a batch. Made for one step.

    int32 on the pool's device: ``block_tables`` [S, M], of which a row's first
    ceil(length / block_size) entries are read and the others may be anything; ``lengths`` [S], the
    new tokens included; ``first_rows`` [S + 1], so that the rows of s are ``first_rows[s]`` to
    ``first_rows[s + 1] - 1``.

    Known to the host, so that no launch has to ask the device: the first ``num_decodes`` sequences
    have one new token each; ``longest_query`` is the most new tokens of a sequence, ``longest`` the
    largest of ``lengths``.
    """

    block_tables: torch.Tensor
    lengths: torch.Tensor
    first_rows: torch.Tensor
    num_decodes: int
    longest_query: int
    longest: int
    # What an implementation works out once for all layers, by its own keys.
    derived: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
