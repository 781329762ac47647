"""Benchmark tasks through lm-eval, and named suites of them with published scores.

A suite is a YAML file: tasks with their shots and metrics, and rows of published scores. The
paper's suite and two others are part of the package; any other is given by its path.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from llmshearing.errors import UserError
from llmshearing.evaluation.ranks import own_device, refuse_several
from llmshearing.huggingface.source import read_source
from llmshearing.huggingface.weight_files import find_weights
from llmshearing.tables import Table
from llmshearing.tasks.documents import local_tasks
from llmshearing.tasks.suite import Suite, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

USUAL_METRICS = ("acc_norm", "acc", "exact_match")  # of a task without a metric: the first it has
BOOTSTRAPS = 1000  # resamplings for the standard errors that have no closed form


@dataclass(frozen=True)
class Score:
    """A model's score on one task, in percent."""

    value: float  # of the task's metric
    error: float | None  # its standard error over the documents; None if lm-eval gives none


@dataclass(frozen=True)
class Scores:
    """A model's scores on a suite."""

    model: Path
    suite: Suite
    scores: dict[str, Score]  # by column
    limit: int | None  # documents of each task that were used; None for all

    @property
    def average(self) -> Score:
        """Mean over the tasks."""
        count, errors = len(self.scores), [score.error for score in self.scores.values()]
        known = [error for error in errors if error is not None]
        error = math.hypot(*known) / count if len(known) == count else None
        return Score(sum(score.value for score in self.scores.values()) / count, error)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": str(self.model),
            "scores": {column: score.value for column, score in self.scores.items()},
            "standard_errors": {column: score.error for column, score in self.scores.items()},
            "average": self.average.value,
            "limit": self.limit,
            "tasks": [task.model_dump() for task in self.suite.tasks],
            "published": self.suite.published,
            "published_source": self.suite.source,
        }

    def as_table(self) -> Table:
        """The published rows, then the model's own with its standard errors."""
        tasks = [f"{t.column}({t.shots})" if t.shots else t.column for t in self.suite.tasks]
        own = [*self.scores.values(), self.average]
        errors = ["-" if score.error is None else f"{score.error:.1f}" for score in own]
        published = self.suite.published.items()
        rows = [
            *((model, *(f"{value:.1f}" for value in row)) for model, row in published),
            (self.model.name, *(f"{score.value:.1f}" for score in own)),
            ("standard error", *errors),
        ]
        notes = [f"all rows but the last two: {self.suite.source}"] if published else []
        if self.limit is not None:
            notes.append(f"{self.model.name}: only the first {self.limit} documents of each task")
        return Table("", ("model", *tasks, "average"), rows, notes)


def describe(suite: Suite, include: Path | None = None) -> Table:
    """What would be evaluated, without reading a model or data; errors as in `benchmark`."""
    _task_manager([task.task for task in suite.tasks], include)
    rows = [
        (t.task, t.column, "own" if t.shots is None else str(t.shots), t.metric or "usual")
        for t in suite.tasks
    ]
    notes = [f"{len(suite.tasks)} tasks, all known to lm-eval"]
    if suite.published:
        notes.append(f"{len(suite.published)} rows of published scores: {suite.source}")
    return Table("", ("task", "column", "shots", "metric"), rows, notes)


def benchmark(
    model_directory: str | Path,
    suite: Suite,
    *,
    batch_size: int = 16,
    dtype: str = "auto",
    include: Path | None = None,
    documents: Path | None = None,
    limit: int | None = None,
    cache: Path | None = None,
    run_generated_code: bool = False,
) -> Scores:
    """Score a model on a suite.

    Args:
        model_directory: with its tokenizer; a directory, or `org/name[@revision]` of the hub.
        suite: the tasks.
        batch_size: requests of a forward pass.
        dtype: of the weights; as they are stored by default.
        include: a folder of task files, which take precedence over lm-eval's of the same name.
        documents: a folder of JSON lines to read the tasks' documents from, see `local_tasks`.
        limit: documents of each task; None for all.
        cache: a folder for lm-eval's cache of answers, so that a run that was killed computes only
            what is missing. lm-eval stores pickles there.
        run_generated_code: allow tasks such as HumanEval, which run what the model writes.

    Raises:
        UserError: no model, no lm-eval, a task that it does not know, data that it cannot load, a
            metric that a task does not have, an impossible number, or several ranks.
    """
    refuse_several("benchmark")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise UserError(f"found batch size {batch_size}, limit {limit}; expected at least 1 each")
    source = read_source(model_directory)
    find_weights(source.path)  # lm-eval reads the directory itself
    loaded = load_tasks(suite, include, documents)
    model = language_model(source.path, batch_size, dtype)
    settings: dict[str, Any] = {"confirm_run_unsafe_code": run_generated_code}
    if cache is not None:
        settings["use_cache"] = str(cache / fingerprint(source.path) / "answers")
    scores = {}
    for number, task in enumerate(suite.tasks, 1):
        log.info("%s (%d of %d)", task.task, number, len(suite.tasks))
        found = score(model, loaded[task.task], task, limit=limit, **settings)
        assert found is not None  # there is one rank
        scores[task.column] = found
    return Scores(Path(model_directory), suite, scores, limit)


def load_tasks(
    suite: Suite, include: Path | None = None, documents: Path | None = None
) -> dict[str, Any]:
    """lm-eval's tasks of a suite with their data, by name; the arguments are `benchmark`'s.

    Raises:
        UserError: no lm-eval, a task that it does not know, or data that it cannot load.
    """
    names = [task.task for task in suite.tasks]
    local = {} if documents is None else local_tasks(names, documents)
    manager = _task_manager([name for name in names if name not in local], include)
    return {name: _loaded(manager, local.get(name, name)) for name in names}


def fingerprint(model_directory: Path) -> str:
    """A name for a model's files, since lm-eval's cache does not tell models apart.

    Files count by name, size and time of change: hashing weights takes as long as a short task.
    """
    digest = xxhash.xxh3_64()
    for file in sorted(path for path in model_directory.iterdir() if path.is_file()):
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def score(model: Any, loaded: Any, task: Task, **settings: Any) -> Score | None:
    """One task's score; None on a rank that is not the first of its node, as lm-eval has it.

    `settings` are those of lm-eval's `simple_evaluate`.

    Raises:
        UserError: the name is that of several tasks, or the task does not have the metric.
    """
    import lm_eval

    # lm-eval would bootstrap in forked processes and end them with SIGTERM. In a run they inherit
    # the handler that only notes that signal, and the run would wait for them forever.
    os.environ["DISABLE_MULTIPROC"] = "1"
    harness: Any = lm_eval  # its decorators hide the signatures
    found = harness.simple_evaluate(
        model=model,
        tasks=loaded,
        num_fewshot=task.shots,
        log_samples=False,
        bootstrap_iters=BOOTSTRAPS,
        **settings,
    )
    if found is None:
        return None
    metrics = found["results"].get(task.task)
    if metrics is None:
        names = ", ".join(found["results"])
        raise UserError(f"found that {task.task} is a name for {names}: give these one by one")
    values = {key.partition(",")[0]: value for key, value in metrics.items()} | metrics
    wanted = [task.metric] if task.metric else USUAL_METRICS
    for metric in wanted:
        if isinstance(values.get(metric), int | float):
            name, comma, answers = metric.partition(",")
            error = values.get(f"{name}_stderr{comma}{answers}")  # "N/A" if there is none
            known = isinstance(error, int | float)
            return Score(100 * values[metric], 100 * error if known else None)
    floats = (key for key, value in values.items() if isinstance(value, float))
    have = ", ".join(key for key in floats if "stderr" not in key and "," not in key)
    raise UserError(f"found the metrics {have} of {task.task}, expected {' or '.join(wanted)}")


def _task_manager(names: Sequence[str], include: Path | None) -> Any:
    """lm-eval's list of tasks. Its own tasks are read only if `include` does not have them all."""
    try:
        from lm_eval import tasks
    except ImportError as error:
        raise UserError(
            f"lm-eval is not installed ({error}): `pip install 'llmshearing[eval]'`"
        ) from error
    if include is not None and not include.is_dir():
        raise UserError(f"found no folder {include}, expected one of lm-eval task files")
    wanted = set(names)
    folder = None if include is None else str(include)
    manager = tasks.TaskManager(include_path=folder, include_defaults=False)
    if not wanted <= set(manager.all_tasks):
        log.info("reading lm-eval's list of tasks")
        manager = tasks.TaskManager(include_path=folder)
    if unknown := sorted(wanted - set(manager.all_tasks)):
        raise UserError(
            f"found the tasks {', '.join(unknown)}, which lm-eval does not know: give names that "
            "`lm-eval ls tasks` prints, or their files with --include-path"
        )
    return manager


def _loaded(manager: Any, name: str | dict[str, Any]) -> Any:
    """A task, or a group as a whole, with its data; by name or by its config."""
    try:
        found = manager.load([name])
    except Exception as error:  # every data hub and file format has errors of its own
        task = name if isinstance(name, str) else name["task"]
        raise UserError(
            f"cannot load the data of {task} ({type(error).__name__}: {error}): it has to be in "
            "the cache of `datasets`, reachable, or JSON lines (--documents)"
        ) from error
    groups = list(found["groups"].values())
    return groups[:1] or list(found["tasks"].values())  # a group is listed before its members


def language_model(
    model: "Path | PreTrainedModel", batch_size: int, dtype: str = "auto", tokenizer: Any = None
) -> Any:
    """lm-eval's model of a directory, or of a model in memory, which stays where it is.

    lm-eval's own default takes log-probabilities in bfloat16, which makes ties. `dtype` is that of
    weights that are read; `tokenizer` belongs to a model in memory.

    Raises:
        UserError: the directory cannot be read.
    """
    from lm_eval.models import huggingface

    models: Any = huggingface  # its decorators hide the signatures
    settings: dict[str, Any] = {"batch_size": batch_size, "softmax_dtype": "float32"}
    if not isinstance(model, Path):
        return models.HFLM(pretrained=model, tokenizer=tokenizer, **settings)
    settings |= {"device": str(own_device()), "dtype": dtype}
    try:
        return models.HFLM(pretrained=str(model), **settings)
    except (OSError, ValueError) as error:
        raise UserError(f"lm-eval cannot read {model}: {error}") from error
