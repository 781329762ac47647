"""Reads a run directory as it is, also while the run continues or after it was killed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.checkpoints.manifest import RUN_FILE, RunManifest
from llmshearing.errors import UserError
from llmshearing.files import json_lines, read_json
from llmshearing.tensor_files import read_tensors
from llmshearing.yaml_files import read_yaml

HELD_OUT = "metrics/{}/loss"


@dataclass(frozen=True)
class Series:
    """A metric over time, [n] each."""

    steps: NDArray[np.int64]  # of the optimizer
    tokens: NDArray[np.int64]  # seen
    values: NDArray[np.float64]  # finite or NaN

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.values[-1])


@dataclass(frozen=True)
class Run:
    """A run directory."""

    directory: Path
    name: str  # what the page calls it
    lines: list[dict[str, Any]]  # of `metrics.jsonl`, in order
    config: str  # the resolved recipe as text; empty if it is not written yet
    manifest: RunManifest | None  # None before the first evaluation
    masks: dict[int, dict[str, NDArray[Any]]]  # probabilities to stay, by step and axis
    mask_report: dict[str, Any]  # of a finished pruning run, else empty

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return read_yaml(self.directory / "config.yaml") if self.config else {}

    @cached_property
    def metrics(self) -> dict[str, Series]:
        """Every metric over time, in the order of its first appearance."""
        found: dict[str, list[tuple[int, int, float]]] = {}
        for line in self.lines:
            for name, value in line["metrics"].items():
                found.setdefault(name, []).append((line["batch"], line["tokens"], value))
        return {name: _series(points) for name, points in found.items()}

    def series(self, name: str) -> Series | None:
        """A metric over time; None if the run did not log it."""
        return self.metrics.get(name)

    def group(self, template: str) -> dict[str, Series]:
        """Metrics whose names differ in one part, `{}` in the template, by that part."""
        head, tail = template.split("{}")
        found = {}
        for name, series in self.metrics.items():
            part = name.removeprefix(head).removesuffix(tail)
            if name == template.format(part) and "/" not in part and part != "train":
                found[part] = series
        return found

    @property
    def steps(self) -> int:
        """The last step that was logged."""
        return self.lines[-1]["batch"] if self.lines else 0

    @property
    def planned_steps(self) -> int | None:
        """Steps that the recipe asks for; None if it is not known in steps."""
        text = str(self.recipe.get("run", {}).get("duration", ""))
        return int(text[:-2]) if text.endswith("ba") and text[:-2].isdigit() else None

    @property
    def tokens(self) -> int:
        """Tokens up to the last step."""
        return self.lines[-1]["tokens"] if self.lines else 0

    @property
    def last_masks(self) -> dict[str, NDArray[Any]]:
        """Each unit's last probability to stay, by axis."""
        return self.masks[max(self.masks)] if self.masks else {}

    @property
    def prunes(self) -> bool:
        """Whether this run learns masks."""
        return bool(self.masks) or bool(self.group("pruning/expected/{}"))

    @cached_property
    def table(self) -> CouplingTable | None:
        """The source model's coupling table; None before the first checkpoint."""
        if self.manifest is None:
            return None
        config = self.manifest.source.config
        return family_of(config).table(config)

    @property
    def target(self) -> Shape | None:
        """The target shape of a pruning run; None if there is none (yet)."""
        return None if self.manifest is None else self.manifest.target

    def mean_held_out(self) -> Series | None:
        """Mean of the domains' held-out losses at each evaluation of all of them."""
        losses = [*self.group(HELD_OUT).values()]
        if not losses:
            return None
        by_step = [dict(zip(s.steps, s.values, strict=True)) for s in losses]
        shared = [
            (step, tokens, float(np.mean([values[step] for values in by_step])))
            for step, tokens in zip(losses[0].steps, losses[0].tokens, strict=True)
            if all(step in values for values in by_step)
        ]
        return _series(shared) if shared else None

    def axis_sizes(self) -> dict[str, tuple[int, int | None]]:
        """Units of each axis in source and target; empty before the first checkpoint.

        The target's are None until a parameter budget has been turned into a shape.
        """
        if self.table is None:
            return {}
        source = self.table.sizes(self.table.source)
        target = {} if self.target is None else self.table.sizes(self.target)
        return {axis.value: (source[axis], target.get(axis)) for axis in Axis if axis in source}


def read_runs(directories: list[Path]) -> list[Run]:
    """Read run directories and name each by the last parts of its path that make it distinct."""
    names = short_names([path.absolute() for path in directories])
    return [read_run(path, name) for path, name in zip(directories, names, strict=True)]


def read_run(directory: Path, name: str | None = None) -> Run:
    """Read a run directory; a UserError if it is none."""
    metrics, config = directory / "metrics.jsonl", directory / "config.yaml"
    manifest, report = directory / RUN_FILE, directory / "mask_report.json"
    if not metrics.is_file() and not config.is_file():
        found = f"neither metrics.jsonl nor config.yaml in {directory}"
        raise UserError(
            f"found {found if directory.is_dir() else f'no directory {directory}'}, expected a run "
            "directory: give the run.directory of a recipe"
        )
    return Run(
        directory=directory,
        name=name or directory.absolute().name,
        lines=read_metrics(metrics),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        manifest=RunManifest.read(manifest) if manifest.is_file() else None,
        masks=_read_masks(directory / "masks"),
        mask_report=read_json(report) if report.is_file() else {},
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`, except one that is still being written or was cut off."""
    keys = {"batch", "tokens", "seconds", "metrics"}
    content = path.read_bytes() if path.is_file() else b""
    return [line for line in json_lines(content) if keys <= line.keys()]


def short_names(paths: list[Path]) -> list[str]:
    """The last parts of each path, as many as make the names distinct."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def _series(points: list[tuple[int, int, float]]) -> Series:
    steps, tokens, values = zip(*points, strict=True)
    return Series(np.array(steps), np.array(tokens), np.array(values, dtype=np.float64))


def _read_masks(folder: Path) -> dict[int, dict[str, NDArray[Any]]]:
    found = {}
    for path in folder.glob("ba*.safetensors"):
        step = path.stem.removeprefix("ba")
        if not step.isdigit():
            continue
        try:
            tensors = read_tensors(path)
        except UserError as error:
            remedy = "Copy it again, or remove it for a report without it"
            raise UserError(f"{error}. {remedy}") from error
        found[int(step)] = {n: x for n, x in tensors.items() if not n.endswith(".kept")}
    return dict(sorted(found.items()))
