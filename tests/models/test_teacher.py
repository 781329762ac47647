"""A frozen teacher in memory gives the stock model's distributions, wherever its weights are."""

import pytest
import torch
from models_zoo import COMMON, build, extras, variants
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llmshearing.models.blocks import decoder_blocks, decoder_of
from llmshearing.models.divergence import Distillation
from llmshearing.models.teacher import Distiller, FrozenTeacher

ROWS = torch.randint(0, COMMON["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(3))
IDS = COMMON["vocab_size"]


def log_probabilities(teacher):
    return teacher.on({"input_ids": ROWS}).log_probabilities(slice(None), IDS, 1.0)


@pytest.mark.parametrize("variant", [*variants(), *extras()], ids=str)
def test_its_distributions_are_those_of_the_stock_model(variant):
    """With the soft caps and scales of the family."""
    model = build(variant)[0]
    wanted = model(ROWS).logits.flatten(0, 1).log_softmax(-1)
    found = log_probabilities(FrozenTeacher(model))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


def test_it_uses_no_dropout():
    model = build(variants()[0])[0]
    wanted = log_probabilities(FrozenTeacher(model))
    for block in decoder_blocks(model):
        block.self_attn.attention_dropout = 0.5
    model.train()
    assert torch.equal(log_probabilities(FrozenTeacher(model)), wanted)


def test_the_bias_of_a_head_counts():
    model = build(variants()[0])[0]
    head = model.get_output_embeddings()
    head.bias = nn.Parameter(torch.randn(IDS, generator=torch.Generator().manual_seed(1)))
    wanted = model(ROWS).logits.flatten(0, 1).log_softmax(-1)
    torch.testing.assert_close(log_probabilities(FrozenTeacher(model)), wanted)


def test_the_autocast_of_a_run_does_not_narrow_it():
    teacher = FrozenTeacher(build(variants()[0])[0])
    wanted = log_probabilities(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        states = teacher.on({"input_ids": ROWS})
    assert states.hidden.dtype == torch.float32
    assert torch.equal(states.log_probabilities(slice(None), IDS, 1.0), wanted)


@pytest.fixture
def mesh(tmp_path):
    """One process that shards with itself."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_a_sharded_teacher_is_gathered_for_its_forward_pass_only(mesh):
    model = build(variants()[0])[0]
    wanted = log_probabilities(FrozenTeacher(model))
    fully_shard(decoder_of(model), mesh=mesh)
    fully_shard(model.get_output_embeddings(), mesh=mesh)
    found = log_probabilities(FrozenTeacher(model))
    torch.testing.assert_close(found, wanted)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def test_a_distiller_passes_its_settings_with_the_teachers_states():
    teacher = FrozenTeacher(build(variants()[0])[0])
    distiller = Distiller(teacher, beta=0.25, temperature=3.0, domains=2)
    distiller.weight = 0.5
    given = distiller.on({"input_ids": ROWS})
    assert isinstance(given, Distillation)
    assert (given.weight, given.beta, given.temperature) == (0.5, 0.25, 3.0)
    assert given.teacher.hidden.shape == (14, COMMON["hidden_size"])
