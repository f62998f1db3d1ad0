"""Models that run code when MLflow loads them, as somebody who can write to a store may register them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import mlflow.pyfunc
from mlflow.pyfunc.model import PythonModel


def pickled(folder: Path, trace: Path) -> None:
    """Save a model whose pickle makes a file."""

    class Evil(PythonModel):
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return exec, (f"open({str(trace)!r}, 'w').close()",)

        def predict(self, context: Any, model_input: list[float], params: Any = None) -> Any:
            del context, params
            return model_input

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    mlflow.pyfunc.save_model(str(folder), python_model=Evil(), pip_requirements=["mlflow"])


def with_code(folder: Path, trace: Path) -> None:
    """Save a model whose module makes a file when it is imported."""
    code = folder.with_suffix(".code")
    code.mkdir()
    sys.modules.pop("evil_loader", None)  # of another test
    (code / "evil_loader.py").write_text(f"open({str(trace)!r}, 'w').close()\n_load_pyfunc = print\n")
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module="evil_loader",
        code_paths=[str(code / "evil_loader.py")],
        pip_requirements=["mlflow"],
    )
