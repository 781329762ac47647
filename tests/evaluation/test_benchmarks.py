"""The suite against the paper's tables, and the way of a score through lm-eval."""

import json
import logging
import shutil

import pytest
import standins
from transformers import LlamaForCausalLM

from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.evaluation.benchmarks import Score, Scores, benchmark
from llmshearing.tasks.suite import read_suite

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install .[eval]")
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's own warnings are not ours

# The head of the paper's result tables with the shots, and its line on metrics.
COLUMNS = (
    "SciQ PIQA WinoGrande ARC-E ARC-C(25) HellaSwag(10) LogiQA BoolQ(32) LAMBADA NQ(32) MMLU(5)"
)
NORMALISED = {"ARC-C", "LogiQA", "HellaSwag"}
LLAMA2_7B = [93.7, 78.1, 69.3, 76.4, 53.0, 78.6, 30.7, 82.1, 73.9, 28.8, 46.6, 64.6]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    import datasets

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    yield
    logging.getLogger("lm_eval").setLevel(logging.WARNING)


@pytest.fixture
def tasks(tmp_path):
    names = [task.task for task in read_suite("sheared-llama").tasks]
    return standins.write(tmp_path / "tasks", names, "stone river light def return dear".split())


def test_tasks_shots_and_metrics_are_the_papers():
    suite = read_suite("sheared-llama")
    heads = [t.column + (f"({t.shots})" if t.shots else "") for t in suite.tasks]
    assert heads == COLUMNS.split()
    for task in suite.tasks:
        expected = "acc_norm" if task.column in NORMALISED else "acc"
        assert task.metric == ("exact_match" if task.column == "NQ" else expected)


def test_published_rows_are_the_papers():
    suite = read_suite("sheared-llama")
    assert len(suite.published) == 11
    assert list(suite.published["LLaMA2-7B (2T)"]) == LLAMA2_7B
    assert suite.published["Sheared-1.3B (50B)"][-1] == 51.0
    assert suite.published["Sheared-2.7B (50B)"][-1] == 56.7
    for model, (*scores, average) in suite.published.items():
        assert sum(scores) / len(scores) == pytest.approx(average, abs=0.07), model


@pytest.mark.slow
def test_lm_eval_knows_the_suite_with_its_metrics():
    """Of the installed lm-eval itself: the names, and that each task has the metric, unloaded."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for task in read_suite("sheared-llama").tasks:
        assert task.task in manager.all_tasks
        config = manager.task_index[task.task].cfg or {}
        listed = config.get("metric_list") or config.get("aggregate_metric_list") or []
        if listed:  # of the others the metrics come from a file that they include
            assert task.metric in {metric["metric"] for metric in listed}, task.task


def test_dry_run_prints_what_would_be_evaluated(capsys, tmp_path):
    assert (
        main(["benchmark", str(tmp_path / "nothing"), "--suite", "sheared-llama", "--dry-run"]) == 0
    )
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert lines["arc_challenge"] == ["arc_challenge", "ARC-C", "25", "acc_norm"]
    assert lines["nq_open"] == ["nq_open", "NQ", "32", "exact_match"]
    assert "11 tasks, all known to lm-eval" in out


def test_the_whole_suite_on_local_tasks(tiny_model, tasks, tmp_path, capsys):
    out = tmp_path / "scores.json"
    arguments = ["benchmark", str(tiny_model), "--suite", "sheared-llama", "--limit", "4"]
    assert main([*arguments, "--include-path", str(tasks), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["scores"]) == [task.column for task in read_suite("sheared-llama").tasks]
    assert all(0 <= score <= 100 for score in found["scores"].values())
    assert found["average"] == pytest.approx(sum(found["scores"].values()) / 11)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["model", *COLUMNS.split(), "average"]
    assert table[1].split()[-12:] == [str(score) for score in LLAMA2_7B]
    assert table[12].split()[0] == tiny_model.name
    errors = [found["standard_errors"][column] for column in found["scores"]]
    assert table[13].split()[:-1] == ["standard", "error", *(f"{error:.1f}" for error in errors)]
    assert "all rows but the last two: arXiv 2310.06694" in table[14]
    assert "first 4 documents" in table[15]


def test_a_score_is_lm_evals_own(tiny_model, tasks):
    """The harness called by hand, with the shots of the suite."""
    suite = read_suite("sheared-llama").only(["HellaSwag"])
    found = benchmark(tiny_model, suite, include=tasks)
    by_hand = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny_model)},
        tasks=["hellaswag"],
        num_fewshot=10,
        device="cpu",
        batch_size=16,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
    )
    assert by_hand["n-shot"]["hellaswag"] == 10
    expected = by_hand["results"]["hellaswag"]["acc_norm,none"]
    error = by_hand["results"]["hellaswag"]["acc_norm_stderr,none"]
    assert found.scores == {"HellaSwag": Score(100 * expected, 100 * error)}
    assert found.average == found.scores["HellaSwag"]
    assert found.suite.published["LLaMA2-7B (2T)"] == [78.6, 78.6]


def test_tasks_without_a_suite(tiny_model, tasks):
    found = benchmark(tiny_model, read_suite(None, ["sciq", "nq_open"]), include=tasks, limit=2)
    assert list(found.scores) == ["sciq", "nq_open"]


def test_a_benchmark_runs_in_one_process(tiny_model, tasks, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="benchmark: found 2 ranks, expected one process"):
        benchmark(tiny_model, read_suite(None, ["sciq"]), include=tasks)


@pytest.mark.parametrize("numbers", [{"limit": 0}, {"limit": -1}, {"batch_size": 0}])
def test_impossible_numbers_are_refused(tiny_model, tasks, numbers):
    with pytest.raises(UserError, match="expected at least 1 each"):
        benchmark(tiny_model, read_suite(None, ["sciq"]), include=tasks, **numbers)


def test_answers_in_the_cache_are_not_computed_again(tiny_model, tasks, tmp_path, monkeypatch):
    suite, cache = read_suite(None, ["sciq", "nq_open"]), tmp_path / "cache"
    first = benchmark(tiny_model, suite, include=tasks, cache=cache)
    computed = []

    def forward(self, *args, **kwargs):
        computed.append(self)
        return real(self, *args, **kwargs)

    real = LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    assert benchmark(tiny_model, suite, include=tasks, cache=cache) == first
    assert not computed
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    assert benchmark(copy, suite, include=tasks, cache=cache).scores == first.scores
    assert not computed
    (copy / "model.safetensors").touch()  # written anew: it may be another model
    assert benchmark(copy, suite, include=tasks, cache=cache).scores == first.scores
    assert computed


def test_the_average_has_the_standard_error_of_a_mean(tmp_path):
    suite = read_suite(None, ["a", "b"])
    found = Scores(tmp_path, suite, {"a": Score(10.0, 3.0), "b": Score(20.0, 4.0)}, limit=None)
    assert found.average == Score(15.0, 2.5)
    unknown = Scores(tmp_path, suite, found.scores | {"b": Score(20.0, None)}, limit=None)
    assert unknown.average == Score(15.0, None)
    assert str(unknown.as_table()).endswith("  3.0     -        -")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nothing"], "expected commonsense, generative, sheared-llama or the path"),
        (["--suite", "sheared-llama", "--tasks", "gsm8k"], "expected some of sciq"),
        pytest.param(["--tasks", "no_such_task"], "lm-eval does not know", marks=pytest.mark.slow),
        (["--tasks", "sciq", "--include-path", "nowhere"], "found no folder nowhere"),
        ([], "found neither --suite nor --tasks"),
        (["--tasks", "sciq", "--prompt", "9"], "unrecognized arguments: --prompt 9"),
    ],
)
def test_what_cannot_be_evaluated_says_so(tiny_model, arguments, message, capsys):
    assert main(["benchmark", str(tiny_model), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_data_that_cannot_be_had_says_so(tiny_model, tasks, capsys):
    (tasks / "documents.jsonl").unlink()
    arguments = ["benchmark", str(tiny_model), "--tasks", "sciq", "--include-path", str(tasks)]
    assert main(arguments) == 2
    assert "cannot load the data of sciq" in capsys.readouterr().err


def test_a_suite_file_of_ones_own(tiny_model, tasks, tmp_path):
    file = tmp_path / "own.yaml"
    rows = {"other": [1.0, 2.0]}
    task = {"column": "Sci", "task": "sciq", "shots": 1, "metric": "acc_norm"}
    file.write_text(json.dumps({"tasks": [task], "published": rows}))
    found = benchmark(tiny_model, read_suite(str(file)), include=tasks, limit=2)
    assert list(found.scores) == ["Sci"]
    file.write_text(json.dumps({"tasks": [task | {"metric": "bleu"}]}))
    with pytest.raises(UserError, match="expected bleu"):
        benchmark(tiny_model, read_suite(str(file)), include=tasks, limit=2)
    file.write_text(json.dumps({"tasks": [task], "published": {"other": [1.0]}}))
    with pytest.raises(UserError, match=r"published\.other: found 1 numbers"):
        read_suite(str(file))
    file.write_text(json.dumps({"tasks": [{"column": "S"}]}))
    with pytest.raises(UserError, match=r"tasks\.0\.task: not given"):
        read_suite(str(file))
    file.write_text(json.dumps({"tasks": []}))
    with pytest.raises(UserError, match="tasks: found"):
        read_suite(str(file))
