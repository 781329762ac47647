"""What a run directory holds, read as it is: also of a run that goes on, or that was killed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.errors import UserError
from llmshearing.files import json_lines

HELD_OUT = "metrics/{}/loss"


@dataclass(frozen=True)
class Series:
    """A metric over time.

    Attributes:
        steps: optimizer steps. [n].
        tokens: tokens seen. [n].
        values: finite or NaN. [n].
    """

    steps: NDArray[np.int64]
    tokens: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        directory: where it is.
        name: what the page calls it.
        lines: of `metrics.jsonl`, in order.
        config: the resolved recipe as text; empty where it is not there yet.
        manifest: `manifest.json`; empty before the first checkpoint.
        masks: per step the units' scores by axis.
        mask_report: `mask_report.json` of a pruning run that has ended, else empty.
    """

    directory: Path
    name: str
    lines: list[dict[str, Any]] = field(repr=False)
    config: str = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)
    masks: dict[int, dict[str, NDArray[Any]]] = field(repr=False)
    mask_report: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe.

        Raises:
            UserError: `config.yaml` is no YAML mapping.
        """
        path = self.directory / "config.yaml"
        try:
            recipe = yaml.safe_load(self.config) or {}
        except yaml.YAMLError as error:
            raise UserError(f"found {path}, which is no valid YAML: {error}") from error
        if not isinstance(recipe, dict):
            raise UserError(f"found no sections in {path}, expected a recipe")
        return recipe

    @cached_property
    def metrics(self) -> dict[str, Series]:
        """Every metric over time, in the order of its first appearance."""
        found: dict[str, list[tuple[int, int, float]]] = {}
        for line in self.lines:
            for name, value in line["metrics"].items():
                found.setdefault(name, []).append((line["batch"], line["tokens"], value))
        return {name: _series(points) for name, points in found.items()}

    def series(self, name: str) -> Series | None:
        """A metric over time, or None where the run has none of it."""
        return self.metrics.get(name)

    def group(self, template: str) -> dict[str, Series]:
        """Metrics that differ in one part of their name, by that part.

        Args:
            template: a name with `{}` for the part.
        """
        head, tail = template.split("{}")
        found = {}
        for name, series in self.metrics.items():
            part = name.removeprefix(head).removesuffix(tail)
            if name == template.format(part) and "/" not in part and part != "train":
                found[part] = series
        return found

    @property
    def domains(self) -> list[str]:
        """Domains with a held-out loss."""
        return list(self.group(HELD_OUT))

    @property
    def steps(self) -> int:
        """The newest step that was logged."""
        return self.lines[-1]["batch"] if self.lines else 0

    @property
    def planned_steps(self) -> int | None:
        """Steps that the recipe asks for, where it says so."""
        text = str(self.recipe.get("run", {}).get("duration", ""))
        return int(text[:-2]) if text.endswith("ba") and text[:-2].isdigit() else None

    @property
    def tokens(self) -> int:
        """Tokens up to the newest step."""
        return self.lines[-1]["tokens"] if self.lines else 0

    @property
    def seconds(self) -> float:
        """Time up to the newest line."""
        return self.lines[-1]["seconds"] if self.lines else 0.0

    @property
    def prunes(self) -> bool:
        """Whether this run learns masks."""
        return bool(self.masks) or bool(self.group("pruning/expected/{}"))

    @cached_property
    def table(self) -> CouplingTable | None:
        """The source model's coupling table; None before the first checkpoint."""
        config = self.manifest.get("source", {}).get("config")
        return None if config is None else family_of(config).table(config)

    @property
    def target(self) -> Shape | None:
        """The shape that a pruning run aims at; None where there is none (yet)."""
        target = self.manifest.get("target")
        return None if target is None else Shape(**target)

    def mean_held_out(self) -> Series | None:
        """Mean of the domains' held-out losses at each evaluation of all of them."""
        losses = self.group(HELD_OUT)
        if not losses:
            return None
        by_step = [dict(zip(s.steps, s.values, strict=True)) for s in losses.values()]
        first = next(iter(losses.values()))
        shared = [
            (step, tokens, float(np.mean([values[step] for values in by_step])))
            for step, tokens in zip(first.steps, first.tokens, strict=True)
            if all(step in values for values in by_step)
        ]
        return _series(shared) if shared else None

    def axis_sizes(self) -> dict[str, tuple[int, int | None]]:
        """Units of each axis in source and target; empty before the first checkpoint.

        The target's are None while a budget of parameters has not come to a shape.
        """
        if self.table is None:
            return {}
        source = self.table.sizes(self.table.source)
        target = {} if self.target is None else self.table.sizes(self.target)
        return {axis.value: (source[axis], target.get(axis)) for axis in Axis if axis in source}


def read_runs(directories: list[Path]) -> list[Run]:
    """Read run directories; each is named by as much of its path as tells it from the others.

    Raises:
        UserError: one of them is no run directory.
    """
    names = short_names([path.absolute() for path in directories])
    return [read_run(path, name) for path, name in zip(directories, names, strict=True)]


def read_run(directory: Path, name: str | None = None) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is none.
    """
    directory = Path(directory)
    metrics = directory / "metrics.jsonl"
    config = directory / "config.yaml"
    if not directory.is_dir():
        raise UserError(f"found no directory {directory}: give the run.directory of a recipe")
    if not metrics.is_file() and not config.is_file():
        raise UserError(
            f"found neither metrics.jsonl nor config.yaml in {directory}, expected a run "
            "directory: give the run.directory of a recipe"
        )
    return Run(
        directory=directory,
        name=name or directory.absolute().name,
        lines=read_metrics(metrics),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        manifest=_read_json(directory / "manifest.json"),
        masks=_read_masks(directory / "masks"),
        mask_report=_read_json(directory / "mask_report.json"),
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`; one that is being written, or was cut off, is left out."""
    if not path.is_file():
        return []
    keys = {"batch", "tokens", "seconds", "metrics"}
    return [line for line in json_lines(path.read_bytes()) if keys <= line.keys()]


def short_names(paths: list[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def _series(points: list[tuple[int, int, float]]) -> Series:
    steps, tokens, values = zip(*points, strict=True)
    return Series(np.array(steps), np.array(tokens), np.array(values, dtype=np.float64))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"found {path}, which is no valid JSON ({error}); copy it anew, or remove it for a "
            "report without it"
        ) from error


def _read_masks(folder: Path) -> dict[int, dict[str, NDArray[Any]]]:
    found = {}
    for path in folder.glob("ba*.safetensors"):
        try:
            tensors = load_file(path)
            scores = {name: x for name, x in tensors.items() if not name.endswith(".kept")}
            found[int(path.stem.removeprefix("ba"))] = scores
        except (ValueError, SafetensorError, OSError):
            continue  # another file's name, or a file still being written
    return dict(sorted(found.items()))
