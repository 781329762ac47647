"""The steps of the quickstart: the commands that a user would type, in order."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import llmshearing

RECIPES = Path(llmshearing.__file__).parent / "yamls/quickstart"
# These continue a partial output. Others start again without it.
RESUMABLE = ("prepare", "source", "prune", "continue", "scratch")


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str  # distinct; of its log and the file that marks it as done
    title: str
    seconds: float  # about how long it takes on two cores, for the time left
    output: Path  # the file or directory that it makes
    command: tuple[str, ...]  # its words

    def __str__(self) -> str:
        """The command as a user types it."""
        return " ".join(self.command)


def steps(out: Path, extra: Mapping[str, Sequence[str]] | None = None) -> list[Step]:
    """The steps from text to the losses of all models; `extra` words for commands, by step."""
    data, config, references = f"{out}/data", f"{out}/source-config", f"{out}/references.yaml"
    gather = ["python", "-m", "llmshearing.quickstart.gather", str(out)]
    prepare = ["llmshearing", "prepare", f"{RECIPES}/data.yaml"]
    prepare += [f"source={out}/text", f"tokenizer={config}", f"output={data}"]
    measure = ["llmshearing", "reference-loss", "measure", f"{out}/models/source"]
    measure += ["--data", f"{data}/eval", "--out", references]
    aim = f"mixture.references={references}"
    # Two ranks of one thread keep their pace on a busy machine. Two threads of one process wait
    # for each other at every operation.
    ranks = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)

    def train(name: str, model: str, *overrides: str) -> tuple[str, list[str]]:
        run = f"{out}/runs/{name}"
        command = ["composer", "-n", str(ranks), "-m", "llmshearing.train"]
        places = [f"model.path={out}/{model}", f"data.root={data}", f"run.directory={run}"]
        return run, [*command, f"{RECIPES}/{name}.yaml", *places, *overrides]

    def export(run: str, name: str) -> tuple[str, list[str]]:
        made = f"{out}/models/{name}"
        return made, ["llmshearing", "export", f"{out}/runs/{run}", made]

    def evaluate(name: str) -> tuple[str, list[str]]:
        made = f"{out}/losses/{name}.json"
        what = [f"{out}/models/{name}", "--data", f"{data}/eval"]
        return made, ["llmshearing", "evaluate", *what, "--json", made]

    found = [
        ("gather", "gather text, train a tokenizer", 15, f"{out}/text", gather),
        ("prepare", "tokenise and split by document", 10, data, prepare),
        ("source", "train the source model", 180, *train("source", "source-config")),
        ("export-source", "export the source model", 8, *export("source", "source")),
        ("references", "evaluate the source model", 9, references, measure),
        ("prune", "prune it", 70, *train("prune", "models/source", aim)),
        ("export-pruned", "export the pruned model", 8, *export("prune", "pruned")),
        ("evaluate-pruned", "evaluate the pruned model", 9, *evaluate("pruned")),
        ("continue", "continue at the target shape", 45, *train("continue", "models/pruned", aim)),
        ("export-sheared", "export the sheared model", 8, *export("continue", "sheared")),
        ("evaluate-sheared", "evaluate the sheared model", 9, *evaluate("sheared")),
        ("scratch", "train that shape from scratch", 65, *train("scratch", "models/pruned")),
        ("export-scratch", "export the scratch model", 8, *export("scratch", "scratch")),
        ("evaluate-scratch", "evaluate the scratch model", 9, *evaluate("scratch")),
    ]
    return [
        Step(name, title, seconds, Path(output), (*words, *(extra or {}).get(name, ())))
        for name, title, seconds, output, words in found
    ]
