"""Domains that take part in some splits only, and their names."""

import json

import pytest
from corpus import prepare, text, write_jsonl

from llmshearing.data.tree import DataTree


def domains_of(root):
    return {split: list(domains) for split, domains in DataTree.open(root).splits.items()}


def test_a_domain_of_weight_0_is_held_out_and_not_trained_on(config, tmp_path):
    settings = json.loads(config.read_text())
    settings["domains"] = {"web": {"weight": 1}, "code": {"weight": 0}}
    settings["splits"] = {"eval": {"share": 0.1}, "prune": {"tokens": 2000}}
    config.write_text(json.dumps(settings))
    assert prepare(config) == 0
    assert domains_of(tmp_path / "tree") == {"eval": ["web", "code"], "prune": ["web"]}


def test_a_domain_may_exist_only_in_eval(config, source, tmp_path, capsys):
    write_jsonl(source / "held" / "a.jsonl", [text(i, 40) for i in range(9000, 9020)])
    settings = json.loads(config.read_text())
    settings["domains"] = {"web": {}, "other": {"eval_files": "held"}}
    config.write_text(json.dumps(settings))
    assert prepare(config) == 0
    found = domains_of(tmp_path / "tree")
    assert "domain other: found no files to train on; only held out" in capsys.readouterr().err
    assert found == {"eval": ["web", "other"], "prune": ["web"], "continue": ["web"]}
    assert DataTree.open(tmp_path / "tree").split("eval")["other"].documents == 20


def test_a_domain_without_files_has_no_part_in_a_budget(config, source, capsys):
    write_jsonl(source / "held" / "a.jsonl", [text(1, 40)])
    assert prepare(config, "domains.other={eval_files: held, weight: 2}") == 2
    assert "domain other: found weight 2 and no files" in capsys.readouterr().err


def test_eval_files_without_text_to_train_on_are_only_for_a_domain_without_files(
    config, source, capsys
):
    write_jsonl(source / "held" / "a.jsonl", [text(1, 40)])
    override = "domains.web={files: held, eval_files: held}"
    assert prepare(config, override) == 2
    assert "domain web" in capsys.readouterr().err


def test_text_that_earlier_budgets_take_whole_leaves_a_later_share_empty(
    config, source, tmp_path, caplog
):
    settings = json.loads(config.read_text())
    budget = {"tokens_per_domain": "7k"}
    settings["splits"] = {"eval": {"share": 0.1}, "prune": budget, "continue": {"share": 1}}
    config.write_text(json.dumps(settings))
    write_jsonl(source / "web" / "more.jsonl", [text(i, 60) for i in range(3000, 3200)])
    assert prepare(config, "missing_tokens=1") == 0
    assert domains_of(tmp_path / "tree")["continue"] == ["web"]
    assert "continue/code is left out: earlier budgets take all of its text" in caplog.text
    assert "continue/web is left out" not in caplog.text


def test_a_split_without_any_row_is_refused(config, capsys):
    settings = json.loads(config.read_text())
    budget = {"tokens_per_domain": "1M"}
    settings["splits"] = {"eval": {"share": 0.1}, "prune": budget, "continue": {"share": 1}}
    config.write_text(json.dumps(settings))
    assert prepare(config, "missing_tokens=1") == 2
    assert "continue/web: 0 documents" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no", "2023", "c4.en", "1e3", "null", "true", "x" * 200])
def test_a_domain_may_have_any_name_that_a_folder_may(config, source, tmp_path, name):
    (source / "code").rename(source / name)
    settings = json.loads(config.read_text())
    yaml = config.with_name("names.yaml")
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items() if key != "domains"]
    lines += ["domains:", "  web: {}", f"  {name}: {{text_field: text}}"]
    yaml.write_text("\n".join(lines))
    assert prepare(yaml) == 0
    assert domains_of(tmp_path / "tree")["eval"] == ["web", name]
    assert prepare(yaml, f"domains.{name}.text_field=text") == 0


def test_a_name_too_long_for_a_file_is_refused(config, capsys):
    settings = json.loads(config.read_text())
    settings["domains"] = {"x" * 300: {"files": "web"}}
    config.write_text(json.dumps(settings))
    assert prepare(config) == 2
    assert "of at most 200 letters" in capsys.readouterr().err
