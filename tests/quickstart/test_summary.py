"""What the path led to."""

import json

import pytest
from rich.console import Console

from llmshearing.files import write_json
from llmshearing.quickstart.record import Record
from llmshearing.quickstart.stages import Layout, Stage
from llmshearing.quickstart.summary import write_results
from llmshearing.quickstart.text import SOURCE

LOSSES = {"source": 4.0, "pruned": 4.9, "sheared": 4.3, "scratch": 4.8}


@pytest.fixture
def finished(tmp_path):
    layout = Layout(tmp_path / "out")
    record = Record.open(layout.root, None)
    record.end(Stage("text", "text", 1.0, ("text",)), 60, 0.5)
    record.end(Stage("prune", "prune", 1.0, ("prune",)), 90, 1.5)
    for name, loss in LOSSES.items():
        shape = SOURCE if name == "source" else SOURCE | {"hidden_size": 64}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 32}
        write_json(layout.model(name) / "config.json", config | shape | {"vocab_size": 2048})
        domains = {"a": {"loss": loss - 0.1}, "b": {"loss": loss + 0.1}}
        write_json(layout.losses(name), {"mean_loss": loss, "domains": domains})
    for name, tokens in {"source": 9000, "prune": 1000, "continue": 500, "scratch": 1500}.items():
        metrics = {"loss/train/ce": 5.0, "metrics/a/loss": 4.0}
        line = {"batch": 3, "tokens": tokens, "seconds": 2.0, "metrics": metrics}
        layout.run(name).mkdir(parents=True)
        (layout.run(name) / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return layout, record


def test_summary_report_and_table(finished, tmp_path, capsys):
    layout, record = finished
    write_results(tmp_path, layout, record, Console(stderr=True, width=300))
    summary = json.loads((layout.root / "summary.json").read_text())
    for name, loss in LOSSES.items():
        assert summary[f"{name}_loss"] == loss
    hidden, inner, layers = 128, SOURCE["intermediate_size"], 4
    block = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    assert summary["source_parameters"] == 2 * 2048 * hidden + layers * block + hidden
    assert summary["sheared_parameters"] == summary["scratch_parameters"]
    assert summary["sheared_parameters"] < summary["source_parameters"]
    assert summary["tokens"] == {"source": 9000, "prune": 1000, "continue": 500, "scratch": 1500}
    assert summary["minutes"] == 2.5
    assert summary["peak_memory_gb"] == 1.5
    shown = capsys.readouterr().err
    for name in LOSSES:
        assert f"models/{name} " in shown
    assert f"Saved in {layout.root}" in shown
    assert "0.500 below" in shown
    page = (layout.root / "report.html").read_text()
    assert "0.500 below" in page
    assert page.index("scratch") < page.index("<svg")
