"""Stop strings are found across borders of pieces, and no part of one is ever emitted."""

from hypothesis import given
from hypothesis import strategies as st

from text.answer import AnswerText
from text.stop_strings import StopStrings
from text.tokenizer import Tokenizer

letters = st.text(alphabet="abc", max_size=24)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


def emitted(stop: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(tuple(stop))
    out = ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        out += text
        if stopped:
            return out, True
    return out + matcher.finish(), False


def by_definition(stop: list[str], text: str) -> tuple[str, bool]:
    """Letter by letter: the first end of any stop string, and the longest that ends there."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(stop=stops, pieces=st.lists(letters, max_size=6))
def test_matches_the_definition_however_the_text_is_cut(stop: list[str], pieces: list[str]) -> None:
    assert emitted(stop, pieces) == by_definition(stop, "".join(pieces))


@given(stop=stops, text=letters)
def test_holds_back_no_more_than_could_become_a_stop_string(stop: list[str], text: str) -> None:
    matcher = StopStrings(tuple(stop))
    out, stopped = matcher.push(text)
    held = text[len(out) :]
    assert stopped or held == "" or any(s.startswith(held) for s in stop)


def push_all(answer: AnswerText, token_ids: list[int]) -> tuple[str, bool]:
    """Text of all tokens, or of those up to the one that ends the answer."""
    text, stopped = "", False
    for token_id in token_ids:
        if not stopped:
            new, stopped = answer.push(token_id)
            text += new
    return text, stopped


def test_an_answer_ends_before_the_stop_string(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ("stop",))
    ids = tokenizer.encode("hello stop here").tolist()
    assert push_all(answer, ids) == ("hello ", True)


def test_stop_strings_do_not_count_before_min_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("stop now or stop").tolist()
    answer = AnswerText(tokenizer, ("stop",), min_tokens=len(ids))
    assert push_all(answer, ids[:-1])[1] is False
    early = AnswerText(tokenizer, ("stop",), min_tokens=1)
    assert push_all(early, ids) == ("", True)


def test_an_answer_without_stop_gives_everything(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ("stopped",))
    assert push_all(answer, tokenizer.encode("now stop").tolist()) == ("now ", False)
    assert answer.finish() == "stop"
