"""What goes into an exported directory besides weights and config."""

import json

import pytest
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmshearing.huggingface import tokenizer_files


@pytest.fixture
def source(tiny_model, tmp_path):
    """A tokenizer with a `tokenizer.json`, as Transformers writes it."""
    fast = AutoTokenizer.from_pretrained(tiny_model)
    fast.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def copied(source):
    out = source.with_name("out")
    out.mkdir()
    tokenizer_files.copy(source, out)
    return out


def edit_config(source, **entries):
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_files_are_copied_as_they_are(source):
    edit_config(source, tokenizer_class="PreTrainedTokenizerFast", extra_special_tokens={})
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/rag.jinja").write_text("{{ documents }}")
    (source / "weights.bin").write_text("not a tokenizer")
    out = copied(source)
    assert not (out / "weights.bin").exists()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.get_chat_template("rag") == "{{ documents }}"
    assert loaded.get_chat_template("default") == "{{ messages }}"


def test_code_of_a_tokenizer_is_not_referred_to(source):
    edit_config(source, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    config = json.loads((copied(source) / "tokenizer_config.json").read_text())
    assert "auto_map" not in config
    assert config["model_max_length"]


def test_a_tokenizer_of_transformers_5_loads_in_4(source):
    """Version 5 calls the class TokenizersBackend and writes a list of special tokens."""
    edit_config(source, tokenizer_class="TokenizersBackend", extra_special_tokens=["<think>"])
    expected = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    text = "stone3 river1 def2"
    if transformers.__version__ < "5":
        with pytest.raises(ValueError, match="TokenizersBackend"):
            AutoTokenizer.from_pretrained(source)
    loaded = AutoTokenizer.from_pretrained(copied(source))
    assert loaded.encode(text, add_special_tokens=False) == expected.encode(
        text, add_special_tokens=False
    )
    assert "<think>" in loaded.all_special_tokens


def test_a_directory_without_tokenizer_config_is_copied(source):
    (source / "tokenizer_config.json").unlink()
    assert (copied(source) / "tokenizer.json").is_file()
