"""Mixture files, from one run to the next."""

import pytest

from llmshearing.errors import UserError
from llmshearing.mixture.mixture_file import read_mixture, write_mixture

MIXTURE = {"weights": {"cc": 0.75, "wiki": 0.25}, "shares": {"cc": 0.7, "wiki": 0.3}}


@pytest.mark.parametrize("what", ["weights", "shares"])
def test_either_part_is_read_back(what, tmp_path):
    write_mixture(tmp_path / "mixture.yaml", MIXTURE)
    assert read_mixture(tmp_path / "mixture.yaml", what) == pytest.approx(MIXTURE[what])


def test_rounded_weights_are_scaled(tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text("weights: {a: 0.333, b: 0.333, c: 0.333}")
    assert sum(read_mixture(path, "weights").values()) == pytest.approx(1, abs=1e-12)


def test_weights_far_from_a_sum_of_1_are_not_scaled(tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text("weights: {a: 0.5, b: 0.3}")
    assert read_mixture(path, "weights") == {"a": 0.5, "b": 0.3}


@pytest.mark.parametrize(
    ("text", "message"),
    [("shares: {a: 1}", "found no `weights`"), ("weights: {a: x}", "expected a number for each")],
)
def test_a_file_of_another_form_is_refused(text, message, tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_mixture(path, "weights")


def test_a_missing_file_is_refused():
    with pytest.raises(UserError, match="found no mixture file"):
        read_mixture("nowhere.yaml", "weights")
