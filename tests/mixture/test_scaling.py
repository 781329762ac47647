"""The scaling fit: the published reference losses, errors and warnings."""

import pytest
import yaml

from llmshearing import cli
from llmshearing.errors import UserError
from llmshearing.mixture.references import References
from llmshearing.mixture.scaling import Measured, MeasuredModels, fit, fit_file, fit_warnings

DOMAINS = ("cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4-rp")
MEASURED = {
    6_738_415_616: (1.7520, 0.6216, 1.9063, 1.4482, 1.4844, 1.2637, 1.9219),
    13_015_864_320: (1.6680, 0.5791, 1.8242, 1.3936, 1.3945, 1.2109, 1.8486),
    68_976_648_192: (1.4621, 0.4890, 1.6450, 1.2805, 1.2118, 1.1148, 1.6848),
}
PUBLISHED = {
    1_345_423_360: (1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251),
    2_701_560_320: (1.8712, 0.6883, 2.0325, 1.5353, 1.6297, 1.3560, 2.0328),
    373_867_520: (2.1401, 0.8694, 2.3625, 1.7791, 2.0470, 1.6637, 2.3139),
}
MODELS = [
    Measured(parameters=size, losses=dict(zip(DOMAINS, losses, strict=True)))
    for size, losses in MEASURED.items()
]


def run_fit(arguments):
    return cli.main(["reference-loss", "fit", *arguments])


def file_of(models, path):
    entries = [{"parameters": m.parameters, "losses": m.losses} for m in models]
    path.write_text(yaml.safe_dump({"models": entries}, sort_keys=False))
    return str(path)


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_command_reproduces_the_published_losses(size, tmp_path, capsys):
    status = run_fit([file_of(MODELS, tmp_path / "losses.yaml"), "--parameters", str(size)])
    assert status == 0
    out, err = capsys.readouterr()
    losses = yaml.safe_load(out)["losses"]
    assert list(losses) == list(DOMAINS)
    for domain, expected in zip(DOMAINS, PUBLISHED[size], strict=True):
        assert round(losses[domain], 4) == expected
    assert "cc: the curve's asymptote is negative (-2.80)" in err
    assert err.count("asymptote") == 1
    assert "residuals" in err


def test_its_output_is_a_reference_file(tmp_path, capsys):
    run_fit([file_of(MODELS, tmp_path / "losses.yaml"), "--parameters", "1345423360"])
    path = tmp_path / "references.yaml"
    path.write_text(capsys.readouterr().out)
    assert round(References.read(path).losses["wiki"], 4) == 1.7590


def test_an_exact_curve_is_found():
    def loss(size):
        return 300 / size**0.3 + 1.1

    models = [Measured(parameters=size, losses={"a": loss(size)}) for size in (1e8, 1e9, 3e9, 1e10)]
    curve = fit(models)["a"]
    assert curve.at(5e9) == pytest.approx(loss(5e9), abs=1e-6)
    assert max(map(abs, curve.residuals)) < 1e-6
    assert fit_warnings({"a": curve}, models, 2e9) == []


def test_a_target_far_outside_the_measured_sizes_gives_a_warning():
    curves = fit(MODELS)
    assert any("factor 18.0 outside" in text for text in fit_warnings(curves, MODELS, 373_867_520))
    assert not any("outside" in text for text in fit_warnings(curves, MODELS, 2_701_560_320))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (MODELS[:2], "expected at least 3 entries"),
        ([MODELS[0], MODELS[1], MODELS[1]], "expected each size once"),
        ([*MODELS[:2], Measured(parameters=7e10, losses={"cc": 1.0})], "the same domains"),
    ],
)
def test_models_that_do_not_determine_a_curve_are_refused(models, message, tmp_path, capsys):
    assert run_fit([file_of(models, tmp_path / "losses.yaml"), "--parameters", "1e9"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: 3", "models: found 3, expected a list"),
        ("models: [{parameters: 1}]", "models.0.losses: not given"),
        ("models: [{parameters: x, losses: {a: 1}}]", "models.0.parameters: found 'x', expected a"),
        (
            "models: [{parameters: 10, losses: {a: -1}}]",
            "models.0.losses.a: found -1, expected 0 or",
        ),
        ("models: [{parameters: 10, losses: {a: .nan}}]", "models.0.losses.a: found nan"),
        (
            "models: [{parameters: 0, losses: {a: 1}}]",
            "models.0.parameters: found 0, expected more",
        ),
        ("- 1", "holds no mapping of keys, expected a file of measured losses"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_file_of_another_form_is_refused(text, message, tmp_path, capsys):
    path = tmp_path / "losses.yaml"
    path.write_text(text)
    assert run_fit([str(path), "--parameters", "1e9"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("size", [-1.0, float("inf")])
def test_a_size_must_be_a_finite_number_above_zero(size, tmp_path):
    with pytest.raises(UserError, match="expected a number above 0"):
        fit_file(file_of(MODELS, tmp_path / "losses.yaml"), size)


def test_models_are_sorted_by_size():
    models = MeasuredModels(models=MODELS[::-1])
    assert [model.parameters for model in models.by_size] == list(MEASURED)
