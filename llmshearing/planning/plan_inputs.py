"""What a plan reads: the recipe, a config, and the data tree where there is one. No weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.config import Recipe
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.huggingface.source import check_source, read_source
from llmshearing.planning.state import Target
from llmshearing.preflight import outline

USUAL_LENGTH = 4096
USUAL_HELD_OUT_ROWS = 500  # of a domain: 2M tokens (paper, appendix on data)


@dataclass(frozen=True)
class DomainData:
    """One domain."""

    name: str  # the domain
    weight: float  # at the start
    rows: int | None  # to train on; None where the data is not there
    held_out: int  # rows to evaluate on


@dataclass(frozen=True)
class PlanInputs:
    """A recipe with what it names."""

    recipe: Recipe  # checked
    config: dict[str, Any] = field(repr=False)  # of the model that is trained, complete
    table: CouplingTable  # of the model that is trained
    target: Target  # what to prune to, or None
    teacher: CouplingTable | None  # of the teacher; None without distillation
    sequence_length: int  # tokens in a row
    domains: list[DomainData]  # of the data; empty where neither data nor weights tell them
    tree: DataTree | None  # the data; None where there is none yet
    notes: list[str]  # what was assumed, one sentence each


def read_inputs(
    path: str | Path, overrides: Sequence[str] = (), sequence_length: int | None = None
) -> PlanInputs:
    """Read what a plan needs; `sequence_length` (tokens in a row) is used if there is no data.

    Raises:
        UserError: lists every error.
    """
    found = outline(path, overrides, planned=True)
    assert found.config is not None
    assert found.table is not None
    assert found.directory is not None
    check_source(read_source(found.directory), weights=False)
    data, train, held_out = found.recipe.data, {}, {}
    if found.tree is not None:
        train, held_out = (found.tree.split(name) for name in (data.split, data.eval_split))
    domains = []
    for name, weight in found.weights.items():
        rows = train[name].rows if name in train else None
        kept = USUAL_HELD_OUT_ROWS
        if found.tree is not None:
            kept = held_out[name].rows if name in held_out else 0
        kept = kept if data.eval_rows is None else min(kept, data.eval_rows)
        domains.append(DomainData(name, weight, rows, kept))
    length = _length(found.tree, found.config, sequence_length, found.notes)
    config, table, target = found.config, found.table, found.target
    if isinstance(target, Shape) and not found.recipe.has_masks:  # the cut model is trained
        family = family_of(config)
        config = config | family.write_shape(target)
        table, target = family.table(config), None
    return PlanInputs(
        recipe=found.recipe,
        config=config,
        table=table,
        target=target,
        teacher=None if found.teacher is None else found.teacher.table,
        sequence_length=length,
        domains=domains,
        tree=found.tree,
        notes=found.notes,
    )


def _length(
    tree: DataTree | None, config: dict[str, Any], given: int | None, notes: list[str]
) -> int:
    if tree is not None:
        return tree.sequence_length
    if given is not None:
        if given < 1:
            raise UserError(
                f"--sequence-length: found {given}, expected tokens of a row, e.g. 4096"
            )
        return given
    length = min(USUAL_LENGTH, config.get("max_position_embeddings") or USUAL_LENGTH)
    notes.append(f"rows of {length:,} tokens assumed; give --sequence-length for others")
    return length
