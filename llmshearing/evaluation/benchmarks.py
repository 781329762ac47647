"""Benchmark tasks through lm-eval, a named suite of them beside the scores that were published.

A suite is a YAML file: tasks with their shots and metrics, and rows of published scores. The one of
the paper ships with the package; any other is given by its path.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing.errors import UserError
from llmshearing.huggingface.source import read_source

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("suites")
SCORES = ("acc_norm", "acc", "exact_match")  # taken for a task without a suite, the first it has


@dataclass(frozen=True)
class Task:
    """One column of a table.

    Attributes:
        column: its head.
        task: the name in lm-eval of a task or a group.
        shots: examples in the prompt; None for the task's own number.
        metric: which of the task's metrics is the score; None for the usual one.
    """

    column: str
    task: str
    shots: int | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Suite:
    """Tasks that belong together.

    Attributes:
        tasks: in the order of the columns.
        source: where the published scores are from.
        published: by model, a score in percent for each task, then their average as printed.
    """

    tasks: tuple[Task, ...]
    source: str = ""
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def only(self, names: Sequence[str]) -> Suite:
        """The suite cut to some tasks, named by column or by lm-eval's name.

        Raises:
            UserError: it has no such task.
        """
        if not names:
            return self
        known = {key for task in self.tasks for key in (task.column, task.task)}
        for name in names:
            if name not in known:
                tasks = ", ".join(task.task for task in self.tasks)
                raise UserError(f"found --tasks {name}, expected some of {tasks}")
        kept = [i for i, task in enumerate(self.tasks) if {task.column, task.task} & set(names)]
        rows = {model: tuple(row[i] for i in kept) for model, row in self.published.items()}
        published = {model: (*row, sum(row) / len(row)) for model, row in rows.items()}
        return Suite(tuple(self.tasks[i] for i in kept), self.source, published)


@dataclass(frozen=True)
class Scores:
    """What a model reached.

    Attributes:
        model: the Hugging Face directory.
        suite: what it was measured on.
        scores: percent, by column.
        limit: documents of each task that were used; None for all.
    """

    model: Path
    suite: Suite
    scores: dict[str, float]
    limit: int | None

    @property
    def average(self) -> float:
        """Mean over the tasks."""
        return sum(self.scores.values()) / len(self.scores)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": str(self.model),
            "scores": self.scores,
            "average": self.average,
            "limit": self.limit,
            "tasks": [asdict(task) for task in self.suite.tasks],
            "published": {model: list(row) for model, row in self.suite.published.items()},
            "published_source": self.suite.source,
        }

    def as_table(self) -> str:
        """Lines for a terminal: the published rows, then the model's own."""
        own = (*self.scores.values(), self.average)
        rows = {**self.suite.published, self.model.name: own}
        lines = [_heading(self.suite, rows), *(_row(rows, model) for model in rows)]
        if self.suite.published:
            lines.append(f"all rows but the last: {self.suite.source}")
        if self.limit is not None:
            lines.append(f"{self.model.name}: the first {self.limit} documents of each task only")
        return "\n".join(lines)


def suite_of(name: str) -> Suite:
    """A suite by its name or by the path of its file.

    Raises:
        UserError: there is none, or the file is not one.
    """
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    path = SHIPPED / f"{name}.yaml" if name in shipped else Path(name)
    if not path.is_file():
        raise UserError(
            f"found no suite {name}, expected {' or '.join(shipped)} or the path of a YAML file"
        )
    try:
        read: Any = OmegaConf.to_container(OmegaConf.load(path))
        tasks = tuple(Task(**task) for task in read["tasks"])
        rows = {model: tuple(map(float, row)) for model, row in read.get("published", {}).items()}
    except (OmegaConfBaseException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"found no suite in {path} ({error}), expected `tasks:` with a list of "
            "{column, task, shots, metric}"
        ) from error
    for model, row in rows.items():
        if len(row) != len(tasks) + 1:
            raise UserError(
                f"found {len(row)} numbers for {model} in {path}, expected one for each of the "
                f"{len(tasks)} tasks and their average"
            )
    return Suite(tasks, read.get("source", ""), rows)


def suite_of_tasks(names: Sequence[str]) -> Suite:
    """Tasks of lm-eval with their own shots and usual metrics.

    Raises:
        UserError: none is named.
    """
    if not names:
        raise UserError("expected one of --data, --suite, --tasks and --throughput")
    return Suite(tuple(Task(name, name) for name in names))


def describe(suite: Suite, include: Path | None = None) -> str:
    """What would be evaluated, without reading a model or data.

    Raises:
        UserError: no lm-eval, or a task that it does not know.
    """
    _task_manager(suite, include)
    width = max(len(task.task) for task in suite.tasks)
    lines = [f"{'task':<{width}}  column      shots  metric"]
    for task in suite.tasks:
        shots = "own" if task.shots is None else task.shots
        lines.append(
            f"{task.task:<{width}}  {task.column:<10}  {shots:>5}  {task.metric or 'usual'}"
        )
    lines.append(f"{len(suite.tasks)} tasks, all known to lm-eval")
    if suite.published:
        lines.append(f"{len(suite.published)} published rows beside them: {suite.source}")
    return "\n".join(lines)


def run_suite(
    model_directory: str | Path,
    suite: Suite,
    *,
    batch_size: int = 16,
    include: Path | None = None,
    limit: int | None = None,
) -> Scores:
    """Score a model on a suite.

    Args:
        model_directory: a Hugging Face directory with its tokenizer.
        suite: the tasks.
        batch_size: requests of a forward pass.
        include: a folder of task files; they come before lm-eval's own of the same name.
        limit: documents of each task; None for all.

    Raises:
        UserError: no model, no lm-eval, a task that it does not know, data that cannot be had, or
            a metric that a task does not have.
    """
    model_directory = Path(model_directory)
    read_source(model_directory)
    manager = _task_manager(suite, include)
    loaded = {task.task: _loaded(manager, task.task) for task in suite.tasks}
    model = _language_model(model_directory, batch_size)
    scores = {}
    for task in suite.tasks:
        log.info("%s: %s", task.column, task.task)
        scores[task.column] = _score(model, manager, loaded[task.task], task, limit)
    return Scores(model_directory, suite, scores, limit)


def _score(model: Any, manager: Any, loaded: Any, task: Task, limit: int | None) -> float:
    """One task's score in percent."""
    import lm_eval

    harness: Any = lm_eval  # its decorators hide the signatures
    found = harness.simple_evaluate(
        model=model,
        tasks=loaded,
        num_fewshot=task.shots,
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    metrics = found["results"].get(task.task)
    if metrics is None:
        names = ", ".join(found["results"])
        raise UserError(f"found that {task.task} stands for {names}: give these one by one")
    values = {key.partition(",")[0]: value for key, value in metrics.items()}
    wanted = [task.metric] if task.metric else SCORES
    for metric in wanted:
        if isinstance(values.get(metric), int | float):
            return 100 * values[metric]
    have = ", ".join(k for k in values if isinstance(values[k], float) and "stderr" not in k)
    raise UserError(f"found the metrics {have} of {task.task}, expected {' or '.join(wanted)}")


def _task_manager(suite: Suite, include: Path | None) -> Any:
    """lm-eval's register of tasks; of all that it ships only where `include` lacks a task.

    Raises:
        UserError: no lm-eval, no such folder, or a task that nobody knows.
    """
    tasks = _imported()
    if include is not None and not include.is_dir():
        raise UserError(f"found no folder {include}, expected one of lm-eval task files")
    wanted = {task.task for task in suite.tasks}
    manager = None
    if include is not None:
        manager = tasks.TaskManager(include_path=str(include), include_defaults=False)
    if manager is None or not wanted <= set(manager.all_tasks):
        log.info("reading lm-eval's list of tasks")
        manager = tasks.TaskManager(include_path=None if include is None else str(include))
    unknown = sorted(wanted - set(manager.all_tasks))
    if unknown:
        raise UserError(
            f"found the tasks {', '.join(unknown)}, which lm-eval does not know: give names that "
            "`lm-eval ls tasks` prints, or their files with --include-path"
        )
    return manager


def _imported() -> Any:
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(
            f"lm-eval is not installed ({error}): `pip install 'llmshearing[eval]'`"
        ) from error
    return lm_eval.tasks


def _loaded(manager: Any, name: str) -> Any:
    """A task, or a group as a whole, with its data."""
    try:
        found = manager.load([name])
    except Exception as error:  # every data hub and file format has errors of its own
        raise UserError(
            f"cannot load the data of {name} ({type(error).__name__}: {error}): it has to be in "
            "the cache of `datasets` or to be reachable"
        ) from error
    groups = list(found["groups"].values())
    return groups[:1] or list(found["tasks"].values())  # a group comes before those within it


def _language_model(directory: Path, batch_size: int) -> Any:
    import torch
    from lm_eval.models import huggingface

    models: Any = huggingface  # as above
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return models.HFLM(pretrained=str(directory), batch_size=batch_size, device=device)
    except (OSError, ValueError) as error:
        raise UserError(f"lm-eval cannot read {directory}: {error}") from error


def _heading(suite: Suite, rows: Mapping[str, Sequence[float]]) -> str:
    cells = [_cell(f"{task.column}{_shots(task)}") for task in suite.tasks]
    return "".join([f"{'model':<{_width(rows)}}", *cells, _cell("average")])


def _row(rows: Mapping[str, Sequence[float]], model: str) -> str:
    return "".join([f"{model:<{_width(rows)}}", *(_cell(f"{value:.1f}") for value in rows[model])])


def _cell(text: str) -> str:
    return f"  {text:>9}"


def _width(rows: Mapping[str, Any]) -> int:
    return max(len(name) for name in ("model", *rows))


def _shots(task: Task) -> str:
    return f"({task.shots})" if task.shots else ""
