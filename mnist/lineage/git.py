"""Git, asked about the repository that lies in a folder, whatever repository the environment names."""

import os
import subprocess
from pathlib import Path

from mnist.core.errors import InputError


def text(*arguments: str, folder: Path) -> str:
    """What git prints, without the white space around it.

    Raises:
        InputError: it fails.
    """
    return output(*arguments, folder=folder).decode().strip()


def output(*arguments: str, folder: Path) -> bytes:
    """What git prints.

    Raises:
        InputError: it fails.
    """
    # In a hook of git's, and under `git rebase --exec`, GIT_DIR leads to the user's repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False, env=environment)
    if done.returncode != 0:
        found = " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
        raise InputError(f"git {' '.join(arguments)}", found=found, expected="success")
    return done.stdout
