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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from llmshearing.data.schema import tokenizer_file, tokenizer_fingerprint
from llmshearing.errors import UserError

log = logging.getLogger(__name__)

AUDIT_EVERY = 4096
AUDIT_CHARACTERS = 1 << 16  # the reference takes a second for a million
REMEMBERED_BYTES = 160 << 20  # that the fast encoder may take for words it remembers
FORGET_AFTER_BYTES = 16 << 20  # of text at the least
PROBES = (
    "", " ", "  two  spaces ", " leads", "trails ", "\n\nlines\r\n\ttabs", "a\u2581b \u2581 c",
    "caf\u00e9 na\u00efve e\u0301", "\u4f60\u597d\u4e16\u754c \u043f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f600\u200d\U0001f525 \ufffd\u00a0", "x\x00y", "def f(x):\n    return x**2  # 3.14e-10",
    "  " * 40 + "deep", "1234567890 " * 9, "a" * 300, "Don't they'll I'D", "<0x0A> \u2028\u3000",
)  # fmt: skip


Text: TypeAlias = str | bytes  # bytes are UTF-8


@dataclass(frozen=True)
class Marks:
    """Ids put around each text, uint32; empty where there is no such mark."""

    begin: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, begin: int | None, end: int | None) -> Marks:
        """Make them of ids."""
        return cls(*(np.array([] if i is None else [i], np.uint32) for i in (begin, end)))

    def join(self, parts: list[np.ndarray]) -> np.ndarray:
        """Give all ids of some texts with the marks around each, uint32."""
        pieces = [np.concatenate([self.end, self.begin])] * (2 * len(parts) + 1)
        pieces[1::2] = parts
        pieces[0], pieces[-1] = self.begin, self.end
        return np.concatenate(pieces)


class Encoder(Protocol):
    """Token ids of texts."""

    def encode(self, texts: list[Text], marks: Marks) -> tuple[np.ndarray, np.ndarray]:
        """Give all ids, concatenated, and the number of ids of each text, marks included.

        There has to be a text.
        """
        ...


def _joined(parts: list[np.ndarray], marks: Marks) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return marks.join(parts), lengths + len(marks.begin) + len(marks.end)


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
    named = special_tokens(file.parent)
    return {
        "vocabulary": max(ids) + 1,
        "bos": tokenizer.token_to_id(named["bos_token"]) if "bos_token" in named else None,
        "eos": tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None,
        "control": tuple(sorted(added)),
    }


def special_tokens(folder: Path) -> dict[str, str]:
    """Read the special tokens of a Hugging Face directory: `bos_token`, `eos_token` and others."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            for key, value in json.loads(file.read_text(encoding="utf-8")).items():
                token = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(token, str):
                    named[key] = token
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
        texts: list[Text] = list(PROBES)
        agrees = all(
            map(np.array_equal, quick.encode(texts, NO_MARKS), slow.encode(texts, NO_MARKS))
        )
    except ImportError:
        log.debug("gigatoken is not installed; encoding with the reference")
        return slow
    except Exception as error:  # a tokenizer it does not know; its errors are of many types
        log.debug("gigatoken does not take this tokenizer: %s", error)
        return slow
    return quick if agrees else slow


NO_MARKS = Marks.of(None, None)


def _text(text: Text) -> str:
    return text if isinstance(text, str) else text.decode()


class SentencePieceEncoder:
    """SentencePiece on one thread; work is parallel over processes."""

    def __init__(self, facts: TokenizerFacts) -> None:
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor(model_file=str(facts.path))

    def encode(self, texts: list[Text], marks: Marks) -> tuple[np.ndarray, np.ndarray]:
        """Give all ids, concatenated, and the number of ids of each text, marks included."""
        encode = self._model.encode
        return _joined([np.array(encode(_text(text)), np.uint32) for text in texts], marks)


class JsonEncoder:
    """The `tokenizers` library on one thread."""

    def __init__(self, facts: TokenizerFacts) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(facts.path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def encode(self, texts: list[Text], marks: Marks) -> tuple[np.ndarray, np.ndarray]:
        """Give all ids, concatenated, and the number of ids of each text, marks included."""
        decoded = [_text(text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        return _joined([np.array(one.ids, np.uint32) for one in encoded], marks)


class FastEncoder:
    """Gigatoken, with the reference for texts that hold a mark of control.

    Raises:
        ImportError: gigatoken is not installed.
        Exception: gigatoken does not know this tokenizer.
    """

    def __init__(self, facts: TokenizerFacts, slow: Encoder) -> None:
        import gigatoken

        read = gigatoken.Tokenizer
        self._load = (
            functools.partial(read.from_sentencepiece, facts.path)
            if facts.kind == "sentencepiece"
            else functools.partial(read.from_json, facts.path.read_bytes())
        )
        self._begin_anew()
        self._may_hold = _resident_bytes() + REMEMBERED_BYTES
        self._patience = FORGET_AFTER_BYTES
        self._slow = slow
        self._control = np.array(facts.control, np.uint32)
        self._encoded = 0

    def _begin_anew(self) -> None:
        # Text by text: so it remembers words from call to call, which its batches do not. It never
        # forgets one, so that it has to be loaded again before it holds too many.
        vars(self).pop("_quick", None)  # before the next one is there
        self._quick: Callable[[Text], np.ndarray] = self._load().backend.encode
        self._since = 0

    def _forget_if_full(self) -> None:
        """Load anew where too much is remembered; seldom, where the memory is something else's."""
        if self._since < self._patience or (held := _resident_bytes()) < self._may_hold:
            return
        self._begin_anew()
        freed = held - _resident_bytes()
        longer = min(2 * self._patience, 8 * FORGET_AFTER_BYTES)
        self._patience = FORGET_AFTER_BYTES if 2 * freed > REMEMBERED_BYTES else longer

    def encode(self, texts: list[Text], marks: Marks) -> tuple[np.ndarray, np.ndarray]:
        """Give all ids, concatenated, and the number of ids of each text, marks included.

        Raises:
            RuntimeError: the fast encoder and the reference disagree on a document.
        """
        parts = list(map(self._quick, texts))
        self._since += sum(map(len, texts))
        self._forget_if_full()
        flat, lengths = _joined(parts, marks)
        of_marks = self._controls(marks.begin) + self._controls(marks.end)
        if self._controls(flat) > of_marks * len(parts):  # a text holds a control token's name
            for index, part in enumerate(parts):
                if self._controls(part):
                    parts[index], _ = self._slow.encode([texts[index]], NO_MARKS)
            flat, lengths = _joined(parts, marks)
        self._audit(texts, parts)
        return flat, lengths

    def _controls(self, ids: np.ndarray) -> int:
        """Count the control tokens among some ids."""
        if not len(self._control):
            return 0
        low, high = self._control.min(), self._control.max()
        near = ids - low <= high - low  # what is below `low` is far above it, unsigned
        count = int(np.count_nonzero(near))
        if count and high - low + 1 > len(self._control):  # other tokens stand between them
            return int(np.isin(ids[near], self._control).sum())
        return count

    def _audit(self, texts: list[Text], parts: list[np.ndarray]) -> None:
        """Compare one document in `AUDIT_EVERY` with the reference; of a long one its beginning."""
        first = -self._encoded % AUDIT_EVERY
        self._encoded += len(texts)
        for index in range(first, len(texts), AUDIT_EVERY):
            text, ids = _text(texts[index]), parts[index]
            if len(text) > AUDIT_CHARACTERS:
                text = text[:AUDIT_CHARACTERS]
                ids = self._quick(text)
                if self._controls(ids):
                    continue
            if not np.array_equal(self._slow.encode([text], NO_MARKS)[0], ids):
                raise RuntimeError(
                    f"gigatoken's ids are not the reference's on a text that begins "
                    f"{text[:60]!r}: uninstall gigatoken and prepare again"
                )


def _resident_bytes() -> int:
    """Give the memory that this process holds; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
