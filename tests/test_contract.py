"""The promises that the files make to each other: `dvc.yaml`, the stages, `params.yaml`, the README."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist import paths
from mnist.params import Params, Section

ROOT = Path(__file__).parents[1]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / paths.PIPELINE).read_text())
STAGES = list(PIPELINE["stages"])
HEAVY = {"torch", "torchvision", "mlflow", "great_expectations", "matplotlib", "pandas", "dvc"}


def imported(module: Path) -> set[str]:
    """The project's own files that `module` imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            if file.is_file():
                found.add(file.relative_to(ROOT).as_posix())
    return found


def closure(module: str) -> set[str]:
    """`module` and every file of ours that it reaches."""
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        reached |= waiting
        waiting = {found for name in waiting for found in imported(ROOT / name)} - reached
    return reached


def entries(stage: str, kind: str) -> list[str]:
    """Paths or keys under deps, outs, metrics, plots or params of a stage."""
    listed = PIPELINE["stages"][stage].get(kind, [])
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in listed]
