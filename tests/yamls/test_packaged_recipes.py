"""The recipes that travel with the package."""

from pathlib import Path

from llmshearing.cli import main

YAMLS = Path(__file__).parents[2] / "yamls"


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_recipes_are_copied_into_a_new_folder_only(tmp_path, capsys):
    out = tmp_path / "yamls"
    assert main(["recipes", str(out)]) == 0
    assert files(out) == files(YAMLS)
    (out / "prune/tiny-llama-to-half.yaml").write_text("mine")
    assert main(["recipes", str(out)]) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert (out / "prune/tiny-llama-to-half.yaml").read_text() == "mine"
