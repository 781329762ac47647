"""The end of a preparation: counts, cuts, shards, indexes, and at last the manifest."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
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
    inputs,
    mds_files,
    packing,
    sources,
    splits,
    units,
    workers,
)
from llmshearing.preparation import recipe as recipes
from llmshearing.preparation import work_plan as plans

log = logging.getLogger(__name__)

BAD_DOCUMENTS = "bad_documents.jsonl"
SHOWN = 5  # bad documents shown in a message
NONE = np.zeros(0, np.uint64)
UNRECORDED = ("output", "processes", "unit_bytes")  # they do not change the result
PACKAGES = ("llmshearing", "mosaicml-streaming", "numpy", "sentencepiece", "tokenizers")


@dataclass
class Held:
    """What the units of a domain hold, added up.

    Attributes:
        counts: lines, documents, tokenised documents, their tokens and bytes, bad and empty ones.
        tokens: tokens by bucket of hashes and by pool. [buckets]
        problems: file, line and problem of bad documents.
        files: bytes read and lost, and good documents, by file.
        values: values found in the fields of `where`, as JSON.
    """

    counts: dict[str, int]
    tokens: dict[str, np.ndarray]
    problems: list[dict[str, Any]]
    files: dict[str, Counter[str]]
    values: dict[str, set[str]]
    duplicates: int = 0


def finish(plan: plans.Plan, processes: int) -> None:
    """Make the tree out of finished units.

    Raises:
        UserError: too many documents are bad, a split is empty, or the disk is full.
    """
    excluded = _held_out(plan)
    held = {domain.name: _held(plan, domain, excluded) for domain in plan.domains}
    bad = sum(domain.counts["bad"] for domain in held.values())
    total = bad + sum(domain.counts["documents"] for domain in held.values())
    if bad > plan.recipe.bad_documents * total:
        problems = [problem for domain in held.values() for problem in domain.problems]
        raise too_many_bad(plan, bad, total, problems)
    _refuse_unreadable(plan, held)
    _refuse_unmatched(plan, held)
    cuts = {domain.name: _cuts(domain, held[domain.name]) for domain in plan.domains}
    streams = [
        _stream(plan, domain, pool, cut, excluded)
        for domain in plan.domains
        for pool, cut in cuts[domain.name]
    ]
    _refuse_empty(streams)
    digests = _digests(plan)
    notes = _pack(plan, streams, processes, fingerprints.combined(digests))
    _write_tree(plan, streams, notes, held, cuts, digests)


def too_many_bad(
    plan: plans.Plan, bad: int, total: int, problems: list[dict[str, Any]]
) -> UserError:
    """Say which documents are bad and what to do."""
    told = [p for p in problems if p["problem"] != units.EMPTY][:SHOWN]
    listed = "\n".join(f"  {p['file']}:{p['line']}: {p['problem']}" for p in told)
    return UserError(
        f"found {bad:,} bad of {total:,} documents, expected at most "
        f"{plan.recipe.bad_documents:.2%} (bad_documents): mend them or allow more\n{listed}"
    )


def _refuse_unreadable(plan: plans.Plan, held: dict[str, Held]) -> None:
    lost = {}
    for domain in held.values():
        first = {p["file"]: p for p in reversed(domain.problems) if p["problem"] != units.EMPTY}
        for name, file in domain.files.items():
            part = file["bad_bytes"] / max(1, file["read_bytes"])
            if part > plan.recipe.bad_bytes or (part and not file["documents"]):
                bad = first.get(name, {"line": "?", "problem": "not listed"})
                lost[name] = f"{part:.1%} is lost, first at line {bad['line']}: {bad['problem']}"
    if lost:
        raise UserError(
            f"found too many bytes in bad documents in {len(lost):,} files, expected at most "
            f"{plan.recipe.bad_bytes:.1%} of each file (bad_bytes) and some good documents: "
            f"repair or remove the files{inputs.listed(lost)}"
        )


def _refuse_unmatched(plan: plans.Plan, held: dict[str, Held]) -> None:
    problems = [
        f"\n  domains.{domain.name}.where: {problem}"
        for domain in plan.domains
        for problem in _unmatched(domain.reads, held[domain.name])
    ]
    if problems:
        raise UserError(
            "found filters that match nothing, expected values that occur, in quotes where they "
            f"are text: correct `where`{''.join(problems)}"
        )


def _unmatched(reads: sources.Reads, held: Held) -> list[str]:
    problems = []
    for path, wanted in reads.where:
        name, values = ".".join(path), held.values[".".join(path)]
        if missing := [value for value in wanted if value not in values]:
            others = sorted(values.difference(wanted))[: sources.EXAMPLES]
            bools = " (YAML reads yes, no, on and off as true or false: quote them)"
            problems.append(
                f"no document has `{name}` equal to {' or '.join(missing)}"
                f"{bools if {'true', 'false'} & set(missing) else ''}; other values are "
                f"{', '.join(others) or 'none'}{' (no such field)' if others == ['null'] else ''}"
            )
    if reads.where and not problems and not held.counts["documents"] + held.counts["bad"]:
        problems.append("no document passes all of the filters")
    return problems


def _files(plan: plans.Plan, domain: str, pool: str) -> Iterator[tuple[units.Unit, units.UnitFile]]:
    for unit in plan.units:
        if unit.domain == domain and unit.pool == pool:
            path = plan.settings.folder / unit.file_name
            yield unit, units.UnitFile.open(path, plan.settings.dtype)


def _digests(plan: plans.Plan) -> dict[str, str]:
    """Put together the digests of the raw files from their units'; domains may share a file."""
    chunks: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for domain in plan.domains:
        for pool in domain.pools:
            for unit, file in _files(plan, domain.name, pool):
                chunks[unit.source.name, domain.name, pool] += file.head["chunks"]
    return {name: fingerprints.digest(hashed) for (name, _, _), hashed in chunks.items()}


def _held_out(plan: plans.Plan) -> np.ndarray:
    """Collect the hashes of explicit held-out text, so that no other split repeats it. Sorted."""
    found = [
        file.hashes
        for domain in plan.domains
        if "eval" in domain.pools
        for _, file in _files(plan, domain.name, "eval")
    ]
    return np.unique(np.concatenate(found)) if found else NONE


def _held(plan: plans.Plan, domain: plans.Domain, excluded: np.ndarray) -> Held:
    names = ("lines", "documents", "tokenised", "tokens", "bytes", "bad", "bad_bytes", "empty")
    held = Held(dict.fromkeys(names, 0), {}, [], defaultdict(Counter), defaultdict(set))
    for pool in sorted(domain.pools):
        tokens = np.zeros(splits.BUCKETS, np.int64)
        before: dict[str, int] = defaultdict(int)  # lines of the file before the unit
        for unit, file in _files(plan, domain.name, pool):
            for name in names:
                held.counts[name] += file.head[name]
            for name, values in file.head["values"].items():
                held.values[name].update(values)
            for name in ("read_bytes", "bad_bytes", "documents"):
                held.files[unit.source.name][name] += file.head[name]
            where = {"domain": domain.name, "file": unit.source.name}
            for line, problem in file.head["problems"]:
                number = before[unit.source.name] + line
                held.problems.append({**where, "line": number, "problem": problem})
            before[unit.source.name] += file.head["lines"]
            mask = packing.chosen(
                file.hashes, 0, splits.BUCKETS, excluded if pool == "train" else NONE
            )
            held.duplicates += int(len(mask) - mask.sum())
            np.add.at(tokens, splits.buckets(file.hashes[mask]), file.lengths[mask])
        held.tokens[pool] = tokens
    return held


def _cuts(domain: plans.Domain, held: Held) -> list[tuple[str, splits.Cut]]:
    return [
        (pool, cut)
        for pool in sorted(domain.pools)
        for cut in splits.cut(held.tokens[pool], domain.asks[pool])
    ]


def _stream(
    plan: plans.Plan, domain: plans.Domain, pool: str, cut: splits.Cut, excluded: np.ndarray
) -> packing.Stream:
    excluded = excluded if pool == "train" else NONE
    paths, before, documents = [], [0], 0
    for _, file in _files(plan, domain.name, pool):
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
    held: dict[str, Held],
    cuts: dict[str, list[tuple[str, splits.Cut]]],
    digests: dict[str, str],
) -> None:
    described: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    for stream in streams:
        entries = [packing.entry(stream, index, notes) for index in range(stream.shards)]
        folder = plan.root / stream.split / stream.domain
        cut = next(cut for _, cut in cuts[stream.domain] if cut.split == stream.split)
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
    problems = [problem for name in held for problem in held[name].problems]
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
        "domains": {domain.name: _described(domain, held[domain.name]) for domain in plan.domains},
        "config": _config(plan.recipe),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    _write(plan, plan.root / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(plan.work, ignore_errors=True)


def _described(domain: plans.Domain, held: Held) -> dict[str, Any]:
    return {
        "files": sum(map(len, domain.pools.values())),
        "file_bytes": sum(file.size for pool in domain.pools.values() for file in pool),
        **held.counts,
        "repeats_of_held_out_text": held.duplicates,
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
