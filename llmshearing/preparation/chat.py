"""Chat data: dialogues rendered by the tokenizer's own template, the loss on the answers only."""

import datetime
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from llmshearing.errors import UserError
from llmshearing.preparation import encoders

Message: TypeAlias = dict[str, Any]
Tools: TypeAlias = list[dict[str, Any]] | None
Ranges: TypeAlias = tuple[tuple[int, int], ...]  # half-open, of characters
# What a template that prints today's date prints, so that two runs give the same rows. It is the
# date that the templates of Llama 3 print by default.
DATE = datetime.datetime(2024, 7, 26)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # marks what the assistant writes
THINK, THINK_END = "<think>", "</think>"
SHAPE = "expected messages with `role` and `content`"
# Who speaks in ShareGPT's records, whose messages have `from` and `value`.
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


@dataclass(frozen=True)
class Dialogue:
    """A rendered dialogue, or its part up to some answer."""

    text: str
    answers: Ranges  # what the assistant has to write


class ChatEncoder:
    """Renders dialogues by the template of a Hugging Face directory and marks the answers' tokens.

    A token counts as a target when its first character lies in an answer: in a block that the
    template marks with `{% generation %}`, or else in what the template writes from the end of the
    prompt for the answer to the end of the turn.
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
            self._templates = _templates(folder)
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
        about = [self._templates, self._tokens, self._tokenizer.to_str(), str(DATE)]
        text = json.dumps(about, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def render(self, value: Any) -> tuple[Dialogue, ...]:
        """Render a dialogue and find its answers.

        Returns one text if the template writes a turn the same way whatever follows it. If not
        (some drop the reasoning of earlier turns), several texts, so that each answer follows the
        prompt that the model reads when it has to write that answer.

        Args:
            value: messages with `role` and `content`, or a mapping with these as `messages` and
                the functions that the assistant may call as `tools`.

        Raises:
            ValueError: it is no dialogue, or the template cannot render it.
        """
        messages, tools = _conversation(value)
        answering = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        whole, marked = self._rendered(messages, tools)
        if GENERATION.search(self._template(tools)):
            if len(marked) < len(answering):  # Transformers 4 loses one at the very beginning
                raise ValueError("the chat template marks fewer answers than there are")
            return (Dialogue(whole, marked),)
        parts: list[Dialogue] = []
        text, answers = "", ()
        for index in answering:
            before = self._prompt(messages, index, tools)
            after, _ = self._rendered(messages[: index + 1], tools)
            if not after.startswith(before):
                after = _after_thought(before, after, messages[index])
            if after is None:
                raise ValueError(
                    f"the chat template does not write turn {index + 1} after its own prompt for it"
                )
            if not before.startswith(text):
                parts.append(Dialogue(text, answers))
                answers = ()
            text, answers = after, (*answers, (len(before), len(after)))
        return (*parts, Dialogue(whole if whole.startswith(text) else text, answers))

    def encode(
        self, batch: list[tuple[Dialogue, ...]], bos: int | None = None, eos: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encode dialogues; `bos` and `eos` begin and end each text where the template does not.

        Returns:
            All ids, the number of ids of each dialogue, and 1 for each target token.
        """
        ids, loss, lengths = [], [], []
        for texts in batch:
            parts = [self._encoded(text, bos, eos) for text in texts]
            lengths.append(sum(len(part) for part, _ in parts))
            ids += [part for part, _ in parts]
            loss += [targets for _, targets in parts]
        return np.concatenate(ids), np.array(lengths, np.int64), np.concatenate(loss)

    def _encoded(
        self, dialogue: Dialogue, bos: int | None, eos: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._tokenizer.encode(dialogue.text, add_special_tokens=False)
        ids = np.array(encoded.ids, np.uint32)
        begins = np.array([begin for begin, _ in encoded.offsets], np.int64)
        targets = np.zeros(len(begins), np.uint8)
        for begin, end in dialogue.answers:
            targets[(begins >= begin) & (begins < end)] = 1
        if bos is not None and ids[0] != bos:
            ids, targets = np.insert(ids, 0, bos), np.insert(targets, 0, 0)
        if eos is not None and eos not in ids[-2:]:  # some templates end the line after it
            ids, targets = np.append(ids, np.uint32(eos)), np.append(targets, targets[-1])
        return ids, targets

    def _prompt(self, messages: list[Message], index: int, tools: Tools) -> str:
        """Render what the model reads before it writes message `index`."""
        if index:
            return self._rendered(messages[:index], tools, add_generation_prompt=True)[0]
        # Many templates cannot render zero messages. Everything before the content, such as BOS, a
        # default system turn and the header, is what two different answers have in common.
        answers = [[{"role": "assistant", "content": content}] for content in "AB"]
        texts = [self._rendered(one, tools)[0] for one in (*answers, messages[:1])]
        return os.path.commonprefix(texts)  # noqa: RUF071 - of characters, not of paths

    def _rendered(
        self, messages: list[Message], tools: Tools, **options: Any
    ) -> tuple[str, Ranges]:
        """Render messages, with null content if the template can render it."""
        filled = [{**message, "content": message["content"] or ""} for message in messages]
        found = self._applied(filled, tools, **options)
        if filled == messages:
            return found
        try:
            given = self._applied(messages, tools, **options)
        except ValueError:
            return found
        return found if given[0].count("None") > found[0].count("None") else given

    def _applied(self, messages: list[Message], tools: Tools, **options: Any) -> tuple[str, Ranges]:
        """Apply the chat template; return the text and what the template marks as generated."""
        from transformers.utils.chat_template_utils import render_jinja_template

        from llmshearing.substrate import set_date

        template = self._template(tools)
        options |= {"chat_template": template, "tools": tools}
        options["return_assistant_tokens_mask"] = bool(GENERATION.search(template))
        try:
            set_date(template, DATE)
            texts, marked = render_jinja_template([messages], **self._tokens, **options)
        except Exception as error:  # a template raises whatever its expressions do
            raise ValueError(
                f"the chat template fails with {type(error).__name__}: {error}"
            ) from None
        ranges: Any = marked[0] if marked else ()
        return texts[0], tuple((begin, end) for begin, end in ranges if begin < end)

    def _template(self, tools: Tools) -> str:
        return self._templates.get("tool_use" if tools else "default", self._templates["default"])


def _after_thought(prompt: str, rendered: str, message: Message) -> str | None:
    """The text of an answer to a prompt that ends by opening a thought.

    Some templates write `<think>` in the prompt for an answer but not in the answers of a dialogue,
    and drop their reasoning. What the model then has to write begins with its reasoning.

    `rendered` is the dialogue with the answer, as the template writes it.

    Returns:
        The prompt, the reasoning, `</think>` and the answer; None for another kind of template.
    """
    before, think, after = prompt.rpartition(THINK)
    if not think or after.strip() or not rendered.startswith(before):
        return None
    answer = rendered[len(before) :]
    if answer.lstrip().startswith(THINK):  # written otherwise than in the prompt
        return prompt + answer.lstrip().removeprefix(THINK).lstrip("\n")
    content = message["content"] or ""
    reasoning = message.get("reasoning_content") or (
        content.partition(THINK_END)[0].rpartition(THINK)[2] if THINK_END in content else ""
    )
    return f"{prompt}{reasoning.strip()}\n{THINK_END}\n\n{answer.lstrip()}"


def _templates(folder: Path) -> dict[str, str]:
    """Read the chat templates of a Hugging Face directory by name, without loading any class.

    Transformers imports the class that `tokenizer_config.json` names, which may be code that came
    with the directory.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        found = {"default": file.read_text(encoding="utf-8")}
        for other in (folder / "additional_chat_templates").glob("*.jinja"):
            found[other.stem] = other.read_text(encoding="utf-8")
        return found
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    given = config.get("chat_template")
    named = given if isinstance(given, list) else [{"name": "default", "template": given}]
    found = {entry["name"]: entry["template"] for entry in named}
    if not found.get("default"):
        raise ValueError("found no default `chat_template` in tokenizer_config.json")
    return found


def _conversation(value: Any) -> tuple[list[Message], Tools]:
    """Check the messages of a dialogue and bring them into the form that templates expect."""
    messages, tools = value, None
    if isinstance(value, dict):
        messages, tools = value["messages"], value["tools"]
        if isinstance(tools, str):
            tools = _json(tools)
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise ValueError("expected a list of objects as tools, or its JSON")
    if not isinstance(messages, list) or not messages:
        raise ValueError("expected a list of messages")
    messages = [_message(message) for message in messages]
    if not any(m["role"] == "assistant" and (m["content"] or "tool_calls" in m) for m in messages):
        raise ValueError("no answer of the assistant")
    return messages, tools or None


def _message(given: Any) -> Message:
    if not isinstance(given, dict):
        raise ValueError(SHAPE)
    message = {key: value for key, value in given.items() if value is not None}
    if "role" not in message and {"from", "value"} <= message.keys():
        speaker = message.pop("from")
        message |= {"role": SPEAKERS.get(speaker, speaker), "content": message.pop("value")}
    calls = message.pop("tool_calls", None) or []
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(map(_text, content))  # as the common servers do
    if calls:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise ValueError("expected a list of objects as tool_calls")
        message["tool_calls"] = [_call(call) for call in calls]
    elif content is None:
        raise ValueError(SHAPE)
    if not isinstance(message.get("role"), str) or not isinstance(content or "", str):
        raise ValueError(SHAPE)
    return {**message, "content": content}


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ValueError(f"found a content part of type {kind}, expected text")
    return part["text"]


def _call(call: Message) -> Message:
    """Parse arguments that are JSON in a string, which a template would quote once more."""
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call(call["function"])}
    arguments = call.get("arguments")
    parsed = _json(arguments) if isinstance(arguments, str) else None
    return {**call, "arguments": parsed} if isinstance(parsed, dict) else call


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
