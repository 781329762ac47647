"""The names and types in a data tree, for the code that writes it and the code that reads it.

```
<root>/manifest.json                    what the tree holds; written last, when all else is complete
<root>/tokenizer/                       a copy of the tokenizer's files
<root>/{eval,prune,continue}/<domain>/  MDS: index.json, shard.00000.mds, ...
```
A row holds `sequence_length` token ids in the column `tokens`, and for chat data in the column
`loss` a 1 for each token that counts as a target.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.json"
HASH = "sha256"  # of a shard's file, in the index
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("eval", "prune", "continue")
TOKENS = "tokens"
LOSS = "loss"

# The first of these files in a directory decides the ids: a SentencePiece model before a converted
# copy next to it.
TOKENIZER_MODELS = {"tokenizer.model": "sentencepiece", "tokenizer.json": "huggingface"}


def token_dtype(vocabulary: int) -> str:
    """The narrowest unsigned type that holds ids below `vocabulary`."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def columns(sequence_length: int, dtype: str, *, chat: bool) -> dict[str, str]:
    """The MDS columns of a domain, in the order of their names."""
    tokens = {TOKENS: f"ndarray:{dtype}:{sequence_length}"}
    return {LOSS: f"ndarray:uint8:{sequence_length}", **tokens} if chat else tokens


def row_type(encodings: Mapping[str, str]) -> np.dtype:
    """The columns of a row as one record; a ValueError if one is not an array of fixed size."""
    fields = []
    for name, encoding in encodings.items():
        kind, _, rest = encoding.partition(":")
        dtype, _, shape = rest.partition(":")
        if kind != "ndarray" or not shape:
            raise ValueError(f"column {name} is {encoding}, expected ndarray:TYPE:LENGTH")
        size = tuple(map(int, shape.split(",")))
        fields.append((name, np.dtype(dtype).newbyteorder("<"), size))
    return np.dtype(fields)


def fingerprint(entries: Sequence[dict[str, Any]]) -> str:
    """SHA-256 over the hashes of a domain's shards, in the order of its index."""
    digests = "".join(entry["raw_data"]["hashes"][HASH] for entry in entries)
    return hashlib.sha256(digests.encode()).hexdigest()


def tokenizer_file(path: str | Path) -> tuple[str, Path]:
    """Find the kind, `sentencepiece` or `huggingface`, and the file that decides the ids.

    Raises:
        FileNotFoundError: there is no tokenizer at `path`, a file or a directory.
    """
    path = Path(path)
    if path.is_file():
        return ("huggingface" if path.suffix == ".json" else "sentencepiece"), path
    found = [(kind, path / name) for name, kind in TOKENIZER_MODELS.items()]
    found = [(kind, file) for kind, file in found if file.is_file()]
    if not found:
        raise FileNotFoundError(path)
    # Meta's Llama 3 has a tiktoken file of the same name next to its tokenizer.json.
    return found[1] if len(found) == 2 and _is_tiktoken(found[0][1]) else found[0]


def _is_tiktoken(file: Path) -> bool:
    with file.open("rb") as opened:
        return re.match(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n", opened.read(1024)) is not None


def tokenizer_fingerprint(path: str | Path) -> str:
    """Return the SHA-256 of the file that decides the ids, see `tokenizer_file`."""
    return hashlib.sha256(tokenizer_file(path)[1].read_bytes()).hexdigest()
