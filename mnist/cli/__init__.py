"""The commands of `mnist`: each module is a parser and a call.

It imports every other package, and no package imports it.
"""

import importlib

import click

from mnist.core import process

# Each is a module of this package that defines a command of its name; the order is that of `mnist --help`.
COMMANDS = (
    "diff",
    "verify",
    "reproduce",
    "promote",
    "rollback",
    "serve",
    "best",
    "seeds",
    "preset",
    "report",
    "sync",
    "measure",
    "experiments",
)


class Commands(click.Group):
    """A group that imports a command only when it runs, and reports its errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's interface
        """Return the names in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of a command and return the command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"mnist.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a user's mistake is one line on stderr and exit status 2."""
        with process.reported(failure=2):
            return super().invoke(ctx)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mnist-pipeline")
def main() -> None:
    """Compare, verify, promote, serve and rank what the pipeline made.

    The pipeline itself is run by DVC: `dvc repro`, `dvc exp run -S lr=0.05`. Exit status: 0 for yes,
    1 where the answer is no, 2 for an error.
    """
