"""A checkout of the project on small data, and the commands that tests run in it."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML

from tests.conftest import SmallData

ROOT = Path(__file__).parents[1]
STAGES = ["download", "validate", "stats", "train", "evaluate", "register"]
NAME = "mnist-simplecnn"
QUEUE_SECONDS = 900

# Variables of the user that a test must not see. MAKE: under `make test` a `make` in a test would print the
# folders that it enters.
FOREIGN = ("DVC", "MLFLOW", "MNIST", "MAKE", "MFLAGS")

# Params that learn the small data in a second.
SMALL = {
    "seed": 3,
    "val_size": 200,
    "epochs": 4,
    "batch_size": 16,
    "lr": 0.02,
    "momentum": 0.9,
    "registry": {"model_name": "{dataset}-simplecnn", "min_accuracy": 0.5, "alpha": 0.05},
}


@dataclass(kw_only=True)
class Clone:
    """A checkout of the project on the small data."""

    folder: Path
    environment: dict[str, str]
    store: str = "mlflow.db"

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command in the clone, with stdout and stderr in one stream."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; a failure shows what it printed."""
        with self.start(*command) as process:
            output, _ = process.communicate()
        done = subprocess.CompletedProcess(command, process.returncode, output)
        assert done.returncode == 0 or not check, f"{command}:\n{done.stdout}"
        return done

    def dvc(self, *arguments: str) -> list[str]:
        """Run DVC, and return the stages that ran."""
        output = self.run("dvc", *arguments).stdout
        assert "Traceback" not in output
        return [stage for stage in STAGES if f"> python -m stages.{stage}" in output]

    def commit(self, message: str) -> None:
        """Commit all changes."""
        self.run("git", "add", ".")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)

    def reset(self) -> None:
        """Restore what is committed, outputs included."""
        self.run("git", "checkout", "-q", ".")
        self.run("dvc", "checkout", "-q", "--force", "--allow-missing")

    @property
    def client(self) -> MlflowClient:
        """A client of the clone's store."""
        uri = f"sqlite:///{self.folder}/{self.store}"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def runs(self, status: str = "FINISHED") -> list[Run]:
        """Return the runs of the store with this status, newest first."""
        return list(self.client.search_runs(["1"], f"attributes.status = '{status}'"))

    def read(self, name: str) -> str:
        """Return the text of a file of the clone."""
        return (self.folder / name).read_text()


def clone(folder: Path, small_data: SmallData) -> Clone:
    """Commit the working tree in a new repository at `folder`, with the small data as its MNIST."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params.update(SMALL)
    params["data"]["mirrors"] = [str(small_data.mirror)]
    yaml.dump(params, folder / "params.yaml")
    yaml.dump(small_data.section(), folder / "datasets/mnist.yaml")

    made = Clone(folder=folder, environment=environment(folder.parent))
    made.run("git", "init", "-q", "-b", "main")
    made.commit("The project on small data")
    return made


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of commands in a clone, with none of the user's settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    kept["DVC_SITE_CACHE_DIR"] = str(folder / "site-cache")
    return kept


@dataclass(frozen=True)
class Repository:
    """A repository of git and DVC."""

    folder: Path

    def git(self, *arguments: str) -> str:
        """Run git, and return what it prints."""
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self) -> str:
        """Commit all changes, and return the commit."""
        self.git("add", ".")
        self.git("commit", "-qm", "x")
        return self.git("rev-parse", "HEAD")

    def write(self, files: Mapping[str, str]) -> None:
        """Write these texts by their paths."""
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text, encoding="utf-8")


def repository(folder: Path, files: Mapping[str, str]) -> Repository:
    """Make a repository of git at `folder` with a commit of these files."""
    made = Repository(folder)
    made.write(files)
    made.git("init", "-q", "-b", "main")
    made.commit()
    return made


def initialise(folder: Path) -> None:
    """Make an empty repository of git and DVC at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in (["git", "init", "-q", "-b", "main"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)


def edit(clone: Clone, name: str, old: str, new: str) -> None:
    """Replace the first `old` in a file of the clone, where there must be one."""
    text = clone.read(name)
    assert old in text
    (clone.folder / name).write_text(text.replace(old, new, 1))


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the processes whose current folder is under this one."""
    processes = psutil.process_iter(["cwd"])
    return [process for process in processes if (process.info["cwd"] or "").startswith(str(folder))]


def start_workers(clone: Clone, num_workers: int) -> None:
    """Start DVC's workers on the queue, in the background."""
    # Not by `clone.run`: the workers inherit its pipe, which it would read until they end.
    command, silent = ["dvc", "queue", "start", "-j", str(num_workers)], subprocess.DEVNULL
    subprocess.run(command, cwd=clone.folder, env=clone.environment, stdout=silent, stderr=silent, check=True)


def run_queue(clone: Clone) -> None:
    """Run all experiments of DVC's queue with two workers."""
    deadline = time.monotonic() + QUEUE_SECONDS
    while waiting := re.findall(r"\d+ still \w+", clone.run("python", "-m", "mnist", "best").stdout):
        assert time.monotonic() < deadline, waiting
        if not any("running" in line for line in waiting):
            start_workers(clone, 2)  # again: a worker of DVC ends now and then (docs/sweeps.md)
        time.sleep(2)
    stop_workers(clone.folder)


def stop_workers(folder: Path) -> None:
    """End the workers that wait for more; the message of `dvc queue stop` can get lost."""
    deadline = time.monotonic() + 60
    while workers := [process for process in processes_in(folder) if "queue-worker" in process.cmdline()]:
        assert time.monotonic() < deadline, workers
        for worker in workers:
            worker.terminate()
        psutil.wait_procs(workers, timeout=1)


def set_up(clone: Clone) -> None:
    """Link the environment of these tests into the clone, so that `make` uses it and installs nothing."""
    environment = clone.folder / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    (environment / "installed").touch()  # newer than requirements.lock, so that nothing is installed
