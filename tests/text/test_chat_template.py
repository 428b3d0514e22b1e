"""Templates as they come in Hugging Face folders, and what happens when one fails."""

import json
from pathlib import Path

import pytest

from core.errors import Incompatible, InvalidField
from text.chat_template import TEMPLATE_TOO_LONG, ChatTemplate

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


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    ],
)
def test_endless_recursion_is_refused(source: str) -> None:
    with pytest.raises(InvalidField, match="maximum recursion depth"):
        ChatTemplate(source).render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro f(x) %}{% if x %}{{ f(x-1) }}{{ f(x-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set s = namespace(x='ab') %}{% for i in range(60) %}"
        "{% set s.x = s.x + s.x %}{% endfor %}",
        "{% set s = namespace(x='ab') %}{% for i in range(60) %}"
        "{% set s.x = s.x ~ s.x %}{% endfor %}",
        "{% set s = namespace(x='ab') %}{% for i in range(60) %}"
        "{% set x %}{{ s.x }}{{ s.x }}{% endset %}{% set s.x = x %}{% endfor %}",
        "{{ 'x' * 10**11 }}",
        "{{ 2 ** 100000 }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
    ],
)
def test_a_template_that_does_too_much_is_stopped(source: str) -> None:
    with pytest.raises(InvalidField, match="does too much") as caught:
        ChatTemplate(source).render(HELLO)
    assert caught.value.reason == TEMPLATE_TOO_LONG


def test_the_work_that_is_allowed_can_be_less() -> None:
    template = ChatTemplate(CHATML)
    assert template.render(HELLO * 100, max_steps=1000)
    with pytest.raises(InvalidField, match="more than 1000 steps"):
        template.render(HELLO * 1000, max_steps=1000)


def test_loops_and_joins_do_what_they_do_elsewhere() -> None:
    source = (
        "{% for m in messages[1:] %}{{ loop.index ~ '/' ~ loop.length ~ m.content }}"
        "{% if not loop.last %}, {% endif %}{% else %}nothing{% endfor %}"
        "{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}"
        "{{ messages | map(attribute='role') | join('+') }}"
    )
    assert ChatTemplate(source).render(HELLO * 3) == "1/2hello, 2/2helloa1user+user+user"


def test_broken_syntax_is_refused_when_the_model_is_loaded() -> None:
    with pytest.raises(Incompatible, match="chat template"):
        ChatTemplate("{% if %}")
    with pytest.raises(Incompatible, match="chat template"):
        ChatTemplate("{{" + "(" * 10_000)


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
