"""Pruning without training: the units of highest score stay as they are."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.gradual import first_cut
from llmshearing.architecture.shape import Shape
from llmshearing.architecture.target import TargetSettings, resolve_shape
from llmshearing.errors import UserError
from llmshearing.export.directory import Exported, Format, target_fields, write_directory
from llmshearing.huggingface.source import Source, empty_model, parameter_aliases, read_source
from llmshearing.huggingface.stock import empty_parameters, stock_config, stock_model
from llmshearing.huggingface.weight_files import WeightFiles
from llmshearing.pruning.scores import Scores, evenly_spaced, load_scores, magnitude, random
from llmshearing.pruning.selection import Kept, indicator, select
from llmshearing.pruning.surgery import cut_model
from llmshearing.typed_yaml import error_list

METHODS = ("magnitude", "random", "spaced")  # those that need no text
# From (coupling table, units to keep per axis, reader of parameters) to scores.
Scorer = Callable[[CouplingTable, Mapping[Axis, int], Callable[[str], Tensor]], Scores]


def prune_oneshot(
    model: str | Path,
    out: str | Path,
    target: TargetSettings,
    score: Scorer,
    *,
    method: str,
    form: Format | None = None,
    cuts: int | None = None,
) -> Exported:
    """Cut a model to a target shape and write it as a Hugging Face directory.

    Args:
        model: the source, a directory or `org/name[@revision]` of the hub.
        out: the directory to make; it must not exist or be empty.
        target: the shape.
        score: gives the scores, see `scorer` and `from_file`.
        method: the scores' name, for the manifest.
        form: how weights are stored; float32 by default.
        cuts: make only the first of this many cuts; each must keep half of the parameters.

    Raises:
        UserError: a target that the source cannot reach, or an output that is not empty.
    """
    source = read_source(model)
    table = source.table
    if budgets := [*target.for_search, *(["target.parameters"] if target.parameters else [])]:
        raise UserError(
            f"--target: found {', '.join(budgets)}, expected sizes such as hidden=128; find a "
            "shape within a budget with llmshearing search"
        )
    shape, errors = resolve_shape(table, target)
    if cuts is not None and not errors:
        shape, errors = first_cut(table, shape, cuts)
    if errors:
        raise UserError(error_list("--target", errors))
    original = SourceWeights(source)
    scores = score(table, table.sizes(shape), original.read)
    kept = kept_units(scores, table, shape)
    gates = {axis: indicator(scores[axis].float(), units) for axis, units in kept.items()}
    form = form or Format()
    return write_directory(
        out, original, source.record(), table, shape, kept, gates, form, source.path, method=method
    )


def kept_units(scores: Scores, table: CouplingTable, shape: Shape) -> Kept:
    """The units of highest score that make a shape, of the axes that it cuts."""
    sizes, full = table.sizes(shape), table.sizes(table.source)
    return select({axis: scores[axis] for axis in sizes if sizes[axis] < full[axis]}, sizes)


def cut_in_memory(
    source: Source, weights: "SourceWeights", shape: Shape, kept: Kept
) -> PreTrainedModel:
    """A stock model of the kept units, float32 on the CPU, in evaluation mode."""
    with empty_parameters():
        model = stock_model(stock_config(target_fields(source.config, shape, kept)))
    made = dict(cut_model(source.table, kept, {}, weights.read))
    model.load_state_dict(made, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def scorer(method: str, seed: int = 0) -> Scorer:
    """The scores of a method that needs no text; a UserError if there is no such method."""
    if method == "magnitude":
        return lambda table, _, read: magnitude(table, read)
    if method == "random":
        return lambda table, *_: random(table, seed)
    if method == "spaced":
        return lambda table, sizes, _: evenly_spaced(table, sizes)
    raise UserError(f"found method {method!r}, expected one of {', '.join(METHODS)}")


def from_file(path: Path) -> Scorer:
    """Scores written by `llmshearing importance`."""
    return lambda table, *_: load_scores(path, table)


class SourceWeights:
    """A directory's tensors in float32, tied ones under every name that the stock model gives them.

    Raises:
        UserError: weights are missing, unexpected or of another size.
    """

    def __init__(self, source: Source) -> None:
        self.config, self._weights = source.config, WeightFiles(source.path)
        self._stored: dict[str, str] = {}  # by any of its names, the one in the files
        for names in parameter_aliases(empty_model(source, self._weights)).values():
            stored = next(name for name in names if name in self._weights.stored)
            self._stored |= dict.fromkeys(names, stored)

    def names(self) -> list[str]:
        """Names of the stored tensors."""
        return sorted(self._weights.stored)

    def read(self, name: str) -> Tensor:
        """A tensor in float32, by any of its names."""
        return self._weights.read(self._stored.get(name, name)).to(torch.float32)
