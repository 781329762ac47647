"""`llmshearing VERB`: reads arguments, calls one function, prints its result. No logic of its own.

Imports stand inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import llmshearing
from llmshearing.errors import UserError, exits_on_user_error

# Options of `evaluate` that one of its forms alone takes: their defaults, and that form.
EVALUATE_OPTIONS = {
    "tasks": ([], "benchmarks"),
    "dry_run": (False, "benchmarks"),
    "include_path": (None, "benchmarks"),
    "limit": (None, "benchmarks"),
    "cache": (None, "benchmarks"),
    "rows": (None, "--data"),
    "against": (None, "--throughput"),
    "batch_sizes": ([1, 8], "--throughput"),
    "prompt": (128, "--throughput"),
    "new_tokens": (64, "--throughput"),
    "dtype": ("float32", "--throughput"),
}
RECIPE_EXAMPLE = "yamls/prune/tiny-llama-to-half.yaml data.root=data/sample"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors end as every other mistake of the user's does."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message}; see {self.prog} --help")


@exits_on_user_error
def main(arguments: list[str] | None = None) -> int | None:
    """Run one verb."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return options.function(options)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The verb's options; `key=value` may stand before them and behind."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(options, "overrides") and all("=" in x and x[0] != "-" for x in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = Parser(
        prog="llmshearing",
        description="Prune a language model to a target shape, recover it, look at the result.",
        epilog="Runs of either stage: composer -n N -m llmshearing.train RECIPE.yaml key=value",
    )
    parser.add_argument(
        "--version", action="version", version=f"llmshearing {llmshearing.__version__}"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = _verb(verbs, "quickstart", quickstart, "the whole path on text found here", "--out demo")
    verb.add_argument("--out", type=_path, default=Path("quickstart-out"), help="output directory")

    verb = _verb(verbs, "recipes", recipes, "copy the recipes of this version", "yamls")
    verb.add_argument(
        "out", type=_path, metavar="OUT_DIR", help="a new folder; paths in the recipes expect yamls"
    )

    verb = _verb(verbs, "schema", schema, "JSON Schema of recipes, for editors", "preparation")
    kinds = ("training", "preparation")
    verb.add_argument("kind", nargs="?", choices=kinds, default="training", help="of recipe")

    _prepare_verbs(verbs)
    verb = _verb(verbs, "validate", validate, "all errors of a recipe at once", RECIPE_EXAMPLE)
    verb.add_argument("recipe", type=_path)
    verb.add_argument("overrides", nargs="*", metavar="key=value")
    verb.add_argument("--ranks", type=_count, default=1, metavar="N", help="of the run; default 1")

    verb = _verb(
        verbs, "plan", plan, "memory, time, disk and data of a run", f"{RECIPE_EXAMPLE} --gpus 8"
    )
    _plan_arguments(verb)

    verb = _verb(
        verbs, "export", export, "a run as a Hugging Face directory", "runs/prune out/half"
    )
    verb.add_argument("run", type=_path, metavar="RUN_OR_CHECKPOINT")
    verb.add_argument("out", type=_path, metavar="OUT_DIR")
    verb.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    verb.add_argument("--max-shard-size", default="5GB", help="of a weight file; default 5GB")
    verb.add_argument("--tokenizer", type=_path, metavar="DIR", help="default: the run's source")
    verb.add_argument(
        "--allow-undecided", action="store_true", help="also where masks have not decided"
    )
    verb.add_argument(
        "--no-verify", action="store_true", help="do not load it and compare its logits"
    )

    _evaluate_verb(verbs)
    _reference_loss_verbs(verbs)
    verb = _verb(
        verbs,
        "importance",
        importance,
        "scores of a model's units from forward passes",
        "MODEL --data data/sample/prune --out importance.safetensors",
    )
    verb.add_argument("model", type=_path, metavar="HF_DIR")
    verb.add_argument("--data", type=_path, required=True, metavar="ROOT/prune")
    verb.add_argument("--rows", type=_count, default=512, help="rows of the split to read")
    verb.add_argument("--batch-size", type=_count, default=8)
    verb.add_argument("--out", type=_path, required=True, help="safetensors file to write")

    verb = _verb(
        verbs,
        "prune-oneshot",
        prune_oneshot,
        "cut a model to a shape without training",
        "MODEL out/half --target hidden=128 layers=6 --importance importance.safetensors",
    )
    verb.add_argument("model", type=_path, metavar="HF_DIR")
    verb.add_argument("out", type=_path, metavar="OUT_DIR")
    verb.add_argument("--target", nargs="+", required=True, metavar="SIZE=N")
    verb.add_argument("--importance", type=_path, help="scores made by llmshearing importance")
    verb.add_argument("--method", help="instead of scores: magnitude, random or spaced")
    verb.add_argument("--seed", type=_seed, default=0, help="of --method random")
    verb.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")

    verb = _verb(verbs, "report", report, "plots and tables as one HTML page", "runs/prune")
    verb.add_argument("runs", type=_path, nargs="+", metavar="RUN_DIR")
    verb.add_argument("--out", type=_path, help="page or folder; default RUN_DIR/report.html")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _count(text: str, least: int = 1) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"found {text}, expected {least} or more, below 2^31")
    return int(text)


def _seed(text: str) -> int:
    return _count(text, 0)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected a finite number above 0")
    return value


def _evaluate_verb(verbs) -> None:
    verb = _verb(
        verbs,
        "evaluate",
        evaluate,
        "loss per domain, benchmark scores, or speed",
        "out/half --data data/sample/eval",
    )
    verb.add_argument("model", type=_path, metavar="HF_DIR")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--data", type=_path, metavar="ROOT/eval", help="loss per domain of a split")
    kind.add_argument("--suite", help="benchmarks: sheared-llama, or the path of a YAML file")
    kind.add_argument("--throughput", action="store_true", help="latency and tokens a second")
    verb.set_defaults(**{name: default for name, (default, _) in EVALUATE_OPTIONS.items()})
    verb.add_argument("--tasks", nargs="+", help="some of the suite's; else lm-eval's")
    verb.add_argument("--dry-run", action="store_true", help="print what the benchmarks would be")
    verb.add_argument("--include-path", type=_path, metavar="DIR", help="lm-eval task files")
    verb.add_argument("--limit", type=_count, help="documents of each task, for a quick look")
    verb.add_argument("--cache", type=_path, metavar="DIR", help="keep answers for a next time")
    verb.add_argument("--rows", type=_count, help="rows of each domain at most; default all")
    verb.add_argument("--against", type=_path, metavar="HF_DIR", help="a model to time beside it")
    verb.add_argument("--batch-sizes", type=_count, nargs="+", help="to time; default 1 and 8")
    verb.add_argument("--prompt", type=_count, help="tokens of a prompt to time; default 128")
    verb.add_argument("--new-tokens", type=_count, help="tokens to generate and time; default 64")
    verb.add_argument("--dtype", help="of the weights to time; default float32")
    verb.add_argument("--batch-size", type=_count, default=16)
    verb.add_argument("--json", type=_path, help="also write the result here")


def _reference_loss_verbs(verbs) -> None:
    about = "the losses that dynamic batch loading aims at"
    group = verbs.add_parser("reference-loss", help=about, description=about)
    kinds = group.add_subparsers(dest="kind", required=True, metavar="measure|fit")
    verb = _verb(
        kinds, "measure", measure_reference, "a model's own losses", "out/half --data sample/eval"
    )
    verb.add_argument("model", type=_path, metavar="HF_DIR")
    verb.add_argument("--data", type=_path, required=True, metavar="ROOT/eval")
    verb.add_argument("--batch-size", type=_count, default=16)
    verb.add_argument("--out", type=_path, help="write the YAML here, not to standard output")

    verb = _verb(
        kinds, "fit", fit_reference, "a scaling law per domain", "losses.yaml --parameters 1.3e9"
    )
    verb.add_argument("losses", type=_path, metavar="LOSSES.yaml")
    verb.add_argument(
        "--parameters", type=_positive, required=True, help="size of the target model"
    )


def _prepare_verbs(verbs) -> None:
    verb = _verb(
        verbs,
        "prepare",
        prepare,
        "raw text to rows of token ids",
        "yamls/data/redpajama-sample.yaml source=TEXT tokenizer=MODEL output=data/sample",
    )
    verb.add_argument("recipe", type=_path)
    verb.add_argument("overrides", nargs="*", metavar="key=value")
    verb.add_argument("--shard", type=_task, metavar="I/N", help="one task of a job array")
    verb.add_argument("--merge", action="store_true", help="only pack what the tasks tokenised")

    verb = _verb(verbs, "describe", describe, "what prepared data holds, checked", "data/sample")
    verb.add_argument("root", type=_path, metavar="DATA_DIR")
    verb.add_argument("--samples", type=_count, default=1, metavar="N", help="rows to show")
    verb.add_argument("--domain", help="show rows of this domain only")


def _task(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or not 0 <= int(match[1]) <= int(match[2]) or match[2] == "0":
        raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N with I from 0 to N")
    return int(match[1]), int(match[2])


def _plan_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", type=_path)
    verb.add_argument("overrides", nargs="*", metavar="key=value")
    verb.add_argument("--gpus", type=_count, default=8, metavar="N", help="of the run; default 8")
    verb.add_argument("--gpu", metavar="NAME", help="default A100-80GB; cpu plans for processes")
    verb.add_argument("--gpu-memory", type=_positive, metavar="GB", help="GiB of each, for any GPU")
    verb.add_argument(
        "--mfu", type=_positive, metavar="X", help="model FLOPs utilisation, e.g. 0.3"
    )
    verb.add_argument("--run", type=_path, metavar="RUN_DIR", help="take the speed of this run")
    verb.add_argument("--sequence-length", type=_count, metavar="T", help="where no data tells it")
    verb.add_argument("--json", type=_path, metavar="FILE", help="also write the numbers here")


def _verb(verbs, name, run, summary, example) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=summary)
    verb.epilog = f"example: {verb.prog} {example}"
    verb.set_defaults(function=run)
    return verb


def quickstart(options: argparse.Namespace) -> None:
    """The whole path on text found on this machine."""
    from llmshearing.quickstart.run import run

    run(options.out)


def recipes(options: argparse.Namespace) -> None:
    """Copy the recipes out of the package."""
    import shutil

    from llmshearing.files import new_directory

    if options.out.exists():
        raise UserError(f"{options.out} exists, expected a new folder: choose another OUT_DIR")
    with new_directory(options.out) as directory:
        shutil.copytree(Path(llmshearing.__file__).parent / "yamls", directory, dirs_exist_ok=True)
    print(options.out)


def schema(options: argparse.Namespace) -> None:
    """Print the JSON Schema of a kind of recipe."""
    import json

    from llmshearing import config
    from llmshearing.preparation import recipe
    from llmshearing.typed_yaml import json_schema

    model = config.Recipe if options.kind == "training" else recipe.Recipe
    print(json.dumps(json_schema(model), indent=1))


def prepare(options: argparse.Namespace) -> int:
    """Prepare data for training."""
    from llmshearing.preparation.prepare import run

    return run(options.recipe, options.overrides, options.shard, options.merge)


def describe(options: argparse.Namespace) -> None:
    """Print and check what prepared data holds."""
    from llmshearing.preparation.describe import describe as describe_tree

    describe_tree(options.root, options.samples, options.domain)


def validate(options: argparse.Namespace) -> None:
    """Check a recipe and what it names."""
    from llmshearing.architecture.budget import Budget
    from llmshearing.preflight import resolve

    _, inputs = resolve(options.recipe, options.overrides, options.ranks)
    table = inputs.source.table
    print(f"{options.recipe}: no errors")
    for note in inputs.notes:
        print(f"note: {note}")
    print(f"source {table.source}: {table.parameter_count(table.source):,} parameters")
    if isinstance(inputs.target, Budget):
        print(
            f"target: at most {inputs.target.parameters:,} parameters; the masks choose the shape"
        )
    elif inputs.target is not None:
        print(f"target {inputs.target}: {table.parameter_count(inputs.target):,} parameters")


def plan(options: argparse.Namespace) -> None:
    """What a run will need."""
    from llmshearing.files import write_json
    from llmshearing.planning.devices import device_of
    from llmshearing.planning.plan import Machine, make_plan
    from llmshearing.planning.text import as_dict, show

    device = device_of(options.gpu, options.gpu_memory)
    planned = make_plan(
        options.recipe,
        options.overrides,
        Machine(device, options.gpus),
        mfu=options.mfu,
        run=options.run,
        sequence_length=options.sequence_length,
    )
    show(planned)
    if options.json is not None:
        write_json(options.json, as_dict(planned))


def export(options: argparse.Namespace) -> None:
    """Write and verify a Hugging Face directory."""
    from llmshearing.export.directory import Format
    from llmshearing.export.export import export as export_run

    result = export_run(
        options.run,
        options.out,
        Format(options.dtype, options.max_shard_size),
        verify=not options.no_verify,
        allow_undecided=options.allow_undecided,
        tokenizer=options.tokenizer,
    )
    print(f"{result.directory}: {result.parameters:,} parameters, {result.shape}")
    for axis, count in result.undecided.items():
        if count:
            print(f"undecided: {count:,} {axis} units; those of the highest score were kept")
    if result.difference is None:
        print("not verified")
    else:
        print(f"verified: logits within {result.difference:.1e} of the gated model's")


def evaluate(options: argparse.Namespace) -> None:
    """Loss per domain, benchmark scores, or speed."""
    from llmshearing.evaluation.ranks import rank_and_count
    from llmshearing.files import write_json

    forms = {"--data": _domain_losses, "--throughput": _speed, "benchmarks": _benchmarks}
    form = "--data" if options.data else "--throughput" if options.throughput else "benchmarks"
    _refuse_options_of_others(options, form)
    result = forms[form](options)
    if result is None or rank_and_count()[0] != 0:
        return
    result.as_table().show()
    if options.json is not None:
        write_json(options.json, result.as_dict())


def _refuse_options_of_others(options: argparse.Namespace, form: str) -> None:
    """Raise where an option was given that this form of `evaluate` would not look at."""
    for name, (default, its_form) in EVALUATE_OPTIONS.items():
        if its_form != form and getattr(options, name) != default:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"evaluate: found {option}, which is for {its_form}, not for {form}")


def _domain_losses(options: argparse.Namespace) -> Any:
    from llmshearing.evaluation.domain_loss import evaluate as evaluate_domains

    return evaluate_domains(
        options.model, options.data, batch_size=options.batch_size, rows=options.rows
    )


def _speed(options: argparse.Namespace) -> Any:
    from llmshearing.evaluation.throughput import measure_throughput

    return measure_throughput(
        options.model,
        options.against,
        batch_sizes=options.batch_sizes,
        prompt=options.prompt,
        new_tokens=options.new_tokens,
        dtype=options.dtype,
    )


def _benchmarks(options: argparse.Namespace) -> Any:
    from llmshearing.evaluation import benchmarks

    suite = benchmarks.read_suite(options.suite, options.tasks)
    if options.dry_run:
        benchmarks.describe(suite, options.include_path).show()
        return None
    return benchmarks.benchmark(
        options.model,
        suite,
        batch_size=options.batch_size,
        include=options.include_path,
        limit=options.limit,
        cache=options.cache,
    )


def measure_reference(options: argparse.Namespace) -> None:
    """A model's held-out losses, as a file that a recipe takes."""
    from llmshearing.evaluation.reference_loss import measure_references

    references = measure_references(options.model, options.data, options.batch_size)
    if options.out is None:
        sys.stdout.write(references.to_yaml())
    else:
        references.write(options.out)


def fit_reference(options: argparse.Namespace) -> None:
    """Reference losses of a size; residuals and warnings go to standard error."""
    from llmshearing.mixture.scaling import fit_file

    references, notes = fit_file(options.losses, options.parameters)
    sys.stdout.write(references.to_yaml())
    sys.stderr.write(notes)


def importance(options: argparse.Namespace) -> None:
    """Score every unit, for masks that start from it and for one-shot pruning."""
    from llmshearing.evaluation.score_units import measure_importance

    scores = measure_importance(
        options.model,
        options.data,
        rows=options.rows,
        batch_size=options.batch_size,
        out=options.out,
    )
    for axis, score in scores.items():
        print(f"{axis.value:<14}{' x '.join(map(str, score.shape)):>12} scores")
    print(options.out)


def prune_oneshot(options: argparse.Namespace) -> None:
    """Keep the units of highest score, and write the directory."""
    from llmshearing.config import parse_target
    from llmshearing.export import oneshot
    from llmshearing.export.directory import Format

    if (options.importance is None) == (options.method is None):
        raise UserError("expected one of --importance FILE and --method NAME")
    target = parse_target(options.target)
    if options.importance is not None:
        score, method = oneshot.from_file(options.importance), "activation"
    else:
        score, method = oneshot.scorer(options.method, options.seed), options.method
    made = oneshot.prune_oneshot(
        options.model, options.out, target, score, method=method, form=Format(options.dtype)
    )
    print(f"{made.directory}: {made.parameters:,} parameters, {made.shape}")
    print(f"verified: logits within {made.difference:.1e} of the source's under these gates")


def report(options: argparse.Namespace) -> None:
    """Write the report page."""
    from llmshearing.reports.page import write_report

    page = write_report(options.runs, options.out)
    print(f"{page}, its plots as PNG in {page.with_suffix('')}/")


if __name__ == "__main__":
    sys.exit(main() or 0)
