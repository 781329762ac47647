"""Norms and averages of FSDP1's plain gradients, on two ranks without a GPU."""

import os

import pytest
import torch
import torch.distributed
from runs import log_file, start_ranks

from llmshearing.callbacks.gradients import across_shards, average


def check(arguments):
    del arguments
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    norm = torch.tensor([3.0, 4.0][rank])
    assert across_shards(norm, shards=2).item() == pytest.approx(5.0)  # two halves of one gradient
    assert across_shards(torch.tensor(3.0), shards=1).item() == pytest.approx(3.0)  # two replicas
    gradients = [torch.full((2,), float(rank)), torch.tensor([10.0 + rank])]
    average(gradients)
    assert [gradient.tolist() for gradient in gradients] == [[0.5, 0.5], [10.5]]
    return 0


@pytest.mark.world_size(2)
def test_norms_are_summed_over_shards_and_gradients_averaged_over_ranks(tmp_path):
    processes = start_ranks(2, tmp_path, [], run=check)
    for process in processes:
        process.join(timeout=120)
    assert [p.exitcode for p in processes] == [0, 0], log_file(tmp_path, 0).read_text()[-2000:]
