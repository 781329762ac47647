"""Text to token ids: the reference encoders, and a fast one that must agree with them.

The reference decides: SentencePiece itself where there is a `.model`, the `tokenizers` library
otherwise. Marks of control such as `</s>` that occur in a text are text, never control tokens.
Where gigatoken knows the tokenizer it does the work, some ten times as fast: it is tried on probes
before the work and on one document in `AUDIT_EVERY` during it. It reads marks of control as such,
so that the documents in which it finds one go to the reference.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmshearing.data.schema import tokenizer_file, tokenizer_fingerprint
from llmshearing.errors import UserError

log = logging.getLogger(__name__)

AUDIT_EVERY = 4096
PROBES = (
    "", " ", "  two  spaces ", " leads", "trails ", "\n\nlines\r\n\ttabs", "a\u2581b \u2581 c",
    "caf\u00e9 na\u00efve e\u0301", "\u4f60\u597d\u4e16\u754c \u043f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f600\u200d\U0001f525 \ufffd\u00a0", "x\x00y", "def f(x):\n    return x**2  # 3.14e-10",
    "  " * 40 + "deep", "1234567890 " * 9, "a" * 300, "Don't they'll I'D", "<0x0A> \u2028\u3000",
)  # fmt: skip


class Encoder(Protocol):
    """Token ids of texts in UTF-8, without marks of beginning and end."""

    def encode(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Give all ids, concatenated, and the number of ids of each text."""
        ...


@dataclass(frozen=True)
class TokenizerFacts:
    """What the rest of the work has to know of a tokenizer.

    Attributes:
        path: the file that decides the ids.
        kind: `sentencepiece` or `huggingface`.
        fingerprint: SHA-256 of the file.
        vocabulary: number of ids; every id is below it.
        bos: id of the mark that begins a document, if there is one.
        eos: id of the mark that ends a document, if there is one.
        control: ids that a fast encoder may read in a text and that no text stands for.
    """

    path: Path
    kind: str
    fingerprint: str
    vocabulary: int
    bos: int | None
    eos: int | None
    control: tuple[int, ...]

    def with_vocabulary(self, vocabulary: int) -> TokenizerFacts:
        """Give the same with the tokens that a chat template adds counted in."""
        return replace(self, vocabulary=vocabulary)


def inspect(path: str | Path) -> TokenizerFacts:
    """Read what a tokenizer is.

    Raises:
        UserError: there is none at `path`, or it cannot be read.
    """
    try:
        kind, file = tokenizer_file(path)
    except FileNotFoundError:
        raise UserError(
            f"found no tokenizer at {path}, expected a SentencePiece .model file or a Hugging Face "
            "directory: set tokenizer="
        ) from None
    try:
        about = _inspect_sentencepiece(file) if kind == "sentencepiece" else _inspect_json(file)
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare Exceptions and RuntimeErrors
        raise UserError(f"cannot read {file} as a {kind} tokenizer: {error}") from None
    return TokenizerFacts(path=file, kind=kind, fingerprint=tokenizer_fingerprint(path), **about)


def _inspect_sentencepiece(file: Path) -> dict[str, Any]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    size = model.get_piece_size()
    special = [i for i in range(size) if model.is_control(i) or model.is_unknown(i)]
    return {
        "vocabulary": size,
        "bos": model.bos_id() if model.bos_id() >= 0 else None,
        "eos": model.eos_id() if model.eos_id() >= 0 else None,
        "control": tuple(special),
    }


def _inspect_json(file: Path) -> dict[str, Any]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    added = tokenizer.get_added_tokens_decoder()
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    named = _special_tokens(file.parent)
    return {
        "vocabulary": max(ids) + 1,
        "bos": tokenizer.token_to_id(named["bos_token"]) if "bos_token" in named else None,
        "eos": tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None,
        "control": tuple(sorted(added)),
    }


def _special_tokens(folder: Path) -> dict[str, str]:
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            for key in ("bos_token", "eos_token"):
                value = values.get(key)
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    named[key] = value
    return named


def reference(facts: TokenizerFacts) -> Encoder:
    """Give the encoder whose ids are right by definition."""
    return SentencePieceEncoder(facts) if facts.kind == "sentencepiece" else JsonEncoder(facts)


@functools.lru_cache(maxsize=1)
def fastest(facts: TokenizerFacts) -> Encoder:
    """Give the fast encoder if it agrees with the reference on the probes, else the reference."""
    slow = reference(facts)
    try:
        quick = FastEncoder(facts, slow)
        probes = [[text.encode()] for text in PROBES]
        agrees = all(_same(quick.encode(one), slow.encode(one)) for one in probes)
    except ImportError:
        log.debug("gigatoken is not installed; encoding with the reference")
        return slow
    except Exception as error:  # a tokenizer it does not know; its errors are of many types
        log.debug("gigatoken does not take this tokenizer: %s", error)
        return slow
    return quick if agrees else slow


def _same(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


class SentencePieceEncoder:
    """SentencePiece on one thread; work is parallel over processes."""

    def __init__(self, facts: TokenizerFacts) -> None:
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor(model_file=str(facts.path))

    def encode(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Give all ids, concatenated, and the number of ids of each text."""
        return _flat([self._model.encode(text.decode()) for text in texts])


class JsonEncoder:
    """The `tokenizers` library on one thread."""

    def __init__(self, facts: TokenizerFacts) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(facts.path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def encode(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Give all ids, concatenated, and the number of ids of each text."""
        decoded = [text.decode() for text in texts]
        encoded = self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        return _flat([one.ids for one in encoded])


def _flat(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.empty(int(lengths.sum()), np.uint32)
    end = 0
    for one in ids:
        flat[end : end + len(one)] = one
        end += len(one)
    return flat, lengths


class FastEncoder:
    """Gigatoken, with the reference for texts that hold a mark of control.

    Raises:
        ImportError: gigatoken is not installed.
        Exception: gigatoken does not know this tokenizer.
    """

    def __init__(self, facts: TokenizerFacts, slow: Encoder) -> None:
        import gigatoken

        read = gigatoken.Tokenizer
        self._fast = (
            read.from_sentencepiece(facts.path)
            if facts.kind == "sentencepiece"
            else read.from_json(facts.path.read_bytes())
        )
        self._slow = slow
        self._control = np.array(facts.control, np.uint32)
        self._encoded = 0

    def encode(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Give all ids, concatenated, and the number of ids of each text.

        Raises:
            RuntimeError: the fast encoder and the reference disagree on a document.
        """
        flat, lengths = self._quick(texts)
        read = np.flatnonzero(self._is_control(flat))
        if len(read):  # where a text holds the name of a control token, and only there
            ends = np.cumsum(lengths)
            parts = np.split(flat, ends[:-1])
            for index in np.unique(np.searchsorted(ends, read, side="right")):
                parts[index], lengths[index : index + 1] = self._slow.encode([texts[index]])
            flat = np.concatenate(parts)
        self._audit(texts, flat, lengths)
        return flat, lengths

    def _is_control(self, flat: np.ndarray) -> np.ndarray:
        if not len(self._control):
            return np.zeros(len(flat), bool)
        low, high = self._control[0], self._control[-1]
        near = (flat >= low) & (flat <= high)
        return near if high - low + 1 == len(self._control) else np.isin(flat, self._control)

    def _quick(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        layout: Any = self._fast.encode_batch(texts, parallel=False).layout
        return np.asarray(layout.content.data), np.diff(np.asarray(layout.offsets.data))

    def _audit(self, texts: list[bytes], flat: np.ndarray, lengths: np.ndarray) -> None:
        """Compare one document in `AUDIT_EVERY` with the reference."""
        first = -self._encoded % AUDIT_EVERY
        self._encoded += len(texts)
        for index in range(first, len(texts), AUDIT_EVERY):
            begin = int(lengths[:index].sum())
            ids, _ = self._slow.encode([texts[index]])
            if not np.array_equal(ids, flat[begin : begin + int(lengths[index])]):
                begins = texts[index][:60].decode(errors="replace")
                raise RuntimeError(
                    f"gigatoken's ids are not the reference's on a text that begins "
                    f"{begins!r}: uninstall gigatoken and prepare again"
                )
