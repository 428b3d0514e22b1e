"""What prompts say: ordinary tokens, the wanted number of them, never the same twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from text.tokenizer import Tokenizer
from tuner.load.plan import PlannedRequest
from tuner.load.prompts import PromptMaker
from tuner.load.vocabulary import ids_below, ordinary_ids


def planned(index: int, tokens: int, seed: int = 0, blocks: tuple[int, ...] = ()) -> PlannedRequest:
    return PlannedRequest(seed, index, 0.0, tokens, 1, blocks)


@pytest.fixture
def tokenizer(word_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(word_tokenizer)


def test_ordinary_ids_are_words(tokenizer: Tokenizer) -> None:
    words = [tokenizer.decode([i]) for i in ordinary_ids(tokenizer).tolist()]
    assert " bab" in words
    assert all(word.startswith(" ") and word[1:].isalpha() for word in words)


def test_without_words_they_are_printable(byte_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(byte_tokenizer)
    letters = {tokenizer.decode([i]) for i in ordinary_ids(tokenizer).tolist()}
    assert letters == {chr(code) for code in range(32, 127)}


def test_ids_of_an_unknown_vocabulary_leave_the_end_out() -> None:
    assert ids_below(5, without=(2, 4)).tolist() == [0, 1, 3]


@pytest.mark.parametrize("count", [1, 17, 200, 1_500])
def test_prompts_have_the_wanted_length(tokenizer: Tokenizer, count: int) -> None:
    vocabulary = ordinary_ids(tokenizer)
    ids = PromptMaker(vocabulary, 1).make(planned(0, count))
    text = PromptMaker(vocabulary, 1, tokenizer).make(planned(0, count))
    assert isinstance(text, str)
    assert len(ids) == count
    assert set(np.asarray(ids).tolist()) <= set(vocabulary.tolist())
    assert len(tokenizer.encode(text)) == count


def test_what_the_server_adds_is_left_out(tokenizer: Tokenizer) -> None:
    maker = PromptMaker(ordinary_ids(tokenizer), 1, tokenizer).with_overhead(20)
    assert maker.count(maker.make(planned(0, 50))) == 30
    assert maker.count(maker.make(planned(0, 5))) == 1


def test_no_two_prompts_begin_alike() -> None:
    first, again, other = (PromptMaker(ids_below(40_000, ()), seed) for seed in (1, 1, 2))
    makers = ((first, 0), (first, 1), (other, 0))
    prompts = [maker.make(planned(i, 50, seed)) for maker, seed in makers for i in range(30)]
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 90
    assert np.array_equal(first.make(planned(3, 50)), again.make(planned(3, 50)))
    assert not np.array_equal(first.sample(50), first.make(planned(0, 50)))


def test_the_same_block_of_a_trace_has_the_same_content() -> None:
    maker = PromptMaker(ids_below(40_000, ()), 1)
    one = maker.make(planned(0, 1_300, blocks=(7, 8, 9)))
    two = maker.make(planned(1, 1_500, blocks=(7, 8, 10)))
    short = maker.make(planned(2, 600, blocks=(7, 8)))
    longer = maker.make(planned(3, 700, blocks=(7,)))
    assert (len(one), len(two), len(short), len(longer)) == (1_300, 1_500, 600, 700)
    assert np.array_equal(one[:1024], two[:1024])
    assert not np.array_equal(one[1024:1040], two[1024:1040])
    assert np.array_equal(short, one[:600])
    assert np.array_equal(longer[:512], one[:512])
    assert not np.array_equal(longer[512:528], one[512:528])


def test_shared_blocks_as_text_share_their_text(tokenizer: Tokenizer) -> None:
    maker = PromptMaker(ordinary_ids(tokenizer), 1, tokenizer)
    one, two = (maker.make(planned(i, 600, blocks=(7, i))) for i in (1, 2))
    assert tokenizer.encode(str(one))[:512].tolist() == tokenizer.encode(str(two))[:512].tolist()
    assert one != two
