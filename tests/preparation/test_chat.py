"""Dialogues: the template's text, the loss on the answers alone."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from corpus import prepare
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from llmshearing.data.tree import DataTree
from llmshearing.preparation import encoders
from llmshearing.preparation.chat import ChatEncoder

TALK = [
    {"role": "user", "content": "the 東京?"},
    {"role": "assistant", "content": "one answer"},
    {"role": "user", "content": "and then"},
    {"role": "assistant", "content": " another\n"},
]


def test_targets_are_what_the_assistant_writes(json_folder):
    encoder = ChatEncoder(json_folder)
    ids, lengths, loss = encoder.encode([encoder.render(TALK), encoder.render(TALK[:2])])
    read = tokenizers.Tokenizer.from_file(str(json_folder / "tokenizer.json"))
    cut = lengths[0]
    assert lengths.sum() == len(ids) == len(loss)
    counted = read.decode(ids[:cut][loss[:cut] == 1].tolist(), skip_special_tokens=False)
    rest = read.decode(ids[:cut][loss[:cut] == 0].tolist(), skip_special_tokens=False)
    assert counted == "one answer<|end|> another\n<|end|>"
    assert rest == "<|user|>the 東京?<|assistant|><|user|>and then<|assistant|>"
    assert read.decode(ids[cut:][loss[cut:] == 1].tolist(), skip_special_tokens=False) == (
        "one answer<|end|>"
    )


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hello", "list of messages"),
        ([], "list of messages"),
        ([{"role": "user"}], "`role` and `content`"),
        ([{"role": "user", "content": None}], "`role` and `content`"),
        ([{"role": "user", "content": "x"}], "no answer"),
    ],
)
def test_a_malformed_dialogue_is_refused(json_folder, messages, problem):
    with pytest.raises(ValueError, match=problem):
        ChatEncoder(json_folder).render(messages)


def chat(json_folder, template, **others):
    encoder = ChatEncoder(json_folder)
    encoder._templates = {"default": template, **others}
    return encoder


def targets(dialogue):
    return [dialogue.text[begin:end] for begin, end in dialogue.answers]


def test_a_template_that_does_not_write_an_answer_after_its_own_prompt_is_refused(json_folder):
    encoder = chat(json_folder, "{{ messages | length }}{{ messages[-1].content }}")
    with pytest.raises(ValueError, match="does not write turn 2 after its own prompt"):
        encoder.render(TALK)


def test_a_chat_domain_next_to_a_text_domain(config, source, json_folder, tmp_path):
    path = source / "talk" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"messages": TALK, "n": i}) + "\n" for i in range(90)))
    overrides = [f"tokenizer={json_folder}", "domains.talk.messages_field=messages"]
    settings = json.loads(config.read_text())
    settings["splits"] = {"continue": {"share": 1}}
    settings["domains"] = {"talk": {"eval_files": "talk/held.jsonl"}, "web": {"eval_files": "code"}}
    (path.parent / "held.jsonl").write_text(json.dumps({"messages": TALK[:2] * 9}) + "\n")
    config.write_text(json.dumps(settings))
    assert prepare(config, *overrides) == 0
    domains = DataTree.open(tmp_path / "tree").split("continue")
    assert domains["talk"].chat
    assert not domains["web"].chat
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(domains["talk"].path), batch_size=1)
    samples = [dataset[i] for i in range(len(dataset))]
    tokens = np.concatenate([sample["tokens"] for sample in samples])
    loss = np.concatenate([sample["loss"] for sample in samples])
    encoder = ChatEncoder(json_folder)
    ids, _, counted = encoder.encode([encoder.render(TALK)])
    one, marks = np.insert(ids, 0, 0), np.insert(counted, 0, 0)  # bos; the template ends with eos
    times = -(-len(tokens) // len(one))
    np.testing.assert_array_equal(tokens, np.tile(one, times)[: len(tokens)])
    np.testing.assert_array_equal(loss, np.tile(marks, times)[: len(loss)])
    assert set(dataset[0]) == {"tokens", "loss"}


def test_a_dialogue_rejected_by_the_template_is_a_bad_document(json_folder):
    encoder = chat(json_folder, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        encoder.render(TALK)


def with_config(folder, target, **changes):
    shutil.copytree(folder, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_a_template_that_prints_the_date_prints_the_same_one_every_day(json_folder, tmp_path):
    template = json.loads((json_folder / "tokenizer_config.json").read_text())["chat_template"]
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + template
    encoder = ChatEncoder(with_config(json_folder, tmp_path / "dated", chat_template=dated))
    assert encoder.render(TALK)[0].text.startswith("26 Jul 2024<|user|>")


def test_the_identity_covers_what_decides_the_ids_and_nothing_else(json_folder, tmp_path):
    """A tokenizer that is saved again is the same; another template or mark is another."""
    given = ChatEncoder(json_folder).identity
    copies = {
        "same": ({"model_max_length": 512}, True),
        "template": ({"chat_template": "{{ messages[0].content }}"}, False),
        "mark": ({"eos_token": "<|user|>"}, False),
    }
    for name, (changes, same) in copies.items():
        copy = with_config(json_folder, tmp_path / name, **changes)
        assert (ChatEncoder(copy).identity == given) == same, name


def test_code_in_a_tokenizer_directory_is_never_run(json_folder, tmp_path, monkeypatch):
    folder, marker = tmp_path / "tokenizer", tmp_path / "code_was_run"
    shutil.copytree(json_folder, folder)
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast): pass\n"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}})
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the answer to "run the custom code?"
    assert ChatEncoder(folder).render(TALK) == ChatEncoder(json_folder).render(TALK)
    assert encoders.inspect(folder).bos == 0
    assert not marker.exists()


HEADERS = {
    "chatml, default system turn": (
        "{% if messages[0].role != 'system' %}<|begin|>system\nBe kind.<|end|>\n{% endif %}"
        "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
    ),
    "llama 3, BOS and trimmed content": (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n\n{{ m.content | trim }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "no generation prompt, header in the loop": (
        "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: {{ m.content }}{{ eos_token }}"
        "{% endfor %}"
    ),
}


@pytest.mark.parametrize("template", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("first", ["Hello", "A", "B and more", " leading space"])
def test_nothing_before_a_first_answer_is_a_target(json_folder, template, first):
    talk = [{"role": "assistant", "content": first}, *TALK]
    (dialogue,) = chat(json_folder, template).render(talk)
    answers = targets(dialogue)
    assert answers[0].startswith(first.strip() if "trim" in template else first)
    assert len(answers) == 3
    assert "".join(answers).count("<|begin|>") == 0


QWEN3 = (  # drops the reasoning of turns before the last question
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set body = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% set thought = m.content.split('</think>')[0] if '</think>' in m.content else '' %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}"
    "<think>{{ thought.split('<think>')[-1] }}</think>\n\n{% endif %}"
    "{{ body if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (  # puts the system turn into the last question
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}<s>"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last or loop.index0 == messages | length - 2 %}{{ system }} {% endif %}"
    "{{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}"
    "{% endfor %}"
)


def test_each_answer_follows_the_prompt_that_the_model_reads(json_folder):
    talk = [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "<think>t1</think>\n\na1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "<think>t2</think>\n\na2"},
        {"role": "user", "content": "q3"},
    ]
    encoder = chat(json_folder, QWEN3)
    first, second = encoder.render(talk)
    begin, end = "<|im_start|>", "<|im_end|>\n"
    assert first.text == f"{begin}user\nq1{end}{begin}assistant\n<think>t1</think>\n\na1{end}"
    assert targets(first) == [f"<think>t1</think>\n\na1{end}"]
    assert second.text.startswith(f"{begin}user\nq1{end}{begin}assistant\na1{end}{begin}user\nq2")
    assert targets(second) == [f"<think>t2</think>\n\na2{end}"]


def test_a_system_turn_that_moves_is_where_the_model_reads_it(json_folder):
    first, second = chat(json_folder, MISTRAL).render([{"role": "system", "content": "S"}, *TALK])
    assert first.text == "<s>[INST] S the 東京? [/INST] one answer</s>"
    assert targets(first) == [" one answer</s>"]
    assert second.text == (
        "<s>[INST] the 東京? [/INST] one answer</s>[INST] S and then [/INST]  another\n</s>"
    )
    assert targets(second) == ["  another\n</s>"]


def test_turns_that_are_not_rewritten_share_a_text(json_folder):
    talk = [{"role": "user", "content": "<think>"}, *TALK[1:]]
    tools = [*TALK, {"role": "assistant", "content": "goes on"}, {"role": "user", "content": "x"}]
    encoder = ChatEncoder(json_folder)
    assert [len(encoder.render(one)) for one in (TALK, talk, tools)] == [1, 1, 1]
    assert encoder.render(tools)[0].text.endswith("<|user|>x"), "later turns stay, as context"


def test_the_texts_of_a_dialogue_are_one_document(json_folder):
    encoder = chat(json_folder, MISTRAL)
    dialogue = encoder.render([{"role": "system", "content": "S"}, *TALK])
    ids, lengths, loss = encoder.encode([dialogue, dialogue[:1]], bos=0, eos=1)
    one, _, counted = encoder.encode([dialogue[:1]], bos=0, eos=1)
    assert len(lengths) == 2
    assert lengths[1] == len(one)
    for part, whole in ((one, ids), (counted, loss)):
        np.testing.assert_array_equal(whole[: len(part)], part)
        np.testing.assert_array_equal(whole[-len(part) :], part)
    assert ids[len(one) - 1 : len(one) + 1].tolist() == [1, 0], "each text has its marks"
    assert (one[0], one[-1]) == (0, 1)
    assert (counted[0], counted[-1]) == (0, 1)


def test_generation_markers_define_the_targets(json_folder):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
        "{%- generation -%}{{ m.content.upper() }}<|end|>{%- endgeneration -%}!"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{{ messages | length }}"
    )
    encoder = chat(json_folder, template)
    (dialogue,) = encoder.render(TALK)
    assert targets(dialogue) == ["ONE ANSWER<|end|>", " ANOTHER\n<|end|>"]
    assert dialogue.text.endswith("!4"), "no turn is rendered by itself"
    fewer = chat(json_folder, ":{% generation %}{{ messages[1].content }}{% endgeneration %}")
    with pytest.raises(ValueError, match="marks fewer answers"):
        fewer.render(TALK)


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": None}}}
AS_TEXT = {**CALL, "function": {"name": "f", "arguments": '{"a": null}'}}
CALLS = (  # of an OpenAI-like template: tests for null, writes calls as JSON
    "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% endif %}CONTENT<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WRITERS = {
    "knows null": "{% if m.content is not none %}{{ m.content }}{% else %}-{% endif %}",
    "prints null": "{{ m.content }}",
    "fails on null": "{{ m.content + '' }}",
    "trims": "{{ m.content | trim }}",
}


@pytest.mark.parametrize("call", [CALL, AS_TEXT], ids=["object", "JSON in a string"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}])
def test_tool_calls_without_content(json_folder, call, writer, content):
    talk = [
        {"role": "user", "content": "q", "tool_calls": None, "name": None},
        {"role": "assistant", **content, "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done", "tool_calls": []},
    ]
    (dialogue,) = chat(json_folder, CALLS.replace("CONTENT", WRITERS[writer])).render(talk)
    given = "" if content == {"content": ""} or writer != "knows null" else "-"
    assert targets(dialogue) == [f'{{"a": null}}{given}<|end|>', "done<|end|>"]
    assert "None" not in dialogue.text


@pytest.mark.parametrize("form", [lambda tools: tools, json.dumps], ids=["list", "JSON"])
def test_tools_are_passed_to_the_template(json_folder, form):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    template = CALLS.replace("CONTENT", "{{ m.content }}")
    (dialogue,) = chat(json_folder, template).render({"messages": TALK, "tools": form(tools)})
    assert dialogue.text.startswith(f"<|tools|>{json.dumps(tools)}<|user|>")
    other = chat(json_folder, "{{ nothing }}", tool_use=template)
    assert other.render({"messages": TALK, "tools": form(tools)}) == (dialogue,)
    for wrong in (["f"], "no JSON", {"name": "f"}, '{"name": "f"}'):
        with pytest.raises(ValueError, match="list of objects as tools"):
            other.render({"messages": TALK, "tools": wrong})


def test_content_parts_of_text_are_joined(json_folder):
    parts = [{"type": "text", "text": "the", "image_url": None}, {"type": "text", "text": "東京?"}]
    encoder = ChatEncoder(json_folder)
    joined = [{"role": "user", "content": "the\n東京?"}, *TALK[1:]]
    assert encoder.render([{"role": "user", "content": parts}, *TALK[1:]]) == encoder.render(joined)
    other = ({"type": "image_url", "image_url": "x"}, {"type": "image", "text": "x"}, 3)
    for part in (*other, {"type": "text", "text": None}):
        with pytest.raises(ValueError, match=r"content part of type (image|int|text)"):
            encoder.render([{"role": "user", "content": [part]}, *TALK[1:]])


@pytest.mark.parametrize(
    "expression", ["1 + ''", "1 / 0", "[].x.y", "'a'.b()", "{}['a']['b']", "''.join([1])"]
)
def test_whatever_a_template_raises_is_a_bad_document(json_folder, expression):
    with pytest.raises(ValueError, match="the chat template fails with"):
        chat(json_folder, f"{{{{ {expression} }}}}").render(TALK)


def test_nulls_of_parquet_files(config, source, json_folder, tmp_path):
    """A column of structs has every field in every row."""
    import pyarrow
    import pyarrow.parquet

    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    other = {"function": {"name": "g", "arguments": {"b": 2}}}
    talks = [
        [TALK[0], {"role": "assistant", "content": None, "tool_calls": [one]}, *TALK[2:]]
        for one in (call, other)
    ]
    tools = [[{"name": "f", "parameters": {"a": "int"}}], [{"name": "g", "parameters": {"b": "x"}}]]
    rows = [
        {"messages": [*talks[i % 2], {"role": "user", "content": f"{i}"}], "tools": tools[i % 2]}
        for i in range(90)
    ]
    (source / "talk").mkdir()
    table = pyarrow.Table.from_pylist(rows)
    assert "'tool_calls': None" in str(table.slice(0, 1).to_pylist())
    pyarrow.parquet.write_table(table, source / "talk" / "a.parquet")
    settings = json.loads(config.read_text())
    settings["domains"] = {"talk": {"messages_field": "messages"}}
    settings |= {"tokenizer": str(with_config(json_folder, tmp_path / "calls",
        chat_template=CALLS.replace("CONTENT", "{{ m.content or '' }}")))}  # fmt: skip
    config.write_text(json.dumps(settings))
    assert prepare(config) == 0
    tree = DataTree.open(tmp_path / "tree")
    assert tree.manifest["domains"]["talk"]["bad"] == 0
    info = tree.split("continue")["talk"]
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(info.path), batch_size=1)
    ids = np.concatenate([dataset[i]["tokens"] for i in range(len(dataset))])
    read = tokenizers.Tokenizer.from_file(str(json_folder / "tokenizer.json"))
    written = read.decode(ids.tolist(), skip_special_tokens=False)
    assert '<|assistant|>{"a": 1}<|end|>' in written
    assert '[{"name": "f", "parameters": {"a": "int"}}]' in written
    assert "null" not in written
    assert "None" not in written


OPENS_A_THOUGHT = {  # in the prompt only, as the templates of QwQ and of DeepSeek's R1 do
    "drops reasoning": (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "<|end|>\n{% endfor %}{% if add_generation_prompt %}[assistant]\n<think>\n{% endif %}"
    ),
    "keeps reasoning": (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n<think>\n{% endif %}"
    ),
}
ANSWERS = {
    "reasoning in the content": (
        {"content": "<think>\nwhy\n</think>\n\nyes"}, "why\n</think>\n\nyes"
    ),
    "no reasoning": ({"content": "yes"}, "\n</think>\n\nyes"),
    "reasoning of its own": (
        {"content": "yes", "reasoning_content": "why"}, "why\n</think>\n\nyes"
    ),
}  # fmt: skip


@pytest.mark.parametrize("template", OPENS_A_THOUGHT.values(), ids=OPENS_A_THOUGHT)
@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_follows_a_prompt_that_opens_a_thought(json_folder, template, case):
    message, written = ANSWERS[case]
    answer = {"role": "assistant", **message}
    talk = [{"role": "user", "content": "q1"}, answer, {"role": "user", "content": "q2"}, answer]
    encoder = chat(json_folder, template)
    prompts = [encoder._prompt(talk, index, None) for index in (1, 3)]
    assert all(prompt.endswith("[assistant]\n<think>\n") for prompt in prompts)
    found = [
        (dialogue.text[:begin], dialogue.text[begin:end])
        for dialogue in encoder.render(talk)
        for begin, end in dialogue.answers
    ]
    assert found == [(prompt, f"{written}<|end|>\n") for prompt in prompts]


def test_a_thought_that_the_user_wrote_opens_none(json_folder):
    encoder = chat(json_folder, "{{ messages | length }}{{ messages[-1].content }}")
    talk = [{"role": "user", "content": "<think>"}, *TALK[1:]]
    with pytest.raises(ValueError, match="does not write turn 2 after its own prompt"):
        encoder.render(talk)
