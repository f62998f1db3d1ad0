"""The contracts between `dvc.yaml`, `params.yaml`, `dvc.lock`, the stages and the packages."""

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist.core import custody, paths
from mnist.core.config import Params, Section
from mnist.lineage import lock

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / paths.PIPELINE).read_text())
STAGES = list(PIPELINE["stages"])
HEAVY = {
    *("torch", "torchvision", "mlflow", "great_expectations", "matplotlib", "pandas", "dvc"),
    *("onnx", "onnxruntime"),
}

# They name and log a training, and determine no weight.
NO_DEPS = {"train": {"mnist/lineage", "mnist/tracking"}}
UNLISTED = {"train": {"checkpoint_epochs"}}

# The packages that a package may import; `mnist.cli` and `stages` may import all.
BELOW = {
    "core": [],
    "data": ["core"],
    "training": ["core", "data"],
    "evaluation": ["core", "data", "training", "lineage"],  # a report names the code of a result
    "lineage": ["core"],
    "tracking": ["core", "data", "training", "evaluation", "lineage"],
    "comparison": ["core", "data", "training", "evaluation", "lineage"],
}


def imported(module: Path) -> set[str]:
    """Return the project's files that `module` imports, for types or inside of a function too."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = ROOT / name.replace(".", "/")
            files = (path.with_suffix(".py"), path / "__init__.py")
            found |= {file.relative_to(ROOT).as_posix() for file in files if file.is_file()}
    return found


def closure(module: str) -> set[str]:
    """Return `module` and the project's files that it imports, directly or not."""
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        reached |= waiting
        waiting = {found for name in waiting for found in imported(ROOT / name)} - reached
    return reached


def entries(stage: str, kind: str) -> list[str]:
    """Return the paths under deps, outs, metrics or plots of a stage, or its keys of params.yaml."""
    listed = PIPELINE["stages"][stage].get(kind, [])
    if kind == "params":
        return [entry for entry in listed if isinstance(entry, str)]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in listed]


def params_of(stage: str) -> set[str]:
    """Return the leaf keys of a stage's `Params`."""
    section: type[Section] = importlib.import_module(f"stages.{stage}").Params
    return leaves(section)


def leaves(section: type[Section], prefix: str = "") -> set[str]:
    found = set()
    for name, field in section.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, Section):
            # An interval such as {min, max} is one value.
            inner = leaves(kind, f"{prefix}{name}.")
            found |= {prefix + name} if set(kind.model_fields) == {"min", "max"} else inner
        else:
            found.add(prefix + name)
    return found


def test_each_stage_is_a_module_of_its_name() -> None:
    modules = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
    for stage in STAGES:
        assert PIPELINE["stages"][stage]["cmd"] == f"python -m stages.{stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_code_in_deps_is_the_import_closure(stage: str) -> None:
    listed = {dep for dep in entries(stage, "deps") if dep.startswith(("mnist/", "stages/"))}
    imported_by_it = closure(f"stages/{stage}.py")
    reached = {
        f"mnist/{package}" for package in BELOW if any(f"mnist/{package}/" in name for name in imported_by_it)
    }
    reached.add(f"stages/{stage}.py")
    if stage == "register":  # it finds the run by a digest of all that training depends on
        reached.add("stages/train.py")
    assert listed == reached - NO_DEPS.get(stage, set())


@pytest.mark.parametrize("folder", ["mnist", "stages"])
def test_what_is_no_dep_of_any_stage_holds_no_code(folder: str) -> None:
    (statement,) = ast.parse((ROOT / folder / "__init__.py").read_text()).body
    assert isinstance(statement, ast.Expr)


def test_register_depends_on_all_that_determines_training() -> None:
    assert set(entries("train", "deps")) <= set(entries("register", "deps"))
    assert set(entries("train", "params")) <= set(entries("register", "params"))


@pytest.mark.parametrize("stage", STAGES)
def test_params_in_the_pipeline_are_those_of_the_stage(stage: str) -> None:
    listed = set()
    for key in entries(stage, "params"):
        inside = {leaf for leaf in leaves(Params) if leaf == key or leaf.startswith(f"{key}.")}
        assert inside, f"{key} is no key of params.yaml"
        listed |= inside
    assert listed == params_of(stage) - UNLISTED.get(stage, set())


def test_every_param_is_used_by_a_stage_or_by_promotion() -> None:
    used = {key for stage in STAGES for key in params_of(stage)}
    assert leaves(Params) - used == {"registry.alpha"}


def test_stages_that_read_a_data_sets_file_depend_on_it() -> None:
    dep = "datasets/${dataset}.yaml"
    reading = [stage for stage in STAGES if "mnist/data/catalog.py" in imported(ROOT / f"stages/{stage}.py")]
    assert reading == [stage for stage in STAGES if dep in entries(stage, "deps")]
    assert all("dataset" in entries(stage, "params") for stage in reading)


def test_each_stage_whose_files_are_read_writes_a_receipt() -> None:
    kinds = "outs", "metrics"
    made = {name for stage in STAGES for kind in kinds for name in entries(stage, kind)}
    writing = [stage for stage in STAGES if custody.receipt_of(stage).as_posix() in made]
    assert writing == [stage for stage in STAGES if stage != "register"]


@pytest.mark.parametrize("stage", STAGES)
def test_paths_of_run_are_the_files_of_the_stage(stage: str) -> None:
    run = importlib.import_module(f"stages.{stage}").run
    parameters = dict(inspect.signature(run).parameters)
    assert parameters.pop("params").default is inspect.Parameter.empty
    defaults = set()
    for parameter in parameters.values():
        value = parameter.default
        given = value if isinstance(value, tuple) else (value,)
        # The figures are one out, their folder.
        defaults |= {(paths.PLOTS if path.parent == paths.PLOTS else path).as_posix() for path in given}
    files = {name for kind in ("deps", "outs", "metrics", "plots") for name in entries(stage, kind)}
    files = {name for name in files if name.startswith(("data/", "models/", "metrics/"))}
    files -= {custody.receipt_of(stage).as_posix()}  # written after `run`
    # register reads training's inputs through dvc.yaml, and logs three files that DVC knows otherwise; its
    # report holds commit and time, so DVC must not know it.
    others = {"params.yaml", "dvc.yaml", "dvc.lock", "metrics/report.html"}
    extra = set(entries("train", "deps")) | others if stage == "register" else set()
    extra.add(paths.DATASETS.as_posix())  # one file of the folder is the dep
    assert defaults - extra == files - extra


def test_stages_start_light_and_training_without_dynamo() -> None:
    """So a typo in params is reported at once, and the first optimizer does not cost 1.5 s more."""
    names = ", ".join(f"stages.{stage}" for stage in STAGES)
    code = f"""
import sys, {names}
print(*{HEAVY!r} & sys.modules.keys())
import mnist.core.config, mnist.training.devices, mnist.training.loop, mnist.training.optim
mnist.training.devices.prepare(mnist.core.config.Machine(device="cpu", num_threads=1))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "False"]


def started(module: Path) -> set[str]:
    """Return the commands and stages that `module` names in a string, to start them in a process."""
    nodes = ast.walk(ast.parse(module.read_text()))
    names = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    starts = [name for name in names if re.fullmatch(r"(mnist\.cli|stages)\.\w+", name)]
    return {name.replace(".", "/") + ".py" for name in starts}


def test_imports_go_one_way() -> None:
    found = set()
    for package, below in BELOW.items():
        for path in (ROOT / "mnist" / package).glob("**/*.py"):
            used = {Path(name).parts[1] for name in imported(path) | started(path)}
            module = path.relative_to(ROOT).as_posix()
            found |= {(module, other) for other in used - {package, *below, "__init__.py"}}
    assert found == set()
    assert all(name.startswith("mnist/") for path in ROOT.glob("stages/*.py") for name in imported(path))


def test_no_module_imports_itself_through_others() -> None:
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "mnist").glob("**/*.py")]
    graph = {name: imported(ROOT / name) - {name} for name in modules}
    graphlib.TopologicalSorter(graph).prepare()


def test_no_pickle_is_written_or_read() -> None:
    for path in [*ROOT.glob("stages/*.py"), *ROOT.glob("mnist/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert not re.search(r"\btorch\.(save|load)\b", text), path


def test_metrics_are_in_git_and_what_is_large_is_in_the_cache() -> None:
    places = {path: out.kept_in for stage in lock.pipeline(ROOT) for path, out in stage.outs.items()}
    assert places.pop(paths.REGISTERED.as_posix()) == ""  # in neither, so that a new clone registers
    assert places == {path: "git" if path.startswith("metrics/") else "cache" for path in places}


def test_lock_file_has_hashes_and_no_addresses() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") > 1000
    torch = next(line for line in text.splitlines() if line.startswith("torch=="))
    assert torch.split()[0] in (ROOT / "pyproject.toml").read_text()


def test_the_lock_is_of_this_code() -> None:
    locked = lock.read(ROOT)
    for stage in lock.pipeline(ROOT):
        changed = [str(change) for change in lock.changes(stage, locked[stage.name])]
        changed = [line for line in changed if not line.startswith(("data/", "models/", "metrics/"))]
        assert changed == [], f"stage {stage.name}: run `dvc repro` and commit dvc.lock"
