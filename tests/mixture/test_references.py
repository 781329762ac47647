"""Reference files: what is in them and what they are checked against."""

import pytest

from llmshearing.errors import UserError
from llmshearing.mixture.references import References

RUN = {
    "domains": ["cc", "wiki"],
    "tokenizer": "a" * 64,
    "sequence_length": 256,
    "fingerprints": {"cc": "1", "wiki": "2"},
}
MEASURED = References({"cc": 2.0, "wiki": 1.5}, "measured", "a" * 64, 256, {"cc": "1", "wiki": "2"})


def test_a_file_gives_back_what_was_written(tmp_path):
    MEASURED.write(tmp_path / "references.yaml")
    assert References.read(tmp_path / "references.yaml") == MEASURED


def test_fitting_references_have_no_errors():
    assert MEASURED.errors("file", **RUN) == []


def test_losses_alone_are_taken_but_tell_nothing(tmp_path):
    path = tmp_path / "references.yaml"
    path.write_text("losses: {cc: 2.0, wiki: 1.5}")
    found = References.read(path)
    assert found.errors(path, **RUN) == []
    assert not found.tells_its_data
    assert MEASURED.tells_its_data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": ["cc", "wiki", "arxiv"]}, "no reference loss for arxiv"),
        ({"domains": ["cc"]}, "losses for wiki, which the data does not have"),
        ({"tokenizer": "b" * 64}, "another tokenizer"),
        ({"sequence_length": 512}, "rows of 256 tokens, the data has rows of 512"),
        ({"fingerprints": {"cc": "1", "wiki": "3"}}, "loss of wiki was measured on other"),
    ],
)
def test_references_of_something_else_are_told_in_one_message(change, message):
    errors = MEASURED.errors("file", **{**RUN, **change})
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses: {cc: -1}", "found loss -1 of cc"),
        ("losses: {cc: .nan}", "found loss nan of cc"),
        ("losses: {cc: high}", "found loss 'high' of cc"),
        ("losses: {cc: null}", "found loss None of cc"),
        ("losses: {}", "found no `losses`"),
        ("cc: 1.0", "found no `losses`"),
        ("1.0", "found float"),
        ("losses: [", "not valid YAML"),
    ],
)
def test_files_without_usable_losses_are_refused(text, message, tmp_path):
    path = tmp_path / "references.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        References.read(path)


def test_a_missing_file_is_told():
    with pytest.raises(UserError, match="found no reference file at nowhere"):
        References.read("nowhere")
