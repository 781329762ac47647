"""The recipes: validated, planned, built at full size without memory, and run on a small model."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from mds_trees import make_tree
from runs import run_here, series
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing import preflight
from llmshearing.architecture.families import family_of
from llmshearing.config import parse_recipe
from llmshearing.mixture.references import References
from llmshearing.models.shearing import ShearingModel
from llmshearing.planning.devices import device_of
from llmshearing.planning.plan import Machine, make_plan
from llmshearing.pruning.budget_masks import build_masks
from llmshearing.pruning.schedule import MaskState

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "yamls/models"
DOMAINS = ("cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4-rp")


@dataclass(frozen=True)
class Stage:
    """A recipe with the model it starts from and what comes out."""

    recipe: str
    model: str
    parameters: int  # of what is exported
    result: str  # the config of that shape
    gpus: int

    @property
    def path(self) -> Path:
        return ROOT / "yamls" / f"{self.recipe}.yaml"

    @property
    def prunes(self) -> bool:
        return self.recipe.startswith("prune/")

    def __str__(self) -> str:
        return self.recipe


# Sizes: arXiv 2310.06694, section 3.1, and the released code's 370M.
SIZES = {
    "sheared-llama-2.7b": 2_701_560_320,
    "sheared-llama-1.3b": 1_345_423_360,
    "sheared-llama-370m": 373_867_520,
    "sheared-llama3.1-3b": 3_089_533_440,
    "sheared-qwen2.5-3b": 2_980_823_552,
}
PRUNE = {
    "sheared-llama-2.7b": ("llama2-7b-to-2.7b", "llama2-7b"),
    "sheared-llama-1.3b": ("llama2-7b-to-1.3b", "llama2-7b"),
    "sheared-llama-370m": ("llama2-7b-to-370m", "llama2-7b"),
    "sheared-llama3.1-3b": ("llama3.1-8b-to-3b", "llama3.1-8b"),
    "sheared-qwen2.5-3b": ("qwen2.5-7b-to-3b", "qwen2.5-7b"),
}
STAGES = [
    *(Stage(f"prune/{r}", m, SIZES[name], name, 8) for name, (r, m) in PRUNE.items()),
    *(Stage(f"continue/{name}", name, SIZES[name], name, 16) for name in PRUNE),
]
DISTILLED = [
    replace(stage, recipe=f"{stage.recipe}-distilled")
    for stage in STAGES
    if stage.recipe.startswith("continue/sheared-llama-")
]
SOURCES = {
    "llama2-7b": 6_738_415_616,
    "llama3.1-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes name their reference files from there


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, tiny_model):
    """A tokenizer file and a tree of the recipes' domains that says it was made with it."""
    from llmshearing.data.schema import tokenizer_fingerprint

    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(tiny_model / "tokenizer.model", folder)
    tree = make_tree(folder / "tree", dict.fromkeys(DOMAINS, 12))
    manifest = json.loads((tree / "manifest.json").read_text())
    manifest["vocabulary"] = 30_000
    manifest["tokenizer"]["fingerprint"] = tokenizer_fingerprint(folder)
    manifest["splits"]["continue"] = manifest["splits"]["prune"]
    (tree / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(tree / "prune", tree / "continue")
    return folder


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Losses to reach for the recipes that have none published."""
    file = tmp_path_factory.mktemp("references") / "references.yaml"
    References(losses=dict.fromkeys(DOMAINS, 2.0), source="made up").write(file)
    return file


def model_directory(stage, tokenizer, folder, **changes):
    """A source directory: the stage's config, changed, a tokenizer, and weights full of zeros."""
    folder.mkdir()
    shutil.copy(tokenizer / "tokenizer.model", folder)
    config = json.loads((MODELS / stage.model / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps(config))
    write_zeros(folder / "model.safetensors", family_of(config).table(config))
    return folder


def write_zeros(path, table):
    """Weights of a table's model in bfloat16, as a file with a hole, which takes no space."""
    header, end = {}, 0
    for name, shape in table.tensor_shapes(table.source).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def arguments(stage, tokenizer, references, model):
    found = [f"model.path={model}", f"data.root={tokenizer / 'tree'}"]
    if "???" in stage.path.read_text().split("references:")[1].splitlines()[0]:
        found.append(f"mixture.references={references}")
    else:
        # the published losses are of rows of 4,096 tokens, the tree's are shorter
        published = stage.path.read_text().split("references:")[1].split()[0]
        losses = References.read(published).losses
        assert set(losses) == set(DOMAINS)
        copy = Path(references).with_name(Path(published).name)
        References(losses=losses, source="published").write(copy)
        found.append(f"mixture.references={copy}")
    return found


@pytest.mark.parametrize("stage", DISTILLED, ids=str)
def test_a_distilled_recipe_is_the_plain_one_with_a_teacher(stage):
    plain, distilled = (
        parse_recipe(path, ["model.path=MODEL", "data.root=DATA"])[0].model_dump()
        for path in (Path(str(stage.path).replace("-distilled", "")), stage.path)
    )
    assert distilled.pop("distillation")["teacher"] == "meta-llama/Llama-2-7b-hf"
    assert plain.pop("distillation") is None
    assert distilled["run"].pop("directory") == f"{plain['run'].pop('directory')}-distilled"
    assert distilled == plain
    plan = make_plan(stage.path, [], Machine(device_of("A100-80GB"), stage.gpus))
    assert plan.fits
    assert plan.inputs.teacher.parameter_count(plan.inputs.teacher.source) == SOURCES["llama2-7b"]


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_recipe_is_valid_and_ends_at_its_size(stage, tokenizer, references, tmp_path):
    model = model_directory(stage, tokenizer, tmp_path / "model")
    given = arguments(stage, tokenizer, references, model)
    recipe, inputs = preflight.resolve(stage.path, given, stage.gpus)
    assert recipe.prunes == stage.prunes
    table = inputs.source.table
    shape = inputs.target or table.source
    assert table.parameter_count(shape) == stage.parameters
    result = json.loads((MODELS / stage.result / "config.json").read_text())
    assert family_of(result).table(result).source == shape
    assert shape.hidden % 128 == shape.intermediate % 128 == 0
    if stage.prunes:
        assert table.parameter_count(table.source) == SOURCES[stage.model]
        assert shape.kv_groups in (shape.heads, table.source.kv_groups)


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_recipe_fits_its_machine(stage):
    device = device_of("A100-80GB")
    plan = make_plan(
        stage.path, [f"model.path={MODELS / stage.model}"], Machine(device, stage.gpus)
    )
    assert plan.fits
    assert plan.inputs.sequence_length == 4096
    tokens = plan.schedule.tokens
    assert tokens == pytest.approx(0.42e9 if stage.prunes else 50.3e9, rel=0.01)


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_model_is_built_at_its_size(stage, tokenizer, references, tmp_path):
    model = model_directory(stage, tokenizer, tmp_path / "model")
    given = arguments(stage, tokenizer, references, model)
    recipe, inputs = preflight.resolve(stage.path, given, stage.gpus)
    table = inputs.source.table
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    masks = build_masks(table, inputs.target, recipe.pruning, seed=0) if inputs.target else None
    whole = ShearingModel(decoder, masks, domains=len(DOMAINS))
    sizes = {name: tuple(p.shape) for name, p in whole.model.named_parameters()}
    assert sizes == table.tensor_shapes(table.source)
    if masks is None:
        return
    assert inputs.target is not None
    masks.set_state(MaskState(1, 1.0))
    masks.eval()
    kept = {axis: int((gate > 0).sum(-1).max()) for axis, gate in masks().gates.items()}
    assert kept == {axis: size for axis, size in table.sizes(inputs.target).items() if axis in kept}
    assert whole.sites


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
SHORT = """run.duration=2ba run.eval_interval=2ba run.checkpoint_interval=2ba run.log_interval=1ba
    data.global_batch=4 data.microbatch=2 data.workers=0 data.eval_batch=4 data.eval_rows=2
    model.initialize=random model.precision=fp32 parallelism=ddp""".split()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_two_steps_of_the_recipe_on_a_shrunk_model(stage, tokenizer, references, tmp_path):
    config = json.loads((MODELS / stage.model / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    groups = min(groups, 4)
    heads = groups * min(heads // config["num_key_value_heads"], 2)
    changes = {**SMALL, "num_attention_heads": heads, "num_key_value_heads": groups}
    if stage.model.startswith(("llama3", "sheared-llama3")):
        changes["rope_scaling"] = config["rope_scaling"] | {"original_max_position_embeddings": 32}
    model = model_directory(stage, tokenizer, tmp_path / "model", **changes)
    given = [*arguments(stage, tokenizer, references, model), *SHORT]
    given += [f"run.directory={tmp_path / 'run'}"]
    if stage.prunes:
        given += ["target.hidden=32", "target.layers=3", "target.intermediate=64"]
        given += [f"target.heads={groups}", f"target.kv_groups={groups}"]
        given += ["target.multiple_of={hidden: 32, intermediate: 32}"]
    lines = run_here(stage.path, *given)
    losses = series(lines, "loss/train/ce")
    assert sorted(losses) == [1, 2]
    assert all(0 < loss < 13 for loss in losses.values())
    assert all(series(lines, f"metrics/{name}/loss") for name in DOMAINS)


@pytest.mark.parametrize("stage", [s for s in STAGES if not s.prunes], ids=str)
def test_a_stage_begins_where_another_left_the_mixture(stage):
    given = ("model.path=M", "data.root=D", "mixture.references=R")
    recipe, _ = parse_recipe(stage.path, given)
    assert recipe.mixture.weights
    recipe, errors = parse_recipe(
        stage.path, [*given, "mixture.start_from=runs/prune/mixture.yaml"]
    )
    assert (recipe.mixture.start_from, recipe.mixture.weights, errors) == (
        "runs/prune/mixture.yaml", {}, []
    )  # fmt: skip
    recipe, errors = parse_recipe(stage.path, [*given, "mixture.weights={}"])
    assert (recipe.mixture.weights, errors) == ({}, [])
