"""Stored models: read without running what they name; the champion of a local store without MLflow.

Everyone who reaches a server can write to it. So two files of a model are read, `MLmodel` and the ONNX file.
MLflow's import and connection take 2 s, and 100 MB; to score 10,000 images takes 0.3 s.
"""

import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from mnist.core import config, files, paths
from mnist.core.errors import InputError
from mnist.tracking import database
from mnist.tracking.events import ONNX, WEIGHTS
from mnist.tracking.promotion import CHAMPION
from mnist.training import onnx_model
from mnist.training.onnx_model import OnnxModel

MLMODEL, MAX_MLMODEL_BYTES = "MLmodel", 2**16  # the file that describes a stored model; ours have 1 kB
EXPECTED = "a file of a model that `register` stored"
# A file of a stored model by its name, which must have at most so many bytes.
Fetch = Callable[[str, int], Path]

VERSION = """
    SELECT version, storage_location, key, value FROM registered_model_aliases
    JOIN model_versions USING (workspace, name, version)
    JOIN model_version_tags USING (workspace, name, version)
    WHERE workspace = 'default' AND name = ? AND alias = ?
"""


def champion(name: str, *, num_threads: int = 1) -> tuple[str, OnnxModel] | None:
    """Return the URI and the model of the champion in a store of SQLite whose files are on this machine.

    Args:
        name: of the registered model.
        num_threads: of onnxruntime.

    Returns:
        None where MLflow must be asked: the store is another one, or MLflow can say what is wrong.
    """
    uri = paths.store_uri()
    if not uri.startswith("sqlite:///") or not paths.sqlite_file(uri).is_file():
        return None
    with suppress(InputError, OSError, LookupError, sqlite3.Error):
        database.check(uri)
        rows = database.query(uri, VERSION, name, CHAMPION)
        version, place, *_ = rows[0]
        folder = Path(unquote(str(place).removeprefix("file://")))

        def fetch(file: str, max_bytes: int) -> Path:
            path = folder / file
            if not path.is_file() or path.stat().st_size > max_bytes:
                raise InputError(str(path), found="something else", expected=EXPECTED)
            return path

        model_uri, tags = f"models:/{name}/{version}", {str(key): str(value) for _, _, key, value in rows}
        return model_uri, read(fetch, model_uri, tags, num_threads=num_threads)
    return None


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
    if (digest := files.sha256(file)) != tags.get(ONNX):
        raise InputError(
            where, found=f"the digest {digest}", expected=f"{tags.get(ONNX) or 'none'}, the tag {ONNX}"
        )
    model = onnx_model.load(file, num_threads=num_threads, where=where)
    if (weights := model.about.weights_sha256) != tags.get(WEIGHTS):
        expected = f"{tags.get(WEIGHTS) or 'none'}, the tag {WEIGHTS}"
        raise InputError(where, found=f"that it was made from the weights {weights}", expected=expected)
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
