"""Stored models: read without running what they name; the champion of a local store without MLflow.

Everyone who reaches a server can write to it. So two files of a model are read, `MLmodel` and the ONNX file.
MLflow's import and connection take 2 s, and 100 MB; to score 10,000 images takes 0.3 s.
"""

import re
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote

from mnist.core import config, files, paths
from mnist.core.errors import InputError, ServiceUnavailableError, printable
from mnist.tracking import database
from mnist.tracking.events import ONNX, WEIGHTS
from mnist.tracking.promotion import CHAMPION
from mnist.training import onnx_model
from mnist.training.onnx_model import OnnxModel

MLMODEL, MAX_MLMODEL_BYTES = "MLmodel", 2**16  # the file that describes a stored model; ours have 1 kB
EXPECTED = "a file of a model that `register` stored"
# Fetches a file of a stored model by its name; fails where it has more than so many bytes.
Fetch = Callable[[str, int], Path]

VERSION = """
    SELECT version, COALESCE(storage_location, source), key, value FROM registered_model_aliases
    JOIN model_versions USING (workspace, name, version)
    JOIN model_version_tags USING (workspace, name, version)
    WHERE workspace = 'default' AND name = ? AND alias = ? AND current_stage != 'Deleted_Internal'
"""


def champion(name: str, *, num_threads: int = 1) -> tuple[str, OnnxModel] | None:
    """Return the URI and the model of the champion in a store of SQLite whose files are on this machine.

    Args:
        name: of the registered model.
        num_threads: of onnxruntime.

    Returns:
        None where MLflow must be asked: the store is no such one, or has no champion, or not in this place.

    Raises:
        ServiceUnavailableError: others have locked the store.
        InputError: it is no store of this MLflow, or the model is not one that `register` stored.
    """
    uri, model_uri = paths.store_uri(), f"models:/{name}@{CHAMPION}"
    if not uri.startswith("sqlite:///") or "?" in uri:
        return None
    if not paths.sqlite_file(uri).exists():
        expected = "one: run `dvc repro` or, for results that are here, `mnist sync`"
        raise InputError(model_uri, found=f"no store {paths.shown(uri)}", expected=expected)
    try:
        database.check(uri, is_written=False)
        rows = database.query(uri, VERSION, name, CHAMPION)
    except sqlite3.OperationalError as error:
        raise ServiceUnavailableError(f"MLflow at {paths.shown(uri)}", str(error)) from None
    version, place, *_ = rows[0] if rows else (0, "")
    is_uri = str(place).startswith("file://")
    folder = Path(unquote(place.removeprefix("file://")) if is_uri else str(place))
    # Those of a copied checkout are the original's until MLflow opens the store.
    if not rows or not folder.is_dir() or not folder.is_relative_to(paths.sqlite_file(uri).parent):
        return None
    model_uri, tags = f"models:/{name}/{version}", {key: value for _, _, key, value in rows}
    with files.temporary("model") as temporary:
        # A copy: between two looks at a file of the store, others may replace it.
        def fetch(file: str, max_bytes: int) -> Path:
            path = folder / file
            found = "no such file" if not path.exists() else "" if path.is_file() else "no regular file"
            if not found and path.stat().st_size > max_bytes:
                found = f"more than {max_bytes:,} bytes"
            if found:
                raise InputError(f"{model_uri}/{file}", found=found, expected=EXPECTED)
            return shutil.copyfile(path, temporary / file)

        return model_uri, read(fetch, model_uri, tags, num_threads=num_threads)


def read(fetch: Fetch, uri: str, tags: Mapping[str, str], *, num_threads: int = 1) -> OnnxModel:
    """Read a stored model.

    Args:
        fetch: gets its files.
        uri: of a version, or of a logged model.
        tags: of the version, with the digests of the weights and the ONNX file.
        num_threads: of onnxruntime.

    Raises:
        InputError: a file is missing, or it is not a model that `register` stored.
    """
    name = _data_of(fetch(MLMODEL, MAX_MLMODEL_BYTES), uri)
    file, where = fetch(name, onnx_model.MAX_BYTES), f"{uri}/{name}"
    digest, weights = (printable(tags.get(name) or "none") for name in (ONNX, WEIGHTS))
    if (found := files.sha256(file)) != digest:
        raise InputError(where, found=f"the digest {found}", expected=f"{digest}, the tag {ONNX}")
    model = onnx_model.load(file, num_threads=num_threads, where=where)
    if (found := model.about.weights_sha256) != weights:
        expected = f"{weights}, the tag {WEIGHTS}"
        raise InputError(where, found=f"that it was made from the weights {found}", expected=expected)
    return model


def _data_of(description: Path, uri: str) -> str:
    """Return the name of the ONNX file in `MLmodel`, which must be of MLflow's flavor `onnx` and no other."""
    where = f"{uri}/{description.name}"
    flavors = config.parse_keys(description.read_bytes(), where).get("flavors")
    found = flavors if isinstance(flavors, dict) else {}
    onnx_flavor, pyfunc = found.get("onnx"), found.get("python_function")
    if len(found) == 2 and isinstance(onnx_flavor, dict) and isinstance(pyfunc, dict):  # noqa: PLR2004
        name = onnx_flavor.get("data")
        is_ours = pyfunc.get("loader_module") == "mlflow.onnx"
        has_code = onnx_flavor.get("code") or pyfunc.get("code")
        if is_ours and not has_code and isinstance(name, str) and re.fullmatch(r"\w+\.onnx", name):
            return name
    shown = ", ".join(map(str, found))[:100]
    raise InputError(where, found=f"the flavors {shown}", expected="one 'onnx' model, without code")
