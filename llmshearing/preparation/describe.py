"""`llmshearing describe`: what a data tree holds, checked against what was recorded of it.

Every shard is hashed. A lost `index.json` is rebuilt from its shards if they are the recorded ones.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing import files
from llmshearing.data.integrity import find_problems
from llmshearing.data.schema import (
    INDEX,
    LOSS,
    TOKENIZER_FOLDER,
    TOKENS,
    columns,
    fingerprint,
    row_type,
    tokenizer_file,
    tokenizer_fingerprint,
)
from llmshearing.data.tree import DataTree, DomainInfo
from llmshearing.errors import UserError
from llmshearing.preparation import mds_files
from llmshearing.tables import Table

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 60


def summary(tree: DataTree) -> Table:
    """Return what a tree holds, by split and domain."""
    rows, notes = [], []
    for split, domains in tree.splits.items():
        for name, info in domains.items():
            lacking = tree.manifest["splits"][split][name]["lacking_tokens"]
            numbers = (info.documents, info.rows, info.tokens, info.dropped_tokens, lacking)
            rows.append([f"{split}/{name}", *(f"{n:,}" for n in numbers), info.fingerprint[:12]])
    for name, held in tree.manifest["domains"].items():
        if held["bad"] or held["empty"]:
            notes.append(
                f"{name}: {held['bad']:,} bad and {held['empty']:,} empty documents "
                "(bad_documents.jsonl)"
            )
        if held["repeats_of_held_out_text"]:
            notes.append(
                f"{name}: {held['repeats_of_held_out_text']:,} documents are left out because a "
                "domain holds out the same text"
            )
    header = ["split/domain", "documents", "rows", "tokens", "dropped", "lacking", "fingerprint"]
    return Table("", header, rows, notes)


def describe(root: Path, number: int, domain: str | None) -> None:
    """Print what a tree holds and `number` rows of each domain; a UserError lists any damage."""
    tree = DataTree.read(root)
    summary(tree).show()
    tokenizer = tree.tokenizer
    print(
        f"rows of {tree.sequence_length} {tree.token_dtype} ids below {tree.vocabulary}; "
        f"{tokenizer['kind']} tokenizer {tokenizer['fingerprint'][:12]}, "
        f"bos {tokenizer['bos']}, eos {tokenizer['eos']}; seed {tree.manifest['seed']}\n"
    )
    if problems := check(tree):
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"found damage in {root}, expected what {root}/manifest.json records: copy these from "
            f"an undamaged tree, or prepare the tree again\n{listed}"
        )
    for line in samples(tree, number, domain):
        print(line)
    print("\nall files are as recorded")


def check(tree: DataTree) -> list[str]:
    """Compare a tree with its manifest and list what is wrong; rebuild lost indexes."""
    domains = [info for split in tree.splits.values() for info in split.values()]
    for info in domains:
        if not (info.path / INDEX).is_file():
            _rebuild_index(tree, info)
    problems = find_problems(tree, list(tree.splits))
    for info in domains:
        known = {mds_files.shard_name(number) for number in range(_shards(tree, info))} | {INDEX}
        extra = sorted(path.name for path in info.path.glob("*") if path.name not in known)
        problems += [f"{info.path / name}: does not belong to the tree" for name in extra]
    try:
        kind, file = tokenizer_file(tree.root / TOKENIZER_FOLDER)
        recorded = tree.tokenizer.get("sha256", tree.tokenizer["fingerprint"])
        if tokenizer_fingerprint(file) != recorded:
            problems.append(f"{file}: not the tokenizer ({kind}) that the tree was made with")
    except FileNotFoundError:
        problems.append(f"{tree.root / TOKENIZER_FOLDER}: the tokenizer is missing")
    return problems


def _shards(tree: DataTree, info: DomainInfo) -> int:
    return tree.manifest["splits"][info.path.parent.name][info.name]["shards"]


def _rebuild_index(tree: DataTree, info: DomainInfo) -> None:
    """Write the index of a domain if its shards are the recorded ones."""
    shards = [info.path / mds_files.shard_name(number) for number in range(_shards(tree, info))]
    try:
        entries = [mds_files.read_entry(path, number) for number, path in enumerate(shards)]
    except (OSError, ValueError):
        return  # the index is then reported as missing
    if fingerprint(entries) == info.fingerprint:
        files.write_text(info.path / INDEX, mds_files.index_text(entries))
        log.warning("%s was missing; rebuilt from %d shards", info.path / INDEX, len(entries))


def shard_rows(tree: DataTree, info: DomainInfo, number: int) -> np.ndarray:
    """Map the rows of a shard."""
    path = info.path / mds_files.shard_name(number)
    rows, begin = np.fromfile(path, "<u4", 2).tolist()
    row = row_type(columns(tree.sequence_length, tree.token_dtype, chat=info.chat))
    return np.memmap(path, row, mode="r", offset=begin, shape=(rows,))


def samples(tree: DataTree, number: int, domain: str | None) -> Iterator[str]:
    """Yield the beginnings of some rows of each split of each domain as text."""
    decode = _decoder(tree)
    for split, domains in tree.splits.items():
        for name, info in domains.items():
            if domain not in (None, name):
                continue
            rows = shard_rows(tree, info, 0)
            for row in np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int):
                ids = rows[row][TOKENS][:SAMPLE_TOKENS].tolist()
                targets = f", {rows[row][LOSS].mean():.0%} of it are targets" if info.chat else ""
                yield f"{split}/{name} row {row}{targets}: {decode(ids)!r}"


def _decoder(tree: DataTree) -> Any:
    kind, file = tokenizer_file(tree.root / TOKENIZER_FOLDER)
    chat = any(info.chat for split in tree.splits.values() for info in split.values())
    if kind == "huggingface" or chat:
        import tokenizers

        read = tokenizers.Tokenizer.from_file(str(file.with_name("tokenizer.json")))
        return lambda ids: read.decode(ids, skip_special_tokens=False)
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(file)).decode
