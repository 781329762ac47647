"""`llmshearing plan`: what it tells, from a config alone, without torch."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from manifests import run_manifest

from llmshearing.cli import main
from llmshearing.planning.devices import device_of
from llmshearing.planning.fit import first_that_fits
from llmshearing.planning.memory import GIB, plan_memory
from llmshearing.planning.plan import Machine, job_of, make_plan
from llmshearing.planning.text import as_dict, as_tables

ROOT = Path(__file__).parents[2]
PRUNE = ROOT / "yamls/prune/llama2-7b-to-1.3b.yaml"
CONTINUE = ROOT / "yamls/continue/sheared-llama-1.3b.yaml"
SEVEN = f"model.path={ROOT}/yamls/models/llama2-7b"
SMALL = f"model.path={ROOT}/yamls/models/sheared-llama-1.3b"
A100 = device_of("A100-80GB")


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_7b_run_is_planned_from_a_config_alone(capsys, tmp_path):
    file = tmp_path / "plan.json"
    assert main(["plan", str(PRUNE), SEVEN, "--gpus", "8", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "6,738,415,616 parameters" in printed
    assert "1,345,423,360 parameters" in printed
    assert "It fits" in printed
    plan = json.loads(file.read_text())
    assert plan["schedule"]["tokens"] == 3200 * 32 * 4096
    assert plan["state_of_run"]["parameters"] == 4 * 6_738_415_616
    assert plan["gpu_hours"] == pytest.approx(8 * plan["hours"])
    moment = plan["peak"]["moment"]
    assert sum(plan["moments"][moment].values()) == plan["peak"]["bytes"]


def test_plan_needs_neither_weights_nor_composer():
    code = "import sys; sys.modules['composer'] = None; from llmshearing.cli import main; main()"
    command = [sys.executable, "-c", code, "plan", str(PRUNE), SEVEN]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "GPU hours" in done.stdout


@pytest.mark.parametrize(
    ("recipe", "model", "gpus", "rate", "published"),
    [(PRUNE, SEVEN, 8, 1844, (59, 66)), (CONTINUE, SMALL, 16, 8684, (1530, 1620))],
    ids=["pruning 7B", "continuing 1.3B"],
)
def test_the_papers_hours_follow_from_its_throughput(recipe, model, gpus, rate, published):
    """Sheared LLaMA's README: tokens/s per A100, and the hours that the issue quotes."""
    plan = make_plan(recipe, [model], Machine(A100, gpus))
    assert A100.peak is not None
    mfu = rate * plan.schedule.flops_per_token / A100.peak
    assert 0.25 < mfu < 0.3
    plan = make_plan(recipe, [model], Machine(A100, gpus), mfu=mfu)
    assert plan.train_hours is not None
    low, high = published
    assert low < gpus * plan.train_hours < high


@pytest.mark.parametrize(("gpus", "memory"), [(4, 32), (2, 40), (4, 27)])
def test_what_does_not_fit_is_printed_with_the_first_change_that_does(capsys, gpus, memory):
    asked = ["--gpus", str(gpus), "--gpu-memory", str(memory)]
    assert main(["plan", str(PRUNE), SEVEN, *asked]) == 0
    printed = capsys.readouterr().out
    assert "It does not fit" in printed
    change = printed.split("The first that fits: ")[1].splitlines()[0]
    more, _, rest = change.removeprefix("--gpus ").partition(" ")
    count, overrides = (int(more), rest) if change.startswith("--gpus") else (gpus, change)
    device = device_of(None, memory)
    assert make_plan(PRUNE, [SEVEN, *overrides.split()], Machine(device, count)).fits
    plan = make_plan(PRUNE, [SEVEN], Machine(device, gpus))
    assert plan.fits is False
    assert plan.option == plan.tried[-1]
    assert all(option.peak > memory * GIB for option in plan.tried[:-1])


def test_options_that_cost_more_use_less():
    plan = make_plan(PRUNE, [SEVEN], Machine(A100, 8))
    peak = plan.memory.peak.total
    for change in (
        {"microbatch": 1},
        {"shards": 16, "ranks": 16},
    ):
        assert plan_memory(replace(plan.job, **change)).peak.total < peak
    assert plan_memory(replace(plan.job, checkpointing=False)).peak.total > peak
    assert plan_memory(replace(plan.job, loss_chunk=0)).logits > 4 * plan.memory.logits
    assert plan_memory(replace(plan.job, target=None)).peak.total < peak


def test_nothing_fits_into_nothing():
    plan = make_plan(PRUNE, [SEVEN], Machine(A100, 8))
    option, tried = first_that_fits(plan.job, GIB // 2)
    assert option is None
    assert len(tried) == 5
    assert tried[-1].changes[0] == "--gpus 32"  # a row for each


def test_a_budget_is_planned(capsys):
    recipe = ROOT / "yamls/prune/tiny-llama-to-half.yaml"
    sizes = [f"target.{name}=null" for name in ("hidden", "layers", "heads", "intermediate")]
    assert main(["plan", str(recipe), SEVEN, *sizes, "target.parameters=1.3B", "--gpus", "8"]) == 0
    assert "at most 1,300,000,000 parameters, along hidden, layer" in capsys.readouterr().out


def test_a_teacher_takes_memory_and_time():
    recipe = "yamls/prune/llama2-7b-to-2.7b.yaml"
    machine = Machine(device_of("A100-80GB"), 8)
    plain, taught, offloaded = (
        make_plan(recipe, overrides, machine)
        for overrides in (
            [],
            ["distillation={}"],
            ["distillation.teacher_sharding=offload"],
        )
    )
    weights = 2 * plain.inputs.table.parameter_count(plain.inputs.table.source) // 8  # bf16
    assert {m.parts["teacher"] for m in taught.memory.moments} == {weights}
    peak, without = taught.memory.peak.total, plain.memory.peak.total
    assert without + weights < peak < without + 1.3 * weights
    assert without <= offloaded.memory.peak.total < without + 0.5 * weights
    assert taught.schedule.flops == pytest.approx(plain.schedule.flops * 4 / 3)
    assert taught.schedule.eval_flops == plain.schedule.eval_flops
    assert taught.train_hours == pytest.approx(plain.train_hours * 4 / 3)


def test_hybrid_shards_over_a_part_of_the_ranks():
    plan = make_plan(PRUNE, [SEVEN], Machine(A100, 16))
    assert job_of(plan.inputs, Machine(A100, 16)).shards == 16
    recipe = plan.inputs.recipe.model_copy(update={"shard_ranks": 8})
    assert job_of(replace(plan.inputs, recipe=recipe), Machine(A100, 16)).shards == 8


def test_data_that_is_there_is_counted(recipe_file, tiny_tree):
    plan = make_plan(recipe_file, [], Machine(device_of("cpu"), 1))
    assert plan.fits is None
    assert [use.source.name for use in plan.use] == ["prose", "code", "letters"]
    assert plan.inputs.sequence_length == 32
    assert sum(use.samples for use in plan.use) == pytest.approx(8 * 8)
    text = "\n".join(map(str, as_tables(plan)))
    assert "1 x cpu, one process" in text
    assert "passes" in text
    assert "no speed" in text
    size = sum(
        file.stat().st_size for file in tiny_tree.glob("*/*/*.mds") if "continue" not in str(file)
    )
    assert plan.disk["data"] == pytest.approx(size, rel=0.1)


def test_what_is_assumed_is_printed(capsys):
    assert main(["plan", str(PRUNE), SEVEN]) == 0
    printed = capsys.readouterr().out
    assert "no data.root given\nnote     shares are those of mixture.weights\n" in printed
    assert "tokens/s per device: MFU 0.3, assumed; give --mfu or --run" in printed
    assert main(["plan", str(ROOT / "yamls/prune/tiny-llama-to-half.yaml"), SEVEN]) == 0
    printed = capsys.readouterr().out
    assert "the domains are not known" in " ".join(printed.split())
    assert "shares" not in printed


def test_a_run_gives_its_speed(recipe_file, tmp_path):
    config = json.loads((ROOT / "yamls/models/sheared-llama-1.3b/config.json").read_text())
    run = tmp_path / "run"
    run.mkdir()
    lines = [
        {"metrics": {"throughput/tokens_per_second_per_device": v}} for v in (1, 1, 1, 100, 100)
    ]
    (run / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), '{"met']))
    manifest = run_manifest()
    source = replace(manifest.source, config=config)
    data = replace(manifest.data, sequence_length=4096)
    replace(manifest, source=source, data=data).write(run / "manifest.json")
    plan = make_plan(CONTINUE, [SMALL], Machine(A100, 8), run=run)
    assert plan.speed is not None
    assert plan.speed.achieved == 100 * plan.schedule.flops_per_token
    assert plan.speed.mfu == pytest.approx(plan.speed.achieved / 312e12)
    seconds = plan.schedule.tokens / (100 * 8)
    assert as_dict(plan)["hours"] == pytest.approx(seconds / 3600)


MISTAKES = {
    "no such gpu": (["--gpu", "A1000"], "--gpu: found 'A1000', expected one of A100-80GB"),
    "mfu": (["--mfu", "30"], "--mfu: found 30, expected a fraction"),
    "gpus": (["--gpus", "0"], "--gpus: found 0"),
    "rows": (["--gpus", "7"], "found 32 rows for 7 GPUs"),
    "memory": (["--gpu-memory", "-1"], "--gpu-memory: found -1"),
    "no run": (["--run", "nowhere"], "--run: found no metrics.jsonl in nowhere"),
    "both": (["--run", "nowhere", "--mfu", "0.3"], "expected one of them"),
    "length": (["--sequence-length", "0"], "--sequence-length: found 0"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_each_mistake_has_its_message(case, capsys):
    arguments, message = MISTAKES[case]
    assert main(["plan", str(PRUNE), SEVEN, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_all_errors_of_the_recipe_at_once(capsys):
    assert main(["plan", str(PRUNE), "model.path=nowhere", "data.workrs=1", "target.heads=99"]) == 2
    printed = capsys.readouterr().err
    assert "did you mean data.workers?" in printed
    assert "found no config.json in nowhere" in printed
