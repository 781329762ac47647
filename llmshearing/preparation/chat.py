"""Chat data: dialogues rendered by the tokenizer's own template, the loss on the answers only."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.errors import UserError
from llmshearing.preparation import encoders

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
        import tokenizers

        folder = Path(path)
        if not folder.is_dir():
            raise UserError(
                f"found the tokenizer file {path}, expected for chat data a Hugging Face directory "
                "with a chat template: set tokenizer="
            )
        try:
            self._template = _template(folder)
            self._tokens = encoders.special_tokens(folder)
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise UserError(
                f"cannot read the chat template and the tokenizer.json in {path} ({error}): "
                "add them, or set text_field"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def vocabulary(self) -> int:
        """Number of ids, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides the ids of a dialogue: the template and the tokenizer."""
        about = [self._template, self._tokens, self._tokenizer.to_str(), str(DATE)]
        text = json.dumps(about, sort_keys=True)
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
            before = self._prompt(messages, index)
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
            encoded = self._tokenizer.encode(dialogue.text, add_special_tokens=False)
            begins = np.array([begin for begin, _ in encoded.offsets], np.int64)
            counted = np.zeros(len(begins), np.uint8)
            for begin, end in dialogue.answers:
                counted[(begins >= begin) & (begins < end)] = 1
            ids += encoded.ids
            loss.append(counted)
            lengths.append(len(begins))
        return np.array(ids, np.uint32), np.array(lengths, np.int64), np.concatenate(loss)

    def _prompt(self, messages: list[dict[str, Any]], index: int) -> str:
        """Render what the model reads before it writes message `index`."""
        if index:
            return self._rendered(messages[:index], add_generation_prompt=True)
        # Many templates cannot render zero messages. Everything before the content, such as BOS, a
        # default system turn and the header, is what two different answers have in common.
        answers = ([{"role": "assistant", "content": content}] for content in "AB")
        return _common_prefix([*map(self._rendered, answers), self._rendered(messages[:1])])

    def _rendered(self, messages: list[dict[str, Any]], **options: Any) -> str:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        options |= {"chat_template": self._template, "strftime_now": DATE.strftime}
        try:
            return render_jinja_template([messages], **self._tokens, **options)[0][0]
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses it: {error}") from None


def _common_prefix(texts: list[str]) -> str:
    low, high = min(texts), max(texts)
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))
    return low[: sum(1 for _ in equal)]


def _template(folder: Path) -> str:
    """Read the default chat template of a Hugging Face directory, without loading any class.

    Transformers imports the class that `tokenizer_config.json` names, which may be code that came
    with the directory.

    Raises:
        ValueError: there is none.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if not found:
        raise ValueError("found no `chat_template` in tokenizer_config.json")
    return found


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
