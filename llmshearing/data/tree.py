"""A prepared data tree, read from its manifest and checked before use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmshearing.data.schema import FORMAT_VERSION, INDEX, MANIFEST
from llmshearing.errors import UserError
from llmshearing.mixture.references import RunData

OF_A_TREE = ("sequence_length", "token_dtype", "vocabulary", "tokenizer")
OF_A_DOMAIN = ("rows", "tokens", "documents", "dropped_tokens", "fingerprint", "chat")


@dataclass(frozen=True)
class DomainInfo:
    """What one split holds of one domain.

    Attributes:
        name: the domain.
        path: its MDS folder.
        rows: number of rows of `sequence_length` tokens.
        tokens: tokens in those rows.
        documents: documents that were packed into them.
        dropped_tokens: tokens of the last, incomplete row, which was left out.
        fingerprint: SHA-256 over the hashes of the shards, in order.
        chat: whether the column `loss` marks the targets.
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
        splits: the domains of each split.
        manifest: the whole manifest.
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
        """Read the manifest at `root` and check that every domain has its index.

        Raises:
            UserError: there is no finished tree at `root`, or indexes are missing.
        """
        tree = cls.read(root)
        indexes = [info.path / INDEX for part in tree.splits.values() for info in part.values()]
        missing = [str(index) for index in indexes if not index.is_file()]
        if missing:
            raise UserError(
                f"found no {', '.join(missing)}, expected the index of each domain: run "
                f"`llmshearing describe {root}`, which rebuilds them"
            )
        return tree

    @classmethod
    def read(cls, root: str | Path) -> DataTree:
        """Read the manifest at `root`, without looking at the files it names.

        Raises:
            UserError: there is no manifest at `root`, or it has another format.
        """
        root = Path(root)
        path = root / MANIFEST
        if not path.is_file():
            what = "an unfinished preparation" if (root / ".prepare").is_dir() else "no data tree"
            raise UserError(
                f"found {what} at {root}, expected a folder with {MANIFEST}: "
                "run `llmshearing prepare CONFIG.yaml` to the end"
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
                name: DomainInfo(name, root / split / name, **{k: held[k] for k in OF_A_DOMAIN})
                for name, held in domains.items()
            }
            for split, domains in manifest["splits"].items()
        }
        return cls(root, **{k: manifest[k] for k in OF_A_TREE}, splits=splits, manifest=manifest)

    def split(self, name: str) -> dict[str, DomainInfo]:
        """The domains of the split `name`.

        Raises:
            UserError: the tree has no such split.
        """
        if name not in self.splits:
            raise UserError(
                f"found the splits {', '.join(self.splits) or 'none'} in {self.root}, "
                f"expected `{name}`: prepare the data with this split"
            )
        return self.splits[name]

    def run_data(self, split: str, eval_split: str) -> RunData:
        """What mixtures and references have to fit in a run that uses these two splits."""
        train, held_out = self.split(split), self.split(eval_split)
        return RunData(
            domains=list(train),
            rows=[info.rows for info in train.values()],
            tokenizer=self.tokenizer["fingerprint"],
            sequence_length=self.sequence_length,
            fingerprints={name: info.fingerprint for name, info in held_out.items()},
        )
