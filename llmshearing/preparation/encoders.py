"""Text to token ids: the reference encoder, and a fast one that must agree with it.

The reference is `llmshearing.data.token_ids`. If gigatoken is installed (the extra `fast`) and
agrees with the reference on probes, it does the work, about ten times as fast, and one document in
`AUDIT_EVERY` is compared. It reads names of special tokens in a text as these tokens, so documents
in which it finds one are encoded by the reference.
"""

import difflib
import functools
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from llmshearing.data import token_ids
from llmshearing.data.schema import tokenizer_file, tokenizer_fingerprint
from llmshearing.errors import UserError

log = logging.getLogger(__name__)

AUDIT_EVERY = 4096
AUDIT_CHARACTERS = 1 << 16  # the reference takes a second for a million
SHOWN = 40  # characters, and ids, of a text on which encoders disagree
PROBES = (
    *token_ids.PROBES,
    "", " ", "  two  spaces ", " leads", "trails ", "\n\nlines\r\n\ttabs", "a\u2581b \u2581 c",
    "x\x00y", "  " * 40 + "deep", "1234567890 " * 9, "a" * 300, "<0x0A> \u2028\u3000",
)  # fmt: skip


Ids: TypeAlias = tuple[np.ndarray, np.ndarray]  # of all texts (uint32); number of each (int64)
Pair: TypeAlias = tuple[int | None, int | None]


@dataclass(frozen=True)
class TokenizerFacts:
    """What preparation has to know about a tokenizer."""

    path: Path  # the file that decides the ids
    kind: str  # `sentencepiece` or `huggingface`
    fingerprint: str  # SHA-256 of the file
    ids_digest: str  # see `token_ids.ids_digest`
    vocabulary: int  # every id is below it
    bos: int | None
    eos: int | None
    special: tuple[tuple[str, int], ...]  # names and ids of tokens that no text contains


def inspect(path: str | Path) -> TokenizerFacts:
    """Read what a tokenizer is; a UserError if there is none at `path` or it cannot be read."""
    try:
        kind, file = tokenizer_file(path)
    except FileNotFoundError:
        raise UserError(
            f"found no tokenizer at {path}, expected a SentencePiece .model file or a Hugging Face "
            "directory: set tokenizer="
        ) from None
    try:
        about = _inspect_sentencepiece(file) if kind == "sentencepiece" else _inspect_json(file)
        about |= {"ids_digest": token_ids.ids_digest(path)}
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
        "special": tuple((model.id_to_piece(i), i) for i in special),
    }


def _inspect_json(file: Path) -> dict[str, Any]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    added = tokenizer.get_added_tokens_decoder()
    named = special_tokens(file.parent)
    return {
        "vocabulary": max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        "bos": tokenizer.token_to_id(named["bos_token"]) if "bos_token" in named else None,
        "eos": tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None,
        "special": tuple((added[i].content, i) for i in sorted(added)),
    }


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens that begin and end documents, or None."""

    text: Pair
    chat: Pair  # of rendered dialogues, where the template does not write them
    note: str  # for the user


def choose_marks(facts: TokenizerFacts, *, bos: bool, eos: bool, separator: str | None) -> Marks:
    """Choose the tokens around documents: BOS and EOS, or `separator` after each text."""
    special = dict(facts.special)
    if separator is not None and separator not in special:
        near = difflib.get_close_matches(separator, special, 5, 0)
        raise UserError(
            f"found no special token {separator!r} in {facts.path}, expected one such as "
            f"{', '.join(near) or 'none'}: set separator="
        )
    for name, wanted in (("bos", bos), ("eos", eos)):
        if wanted and getattr(facts, name) is None and separator is None:
            raise UserError(
                f"found no {name} token in {facts.path}, expected one: set {name}=false, or "
                "separator= to a special token"
            )
    first, last = facts.bos if bos else None, facts.eos if eos else None
    chat = (None if first == last else first, last)  # one token between documents, not two
    text = chat if separator is None else (None, special[separator])
    names = {number: f"{name} ({number})" for name, number in facts.special}
    shown = [names.get(mark, str(mark)) if mark is not None else "no token" for mark in text]
    return Marks(text, chat, f"texts begin with {shown[0]} and end with {shown[1]}")


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


def with_marks(ids: np.ndarray, lengths: np.ndarray, marks: Pair) -> Ids:
    """Put the tokens `marks` around each text."""
    ends = np.cumsum(lengths)
    places = zip(marks, (ends - lengths, ends), strict=True)
    given = [(mark, place) for mark, place in places if mark is not None]
    if not given:
        return ids, lengths
    at = np.stack([place for _, place in given], axis=1).ravel()  # text after text
    inserted = np.tile(np.array([mark for mark, _ in given], np.uint32), len(lengths))
    return np.insert(ids, at, inserted), lengths + len(given)


class ReferenceEncoder:
    """SentencePiece or `tokenizers` on one thread; work is parallel over processes."""

    def __init__(self, facts: TokenizerFacts) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.name = "SentencePiece" if facts.kind == "sentencepiece" else "tokenizers"
        self._encode = token_ids.encoder(facts.path)

    def encode(self, texts: list[bytes]) -> Ids:
        """Return the ids of one or more texts, given as UTF-8."""
        parts = [np.array(ids, np.uint32) for ids in self._encode([one.decode() for one in texts])]
        return np.concatenate(parts), np.fromiter(map(len, parts), np.int64, len(parts))


@functools.lru_cache(maxsize=1)
def fastest(facts: TokenizerFacts) -> "ReferenceEncoder | FastEncoder":
    """Return the fast encoder if there is one that agrees on the probes, else the reference."""
    reference = ReferenceEncoder(facts)
    try:
        fast = FastEncoder(facts, reference)
    except ImportError:
        log.debug("gigatoken is not installed; encoding with %s", reference.name)
        return reference
    except Exception as error:  # a tokenizer it does not know; its errors are of many types
        log.debug("gigatoken cannot read this tokenizer: %s", error)
        return reference
    for probe in PROBES:
        if difference := fast.difference(probe):
            log.warning("encoding with %s: %s", reference.name, difference)
            return reference
    return fast


class FastEncoder:
    """Gigatoken, with the reference for texts that contain the name of a special token."""

    def __init__(self, facts: TokenizerFacts, reference: ReferenceEncoder) -> None:
        import gigatoken

        read = gigatoken.Tokenizer
        self._gigatoken: Any = (
            read.from_sentencepiece(facts.path)
            if facts.kind == "sentencepiece"
            else read.from_json(facts.path.read_bytes())
        )
        self._reference = reference
        self._special = np.array([number for _, number in facts.special], np.uint32)
        self._encoded = 0

    def encode(self, texts: list[bytes]) -> Ids:
        """Return the ids of texts in UTF-8; a UserError if the two encoders disagree."""
        ids, lengths = self._fast(texts)
        named = self._with_special(ids, lengths)
        if len(named):
            parts = np.split(ids, np.cumsum(lengths)[:-1])
            for index in named:
                parts[index], _ = self._reference.encode([texts[index]])
            ids, lengths = np.concatenate(parts), np.array(list(map(len, parts)), np.int64)
        for index in range(-self._encoded % AUDIT_EVERY, len(texts), AUDIT_EVERY):
            if difference := self.difference(texts[index].decode()[:AUDIT_CHARACTERS]):
                raise UserError(
                    f"{difference}. One of them has a fault: compare both with the model's own "
                    f"ids. To use {self._reference.name}, uninstall gigatoken and choose another "
                    "output="
                )
        self._encoded += len(texts)
        return ids, lengths

    def difference(self, text: str) -> str | None:
        """Describe how the two encoders differ on a text; None where they do not."""
        fast, lengths = self._fast([text.encode()])
        slow, _ = self._reference.encode([text.encode()])
        if np.array_equal(fast, slow) or len(self._with_special(fast, lengths)):
            return None
        both = zip(fast.tolist(), slow.tolist(), strict=False)
        first = next((i for i, (a, b) in enumerate(both) if a != b), min(len(fast), len(slow)))
        shown = slice(first, first + SHOWN // 8)
        return (
            f"gigatoken and {self._reference.name} disagree on a text that begins "
            f"{text[:SHOWN]!r}: from id {first} on, gigatoken gives {fast[shown].tolist()}, "
            f"{self._reference.name} {slow[shown].tolist()}"
        )

    def _fast(self, texts: list[bytes]) -> Ids:
        found = self._gigatoken.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(found.offsets.data)
        return np.asarray(found.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    def _with_special(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the indices of the texts in which gigatoken found a special token."""
        found = np.flatnonzero(np.isin(ids, self._special))
        return np.unique(np.searchsorted(np.cumsum(lengths), found, side="right"))
