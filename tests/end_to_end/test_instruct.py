"""Instruction tuning: dialogues in, loss on the answers only, a model that answers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from runs import launch, run_here, series
from streaming.base.format.mds.reader import MDSReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmshearing.data.tree import DataTree
from llmshearing.evaluation.domain_loss import evaluate
from llmshearing.export.export import export

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "yamls" / "continue" / "instruct.yaml"
ANSWERS = {"stone": "a grey river", "light": "sun", "dear": "sir yours truly", "def": "return"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HERE = ("parallelism=ddp", "data.workers=0", "run.eval_interval=50ba", "run.log_interval=1ba")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A random model with a tokenizer that has a chat template."""
    folder = tmp_path_factory.mktemp("chat-model")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [f"{question} {answer}" for question, answer in ANSWERS.items()] * 4,
        tokenizers.trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = AutoConfig.for_model(
        "llama",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=tokenizer.token_to_id("<|begin|>"),
        eos_token_id=tokenizer.token_to_id("<|end|>"),
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_tree(chat_model, tmp_path_factory):
    """Dialogues of one to three turns, prepared by the shipped recipe."""
    raw, root = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("tree") / "data"
    words = list(ANSWERS)
    (raw / "dialogues").mkdir()
    with (raw / "dialogues" / "all.jsonl").open("w") as file:
        for i in range(240):
            asked = [words[(i // 3 + turn) % len(words)] for turn in range(i % 3 + 1)]
            messages = []
            for word in asked:
                messages += [
                    {"role": "user", "content": word},
                    {"role": "assistant", "content": ANSWERS[word]},
                ]
            file.write(json.dumps({"id": i, "messages": messages}) + "\n")
    command = [sys.executable, str(ROOT / "data_prep" / "prepare.py")]
    command += [str(ROOT / "yamls" / "data" / "instruct.yaml"), f"source={raw}", f"output={root}"]
    command += [f"tokenizer={chat_model}", "sequence_length=32", "splits.eval.share=0.1"]
    done = subprocess.run([*command, "processes=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return DataTree.open(root)


def rows_of(tree, split):
    folder = tree.split(split)["dialogues"].path
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        yield from MDSReader.from_json(str(folder), None, shard)


def plain_step(folder, tree):
    """Transformers' mean loss over every answer's tokens of the split, and its gradient's norm."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for row in rows_of(tree, "continue"):
        tokens = torch.tensor(row["tokens"].astype("int64"))[None]
        labels = tokens.masked_fill(torch.tensor(row["loss"])[None] == 0, -100)
        targets = int((labels[:, 1:] != -100).sum())
        if targets:
            total = total + model(input_ids=tokens, labels=labels).loss.double() * targets
            count += targets
    (total / count).backward()
    squares = sum(p.grad.double().pow(2).sum() for p in model.parameters())
    return float(total / count), float(squares.sqrt()), count


def one_step(chat_model, chat_tree, directory, microbatch):
    rows = chat_tree.split("continue")["dialogues"].rows
    return [
        f"model.path={chat_model}",
        f"data.root={chat_tree.root}",
        f"data.global_batch={rows - rows % 2}",
        f"data.microbatch={microbatch}",
        f"run.directory={directory}",
        "run.duration=1ba",
        *HERE,
    ]


@pytest.mark.parametrize("microbatch", [1, 1000])
def test_a_steps_loss_is_the_mean_over_answer_tokens(chat_model, chat_tree, tmp_path, microbatch):
    """A batch of the whole split, against a plain loop over its masked labels."""
    rows = chat_tree.split("continue")["dialogues"].rows
    counts = {int(row["loss"][1:].sum()) for row in rows_of(chat_tree, "continue")}
    assert len(counts) > 3, "rows have to differ in their targets"
    overrides = one_step(chat_model, chat_tree, tmp_path / "run", min(microbatch, rows))
    lines = run_here(RECIPE, *overrides, f"data.global_batch={rows}")
    loss, norm, _ = plain_step(chat_model, chat_tree)
    assert series(lines, "loss/train/ce")[1] == pytest.approx(loss, rel=1e-6)
    assert series(lines, "optimizer/gradient_norm")[1] == pytest.approx(norm, rel=1e-5)


@pytest.fixture(scope="module")
def chat_teacher(chat_model, tmp_path_factory):
    """The same model with other weights."""
    folder = shutil.copytree(chat_model, tmp_path_factory.mktemp("chat-teacher") / "model")
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    model.save_pretrained(folder)
    return folder


def plain_distilled_step(folder, teacher_folder, tree, weight, temperature):
    """Means over every answer's tokens of the split, from whole logits; the gradient's norm."""
    model, teacher = (AutoModelForCausalLM.from_pretrained(f) for f in (folder, teacher_folder))
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    for row in rows_of(tree, "continue"):
        tokens = torch.tensor(row["tokens"].astype("int64"))
        answers = torch.tensor(row["loss"])[1:] != 0
        q, p = (one(tokens[None]).logits[0, :-1][answers] for one in (model, teacher))
        cross_entropy = F.cross_entropy(q, tokens[1:][answers], reduction="sum")
        q, p = ((logits / temperature).log_softmax(-1) for logits in (q, p.detach()))
        divergence = temperature**2 * F.kl_div(q, p, log_target=True, reduction="sum")
        sums = sums + torch.stack([cross_entropy, divergence]).double()
        count += int(answers.sum())
    cross_entropy, divergence = sums / count
    ((1 - weight) * cross_entropy + weight * divergence).backward()
    squares = sum(p.grad.double().pow(2).sum() for p in model.parameters())
    return float(cross_entropy), float(divergence), float(squares.sqrt())


@pytest.mark.parametrize("microbatch", [1, 1000])
def test_a_distilled_step_is_that_of_whole_logits_over_answers_alone(
    chat_model, chat_teacher, chat_tree, tmp_path, microbatch
):
    rows = chat_tree.split("continue")["dialogues"].rows
    overrides = one_step(chat_model, chat_tree, tmp_path / "run", min(microbatch, rows))
    section = {"teacher": str(chat_teacher), "weight": 0.3, "temperature": 2.0}
    distillation = f"distillation={json.dumps(section)}"
    lines = run_here(RECIPE, *overrides, f"data.global_batch={rows}", distillation)
    wanted = plain_distilled_step(chat_model, chat_teacher, chat_tree, 0.3, 2.0)
    names = ("loss/train/ce", "loss/train/divergence", "optimizer/gradient_norm")
    found = [series(lines, name)[1] for name in names]
    assert min(wanted) > 0.01
    assert found == pytest.approx(list(wanted), rel=1e-5)
    total = series(lines, "loss/train/total")[1]
    assert total == pytest.approx(0.7 * wanted[0] + 0.3 * wanted[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.world_size(2)
def test_two_processes_take_the_same_step_as_one(chat_model, chat_tree, tmp_path):
    found = []
    for ranks in (1, 2):
        directory = tmp_path / f"run{ranks}"
        done = launch(ranks, RECIPE, *one_step(chat_model, chat_tree, directory, 1))
        assert done.returncode == 0, done.stderr
        lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
        names = ("loss/train/ce", "optimizer/gradient_norm")
        found.append([series(lines, name)[1] for name in names])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_tuned_model_gives_the_trained_answers(chat_model, chat_tree, tmp_path):
    lines = run_here(
        RECIPE,
        f"model.path={chat_model}",
        f"data.root={chat_tree.root}",
        f"run.directory={tmp_path / 'run'}",
        "run.duration=150ba",
        "data.global_batch=16",
        "data.microbatch=16",
        "optimizer.learning_rate=0.01",
        *HERE,
    )
    losses = series(lines, "metrics/dialogues/loss")
    assert losses[50] > losses[150]
    assert losses[150] < 0.1
    tuned = export(tmp_path / "run", tmp_path / "tuned").directory
    held = evaluate(tuned, chat_tree.root / "eval").domains["dialogues"]
    assert held.loss == pytest.approx(losses[150], abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    model = AutoModelForCausalLM.from_pretrained(tuned).eval()
    for question, answer in ANSWERS.items():
        batch = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        prompt = batch["input_ids"]
        found = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, pad_token_id=0
        )
        assert tokenizer.decode(found[0, prompt.shape[1] :]) == f"{answer}<|end|>"
