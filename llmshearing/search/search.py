"""The best shape within budgets: candidates from one importance pass, scored by their losses.

Every result is kept in the output directory, so a killed search resumes, and the ranks of a search
exchange their results there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape
from llmshearing.architecture.space import Space, evenly, largest_shapes, resolve_space
from llmshearing.architecture.target import TargetSettings
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.evaluation.domain_loss import open_inputs
from llmshearing.evaluation.latency import BlockTimes, largest_of, shapes_to_time, time_blocks
from llmshearing.evaluation.ranks import own_device, rank_and_count
from llmshearing.evaluation.score_units import measure_importance
from llmshearing.export.oneshot import SourceWeights, cut_in_memory, kept_units
from llmshearing.files import write_bytes
from llmshearing.huggingface.source import Source, load_model
from llmshearing.ledger import Ledger, check_same, owned, wait_for
from llmshearing.pruning.scores import Scores, load_scores
from llmshearing.search.depth import Depth, best_layers
from llmshearing.search.scoring import Parent, Score, held_out_batches
from llmshearing.typed_yaml import error_list

IMPORTANCE, IDENTITY = "importance.safetensors", "search.json"
TRAIN_SPLIT, EVAL_SPLIT = "prune", "eval"


@dataclass(frozen=True)
class SearchSettings:
    """What decides the result of a search, besides model, data and target."""

    candidates: int = 64  # shapes to score at most
    values_per_axis: int = 6  # sizes of each axis at most
    rows: int = 4  # held-out rows of each domain
    batch_size: int = 8  # rows of a forward pass
    importance: str | None = None  # a file of scores; None to measure them
    importance_rows: int = 512  # rows of the pass that measures them


@dataclass(frozen=True)
class Candidate:
    """A shape with the scores that decide which units it keeps."""

    shape: Shape
    scores: Scores = field(repr=False)

    @property
    def name(self) -> str:
        """The sizes of its shape."""
        return self.shape.name


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    source: Source  # the model
    space: Space  # the shapes that were allowed, and the budgets
    within: int  # shapes within the budgets
    largest: int  # those of them that no other one contains
    parent: Score  # of the model itself
    depths: Mapping[int, Depth]  # by number of layers, which layers stay
    candidates: Mapping[str, Candidate]  # by name, those that were scored
    scores: Mapping[str, Score]  # by name, after the cut

    @property
    def ranking(self) -> list[str]:
        """Names of the candidates, the lowest loss first."""
        return sorted(self.scores, key=lambda name: (self.scores[name].loss, name))


def search(
    model: str | Path,
    data: str | Path,
    target: TargetSettings,
    out: str | Path,
    settings: SearchSettings | None = None,
) -> Found:
    """Score the shapes within a target's budgets.

    Several processes that a launcher started share the work, and each returns the result.

    `out` gets all results, and the same search resumes there.

    Raises:
        UserError: no model or data, no shape within the budgets, or `out` has another search.
    """
    settings, out, data = settings or SearchSettings(), Path(out), Path(data).absolute()
    tree, source = open_inputs(model, data / EVAL_SPLIT)
    table = source.table
    space, errors = resolve_space(table, target, settings.values_per_axis)
    if errors:
        raise UserError(error_list("--target", errors))
    rank, ranks = rank_and_count()
    with owned(out, rank):
        check_same(out / IDENTITY, "search", _identity(source, tree, target, settings), rank)
        ledger, scores = Ledger(out, rank, ranks), _importance(source, data, out, settings, rank)
        within = space.within(table, _latency(source, space, ledger))
        if not within:
            raise UserError("--target: no shape keeps all budgets at once; relax one of them")
        shapes, largest = choose_shapes(table, within, settings.candidates)
        device = own_device()
        stock = load_model(source).to(device)  # pyright: ignore[reportArgumentType]
        batches = held_out_batches(tree, EVAL_SPLIT, settings.rows, settings.batch_size, device)
        parent = Parent(stock, batches)
        depths = best_layers(parent, ledger, sorted({shape.layers for shape in shapes}))
        made = [candidate(scores, shape, depths) for shape in shapes]
        candidates = {one.name: one for one in made}
        weights = SourceWeights(source)

        def measure(name: str) -> dict[str, float]:
            one = candidates[name]
            kept = kept_units(one.scores, table, one.shape)
            cut: Any = cut_in_memory(source, weights, one.shape, kept)
            return dataclasses.asdict(parent.score(cut.to(device)))

        found = ledger.results("candidates", list(candidates), measure)
        after_cut = {name: Score(**value) for name, value in found.items()}
        whole = parent.score(stock)
    return Found(source, space, len(within), largest, whole, depths, candidates, after_cut)


def choose_shapes(
    table: CouplingTable, within: Sequence[Shape], most: int
) -> tuple[list[Shape], int]:
    """The shapes to score, in the order of their sizes.

    A shape that another one within the budgets contains is left out. Of the rest, at most `most`
    are taken, evenly spaced in the order of layers, hidden, heads and intermediate.

    Returns:
        The shapes, and the number of shapes that no other one contains.
    """

    def order(shape: Shape) -> tuple[int, ...]:
        return shape.layers, shape.hidden, shape.heads, shape.kv_groups, shape.intermediate

    largest = sorted(largest_shapes(table, within), key=order)
    return evenly(largest, most), len(largest)


def candidate(scores: Scores, shape: Shape, depths: Mapping[int, Depth]) -> Candidate:
    """A shape whose layers are those that depth scoring found; its width is by importance."""
    layers = torch.zeros_like(scores[Axis.LAYER])
    layers[list(depths[shape.layers].kept)] = 1.0
    return Candidate(shape, {**scores, Axis.LAYER: layers})


def _latency(source: Source, space: Space, ledger: Ledger) -> BlockTimes | None:
    """Predicts the time per token, from blocks that rank 0 times; None without such a budget."""
    if space.milliseconds is None:
        return None
    wanted = shapes_to_time(space.within(source.table))
    keys = {f"time/{shape.name}": shape for shape in wanted}

    def measure(key: str) -> tuple[float, float]:
        return time_blocks(source, keys[key], space.serving, own_device())

    found = ledger.results("block times", list(keys), measure, by_first=True)
    return BlockTimes({keys[key]: tuple(pair) for key, pair in found.items()}, largest_of(wanted))


def _identity(
    source: Source, tree: DataTree, target: TargetSettings, settings: SearchSettings
) -> dict[str, Any]:
    """What has to be equal for a search to resume."""
    return {
        "model": {"path": str(source.path.resolve()), "config": source.config},
        "data": {
            "root": str(tree.root),
            **{
                split: {name: info.fingerprint for name, info in tree.split(split).items()}
                for split in (TRAIN_SPLIT, EVAL_SPLIT)
            },
        },
        "target": target.model_dump(),
        "settings": dataclasses.asdict(settings),
    }


def _importance(
    source: Source, data: Path, out: Path, settings: SearchSettings, rank: int
) -> Scores:
    """The scores of all units, from the file in `out`; rank 0 makes it."""
    file = out / IMPORTANCE
    if rank == 0 and not file.exists():
        if settings.importance is not None:
            load_scores(settings.importance, source.table)
            write_bytes(file, Path(settings.importance).read_bytes())
        else:
            measure_importance(
                source.path,
                data / TRAIN_SPLIT,
                rows=settings.importance_rows,
                batch_size=settings.batch_size,
                out=file,
            )
    wait_for(file)
    return load_scores(file, source.table)
