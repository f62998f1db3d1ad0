"""A sandbox: a temporary checkout of a commit, where the pipeline runs beside the user's checkout.

It is a repository of its own that borrows the objects of the user's. A `git worktree` would share
refs and an entry of its own with the workspace; other code runs here, and neither what it does nor
how it ends may be seen there. It has a DVC cache and an MLflow store of its own.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mnist.core import config, files, paths
from mnist.core.config import DATASET
from mnist.core.errors import InputError
from mnist.lineage import git

# The variables that the code may see: where programs, libraries and certificates are, the language, the
# terminal, proxies, settings of numeric libraries. Others hold tokens, or lead the code out of its folder.
PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TERM|COLUMNS|NO_COLOR|VIRTUAL_ENV|CONDA_PREFIX"
    r"|LD_LIBRARY_PATH|DYLD_\w+|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    r"|(?i:(https?|all|no)_proxy)"
    r"|(PYTHON|CUDA|CUBLAS_|NVIDIA_|NCCL_|OMP_|KMP_|MKL_|OPENBLAS_|ATEN_|ONEDNN_|DNNL_|MALLOC_)\w*"
)
TIMEOUT_SECONDS = 45  # for the stages to end after an interrupt
ERROR = "ERROR: "  # begins the line of an error of a stage, and of DVC


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A temporary folder.

    Attributes:
        folder: for the repository and what its stages need.
        repository: in it.
        checkout: the folder of `dvc.yaml`: the repository, or where that lies in the user's.
    """

    folder: Path
    repository: Path
    checkout: Path

    @property
    def log(self) -> Path:
        """Return the file for the output of what runs here in silence."""
        return self.folder / "log"

    def reason(self) -> str:
        """Return the first error in the log, or its last line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()] or ["no output"]
        return next((line for line in lines if line.startswith(ERROR)), lines[-1]).removeprefix(ERROR)


@contextlib.contextmanager
def temporary(commit: str, purpose: str) -> Iterator[Sandbox]:
    """Yield a sandbox with a commit of the user's repository; it is removed at the end, however that comes.

    A terminal that is closed counts as an interrupt, unless `nohup` ignores it.

    Raises:
        InputError: the commit is not here.
    """
    home = paths.checkout()
    full_hash = git.commit_here(commit, folder=home)
    if not full_hash:
        found = "no such commit in this repository"
        raise InputError(f"commit {commit}", found=found, expected="it: run `git fetch`")
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    with files.temporary(purpose) as folder:
        repository = folder / "checkout"
        try:
            _check_out(full_hash, home, repository)
            inside = git.text("rev-parse", "--show-prefix", folder=home)
            yield Sandbox(folder=folder, repository=repository, checkout=repository / inside)
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder; the logging process of `train` may still write there for a moment."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:
            print(f"not removed: {folder}", file=sys.stderr)
            return
        time.sleep(0.1)


def _check_out(commit: str, home: Path, repository: Path) -> None:
    # No templates and no hooks: they are the user's, for the user's repositories.
    git.text("init", "--quiet", "--template=", str(repository), folder=home)
    objects = (home / git.text("rev-parse", "--git-path", "objects", folder=home)).resolve()
    (repository / ".git/objects/info").mkdir(exist_ok=True)
    (repository / ".git/objects/info/alternates").write_text(f"{objects}\n", encoding="utf-8")
    shallow = home / git.text("rev-parse", "--git-path", "shallow", folder=home)
    if shallow.is_file():
        shutil.copyfile(shallow, repository / ".git/shallow")
    git.text("-c", "core.hooksPath=/dev/null", "checkout", "--quiet", "--detach", commit, folder=repository)


def run(
    sandbox: Sandbox,
    stages: Sequence[str],
    *,
    cache: Path | None = None,
    output: IO[str] | None = None,
    from_cache: bool = False,
) -> None:
    """Run every one of `stages`, and all before them.

    Args:
        sandbox: with a checkout.
        stages: of its `dvc.yaml`.
        cache: DVC's, which is filled; without it, one in the sandbox.
        output: where that of the stages goes; without it, where ours goes.
        from_cache: run only what DVC's cache does not have, and log to the sandbox's `log` instead.

    Raises:
        InputError: they fail.
    """
    options = [] if from_cache else ["--force", "--no-run-cache"]
    environment = prepare(sandbox, cache or sandbox.folder / "cache")
    with sandbox.log.open("w", encoding="utf-8") as log:
        # In a session of its own: an interrupt reaches us alone, and all that it has started through us.
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", *options, *stages],
            cwd=sandbox.checkout,
            env=environment,
            start_new_session=True,
            stdout=log if from_cache else output,
            stderr=log if from_cache else None,
        )
        try:
            status = process.wait()
        except KeyboardInterrupt:
            _end(process)
            raise
    if status != 0:
        found = sandbox.reason() if from_cache else f"exit status {status}, see above"
        raise InputError("`dvc repro` in a temporary checkout", found=found, expected="the stages to succeed")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End DVC and what it has started."""
    import psutil  # type: ignore[import-untyped]

    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, subprocess.TimeoutExpired):
        # Not SIGINT: a stage that still imports would print a traceback. DVC ends when its stage has.
        for stage in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                stage.terminate()
        os.kill(process.pid, signal.SIGINT)
        process.wait(TIMEOUT_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def prepare(sandbox: Sandbox, cache: Path) -> Mapping[str, str]:
    """Return the environment for other code: this interpreter, its own DVC and MLflow, our archives."""
    checkout, archives = sandbox.checkout, paths.root() / paths.DOWNLOADS
    if archives.is_dir():
        shutil.copytree(archives, checkout / paths.DOWNLOADS, dirs_exist_ok=True)
    (checkout / ".dvc").mkdir(exist_ok=True)
    (checkout / ".dvc/config.local").write_text(
        f"[core]\n    analytics = false\n    check_update = false\n[cache]\n    dir = {cache}\n",
        encoding="utf-8",
    )
    (sandbox.folder / "tmp").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
    environment |= {
        "TMPDIR": str(sandbox.folder / "tmp"),  # torch leaves things there
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "DVC_SITE_CACHE_DIR": str(sandbox.folder / "site"),
        "MLFLOW_TRACKING_URI": paths.sqlite_uri(sandbox.folder / "mlflow.db"),
    }
    if mirror := first_mirror(checkout):
        environment[paths.MIRROR_VARIABLE] = mirror
    return environment


def first_mirror(checkout: Path) -> str | None:
    """Return the mirror to try first: the user's own, or the first folder among the params'.

    Both may be relative to the main checkout, beside which a sandbox does not lie.
    """
    own = os.environ.get(paths.MIRROR_VARIABLE, "")
    if config.is_url(own):
        return None if config.may_hold_secret(own) else own  # a secret is not for recorded code
    values = config.flat(config.read_keys(checkout, paths.PARAMS))
    listed, dataset = values.get("data.mirrors"), str(values.get("dataset"))
    names = [str(name).replace(DATASET, dataset) for name in listed] if isinstance(listed, list) else []
    folders = [
        paths.root() / Path(name).expanduser() for name in (own, *names) if name and not config.is_url(name)
    ]
    return next((str(folder.resolve()) for folder in folders if folder.is_dir()), None)
