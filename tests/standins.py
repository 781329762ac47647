"""Local lm-eval tasks with the names of the suite's tasks: two documents each, no network."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": " {{choices[answer]}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ANSWER = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
    ],
}
KINDS = {"lambada_openai": LAST_WORD, "nq_open": ANSWER}


def write(folder: Path, names: list[str], words: list[str]) -> Path:
    """Write task files for `names` with documents made of `words`; `mmlu` is a group of two."""
    folder.mkdir(parents=True)
    data = folder / "documents.jsonl"
    documents = [
        {"question": words[i % len(words)], "choices": words[:4], "answer": i % 4}
        for i in range(40)
    ]
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name in names:
        if name == "mmlu":
            parts = ["mmlu_one", "mmlu_two"]
            mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
            group = {"group": "mmlu", "task": parts, "aggregate_metric_list": [mean]}
            (folder / "mmlu.yaml").write_text(yaml.safe_dump(group))
        else:
            parts = [name]
        for part in parts:
            task = KINDS.get(name, CHOICE) | {
                "task": part,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"train": str(data), "test": str(data)}},
                "test_split": "test",
                "fewshot_split": "train",
            }
            (folder / f"{part}.yaml").write_text(yaml.safe_dump(task))
    return folder
