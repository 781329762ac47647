"""Which model teaches a run, and whether it can. Nothing here needs torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of, read_config
from llmshearing.checkpoints.manifest import EXPORT_FILE, ExportManifest
from llmshearing.config import Recipe
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError


@dataclass(frozen=True)
class TeacherDirectory:
    """A Hugging Face directory that teaches."""

    path: Path  # the directory
    config: dict[str, Any]  # its `config.json`
    table: CouplingTable  # its coupling table


def find_teacher(
    recipe: Recipe, source: Path, locate: Callable[[str], Path]
) -> TeacherDirectory | None:
    """The teacher of a run that trains the model in `source`; None without one in memory.

    `locate` leads from a directory or a name on the hub to the directory.

    Raises:
        UserError: there is none, or it is the run's own directory.
    """
    settings = recipe.distillation
    if settings is None or settings.cache is not None:
        return None
    path = locate(settings.teacher) if settings.teacher else _default(recipe, source, locate)
    run = Path(recipe.run.directory).resolve()
    if run in (path.resolve(), *path.resolve().parents):
        raise UserError(
            f"found {path}, which this run writes itself; expected another model's directory, "
            "such as the source of the pruning run"
        )
    config = read_config(path)
    return TeacherDirectory(path, config, family_of(config).table(config))


def _default(recipe: Recipe, source: Path, locate: Callable[[str], Path]) -> Path:
    if recipe.prunes:
        if recipe.model.initialize == "random":
            raise UserError(
                "found no teacher and random weights (model.initialize); expected a trained "
                "teacher: give its directory"
            )
        return source
    parent, manifest = source, ExportManifest.read(source)
    if manifest is None:
        raise UserError(
            f"found no teacher and no {EXPORT_FILE} in {source} that names the model it was "
            "pruned from; give the teacher's directory"
        )
    while manifest is not None:  # an export of continued training names the pruned model
        made_from = manifest.source
        parent = Path(made_from.path)
        if not parent.is_dir() and made_from.repository is not None:
            parent = locate(made_from.repository)
        if not parent.is_dir():
            raise UserError(
                f"found no directory {parent}, from which {source} was made by its {EXPORT_FILE}; "
                "give the directory of the unpruned model"
            )
        manifest = ExportManifest.read(parent)
    return parent


def teacher_errors(teacher: TeacherDirectory, tree: DataTree) -> list[str]:
    """Why a teacher cannot read a data tree; empty if it can."""
    errors, vocabulary = [], teacher.table.source.vocabulary
    if vocabulary < tree.vocabulary:
        errors.append(
            f"found a vocabulary of {vocabulary} in {teacher.path}, expected one with all "
            f"{tree.vocabulary} token ids of the model's tokenizer"
        )
    longest = teacher.config.get("max_position_embeddings")
    if longest is not None and tree.sequence_length > longest:
        errors.append(
            f"found max_position_embeddings {longest} in {teacher.path}, expected at least the "
            f"{tree.sequence_length} tokens of a row"
        )
    try:
        same = tree.is_of_tokenizer(teacher.path)
    except FileNotFoundError:
        same = True  # its ids cannot be compared; the vocabulary is
    if not same:
        errors.append(
            f"found another tokenizer in {teacher.path} than the one that made {tree.root}; "
            "expected the same, because distributions over other token ids cannot be compared"
        )
    return errors
