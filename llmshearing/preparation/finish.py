"""The end of a preparation: counts, cuts, shards, indexes, and at last the manifest."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llmshearing.data.schema import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    TOKENIZER_FOLDER,
    fingerprint,
)
from llmshearing.errors import UserError
from llmshearing.preparation import (
    fingerprints,
    mds_files,
    packing,
    selection,
    splits,
    units,
    workers,
)
from llmshearing.preparation import recipe as recipes
from llmshearing.preparation import work_plan as plans

log = logging.getLogger(__name__)

BAD_DOCUMENTS = "bad_documents.jsonl"
UNRECORDED = ("output", "processes", "unit_bytes")  # they do not change the result
PACKAGES = ("llmshearing", "mosaicml-streaming", "numpy", "sentencepiece", "tokenizers")


def finish(
    plan: plans.Plan, selected: dict[str, selection.DomainSelection], processes: int
) -> None:
    """Make the tree out of finished units and what each split takes of them.

    Raises:
        UserError: a split is empty, or the disk is full.
    """
    streams = [
        _stream(plan, domain, pool, cut, selected[domain.name])
        for domain in plan.domains
        for pool, cut in selected[domain.name].cuts
    ]
    _refuse_empty(streams)
    digests = {name: one for domain in selected.values() for name, one in domain.digests.items()}
    notes = _pack(plan, streams, processes, fingerprints.combined(digests))
    _write_tree(plan, streams, notes, selected, digests)


def _stream(
    plan: plans.Plan,
    domain: plans.Domain,
    pool: str,
    cut: splits.Cut,
    chosen: selection.DomainSelection,
) -> packing.Stream:
    excluded = chosen.excluded if pool == "train" else selection.NONE
    paths, before, documents = [], [0], 0
    for _, file in selection.unit_files(plan, domain.name, pool):
        mask = packing.chosen(file.hashes, cut.begin, cut.end, excluded)
        documents += int(mask.sum())
        paths.append(file.path)
        before.append(before[-1] + int(file.lengths[mask].sum()))
    layout = mds_files.ShardFormat(
        plan.recipe.sequence_length,
        plan.settings.dtype,
        domain.chat,
        recipes.byte_size(plan.recipe.shard_bytes),
    )
    return packing.Stream(
        cut.split, domain.name, tuple(paths), tuple(before), documents, cut.begin, cut.end,
        excluded, layout,
    )  # fmt: skip


def _refuse_empty(streams: list[packing.Stream]) -> None:
    empty = [
        f"\n  {stream.split} of {stream.domain}: {stream.documents:,} documents, "
        f"{stream.tokens:,} tokens"
        for stream in streams
        if not stream.rows
    ]
    if empty:
        length = streams[0].layout.sequence_length
        raise UserError(
            f"found less than one row of {length} tokens for {len(empty)} of {len(streams)} splits "
            "of domains: give more text, other shares or budgets under `splits`, or leave the "
            f"domain out; what is tokenised is kept{''.join(empty)}"
        )


def _pack(plan: plans.Plan, streams: list[packing.Stream], processes: int, content: str) -> Path:
    """Write all shards that are not yet there; give the folder of the notes on them."""
    notes = plan.work / f"packed-{plans.digest([plan.identity, content])[:16]}"
    if not notes.is_dir():  # the first time, or after other rules for the splits or an edit
        for split in SPLITS:
            shutil.rmtree(plan.root / split, ignore_errors=True)
        notes.mkdir()
    jobs = [
        (number, shard) for number, stream in enumerate(streams) for shard in range(stream.shards)
    ]
    about = (streams, plan.root, notes)
    total = sum(stream.rows * stream.layout.row.itemsize for stream in streams)
    small = total < plan.settings.unit_bytes  # starting a process takes longer
    progress = workers.Progress("packing", total)
    for rows, size in workers.results(processes, _packer, about, jobs, small=small):
        progress.add(size, rows * plan.recipe.sequence_length)
    progress.close()
    return notes


def _packer(
    about: tuple[list[packing.Stream], Path, Path],
) -> Callable[[tuple[int, int]], tuple[int, int]]:
    return partial(_pack_one, *about)


def _pack_one(
    streams: list[packing.Stream], root: Path, notes: Path, job: tuple[int, int]
) -> tuple[int, int]:
    return packing.pack(streams[job[0]], job[1], root, notes)


def _write_tree(
    plan: plans.Plan,
    streams: list[packing.Stream],
    notes: Path,
    selected: dict[str, selection.DomainSelection],
    digests: dict[str, str],
) -> None:
    described: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    for stream in streams:
        entries = [packing.entry(stream, index, notes) for index in range(stream.shards)]
        folder = plan.root / stream.split / stream.domain
        cuts = selected[stream.domain].cuts
        cut = next(cut for _, cut in cuts if cut.split == stream.split)
        described[stream.split][stream.domain] = {
            "rows": stream.rows,
            "tokens": stream.rows * stream.layout.sequence_length,
            "documents": stream.documents,
            "dropped_tokens": stream.tokens % stream.layout.sequence_length,
            "fingerprint": fingerprint(entries),
            "chat": stream.layout.chat,
            "shards": stream.shards,
            "asked_tokens": cut.asked,
            "lacking_tokens": cut.lacks,
        }
        _write(plan, folder / "index.json", mds_files.index_text(entries))
    problems = [problem for domain in selected.values() for problem in domain.problems]
    _write(
        plan,
        plan.root / BAD_DOCUMENTS,
        "".join(f"{json.dumps(p, ensure_ascii=False)}\n" for p in problems),
    )
    _write(plan, plan.root / fingerprints.INPUTS, fingerprints.record(plan.stamps, digests))
    _copy_tokenizer(plan)
    manifest = {
        "format": FORMAT_VERSION,
        "identity": plan.identity,
        "inputs": fingerprints.combined(digests),
        "sequence_length": plan.recipe.sequence_length,
        "token_dtype": plan.settings.dtype,
        "vocabulary": plan.tokenizer.vocabulary,
        "tokenizer": {
            "kind": plan.tokenizer.kind,
            "fingerprint": plan.tokenizer.fingerprint,
            "file": plan.tokenizer.path.name,
            "bos": plan.settings.bos,
            "eos": plan.settings.eos,
        },
        "seed": plan.recipe.seed,
        "splits": {split: domains for split, domains in described.items() if domains},
        "domains": {
            domain.name: _described(domain, selected[domain.name]) for domain in plan.domains
        },
        "config": _config(plan.recipe),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    _write(plan, plan.root / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(plan.work, ignore_errors=True)


def _described(domain: plans.Domain, selected: selection.DomainSelection) -> dict[str, Any]:
    return {
        "files": sum(map(len, domain.pools.values())),
        "file_bytes": sum(file.size for pool in domain.pools.values() for file in pool),
        **selected.counts,
        "repeats_of_held_out_text": selected.repeats,
        "skipped": domain.skipped,
    }


def _config(recipe: recipes.Recipe) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items() if key not in UNRECORDED}


def _copy_tokenizer(plan: plans.Plan) -> None:
    """Put the tokenizer's own files into the tree, so that it can be decoded anywhere."""
    given, folder = Path(plan.recipe.tokenizer), plan.root / TOKENIZER_FOLDER
    names = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json",
             "special_tokens_map.json", "chat_template.jinja")  # fmt: skip
    copied = (
        [given / name for name in names if (given / name).is_file()] if given.is_dir() else [given]
    )
    try:
        folder.mkdir(exist_ok=True)
        for path in copied:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror}): make room and run again"
        ) from None


def _write(plan: plans.Plan, path: Path, text: str) -> None:
    """Write a file whole or not at all; what a kill leaves of it goes with the folder of the work.

    Raises:
        UserError: the file system refuses.
    """
    with units.writing(plan.work / f".{path.name}.{os.getpid()}", path) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
