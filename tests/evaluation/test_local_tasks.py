"""Scores from JSON lines, next to a plain loop over log-likelihoods."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing.cli import main
from llmshearing.evaluation.benchmarks import benchmark
from llmshearing.tasks.documents import DEFINITIONS
from llmshearing.tasks.suite import read_suite

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install .[eval]")
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's own warnings are not ours

LIMIT = 6


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    import datasets

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    yield
    logging.getLogger("lm_eval").setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def documents(shared):
    folder = shared / "data" / "benchmarks"
    if not folder.is_dir():
        pytest.skip(f"no benchmark documents in {folder}")
    return folder


def requests(task, row):
    """Pairs of context and continuation of one document, and the index of the right one."""
    if task == "winogrande":
        return [(context, " " + row["continuation"]) for context in row["context_options"]]
    prompt = row["query"].strip() if task == "piqa" else row["query"]
    prompt += "" if task == "openbookqa" else "\nAnswer:"
    return [(prompt, " " + choice) for choice in row["choices"]]


class PlainLoop:
    """One forward pass for each continuation: no batches, no cache, no padding."""

    def __init__(self, directory):
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)

    def log_likelihood(self, context, continuation):
        """Summed over the continuation's tokens, and whether each is the most likely one."""
        ids = self.tokenizer(context + continuation).input_ids
        start = len(self.tokenizer(context).input_ids)
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        targets = torch.tensor(ids[start:])
        picked = logits[start - 1 : -1].gather(1, targets[:, None])
        return picked.sum().item(), bool((logits[start - 1 : -1].argmax(-1) == targets).all())

    def accuracy(self, task, rows, normalised):
        """In percent; `normalised` divides by the continuation's length in characters."""
        right = 0
        for row in rows:
            pairs = requests(task, row)
            scores = [self.log_likelihood(*pair)[0] for pair in pairs]
            if normalised:
                scores = [s / (len(pair[1]) - 1) for s, pair in zip(scores, pairs, strict=True)]
            right += scores.index(max(scores)) == row["gold"]
        return 100 * (right / len(rows))

    def last_words(self, rows):
        pairs = [(row["context"], " " + row["continuation"]) for row in rows]
        return 100 * (sum(self.log_likelihood(*pair)[1] for pair in pairs) / len(rows))


def test_scores_equal_a_plain_loop_exactly(shared, documents):
    """Set LLMSHEARING_BENCHMARK_MODEL and LLMSHEARING_BENCHMARK_LIMIT for another model."""
    model = Path(os.environ.get("LLMSHEARING_BENCHMARK_MODEL", shared / "models" / "tiny-llama"))
    limit = int(os.environ.get("LLMSHEARING_BENCHMARK_LIMIT", LIMIT))
    suite = read_suite("commonsense")
    found = benchmark(model, suite, dtype="float32", documents=documents, limit=limit)
    plain = PlainLoop(model)
    expected = {}
    for task in suite.tasks:
        file = {"openbookqa": "openbook_qa"}.get(task.task, task.task)
        with (documents / f"{file}.jsonl").open() as lines:
            rows = [json.loads(line) for _, line in zip(range(limit), lines, strict=False)]
        if task.task == "lambada_openai":
            expected[task.column] = plain.last_words(rows)
        else:
            expected[task.column] = plain.accuracy(task.task, rows, task.metric == "acc_norm")
    assert {column: score.value for column, score in found.scores.items()} == expected


def test_bootstrapped_errors_need_no_other_process(shared, documents, monkeypatch):
    """In a run they would inherit its handler of SIGTERM, with which lm-eval cannot end them."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was forked"))
    suite = read_suite("commonsense")
    words = [task.column for task in suite.tasks if task.task == "lambada_openai"]
    model = shared / "models" / "tiny-llama"
    found = benchmark(model, read_suite("commonsense", words), documents=documents, limit=3)
    assert list(found.scores) == words


def test_generated_answers_are_scored_from_json_lines(shared, tmp_path):
    """A model that knows nothing scores 0."""
    rows = [
        {"context": f"{n} + 2?", "chain_of_thought": f"{n} + 2 = {n + 2}.", "answer": str(n + 2)}
        for n in range(7)
    ]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = read_suite("generative", ["GSM8K"])
    found = benchmark(shared / "models" / "tiny-llama", suite, documents=tmp_path, limit=1)
    assert found.scores["GSM8K"].value == 0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("hellaswag", "expected some of arc_challenge, arc_easy"),
        ("piqa", "piqa.jsonl, expected the documents of a task as JSON lines"),
    ],
)
def test_missing_documents_and_definitions_are_named(tiny_model, tmp_path, capsys, task, message):
    assert main(
        ["benchmark", str(tiny_model), "--tasks", task, "--documents", str(tmp_path)]
    ) == 2  # fmt: skip
    assert message in capsys.readouterr().err


def test_every_definition_is_named_after_its_task():
    for path in DEFINITIONS.glob("*.yaml"):
        assert f"\ntask: {path.stem}\n" in path.read_text()
