from pathlib import Path

from ruamel.yaml import YAML

from tests.checkout import ROOT, Clone, edit


def step(name: str) -> str:
    """Return what a step of the job `pipeline` runs."""
    described = YAML(typ="safe").load(ROOT / ".github/workflows/pull-request.yml")
    (found,) = [
        step for step in described["jobs"]["pipeline"]["steps"] if step.get("name", "").startswith(name)
    ]
    return str(found["run"])


def test_the_gate_stops_a_worse_recipe_only(trained: Clone, tmp_path: Path) -> None:
    summary, report = tmp_path / "summary.md", tmp_path / "report.md"
    trained.environment |= {
        "BASE_REF": "release",
        "GITHUB_STEP_SUMMARY": str(summary),
        "RUNNER_TEMP": str(tmp_path),
    }
    gate = ["bash", "-e", "-c", step("Compare with the base")]
    edit(trained, "params.yaml", "alpha: 0.05", "alpha: 0.01")  # no stage reads it
    trained.commit("A change that leaves the model as it is")
    trained.run(*gate)
    assert "**One recipe**" in report.read_text()
    assert "**Within noise**" in report.read_text()
    assert summary.read_text() == report.read_text()

    edit(trained, "params.yaml", "lr: 0.02", "lr: 0.0001")
    trained.commit("A worse recipe, without its results")
    trained.run("bash", "-e", "-c", step("Reproduce"))
    assert trained.run(*gate, check=False).returncode != 0
    assert report.read_text().startswith("## `origin/release` (")
    assert "**Worse** after " in report.read_text()
    assert summary.read_text().endswith(report.read_text())
