"""The classifier as an ONNX file, read with onnxruntime alone; `mnist.training.onnx_export` writes it.

Its graph takes raw pixels, `images`, uint8 (N, 28, 28), and gives `probabilities`, float32 (N, K);
normalization is inside. A graph holds no code; still, a file may come from anybody, and `load` accepts only
the form that `train` writes.

Shape suffixes: N images, C channels, H rows, W columns, K classes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto
from pydantic import Field, ValidationError

from mnist.core import files
from mnist.core.config import Digest, Section
from mnist.core.errors import InputError
from mnist.data.store import IMAGE_SHAPE, Bytes

Floats = NDArray[np.float32]

IMAGES, PROBABILITIES = "images", "probabilities"  # names of the input and the output
LOG_PROBABILITIES = "log_softmax"  # name of the tensor before the output
ABOUT = "classifier"  # the one key of a file's metadata
EXPECTED = "an ONNX file that `train` wrote"
MAX_BYTES = 256 * 2**20  # of a file; simple_cnn with the most features has 110 MB
MAX_SHOWN = 60  # characters of a file's content in a message
BATCH = 1000  # images that are scored at once; more need more memory, and no less time
# Kinds of attributes that hold graphs (of If, Loop, Scan), or tensors of other kinds.
NESTED = (
    AttributeProto.GRAPH,
    AttributeProto.GRAPHS,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
)
# Of a probability, for each unit of the largest log-probability: onnxruntime adds in another order than
# torch. Seen were at most 1e-7, and 1e-6 at 30 for the default params; a wrong tensor gives 0.03.
TOLERANCE, MAX_TOLERANCE = 1e-5, 1e-3


class About(Section):
    """The names of the K classes, and the digest of the weights file, in the metadata of an ONNX file."""

    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    weights_sha256: Digest


@dataclass(frozen=True)
class OnnxModel:
    """A classifier that needs no torch.

    Attributes:
        layers: the names of the tensors that each layer with weights reads and writes, by its name.
    """

    about: About
    session: onnxruntime.InferenceSession
    layers: dict[str, tuple[str, str]]

    def predict(self, images_NHW: Bytes) -> Floats:
        """Return the probabilities, float32 (N, K), of raw images, uint8 (N, 28, 28)."""
        return self.tensor(PROBABILITIES, images_NHW)

    def log_probabilities(self, images_NHW: Bytes) -> Floats:
        """Return the log-probabilities, float32 (N, K), which are finite where a probability is 0."""
        return self.tensor(LOG_PROBABILITIES, images_NHW)

    def tensor(self, name: str, images_NHW: Bytes) -> Floats:
        """Return a tensor of the graph, float32 (N, ...), for raw images, uint8 (N, 28, 28)."""
        batches = np.split(images_NHW, range(BATCH, len(images_NHW), BATCH))
        return np.concatenate([self.session.run([name], {IMAGES: batch})[0] for batch in batches])

    def agrees(self, images_NHW: Bytes, log_probs_NK: Floats) -> bool:
        """Return whether it gives the probabilities of these logarithms, float32 (N, K), up to `TOLERANCE`.

        Then it predicts the same classes, but where two probabilities are as close to each other.
        """
        bound = min(TOLERANCE * max(1, np.abs(log_probs_NK).max()), MAX_TOLERANCE)
        found_NK, probs_NK = self.predict(images_NHW), np.exp(log_probs_NK)
        return found_NK.shape == probs_NK.shape and bool((np.abs(found_NK - probs_NK) <= bound).all())


def load(path: Path, *, num_threads: int = 1, where: str = "") -> OnnxModel:
    """Read an ONNX file that may come from anybody; it must have the form that `train` writes.

    Args:
        path: of the file.
        num_threads: of onnxruntime.
        where: the name of the file in errors; without it, the path.

    Raises:
        InputError: the file is missing, or has another form.
    """
    where = where or str(path)
    model = parse(path, where)
    about = _about(model, where)
    if fault := next(_faults(model, about), ""):
        raise InputError(where, found=fault, expected=EXPECTED)
    layers = {
        name.split(".")[1]: (node.input[0], node.output[0])
        for node in model.graph.node
        if node.output
        for name in node.input
        if name.startswith("network.") and name.endswith(".weight")
    }
    for name in dict.fromkeys((LOG_PROBABILITIES, *itertools.chain(*layers.values()))):
        model.graph.output.add(name=name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 4  # errors are raised
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
            read_config_from_model=0,
        )
        loaded = OnnxModel(about, session, layers)
        probs_NK = loaded.predict(np.zeros((2, *IMAGE_SHAPE), np.uint8))
    except Exception as error:  # onnxruntime has a class for each of its status codes
        raise InputError(where, found=_shown(error), expected=EXPECTED) from error
    if probs_NK.shape != (2, len(about.classes)):
        raise InputError(where, found=f"probabilities {probs_NK.shape} of 2 images", expected=EXPECTED)
    return loaded


def parse(path: Path, where: str) -> ModelProto:
    """Read an ONNX file of any form, as `where` in errors.

    Raises:
        InputError: it is missing, too large, or no ONNX.
    """
    with files.reading(path, EXPECTED):
        content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    if content is None:
        raise InputError(where, found=f"more than {MAX_BYTES // 2**20} MiB", expected=EXPECTED)
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # DecodeError of protobuf
        raise InputError(where, found=f"no ONNX ({_shown(error)})", expected=EXPECTED) from error


def _about(model: ModelProto, where: str) -> About:
    """Return the metadata of a file."""
    values = {entry.key: entry.value for entry in model.metadata_props}
    try:
        about = About.model_validate_json(values.get(ABOUT, "null"))
    except ValidationError:
        found = f"no classes and digest of weights in the metadata {_shown(values)}"
        raise InputError(where, found=found, expected=EXPECTED) from None
    if not all(name.isprintable() for name in about.classes):  # they would control a terminal
        found = f"names of classes that are not printable: {_shown(ascii(about.classes))}"
        raise InputError(where, found=found, expected=EXPECTED)
    return about


def _faults(model: ModelProto, about: About) -> Iterator[str]:
    """Yield what a graph must not have: other operators, graphs within it, files beside it, other ends."""
    graph, tensors = model.graph, [*model.graph.initializer]
    domains = [entry.domain for entry in model.opset_import]
    if domains != [""] or model.functions or model.training_info:
        yield f"operators that are not ONNX's own: {_shown(domains)}"
    for node in graph.node:
        if node.domain:
            yield f"the operator {_shown(f'{node.domain}.{node.op_type}')}"
        for attribute in node.attribute:
            if attribute.type in NESTED:
                yield f"a graph within the operator {_shown(node.op_type)}"
            tensors += [attribute.t, *attribute.tensors]
    if graph.sparse_initializer or any(tensor.external_data or tensor.data_location for tensor in tensors):
        yield "tensors in another file"
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not _is_finite(tensor):
            yield f"numbers that are not finite, or too few, in the tensor {_shown(tensor.name)}"
    ends = [_end(value) for value in (*graph.input, *graph.output)]
    expected = [
        (IMAGES, TensorProto.UINT8, [0, *IMAGE_SHAPE]),
        (PROBABILITIES, TensorProto.FLOAT, [0, len(about.classes)]),
    ]
    if ends != expected:
        yield f"inputs and outputs {_shown(ends)}"


def _is_finite(tensor: TensorProto) -> bool:
    try:
        return bool(np.isfinite(onnx.numpy_helper.to_array(tensor)).all())
    except ValueError:  # its numbers do not fill its shape
        return False


def _end(value: ValueInfoProto) -> tuple[str, int, list[int]]:
    """Return name, type and shape of an input or output; 0 is any size."""
    kind = value.type.tensor_type
    return value.name, kind.elem_type, [size.dim_value for size in kind.shape.dim]


def _shown(content: object) -> str:
    text = " ".join(str(content).split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
