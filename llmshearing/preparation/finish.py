"""The end of a preparation: shards, indexes, and last the manifest."""

import functools
import json
import logging
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from llmshearing import files
from llmshearing.data.schema import (
    FORMAT_VERSION,
    INDEX,
    LOSS,
    MANIFEST,
    SPLITS,
    TOKENIZER_FOLDER,
    columns,
    fingerprint,
)
from llmshearing.errors import UserError
from llmshearing.preparation import (
    fingerprints,
    mds_files,
    packing,
    split_selection,
    splits,
    workers,
)
from llmshearing.preparation import work_plan as plans
from llmshearing.progress import Progress
from llmshearing.quantities import byte_size

log = logging.getLogger(__name__)

BAD_DOCUMENTS = "bad_documents.jsonl"
UNRECORDED = {"output", "processes", "unit_bytes"}  # they do not change the result
PACKAGES = ("llmshearing", "mosaicml-streaming", "numpy", "sentencepiece", "tokenizers")
TOKENIZER_FILES = (
    "tokenizer.model tokenizer.json tokenizer_config.json special_tokens_map.json "
    "chat_template.jinja"
).split()


def finish(
    plan: plans.Plan, selected: dict[str, split_selection.DomainSelection], processes: int
) -> None:
    """Write the tree from finished units; a UserError if a split has no row."""
    streams = _with_rows(
        [
            _stream(plan, domain, pool, cut, selected[domain.name])
            for domain in plan.domains
            for pool, cut in selected[domain.name].cuts
        ]
    )
    digests = {name: one for domain in selected.values() for name, one in domain.digests.items()}
    packed = _pack(plan, streams, processes, fingerprints.combined(digests))
    described: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    for stream, entries in zip(streams, packed, strict=True):
        described[stream.cut.split][stream.domain] = {
            "rows": stream.rows,
            "tokens": stream.rows * stream.sequence_length,
            "documents": stream.documents,
            "dropped_tokens": stream.tokens % stream.sequence_length,
            "fingerprint": fingerprint(entries),
            "chat": LOSS in stream.layout.columns,
            "shards": stream.shards,
            "asked_tokens": stream.cut.asked,
            "lacking_tokens": stream.cut.lacks,
        }
        _write(plan, plan.root / stream.folder / INDEX, mds_files.index_text(entries))
    problems = [problem for domain in selected.values() for problem in domain.problems]
    lines = [f"{json.dumps(problem, ensure_ascii=False)}\n" for problem in problems]
    _write(plan, plan.root / BAD_DOCUMENTS, "".join(lines))
    _write(plan, plan.root / fingerprints.INPUTS, fingerprints.record(plan.files, digests))
    _copy_tokenizer(plan)
    manifest = {
        **_manifest(plan),
        "inputs": fingerprints.combined(digests),
        "splits": {split: domains for split, domains in described.items() if domains},
        "domains": {
            domain.name: {
                "files": sum(map(len, domain.pools.values())),
                "file_bytes": sum(file.size for pool in domain.pools.values() for file in pool),
                **selected[domain.name].counts,
                "repeats_of_held_out_text": selected[domain.name].repeats,
                "skipped": domain.skipped,
            }
            for domain in plan.domains
        },
    }
    _write(plan, plan.root / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(plan.work, ignore_errors=True)


def _stream(
    plan: plans.Plan,
    domain: plans.Domain,
    pool: str,
    cut: splits.Cut,
    selected: split_selection.DomainSelection,
) -> packing.Stream:
    excluded = selected.excluded if pool == "train" else split_selection.NONE
    paths, before, documents = [], [0], 0
    for _, file in split_selection.unit_files(plan, domain.name, pool):
        mask = packing.chosen(file.hashes, cut, excluded)
        documents += int(mask.sum())
        paths.append(file.path)
        before.append(before[-1] + int(file.lengths[mask].sum()))
    length, dtype = plan.recipe.sequence_length, plan.settings.dtype
    layout = mds_files.ShardFormat(
        columns(length, dtype, chat=domain.reads.chat), byte_size(plan.recipe.shard_bytes)
    )
    return packing.Stream(
        domain.name, cut, excluded, tuple(paths), tuple(before), documents, layout
    )


def _with_rows(streams: list[packing.Stream]) -> list[packing.Stream]:
    """Leave out streams without a row that the recipe allows to be empty; refuse others."""
    kept = [stream for stream in streams if stream.rows]
    in_use = {stream.cut.split for stream in kept}
    budgets = {stream.domain for stream in kept if stream.cut.asked}
    empty = [
        stream
        for stream in streams
        if not stream.rows and not (stream.cut.split in in_use and _may_be_empty(stream, budgets))
    ]
    if empty:
        length = streams[0].sequence_length
        listed = "".join(
            f"\n  {stream.folder}: {stream.documents:,} documents, {stream.tokens:,} tokens"
            for stream in empty
        )
        raise UserError(
            f"found less than one row of {length} tokens for {len(empty)} of {len(streams)} splits "
            "of domains: give more text, other shares or budgets under `splits`, or leave the "
            f"domain out; finished pieces are kept{listed}"
        )
    for stream in streams:
        if not stream.rows and stream.cut.asked is None:
            log.warning("%s is left out: earlier budgets take all of its text", stream.folder)
    return kept


def _may_be_empty(stream: packing.Stream, budgets: set[str]) -> bool:
    """Whether its weight is 0, or budgets of earlier splits may take all of its domain's text."""
    shares = stream.cut.asked is None and stream.cut.split != "eval"
    return stream.cut.asked == 0 or (shares and stream.domain in budgets)


def _pack(
    plan: plans.Plan, streams: list[packing.Stream], processes: int, content: str
) -> list[list[dict[str, Any]]]:
    """Write all missing shards; return the index entries of each stream."""
    state, identity = plan.work / "packed", plans.digest([plan.identity, content])
    if not state.is_file() or state.read_text(encoding="utf-8") != identity:
        for split in SPLITS:  # of other rules for the splits, or from before an edit
            shutil.rmtree(plan.root / split, ignore_errors=True)
        files.write_text(state, identity)
    jobs = [
        (number, shard) for number, stream in enumerate(streams) for shard in range(stream.shards)
    ]
    total = sum(stream.rows * stream.layout.row.itemsize for stream in streams)
    small = total < plan.settings.unit_bytes  # starting a process takes longer
    entries: dict[tuple[int, int], dict[str, Any]] = {}
    with Progress("pack", total / 1e6, "MB") as progress:
        pack = functools.partial(_packed, streams, plan.root, plan.work)
        for job, entry in workers.results(processes, pack, jobs, small=small):
            entries[job] = entry
            progress.advance(entry["raw_data"]["bytes"] / 1e6)
    return [[entries[n, shard] for shard in range(one.shards)] for n, one in enumerate(streams)]


def _packed(
    streams: list[packing.Stream], root: Path, work: Path, job: tuple[int, int]
) -> tuple[tuple[int, int], dict[str, Any]]:
    return job, packing.pack(streams[job[0]], job[1], root, work)


def _manifest(plan: plans.Plan) -> dict[str, Any]:
    """Return the part of the manifest that follows from the plan alone."""
    tokenizer = plan.settings.tokenizer
    return {
        "format": FORMAT_VERSION,
        "identity": plan.identity,
        "sequence_length": plan.recipe.sequence_length,
        "token_dtype": plan.settings.dtype,
        "vocabulary": tokenizer.vocabulary,
        "tokenizer": {
            "kind": tokenizer.kind,
            "fingerprint": tokenizer.ids_digest,
            "sha256": tokenizer.fingerprint,
            "file": tokenizer.path.name,
            "bos": plan.settings.marks.text[0],
            "eos": plan.settings.marks.text[1],
        },
        "seed": plan.recipe.seed,
        "config": plan.recipe.model_dump(exclude=UNRECORDED),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def _copy_tokenizer(plan: plans.Plan) -> None:
    """Copy the tokenizer's own files into the tree, so that it can be decoded anywhere."""
    given, folder = Path(plan.recipe.tokenizer), plan.root / TOKENIZER_FOLDER
    copied = [given / name for name in TOKENIZER_FILES] if given.is_dir() else [given]
    folder.mkdir(exist_ok=True)
    for path in copied:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def _write(plan: plans.Plan, path: Path, text: str) -> None:
    """Write a file of the tree; what a kill leaves of it is in the work folder."""
    with files.writing(path, plan.work / f".{path.name}.{os.getpid()}") as file:
        file.write(text.encode())
