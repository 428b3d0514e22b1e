"""GGUF files become model folders that transformers and our engine read alike, or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import TOKENS, small_llama, write_gguf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster import model_import
from cluster.model_import import import_model
from core.errors import AlreadyExists, Incompatible, InvalidField, NotFound, Unavailable
from engine.model_config import read_model_config
from engine.weights import load_weights
from text.tokenizer import read_eos_token_ids


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "small.gguf", small_llama())


def imported(source: Path) -> Path:
    destination = source.parent / "folder"
    import_model(str(source), destination, lambda line: None)
    return destination


def json_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_holds_the_model_that_was_converted(tmp_path: Path, tied: bool) -> None:
    original = small_llama(tied)
    folder = imported(write_gguf(tmp_path / "small.gguf", original))
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([[5, 9, 200, 31, 77]])
    with torch.inference_mode():
        assert torch.equal(again(prompt).logits, original(prompt).logits)


def test_our_engine_reads_the_folder(source: Path) -> None:
    folder = imported(source)
    config = read_model_config(folder)
    assert (config.rms_norm_eps, config.rope.theta) == (1e-5, 3000.0)
    assert (read_eos_token_ids(folder), config.tie_word_embeddings) == ((0,), True)
    weights = load_weights(folder, config, torch.float32, "cpu")
    expected = small_llama().state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


def test_quantized_weights_are_dequantized_without_further_rounding(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q4_1
    original = small_llama()
    folder = imported(write_gguf(tmp_path / "small.gguf", original, quantization=kind))
    name = "model.layers.1.mlp.down_proj.weight"
    stored = load_file(folder / "model.safetensors")[name]
    exact = gguf.quants.dequantize(
        gguf.quants.quantize(original.state_dict()[name].numpy(), kind), kind
    )
    assert stored.dtype == np.float32
    assert np.array_equal(stored, exact)


def test_the_tokenizer_merges_splits_digits_and_knows_special_tokens(source: Path) -> None:
    folder = imported(source)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("hello world 12<|end|>").tokens == [
        *("hello", "Ġw", "o", "r", "l", "d", "Ġ", "1", "2", "<|end|>")
    ]
    config = json_of(folder / "tokenizer_config.json")
    assert (config["bos_token"], config["eos_token"]) == ("<|start|>", "<|end|>")
    assert config["chat_template"] == "{{ messages[0]['content'] }}"


def test_gpt2_keeps_digits_together(tmp_path: Path) -> None:
    folder = imported(write_gguf(tmp_path / "small.gguf", small_llama(), pre="gpt-2"))
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("12").tokens == ["12"]


def test_a_file_that_asks_for_a_start_token_gets_one(tmp_path: Path) -> None:
    folder = imported(write_gguf(tmp_path / "small.gguf", small_llama(), add_bos=True))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("he").tokens == ["<|start|>", "he"]
    assert tokenizer.encode("he", add_special_tokens=False).tokens == ["he"]


def test_a_model_without_chat_template_is_imported_without(tmp_path: Path) -> None:
    folder = imported(write_gguf(tmp_path / "small.gguf", small_llama(), template=None))
    assert "chat_template" not in json_of(folder / "tokenizer_config.json")


def test_what_is_complete_is_kept_and_said_so(source: Path) -> None:
    folder = imported(source)
    weights = folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    said: list[str] = []
    import_model(str(source), folder, said.append)
    assert weights.stat().st_mtime_ns == before
    assert said[-1] == f"{folder} holds this model already: kept"


def test_a_folder_with_something_else_is_not_touched(source: Path, tmp_path: Path) -> None:
    folder = imported(source)
    other = write_gguf(tmp_path / "other.gguf", small_llama(tied=False))
    with pytest.raises(AlreadyExists, match=r"something else than an import of other\.gguf"):
        import_model(str(other), folder, lambda line: None)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    with pytest.raises(AlreadyExists, match="choose another folder"):
        import_model(str(source), mine, lambda line: None)
    assert (mine / "notes.txt").read_text() == "keep me"


def test_a_failure_half_way_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_import, "save_file", full)
    with pytest.raises(Unavailable, match="make room or choose another folder"):
        imported(source)
    assert [path.name for path in source.parent.iterdir()] == ["small.gguf"]


def test_a_full_disk_is_noticed_before_anything_is_written(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(model_import.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(Unavailable, match="1,000 bytes free, the model needs"):
        imported(source)


def test_an_import_that_another_overtook_keeps_the_other(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source.parent / "folder"
    write_files = model_import._write_files

    def overtaken(*args: Any) -> None:
        write_files(*args)
        monkeypatch.setattr(model_import, "_write_files", write_files)
        import_model(str(source), folder, lambda line: None)

    monkeypatch.setattr(model_import, "_write_files", overtaken)
    import_model(str(source), folder, lambda line: None)
    assert {path.name for path in source.parent.iterdir()} == {"small.gguf", "folder"}
    assert read_model_config(folder).num_layers == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "qwen2"}, "general.architecture"),
        ({"tokenizer": "llama"}, "tokenizer.ggml.model"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, "rope_freqs.weight"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, r"blk\.0\.attn_q\.bias"),
    ],
)
def test_what_can_not_be_converted_exactly_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    source = write_gguf(tmp_path / "small.gguf", small_llama(), **changes)
    with pytest.raises(Incompatible, match=named):
        imported(source)
    assert not (tmp_path / "folder").exists()


def test_sources_that_are_no_gguf(tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("not a model, though long enough to have a header of a GGUF file in it")
    with pytest.raises(InvalidField, match="is not a whole GGUF file"):
        import_model(str(text), tmp_path / "folder", print)
    with pytest.raises(NotFound, match="neither a file, a folder nor an installed package"):
        import_model("no-such-package", tmp_path / "folder", print)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="exactly one GGUF file, found none"):
        import_model(str(tmp_path / "empty"), tmp_path / "folder", print)


def test_a_package_is_found_without_being_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "some_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('was run')")
    source.rename(package / "weights.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    import_model("some-model", tmp_path / "folder", lambda line: None)
    assert read_model_config(tmp_path / "folder").vocab_size == len(TOKENS)


def test_without_the_library_the_package_to_install_is_named(source: Path) -> None:
    script = (
        "import sys; sys.modules['gguf'] = None\n"
        "from pathlib import Path\n"
        "from cluster.model_import import import_model\n"
        "from core.errors import Unavailable\n"
        "try: import_model(sys.argv[1], Path(sys.argv[1] + '.out'), lambda line: None)\n"
        "except Unavailable as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(source)], capture_output=True, text=True, check=True
    )
    assert "pip install 'crossdock[import]'" in run.stdout


TEXTS = (
    "Hello, world! It's 2026, isn't it?",
    "1234567890 3.14159 0x7fff 1e-5",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}\n\n\t# done\r\n",
    "Zażółć gęślą jaźń — 東京で会いましょう 🎌👩🏽‍💻 ﷽ ¹²³ ½ Ⅻ ٣٤",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "   leading and trailing   ",
    "",
)


@pytest.mark.oracle
@pytest.mark.parametrize("text", TEXTS)
def test_the_real_tokenizer_agrees_with_transformers_and_loses_nothing(
    smollm2: Path, text: str
) -> None:
    ours = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(smollm2)
    ids = ours.encode(text).ids
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=False) == text
    assert theirs.decode(ids) == text


@pytest.mark.oracle
def test_the_real_tokenizer_loses_no_text_that_its_vocabulary_can_spell(smollm2: Path) -> None:
    # The model has no token for a few control bytes and for bytes of unassigned planes.
    assigned = st.characters(exclude_categories=("Cc", "Cn", "Cs"), include_characters="\n\t\r")
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))

    @given(st.text(assigned, max_size=60))
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text

    check()


@pytest.mark.oracle
def test_the_real_chat_template_is_in_place(smollm2: Path) -> None:
    chat = AutoTokenizer.from_pretrained(smollm2).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert read_eos_token_ids(smollm2) == (2,)
