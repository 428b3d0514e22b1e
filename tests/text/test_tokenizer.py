"""Reading a tokenizer from a model folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import Incompatible, InvalidField
from text.tokenizer import Tokenizer, read_eos_token_ids


def test_encode_and_decode(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello wörld")
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids.tolist()) == "hello wörld"
    assert ids.max() < tokenizer.vocab_size


def test_a_folder_without_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=r"tokenizer\.json.*missing.*model import"):
        Tokenizer.load(tmp_path)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Incompatible, match=r"tokenizer\.json can't be used"):
        Tokenizer.load(tmp_path)


def test_eos_ids_prefer_the_generation_config(tmp_path: Path) -> None:
    assert read_eos_token_ids(tmp_path) == ()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert read_eos_token_ids(tmp_path) == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert read_eos_token_ids(tmp_path) == (2, 7)


@pytest.mark.parametrize("stated", [300, -1, [2, 300], "2", [True], 2.0])
def test_an_end_of_sequence_id_that_no_model_can_draw_is_refused(
    tmp_path: Path, stated: object
) -> None:
    config = {"vocab_size": 300, "eos_token_id": stated}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidField, match=r"eos_token_id = .* 0 to 299"):
        read_eos_token_ids(tmp_path)
