"""A user's mistakes: one message each, all at once, exit status 2 and no traceback."""

import json
import re
import shutil

import pytest
from runs import launch
from sentencepiece import sentencepiece_model_pb2

from llmshearing.cli import STAGES, main, parse
from llmshearing.data.schema import fingerprint
from llmshearing.errors import UserError
from llmshearing.preflight import resolve

CASES = {
    "misspelled key": (["data.workrs=1"], "unknown key in data; did you mean data.workers?"),
    "misspelled section": (["optimiser.eps=1"], "did you mean optimizer?"),
    "wrong type": (["data.microbatch=many"], "data.microbatch: found 'many', expected a whole"),
    "no unit": (["run.duration=300"], "run.duration: found '300', expected steps with a unit"),
    "target larger": (["target.hidden=64"], "target.hidden: found 64, but the source has 32"),
    "weights": (["mixture.weights={prose: 0.5, code: 0.5, letters: 0.5}"], "found a sum of 1.5"),
    "unknown domain": (["mixture.weights={prse: 1.0}"], "did you mean prose"),
    "policy": (["mixture.policy=papper"], "found 'papper', expected 'constant', 'paper'"),
    "distribution": (["pruning.distribution=hard"], "pruning.distribution: found 'hard'"),
    "constraint": (["pruning.constraint=soft"], "pruning.constraint: found 'soft'"),
    "never on": (["pruning.init_log_alpha=-1"], "found -1.0, expected more than 0"),
    "start": (["pruning.init_log_alpha=6"], "init_log_alpha: found 6, expected less than 5"),
    "mask rate": (["pruning.learning_rate=0"], "pruning.learning_rate: found 0, expected more"),
    "never ends": (["pruning.warmup=9ba"], "pruning.warmup: found '9ba', expected at most run.dur"),
    "no time to decide": (
        ["pruning.freeze=3ba", "pruning.warmup=3ba"],
        "pruning.freeze: found '3ba', expected a time after pruning.warmup = 3ba",
    ),
    "no tree": (["data.root=nowhere"], "found no data tree at nowhere"),
    "no split": (["data.split=train"], "expected `train`"),
    "no model": (["model.path=nowhere"], "found no config.json in nowhere"),
    "microbatch": (["data.microbatch=16"], "expected at most data.global_batch = 8"),
    "parallelism": (["parallelism=fsdp3"], "parallelism: found 'fsdp3', expected 'fsdp2',"),
    "checkpoint": (["run.checkpoint=split"], "run.checkpoint: found 'split', expected 'full' or"),
    "no rows": (["data.eval_rows=0"], "data.eval_rows: found 0, expected 1 or more"),
    "more workers than batches": (["data.workers=5"], "found 5 with mixture.prefetch 4, expected"),
    "workers": (["data.workers=-1"], "data.workers: found -1, expected 0 or more"),
    "infinite rate": (["optimizer.learning_rate=.inf"], "rate: found inf, expected a finite"),
    "no rate": (["pruning.learning_rate=.nan"], "learning_rate: found nan, expected a finite"),
    "infinite decay": (["optimizer.weight_decay=1e999"], "decay: found inf, expected a finite"),
    "infinite eta": (["mixture.eta=.inf"], "mixture.eta: found inf, expected a finite number"),
    "endless": (["run.duration=100000000000000000000ba"], "expected steps with a unit, e.g. 300ba"),
    "1e20": (["run.duration=1e20"], "run.duration: found '1e20', expected steps with a unit"),
    "seed": (["run.seed=4294967296"], "found 4294967296, expected less than 2147483648"),
    "seed below": (["run.seed=-1"], "run.seed: found -1, expected 0 or more"),
    "batch": (["data.global_batch=99999999999"], "data.global_batch: found 99999999999, expected"),
    "timeout": (["run.step_timeout=99999999999h"], "run.step_timeout: found '99999999999h'"),
    "betas": (["optimizer.betas=[0.9]"], "optimizer.betas: found [0.9], expected at least 2"),
    "fraction": (["optimizer.final_fraction=10"], "final_fraction: found 10, expected at most 1"),
    "none kept": (["run.keep_checkpoints=0"], "run.keep_checkpoints: found 0, expected 1 or more"),
    "not an assignment": (["data.workers"], "data.workers: expected key=value"),
    "no value of YAML": (["data.workers=["], "data.workers=[: not valid YAML"),
    "no such reference": (["run.seed=${run.sed}"], "run.seed: Interpolation key 'run.sed' not"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_mistake_has_its_message(recipe_file, case, capsys):
    overrides, message = CASES[case]
    assert main(["validate", str(recipe_file), *overrides]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_a_right_recipe_is_told_its_sizes(recipe_file, capsys):
    assert main(["validate", str(recipe_file)]) == 0
    told = capsys.readouterr().out
    assert "no errors" in told
    last = told.splitlines()[-1]
    assert re.fullmatch(r"target .*hidden.*: [\d,]+ parameters, by masks", last), last


def test_overrides_may_stand_behind_options(recipe_file, capsys):
    given = ["validate", str(recipe_file), "data.microbatch=2", "--ranks", "3", "data.workers=-1"]
    assert main(given) == 2
    told = capsys.readouterr().err
    assert "data.workers: found -1" in told
    assert "data.global_batch: found 8 rows for 3 ranks" in told
    assert main(["validate", str(recipe_file), "--rnks=3"]) == 2
    assert "unrecognized arguments: --rnks=3" in capsys.readouterr().err


NUMBERS = {
    "validate R --ranks 0": "--ranks: found 0, expected 1 or more",
    "plan R --gpus -8": "--gpus: found -8, expected 1 or more",
    "plan R --gpu-memory nan": "--gpu-memory: found nan, expected a finite number above 0",
    "plan R --mfu inf": "--mfu: found inf, expected a finite number",
    "benchmark M --tasks piqa --limit -1": "--limit: found -1, expected 1 or more",
    "benchmark M --tasks piqa --limit 2.5": "--limit: found 2.5, expected 1 or more",
    "evaluate M --data D --batch-size 0": "--batch-size: found 0",
    "throughput M --batch-sizes 1 0": "--batch-sizes: found 0",
    "importance M --data D --out F --rows 99999999999": "found 99999999999, expected 1 or more, be",
    "prune-oneshot M O --target hidden=1 --seed -1": "--seed: found -1, expected 0 or more",
    "reference-loss fit L --parameters -1": "--parameters: found -1",
    "export R": "the following arguments are required: OUT_DIR; see llmshearing export --help",
    "exprt R": "invalid choice: 'exprt'",
}


@pytest.mark.parametrize("line", NUMBERS)
def test_arguments_out_of_range_are_refused(line, capsys):
    assert main(line.split()) == 2
    assert NUMBERS[line] in capsys.readouterr().err


def test_paths_of_arguments_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    options = parse(["export", "~/run", "~/out", "--tokenizer", "~/t"])
    assert [str(p) for p in (options.run, options.out, options.tokenizer)] == [
        "/home/someone/run", "/home/someone/out", "/home/someone/t"
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["folder", "file/under"])
def test_a_place_that_cannot_be_written_to(recipe_file, tmp_path, place, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    given = ["plan", str(recipe_file), "--gpu", "cpu", "--gpus", "1", "--json"]
    assert main([*given, str(tmp_path / place)]) == 2
    told = capsys.readouterr().err
    assert f"error: cannot use {tmp_path / place.split('/')[0]}" in told
    assert "Choose another path" in told


def test_all_errors_at_once(recipe_file):
    overrides = [override for case in ("misspelled key", "no unit", "target larger", "weights")
                 for override in CASES[case][0]]  # fmt: skip
    with pytest.raises(UserError, match="has 4 errors"):
        resolve(recipe_file, overrides)


def test_a_missing_value_is_named(recipe_file):
    recipe = json.loads(recipe_file.read_text())
    del recipe["model"]
    recipe_file.write_text(json.dumps(recipe))
    with pytest.raises(UserError, match=r"model.path: not given"):
        resolve(recipe_file)


def test_heads_that_do_not_fit_the_groups(recipe_file, tiny_model, tmp_path):
    grouped = tmp_path / "grouped"
    shutil.copytree(tiny_model, grouped)
    config = json.loads((grouped / "config.json").read_text())
    (grouped / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 2}))
    with pytest.raises(UserError, match="3 heads do not divide into 2 KV groups"):
        resolve(recipe_file, [f"model.path={grouped}", "target.heads=3"])


def test_a_domain_without_rows(recipe_file, tiny_tree, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(tiny_tree, tree)
    manifest = json.loads((tree / "manifest.json").read_text())
    manifest["splits"]["prune"]["prose"] |= {"rows": 0, "fingerprint": fingerprint([])}
    (tree / "manifest.json").write_text(json.dumps(manifest))
    (tree / "prune/prose/index.json").write_text('{"shards": [], "version": 2}')
    with pytest.raises(UserError, match="domain prose has no rows in split prune"):
        resolve(recipe_file, [f"data.root={tree}"])


def test_a_model_without_tokenizer_and_one_with_another(recipe_file, tiny_model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="found no tokenizer in"):
        resolve(recipe_file, [f"model.path={bare}"])
    (bare / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match=r"tokenizer\.model is not a tokenizer"):
        resolve(recipe_file, [f"model.path={bare}"])
    saved = sentencepiece_model_pb2.ModelProto.FromString(
        (tiny_model / "tokenizer.model").read_bytes()
    )
    saved.trainer_spec.model_prefix = "saved-again"
    (bare / "tokenizer.model").write_bytes(saved.SerializeToString())
    resolve(recipe_file, [f"model.path={bare}"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": ', "config.json is not valid JSON"),
        ("[]", "config.json is not a JSON object"),
    ],
)
@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_a_config_that_is_none(recipe_file, tmp_path, capsys, verb, config, message):
    (tmp_path / "config.json").write_text(config)
    assert main([verb, str(recipe_file), f"model.path={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_weights_that_do_not_fit_the_config(recipe_file, tiny_model, tmp_path):
    from llmshearing.huggingface.source import load_model, read_source

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match="do not fit its config"):
        load_model(read_source(broken))


def test_the_launched_run_ends_with_status_2(recipe_file):
    done = launch(1, recipe_file, "data.workrs=1")
    assert done.returncode == 2
    assert "did you mean data.workers?" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_help_names_every_command_with_an_example_that_parses(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for stage, commands in STAGES.items():
        assert f"\n{stage}:\n" in text
        for name, example, _ in commands:
            assert f"  {name} " in text
            assert f"llmshearing {name} {example}\n" in text
            assert callable(parse([*name.split(), *example.split()]).function)
    assert max(map(len, text.splitlines())) <= 120
