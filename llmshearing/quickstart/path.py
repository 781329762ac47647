"""The quickstart as one function."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

import llmshearing
from llmshearing.architecture.shape import Shape
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.files import lock_directory
from llmshearing.mixture.references import References
from llmshearing.quickstart.record import Record
from llmshearing.quickstart.runner import run_stages
from llmshearing.quickstart.stages import RECIPES, Layout, Settings, stages
from llmshearing.quickstart.summary import write_results


def run(out: Path, model: Path | None = None, settings: Settings | None = None) -> None:
    """Go the whole path, or what is left of it.

    Args:
        out: where everything goes; made where it is missing.
        model: a Hugging Face LLaMA to shear to half its width; a small one is trained otherwise.
        settings: a shorter path.

    Raises:
        UserError: no clone of the project around, an output directory that holds something else
            or that another process uses, or a failed command.
    """
    settings = settings or Settings()
    project = Path(llmshearing.__file__).absolute().parents[1]
    if not (project / RECIPES).is_dir():
        raise UserError(
            f"found no {RECIPES} in {project}, expected a clone of the project: clone it and run "
            "`make quickstart` there"
        )
    model = model.absolute() if model else None
    target = half(_shape_of(model)) if model else []
    layout = Layout(_shown(out.absolute(), project), model)
    root = project / layout.root
    path = stages(layout, settings, lambda: _write_references(project, layout), target)
    Record.open(root, model)  # refuses a directory of something else before the lock goes into it
    console = Console(stderr=True, soft_wrap=True)
    with lock_directory(root):
        record = Record.open(root, model)
        run_stages(path, record, root / "logs", project, console)
        write_results(project, layout, record, console)


def half(source: Shape) -> list[str]:
    """Overrides for a target of half the width of any source; layers stay."""
    multi_head = source.heads == source.kv_groups
    groups = max(1, source.kv_groups // 2)
    heads = groups if multi_head else groups * source.heads_per_group
    sizes = {
        "hidden": source.hidden // 2,
        "layers": source.layers,
        "heads": heads,
        "intermediate": source.intermediate // 2,
    }
    sizes |= {} if multi_head else {"kv_groups": groups}
    return [f"target.{name}={size}" for name, size in sizes.items()]


def _shape_of(model: Path) -> Shape:
    from llmshearing.huggingface.source import read_source  # brings torch along

    return read_source(model).table.source


def _shown(out: Path, project: Path) -> Path:
    """The output directory as commands name it: short where it lies in the project."""
    return out.relative_to(project) if out.is_relative_to(project) else out


def _write_references(project: Path, layout: Layout) -> None:
    """The source's own losses: the paper's second option for what a domain should reach."""
    found = json.loads((project / layout.losses("source")).read_text(encoding="utf-8"))
    tree = DataTree.open(project / layout.data)
    References(
        losses={name: held["loss"] for name, held in found["domains"].items()},
        source=f"measured of {layout.model('source')}",
        tokenizer=tree.tokenizer["fingerprint"],
        sequence_length=tree.sequence_length,
        fingerprints={name: info.fingerprint for name, info in tree.split("eval").items()},
    ).write(project / layout.references)
