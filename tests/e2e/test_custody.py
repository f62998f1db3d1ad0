"""Custody: nothing is scored, registered or reported that its stage did not write."""

import hashlib
from pathlib import Path

import pytest

from tests.checkout import Clone
from tests.e2e.conftest import Invoke, without_store

WEIGHTS = "models/model.safetensors"


def flip(path: Path, *, position: int = -100) -> None:
    """Change one bit of a file, and leave it as writable as it was: DVC believes what is read-only."""
    content, mode = bytearray(path.read_bytes()), path.stat().st_mode
    content[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)


def test_a_damaged_object_of_dvcs_cache_is_never_registered(trained: Clone) -> None:
    weights = trained.folder / WEIGHTS
    content, lock = weights.read_bytes(), trained.read("dvc.lock")
    name = hashlib.md5(content).hexdigest()  # noqa: S324 -- as DVC names it
    cached = f".dvc/cache/files/md5/{name[:2]}/{name[2:]}"
    flip(trained.folder / cached)
    weights.unlink()
    (trained.folder / "models/registered.json").unlink()
    done = trained.run("dvc", "repro", check=False)
    assert done.returncode != 0
    error = next(line for line in done.stdout.splitlines() if line.startswith("ERROR: "))
    assert WEIGHTS in error
    assert f"`rm {cached}`, then `dvc repro --force train`" in error
    assert "Traceback" not in done.stdout
    assert len(trained.client.search_model_versions()) == 1
    # Its advice helps.
    trained.run("rm", "-f", cached)
    trained.run("dvc", "repro", "--force", "train")
    trained.run("dvc", "repro")
    assert weights.read_bytes() == content
    assert trained.read("dvc.lock") == lock


@pytest.mark.parametrize("name", [WEIGHTS, "metrics/plots/errors.png"])
def test_files_that_were_changed_by_hand_are_refused(
    trained_module: Clone, invoke: Invoke, name: str
) -> None:
    file = trained_module.folder / name
    content = file.read_bytes()
    flip(file)
    try:
        done = trained_module.run("python", "-m", "stages.register", check=False)
        report = invoke(trained_module, "report")
    finally:
        file.write_bytes(content)
    out = str(Path(name).parent) if name.endswith(".png") else name
    assert done.returncode == 1
    assert f"ERROR: {out}: found SHA-256" in done.stdout
    assert report.exit_code == 2
    assert out in report.stderr
    assert len(trained_module.client.search_model_versions()) == 1


def test_weights_that_dvc_recorded_and_train_did_not_write_are_not_logged(
    trained: Clone, invoke: Invoke
) -> None:
    flip(trained.folder / WEIGHTS)
    trained.run("dvc", "commit", "--force")
    done = invoke(without_store(trained), "sync")
    assert f"the workspace left out: {WEIGHTS}: found SHA-256" in done.output
