"""Reference files: what they hold and how they are checked."""

from dataclasses import replace

import pytest

from llmshearing.errors import UserError
from llmshearing.mixture.references import References, RunData

RUN = RunData(["cc", "wiki"], [90, 10], "a" * 64, 256, {"cc": "1", "wiki": "2"})


MEASURED = References(
    losses={"cc": 2.0, "wiki": 1.5},
    source="measured",
    tokenizer="a" * 64,
    sequence_length=256,
    fingerprints={"cc": "1", "wiki": "2"},
)


def test_a_written_file_is_read_back(tmp_path):
    MEASURED.write(tmp_path / "references.yaml")
    assert References.read(tmp_path / "references.yaml") == MEASURED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": ["cc", "wiki", "arxiv"]}, "file: no entry for arxiv"),
        ({"domains": ["cc"]}, "file: unknown domain wiki; the data has cc"),
        ({"tokenizer": "b" * 64}, "another tokenizer"),
        ({"sequence_length": 512}, "rows of 256 tokens, the data has rows of 512"),
        ({"fingerprints": {"cc": "1", "wiki": "3"}}, "loss of wiki was measured on other"),
    ],
)
def test_references_that_do_not_fit_give_one_error(change, message):
    errors = MEASURED.errors("file", replace(RUN, **change))
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses: {cc: -1}", "losses.cc: found -1, expected 0 or more"),
        ("losses: {cc: .nan}", "losses.cc: found nan, expected a finite number"),
        ("losses: {cc: high}", "losses.cc: found 'high', expected a number"),
        ("losses: {cc: null}", "losses.cc: found None, expected a number"),
        ("losses: {}", "losses: found {}, expected at least 1 entries"),
        ("cc: 1.0", "losses: not given"),
        ("1.0", "holds no mapping of keys, expected a reference file"),
        ("losses: [", "not valid YAML"),
    ],
)
def test_a_file_without_usable_losses_is_refused(text, message, tmp_path):
    path = tmp_path / "references.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        References.read(path)


def test_a_missing_file_is_refused():
    with pytest.raises(UserError, match="found no reference file at nowhere"):
        References.read("nowhere")
