"""How much memory a piece of code keeps of a large file, measured in a process of its own."""

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]

# Anonymous memory is what must be kept; the rest are pages of files, which the system may take back.
PROBE = """
import sys, threading
from pathlib import Path

import numpy as np

from mnist.data import idx, image_table, statistics, store


def now(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) // 1024


def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, now("RssAnon"))


path, done = Path(sys.argv[1]), threading.Event()
before, resident = now("RssAnon"), now("VmRSS")
peak, watching = before, threading.Thread(target=watch, daemon=True)
watching.start()
CODE
peak = max(peak, now("RssAnon"))
done.set()
watching.join()
print(peak - before, now("VmHWM") - resident)
"""


def make_dataset(path: Path, *, num_train: int, num_test: int) -> None:
    """Black images in the form that `download` writes, as a sparse file, which takes no room."""
    shapes = {
        "train_images": [num_train, 28, 28],
        "train_labels": [num_train],
        "test_images": [num_test, 28, 28],
        "test_labels": [num_test],
    }
    end, header = 0, {}
    for name, shape in shapes.items():
        start, end = end, end + prod(shape)
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)


def grown_mib(code: str, path: Path) -> tuple[int, int]:
    """Run code that reads the file at `path`: by how much its memory grew at most.

    Returns:
        MiB of anonymous memory, and of all that was resident, the file's pages included.
    """
    if sys.platform != "linux":
        pytest.skip("only Linux tells anonymous memory apart")
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("CODE", dedent(code)), str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    anonymous, resident = map(int, done.stdout.split())
    return anonymous, resident
