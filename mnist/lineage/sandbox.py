"""A replica: a temporary checkout of a commit, where the pipeline runs and the user's own sees nothing of it.

It is a repository of its own that borrows the objects of the user's. A `git worktree` would share
refs, MLflow's spool and its own entry with the workspace; what runs in a replica is other code, and
neither what it does nor how it ends may be seen there. It has an MLflow store of its own, so that
nobody is told.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mnist.core import config, paths
from mnist.core.config import DATASET
from mnist.core.errors import InputError
from mnist.data.download import CACHE, VARIABLE
from mnist.lineage import fingerprint, git

# Of the environment, what would lead the code out of its folder, or make it do something else.
FOREIGN = ("DVC", "GIT_", "MLFLOW_", "MNIST_")
PATIENCE_SECONDS = 45  # for the stages to end after an interrupt; `train` waits up to 30 for its sender


@dataclass(frozen=True, kw_only=True)
class Replica:
    """Where it is.

    Attributes:
        folder: a temporary one, for it and what its stages need.
        checkout: in it.
    """

    folder: Path
    checkout: Path


@contextlib.contextmanager
def temporary(purpose: str) -> Iterator[Replica]:
    """A folder for a replica, removed at the end, however that comes; nothing is in it yet.

    A terminal that is closed counts as an interrupt, unless `nohup` says that it does not count.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    # The sender of a stage that was killed may still be there for a moment.
    with tempfile.TemporaryDirectory(prefix=f"mnist-{purpose}-", ignore_cleanup_errors=True) as created:
        folder = Path(created).resolve()
        yield Replica(folder=folder, checkout=folder / "checkout")


def lay_out(commit: str, checkout: Path) -> None:
    """Check out a commit of the user's repository in a new one.

    Raises:
        InputError: the commit is not here.
    """
    home = paths.checkout()
    try:
        git.text("cat-file", "-e", f"{commit}^{{commit}}", folder=home)
    except InputError:
        found = "no such commit in this repository"
        raise InputError(f"commit {commit}", found=found, expected="it: run `git fetch`") from None
    # No templates and no hooks: they are the user's, for the user's repositories.
    git.text("init", "--quiet", "--template=", str(checkout), folder=home)
    objects = (home / git.text("rev-parse", "--git-path", "objects", folder=home)).resolve()
    (checkout / ".git/objects/info").mkdir(exist_ok=True)
    (checkout / ".git/objects/info/alternates").write_text(f"{objects}\n", encoding="utf-8")
    shallow = home / git.text("rev-parse", "--git-path", "shallow", folder=home)
    if shallow.is_file():
        shutil.copyfile(shallow, checkout / ".git/shallow")
    git.text("-c", "core.hooksPath=/dev/null", "checkout", "--quiet", "--detach", commit, folder=checkout)


def run(
    replica: Replica, stages: Sequence[str], *, cache: Path | None = None, output: IO[str] | None = None
) -> None:
    """Make every one of `stages`, and all before them, compute.

    Args:
        replica: that was laid out.
        stages: of its `dvc.yaml`.
        cache: DVC's, which is filled; without it, one of the replica's own.
        output: where that of the stages goes; without it, where ours goes.

    Raises:
        InputError: they fail.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", *stages]
    environment = _environment(replica, cache or replica.folder / "cache")
    # In a session of its own: an interrupt reaches us alone, and all that it has started through us.
    process = subprocess.Popen(
        command, cwd=replica.checkout, env=environment, start_new_session=True, stdout=output
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:
        try:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise
    if status != 0:
        found = f"exit status {status}, see above"
        raise InputError("`dvc repro` in a temporary checkout", found=found, expected="the stages to succeed")


def _environment(replica: Replica, cache: Path) -> Mapping[str, str]:
    """For other code: this interpreter, a DVC and an MLflow of its own, and our archives."""
    archives, ours = replica.checkout / CACHE, paths.root() / CACHE
    if ours.is_dir():
        shutil.copytree(ours, archives, dirs_exist_ok=True)
    (replica.checkout / ".dvc").mkdir(exist_ok=True)
    (replica.checkout / ".dvc/config.local").write_text(
        f"[core]\n    analytics = false\n    check_update = false\n[cache]\n    dir = {cache}\n",
        encoding="utf-8",
    )
    (replica.folder / "tmp").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment |= {
        "TMPDIR": str(replica.folder / "tmp"),  # torch leaves things there
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "DVC_SITE_CACHE_DIR": str(replica.folder / "site"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{replica.folder / 'mlflow.db'}",
    }
    if mirror := first_mirror(replica.checkout):
        environment[VARIABLE] = mirror
    return environment


def first_mirror(checkout: Path) -> str | None:
    """The mirror to try first: the user's own, or the first folder among the params'.

    Both may be relative to the main checkout, beside which a replica does not lie.
    """
    values = params(checkout)
    mirrors = values.get("data.mirrors")
    own = os.environ.get(VARIABLE, "")
    if "://" in own:
        return own
    of_it = [one.replace(DATASET, fingerprint.dataset_of(values)) for one in mirrors or []]
    for mirror in [own, *of_it]:
        if mirror and "://" not in mirror and (found := paths.root() / Path(mirror).expanduser()).is_dir():
            return str(found.resolve())
    return None


def params(checkout: Path) -> dict[str, Any]:
    """All params of a checkout, by dotted keys; none where it has no such file."""
    return config.flat(config.read_keys(checkout, paths.PARAMS))
