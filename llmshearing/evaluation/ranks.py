"""The processes that a launcher started for one evaluation, without Composer."""

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from llmshearing.errors import UserError

CONNECT = timedelta(minutes=10)
# Ranks get as many rows each, so they finish together unless their devices differ.
SLOWEST_RANK = timedelta(hours=6)


def rank_and_count() -> tuple[int, int]:
    """This process's rank and the number of ranks, as `composer -n` and `torchrun` set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def refuse_several(command: str) -> None:
    """Raise a UserError unless this is the only process."""
    if (count := rank_and_count()[1]) > 1:
        raise UserError(f"{command}: found {count} ranks, expected one process: run it by itself")


class Ranks:
    """All ranks of an evaluation, connected by a store that rank 0 or the launcher keeps.

    A store is enough for one exchange. A process group would have to be closed by all at once.

    Raises:
        UserError: the launcher gave no address, or not all ranks connected in time.
    """

    def __init__(self) -> None:
        self.rank, self.count = rank_and_count()
        if self.count == 1:
            return
        try:
            arrived = distributed.rendezvous("env://", self.rank, self.count, timeout=CONNECT)
            self._store, _, _ = next(arrived)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"rank {self.rank} could not connect to the other {self.count - 1} ranks "
                f"({str(error).splitlines()[0]}): start all of them with one "
                f"`torchrun --nproc-per-node {self.count} -m llmshearing.cli ...`"
            ) from error
        self._store.set_timeout(SLOWEST_RANK)

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of the ranks' values. Each rank calls this once; float64, on the CPU."""
        if self.count == 1:
            return values
        mine: Any = values.numpy().tobytes()  # the annotation of `set` knows text only
        self._store.set(f"values-{self.rank}", mine)
        parts = [bytearray(self._store.get(f"values-{rank}")) for rank in range(self.count)]
        if self._store.add("read", 1) == self.count:
            self._store.set("all read", "")
        if self.rank == 0:  # which may keep the store
            self._store.get("all read")
        tensors = [torch.frombuffer(part, dtype=values.dtype) for part in parts]
        return torch.stack(tensors).sum(0).view_as(values)


def own_device() -> torch.device:
    """This rank's GPU, or the processor."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
