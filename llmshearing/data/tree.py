"""A prepared data tree, read from its manifest and checked before use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from llmshearing.data.schema import FORMAT_VERSION, INDEX, MANIFEST, TOKENIZER_FOLDER
from llmshearing.data.token_ids import same_tokenizer
from llmshearing.errors import UserError
from llmshearing.files import read_json
from llmshearing.mixture.references import RunData


@dataclass(frozen=True)
class DomainInfo:
    """What one split holds of one domain."""

    name: str
    path: Path  # its MDS folder
    rows: int  # of `sequence_length` tokens
    tokens: int  # in those rows
    documents: int  # packed into them
    dropped_tokens: int  # of the last, incomplete row, which was left out
    fingerprint: str  # SHA-256 over the hashes of the shards, in order
    chat: bool  # whether the column `loss` marks the targets


@dataclass(frozen=True)
class DataTree:
    """A finished preparation."""

    root: Path
    sequence_length: int  # tokens in a row
    token_dtype: str  # `uint16` or `uint32`
    vocabulary: int  # every token id is below it
    tokenizer: dict[str, Any]  # `kind`, `fingerprint` of its ids, ids around a document
    splits: dict[str, dict[str, DomainInfo]]  # the domains of each split
    manifest: dict[str, Any]

    @classmethod
    def open(cls, root: str | Path) -> "DataTree":
        """Read a tree; a UserError if it is not finished or the index of a domain is missing."""
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
    def read(cls, root: str | Path) -> "DataTree":
        """Read the manifest at `root`, not the files it names; a UserError if there is none."""
        root = Path(root)
        path = root / MANIFEST
        if not path.is_file():
            what = "an unfinished preparation" if (root / ".prepare").is_dir() else "no data tree"
            raise UserError(
                f"found {what} at {root}, expected a folder with {MANIFEST}: "
                "run `llmshearing prepare CONFIG.yaml` to the end"
            )
        manifest = read_json(path)
        try:
            if manifest.get("format") != FORMAT_VERSION:
                raise ValueError("another format")
            splits = {
                split: {
                    name: {**held, "name": name, "path": root / split / name}
                    for name, held in domains.items()
                }
                for split, domains in manifest["splits"].items()
            }
            manifest["tokenizer"]["fingerprint"]  # every run compares it
            return TypeAdapter(cls).validate_python(
                {**manifest, "root": root, "splits": splits, "manifest": manifest}
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"found no whole manifest of format {FORMAT_VERSION} in {path} ({reason}): "
                "prepare the tree again"
            ) from None

    def split(self, name: str) -> dict[str, DomainInfo]:
        """The domains of the split `name`; a UserError if the tree has no such split."""
        if name not in self.splits:
            raise UserError(
                f"found the splits {', '.join(self.splits) or 'none'} in {self.root}, "
                f"expected `{name}`: prepare the data with this split"
            )
        return self.splits[name]

    def is_of_tokenizer(self, model: Path) -> bool:
        """Whether the tokenizer in a model's directory gives the ids of this tree.

        Raises:
            FileNotFoundError: the directory has no tokenizer.
        """
        return same_tokenizer(model, self.tokenizer["fingerprint"], self.root / TOKENIZER_FOLDER)

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
