"""Runs with a teacher: the same on any ranks and microbatches, resumable, in both stages."""

import json
import shutil

import pytest
import torch
from checkpoint_files import equal_tensors, take_over
from ranks import Ranks
from runs import metrics, run_here, series
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmshearing import preflight
from llmshearing.building import build_distiller
from llmshearing.checkpoints.manifest import RUN_FILE, RunManifest
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.errors import UserError
from llmshearing.export.export import export
from llmshearing.huggingface.weight_files import weights_digest
from llmshearing.train import build_trainer

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours

NAMES = ("loss/train/ce", "loss/train/divergence", "loss/train/total", "optimizer/gradient_norm")
HALF = "distillation.weight=0.5"


@pytest.fixture(scope="session")
def pruned(finished_run, tmp_path_factory):
    """A pruned model whose manifest names the tiny model."""
    return export(
        finished_run, tmp_path_factory.mktemp("pruned") / "model", allow_undecided=True
    ).directory


@pytest.fixture(params=["prune", "continue"])
def recipe(request, recipe_file, pruned):
    """A recipe of either stage, with a teacher by default."""
    given = json.loads(recipe_file.read_text())
    given["distillation"] = {}
    if request.param == "continue":
        del given["target"]
        given["model"]["path"] = str(pruned)
    recipe_file.write_text(json.dumps(given))
    return recipe_file


@pytest.fixture(params=["teacher", "cache"])
def half(request):
    """Half of each loss, from the teacher in memory or from its cache."""
    if request.param == "teacher":
        return (HALF,)
    return (HALF, f"distillation.cache={request.getfixturevalue('teacher_cache')}")


def test_the_losses_are_logged_apart_and_the_weights_follow_their_mix(recipe, tmp_path):
    lines = run_here(recipe, "distillation.weight=0.3", "run.duration=3ba")
    stage = "lagrangian" if "target" in json.loads(recipe.read_text()) else None
    for step in (1, 2, 3):
        ce, divergence, total = (series(lines, f"loss/train/{n}")[step] for n in
                                 ("ce", "divergence", "total"))  # fmt: skip
        penalty = series(lines, f"loss/train/{stage}")[step] if stage else 0.0
        assert divergence > 0
        assert total == pytest.approx(0.7 * ce + 0.3 * divergence + penalty, rel=1e-5)
        assert series(lines, "distillation/weight")[step] == 0.3
        counts = [len(series(lines, f"distillation/divergence/{d}")) for d in ("prose", "code")]
        assert counts == [3, 3]
    log = (tmp_path / "run/log.txt").read_text()
    assert "  divergence " in log


def test_microbatches_do_not_change_the_losses(recipe, half, tmp_path):
    runs = [
        run_here(recipe, *half, "run.duration=4ba", f"data.microbatch={8 // parts}",
                 f"run.directory={tmp_path}/m{parts}")
        for parts in (1, 2, 4)
    ]  # fmt: skip
    for name in (*NAMES, "distillation/divergence/prose"):
        first = series(runs[0], name)
        assert first
        for other in runs[1:]:
            assert series(other, name) == pytest.approx(first, abs=1e-6, rel=1e-6), name


def test_a_weight_of_zero_is_a_run_without_a_teacher_bit_for_bit(recipe, tmp_path):
    run_here(recipe, "distillation.weight=0", "run.duration=4ba")
    given = json.loads(recipe.read_text())
    del given["distillation"]
    recipe.write_text(json.dumps(given))
    run_here(recipe, "run.duration=4ba", f"run.directory={tmp_path}/plain")
    assert equal_tensors(tmp_path / "run", tmp_path / "plain")


def test_interrupted_and_resumed_is_uninterrupted_to_the_bit(recipe, half, tmp_path):
    whole = run_here(recipe, *half, "run.keep_checkpoints=-1", "run.log_interval=3ba")
    resumed = tmp_path / "resumed"
    take_over(tmp_path / "run", resumed, 4, "full")
    run_here(recipe, *half, f"run.directory={resumed}", "run.log_interval=3ba")
    again = metrics(resumed)
    for name in whole[-1]["metrics"]:
        if not name.startswith("throughput"):
            expected = {step: v for step, v in series(whole, name).items() if step > 4}
            assert series(again, name) == expected, name
    assert equal_tensors(tmp_path / "run", resumed)


@pytest.fixture
def alone(recipe, half):
    """The metrics of one process."""
    return run_here(recipe, *half, "run.duration=4ba")


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    ("half", "mode"),
    [
        ("teacher", ("parallelism=ddp",)),
        ("teacher", ("parallelism=fsdp2",)),
        ("teacher", ("parallelism=fsdp2", "shard_ranks=1")),
        ("teacher", ("parallelism=fsdp2", "distillation.teacher_sharding=offload")),
        ("cache", ("parallelism=ddp",)),
        ("cache", ("parallelism=fsdp2",)),
    ],
    ids=["ddp", "fsdp2", "replicas", "offload", "cache-ddp", "cache-fsdp2"],
    indirect=["half"],
)
def test_two_ranks_equal_one_process(alone, recipe, half, tmp_path, mode):
    run = tmp_path / "ranks"
    Ranks(2, run, recipe, *half, "run.duration=4ba", *mode).finish()
    found = metrics(run)
    for name in (*NAMES, "metrics/prose/loss", "distillation/divergence/prose"):
        expected = series(alone, name)
        assert expected, name
        assert series(found, name) == pytest.approx(expected, abs=1e-5, rel=1e-5), name


def test_the_teacher_is_frozen_and_outside_of_what_is_trained_and_saved(recipe, tiny_model):
    checked, inputs = preflight.resolve(recipe, ["run.duration=2ba", HALF])
    trainer = build_trainer(checked, inputs)
    model = trainer.state.model
    teacher = model.distiller.teacher.model
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert all(torch.equal(before[name], plain[name]) for name in plain)
    trained = {id(p) for group in trainer.state.optimizers[0].param_groups for p in group["params"]}
    assert trained.isdisjoint(map(id, teacher.parameters()))
    student = dict(model.named_parameters())
    assert not {p.data_ptr() for p in student.values()} & {
        p.data_ptr() for p in teacher.parameters()
    }
    trainer.fit()
    trainer.close()
    assert not teacher.training
    assert all(torch.equal(before[name], p) for name, p in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    names = open_checkpoint(checked.run.directory).names()
    assert not [name for name in names if "teacher" in name]


def test_the_weight_follows_its_schedule(recipe):
    settings = ("distillation.schedule=warmup_stable_decay", "distillation.weight=0.8")
    lengths = ("optimizer.warmup=3ba", "distillation.decay=2ba")
    lines = run_here(recipe, *settings, *lengths)
    assert list(series(lines, "distillation/weight").values()) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8 * 2 / 3, 0.8 / 3]
    )


def test_in_the_first_step_a_model_equal_to_its_teacher_has_no_divergence(recipe_file, tiny_model):
    """Without masks; so neither labels nor padding nor masks of attention differ."""
    given = json.loads(recipe_file.read_text())
    del given["target"]
    recipe_file.write_text(json.dumps(given | {"distillation": {"teacher": str(tiny_model)}}))
    lines = run_here(recipe_file, "run.duration=2ba")
    divergence = series(lines, "loss/train/divergence")
    assert divergence[1] == 0
    assert series(lines, "optimizer/gradient_norm")[1] == 0
    assert series(lines, "metrics/prose/loss")  # evaluation stays cross entropy


def test_held_out_losses_are_cross_entropies(recipe, tmp_path):
    lines = run_here(recipe, "run.duration=1ba", "optimizer.learning_rate=1e-12",
                     "pruning.learning_rate=1e-12")  # fmt: skip
    given = json.loads(recipe.read_text())
    del given["distillation"]
    recipe.write_text(json.dumps(given))
    plain = run_here(recipe, "run.duration=1ba", "optimizer.learning_rate=1e-12",
                     "pruning.learning_rate=1e-12", f"run.directory={tmp_path}/plain")  # fmt: skip
    for name in ("metrics/prose/loss", "loss/train/ce", "mixture/train_loss/prose"):
        assert series(lines, name) == pytest.approx(series(plain, name), rel=1e-6)


def test_the_manifest_names_the_teacher_and_resuming_checks_it(recipe, tmp_path, tiny_model):
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_model, teacher)
    given = (HALF, f"distillation.teacher={teacher}", "run.duration=4ba")
    run_here(recipe, *given)
    record = RunManifest.read(tmp_path / "run" / RUN_FILE).teacher
    assert record.path == str(teacher)
    assert record.weights == weights_digest(teacher)
    assert record.config["hidden_size"] == 32
    weights = load_file(teacher / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"belongs to another run \(teacher weights: found"):
        run_here(recipe, *given, "run.duration=8ba")
    plain = json.loads(recipe.read_text())
    del plain["distillation"]
    recipe.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"teacher weights: found \w+, expected None"):
        run_here(recipe, "run.duration=8ba")


def test_a_teacher_in_half_precision_is_close_to_the_whole_one(recipe):
    checked, inputs = preflight.resolve(recipe, ["distillation.teacher_precision=bf16"])
    narrow = build_distiller(checked, inputs).teacher
    assert {p.dtype for p in narrow.model.parameters()} == {torch.bfloat16}
    wide = build_distiller(*preflight.resolve(recipe)).teacher
    batch = {"input_ids": torch.arange(32)[None]}
    one, other = (t.on(batch).log_probabilities(slice(None), 128, 1.0) for t in (narrow, wide))
    assert one.dtype == torch.float32
    torch.testing.assert_close(one.exp(), other.exp(), rtol=0.1, atol=0.01)
