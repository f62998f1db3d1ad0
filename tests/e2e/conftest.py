"""What is slow to make is made once a session, under a lock, and copied by each test that changes it."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mnist.cli
from mnist.tracking import client
from tests import checkout
from tests.checkout import Clone
from tests.conftest import MadeOnce, SmallData


@pytest.fixture(scope="session")
def trained_template(made_once: MadeOnce, small_data: SmallData) -> Clone:
    """A clone with a committed result, its run and its model version 1 (the challenger). Do not change it."""

    def make(folder: Path) -> None:
        clone = checkout.clone(folder / "clone", small_data)
        clone.run("git", "config", "user.name", "t")
        clone.run("git", "config", "user.email", "t@example.org")
        clone.dvc("repro")
        clone.commit("What the pipeline made")
        checkout.set_up(clone)

    folder = made_once("trained", make)
    return Clone(folder=folder / "clone", environment=checkout.environment(folder))


@pytest.fixture
def trained(trained_template: Clone, tmp_path: Path) -> Clone:
    """A copy of the trained clone, with its own store and cache, for one test to change."""
    return copy(trained_template, tmp_path / "trained")


@pytest.fixture(scope="module")
def trained_module(trained_template: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the trained clone for the tests of one file that only read it."""
    return copy(trained_template, tmp_path_factory.mktemp("trained"))


def copy(template: Clone, folder: Path) -> Clone:
    """Copy a clone into `folder` / "clone"; its store is moved with it."""
    made = Clone(folder=folder / "clone", environment=checkout.environment(folder), store=template.store)
    shutil.copytree(template.folder, made.folder, symlinks=True)
    client.move(made.folder / made.store, old=template.folder, new=made.folder)
    return made


def without_store(clone: Clone) -> Clone:
    """Remove the store; the returned clone names a new one, since MLflow keeps the old file open here."""
    (clone.folder / clone.store).unlink(missing_ok=True)
    shutil.rmtree(clone.folder / "mlartifacts", ignore_errors=True)
    return dataclasses.replace(clone, store=f"./{clone.store}")


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command of `mnist` in this process, in the folder and the environment of a clone."""

    def run(clone: Clone, *arguments: str, **environment: str) -> Result:
        with monkeypatch.context() as patch:
            patch.chdir(clone.folder)
            for name in [name for name in os.environ if name.startswith(checkout.FOREIGN)]:
                patch.delenv(name)
            for name, value in {**clone.environment, **environment}.items():
                patch.setenv(name, value)
            return CliRunner().invoke(mnist.cli.main, arguments, prog_name="mnist")

    return run
