"""`llmshearing prepare`: raw text to a data tree that training reads.

Killed at any moment, the same command resumes from the finished pieces of work.
"""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

from llmshearing import files
from llmshearing.data.schema import MANIFEST
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError, remedy_of
from llmshearing.preparation import (
    describe,
    fingerprints,
    finish,
    inputs,
    split_selection,
    units,
    workers,
)
from llmshearing.preparation import work_plan as plans
from llmshearing.preparation.recipe import PreparationRecipe
from llmshearing.progress import Progress, duration
from llmshearing.tables import Table
from llmshearing.typed_yaml import load

log = logging.getLogger(__name__)

STATE = "identity"
BOUNDS = "bounds.json"
EARLY_DOCUMENTS = 100_000  # from there on, bad documents stop the run before its end
INTERRUPTED = 130  # exit status after Ctrl-C, as of a shell


def run(config: str, overrides: Sequence[str], shard: tuple[int, int] | None, merge: bool) -> int:
    """Prepare data, print what there was and what the tree holds, and return the exit status.

    `shard`, the index and number of tasks, tokenises only the pieces of one task. `merge` tokenises
    nothing, and writes the tree from the pieces of all tasks.
    """
    began = time.monotonic()
    try:
        plan = plans.make(load(PreparationRecipe, config, overrides))
        overview(plan).show(sys.stderr)
        whole = prepare(plan, shard, merge=merge)
    except KeyboardInterrupt:
        log.warning("interrupted; the same command resumes from here")
        return INTERRUPTED
    except OSError as error:
        if remedy_of(error) is not None:
            raise
        raise UserError(
            f"cannot use {error.filename or 'a file'} ({error.strerror or error}): check it and "
            "its file system, then run the same command again; finished pieces are kept"
        ) from error
    if whole:
        describe.summary(DataTree.open(plan.root)).show()
        log.info("%s is complete after %s", plan.root, duration(time.monotonic() - began))
    return 0


def overview(plan: plans.Plan) -> Table:
    """Return what text there is, what is asked of it, and what it seems to lack."""
    rows, notes, lacking = [], [plan.settings.marks.note], []
    for domain in plan.domains:
        raw = [file for pool in domain.pools.values() for file in pool]
        asked = sum(ask.tokens or 0 for ask in domain.asks["train"])
        short = None if domain.estimate is None else max(0, asked - domain.estimate)
        megabytes = f"{sum(file.size for file in raw) / 1e6:,.1f}"
        counts = ["-" if n is None else f"{n:,}" for n in (domain.estimate, asked or None, short)]
        rows.append([domain.name, f"{len(raw):,}", megabytes, *counts])
        lacking += [domain.name] if short else []
        if not domain.pools["train"]:
            notes.append(f"domain {domain.name}: found no files to train on; only held out")
        if domain.skipped:
            listed = inputs.listed(domain.skipped)
            notes.append(
                f"domain {domain.name}: {len(domain.skipped):,} inputs are skipped{listed}"
            )
    if lacking:
        notes.insert(
            0,
            f"warning: the text of {', '.join(lacking)} seems to be less than the budgets ask for; "
            "the splits take it in the order eval, prune, continue, and missing_tokens="
            f"{plan.recipe.missing_tokens:g} is the part of a budget that may be missing",
        )
    header = ["domain", "files", "MB", "tokens (estimate)", "asked", "lacking (estimate)"]
    return Table("", header, rows, notes)


def prepare(plan: plans.Plan, shard: tuple[int, int] | None = None, *, merge: bool = False) -> bool:
    """Do the work that is left; return whether the tree is complete.

    Raises:
        UserError: the text, the target folder or the disk does not allow it, or another process is
            at the same work.
    """
    if not _begin(plan):
        return True
    with _locked(plan, shard):
        return _prepare(plan, shard, merge)


@contextlib.contextmanager
def _locked(plan: plans.Plan, shard: tuple[int, int] | None) -> Iterator[None]:
    """Keep out a second process that would do the same; tasks of other shards may run."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.lock_directory(plan.work, shared=shard is not None))
        if shard is not None:
            own = plan.work / f"shard-{shard[0] % shard[1]}-of-{shard[1]}"
            stack.enter_context(files.lock_directory(own))
        yield


def _prepare(plan: plans.Plan, shard: tuple[int, int] | None, merge: bool) -> bool:
    bounds = plan.work / BOUNDS  # kept, as the estimates behind them may change with the files
    if bounds.is_file():
        plan = plans.with_bounds(plan, files.read_json(bounds))
    else:
        files.write_json(bounds, plan.bounds)
    processes = plan.recipe.processes or len(os.sched_getaffinity(0))
    while True:
        todo = _todo(plan)
        if merge and todo:
            raise UserError(
                f"found {len(plan.units) - len(todo)} of {len(plan.units)} pieces tokenised in "
                f"{plan.work}, expected all: run the same --shard tasks (again), or run without "
                "--merge"
            )
        if shard:
            todo = [unit for unit in todo if unit.index % shard[1] == shard[0] % shard[1]]
        _tokenise(plan, todo, processes)
        if shard:
            log.info("shard %d/%d is done; when all are, run with --merge", *shard)
            return False
        selected = split_selection.select(plan)
        wider = split_selection.wider_bounds(plan, selected)
        if not wider:
            break
        plan = plans.with_bounds(plan, wider)
        files.write_json(bounds, plan.bounds)
    split_selection.refuse_missing(plan, selected)
    finish.finish(plan, selected, processes)
    return True


def _begin(plan: plans.Plan) -> bool:
    """Take the target folder, or find it complete; return whether work is left."""
    root, state = plan.root, plan.work / STATE
    if (root / MANIFEST).is_file():
        manifest = DataTree.read(root).manifest
        if manifest.get("identity") != plan.identity:
            raise UserError(
                f"found another preparation in {root} (other text, tokenizer or settings), "
                "expected an empty folder: choose another output= or remove it"
            )
        if edited := fingerprints.changed(root, manifest["inputs"], plan.files):
            raise UserError(
                f"found a tree in {root} that was made before {_listed(edited)} changed, expected "
                "the same text: choose another output= or remove it"
            )
        shutil.rmtree(plan.work, ignore_errors=True)
        return False
    if state.is_file():
        if state.read_text(encoding="utf-8") != plan.work_identity:
            raise UserError(
                f"found another, unfinished preparation in {root}, or one of other files: choose "
                "another output= or remove it"
            )
    elif root.exists() and not (
        root.is_dir() and all(path == plan.work for path in root.iterdir())
    ):
        raise UserError(
            f"found something else in {root}, expected an empty folder: choose another output="
        )
    plan.settings.folder.mkdir(parents=True, exist_ok=True)
    files.write_text(state, plan.work_identity)
    return True


def _todo(plan: plans.Plan) -> list[units.Unit]:
    """List the units without a finished file, or with one of a file that has changed since."""
    todo, edited = [], set()
    for unit in plan.units:
        path = plan.settings.folder / unit.file_name
        head = units.UnitFile.read_head(path) if path.is_file() else None
        if head is None or (tuple(head["stamp"]), head["keep"]) != (unit.stamp, unit.keep):
            todo.append(unit)
        if head is not None and tuple(head["stamp"]) != unit.stamp:
            edited.add(unit.source.name)
    if edited:
        log.warning("%s changed since: tokenising the pieces again", _listed(sorted(edited)))
    return todo


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tokenise(plan: plans.Plan, todo: list[units.Unit], processes: int) -> None:
    """Tokenise units, the largest first, and stop if too many documents are bad."""
    if not todo:
        return
    todo = sorted(todo, key=lambda unit: -unit.megabytes)
    bad = seen = tokens = 0
    began = time.monotonic()
    with Progress("tokenise", sum(unit.megabytes for unit in todo), "MB") as progress:
        for summary in workers.results(processes, units.UnitWorker(plan.settings), todo):
            unit = plan.units[summary.index]
            bad += summary.bad
            seen += summary.bad + summary.documents
            tokens += summary.tokens
            rate = tokens / max(time.monotonic() - began, 1e-9)
            progress.advance(unit.megabytes, detail=f"{rate:,.0f} tokens/s")
            if bad > plan.recipe.bad_documents * max(seen, EARLY_DOCUMENTS):
                problems = [
                    {"file": unit.source.name, "line": f"{line} of the piece", "problem": problem}
                    for line, problem in summary.problems
                ]
                raise split_selection.too_many_bad(plan, bad, seen, problems)
    log.info("tokenised %s tokens, %s tokens/s", f"{tokens:,}", f"{rate:,.0f}")
