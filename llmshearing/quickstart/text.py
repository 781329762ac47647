"""Gathers the text, trains the tokenizer and writes the config of the source model.

python -m llmshearing.quickstart.text OUT --characters 3000000
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from llmshearing.errors import exits_on_user_error
from llmshearing.huggingface import tokenizer_files
from llmshearing.quickstart import corpus, tokenizer

SEQUENCE_LENGTH = 256
# Twice the target of yamls/quickstart/prune.yaml in every axis but the layers.
SOURCE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@exits_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--characters", type=int, required=True, help="of each domain")
    parser.add_argument("--text-only", action="store_true", help="no tokenizer and no config")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write(options.out, options.characters, with_model=not options.text_only)


def write(out: Path, characters: int, *, with_model: bool) -> None:
    """Write `text`, `tokenizer` and `source-config` below `out`, each anew.

    Args:
        out: the directory.
        characters: of each domain.
        with_model: whether to write the tokenizer and the config too.
    """
    for name in ("text", "tokenizer", "source-config"):
        shutil.rmtree(out / name, ignore_errors=True)
    domains = corpus.collect(characters)
    corpus.write(domains, out / "text")
    if not with_model:
        return
    tokenizer.train(domains.values(), out / "tokenizer")
    config = out / "source-config"
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=tokenizer.VOCABULARY,
        max_position_embeddings=SEQUENCE_LENGTH,
        **SOURCE,
    ).save_pretrained(config)
    for file in tokenizer_files.files(out / "tokenizer"):
        shutil.copyfile(file, config / file.name)


if __name__ == "__main__":
    sys.exit(main())
