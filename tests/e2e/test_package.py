"""The wheel that `pip install .` builds."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests import checkout
from tests.conftest import SmallData


def test_the_wheel_holds_the_package_and_its_templates(small_data: SmallData, tmp_path: Path) -> None:
    clone = checkout.clone(tmp_path / "clone", small_data)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
    ]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), "."], cwd=clone.folder, check=True)

    (wheel,) = tmp_path.glob("mnist_pipeline-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = clone.run("git", "ls-files", "mnist").stdout.splitlines()
    assert names == {name for name in tracked if name.endswith((".py", ".jinja"))}
