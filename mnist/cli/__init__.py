"""The commands of `mnist`: each is a parser and a call.

It imports every other package, and no package imports it.
"""

import importlib
import os
import sys
from pathlib import Path

import click

from mnist.core import paths, process
from mnist.core.errors import InputError

# The module of this package that defines each command, in the order of `mnist --help`.
COMMANDS = {
    "diff": "results",
    "compare": "results",
    "verify": "reproduce",
    "reproduce": "reproduce",
    "promote": "models",
    "rollback": "models",
    "serve": "models",
    "predict": "score",
    "drift": "score",
    "best": "results",
    "preset": "results",
    "report": "results",
    "sync": "sync",
    "measure": "results",
    "experiments": "results",
    "doctor": "doctor",
}
CLOSED_PIPE = 141  # exit status of a program that SIGPIPE ended, as shells show it


class Commands(click.Group):
    """A group that imports a command's module only when it is needed, and reports errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's interface
        """Return the names in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mnist.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a user's mistake is one line on stderr and exit status 2."""
        with process.reported(failure=2):
            if not paths.PIPELINE.is_file() and not {*ctx.help_option_names} & {*ctx.args}:
                expected = "the top folder of a checkout"
                raise InputError(str(Path.cwd()), found=f"no {paths.PIPELINE}", expected=expected)
            try:
                try:
                    return super().invoke(ctx)
                finally:
                    sys.stdout.flush()
            except BrokenPipeError:  # the reader has enough, as in `mnist best | head -1`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
                sys.exit(CLOSED_PIPE)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mnist-pipeline")
def main() -> None:
    """Compare, verify, promote, serve and rank what the pipeline made.

    The pipeline itself is run by DVC: `dvc repro`, `dvc exp run -S lr=0.05`. Exit status: 0 for yes,
    1 where the answer is no, 2 for an error.
    """
