"""Chat data: dialogues rendered by the tokenizer's own template, the loss on the answers only."""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.errors import UserError

# What a template that prints today's date prints, so that two runs give the same rows. It is the
# date that the templates of Llama 3 print where none is given.
DATE = datetime.datetime(2024, 7, 26)


@dataclass(frozen=True)
class Dialogue:
    """A rendered dialogue.

    Attributes:
        text: what the template wrote.
        answers: half-open ranges of characters that the assistant has to write.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


class ChatEncoder:
    """Renders `messages` and marks the tokens of the assistant's answers.

    A token counts as a target when its first character lies in what the template writes for an
    answer, from the end of the prompt for it to the end of the turn.

    Args:
        path: a Hugging Face directory with a chat template.

    Raises:
        UserError: there is no such template.
    """

    def __init__(self, path: str | Path) -> None:
        import transformers  # seconds to import, and only chat needs it

        if not Path(path).is_dir():
            raise UserError(
                f"found the tokenizer file {path}, expected for chat data a Hugging Face directory "
                "with a chat template: set tokenizer="
            )
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the tokenizer in {path}: {error}") from None
        if not self._tokenizer.chat_template or not self._tokenizer.is_fast:
            raise UserError(
                f"found no chat template in {path}, expected `chat_template` in "
                "tokenizer_config.json and a tokenizer.json: add them, or set text_field"
            )

    @property
    def vocabulary(self) -> int:
        """Number of ids, added tokens included."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides the ids of a dialogue: the template and the tokenizer."""
        read = self._tokenizer
        about = [read.chat_template, read.special_tokens_map, read.split_special_tokens]
        text = json.dumps([*about, read.backend_tokenizer.to_str(), str(DATE)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def render(self, messages: Any) -> Dialogue:
        """Render a dialogue and find its answers.

        Raises:
            ValueError: it is none, or the template refuses it.
        """
        _check(messages)
        text = self._rendered(messages)
        answers = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._rendered(messages[:index], add_generation_prompt=True) if index else ""
            after = self._rendered(messages[: index + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(f"the chat template rewrites what came before turn {index + 1}")
            answers.append((len(before), len(after)))
        return Dialogue(text, tuple(answers))

    def encode(self, dialogues: list[Dialogue]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give all ids, the number of ids of each dialogue, and 1 for each target token."""
        ids: list[int] = []
        loss, lengths = [], []
        for dialogue in dialogues:
            encoded = self._tokenizer(
                dialogue.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            begins = np.array([begin for begin, _ in encoded["offset_mapping"]], np.int64)
            counted = np.zeros(len(begins), np.uint8)
            for begin, end in dialogue.answers:
                counted[(begins >= begin) & (begins < end)] = 1
            ids += encoded["input_ids"]
            loss.append(counted)
            lengths.append(len(begins))
        return np.array(ids, np.uint32), np.array(lengths, np.int64), np.concatenate(loss)

    def _rendered(self, messages: list[dict[str, str]], **options: Any) -> str:
        import jinja2

        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, strftime_now=DATE.strftime, **options
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses it: {error}") from None


def _check(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError("expected a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ValueError("expected messages with `role` and `content`")
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise ValueError("no answer of the assistant")
