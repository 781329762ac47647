"""Batches for the model, and the state of the training rows."""

import numpy as np
import pytest
import torch
from mds_trees import LENGTH, VOCABULARY, make_tree, tokens_of

from llmshearing.data.dataset import ERROR, HeldOutRows, TrainRows, read_rows
from llmshearing.data.domains import DomainRows
from llmshearing.errors import UserError
from llmshearing.mixture.mixture_plan import MixturePlan
from llmshearing.mixture.sampler import DomainSource, Sampler


@pytest.fixture
def domains(tmp_path):
    root = make_tree(tmp_path / "tree", {"cc": 40, "chat": 30}, chat="chat")
    return [DomainRows(name, root / "prune" / name) for name in ("cc", "chat")]


@pytest.fixture
def rows(domains):
    sources = [DomainSource(d.name, len(d), d.block) for d in domains]
    return TrainRows(
        domains, LENGTH, VOCABULARY, Sampler(sources, MixturePlan.start([0.5, 0.5]), 17)
    )


def test_a_batch_holds_the_requested_rows(rows):
    batch = rows.__getitems__(np.array([[100, 0, 7], [101, 1, 3]]))
    expected = np.stack([tokens_of(0, 7), tokens_of(1, 3)]).astype(np.int64)
    np.testing.assert_array_equal(batch["input_ids"], expected)
    assert batch["domain"].tolist() == [0, 1]
    assert batch["sample_id"].tolist() == [100, 101]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert batch["labels"][0].tolist() == expected[0].tolist()
    assert batch["labels"][1].tolist() == [
        token if i % 2 == 0 else -100 for i, token in enumerate(expected[1].tolist())
    ]


def test_labels_do_not_share_memory_with_inputs(rows):
    batch = rows.__getitems__(np.array([[0, 0, 7]]))
    batch["labels"][:] = -100
    assert (batch["input_ids"] >= 0).all()


def test_damaged_data_is_returned_as_an_error_message(rows, domains):
    for shard in domains[0].local.glob("shard.*.mds"):
        shard.unlink()
    assert "No such file" in rows.__getitems__(np.array([[0, 0, 7]]))[ERROR]


def test_ids_outside_the_vocabulary_are_refused(domains):
    with pytest.raises(UserError, match=r"row 7 of domain cc .* expected ids below 20"):
        read_rows(domains, [(0, 7)], LENGTH, 20)


def test_rows_of_another_length_are_refused(domains):
    with pytest.raises(UserError, match="with 16 ids, expected 17"):
        read_rows(domains, [(0, 7)], LENGTH + 1, VOCABULARY)


def test_the_state_counts_only_samples_trained_on(rows):
    for _ in range(4):
        rows.sampler.take(8)
    state = rows.state_dict(16)
    assert state["sample"] == 16
    rows.load_state_dict(state)
    assert rows.sampler.cursor.sample == 16


def test_the_state_after_the_last_batch_is_the_end_of_the_data(domains):
    sources = [DomainSource(d.name, len(d), d.block, passes=1) for d in domains]
    rows = TrainRows(
        domains, LENGTH, VOCABULARY, Sampler(sources, MixturePlan.start([0.5, 0.5]), 17)
    )
    while rows.sampler.take(8):
        pass
    assert rows.state_dict(0)["sample"] == rows.sampler.cursor.sample == 56


def test_padding_rows_have_no_targets(domains):
    held_out = HeldOutRows(domains[0], 0, LENGTH, VOCABULARY)
    batch = held_out.__getitems__([3, -1])
    assert batch["labels"][0].tolist() == tokens_of(0, 3).tolist()
    assert (batch["labels"][1] == -100).all()


def test_a_limit_selects_evenly_spread_rows(domains):
    held_out = HeldOutRows(domains[0], 0, LENGTH, VOCABULARY, limit=10)
    assert len(held_out) == 10
    batch = held_out.__getitems__(list(range(10)))
    assert (batch["input_ids"][:, 1] % 256).tolist() == list(range(0, 40, 4))


def test_a_domain_without_held_out_rows_is_refused(domains):
    with pytest.raises(UserError, match="found no held-out row"):
        HeldOutRows(domains[0], 0, LENGTH, VOCABULARY, limit=0)
