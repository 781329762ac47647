"""What a data tree holds, checked against what was recorded.

    python data_prep/describe.py ROOT
    python data_prep/describe.py ROOT --samples 3 --domain wiki

Every shard is hashed. A missing `index.json` is rebuilt from its shards where they are the recorded
ones. Ends with status 2 where the tree is damaged, and says which file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing import files
from llmshearing.data.schema import (
    LOSS,
    TOKENIZER_FOLDER,
    TOKENS,
    columns,
    fingerprint,
    tokenizer_file,
)
from llmshearing.data.tree import DataTree, DomainInfo
from llmshearing.errors import UserError, exits_on_user_error
from llmshearing.preparation import mds_files, tables

SAMPLE_TOKENS = 60


@dataclass(frozen=True)
class Shard:
    """What a shard's file says of itself.

    Attributes:
        path: the file.
        rows: number of rows.
        config: Streaming's description of the columns.
        begin: byte at which the first row begins.
        row: the layout of a row.
    """

    path: Path
    rows: int
    config: dict[str, Any]
    begin: int
    row: np.dtype

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Read the header of a shard.

        Raises:
            ValueError: the file is not a shard of fixed rows, or is cut off.
        """
        with path.open("rb") as file:
            rows = int.from_bytes(file.read(4), "little")
            size = path.stat().st_size
            if not 0 < rows < size // 4:
                raise ValueError(f"it says that it has {rows} rows, in {size} bytes")
            offsets = np.frombuffer(file.read(4 * (rows + 1)), "<u4")
            config = json.loads(file.read(int(offsets[0]) - 4 - offsets.nbytes))
        fields = []
        for name, encoding in zip(config["column_names"], config["column_encodings"], strict=True):
            _, dtype, length = encoding.split(":")
            fields.append((name, np.dtype(dtype).newbyteorder("<"), int(length)))
        shard = cls(path, rows, config, int(offsets[0]), np.dtype(fields))
        if size != shard.begin + rows * shard.row.itemsize or offsets[-1] != size:
            raise ValueError(f"its {rows} rows do not fill its {size} bytes")
        return shard

    def read(self, rows: slice) -> np.ndarray:
        """Read some rows."""
        mapped = np.memmap(self.path, self.row, mode="r", offset=self.begin, shape=(self.rows,))
        return np.array(mapped[rows])


def check(tree: DataTree) -> list[str]:
    """Compare a tree with its manifest and list what is wrong; rebuild what can be rebuilt."""
    problems = []
    for domains in tree.splits.values():
        for info in domains.values():
            problems += _check_domain(tree, info)
    try:
        kind, file = tokenizer_file(tree.root / TOKENIZER_FOLDER)
        if hashlib.sha256(file.read_bytes()).hexdigest() != tree.tokenizer["fingerprint"]:
            problems.append(f"{file}: not the tokenizer ({kind}) that the tree was made with")
    except FileNotFoundError:
        problems.append(f"{tree.root / TOKENIZER_FOLDER}: the tokenizer is missing")
    return problems


def _check_domain(tree: DataTree, info: DomainInfo) -> list[str]:
    expected = tree.manifest["splits"][info.path.parent.name][info.name]["shards"]
    problems, entries = [], []
    for number in range(expected):
        path = info.path / mds_files.shard_name(number)
        try:
            shard = Shard.open(path)
        except FileNotFoundError:
            problems.append(f"{path}: missing")
            continue
        except (ValueError, KeyError, TypeError, OSError) as error:
            problems.append(f"{path}: damaged ({error})")
            continue
        wanted = columns(tree.sequence_length, tree.token_dtype, chat=info.chat)
        if (
            dict(zip(shard.config["column_names"], shard.config["column_encodings"], strict=True))
            != wanted
        ):
            problems.append(f"{path}: other columns than {wanted}")
        problems += _foreign_ids(tree, shard)
        digest = _digest(path)
        entries.append(
            mds_files.shard_entry(shard.config, number, shard.rows, path.stat().st_size, digest)
        )
    if problems:
        return problems
    problems = _check_index(info, entries)
    rows = sum(entry["samples"] for entry in entries)
    if rows != info.rows:
        problems.append(f"{info.path}: {rows:,} rows, recorded are {info.rows:,}")
    known = {mds_files.shard_name(number) for number in range(expected)} | {"index.json"}
    extra = sorted(path.name for path in info.path.iterdir() if path.name not in known)
    return problems + [f"{info.path / name}: does not belong to the tree" for name in extra]


def _check_index(info: DomainInfo, entries: list[dict[str, Any]]) -> list[str]:
    """Compare shards with the index and the manifest; write the index where it is missing."""
    index = info.path / "index.json"
    right = fingerprint(entries) == info.fingerprint
    if not index.is_file():
        if not right:
            return [f"{index}: missing, and the shards are not the recorded ones"]
        files.write_text(index, mds_files.index_text(entries))
        sys.stderr.write(f"{index}: was missing; rebuilt from {len(entries)} shards\n")
        return []
    try:
        recorded = json.loads(index.read_text(encoding="utf-8"))["shards"]
        named = {shard["raw_data"]["basename"]: shard for shard in recorded}
    except (ValueError, KeyError, TypeError) as error:
        return [f"{index}: damaged ({error}): remove it and run again to rebuild it"]
    problems = []
    for entry in entries:
        name = entry["raw_data"]["basename"]
        if name not in named:
            problems.append(f"{index}: does not name {name}")
        elif named[name]["raw_data"]["hashes"] != entry["raw_data"]["hashes"]:
            problems.append(f"{info.path / name}: its hash is not the recorded one")
        elif named[name] != entry:
            problems.append(f"{index}: says of {name} what the file does not")
    if len(recorded) != len(entries):
        problems.append(f"{index}: names {len(recorded)} shards, recorded are {len(entries)}")
    if not problems and not right:
        problems.append(f"{info.path}: its fingerprint is not the recorded one")
    return problems


def _foreign_ids(tree: DataTree, shard: Shard) -> Iterator[str]:
    for first in range(0, shard.rows, 4096):
        highest = int(shard.read(slice(first, first + 4096))[TOKENS].max())
        if highest >= tree.vocabulary:
            yield (
                f"{shard.path}: token {highest} in rows {first} to {first + 4095}, "
                f"the vocabulary has {tree.vocabulary}"
            )
            return


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def samples(tree: DataTree, number: int, domain: str | None) -> Iterator[str]:
    """Give the beginnings of some rows of each split of each domain as text."""
    decode = _decoder(tree)
    for split, domains in tree.splits.items():
        for name, info in domains.items():
            if domain not in (None, name):
                continue
            shard = Shard.open(info.path / mds_files.shard_name(0))
            for row in np.linspace(0, shard.rows - 1, min(number, shard.rows)).astype(int):
                rows = shard.read(slice(row, row + 1))
                ids = rows[TOKENS][0][:SAMPLE_TOKENS].tolist()
                counted = f", {rows[LOSS][0].mean():.0%} of it counts" if info.chat else ""
                yield f"{split}/{name} row {row}{counted}: {decode(ids)!r}"


def _decoder(tree: DataTree) -> Any:
    kind, file = tokenizer_file(tree.root / TOKENIZER_FOLDER)
    if kind == "huggingface" or any(
        info.chat for split in tree.splits.values() for info in split.values()
    ):
        import tokenizers

        read = tokenizers.Tokenizer.from_file(str(file.with_name("tokenizer.json")))
        return lambda ids: read.decode(ids, skip_special_tokens=False)
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return model.decode


@exits_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    """Describe a tree as the command line says."""
    parser = argparse.ArgumentParser(description="What a data tree holds, checked.")
    parser.add_argument("root", type=Path, help="a data tree")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="rows to show (1)")
    parser.add_argument("--domain", help="show rows of this domain only")
    given = parser.parse_args(arguments)
    tree = DataTree.read(given.root.expanduser())
    print(tables.after(tree))
    tokenizer = tree.tokenizer
    print(
        f"rows of {tree.sequence_length} {tree.token_dtype} ids below {tree.vocabulary}; "
        f"{tokenizer['kind']} tokenizer {tokenizer['fingerprint'][:12]}, "
        f"bos {tokenizer['bos']}, eos {tokenizer['eos']}; seed {tree.manifest['seed']}\n"
    )
    problems = check(tree)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"found damage in {given.root}, expected what {given.root}/manifest.json records: "
            f"prepare the tree again, or copy these from where it is whole\n{listed}"
        )
    for line in samples(tree, given.samples, given.domain):
        print(line)
    print("\nall files are as recorded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
