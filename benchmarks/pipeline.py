"""The pipeline beside the tutorial's script, whole processes, each time in a fresh clone."""

from typing import Any

from benchmarks.harness import STAGES, Bench, Limit, in_rounds, row

LR_STAGES = ("train", "evaluate", "register")  # the stages that a new learning rate runs again
TUTORIAL = "the tutorial's script"
# The project's requirements.
LIMITS = {
    "`dvc repro`, nothing cached": Limit("at most", 1.7),
    "`dvc repro`, nothing to do": Limit("at most", 1.2, "s"),
    "`dvc exp run -S lr=0.05`": Limit("at most", 1.0),
}


def measure(bench: Bench, num_rounds: int) -> list[dict[str, Any]]:
    """Return the rows of the script, of DVC, and of each stage on its own."""

    def once(_: int) -> dict[str, float]:
        with bench.checkout() as clone:
            outcomes = {
                TUTORIAL: bench.tutorial(),
                "`dvc repro`, nothing cached": clone.dvc("repro", expected=STAGES),
                "`dvc repro`, nothing to do": clone.dvc("repro", expected=()),
                "`dvc exp run -S lr=0.05`": clone.dvc("exp", "run", "-S", "lr=0.05", expected=LR_STAGES),
            }
        with bench.checkout() as clone:
            clone.run("git", "checkout", "--quiet", "--", "dvc.lock")  # `register` logs it with the run
            outcomes |= {f"`stages.{name}` alone": clone.python("-m", f"stages.{name}") for name in STAGES}
        return {label: outcome.seconds for label, outcome in outcomes.items()}

    measured = in_rounds(num_rounds, once)
    return [
        row(label, seconds, tutorial=measured[TUTORIAL], limit=LIMITS.get(label))
        for label, seconds in measured.items()
    ]
