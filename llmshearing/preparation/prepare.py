"""Raw text to a data tree that training reads.

    python data_prep/prepare.py CONFIG.yaml key=value
    python data_prep/prepare.py CONFIG.yaml key=value --shard 3/64   # one task of a job array
    python data_prep/prepare.py CONFIG.yaml key=value --merge        # after all of them

Killed at any moment, the same command goes on from the finished pieces of work.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llmshearing import files
from llmshearing.data.schema import MANIFEST
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError, exits_on_user_error
from llmshearing.preparation import fingerprints, finish, selection, tables, units, workers
from llmshearing.preparation import recipe as recipes
from llmshearing.preparation import work_plan as plans

log = logging.getLogger(__name__)

STATE = "identity"
BOUNDS = "bounds.json"
EARLY_DOCUMENTS = 100_000  # from there on, bad documents stop the run before its end


def prepare(plan: plans.Plan, shard: tuple[int, int] | None = None, *, merge: bool = False) -> bool:
    """Do the work that is left.

    Args:
        plan: the preparation.
        shard: tokenise only the units of one task out of several, and stop.
        merge: tokenise nothing; all units have to be there.

    Returns:
        Whether the tree is whole.

    Raises:
        UserError: the text, the target folder or the disk does not allow it.
    """
    if not _begin(plan):
        return True
    bounds = plan.work / BOUNDS  # of the estimate at first; kept, as it may follow other files
    if bounds.is_file():
        plan = plans.with_bounds(plan, json.loads(bounds.read_text(encoding="utf-8")))
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
        selected = selection.select(plan)
        wider = selection.wider_bounds(plan, selected)
        if not wider:
            break
        plan = plans.with_bounds(plan, wider)
        files.write_json(bounds, plan.bounds)
    selection.refuse_missing(plan, selected)
    finish.finish(plan, selected, processes)
    return True


def _begin(plan: plans.Plan) -> bool:
    """Take the target folder, or see that it is done; say whether work is left."""
    root, state = plan.root, plan.work / STATE
    if (root / MANIFEST).is_file():
        tree = DataTree.read(root)
        if tree.manifest.get("identity") != plan.identity:
            raise UserError(
                f"found another preparation in {root} (other text, tokenizer or settings), "
                "expected an empty folder: choose another output= or remove it"
            )
        if edited := fingerprints.changed(root, tree.manifest["inputs"], plan.paths):
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
    elif root.exists() and not _only_work(root, plan.work):
        raise UserError(
            f"found something else in {root}, expected an empty folder: choose another output="
        )
    try:
        plan.settings.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(state, plan.work_identity)
    except OSError as error:
        raise UserError(
            f"cannot write to {root} ({error.strerror}): choose another output="
        ) from None
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


def _only_work(root: Path, work: Path) -> bool:
    return root.is_dir() and all(path == work for path in root.iterdir())


def _tokenise(plan: plans.Plan, todo: list[units.Unit], processes: int) -> None:
    """Tokenise units, the largest first, and stop where too many documents are bad.

    Raises:
        UserError: a file cannot be read, or too many documents are bad.
    """
    sizes = {unit.index: plans.size(unit, plan.settings.unit_bytes) for unit in todo}
    todo = sorted(todo, key=lambda unit: -sizes[unit.index])
    progress = workers.Progress("tokenising", sum(sizes.values()))
    bad = seen = 0
    for summary in workers.results(processes, _worker, plan.settings, todo):
        unit = plan.units[summary.index]
        progress.add(sizes[unit.index], summary.tokens)
        bad += summary.bad
        seen += summary.bad + summary.documents
        if bad > plan.recipe.bad_documents * max(seen, EARLY_DOCUMENTS):
            problems = [
                {"file": unit.source.name, "line": f"{line} of the piece", "problem": problem}
                for line, problem in summary.problems
            ]
            raise selection.too_many_bad(plan, bad, seen, problems)
    if todo:
        progress.close()


def _worker(settings: units.UnitSettings) -> Callable[[units.Unit], units.UnitSummary]:
    return units.UnitWorker(settings).run


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected i/n such as 0/64") from None
    if not 0 <= index <= count or count < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected i/n with i from 0 to n")
    return index, count


@exits_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare data as the command line says."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description="Raw text to a data tree.")
    parser.add_argument("config", help="a recipe, see yamls/data/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override the recipe")
    parser.add_argument("--shard", type=_shard, metavar="i/n", help="one task of a job array")
    parser.add_argument("--merge", action="store_true", help="only pack what the shards tokenised")
    given = parser.parse_args(arguments)
    begin = time.monotonic()
    plan = plans.make(recipes.load(given.config, given.overrides))
    sys.stderr.write(tables.before(plan))
    try:
        whole = prepare(plan, given.shard, merge=given.merge)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command goes on from here\n")
        return 130
    if whole:
        sys.stdout.write(tables.after(DataTree.open(plan.root)))
        sys.stdout.flush()
        sys.stderr.write(
            f"{plan.root} is whole after {workers.duration(time.monotonic() - begin)}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
