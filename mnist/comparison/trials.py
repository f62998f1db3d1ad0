"""Trials of a revision's recipe, in a sandbox: trainings that differ in their seed alone.

A recipe is the commands, code, data and params of stages `train` and `evaluate`, without the seed. The result
of a trial is kept by the digest of the recipe, and by seed.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mnist.core import config, files, paths
from mnist.core.config import Fraction, Section
from mnist.core.errors import InputError
from mnist.data import validation
from mnist.lineage import experiments, fingerprint, git, lock, sandbox
from mnist.lineage.lock import Stage
from mnist.lineage.result import versions
from mnist.lineage.sandbox import Sandbox

WORKSPACE = "workspace"  # the files in the checkout, uncommitted changes included
KEPT = Path(".cache/trials")  # under `paths.root()`: a folder for each recipe, a file for each seed

# A trial has one process: more of them would share its batches, and change its result by rounding alone.
NO_RECIPE = ("seed", "processes")

# One process runs all trials of a revision, so that only the first one waits for imports. These lines run the
# code of any revision, so they use nothing but contracts; MLflow is not told of trials.
PROGRAM = """
import json, os, sys
from pathlib import Path

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # for what the stages print

from mnist.core import config, paths, process
from mnist.tracking import events
from stages import evaluate, train

events._logging_process = lambda: os.open(os.devnull, os.O_WRONLY)
with process.reported():
    values = config.read_keys(Path(), paths.PARAMS)
    for seed in sys.stdin:
        paths.PARAMS.write_text(json.dumps({**values, "seed": int(seed), "processes": 1}))
        params = config.load(paths.PARAMS)
        for stage in (train, evaluate):
            stage.run(params=params.only(stage.Params))
        print(json.dumps(json.loads(paths.TEST_METRICS.read_text())), file=answers)
"""


class Score(Section, extra="ignore"):
    """The result of a trial, of all the numbers that `evaluate` writes."""

    accuracy: Fraction  # on the test images


class Trials:
    """The trials of one revision.

    Attributes:
        name: of the revision, as the user typed it.
        commit: full hash; empty for the workspace.
        recipe: its digest.
        test_sha256: of the test images and their labels.
        num_images: number of test images.
        num_threads: of a training.

    Raises:
        InputError: the revision has no such pipeline, or its data cannot be had.
    """

    def __init__(self, name: str, commit: str, aside: Sandbox) -> None:
        self.name, self.commit, self._aside = name, commit, aside
        self._process: subprocess.Popen[str] | None = None
        stages = _stages(aside.checkout, name)
        makers, made = [stages[maker] for maker in lock.MAKERS], _outs(stages.values())
        before = {made[dep]: dep for stage in makers for dep in stage.deps if dep in made}
        earlier = [stage for stage in before if stage not in lock.MAKERS]
        sandbox.run(aside, earlier, cache=experiments.cache(paths.checkout()), from_cache=True)
        self.recipe = digest(makers, lock.written(lock.read(aside.checkout)))
        data = validation.read(aside.checkout / paths.VALIDATION)
        self.test_sha256, self.num_images = data.test_sha256, data.num_images["test"]
        threads = config.read_keys(aside.checkout, paths.PARAMS).get("num_threads")
        self.num_threads = threads if isinstance(threads, int) else 1

    def accuracy(self, seed: int) -> float:
        """Return the accuracy on the test images with this seed: a kept one, or that of a training.

        Raises:
            InputError: the training fails, for example since it diverges.
        """
        kept = paths.root() / KEPT / self.recipe / f"{seed}.json"
        if kept.is_file():
            try:
                return config.check(Score, files.read_json(kept), str(kept)).accuracy
            except InputError as error:
                print(f"a kept result is ignored: {error}", file=sys.stderr)
        score = self._train(seed)
        files.write_json(kept, score.model_dump())
        return score.accuracy

    def _train(self, seed: int) -> Score:
        self._process = self._process or self._start()
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):  # it could not even start: there will be no answer
            print(seed, file=self._process.stdin, flush=True)
        answer, where = self._process.stdout.readline(), f"seed {seed} of {self.name}"
        if not answer:
            status = self._process.wait()
            found = f"the end by signal {-status}" if status < 0 else f"`{self._aside.reason()}`"
            raise InputError(where, found=found, expected="a result")
        return config.check(Score, files.parse_json(answer, where), where)

    def _start(self) -> subprocess.Popen[str]:
        with self._aside.log.open("w", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                cwd=self._aside.checkout,
                env=sandbox.prepare(self._aside, self._aside.folder / "cache"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # an interrupt is for us, and `close` ends it
            )

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process:
            with suppress(BrokenPipeError), self._process:  # which closes the pipes and waits
                self._process.kill()


@contextmanager
def of_revision(name: str, settings: Mapping[str, Any] | None = None) -> Iterator[Trials]:
    """Yield the trials of a revision in a sandbox, which is removed at the end.

    Args:
        name: of the revision, as a user names it.
        settings: params by key, in the place of the revision's.

    Raises:
        InputError: the revision is unknown, or as `Trials`.
    """
    home, is_workspace = paths.checkout(), name == WORKSPACE
    commit = git.resolve("HEAD" if is_workspace else name, folder=home)
    patch = fingerprint.source_of(commit).patch if is_workspace else ""
    with sandbox.temporary(commit, "compare") as aside:
        if patch:
            content = patch.encode(errors="surrogateescape")
            git.output("apply", "--whitespace=nowarn", "-", folder=aside.repository, stdin=content)
        if settings:
            params = {**config.read_keys(aside.checkout, paths.PARAMS), **settings}
            (aside.checkout / paths.PARAMS).write_text(json.dumps(params), encoding="utf-8")
        trials = Trials(name, "" if is_workspace else commit, aside)
        try:
            yield trials
        finally:
            trials.close()


def _stages(checkout: Path, name: str) -> dict[str, Stage]:
    """Return the stages of a revision, which must have those that a trial runs."""
    where, expected = f"{paths.PIPELINE} at {name}", "a revision with the pipeline"
    if not (checkout / paths.PIPELINE).is_file():
        raise InputError(where, found="no such file", expected=expected)
    stages = {stage.name: stage for stage in lock.pipeline(checkout)}
    for maker in lock.MAKERS:
        if maker not in stages or stages[maker].cmd != (command := f"python -m stages.{maker}"):
            raise InputError(where, found=f"no stage {maker} that runs `{command}`", expected=expected)
    return stages


def _outs(stages: Iterable[Stage]) -> dict[str, str]:
    """Return the names of stages by their outs."""
    return {path: stage.name for stage in stages for path in stage.outs}


def digest(makers: list[Stage], wrote: Mapping[str, str]) -> str:
    """Return the digest of a recipe.

    Args:
        makers: the stages that make a result.
        wrote: DVC's digests of the outs of stages, by path.
    """
    made = _outs(makers)
    ingredients = [
        {
            "cmd": stage.cmd,
            "deps": {path: wrote.get(path, found) for path, found in stage.deps.items() if path not in made},
            "params": {
                file: {key: value for key, value in values.items() if key not in NO_RECIPE}
                for file, values in stage.params.items()
            },
        }
        for stage in makers
    ]
    content = json.dumps([ingredients, versions()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
