"""Loaders: the same batches for any number of workers and ranks, every held-out row once."""

import logging
from itertools import islice

import pytest
import torch
from mds_trees import LENGTH, VOCABULARY, make_tree

from llmshearing.data.dataloaders import (
    HeldOutOrder,
    build_held_out_loaders,
    build_train_loader,
)
from llmshearing.data.dataset import TrainRows
from llmshearing.data.domains import open_domains
from llmshearing.data.settings import DataSettings
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.mixture.mixture_plan import MixturePlan
from llmshearing.mixture.sampler import DomainSource, Sampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker"),  # on one core
]


@pytest.fixture
def tree(tmp_path):
    held_out = {"cc": 23, "wiki": 7}
    return DataTree.open(make_tree(tmp_path / "tree", {"cc": 90, "wiki": 41}, held_out))


def loader_of(tree, passes=None, **settings):
    domains = open_domains(tree, "prune")
    sources = [DomainSource(d.name, len(d), d.block, passes) for d in domains]
    sampler = Sampler(sources, MixturePlan.start([0.7, 0.3]), 17)
    rows = TrainRows(domains, LENGTH, VOCABULARY, sampler)
    return build_train_loader(rows, global_batch=8, **settings)


def data_settings(tree, **given):
    return DataSettings(root=str(tree.root), split="prune", global_batch=8, microbatch=8, **given)


def batches_of(spec, count):
    return [spec.batch_transforms(batch) for batch in islice(iter(spec.dataloader), count)]


def same(left, right):
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(tree, workers):
    alone = batches_of(loader_of(tree), 6)
    for left, right in zip(alone, batches_of(loader_of(tree, workers=workers), 6), strict=True):
        assert same(left, right)


def test_workers_read_at_most_prefetch_batches_ahead(tree):
    spec = loader_of(tree, workers=2, prefetch=5)
    iterator = iter(spec.dataloader)
    for trained in range(6):
        next(iterator)
        ahead = spec.dataloader.dataset.sampler.cursor.sample // 8 - trained - 1
        assert ahead <= 5
    assert ahead == 4


def test_ranks_split_each_global_batch(tree):
    whole = batches_of(loader_of(tree), 4)
    parts = [batches_of(loader_of(tree, rank=rank, world_size=4), 4) for rank in range(4)]
    for number, batch in enumerate(whole):
        together = {key: torch.cat([part[number][key] for part in parts]) for key in batch}
        assert same(batch, together)


def test_a_resumed_loader_gives_the_remaining_batches(tree):
    whole = batches_of(loader_of(tree), 8)
    spec = loader_of(tree, workers=2)
    iterator = iter(spec.dataloader)
    for _ in range(5):
        next(iterator)
    state = spec.dataloader.dataset.state_dict(40)
    other = loader_of(tree, workers=1)
    other.dataloader.dataset.load_state_dict(state)
    for left, right in zip(whole[5:], batches_of(other, 3), strict=True):
        assert same(left, right)


def test_the_loader_ends_when_the_data_is_used_up(tree):
    found = batches_of(loader_of(tree, passes=1, workers=2), 100)
    assert len(found) == 16  # 90 rows at a weight of 0.7 last for 128 samples


def test_a_damaged_shard_raises_in_the_trainer(tree):
    for shard in (tree.root / "prune/wiki").glob("shard.*.mds"):
        shard.write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged shard .* \(0 bytes, expected"):
        batches_of(loader_of(tree, workers=1), 3)


def test_a_microbatch_may_be_larger_than_the_batch_of_a_rank(tree):
    spec = loader_of(tree)
    batch = batches_of(spec, 1)[0]
    assert len(spec.split_batch(batch, 16)) == 1
    assert [len(part["input_ids"]) for part in spec.split_batch(batch, 4)] == [4, 4]
    assert spec.get_num_samples_in_batch(batch) == 8
    assert spec.get_num_tokens_in_batch(batch) == 8 * tree.sequence_length
    labels = batch["labels"].clone()
    labels[:4] = -100
    parts = [{**batch, "labels": part} for part in (*labels.split(2), labels)]
    *parts, whole = [spec.get_num_tokens_in_batch(x, token_type="loss_generating") for x in parts]
    half = 4 * (tree.sequence_length - 1)  # rows without a target weigh nothing, however cut
    assert parts == pytest.approx([0, 0, half / 2, half / 2], abs=1e-8)
    assert whole == pytest.approx(half)
    assert parts[0] > 0  # a batch that has no target at all is divided by it


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_every_held_out_row_counts_once(tree, world_size, batch):
    settings = data_settings(tree, eval_batch=batch)
    for name, rows in (("cc", 23), ("wiki", 7)):
        seen, batches = [], set()
        for rank in range(world_size):
            loaders = build_held_out_loaders(settings, tree, ["cc", "wiki"], rank, world_size)
            found = list(loaders[name])
            batches.add(len(found))
            assert all(len(part["input_ids"]) <= batch for part in found)
            for part in found:
                counted = (part["labels"] != -100).any(1)
                seen += part["input_ids"][counted, 1].tolist()
        assert sorted(seen) == list(range(rows))
        assert len(batches) == 1, "every rank must run as many batches"


def test_eval_rows_limits_the_held_out_rows(tree):
    (batch,) = build_held_out_loaders(data_settings(tree, eval_rows=4), tree, ["cc"])["cc"]
    assert batch["input_ids"][:, 1].tolist() == [0, 5, 11, 17]


def test_a_domain_that_is_only_held_out_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("llmshearing"), "propagate", True)
    caplog.set_level("INFO", logger="llmshearing")
    tree = DataTree.open(make_tree(tmp_path / "tree", {"cc": 20}, {"cc": 5, "wiki": 7}))
    assert list(build_held_out_loaders(data_settings(tree), tree, ["cc"])) == ["cc"]
    assert "not evaluated during the run: wiki" in caplog.text


def test_held_out_batches_need_little_padding():
    class Rows:
        def __len__(self):
            return 100

    order = HeldOutOrder(Rows(), batch=16, rank=0, world_size=1)
    assert (order.batches, order.batch_size) == (7, 15)
