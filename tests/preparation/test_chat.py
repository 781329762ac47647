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


def test_what_counts_is_what_the_assistant_writes(json_folder):
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
def test_what_is_no_dialogue_says_so(json_folder, messages, problem):
    with pytest.raises(ValueError, match=problem):
        ChatEncoder(json_folder).render(messages)


def test_a_template_that_rewrites_earlier_turns_is_refused(json_folder):
    encoder = ChatEncoder(json_folder)
    encoder._template = "{{ messages | length }}{{ messages[-1].content }}"
    with pytest.raises(ValueError, match="rewrites"):
        encoder.render(TALK)


def test_a_chat_domain_beside_a_text_domain(config, source, json_folder, tmp_path):
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


def test_a_dialogue_the_template_refuses_is_a_bad_document(json_folder):
    encoder = ChatEncoder(json_folder)
    encoder._template = "{{ raise_exception('roles must alternate') }}"
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
    assert encoder.render(TALK).text.startswith("26 Jul 2024<|user|>")


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
    assert ChatEncoder(folder).render(TALK).text == ChatEncoder(json_folder).render(TALK).text
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
    encoder = ChatEncoder(json_folder)
    encoder._template = template
    talk = [{"role": "assistant", "content": first}, *TALK]
    dialogue = encoder.render(talk)
    targets = [dialogue.text[begin:end] for begin, end in dialogue.answers]
    assert targets[0].startswith(first.strip() if "trim" in template else first)
    assert len(targets) == 3
    assert "".join(targets).count("<|begin|>") == 0
