from collections import Counter

import pytest
import torch
from runs import run_here
from safetensors import safe_open

from llmshearing.architecture.axes import Axis
from llmshearing.data.dataset import sample_rows
from llmshearing.errors import UserError
from llmshearing.evaluation.score_units import measure_importance
from llmshearing.huggingface.source import read_source
from llmshearing.pruning.scores import load_scores


@pytest.mark.parametrize(
    ("available", "rows", "taken"),
    [((900, 100, 1), 100, {0: 90, 1: 10, 2: 1}), ((3, 2), 100, {0: 3, 1: 2})],
)
def test_domains_take_part_in_proportion_and_none_is_left_out(available, rows, taken):
    chosen = sample_rows([range(n) for n in available], rows)  # only their lengths count
    assert Counter(domain for domain, _ in chosen) == taken
    assert len(set(chosen)) == len(chosen)


def test_scores_are_written_read_by_a_run_and_order_its_masks(
    tiny_model, tiny_tree, recipe_file, tmp_path
):
    path = tmp_path / "scores.safetensors"
    scores = measure_importance(tiny_model, tiny_tree / "prune", rows=24, out=path)
    with safe_open(str(path), "pt") as file:
        assert file.metadata()["rows"] == "24"
    stored = load_scores(path, read_source(tiny_model).table)
    assert all(torch.equal(stored[axis], score) for axis, score in scores.items())

    one_step = (f"run.{name}=1ba" for name in ("duration", "eval_interval", "checkpoint_interval"))
    undecided = ("pruning.learning_rate=0.01", "pruning.sharpness=1")
    run_here(recipe_file, *one_step, *undecided, f"pruning.importance={path}")
    masks = tmp_path / "run" / "masks" / "ba1.safetensors"
    with safe_open(str(masks), "pt") as file:
        keep = file.get_tensor("intermediate")
    order = scores[Axis.INTERMEDIATE].argsort(-1)
    ranked = keep.gather(-1, order)
    assert (ranked[:, -8:].mean(-1) > ranked[:, :8].mean(-1)).all()


def test_scores_of_another_model_are_refused_before_the_run(recipe_file, tmp_path):
    wrong = tmp_path / "none.safetensors"
    with pytest.raises(UserError, match=r"pruning\.importance: found no importance scores"):
        run_here(recipe_file, f"pruning.importance={wrong}")
