"""The results of a finished quickstart."""

import json

from llmshearing.files import write_json
from llmshearing.mixture.references import References
from llmshearing.quickstart.gather import SOURCE
from llmshearing.quickstart.results import write_results

LOSSES = {"source": 4.0, "pruned": 4.9, "sheared": 4.3, "scratch": 4.8}
TOKENS = {"source": 9000, "prune": 1000, "continue": 500, "scratch": 1500}


def make_finished(out):
    """What the steps leave behind."""
    for name, seconds, peak in (("gather", 60, 0.5), ("prune", 90, 1.5)):
        write_json(out / f"done/{name}.json", {"seconds": seconds, "peak_memory_gb": peak})
    for name, loss in LOSSES.items():
        hidden = 128 if name == "source" else 64
        config = SOURCE.to_dict() | {"hidden_size": hidden, "head_dim": 32}
        write_json(out / f"models/{name}/config.json", config)
        losses = {"a": loss - 0.1, "b": loss + 0.1}
        if name == "source":
            References(losses=losses).write(out / "references.yaml")
        domains = {domain: {"loss": value} for domain, value in losses.items()}
        write_json(out / f"losses/{name}.json", {"domains": domains})
    for name, tokens in TOKENS.items():
        metrics = {"loss/train/ce": 5.0, "metrics/a/loss": 4.0}
        line = {"batch": 3, "tokens": tokens, "seconds": 2.0, "metrics": metrics}
        (out / "runs" / name).mkdir(parents=True)
        (out / "runs" / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def test_summary_report_and_table(tmp_path, capsys):
    make_finished(tmp_path)
    write_results(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name, loss in LOSSES.items():
        assert summary[f"{name}_loss"] == loss
    hidden, inner, layers = 128, SOURCE.intermediate_size, 4
    block = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    assert summary["source_parameters"] == 2 * 2048 * hidden + layers * block + hidden
    assert summary["sheared_parameters"] == summary["scratch_parameters"]
    assert summary["sheared_parameters"] < summary["source_parameters"]
    assert summary["tokens"] == TOKENS
    assert summary["minutes"] == 2.5
    assert summary["peak_memory_gb"] == 1.5
    shown = capsys.readouterr().out
    for name, loss in LOSSES.items():
        assert f"\n{name}: " in shown
        assert f"{loss:.4f}" in shown
    assert "0.500 below" in shown
    assert str(tmp_path / "report.html") in shown
    page = (tmp_path / "report.html").read_text()
    assert "0.500 below" in page
    assert page.index("scratch") < page.index("<svg")
