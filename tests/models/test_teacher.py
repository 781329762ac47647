"""A frozen teacher in memory gives the stock model's distributions, wherever its weights are."""

import pytest
import torch
from models_zoo import COMMON, build, extras, variants
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llmshearing.models.blocks import decoder_of
from llmshearing.models.divergence import Distillation
from llmshearing.models.teacher import Distiller, FrozenTeacher, lent

ROWS = torch.randint(0, COMMON["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(3))
IDS = COMMON["vocab_size"]


def log_probabilities(teacher):
    return teacher.on({"input_ids": ROWS}).log_probabilities(slice(None), IDS, 1.0)


@pytest.mark.parametrize("variant", [*variants(), *extras()], ids=str)
def test_its_distributions_are_those_of_the_stock_model(variant):
    """With the soft caps and scales of the family."""
    model = build(variant)[0]
    wanted = model(ROWS).logits.flatten(0, 1).log_softmax(-1)
    model.train()  # dropout, where a config has it, is switched off
    found = log_probabilities(FrozenTeacher(model))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


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


def test_a_module_on_the_host_is_lent_to_the_device_and_comes_back():
    module = nn.Linear(3, 2)
    before = {name: (p.data_ptr(), p.clone()) for name, p in module.named_parameters()}
    with lent(module, torch.device("meta")):
        assert all(p.is_meta for p in module.parameters())
    for name, parameter in module.named_parameters():
        pointer, value = before[name]
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)


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


def test_a_distiller_passes_its_settings_and_collects_by_domain():
    teacher = FrozenTeacher(build(variants()[0])[0])
    distiller = Distiller(teacher, 0.25, 3.0, 2)
    distiller.weight = 0.5
    given = distiller.on({"input_ids": ROWS})
    assert isinstance(given, Distillation)
    assert given[1:] == (0.5, 0.25, 3.0)
    assert given.teacher.hidden.shape == (14, COMMON["hidden_size"])
    counted = torch.ones(2, 7, dtype=torch.bool)
    counted[1, 2:] = False
    values = torch.tensor([[2.0], [3.0]]).expand(2, 7) * counted
    for _ in range(2):
        distiller.observe(values, counted, torch.tensor([0, 1]))
    assert distiller.domain_divergence.totals.tolist() == [28.0, 12.0]
    assert distiller.domain_divergence.counts.tolist() == [14, 4]
