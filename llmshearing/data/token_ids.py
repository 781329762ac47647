"""Token ids by the libraries that define them, and a digest by which tokenizers are compared.

SentencePiece decides where there is a `tokenizer.model` of its format, the `tokenizers` library
otherwise. Names of special tokens such as `</s>` that occur in a text are text.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from llmshearing.data.schema import tokenizer_file, tokenizer_fingerprint

Encode: TypeAlias = Callable[[list[str]], list[list[int]]]

# Text on which different tokenizers differ. None begins with a space: there, conversions of a
# SentencePiece model are known to differ from it, and they count as the same tokenizer.
PROBES = (
    "The quick brown fox jumps over the lazy dog; unbelievably, nobody's counterintuitive "
    "misunderstandings hadn't internationalised the photosynthesis of 12,345.67 rhododendrons.",
    "def f(x: int) -> list[str]:\n    return [str(i ** 2) for i in range(x)]  # 3.14e-10\n\n"
    "\tif (a != b && c >= 0x1F) { printf(\"%d\\n\", a); }\r\n<div class='x'>&nbsp;</div>",
    "1234567890 2024-07-26 007 $1,000,000 50% +49-30-1234 v1.2.3 10:30 1e6 ½ ² № §",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Où est l'élève? ¿Qué año?",
    "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. שלום עולם",
    "我能吞下玻璃而不伤身体。 いろはにほへと ちりぬるを 키스의 고유조건은 नमस्ते दुनिया مرحبا",
    "$\\int_0^1 x^2\\,dx = \\frac{1}{3}$  two  spaces   three ... --- <<>> [[]] \u200b\ufeff\u00a0",
    "😀\u200d🔥 👩\u200d👩\u200d👧 e\u0301 \ufffd AAAAAAAAAAAAAAAA ============ don't I'LL",
)  # fmt: skip


def encoder(path: str | Path) -> Encode:
    """Return the function that gives the ids of texts, without marks around them.

    Raises:
        FileNotFoundError: there is no tokenizer at `path`, a file or directory.
        Exception: it cannot be read; the libraries raise bare Exceptions and RuntimeErrors.
    """
    kind, file = tokenizer_file(path)
    if kind == "sentencepiece":
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        return lambda texts: [model.encode(text) for text in texts]
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    batch = functools.partial(tokenizer.encode_batch_fast, add_special_tokens=False)
    return lambda texts: [one.ids for one in batch(texts)]


def ids_digest(path: str | Path) -> str:
    """Return the SHA-256 of the ids of some texts, which tokenizers that do the same share."""
    return hashlib.sha256(json.dumps(encoder(path)(list(PROBES))).encode()).hexdigest()


def same_tokenizer(path: str | Path, recorded: str, copy: Path | None = None) -> bool:
    """Return whether a tokenizer gives the ids of a recorded one.

    A tokenizer that was saved again, converted from a SentencePiece model or given further tokens
    that no text contains is the same. `recorded` is the digest of the ids or, in older trees, the
    SHA-256 of the file; `copy` is the directory of the recorded tokenizer, where there is one.
    """
    if tokenizer_fingerprint(path) == recorded:
        return True
    known = [recorded]
    try:
        if copy is not None and copy.is_dir():
            known.append(ids_digest(copy))
        return ids_digest(path) in known
    except Exception:  # one that cannot be read is not the same
        return False
