"""Times per token of shapes, predicted from timed blocks."""

import dataclasses

import torch

from llmshearing.architecture.space import resolve_space
from llmshearing.architecture.target import ServingSettings, TargetSettings
from llmshearing.evaluation.latency import (
    BlockTimes,
    largest_of,
    shapes_to_time,
    time_blocks,
)
from llmshearing.huggingface.source import read_source


def grid_of(source):
    half = source.table.parameter_count(source.table.source) // 2
    space, errors = resolve_space(source.table, TargetSettings(parameters=str(half)), 3)
    assert not errors
    return space.within(source.table)


def test_times_that_add_up_are_predicted_exactly(model_directory):
    shapes = grid_of(read_source(model_directory))

    def block(shape):
        return shape.hidden * (3e-3 * shape.heads + 1e-3 * shape.intermediate)

    def rest(shape):
        return 0.5 + 0.1 * shape.hidden

    wanted = shapes_to_time(shapes)
    predict = BlockTimes({one: (block(one), rest(one)) for one in wanted}, largest_of(wanted))
    for shape in shapes:
        expected = rest(shape) + shape.layers * block(shape)
        assert abs(predict(shape) - expected) < 1e-9 * expected


def test_fewer_shapes_are_timed_than_predicted(model_directory):
    shapes = grid_of(read_source(model_directory))
    wanted = shapes_to_time(shapes)
    assert len(wanted) < len({dataclasses.replace(shape, layers=1) for shape in shapes})
    assert {shape.layers for shape in wanted} == {max(s.layers for s in shapes)}


def test_blocks_and_the_rest_take_time_in_generation(model_directory):
    source = read_source(model_directory)
    serving = ServingSettings(batch=2, prompt=4, new_tokens=20, dtype="float32")
    shape = dataclasses.replace(source.table.source, hidden=8)
    block, rest = time_blocks(source, shape, serving, torch.device("cpu"))
    assert 0 < block < 1000
    assert 0 < rest < 1000
