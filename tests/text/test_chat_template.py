"""Templates as they come in Hugging Face folders, and what happens when one fails."""

import json
from pathlib import Path

import pytest

from core.errors import Incompatible, InvalidField
from text.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def test_chatml_prompt() -> None:
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(CHATML).render(HELLO) == expected


def test_special_tokens_and_globals_are_there() -> None:
    source = "{{ bos_token }}{{ strftime_now('%Y') | length }}{{ {'a': '<é>'} | tojson }}"
    rendered = ChatTemplate(source, {"bos_token": "<s>"}).render(HELLO)
    assert rendered == '<s>4{"a": "<é>"}'


def test_generation_marks_are_transparent() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert ChatTemplate(source).render(HELLO) == "hello"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system role here') }}",
        "{{ messages[3].content }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_a_failing_template_is_the_clients_error(source: str) -> None:
    with pytest.raises(InvalidField, match="messages"):
        ChatTemplate(source).render(HELLO)


def test_the_output_is_bounded() -> None:
    endless = "{% for i in range(90000) %}{{ 'x' * 100 }}{% endfor %}"
    with pytest.raises(InvalidField, match="at most 1000 characters"):
        ChatTemplate(endless, max_characters=1000).render(HELLO)


def test_broken_syntax_is_refused_when_the_model_is_loaded() -> None:
    with pytest.raises(Incompatible, match="chat template"):
        ChatTemplate("{% if %}")


def test_load_finds_the_template_file_first_then_the_config(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    config = {"chat_template": "in config", "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(HELLO) == "in config"
    (tmp_path / "chat_template.jinja").write_text("in file {{ bos_token }}")
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(HELLO) == "in file <s>"


def test_named_templates_take_the_default(tmp_path: Path) -> None:
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(HELLO) == "d"
