"""With bfloat16 weights under FSDP2, masks, multipliers and their optimizer state stay float32."""

from dataclasses import replace

import pytest
import torch
import torch.distributed
from models_zoo import COMMON, build, variants
from runs import log_file, start_ranks
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from llmshearing import parallelism
from llmshearing.models.blocks import decoder_blocks
from llmshearing.models.shearing import ShearingModel
from llmshearing.pruning.masks import Masks, PruningSettings
from llmshearing.pruning.schedule import MaskState

POLICY = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def two_steps(arguments):
    """What Composer does for `amp_bf16` on a GPU; it refuses that precision on a CPU."""
    del arguments
    torch.distributed.init_process_group("gloo")
    decoder, table = build(variants()[0])
    target = replace(table.source, hidden=14, layers=2, intermediate=9)
    masks = Masks(table, target, PruningSettings(), seed=1)
    model = ShearingModel(decoder.train(), masks, domains=1)
    for block in decoder_blocks(decoder):
        fully_shard(block, mp_policy=POLICY)
    fully_shard(model.model, mp_policy=POLICY)
    fully_shard(model.masks, mp_policy=POLICY)
    parallelism.after_sharding(model)
    seen = {}
    decoder_blocks(decoder)[0].register_forward_hook(lambda m, i, out: seen.update(block=out.dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    ids = torch.randint(0, COMMON["vocab_size"], (2, 11))
    batch = {"input_ids": ids, "labels": ids, "domain": torch.zeros(2, dtype=torch.long)}
    before = [p.full_tensor().clone() for p in model.masks.parameters()]
    for step in range(2):
        model.masks.set_state(MaskState(step, 0.5))
        outputs = model(batch)
        for gate in outputs.drawn.gates.values():
            assert gate.dtype == torch.float32
        assert outputs.drawn.penalty.dtype == torch.float32
        losses = model.loss(outputs, batch)
        assert losses["ce"].dtype == torch.float32
        losses["total"].backward()
        optimizer.step()
        for parameter in model.parameters():
            assert (
                parameter.dtype == torch.float32
            )  # the stored weight; the copy used in the forward is bfloat16
            assert parameter.grad.dtype == torch.float32
            for value in optimizer.state[parameter].values():
                assert value.dtype == torch.float32
        optimizer.zero_grad()
    assert any(
        not torch.equal(p.full_tensor(), was)
        for p, was in zip(model.masks.parameters(), before, strict=True)
    )
    assert all(p.to_local().dtype == torch.float32 for p in model.masks.parameters())
    block = seen["block"][0] if isinstance(seen["block"], tuple) else seen["block"]
    assert block == torch.bfloat16
    return 0


@pytest.mark.world_size(2)
def test_masks_stay_float32_when_weights_are_bfloat16(tmp_path):
    processes = start_ranks(2, tmp_path, [], run=two_steps)
    for process in processes:
        process.join(timeout=120)
    text = "".join(log_file(tmp_path, rank).read_text() for rank in range(2))
    assert [process.exitcode for process in processes] == [0, 0], text[-3000:]
