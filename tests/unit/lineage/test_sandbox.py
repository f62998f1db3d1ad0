"""The sandbox: a checkout of its own, and the environment of what runs there."""

import os
import sys
from pathlib import Path

import pytest

from mnist.core.errors import InputError
from mnist.lineage import git, sandbox
from mnist.lineage.sandbox import Sandbox
from tests.checkout import Repository, repository


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's repository, with a hook; it is the current folder."""
    params = "dataset: kmnist\ndata: {mirrors: [none, '../{dataset}', https://example.org/]}\n"
    folder = repository(tmp_path / "home", {"params.yaml": params}).folder
    hook = folder / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    for name in ("DVC_ROOT", "MNIST_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


def empty(folder: Path) -> Sandbox:
    checkout = folder / "checkout"
    checkout.mkdir(parents=True)
    return Sandbox(folder=folder, repository=checkout, checkout=checkout)


def test_a_commit_is_checked_out_without_a_trace(home: Path, tmp_path: Path) -> None:
    first = git.text("rev-parse", "HEAD", folder=home)
    (home / "params.yaml").write_text("changed: since\n")
    refs = git.text("for-each-ref", folder=home), git.text("worktree", "list", folder=home)
    with sandbox.temporary(first, "test") as aside:
        assert (aside.checkout / "params.yaml").read_text().startswith("dataset: kmnist")
        assert git.text("rev-parse", "HEAD", folder=aside.checkout) == first
        assert git.text_or_empty("symbolic-ref", "-q", "HEAD", folder=aside.checkout) == ""
        assert git.text("status", "--porcelain", folder=aside.checkout) == ""
    assert not aside.folder.exists()
    assert (git.text("for-each-ref", folder=home), git.text("worktree", "list", folder=home)) == refs
    assert not (tmp_path / "hooked").exists()


def test_a_shallow_clone_will_do(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Repository(home).git("commit", "-q", "--allow-empty", "-m", "two")
    git.text("clone", "-q", "--depth=1", home.as_uri(), str(tmp_path / "shallow"), folder=home)
    monkeypatch.chdir(tmp_path / "shallow")
    with sandbox.temporary(git.text("rev-parse", "HEAD", folder=home), "test") as aside:
        assert git.text("rev-list", "--count", "HEAD", folder=aside.checkout) == "1"


@pytest.mark.usefixtures("home")
def test_a_commit_that_is_not_here_is_an_error() -> None:
    found = pytest.raises(InputError, match=r"^commit f{40}: found no such commit")
    with found, sandbox.temporary("f" * 40, "test"):
        pass


def test_the_checkout_may_be_a_subfolder_of_the_repository(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Repository(home)
    made.write({"deep/sub/dvc.yaml": "stages: {}"})
    made.commit()
    monkeypatch.chdir(home / "deep/sub")
    with sandbox.temporary("HEAD", "test") as aside:
        assert (aside.repository / "params.yaml").is_file()
        assert (aside.checkout / "dvc.yaml").is_file()


def test_the_environment_is_that_of_the_sandbox(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MNIST_MIRROR"):
        monkeypatch.setenv(name, "https://elsewhere.example/")
    (home / ".cache/mnist").mkdir(parents=True)
    (home / ".cache/mnist/archive").write_text("images")
    aside = empty(tmp_path / "aside")

    first = sandbox.prepare(aside, tmp_path / "cache")

    assert first["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/aside/mlflow.db"
    assert first["MNIST_MIRROR"] == "https://elsewhere.example/"
    assert first["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert Path(first["TMPDIR"]).is_relative_to(aside.folder)
    assert f"dir = {tmp_path}/cache" in (aside.checkout / ".dvc/config.local").read_text()
    assert (aside.checkout / ".cache/mnist/archive").read_text() == "images"
    assert sandbox.prepare(aside, tmp_path / "cache") == first  # again


@pytest.mark.parametrize(
    ("name", "is_passed"),
    [
        *(
            (name, True)
            for name in ("HOME", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONHASHSEED")
        ),
        *((name, True) for name in ("https_proxy", "HTTP_PROXY", "no_proxy", "VIRTUAL_ENV", "SSL_CERT_FILE")),
        *((name, False) for name in ("GIT_DIR", "DVC_EXP_NAME", "MNIST_LIVE", "MLFLOW_TRACKING_TOKEN")),
        *((name, False) for name in ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MY_PATH", "SSH_AUTH_SOCK")),
    ],
)
def test_only_listed_variables_of_the_user_are_passed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, is_passed: bool
) -> None:
    monkeypatch.setenv(name, "/value")
    assert ("/value" in sandbox.prepare(empty(tmp_path / "aside"), home).values()) == is_passed


def test_the_first_mirror_is_found_beside_the_main_checkout(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sandbox.first_mirror(home) is None
    (tmp_path / "kmnist").mkdir()
    assert sandbox.first_mirror(home) == str(tmp_path / "kmnist")
    (home / "own").mkdir()
    monkeypatch.setenv("MNIST_MIRROR", "own")
    assert sandbox.first_mirror(home) == str(home / "own")
    monkeypatch.setenv("MNIST_MIRROR", "https://example.com/")
    assert sandbox.first_mirror(home) == "https://example.com/"
    monkeypatch.setenv("MNIST_MIRROR", "https://example.com/?token=secret")
    assert sandbox.first_mirror(home) is None
    monkeypatch.delenv("MNIST_MIRROR")
    assert sandbox.first_mirror(tmp_path) is None  # no params there


@pytest.mark.usefixtures("home")
def test_stages_that_fail_are_an_error(tmp_path: Path) -> None:
    aside = empty(tmp_path / "aside")
    with pytest.raises(InputError, match=r"^`dvc repro` in a temporary checkout: found exit status "):
        sandbox.run(aside, ["train"])
