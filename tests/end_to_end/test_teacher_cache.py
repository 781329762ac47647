"""A teacher's distributions on disk: what is stored, kills, several processes, and refusals."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from runs import log_file, run_here, start_ranks, with_teacher
from transformers import AutoModelForCausalLM

from llmshearing import preflight
from llmshearing.building import build_distiller, flops_model
from llmshearing.caching import CacheSettings, make_cache
from llmshearing.checkpoints.manifest import RUN_FILE, RunManifest
from llmshearing.cli import main
from llmshearing.data.dataset import read_cached, read_rows
from llmshearing.data.domains import open_domains
from llmshearing.data.teacher_cache import TeacherCache
from llmshearing.errors import UserError
from llmshearing.huggingface.weight_files import weights_digest
from llmshearing.planning.devices import device_of
from llmshearing.planning.plan import Machine, make_plan

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours


@pytest.fixture
def recipe(recipe_file):
    """A pruning recipe that distils from its source."""
    return with_teacher(recipe_file)


@pytest.fixture
def own(teacher_cache, tmp_path):
    """A copy of the cache to change."""
    return shutil.copytree(teacher_cache, tmp_path / "own")


def contents(root):
    kept = [p for p in root.rglob("*") if p.suffix in (".mds", ".json")]
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def whole(cache):
    """Ids, probabilities and entropies of every position, and the tokens, by domain."""
    names = list(cache.domains)
    rows = [(number, row) for number, name in enumerate(names)
            for row in range(cache.domains[name].rows)]  # fmt: skip
    return rows, read_cached(cache.open_domains(names), rows)


def teacher_probabilities(tiny_model, tiny_tree, rows):
    from llmshearing.data.tree import DataTree

    tree = DataTree.open(tiny_tree)
    ids, _ = read_rows(open_domains(tree, "prune"), rows, 32, tree.vocabulary)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits.softmax(-1)


def test_what_is_stored_are_estimates_of_the_teachers_probabilities(
    teacher_cache, tiny_model, tiny_tree
):
    cache = TeacherCache.open(teacher_cache)
    rows, found = whole(cache)
    assert found["teacher_ids"].shape == (len(rows), 32, 16)
    p = teacher_probabilities(tiny_model, tiny_tree, rows)
    torch.testing.assert_close(
        found["teacher_entropy"], torch.special.entr(p).sum(-1), rtol=1e-4, atol=1e-4
    )
    estimates = found["teacher_probabilities"].float()
    torch.testing.assert_close(estimates.sum(-1), torch.ones(len(rows), 32), rtol=0, atol=2e-3)
    drawn = torch.zeros_like(p).scatter_add_(2, found["teacher_ids"].long(), estimates)
    excess = (drawn - p).flatten(0, 1)  # its mean over all positions is 0 up to its error
    error = excess.std(0) / len(excess) ** 0.5
    assert (excess.mean(0).abs() < 5 * error + 1e-5).all()
    assert (drawn.count_nonzero(-1) == 16).all()


def test_the_most_probable_ids_can_be_stored_instead(recipe, tiny_model, tiny_tree, tmp_path):
    make_cache(recipe, (), tmp_path / "top", CacheSettings("top", places=4))
    rows, found = whole(TeacherCache.open(tmp_path / "top"))
    p = teacher_probabilities(tiny_model, tiny_tree, rows).topk(4)
    wanted = p.values / p.values.sum(-1, keepdim=True)
    torch.testing.assert_close(found["teacher_probabilities"].float(), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_cache_killed_while_it_is_made_is_finished_to_the_same_bytes(
    recipe, teacher_cache, tmp_path, ranks, monkeypatch
):
    """Of any number of processes; shards that were complete are not made again."""
    out = tmp_path / "killed"
    arguments = ["teacher-cache", recipe, "--out", out, "--tokens", 16, "--batch-size", 3]
    small = ["--shard-size", "20KB"]

    def start():
        return start_ranks(ranks, tmp_path / "logs", [*map(str, arguments), *small], run=main)

    def done():
        files = out.glob("shards-*.jsonl")
        return [line for file in files for line in file.read_text().splitlines()]

    processes = start()
    deadline = time.monotonic() + 100
    while len(done()) < 2 and any(process.is_alive() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    for process in processes:
        process.kill()
        process.join()
    before = done()
    assert not (out / "manifest.json").exists()
    with pytest.raises(UserError, match="found an unfinished teacher cache"):
        TeacherCache.open(out)
    processes = start()
    for rank, process in enumerate(processes):
        process.join(100)
        assert process.exitcode == 0, log_file(tmp_path / "logs", rank).read_text()
    after = done()
    assert set(before) < set(after)
    assert len(after) == len({json.loads(line)["key"] for line in after})
    make_cache(recipe, (), tmp_path / "one", CacheSettings(places=16, shard_bytes=20_000), 3)
    assert contents(out) == contents(tmp_path / "one")
    log = log_file(tmp_path / "logs", 0).read_text()
    assert "16 of 128 token ids for each position, a sample (unbiased" in log
    assert "68 bytes per token, " in log
    _, found = whole(TeacherCache.open(out))  # the cut into shards and batches changes nothing
    for name, column in whole(TeacherCache.open(teacher_cache))[1].items():
        torch.testing.assert_close(found[name], column, rtol=1e-3, atol=1e-3)


def test_another_cache_in_the_directory_is_not_overwritten(recipe, own, tiny_tree, tmp_path):
    with pytest.raises(UserError, match="has a teacher cache with another places"):
        make_cache(recipe, (), own, CacheSettings(places=8))
    data = shutil.copytree(tiny_tree, tmp_path / "data")
    before = contents(data)
    with pytest.raises(UserError, match="found other files in"):
        make_cache(recipe, (), data)
    assert contents(data) == before


def test_what_cannot_be_cached_is_refused_in_one_message(recipe, recipe_file, tmp_path):
    with pytest.raises(UserError, match="--tokens: found 129, expected at most 128 ids"):
        make_cache(recipe, (), tmp_path / "new", CacheSettings(places=129))
    given = json.loads(recipe_file.read_text())
    del given["distillation"]
    recipe_file.write_text(json.dumps(given))
    with pytest.raises(UserError, match="found no teacher, expected a section `distillation`"):
        make_cache(recipe, (), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def refusal(recipe, *overrides):
    with pytest.raises(UserError) as error:
        preflight.resolve(recipe, overrides)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 1, lines
    return lines[0]


def from_cache(cache):
    return f"distillation.cache={cache}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distillation.temperature=2", "found temperature 1 at "),
        ("distillation.divergence=reverse_kl", "expected forward_kl: the others need"),
        ("distillation.teacher_precision=bf16", "found with distillation.teacher_precision"),
        ("distillation.teacher_sharding=offload", "which has no teacher in memory"),
        ("distillation.teacher={model}", "found with distillation.teacher, expected one of them"),
        ("data.split=continue", "found a cache of other rows at "),
    ],
)
def test_a_recipe_that_a_cache_does_not_fit(recipe, teacher_cache, tiny_model, override, message):
    override = override.format(model=tiny_model)
    assert message in refusal(recipe, from_cache(teacher_cache), override)


def test_an_override_by_a_cache_takes_the_place_of_a_teacher(recipe, teacher_cache, tiny_model):
    given = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(given | {"distillation": {"teacher": str(tiny_model)}}))
    _, inputs = preflight.resolve(recipe, [from_cache(teacher_cache)])
    assert inputs.teacher is None
    assert inputs.cache.root == teacher_cache


def test_a_cache_that_is_missing_damaged_or_of_other_data(recipe, own, tmp_path):
    assert "found no teacher cache at nowhere" in refusal(recipe, from_cache("nowhere"))
    shard = next(own.glob("prune/*/*.mds"))
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 5)
    found = refusal(recipe, from_cache(own))
    assert f"found damaged files in the teacher cache {own}" in found
    assert f"{shard}: {size - 5} bytes, expected {size}" in found
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["domains"]["prose"]["data"] = "0" * 64
    (own / "manifest.json").write_text(json.dumps(manifest))
    assert f"found a cache of other data at {own} (" in refusal(recipe, from_cache(own))
    manifest["vocabulary"] = 256
    (own / "manifest.json").write_text(json.dumps(manifest | {"domains": {}}))
    with pytest.raises(UserError) as error:
        preflight.resolve(recipe, [from_cache(own)])
    assert "found distributions over 256 token ids" in str(error.value)
    assert "found a cache of other rows" in str(error.value)
    (own / "manifest.json").write_text("{}")
    assert "found no whole manifest of a teacher cache" in refusal(recipe, from_cache(own))


def test_a_run_with_a_cache_has_no_teacher_in_memory_plan_or_utilisation(
    recipe, teacher_cache, tmp_path
):
    given = json.loads(recipe.read_text())
    del given["distillation"]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(given))
    cached = preflight.resolve(recipe, [from_cache(teacher_cache)])
    distiller = build_distiller(*cached)
    assert not hasattr(distiller.teacher, "model")
    assert flops_model(*cached) == flops_model(*preflight.resolve(plain))
    machine = Machine(device_of("A100-80GB", None), 1)
    with_cache = make_plan(recipe, [from_cache(teacher_cache)], machine)
    without = make_plan(plain, [], machine)
    assert with_cache.memory == without.memory
    assert with_cache.schedule == without.schedule


def test_the_manifest_names_the_cache_and_resuming_checks_it(
    recipe, teacher_cache, tiny_model, tmp_path
):
    run_here(recipe, from_cache(teacher_cache), "run.duration=4ba")
    record = RunManifest.read(tmp_path / "run" / RUN_FILE)
    assert record.teacher.weights == weights_digest(tiny_model)
    assert record.cache.fingerprint == TeacherCache.open(teacher_cache).fingerprint
    make_cache(recipe, (), tmp_path / "again", CacheSettings(places=16, seed=5))
    with pytest.raises(UserError, match=r"teacher cache fingerprint: found \w{12}, expected \w+"):
        run_here(recipe, from_cache(tmp_path / "again"), "run.duration=8ba")
    with pytest.raises(UserError, match=r"teacher cache fingerprint: found \w{12}, expected None"):
        run_here(recipe, "run.duration=8ba")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        next(weights.parameters()).add_(0.01)
    weights.save_pretrained(other)
    named = f"distillation.teacher={other}"
    make_cache(recipe, [named], tmp_path / "third", CacheSettings(places=16))
    with pytest.raises(UserError, match="teacher weights: found"):
        run_here(recipe, from_cache(tmp_path / "third"), "run.duration=8ba")


def test_losses_from_a_cache_of_all_ids_are_those_with_the_teacher(recipe, tmp_path):
    """The stored probabilities have 11 bits."""
    make_cache(recipe, (), tmp_path / "all", CacheSettings(places=128))
    steps = ("run.duration=3ba", "distillation.weight=0.7")
    wanted = run_here(recipe, *steps)
    found = run_here(
        recipe, *steps, from_cache(tmp_path / "all"), f"run.directory={tmp_path}/cached"
    )
    for name in ("loss/train/total", "loss/train/divergence", "optimizer/gradient_norm"):
        one, other = ([line["metrics"][name] for line in lines] for lines in (found, wanted))
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
