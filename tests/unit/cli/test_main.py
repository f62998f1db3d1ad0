"""What all commands of `mnist` have in common."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import mnist.cli
from tests.checkout import ROOT


@pytest.mark.parametrize("command", mnist.cli.COMMANDS)
def test_a_command_needs_a_checkout_and_its_help_none(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    done = CliRunner().invoke(mnist.cli.main, [command])
    helped = CliRunner().invoke(mnist.cli.main, [command, "--help"])

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"ERROR: {tmp_path}: found no dvc.yaml, expected the top folder of a checkout\n"
    assert (helped.exit_code, helped.stderr) == (0, "")
    assert "Example" in helped.stdout
    assert list(tmp_path.iterdir()) == []


def test_seeds_end_where_params_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["compare", "--first-seed", str(2**32 - 1), "--seeds", "2"]
    refused = CliRunner().invoke(mnist.cli.main, arguments)
    assert refused.stderr == f"ERROR: --first-seed: found {2**32 - 1}, expected {2**32 - 2} at most\n"


def test_the_list_of_commands_has_whole_sentences() -> None:
    page = CliRunner().invoke(mnist.cli.main, ["--help"], terminal_width=80).stdout
    _, _, commands = page.partition("Commands:")
    assert "doctor" in commands
    assert "..." not in commands


def test_a_reader_that_has_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)

    done = subprocess.run(
        [sys.executable, "-m", "mnist", "preset"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False
    )

    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
