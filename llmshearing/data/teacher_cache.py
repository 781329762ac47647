"""A teacher's distributions for every training row of a data tree, on disk.

```
<root>/cache.json                what the cache belongs to; written first
<root>/shards-<rank>.jsonl       what each process has finished
<root>/<split>/<domain>/         MDS with the rows of the tree, in the same order
<root>/manifest.json             the above and what the folders hold; written last
```
For each of the T positions of a row there are the K ids in the column `teacher_ids`, their
probabilities in `teacher_probabilities`, and the entropy of the whole distribution in nats in
`teacher_entropy`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import TypeAdapter

from llmshearing.data.integrity import HASHED_AT_START_BYTES, folder_problems
from llmshearing.data.schema import MANIFEST, token_dtype
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.files import read_json

if TYPE_CHECKING:
    from llmshearing.data.domains import DomainRows

FORMAT = 1
IDENTITY = "cache.json"
ENTROPY, IDS, PROBABILITIES = "teacher_entropy", "teacher_ids", "teacher_probabilities"
# The types in a batch; torch cannot compute with unsigned ones.
READ_AS = {ENTROPY: np.float32, IDS: np.int32, PROBABILITIES: np.float16}
METHODS = {
    "sampled": "a sample (unbiased: its expected gradient is that of the whole distribution)",
    "top": "the most probable (biased: all others count as probability 0)",
}


def cache_columns(sequence_length: int, places: int, vocabulary: int) -> dict[str, str]:
    """The MDS columns, in the order of their names."""
    return {
        ENTROPY: f"ndarray:float32:{sequence_length}",
        IDS: f"ndarray:{token_dtype(vocabulary)}:{sequence_length},{places}",
        PROBABILITIES: f"ndarray:float16:{sequence_length},{places}",
    }


@dataclass(frozen=True)
class CachedDomain:
    """The cache of one domain."""

    path: Path  # its MDS folder
    rows: int
    fingerprint: str  # SHA-256 over the hashes of its shards, in order
    data: str  # the same of the tree's domain


@dataclass(frozen=True)
class TeacherCache:
    """A finished cache."""

    root: Path
    split: str  # of the data tree
    sequence_length: int  # tokens in a row
    method: Literal["sampled", "top"]
    places: int  # ids of each position
    seed: int  # of the sample
    temperature: float  # by which the logits were divided
    vocabulary: int  # ids over which each distribution adds up to 1
    teacher: dict[str, Any]  # `path`, `config` and `weights`, a digest
    domains: dict[str, CachedDomain]
    fingerprint: str  # SHA-256 of all of this except paths

    @classmethod
    def open(cls, root: str | Path) -> "TeacherCache":
        """Read the manifest; a UserError if there is none, or the cache is not finished."""
        root = Path(root)
        if not (root / MANIFEST).is_file():
            if (root / IDENTITY).is_file():
                raise UserError(
                    f"found an unfinished teacher cache at {root}: run the same `llmshearing "
                    "teacher-cache` again, which finishes it"
                )
            raise UserError(
                f"found no teacher cache at {root}: make one with `llmshearing teacher-cache "
                f"RECIPE.yaml --out {root}`"
            )
        content = read_json(root / MANIFEST)
        try:
            if content["format"] != FORMAT:
                raise ValueError("another format")
            domains = {
                name: {**held, "path": root / content["split"] / name}
                for name, held in content["domains"].items()
            }
            known = {**content, "teacher": {**content["teacher"], "path": ""}}
            digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
            return TypeAdapter(cls).validate_python(
                {**content, "root": root, "domains": domains, "fingerprint": digest}
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"found no whole manifest of a teacher cache in {root / MANIFEST} ({reason}): "
                "make the cache again"
            ) from None

    def check_files(self, *, by_hash: bool = True) -> None:
        """Refuse missing, shortened or changed files with a UserError that lists them."""
        limit = HASHED_AT_START_BYTES if by_hash else 0
        if problems := folder_problems(self.domains.values(), hash_limit=limit):
            listed = "; ".join(problems)
            raise UserError(
                f"found damaged files in the teacher cache {self.root}, expected what was recorded "
                f"when it was made: copy it again, or make it again ({listed})"
            )

    def open_domains(self, names: Sequence[str], *, by_hash: bool = True) -> "list[DomainRows]":
        """The rows of some domains."""
        from llmshearing.data.domains import DomainRows  # with torch, which a check can do without

        return [DomainRows(name, self.domains[name].path, by_hash=by_hash) for name in names]


def misfits(cache: TeacherCache, tree: DataTree, split: str) -> list[str]:
    """Why a cache is not that of a split's rows; empty if it is."""
    for name, info in tree.split(split).items():
        held = cache.domains.get(name)
        if held is None or held.data != info.fingerprint:
            rows = 0 if held is None else held.rows
            what = "rows" if rows != info.rows or cache.split != split else "data"
            return [
                f"found a cache of other {what} at {cache.root} ({rows} rows of {name} in split "
                f"{cache.split}), expected the {info.rows} of {tree.root}/{split}: make the cache "
                "of this data"
            ]
    return []
