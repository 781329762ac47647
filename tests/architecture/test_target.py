import pytest

from llmshearing.architecture.shape import Shape
from llmshearing.architecture.target import TargetSettings, resolve_target

MULTI_HEAD = Shape(256, 8, 8, 8, 32, 688, 4096)
GROUPED = Shape(256, 8, 8, 2, 32, 688, 4096)


def test_what_is_not_given_stays():
    target, errors = resolve_target(MULTI_HEAD, TargetSettings(heads=4))
    assert not errors
    assert target == Shape(256, 8, 4, 4, 32, 688, 4096)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (MULTI_HEAD, {"hidden": 300}, "target.hidden: found 300, but the source has 256"),
        (MULTI_HEAD, {"layers": 0}, "target.layers: found 0, expected at least 1"),
        (MULTI_HEAD, {"heads": 4, "kv_groups": 2}, "target.kv_groups: found 2 with 4 heads"),
        (GROUPED, {"heads": 5}, "5 heads do not fit 2 KV groups"),
        (GROUPED, {"heads": 8, "kv_groups": 1}, "are 8 a group, but the source has only 4"),
        (MULTI_HEAD, {"intermediate": 100, "multiple_of": {"intermediate": 64}}, "multiple of 64"),
        (MULTI_HEAD, {"hidden": 8, "multiple_of": {"hiden": 64}}, "unknown size 'hiden'"),
        (MULTI_HEAD, {}, "nothing to prune"),
    ],
)
def test_a_target_out_of_reach_is_refused(source, settings, message):
    _, errors = resolve_target(source, TargetSettings(**settings))
    assert len(errors) == 1
    assert message in errors[0]


def test_every_error_is_told():
    _, errors = resolve_target(MULTI_HEAD, TargetSettings(hidden=999, layers=9, intermediate=-1))
    assert len(errors) == 3
