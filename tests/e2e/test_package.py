"""The wheel that `pip install .` builds, and the command that it installs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import mnist.cli
from tests import checkout
from tests.conftest import SmallData


def test_the_wheel_holds_the_package_and_its_templates(small_data: SmallData, tmp_path: Path) -> None:
    clone = checkout.clone(tmp_path / "clone", small_data)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(tmp_path), "."], cwd=clone.folder, check=True)

    (wheel,) = tmp_path.glob("mnist_pipeline-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = clone.run("git", "ls-files", "mnist").stdout.splitlines()
    assert names == {name for name in tracked if name.endswith((".py", ".jinja"))}

    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", *options, "--target", str(installed), str(wheel)], check=True)
    done = subprocess.run(
        [installed / "bin/mnist", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(f"\n  {command} " in done.stdout for command in mnist.cli.COMMANDS)
