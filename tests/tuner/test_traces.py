"""Traces: four formats, and lines that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import InvalidField
from tuner.load.records import RequestRecord
from tuner.load.traces import TraceEntry, read_trace

MOONCAKE = """\
{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [0, 1]}

{"timestamp": 500, "input_length": 20, "output_length": 1}
{"timestamp": 2000, "input_length": 700, "output_length": 5, "hash_ids": [0, 4]}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.4799600,3180,8
"""
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118.5,GPT-4,417,276,693,API log
"""


def mooncake(**values: str) -> str:
    """A line with these values, as they are written."""
    stated = {"timestamp": "3000", "input_length": "5", "output_length": "1", **values}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in stated.items()) + "}"


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_mooncake(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, MOONCAKE)) == [
        TraceEntry(0.0, 600, 3, (0, 1)),
        TraceEntry(0.5, 20, 1),
        TraceEntry(2.0, 700, 5, (0, 4)),
    ]


def test_times_of_azure_may_name_their_zone(tmp_path: Path) -> None:
    """The traces of 2024 do."""
    plain = read_trace(written(tmp_path, AZURE))
    zoned = AZURE.replace("9799600", "979960+00:00").replace("4799600", "479960+00:00")
    assert read_trace(written(tmp_path, zoned)) == plain
    earlier = AZURE.replace("05.4799600", "05.4799600+05:00")
    with pytest.raises(InvalidField, match="earlier than the request before it"):
        read_trace(written(tmp_path, earlier))


@pytest.mark.parametrize("row", ["2023-11-16 18:17:06,1,000,8", "2023-11-16 18:17:06,1_000,8"])
def test_numbers_with_thousands_marks_are_refused(row: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match="line 4"):
        read_trace(written(tmp_path, AZURE + row))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = AZURE.replace("ContextTokens", "ContextTokens,ContextTokens")
    with pytest.raises(InvalidField, match="has the column ContextTokens twice"):
        read_trace(written(tmp_path, twice))


def test_azure(tmp_path: Path) -> None:
    first, second = read_trace(written(tmp_path, AZURE))
    quoted = AZURE.replace("Azure", "").replace(",", '", "').replace("\n", '"\n"').strip('"')
    assert read_trace(written(tmp_path, f'"{quoted}')) == [first, second]
    assert (first.prompt_tokens, first.output_tokens) == (4808, 10)
    assert second.stamp_s - first.stamp_s == pytest.approx(1.5)


def test_burstgpt_without_the_requests_that_failed(tmp_path: Path) -> None:
    path = written(tmp_path, BURSTGPT.replace("\n", "\r\n"))
    assert read_trace(path) == [TraceEntry(5.0, 472, 18), TraceEntry(118.5, 417, 276)]


def test_what_bench_saved(tmp_path: Path) -> None:
    records = [
        RequestRecord(0, index, planned_s, 200 + index, 90, error="TIMEOUT")
        for index, planned_s in enumerate((0.5, 1.25))
    ]
    text = "\n".join(json.dumps(record.as_json()) for record in records)
    assert read_trace(written(tmp_path, text)) == [
        TraceEntry(0.5, 200, 90),
        TraceEntry(1.25, 201, 90),
    ]


def test_runs_of_several_seeds_follow_one_another(tmp_path: Path) -> None:
    records = [RequestRecord(seed, 0, at_s, 10, 5) for seed in (3, 4) for at_s in (0.5, 2.0)]
    text = "\n".join(json.dumps(record.as_json()) for record in records)
    assert [entry.stamp_s for entry in read_trace(written(tmp_path, text))] == [0.5, 2.0, 2.5, 4.0]


def test_times_that_go_backwards(tmp_path: Path) -> None:
    late = '{"timestamp": 1999, "input_length": 5, "output_length": 1}'
    with pytest.raises(InvalidField, match=r"trace line 5 .*sort the trace by time"):
        read_trace(written(tmp_path, MOONCAKE + late))


def test_only_the_first_requests(tmp_path: Path) -> None:
    assert len(read_trace(written(tmp_path, MOONCAKE), limit=2)) == 2


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (MOONCAKE + "{nonsense\n", 5, "it is not JSON"),
        (MOONCAKE + '{"timestamp": 3000, "input_length": 3}\n', 5, "it has no output_length"),
        (MOONCAKE + mooncake(timestamp="NaN"), 5, "its time is no number of seconds"),
        (MOONCAKE + mooncake(timestamp="1" + "0" * 400), 5, "too large"),
        (MOONCAKE + mooncake(timestamp='"noon"'), 5, "timestamp must be a number"),
        (MOONCAKE + mooncake(output_length="-1"), 5, "0 tokens or more"),
        (MOONCAKE + mooncake(input_length="Infinity"), 5, "input_length must be a whole number"),
        (MOONCAKE + mooncake(input_length="3.7"), 5, "input_length must be a whole number"),
        (MOONCAKE + mooncake(input_length="true"), 5, "input_length must be a whole number"),
        (MOONCAKE + mooncake(input_length="9" * 5000), 5, "it is not JSON"),
        (MOONCAKE + mooncake(input_length="[" * 100_000), 5, "nested too deeply"),
        (MOONCAKE + "[1, 2]\n", 5, "no JSON object"),
        (mooncake(hash_ids="7"), 1, "hash_ids must be a list"),
        (mooncake(hash_ids='["a"]'), 1, "hash_ids must be a whole number"),
        (mooncake(hash_ids="[-1]"), 1, "hash_ids count from 0"),
        ("\n" + mooncake(hash_ids="[-1]"), 2, "hash_ids count from 0"),
        (AZURE + "2023-11-16 18:17:06.1,many,8\n", 4, "ContextTokens must be a whole number"),
        (AZURE + "yesterday,1,8\n", 4, "TIMESTAMP must be a time such as"),
        (AZURE + "2023-11-16 18:17:06.1,1\n", 4, "it has no GeneratedTokens"),
        (AZURE + "2023-11-16 18:17:06.1,-5,1\n", 4, "0 tokens or more"),
        (AZURE + "2023-11-16 18:17:06.1,1," + "1" * 200_000, 4, "it is no CSV: field larger"),
        (BURSTGPT + "7,GPT-4,1.5,2,3,API log\n", 5, "Request tokens must be a whole number"),
        (BURSTGPT + "nan,GPT-4,1,2,3,API log\n", 5, "its time is no number of seconds"),
        (BURSTGPT + "soon,GPT-4,1,2,3,API log\n", 5, "Timestamp must be a number of seconds"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: int, why: str) -> None:
    with pytest.raises(InvalidField, match=f"trace line {line} .*{why}"):
        read_trace(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("a,b\n1,2\n", "first line is that of no trace"),
        ("\x00", "first line is that of no trace"),
        ("a" * 200_000, "can't be read: it is no CSV"),
        (AZURE.splitlines()[0], "no request that was answered"),
        (AZURE.replace("GeneratedTokens", "Generated"), "has no column GeneratedTokens"),
        (BURSTGPT.replace("Re", ""), "has no column Request tokens, Response tokens"),
    ],
)
def test_no_trace_at_all(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InvalidField, match=f"--trace = .*{why}"):
        read_trace(written(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    for name, why in (("missing", "can't be read"), (".", "can't be read"), ("binary", "no text")):
        with pytest.raises(InvalidField, match=f"TRACE = .*{why}"):
            read_trace(tmp_path / name, field="TRACE")


def test_hash_ids_are_as_many_as_the_prompt_has_blocks(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp":0,"input_length":5000,"output_length":5,"hash_ids":[0,1]}\n')
    with pytest.raises(InvalidField, match="hash_ids has 2, and 5000 tokens are 10 blocks of 512"):
        read_trace(path)


def test_requests_without_an_answer_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9,10,5\n2023-11-16 18:17:04.9,10,0\n"
    )
    assert len(read_trace(path)) == 1
    assert "t.csv: 1 requests without prompt or answer are left out" in caplog.text
