"""Experiments in a real queue of DVC with two workers, and beside it; `mnist best` ranks them all."""

import json
from collections.abc import Iterator

import pytest

from mnist.core import config, paths
from tests import checkout
from tests.checkout import Clone
from tests.e2e.conftest import Invoke


@pytest.fixture
def clone(trained: Clone) -> Iterator[Clone]:
    """A trained clone whose workers end with the test."""
    yield trained
    checkout.stop_workers(trained.folder)


def test_experiments_are_trained_ranked_and_applied(clone: Clone, invoke: Invoke) -> None:
    num_runs = len(clone.runs())
    queue = ("exp", "run", "--queue", "-S", "model=mlp")
    clone.dvc(*queue, "-n", "mlp", "-S", "permute_pixels=true,false", "-S", "seed=0")
    clone.dvc(*queue, "-n", "doomed", "-S", "lr=1e9")

    checkout.run_queue(clone)
    assert "left out: doomed: " in invoke(clone, "best").stdout

    lines = clone.run(
        "git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps"
    ).stdout.splitlines()
    commits = {ref.split("/")[-1]: commit for ref, commit in map(str.split, lines) if ref.count("/") == 4}
    runs = [run for run in clone.runs() if run.data.tags.get("dvc.experiments") in commits]
    assert len(commits) == len(runs) == len(clone.runs()) - num_runs == 2
    accuracies = {}
    for run in runs:
        name = run.data.tags["dvc.experiments"]
        kept = json.loads(clone.run("git", "show", f"{commits[name]}:{paths.TRAINING_METRICS}").stdout)
        accuracies[name] = kept["val_accuracy"]
        assert run.data.params["seed"] == "0"

    best = invoke(clone, "best").stdout.splitlines()

    ranked = [line.split() for line in best if line.split()[:1] and line.split()[0].isdigit()]
    assert sorted(row[1] for row in ranked) == sorted(commits)
    assert [float(row[2]) for row in ranked] == sorted(accuracies.values(), reverse=True)
    (apply,) = [line.split()[1:] for line in best if line.startswith("  apply")]
    winner = ranked[0][1]
    assert apply == ["dvc", "exp", "apply", winner]

    clone.run(*apply)

    assert json.loads(clone.read(str(paths.TRAINING_METRICS)))["val_accuracy"] == accuracies[winner]
    (run,) = [run for run in runs if run.data.tags["dvc.experiments"] == winner]
    assert config.load(clone.folder / paths.PARAMS).model == run.data.params["model"]
