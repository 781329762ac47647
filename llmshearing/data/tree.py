"""A prepared data tree as the loaders see it: read from its manifest, checked before use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmshearing.data.schema import FORMAT_VERSION, INDEX, MANIFEST
from llmshearing.errors import UserError


@dataclass(frozen=True)
class DomainInfo:
    """What one split holds of one domain.

    Attributes:
        name: the domain.
        path: its MDS folder.
        rows: number of rows of `sequence_length` tokens.
        tokens: tokens in those rows.
        documents: documents that were packed into them.
        dropped_tokens: tokens of the last, partial row, which was left out.
        fingerprint: SHA-256 over the hashes of the shards, in order.
        chat: whether the column `loss` says which tokens count as targets.
    """

    name: str
    path: Path
    rows: int
    tokens: int
    documents: int
    dropped_tokens: int
    fingerprint: str
    chat: bool = False


@dataclass(frozen=True)
class DataTree:
    """A finished preparation.

    Attributes:
        root: its folder.
        sequence_length: tokens in a row.
        token_dtype: `uint16` or `uint32`.
        vocabulary: number of token ids; every id is below it.
        tokenizer: `kind`, `fingerprint` of its ids, and the ids that begin and end a document.
        splits: what each split holds, by domain.
        manifest: everything else that was recorded.
    """

    root: Path
    sequence_length: int
    token_dtype: str
    vocabulary: int
    tokenizer: dict[str, Any]
    splits: dict[str, dict[str, DomainInfo]]
    manifest: dict[str, Any]

    @classmethod
    def open(cls, root: str | Path) -> DataTree:
        """Read the manifest at `root` and see that every domain's index is there.

        Raises:
            UserError: there is no finished tree at `root`, or indexes are missing.
        """
        tree = cls.read(root)
        indexes = [info.path / INDEX for part in tree.splits.values() for info in part.values()]
        missing = [str(index) for index in indexes if not index.is_file()]
        if missing:
            raise UserError(
                f"found no {', '.join(missing)}, expected the index of each domain: run "
                f"`python data_prep/describe.py {root}`, which rebuilds them"
            )
        return tree

    @classmethod
    def read(cls, root: str | Path) -> DataTree:
        """Read the manifest at `root`, without a look at the files it names.

        Raises:
            UserError: there is no manifest at `root`, or it is not one of this format.
        """
        root = Path(root)
        path = root / MANIFEST
        if not path.is_file():
            what = "an unfinished preparation" if (root / ".prepare").is_dir() else "no data tree"
            raise UserError(
                f"found {what} at {root}, expected a folder with {MANIFEST}: "
                "run `python data_prep/prepare.py CONFIG.yaml` to the end"
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(
                f"found damaged JSON in {path} ({error}): prepare the tree again"
            ) from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
            raise UserError(
                f"found no manifest of format {FORMAT_VERSION} in {path}: prepare the tree again"
            )
        try:
            return cls._of(root, manifest)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"found an incomplete manifest in {path} ({error!r}): prepare the tree again"
            ) from None

    @classmethod
    def _of(cls, root: Path, manifest: dict[str, Any]) -> DataTree:
        splits = {
            split: {
                name: DomainInfo(
                    name=name,
                    path=root / split / name,
                    rows=held["rows"],
                    tokens=held["tokens"],
                    documents=held["documents"],
                    dropped_tokens=held["dropped_tokens"],
                    fingerprint=held["fingerprint"],
                    chat=held["chat"],
                )
                for name, held in domains.items()
            }
            for split, domains in manifest["splits"].items()
        }
        return cls(
            root=root,
            sequence_length=manifest["sequence_length"],
            token_dtype=manifest["token_dtype"],
            vocabulary=manifest["vocabulary"],
            tokenizer=manifest["tokenizer"],
            splits=splits,
            manifest=manifest,
        )

    def split(self, name: str) -> dict[str, DomainInfo]:
        """Give what the split `name` holds, by domain.

        Raises:
            UserError: the tree has no such split.
        """
        if name not in self.splits:
            raise UserError(
                f"found the splits {', '.join(self.splits) or 'none'} in {self.root}, "
                f"expected `{name}`: prepare the data with a rule for it"
            )
        return self.splits[name]
