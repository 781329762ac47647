"""Masks as heat maps, counts and tables."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmshearing.pruning.selection import UNDECIDED
from llmshearing.reports import mask_plots, plots, run_tables
from llmshearing.reports.run_directory import read_run


@pytest.fixture
def run(make_run):
    return read_run(make_run())


def test_heat_maps_show_every_unit(run):
    scores = run.masks[300]
    images = [plot.get_images()[0] for plot in mask_plots.heat_maps(scores).axes[:4]]
    assert [image.get_array().shape for image in images] == [(1, 192), (1, 6), (6, 6), (6, 512)]
    np.testing.assert_array_equal(images[1].get_array()[0], scores["layer"])
    np.testing.assert_array_equal(images[2].get_array(), scores["head"])
    for image, axis in ((images[0], "hidden"), (images[3], "intermediate")):
        assert np.all(np.diff(image.get_array(), axis=1) <= 0)
        np.testing.assert_array_equal(
            np.sort(image.get_array(), axis=1), np.sort(np.atleast_2d(scores[axis]), axis=1)
        )
    assert mask_plots.heat_maps({}) is None


def test_heat_maps_grow_with_the_layers_within_bounds():
    def height(layers):
        return mask_plots.heat_maps({"head": np.ones((layers, 4))}).get_size_inches()[1]

    assert height(4) == height(2)
    assert height(4) < height(24)
    assert height(80) == height(200)


def test_units_are_kept_undecided_or_off():
    scores = np.array([[1.0, 0.96, 0.5], [0.949, 0.051, 0.01]])
    assert mask_plots.count_units(scores) == (2, 3, 1)
    bounds = (1 - mask_plots.SURE, mask_plots.SURE)
    assert bounds == pytest.approx(UNDECIDED)  # those of the mask report


def test_undecided_units_over_time(run):
    lines = {line.get_label(): line for line in mask_plots.undecided(run).axes[0].get_lines()}
    assert set(lines) == {"hidden", "layer", "head", "intermediate"}
    assert list(lines["head"].get_xdata()) == [0, 300]
    head = run.masks[300]["head"]
    expected = np.mean((head > 0.05) & (head < 0.95))
    assert lines["head"].get_ydata()[1] == pytest.approx(expected)
    del run.masks[0]
    assert mask_plots.undecided(run) is None


def test_tables_count_what_the_masks_hold(make_run):
    directory = make_run()
    scores = {
        "hidden": np.array([1.0, 0.99, 0.5, 0.0], dtype=np.float32),
        "layer": np.array([1.0, 0.25], dtype=np.float32),
        "head": np.array([[1.0, 1.0, 0.5], [0.0, 0.5, 0.0]], dtype=np.float32),
    }
    save_file(scores, directory / "masks/ba301.safetensors")
    run = read_run(directory)
    units = {row[0]: row[1:] for row in mask_plots.units_table(run).rows}
    assert units["hidden"] == ("192", "96", "2.5", "2", "1", "1")
    assert units["head (per layer)"] == ("6", "3", "1.5", "2", "2", "2")
    layers = mask_plots.layers_table(run)
    assert layers.header == ("layer", "stays", "head")
    assert layers.rows == [("0", "1.00", "2 / 1 / 0"), ("1", "0.25", "0 / 1 / 2")]


def test_tables_before_the_first_checkpoint_and_without_masks(make_run):
    live = read_run(make_run(manifest=False))
    units = {row[0]: row[1:3] for row in mask_plots.units_table(live).rows}
    assert units["intermediate (per layer)"] == ("512", "-")
    plain = read_run(make_run("plain", prunes=False))
    assert not mask_plots.units_table(plain).rows
    assert not mask_plots.layers_table(plain).rows


def test_grouped_axes_have_sizes_of_their_own(make_run):
    run = read_run(make_run())
    run.manifest.source.config["num_key_value_heads"] = 3
    target = replace(run.manifest.target, heads=2, kv_groups=1)
    run = replace(run, manifest=replace(run.manifest, target=target))
    sizes = run.axis_sizes()
    assert sizes["kv_group"] == (3, 1)
    assert sizes["head"] == (2, 2)


def test_a_budget_without_a_shape_yet_has_no_target_sizes(make_run):
    run = read_run(make_run())
    run = replace(run, manifest=replace(run.manifest, target=None))
    units = {row[0]: row[1:3] for row in mask_plots.units_table(run).rows}
    assert units["hidden"] == ("192", "-")
    assert "target parameters" not in dict(run_tables.details(run).rows)
    assert plots.expected_sizes(run).axes[0].get_lines()[0].get_ydata()[-1] == pytest.approx(0.5)
