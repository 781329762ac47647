"""Exported models in lm-eval, on a local task and without a network."""

import json

import pytest
import yaml
from transformers import AutoTokenizer

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install .[eval]")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.mark.usefixtures("auto_tokenizer")
def test_lm_eval_generates_the_same_greedy_tokens(exported, greedy, tmp_path, monkeypatch):
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    documents = tmp_path / "documents.jsonl"
    documents.write_text(json.dumps({"text": "stone3 river1 def2", "answer": "x"}) + "\n")
    task = {
        "task": "go_on",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n\n"], "do_sample": False, "max_gen_toks": 64},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    }
    (tmp_path / "go_on.yaml").write_text(yaml.safe_dump(task))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(exported)},
        tasks=["go_on"],
        device="cpu",
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    (sample,) = found["samples"]["go_on"]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert sample["resps"][0][0] == tokenizer.decode(greedy[1], skip_special_tokens=True)
