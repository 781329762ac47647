"""What the quickstart does, stage by stage: the commands that a user would type."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RECIPES = Path("yamls/quickstart")
MODELS = ("source", "pruned", "sheared", "scratch")


@dataclass(frozen=True)
class Settings:
    """What a shorter path changes, as tests take it.

    Attributes:
        characters_per_domain: of text to gather.
        prepare: `key=value` for `prepare.py`.
        training: `key=value` for all training stages.
        steps: optimizer steps by stage, where they differ from the recipe's.
    """

    characters_per_domain: int = 3_000_000
    prepare: Sequence[str] = ()
    training: Sequence[str] = ()
    steps: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One command, or one call where there is no command of that kind.

    Attributes:
        name: short and distinct, for logs and the record of what is done.
        title: what it does.
        seconds: about how long, on two cores, for the time left.
        command: words to run.
        call: what to call instead.
        makes: where the result goes; removed before a new attempt.
        run_directory: of a training stage, which goes on from its checkpoint instead.
    """

    name: str
    title: str
    seconds: float
    command: tuple[str, ...] = ()
    call: Callable[[], None] | None = None
    makes: Path | None = None
    run_directory: Path | None = None


@dataclass(frozen=True)
class Layout:
    """Where everything goes.

    Attributes:
        root: the output directory.
        given: a Hugging Face directory to shear, or None to train one.
    """

    root: Path
    given: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's directory."""
        return self.given or self.root / "tokenizer"

    @property
    def data(self) -> Path:
        """The data tree."""
        return self.root / "data"

    @property
    def references(self) -> Path:
        """The source model's losses, which the mixture follows."""
        return self.root / "references.yaml"

    def model(self, name: str) -> Path:
        """A model's Hugging Face directory, by its name in `MODELS`."""
        return self.given if name == "source" and self.given else self.root / "models" / name

    def run(self, name: str) -> Path:
        """A training stage's run directory."""
        return self.root / "runs" / name

    def losses(self, name: str) -> Path:
        """A model's losses by domain, as `llmshearing evaluate` writes them."""
        return self.root / "losses" / f"{name}.json"


def processes() -> int:
    """Ranks of a training stage: two where there are two cores.

    Two processes of a thread each keep their pace on a busy machine, where two threads of one
    process wait for each other at every operation.
    """
    return min(2, cores())


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def stages(
    layout: Layout, settings: Settings, note_references: Callable[[], None], target: Sequence[str]
) -> list[Stage]:
    """The whole path in order.

    Args:
        layout: where things go.
        settings: a shorter path.
        note_references: turns the source's losses into the file `layout.references`.
        target: `target.key=value` for a source that is not the quickstart's own.
    """
    path: list[Stage] = [
        _text(layout, settings),
        _prepare(layout, settings),
    ]
    references = f"mixture.references={layout.references}"
    if layout.given is None:
        config = f"model.path={layout.root / 'source-config'}"
        path.append(_train("source", "train the source model", 180, layout, settings, config))
        path.append(_export("source", "source", layout))
    path.append(_evaluate("source", layout))
    path.append(Stage("references", "note its losses as references", 0.1, call=note_references))
    source = f"model.path={layout.model('source')}"
    path.append(_train("prune", "prune it", 70, layout, settings, source, references, *target))
    path.append(_export("prune", "pruned", layout))
    path.append(_evaluate("pruned", layout))
    pruned = f"model.path={layout.model('pruned')}"
    path.append(
        _train("continue", "continue at the target shape", 45, layout, settings, pruned, references)
    )
    path.append(_export("continue", "sheared", layout))
    path.append(_evaluate("sheared", layout))
    path.append(_train("scratch", "train that shape from scratch", 65, layout, settings, pruned))
    path.append(_export("scratch", "scratch", layout))
    path.append(_evaluate("scratch", layout))
    return path


def _text(layout: Layout, settings: Settings) -> Stage:
    words = ("python", "-m", "llmshearing.quickstart.text", str(layout.root))
    words += ("--characters", str(settings.characters_per_domain))
    words += ("--text-only",) if layout.given else ()
    return Stage("text", "gather text, train a tokenizer", 15, words)


def _prepare(layout: Layout, settings: Settings) -> Stage:
    words = (
        *("python", "data_prep/prepare.py", str(RECIPES / "data.yaml")),
        f"source={layout.root / 'text'}",
        f"tokenizer={layout.tokenizer}",
        f"output={layout.data}",
        *settings.prepare,
    )
    return Stage("prepare", "tokenise and split by document", 10, words)


def _train(
    name: str, title: str, seconds: float, layout: Layout, settings: Settings, *overrides: str
) -> Stage:
    words = (
        *(
            "composer",
            "-n",
            str(processes()),
            "-m",
            "llmshearing.train",
            str(RECIPES / f"{name}.yaml"),
        ),
        *overrides,
        f"data.root={layout.data}",
        f"run.directory={layout.run(name)}",
        *settings.training,
        *([f"run.duration={settings.steps[name]}ba"] if name in settings.steps else []),
    )
    return Stage(name, title, seconds, words, run_directory=layout.run(name))


def _export(run: str, model: str, layout: Layout) -> Stage:
    words = ("llmshearing", "export", str(layout.run(run)), str(layout.model(model)))
    return Stage(f"export-{model}", f"export: {model}", 8, words, makes=layout.model(model))


def _evaluate(model: str, layout: Layout) -> Stage:
    words = (
        *("llmshearing", "evaluate", str(layout.model(model))),
        *("--data", str(layout.data / "eval"), "--json", str(layout.losses(model))),
    )
    return Stage(f"evaluate-{model}", f"evaluate: {model}", 9, words, makes=layout.losses(model))
