"""`llmshearing COMMAND`: the arguments of every command. `commands.py` has what they do.

Commands are imported when one is called, so that `--help` answers at once.
"""

import argparse
import functools
import logging
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import llmshearing
from llmshearing.errors import UserError, exits_on_user_error


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _count(text: str, least: int = 1) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"found {text}, expected {least} or more, below 2^31")
    return int(text)


def _bytes(text: str) -> int:
    from llmshearing.quantities import byte_size  # not at once: it needs pydantic

    try:
        if size := byte_size(text):
            return size
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"found {text}, expected a size such as 64MB")


def _steps(text: str) -> str:
    if not re.fullmatch("0*[1-9][0-9]{0,8}ba", text):
        raise argparse.ArgumentTypeError(f"found {text}, expected steps such as 50ba")
    return text


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected a finite number above 0")
    return value


def _task(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or not 0 <= int(match[1]) <= int(match[2]) or match[2] == "0":
        raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N with I from 0 to N")
    return int(match[1]), int(match[2])


Argument = tuple[tuple[str, ...], dict[str, Any]]


def arg(*names: str, **options: Any) -> Argument:
    """An argument, as `add_argument` takes it; its value is a path unless `type` says otherwise."""
    if not options.keys() & {"type", "action"}:
        options["type"] = _path
    return names, options


MODEL = arg("model", metavar="MODEL", help="a directory, or ORG/NAME[@REVISION] of the hub")
OUT_DIR = arg("out", metavar="OUT_DIR")
RECIPE = (
    arg("recipe", metavar="RECIPE.yaml"),
    arg("overrides", nargs="*", type=str, metavar="key=value"),
)
DTYPE = arg("--dtype", type=str, default="float32", help="float32, bfloat16 or float16")
JSON = arg("--json", metavar="FILE", help="also write the result to this file")


def _batch_size(default: int) -> Argument:
    return arg("--batch-size", type=_count, default=default, metavar="N", help="rows per batch")


Command = tuple[str, str, tuple[Argument, ...]]


def command(name: str, example: str, *arguments: Argument) -> Command:
    """A command: its words, an example of its arguments, and all of them.

    The function in `commands.py` has the same name with underscores; its docstring is the help.
    """
    return name, example, arguments


KINDS = ("training", "preparation")
KIND = arg("kind", type=str, nargs="?", choices=KINDS, default="training")
_seed = functools.partial(_count, least=0)
SEED = arg("--seed", type=_seed, default=0, help="of --method random")
TRAIN = "composer -n 8 -m llmshearing.train RECIPE.yaml key=value"
STAGES: dict[str, list[Command]] = {
    "Start": [
        command(
            "quickstart",
            "--out demo",
            arg("--out", default=Path("quickstart-out"), help="output directory"),
        ),
        command(
            "recipes",
            "yamls",
            arg("out", metavar="OUT_DIR", help="a new folder; recipes expect the name yamls"),
        ),
        command("schema", "preparation", KIND),
    ],
    "Prepare data": [
        command(
            "prepare",
            "yamls/data/redpajama-sample.yaml source=TEXT tokenizer=MODEL output=data/sample",
            *RECIPE,
            arg("--shard", type=_task, metavar="I/N", help="one task of a job array"),
            arg("--merge", action="store_true", help="only pack what the tasks tokenised"),
        ),
        command(
            "describe",
            "data/sample",
            arg("root", metavar="DATA_DIR"),
            arg("--samples", type=_count, default=1, metavar="N", help="rows to show"),
            arg("--domain", type=str, help="show rows of this domain only"),
        ),
    ],
    "Prune and train": [
        command(
            "validate",
            "yamls/prune/tiny-llama-to-half.yaml model.path=MODEL data.root=data/sample",
            *RECIPE,
            arg("--ranks", type=_count, default=1, metavar="N", help="processes (1)"),
        ),
        command(
            "plan",
            "yamls/prune/llama2-7b-to-1.3b.yaml --gpus 8",
            *RECIPE,
            arg("--gpus", type=_count, default=8, metavar="N", help="of the run (8)"),
            arg("--gpu", type=str, metavar="NAME", help="A100-80GB by default; or cpu"),
            arg("--gpu-memory", type=_positive, metavar="GB", help="GiB per GPU, for any GPU"),
            arg("--mfu", type=_positive, metavar="X", help="model FLOPs utilisation, e.g. 0.3"),
            arg("--run", metavar="RUN_DIR", help="take the speed of this run"),
            arg("--sequence-length", type=_count, metavar="T", help="if there is no data yet"),
            JSON,
        ),
        command(
            "importance",
            "MODEL --data data/sample/prune --out importance.safetensors",
            MODEL,
            arg("--data", required=True, metavar="ROOT/prune"),
            arg("--rows", type=_count, default=512, metavar="N", help="rows to read (512)"),
            _batch_size(8),
            arg("--out", required=True, metavar="FILE", help="safetensors file to write"),
        ),
        command(
            "teacher-cache",
            "yamls/continue/sheared-llama-1.3b-distilled.yaml --out data/teacher",
            *RECIPE,
            arg("--out", required=True, metavar="DIR", help="of the cache; resumes there"),
            arg("--tokens", type=_count, default=32, metavar="K", help="ids per position (32)"),
            arg("--top", action="store_true", help="the most probable, not a sample; biased"),
            arg("--seed", type=_seed, default=17, metavar="N", help="of the sample (17)"),
            arg(
                "--shard-size", type=_bytes, default="64MB", metavar="SIZE", help="of files (64MB)"
            ),
            _batch_size(8),
        ),
        command(
            "search",
            "MODEL --data data/sample --target parameters=50M --out out/search",
            MODEL,
            arg("--data", required=True, metavar="ROOT", help="a data tree"),
            arg(
                "--target",
                type=str,
                nargs="+",
                required=True,
                metavar="KEY=VALUE",
                help="parameters=1.3B, memory=4GiB, latency=8ms, minimum.layers=16, ... as in a "
                "recipe's section target",
            ),
            arg("--out", required=True, metavar="DIR", help="for all results; resumes there"),
            arg("--candidates", type=_count, default=64, metavar="N", help="to score (64)"),
            arg("--values", type=_count, default=6, metavar="N", help="sizes per axis (6)"),
            arg("--rows", type=_count, default=4, metavar="N", help="held out per domain (4)"),
            arg("--importance", metavar="FILE", help="scores made by llmshearing importance"),
            arg("--importance-rows", type=_count, default=512, metavar="N", help="if not (512)"),
            arg("--recover", type=_steps, metavar="50ba", help="train the best this long; none"),
            arg("--finalists", type=_count, default=8, metavar="N", help="to train at first (8)"),
            arg(
                "--recovery",
                type=str,
                nargs="+",
                default=[],
                metavar="key=value",
                help="for the recipe of these trainings",
            ),
            _batch_size(8),
        ),
        command(
            "prune-oneshot",
            "MODEL out/half --target hidden=128 layers=6 --importance importance.safetensors",
            MODEL,
            OUT_DIR,
            arg("--target", type=str, nargs="+", required=True, metavar="SIZE=N"),
            arg("--importance", metavar="FILE", help="scores made by llmshearing importance"),
            arg("--method", type=str, help="instead of scores: magnitude, random or spaced"),
            arg("--cuts", type=_count, metavar="K", help="make the first of K cuts to the target"),
            SEED,
            DTYPE,
        ),
        command(
            "reference-loss measure",
            "MODEL --data data/sample/eval --out references.yaml",
            MODEL,
            arg("--data", required=True, metavar="ROOT/eval"),
            _batch_size(16),
            arg("--out", metavar="FILE", help="write the YAML here, not to standard output"),
        ),
        command(
            "reference-loss fit",
            "losses.yaml --parameters 1.3e9",
            arg("losses", metavar="LOSSES.yaml"),
            arg("--parameters", type=_positive, required=True, help="size of the target model"),
        ),
    ],
    "Export and evaluate": [
        command(
            "export",
            "runs/prune out/half",
            arg("run", metavar="RUN_OR_CHECKPOINT"),
            OUT_DIR,
            DTYPE,
            arg("--max-shard-size", type=str, default="5GB", help="of a weight file (5GB)"),
            arg("--tokenizer", metavar="MODEL", help="the run's source by default"),
            arg("--push", type=str, metavar="ORG/NAME", help="also upload it to the hub"),
            arg("--allow-undecided", action="store_true", help="even with undecided masks"),
            arg("--no-verify", action="store_true", help="do not compare logits"),
        ),
        command(
            "evaluate",
            "out/half --data data/sample/eval",
            MODEL,
            arg("--data", required=True, metavar="ROOT/eval"),
            arg("--rows", type=_count, metavar="N", help="per domain at most; all by default"),
            arg("--teacher", metavar="HF_DIR", help="measure the divergence from it too"),
            _batch_size(16),
            JSON,
        ),
        command(
            "benchmark",
            "out/half --suite sheared-llama",
            MODEL,
            arg("--suite", type=str, help="sheared-llama, commonsense, generative or a YAML file"),
            arg("--tasks", type=str, nargs="+", default=[], help="of the suite, or of lm-eval"),
            arg("--include-path", metavar="DIR", help="more task files of lm-eval"),
            arg("--documents", metavar="DIR", help="JSON lines of the tasks, instead of the hub's"),
            arg("--run-generated-code", action="store_true", help="for HumanEval and MBPP"),
            arg("--limit", type=_count, metavar="N", help="documents per task"),
            arg("--cache", metavar="DIR", help="keep answers for the next time"),
            arg("--dry-run", action="store_true", help="print the tasks and stop"),
            arg("--dtype", type=str, default="auto", help="of the weights; as stored by default"),
            _batch_size(16),
            JSON,
        ),
        command(
            "throughput",
            "out/half --against MODEL",
            MODEL,
            arg("--against", metavar="MODEL", help="a model to compare with"),
            arg("--batch-sizes", type=_count, nargs="+", default=[1, 8], help="1 and 8"),
            arg("--prompt", type=_count, default=128, metavar="N", help="tokens (128)"),
            arg("--new-tokens", type=_count, default=64, metavar="N", help="to generate (64)"),
            DTYPE,
            JSON,
        ),
        command(
            "report",
            "runs/prune runs/continue",
            arg("runs", nargs="+", metavar="RUN_DIR"),
            arg("--out", metavar="FILE", help="page or folder; RUN_DIR/report.html by default"),
        ),
    ],
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors end like every other mistake of the user."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message}; see {self.prog} --help")


@exits_on_user_error
def main(arguments: list[str] | None = None) -> int | None:
    """Run one command."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return options.function(options)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options; `key=value` may come before and after them."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(options, "overrides") and all("=" in x and x[0] != "-" for x in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="llmshearing",
        usage="llmshearing COMMAND ...",
        description="Prune a language model to a target shape, recover it and evaluate it.",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"llmshearing {llmshearing.__version__}"
    parser.add_argument("--version", action="version", version=version)
    groups = {
        "": parser.add_subparsers(
            required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog="llmshearing"
        )
    }
    for name, example, arguments in (command for stage in STAGES.values() for command in stage):
        group, _, word = name.rpartition(" ")
        if group not in groups:
            inner = groups[""].add_parser(group, description="Losses for dynamic batch loading.")
            groups[group] = inner.add_subparsers(required=True, metavar="measure|fit")
        function = _function(name)
        sub = groups[group].add_parser(word, description=function.__doc__)
        sub.epilog = f"example: llmshearing {name} {example}"
        sub.set_defaults(function=function)
        for names, options in arguments:
            sub.add_argument(*names, **options)
    return parser


def _function(name: str) -> Callable[[argparse.Namespace], int | None]:
    from llmshearing import commands

    return getattr(commands, re.sub("[- ]", "_", name))


def overview() -> str:
    """The commands by stage, each with an example."""
    lines = []
    for stage, commands in STAGES.items():
        lines += ["", f"{stage}:"]
        for name, example, _ in commands:
            lines.append(f"  {name:<24}{_function(name).__doc__}")
            lines.append(f"      llmshearing {name} {example}")
        if stage == "Prune and train":
            lines += ["  (a run of either stage)", f"      {TRAIN}"]
    return "\n".join([*lines[1:], "", "llmshearing COMMAND --help lists a command's options."])


if __name__ == "__main__":
    sys.exit(main() or 0)
