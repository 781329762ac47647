"""Which model teaches a run, and one message for each that cannot."""

import json
import shutil
from dataclasses import replace

import pytest
from manifests import export_manifest
from runs import with_teacher

from llmshearing.errors import UserError
from llmshearing.preflight import outline, resolve


@pytest.fixture
def recipe(recipe_file):
    """A pruning recipe that distils from its own source."""
    return with_teacher(recipe_file)


@pytest.fixture
def other(tiny_model, tmp_path):
    """A copy of the tiny model to change."""
    return shutil.copytree(tiny_model, tmp_path / "other")


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def continued(recipe, model):
    given = json.loads(recipe.read_text())
    del given["target"]
    given["model"]["path"] = str(model)
    recipe.write_text(json.dumps(given))


def refusal(recipe, *overrides):
    with pytest.raises(UserError) as error:
        resolve(recipe, overrides)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 1, lines
    return lines[0]


def test_pruning_is_taught_by_its_source(recipe, tiny_model):
    assert resolve(recipe)[1].teacher.path == tiny_model


def test_a_pruned_model_is_taught_by_the_one_it_was_pruned_from(
    recipe, tiny_model, other, tmp_path
):
    """Also after continued training, whose export names the pruned model."""
    again = shutil.copytree(other, tmp_path / "again")
    for folder, source in ((other, tiny_model), (again, other)):
        record = replace(export_manifest().source, path=str(source))
        replace(export_manifest(), source=record).write(folder)
    continued(recipe, other)
    assert resolve(recipe)[1].teacher.path == tiny_model
    assert resolve(recipe, [f"model.path={again}"])[1].teacher.path == tiny_model


def test_without_the_section_there_is_no_teacher(recipe_file):
    assert resolve(recipe_file)[1].teacher is None


def test_a_missing_teacher(recipe, other):
    assert "distillation.teacher: " in (found := refusal(recipe, "distillation.teacher=nowhere"))
    assert "nowhere" in found
    found = refusal(recipe, "model.initialize=random")
    assert "found no teacher and random weights" in found
    continued(recipe, other)
    assert "found no teacher and no llmshearing.json" in refusal(recipe)
    export_manifest().write(other)  # it names models/source
    assert "found no directory models/source, from which" in refusal(recipe)


def test_the_runs_own_directory(recipe, tmp_path):
    found = refusal(recipe, f"distillation.teacher={tmp_path}/run/export")
    assert f"found {tmp_path}/run/export, which this run writes itself" in found


def test_a_teacher_with_another_tokenizer(recipe, other, chat_tokenizer):
    (other / "tokenizer.model").unlink()
    chat_tokenizer.save(str(other / "tokenizer.json"))
    found = refusal(recipe, f"distillation.teacher={other}")
    assert f"distillation.teacher: found another tokenizer in {other}" in found


@pytest.fixture
def chat_tokenizer():
    """A byte-level tokenizer that shares no ids with the tiny model's."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["text"], trainer)
    return made


def test_a_teacher_without_some_of_the_ids(recipe, other):
    change_config(other, vocab_size=100)
    found = refusal(recipe, f"distillation.teacher={other}")
    assert f"found a vocabulary of 100 in {other}, expected one with all 128 token ids" in found


def test_a_teacher_for_shorter_rows(recipe, other):
    change_config(other, max_position_embeddings=16)
    found = refusal(recipe, f"distillation.teacher={other}")
    assert "found max_position_embeddings 16" in found


@pytest.mark.parametrize("weight", ["1.5", "-0.1"])
def test_a_weight_outside_0_to_1(recipe, weight):
    found = refusal(recipe, f"distillation.weight={weight}")
    assert f"distillation.weight: found {weight}, expected " in found


@pytest.mark.parametrize("beta", ["0", "1"])
def test_a_beta_at_an_end_names_another_divergence(recipe, beta):
    assert "distillation.beta: found" in refusal(recipe, f"distillation.beta={beta}")


def test_a_schedule_longer_than_the_run(recipe):
    found = refusal(recipe, "distillation.schedule=warmup_stable_decay", "distillation.decay=8ba")
    assert "distillation.decay: found '8ba' after optimizer.warmup = 0.1dur" in found


def test_a_plan_needs_only_the_teachers_config(recipe, other):
    (other / "model.safetensors").unlink()
    found = outline(recipe, [f"distillation.teacher={other}"], planned=True)
    assert found.teacher.path == other
