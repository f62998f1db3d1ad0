"""What `lock.check` refuses without DVC."""

from pathlib import Path

import pytest

from mnist.core.errors import InputError
from mnist.lineage import lock

MADE = "stages: {train: {cmd: x}, evaluate: {cmd: x}}"


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, r"dvc\.lock: found no stage train"),
        ({"dvc.lock": "stages: {train: {cmd: x}}"}, r"dvc\.lock: found no stage evaluate"),
        ({"dvc.lock": "a: ["}, r"dvc\.lock: found no YAML"),
        ({"dvc.lock": MADE}, r"dvc\.lock: found stage train: its cmd is `None`, was `x`"),
        ({"dvc.lock": MADE, "params.yaml": "1"}, r"params\.yaml: found int, expected keys and values"),
    ],
)
def test_a_folder_without_a_result_is_refused(tmp_path: Path, files: dict[str, str], line: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"^{line}[^\n]*$"):
        lock.check(tmp_path)
