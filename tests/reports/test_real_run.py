"""A run of the real trainer has everything that a report draws."""

import pytest
from runs import run_here

from llmshearing.reports import mask_plots, plots, run_tables
from llmshearing.reports.page import OF_A_RUN
from llmshearing.reports.run_directory import read_run

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours


def test_a_real_run_has_everything_that_is_drawn(recipe_file, tmp_path):
    references = tmp_path / "references.yaml"
    references.write_text("losses: {prose: 4.0, code: 4.1, letters: 4.2}\n")
    run_here(
        recipe_file,
        "mixture.policy=paper",
        f"mixture.references={references}",
        "mixture.update_interval=4ba",
        "run.duration=8ba",
    )
    run = read_run(tmp_path / "run")
    for title, _, draw in OF_A_RUN:
        without_teacher = title not in ("Distillation", "Divergence by domain", "Benchmarks")
        assert (draw(run) is not None) == without_teacher, title
    assert plots.throughput([run]) is not None
    assert list(run.masks) == [4, 8]
    assert mask_plots.heat_maps(run.masks[8]) is not None
    assert [row[:3] for row in mask_plots.units_table(run).rows] == [
        ("hidden", "32", "16"),
        ("layer", "3", "2"),
        ("head (per layer)", "4", "2"),
        ("intermediate (per layer)", "48", "24"),
    ]
    assert len(mask_plots.layers_table(run).rows) == 3
    parameters = 2 * 128 * 32 + 3 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    assert dict(run_tables.details(run).rows)["parameters"] == f"{parameters:,}"
    assert {row[0] for row in run_tables.domains(run).rows} == {"prose", "code", "letters"}
    assert all("-" not in row for row in run_tables.domains(run).rows)
    names = [row[0] for row in run_tables.mask_report(run).rows]
    assert names[:3] == ["frozen", "loss as trained", "loss cut to size"]
    assert len(names) > 3
    shown = (run.directory / "log.txt").read_text()
    for name, problem in run_tables.mask_report(run).rows[3:]:
        assert name == "problem"
        assert problem in shown
