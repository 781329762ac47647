"""Named suites of benchmark tasks, with published scores.

A suite is a YAML file. The paper's suite and two others are part of the package; any other is given
by its path.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from llmshearing.errors import UserError
from llmshearing.typed_yaml import Section, load

SHIPPED = Path(__file__).with_name("suites")


class Task(Section):
    """One column of a table."""

    column: str
    """Its header."""
    task: str
    """The name of a task or a group in lm-eval."""
    shots: int | None = None
    """Examples in the prompt; None for the task's own number."""
    metric: str | None = None
    """Which of the task's metrics is the score; None for the usual one."""


class Suite(Section):
    """Tasks that belong together, in the order of the columns."""

    tasks: list[Task] = Field(min_length=1)
    """At least one."""
    source: str = ""
    """Where the published scores are from."""
    published: dict[str, list[float]] = Field(default_factory=dict)
    """By model: a score in percent for each task, then their average as printed."""

    def rules(self) -> list[str]:
        """Errors of rows that do not fit the tasks."""
        rows, count = self.published.items(), len(self.tasks)
        expected = f"expected one for each of the {count} tasks and their average"
        wrong = {model: len(row) for model, row in rows if len(row) != count + 1}
        return [f"published.{model}: found {n} numbers, {expected}" for model, n in wrong.items()]

    def only(self, names: Sequence[str]) -> "Suite":
        """Some tasks, by column or by lm-eval's name; all if none is named. Refuses other names."""
        if not names:
            return self
        known = {name for task in self.tasks for name in (task.column, task.task)}
        if unknown := [name for name in names if name not in known]:
            tasks = ", ".join(task.task for task in self.tasks)
            raise UserError(f"found --tasks {', '.join(unknown)}, expected some of {tasks}")
        kept = [i for i, task in enumerate(self.tasks) if {task.column, task.task} & set(names)]
        rows = {model: [row[i] for i in kept] for model, row in self.published.items()}
        published = {model: [*row, sum(row) / len(row)] for model, row in rows.items()}
        return Suite(tasks=[self.tasks[i] for i in kept], source=self.source, published=published)


def read_suite(name: str | None, tasks: Sequence[str] = ()) -> Suite:
    """A suite by its name or the path of its file; only its `tasks`, if any are given.

    Without a name, the `tasks` are lm-eval's, with their own numbers of shots and metrics.

    Raises:
        UserError: no such suite or task, a file of another kind, or neither name nor tasks.
    """
    if name is None:
        if not tasks:
            raise UserError("found neither --suite nor --tasks, expected one of them")
        return Suite(tasks=[Task(column=task, task=task) for task in tasks])
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    path = SHIPPED / f"{name}.yaml" if name in shipped else Path(name)
    if not path.is_file():
        raise UserError(
            f"found no suite {name}, expected {', '.join(shipped)} or the path of a YAML file"
        )
    return load(Suite, path, what="suite of benchmarks").only(tasks)
