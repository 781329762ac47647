"""From a recipe to checked inputs, and what a plan does without."""

import shutil

import pytest
import sentencepiece

from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.mixture.mixture_file import write_mixture
from llmshearing.mixture.references import References
from llmshearing.preflight import outline, resolve

LOSSES = {"letters": 3.0, "prose": 2.0, "code": 1.5}


@pytest.fixture
def references(tmp_path):
    file = tmp_path / "losses.yaml"
    References(losses=LOSSES).write(file)
    return file


def test_weights_and_losses_are_in_the_order_of_the_domains(recipe_file, tiny_tree, references):
    domains = list(DataTree.open(tiny_tree).split("prune"))
    given = ["mixture.weights={letters: 0.2, prose: 0.5, code: 0.3}"]
    _, inputs = resolve(recipe_file, [*given, f"mixture.references={references}"])
    shares = {"letters": 0.2, "prose": 0.5, "code": 0.3}
    assert inputs.weights.tolist() == [shares[name] for name in domains]
    assert inputs.references is not None
    assert inputs.references.tolist() == [LOSSES[name] for name in domains]
    (note,) = inputs.notes
    assert "does not say which tokenizer and rows its losses belong to" in note


def test_losses_that_say_what_they_belong_to_need_no_note(recipe_file, tiny_tree, tmp_path):
    run = DataTree.open(tiny_tree).run_data("prune", "eval")
    known = {"sequence_length": run.sequence_length, "fingerprints": run.fingerprints}
    file = tmp_path / "losses.yaml"
    References(losses=LOSSES, tokenizer=run.tokenizer, **known).write(file)
    assert resolve(recipe_file, [f"mixture.references={file}"])[1].notes == []
    References(losses=LOSSES, tokenizer="0" * 64, **known).write(file)
    with pytest.raises(UserError, match=r"mixture.references: .*losses of another tokenizer"):
        resolve(recipe_file, [f"mixture.references={file}"])


def test_a_remote_tree_is_fetched_where_none_is(recipe_file, tiny_tree, tmp_path):
    remote = [f"data.remote={tiny_tree}", f"data.root={tmp_path / 'cache'}"]
    with pytest.raises(UserError, match=r"data\.root"):
        resolve(recipe_file, remote[1:])
    _, inputs = resolve(recipe_file, remote)
    assert inputs.tree.root == tmp_path / "cache"
    assert inputs.tree.tokenizer == DataTree.open(tiny_tree).tokenizer


def test_data_of_another_tokenizer_of_that_size_is_refused(recipe_file, tiny_model, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(tiny_model, other)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["other words make another vocabulary"] * 50),
        model_prefix=str(other / "tokenizer"),
        vocab_size=23,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="was prepared with another tokenizer than the one in"):
        resolve(recipe_file, [f"model.path={other}"])


def test_without_weights_the_shares_of_rows_count(recipe_file, tiny_tree):
    rows = [info.rows for info in DataTree.open(tiny_tree).split("prune").values()]
    _, inputs = resolve(recipe_file, ["mixture.weights={}"])
    assert inputs.weights == pytest.approx([count / sum(rows) for count in rows])
    assert (inputs.references, inputs.scores) == (None, None)


def test_a_wrong_value_hides_no_other_error_and_is_reported_once(recipe_file):
    overrides = ["model.path=???", "data.global_batch=many", "data.root=nowhere", "target.hidden=0"]
    with pytest.raises(UserError) as error:
        resolve(recipe_file, overrides, ranks=7)
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.split(":")[0] for line in lines) == [
        "  - data.global_batch", "  - data.root", "  - model.path", "  - target.hidden"
    ]  # fmt: skip


def test_a_plan_does_without_data_references_and_directory(recipe_file, tmp_path):
    absent = ["run.directory=???", "data.root=???", "mixture.references=???"]
    with pytest.raises(UserError, match="has 3 errors"):
        resolve(recipe_file, absent)
    found = outline(recipe_file, [*absent, "mixture.policy=paper"], planned=True)
    assert (found.tree, found.weights, found.references) == (None, {}, None)
    assert found.notes == [
        "no data.root given", "no mixture.weights or mixture.start_from: the domains are not known"
    ]  # fmt: skip
    write_mixture(tmp_path / "mixture.yaml", {"weights": {"a": 0.25, "b": 0.75}})
    absent += [f"mixture.start_from={tmp_path / 'mixture.yaml'}", "mixture.policy=constant"]
    assert outline(recipe_file, absent, planned=True).weights == {"a": 0.25, "b": 0.75}
    with pytest.raises(UserError, match=r"data.workers: found -1, expected 0 or more"):
        outline(recipe_file, [*absent, "data.workers=-1"], planned=True)


def test_a_plan_with_data_does_without_a_mixture_file(recipe_file, tmp_path):
    missing = f"mixture.start_from={tmp_path / 'later.yaml'}"
    with pytest.raises(UserError, match="mixture: found no mixture file"):
        resolve(recipe_file, [missing])
    found = outline(recipe_file, [missing], planned=True)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.notes == [
        f"no mixture at {tmp_path / 'later.yaml'} yet: shares are those of the rows"
    ]
