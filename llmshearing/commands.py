"""What each command does: call one function with the options, and print its result."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from llmshearing.errors import UserError


def quickstart(options: Namespace) -> None:
    """Run the whole path on text found on this machine."""
    from llmshearing.quickstart.run import run

    run(options.out)


def recipes(options: Namespace) -> None:
    """Copy the recipes of this version into a new folder."""
    import shutil

    import llmshearing
    from llmshearing.files import new_directory

    if options.out.exists():
        raise UserError(f"{options.out} exists, expected a new folder: choose another OUT_DIR")
    with new_directory(options.out) as directory:
        shutil.copytree(Path(llmshearing.__file__).parent / "yamls", directory, dirs_exist_ok=True)
    print(options.out)


def schema(options: Namespace) -> None:
    """Print the JSON Schema of recipes, with which editors complete them."""
    import json

    from llmshearing import config
    from llmshearing.preparation import recipe
    from llmshearing.typed_yaml import json_schema

    model = config.Recipe if options.kind == "training" else recipe.PreparationRecipe
    print(json.dumps(json_schema(model), indent=1))


def prepare(options: Namespace) -> int:
    """Turn raw text into rows of token ids."""
    from llmshearing.preparation.prepare import run

    return run(options.recipe, options.overrides, options.shard, options.merge)


def describe(options: Namespace) -> None:
    """Show what prepared data holds, and check it."""
    from llmshearing.preparation.describe import describe as describe_tree

    describe_tree(options.root, options.samples, options.domain)


def validate(options: Namespace) -> None:
    """Report all errors of a recipe and of what it names."""
    from llmshearing.architecture.budget import Budget
    from llmshearing.checkpoints.layout import resumed_checkpoint
    from llmshearing.checkpoints.resume_check import check_fits
    from llmshearing.preflight import resolve

    recipe, inputs = resolve(options.recipe, options.overrides, options.ranks)
    from llmshearing.oneshot_start import after_cut  # after what is refused without torch
    from llmshearing.run_manifest import run_manifest

    table = inputs.source.table
    checkpoint = resumed_checkpoint(recipe.run.directory)
    changes = []
    if checkpoint is not None:
        changes = check_fits(checkpoint, run_manifest(*after_cut(recipe, inputs)))
    print(f"{options.recipe}: no errors")
    if checkpoint is not None:
        print(f"resumes from {checkpoint.name}")
        print(*(f"changed since then: {change}" for change in changes), sep="\n")
    for note in inputs.notes:
        print(f"note: {note}")
    print(f"source {table.source}: {table.parameter_count(table.source):,} parameters")
    if isinstance(inputs.target, Budget):
        print(
            f"target: at most {inputs.target.parameters:,} parameters; the masks choose the shape"
        )
    elif inputs.target is not None:
        count = table.parameter_count(inputs.target)
        print(f"target {inputs.target}: {count:,} parameters, by {recipe.pruning.method}")


def plan(options: Namespace) -> None:
    """Show the memory, time, disk and data that a run needs."""
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


def export(options: Namespace) -> None:
    """Write a run as a Hugging Face directory, and verify it."""
    from llmshearing.export.directory import Format
    from llmshearing.export.export import export as export_run
    from llmshearing.huggingface import hub

    if options.push is not None:
        hub.check_push(options.push)
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
    if options.push is not None:
        print(f"pushed {hub.push(result.directory, options.push)}")


def evaluate(options: Namespace) -> None:
    """Show the held-out loss and perplexity per domain."""
    from llmshearing.evaluation.domain_loss import evaluate as evaluate_domains
    from llmshearing.evaluation.ranks import rank_and_count

    losses = evaluate_domains(
        options.model,
        options.data,
        batch_size=options.batch_size,
        rows=options.rows,
        teacher=options.teacher,
    )
    if rank_and_count()[0] == 0:
        _show(losses, options.json)


def benchmark(options: Namespace) -> None:
    """Show scores on benchmark tasks, by lm-eval."""
    from llmshearing.evaluation import benchmarks
    from llmshearing.tasks.suite import read_suite

    suite = read_suite(options.suite, options.tasks)
    if options.dry_run:
        benchmarks.describe(suite, options.include_path).show()
        return
    scores = benchmarks.benchmark(
        options.model,
        suite,
        batch_size=options.batch_size,
        dtype=options.dtype,
        include=options.include_path,
        documents=options.documents,
        limit=options.limit,
        cache=options.cache,
        run_generated_code=options.run_generated_code,
    )
    _show(scores, options.json)


def throughput(options: Namespace) -> None:
    """Show latency and tokens per second of generation."""
    from llmshearing.evaluation.throughput import measure_throughput

    speeds = measure_throughput(
        options.model,
        options.against,
        batch_sizes=options.batch_sizes,
        prompt=options.prompt,
        new_tokens=options.new_tokens,
        dtype=options.dtype,
    )
    _show(speeds, options.json)


def _show(result: Any, file: Path | None) -> None:
    """Print a result, and write it to a file if one is given."""
    from llmshearing.files import write_json

    result.as_table().show()
    if file is not None:
        write_json(file, result.as_dict())


def reference_loss_measure(options: Namespace) -> None:
    """Measure a model's losses, for dynamic batch loading to aim at."""
    from llmshearing.evaluation.domain_loss import measure_references

    references = measure_references(options.model, options.data, options.batch_size)
    if options.out is None:
        sys.stdout.write(references.to_yaml())
    else:
        references.write(options.out)


def reference_loss_fit(options: Namespace) -> None:
    """Fit losses of another size, by a scaling law per domain."""
    from llmshearing.mixture.scaling import fit_file

    references, notes = fit_file(options.losses, options.parameters)
    sys.stdout.write(references.to_yaml())
    sys.stderr.write(notes)


def importance(options: Namespace) -> None:
    """Score every unit of a model from forward passes."""
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


def teacher_cache(options: Namespace) -> None:
    """Store a teacher's distributions for a run's rows."""
    from llmshearing.caching import CacheSettings, make_cache

    method = "top" if options.top else "sampled"
    settings = CacheSettings(method, options.tokens, options.seed, options.shard_size)
    make_cache(options.recipe, options.overrides, options.out, settings, options.batch_size)
    print(f"train from it with distillation.cache={options.out}")


def search(options: Namespace) -> None:
    """Find the best shape within budgets of parameters, memory or latency."""
    from llmshearing.config import parse_target
    from llmshearing.search.command import Recovery, run
    from llmshearing.search.search import SearchSettings

    importance = options.importance
    settings = SearchSettings(
        candidates=options.candidates,
        values_per_axis=options.values,
        rows=options.rows,
        batch_size=options.batch_size,
        importance=None if importance is None else str(importance.absolute()),
        importance_rows=options.importance_rows,
    )
    target, recovery = parse_target(options.target), None
    if options.recover is not None:
        recovery = Recovery(options.recover, options.finalists)
    given = (options.model, options.data, target, options.out, settings)
    table = run(*given, recovery, options.recovery)
    if table is not None:
        table.show()
        print(f"{options.out}: the table, a plot, and best.yaml, a recipe for the first shape")


def prune_oneshot(options: Namespace) -> None:
    """Cut a model to a shape without training."""
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
        options.model,
        options.out,
        target,
        score,
        method=method,
        form=Format(options.dtype),
        cuts=options.cuts,
    )
    print(f"{made.directory}: {made.parameters:,} parameters, {made.shape}")
    print(f"verified: logits within {made.difference:.1e} of the source's under these gates")


def report(options: Namespace) -> None:
    """Write plots and tables of runs as one HTML page."""
    from llmshearing.reports.page import write_report

    page = write_report(options.runs, options.out)
    print(f"{page}, its plots as PNG in {page.with_suffix('')}/")
