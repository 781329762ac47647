"""The `data` section of a recipe: where rows come from and how they are batched."""

from typing import Literal

from pydantic import Field

from llmshearing.quantities import Count
from llmshearing.typed_yaml import PathText, Section


class DataSettings(Section):
    """Where rows come from and how they are batched."""

    root: PathText = Field(examples=["DATA"])
    """A prepared data tree, or the local cache of a remote one."""
    remote: PathText | None = None
    """A remote data tree, e.g. `s3://bucket/data`; its shards are downloaded into `root`."""
    split: str = Field(examples=["prune"])
    """The split to train on, `prune` or `continue`."""
    eval_split: str = "eval"
    """The split to evaluate on, one evaluator per domain."""
    global_batch: Count = Field(examples=[1])
    """Rows per optimizer step over all ranks."""
    microbatch: Count = Field(examples=[1])
    """Rows per forward pass of one rank."""
    eval_batch: Count = 16
    """Rows per evaluation batch of one rank."""
    eval_rows: Count | None = None
    """Rows per domain to evaluate on; all by default."""
    workers: int = Field(default=1, ge=0, le=1024)
    """Loader processes per rank."""
    verify: Literal["hash", "size"] = "hash"
    """`hash` compares shards with their recorded hashes, `size` only their sizes."""

    def rules(self) -> list[str]:
        """Compare the two batch sizes."""
        if self.microbatch <= self.global_batch:
            return []
        return [
            f"data.microbatch: found {self.microbatch}, expected at most "
            f"data.global_batch = {self.global_batch}"
        ]
