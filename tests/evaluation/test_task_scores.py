"""Benchmark scores during a run: the right model, and a run that does not notice."""

import json
import logging
from pathlib import Path

import pytest
from runs import launch, metrics, run_here

from llmshearing import preflight
from llmshearing.errors import UserError
from llmshearing.evaluation.benchmarks import benchmark
from llmshearing.export.export import export
from llmshearing.reports.page import write_report
from llmshearing.tasks.suite import read_suite

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install .[eval]")
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's own warnings are not ours

WORDS = "stone river light def return import dear sir yours".split()


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    import datasets

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    yield
    logging.getLogger("lm_eval").setLevel(logging.WARNING)


@pytest.fixture
def documents(tmp_path) -> Path:
    rows = [
        {"query": WORDS[n % 9], "choices": [WORDS[(n + 1) % 9], WORDS[(n + 4) % 9]], "gold": n % 2}
        for n in range(24)
    ]
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "openbookqa.jsonl").write_text("")
    (folder / "openbook_qa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def scored(documents: Path) -> list[str]:
    return [
        "evaluation.suite=commonsense",
        "evaluation.tasks=[OBQA]",
        f"evaluation.documents={documents}",
        "evaluation.interval=3ba",
    ]


def training(lines) -> dict[int, float]:
    return {line["batch"]: line["metrics"]["loss/train/total"] for line in lines}


def test_scores_are_those_of_the_export_and_training_does_not_notice(
    recipe_file, documents, tmp_path
):
    plain = run_here(recipe_file, f"run.directory={tmp_path / 'plain'}")
    lines = run_here(recipe_file, *scored(documents))
    assert training(lines) == training(plain)
    scores = {x["batch"]: x["metrics"]["tasks/OBQA"] for x in lines if "tasks/OBQA" in x["metrics"]}
    assert sorted(scores) == [3, 6, 8]
    export(tmp_path / "run", tmp_path / "out")
    suite = read_suite("commonsense", ["OBQA"])
    found = benchmark(tmp_path / "out", suite, dtype="float32", documents=documents)
    assert scores[8] == found.scores["OBQA"].value
    write_report([tmp_path / "run"])
    assert "Benchmarks" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_sharded_ranks_find_the_same_scores(recipe_file, documents, tmp_path):
    for ranks in (1, 2):
        run = tmp_path / f"ranks-{ranks}"
        done = launch(
            ranks, recipe_file, f"run.directory={run}", "parallelism=fsdp2", *scored(documents)
        )
        assert done.returncode == 0, done.stderr
    one, two = (
        [x["metrics"].get("tasks/OBQA") for x in metrics(tmp_path / f"ranks-{n}")] for n in (1, 2)
    )
    assert one == two


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.tasks=[OBQA]", "evaluation.suite=nothing"], "found no suite nothing"),
        (["evaluation.suite=commonsense", "evaluation.tasks=[SciQ]"], "expected some of piqa"),
        (["evaluation.suite=commonsense", "evaluation.documents=."], "piqa.jsonl, expected"),
        (["evaluation.tasks=[piqa]", "parallelism=fsdp1"], "expected fsdp2 or ddp"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_run(recipe_file, overrides, message):
    with pytest.raises(UserError, match=message):
        preflight.resolve(recipe_file, overrides)
