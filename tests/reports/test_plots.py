"""What the plots draw."""

import numpy as np
import pytest

from llmshearing.reports import plots
from llmshearing.reports.runs import read_run


@pytest.fixture
def run(make_run):
    return read_run(make_run())


def lines_of(figure):
    return {line.get_label(): line for plot in figure.axes for line in plot.get_lines()}


def test_held_out_losses_stand_beside_their_references(run):
    figure = plots.held_out(run)
    drawn = [line.get_ydata() for line in figure.axes[0].get_lines()]
    assert len(drawn) == 2 * len(run.domains)
    np.testing.assert_array_equal(drawn[0], run.series("metrics/python/loss").values)
    np.testing.assert_array_equal(drawn[1], run.series("loading/reference/python").values)


def test_expected_sizes_are_parts_of_the_source(run):
    lines = plots.expected_sizes(run).axes[0].get_lines()
    assert lines[0].get_label() == "hidden"
    assert lines[0].get_ydata()[-1] == pytest.approx(0.5)
    assert lines[1].get_ydata()[0] == pytest.approx(1.0)
    assert lines[1].get_ydata()[-1] == pytest.approx(0.5)


def test_expected_sizes_before_the_first_checkpoint(make_run):
    run = read_run(make_run(manifest=False))
    lines = plots.expected_sizes(run).axes[0].get_lines()
    assert lines[1].get_ydata()[0] == pytest.approx(1.0)


def test_masks_are_drawn_in_full(run):
    scores = run.masks[300]
    images = [plot.get_images()[0] for plot in plots.masks(scores).axes[:4]]
    assert [image.get_array().shape for image in images] == [(1, 192), (1, 6), (6, 6), (6, 512)]
    np.testing.assert_array_equal(images[2].get_array(), scores["head"])
    assert np.all(np.diff(images[3].get_array(), axis=1) <= 0)


def test_one_line_a_run(make_run, run):
    other = read_run(make_run("other", prunes=False, steps=100))
    lines = lines_of(plots.held_out_mean([run, other]))
    assert set(lines) == {"prune", "other"}
    assert len(lines["other"].get_ydata()) == 3


def test_nothing_to_draw(make_run):
    plain = read_run(make_run(prunes=False))
    assert plots.expected_sizes(plain) is None
    assert plots.multipliers(plain) is None
    assert plots.masks({}) is None


def test_running_mean_leaves_out_what_is_not_there():
    values = np.arange(100.0)
    values[50] = np.nan
    mean = plots.running_mean(values)
    assert mean[10] == pytest.approx(9.0)
    assert mean[50] == pytest.approx(48.5)
