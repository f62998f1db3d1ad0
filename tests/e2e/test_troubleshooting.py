"""Remedies of docs/troubleshooting.md that no other test proves."""

import json

from tests.checkout import ROOT, Clone

PAGE = (ROOT / "docs/troubleshooting.md").read_text()


def fix(clone: Clone, command: str) -> None:
    """Run a command that the page shows."""
    assert f"`{command}`" in PAGE
    clone.run("bash", "-c", command)


def test_a_lock_file_of_a_killed_dvc_is_removed(trained: Clone) -> None:
    (trained.folder / ".dvc/tmp/rwlock").write_text("")
    assert trained.run("dvc", "repro", check=False).returncode != 0
    fix(trained, "rm .dvc/tmp/rwlock")
    assert trained.dvc("repro") == []


def test_outputs_that_were_edited_or_left_the_cache_come_back(trained: Clone) -> None:
    path = trained.folder / "data/stats.json"
    before = path.read_bytes()
    path.write_bytes(b"edited")
    assert "unsaved files" in trained.run("dvc", "checkout", check=False).stdout
    assert "unsaved files" in PAGE
    fix(trained, "dvc checkout --force")
    assert path.read_bytes() == before

    for cached in trained.folder.glob(".dvc/cache/files/md5/*/*"):
        if cached.read_bytes() == before:
            cached.unlink()
    path.unlink()
    assert trained.run("dvc", "checkout", check=False).returncode != 0
    fix(trained, "dvc repro")
    assert path.read_bytes() == before


def test_data_that_changed_after_validation_are_validated_again(trained: Clone) -> None:
    path = trained.folder / "metrics/validation.json"
    verdict = json.loads(path.read_text())
    path.write_text(json.dumps({**verdict, "dataset_sha256": "0" * 64}))
    assert trained.run("python", "-m", "stages.stats", check=False).returncode == 1
    fix(trained, "dvc repro validate")
    assert json.loads(path.read_text()) == verdict
    trained.run("python", "-m", "stages.stats")
