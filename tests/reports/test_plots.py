"""What the plots draw."""

import html
import json

import numpy as np
import pytest

from llmshearing.reports import plots
from llmshearing.reports.run_directory import HELD_OUT, Series, read_run
from llmshearing.reports.style import as_svg


@pytest.fixture
def run(make_run):
    return read_run(make_run())


def lines_of(figure):
    return {line.get_label(): line for plot in figure.axes for line in plot.get_lines()}


def test_held_out_losses_are_drawn_with_their_references(run):
    figure = plots.held_out(run)
    drawn = [line.get_ydata() for line in figure.axes[0].get_lines()]
    assert len(drawn) == 2 * len(run.group(HELD_OUT))
    np.testing.assert_array_equal(drawn[0], run.series("metrics/python/loss").values)
    np.testing.assert_array_equal(drawn[1], run.series("mixture/reference/python").values)


def test_expected_sizes_are_fractions_of_the_source(run):
    lines = plots.expected_sizes(run).axes[0].get_lines()
    assert lines[0].get_label() == "hidden"
    assert lines[0].get_ydata()[-1] == pytest.approx(0.5)
    assert lines[1].get_ydata()[0] == pytest.approx(1.0)
    assert lines[1].get_ydata()[-1] == pytest.approx(0.5)


def test_expected_sizes_before_the_first_checkpoint(make_run):
    run = read_run(make_run(manifest=False))
    lines = plots.expected_sizes(run).axes[0].get_lines()
    assert lines[1].get_ydata()[0] == pytest.approx(1.0)


def test_excess_is_relative_to_the_reference_at_each_step(make_run):
    directory = make_run()
    lines = [json.loads(text) for text in (directory / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "mixture/reference/python" in line["metrics"]:
            line["metrics"]["mixture/reference/python"] = 4.0 - line["batch"] / 300
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)
    run = read_run(directory)
    figure = plots.excess(run)
    assert figure.axes[0].get_lines()[-1].get_ydata() == [0, 0]  # the reference itself
    drawn = lines_of(figure)["python"].get_ydata()
    losses = run.series("metrics/python/loss").values
    np.testing.assert_allclose(drawn, losses - (4.0 - np.arange(0, 301, 50) / 300))


def test_a_long_run_is_thinned_and_keeps_its_last_point():
    steps = np.arange(50_000)
    shown = plots.thinned(Series(steps, steps * 7, steps / 2))
    assert len(shown.steps) == plots.MOST_POINTS
    assert (shown.steps[0], shown.steps[-1]) == (0, 49_999)
    np.testing.assert_array_equal(shown.values, shown.steps / 2)
    np.testing.assert_array_equal(shown.tokens, shown.steps * 7)


def test_comparisons_have_one_line_per_run(make_run, run):
    other = read_run(make_run("other", prunes=False, steps=100))
    lines = lines_of(plots.held_out_mean([run, other]))
    assert set(lines) == {"prune", "other"}
    assert len(lines["other"].get_ydata()) == 3


@pytest.mark.parametrize("name", ["run$\\frac$", "a$b_{c$", "x^2_\\alpha", "$"])
def test_run_names_are_not_parsed_as_math(make_run, name):
    figure = plots.training_loss([read_run(make_run(name))])
    assert f">{html.escape(name)}</text>" in as_svg(figure, "x")


def test_what_a_run_lacks_is_not_drawn(make_run):
    plain = read_run(make_run(prunes=False))
    assert plots.expected_sizes(plain) is None
    assert plots.multipliers(plain) is None
    assert plots.distillation(plain) is None
    assert plots.divergence(plain) is None
    assert plots.excess(read_run(make_run("bare", references=False))) is None


def test_the_running_mean_skips_missing_values():
    values = np.arange(100.0)
    values[50] = np.nan
    mean = plots.running_mean(values)
    assert mean[10] == pytest.approx(8.0)
    assert mean[50] == pytest.approx(47.5)
