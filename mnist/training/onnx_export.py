"""The export of a classifier as an ONNX file, in the form that `mnist.training.onnx_model` reads."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto

from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.data.store import IMAGE_SHAPE, Images
from mnist.training import onnx_model
from mnist.training.model import Classifier, log_probabilities
from mnist.training.onnx_model import About

SHA256 = "sha256"  # in the metadata of a graph that is kept: the digest of all else
CHECKED = 1, 7, 1000  # batch sizes
EXPORTERS = "torch", "onnx", "onnx-ir", "onnxscript"
CODE = "model.py", "products.py", "onnx_model.py", "onnx_export.py"


def export(path: Path, classifier: Classifier, *, weights_sha256: str, images: Images) -> None:
    """Write a classifier as an ONNX file; equal ones give equal bytes.

    torch exports the graph of an architecture once, in 3 to 5 s. It is kept, and filled with other tensors.

    Args:
        path: to write.
        classifier: in evaluation mode.
        weights_sha256: digest of its weights file.
        images: on which the file must agree with the classifier, as on random ones.

    Raises:
        RuntimeError: the file does not agree.
    """
    about = About(classes=classifier.classes, weights_sha256=weights_sha256)
    kept = _kept(classifier)
    if kept.is_file():
        try:
            model = _read(kept)
            _fill(model, classifier)
            _write(path, model, about, classifier, images)
        except (InputError, RuntimeError) as error:
            print(f"train: {kept} is exported again: {error}")
        else:
            return
    model = _exported(classifier)
    is_filled = _fill(model, classifier)
    _write(path, model, about, classifier, images)
    if is_filled:  # not so with `permute_pixels`: the permutation became a constant
        for tensor in model.graph.initializer:
            if tensor.name in classifier.state_dict():
                tensor.ClearField("raw_data")
        model.ClearField("metadata_props")
        onnx.helper.set_model_props(model, {SHA256: _digest(model)})
        with files.replacing(kept) as part:
            part.write_bytes(model.SerializeToString(deterministic=True))


def _kept(classifier: Classifier) -> Path:
    """Return the file that keeps the graph of an architecture, as this code and these versions export it."""
    shapes = {name: list(tensor.shape) for name, tensor in classifier.state_dict().items()}
    versions = {name: version(name) for name in EXPORTERS}
    code = [files.sha256(Path(__file__).with_name(name)) for name in CODE]
    key = json.dumps([type(classifier.network).__name__, shapes, versions, code])
    return paths.root() / ".cache" / "onnx" / f"{hashlib.sha256(key.encode()).hexdigest()}.onnx"


def _digest(model: ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _read(kept: Path) -> ModelProto:
    """Read a graph that was kept.

    Raises:
        InputError: it is not as it was written.
    """
    model = onnx_model.parse(kept, str(kept))
    expected = "".join(entry.value for entry in model.metadata_props if entry.key == SHA256)
    model.ClearField("metadata_props")
    if (found := _digest(model)) != expected:
        raise InputError(str(kept), found=f"SHA-256 {found[:12]}", expected=expected[:12])
    return model


def _exported(classifier: Classifier) -> ModelProto:
    """Export the graph by torch, without the paths and lines of code that torch notes in it."""
    exported = torch.onnx.export(
        classifier.cpu(),
        (torch.zeros((2, *IMAGE_SHAPE), dtype=torch.uint8),),  # one image would make 1 the only batch size
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        input_names=[onnx_model.IMAGES],
        output_names=[onnx_model.PROBABILITIES],
        verbose=False,
    )
    assert exported
    model: ModelProto = exported.model_proto
    graph = model.graph
    graph.ClearField("value_info")
    for noted in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        noted.ClearField("doc_string")
        noted.ClearField("metadata_props")
    return model


def _fill(model: ModelProto, classifier: Classifier) -> bool:
    """Set the tensors of a graph to those of a classifier, by name; return whether it has them all."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    is_filled = True
    for name, tensor in classifier.state_dict().items():
        new = onnx.numpy_helper.from_array(tensor.cpu().numpy(), name)
        if name in found and (found[name].dims, found[name].data_type) == (new.dims, new.data_type):
            found[name].CopyFrom(new)
        else:
            is_filled = False
    return is_filled


def _write(path: Path, model: ModelProto, about: About, classifier: Classifier, real: Images) -> None:
    """Write the file of a graph, if it agrees with the classifier."""
    onnx.helper.set_model_props(model, {onnx_model.ABOUT: about.model_dump_json()})
    with files.replacing(path) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
        written, rng = onnx_model.load(part), np.random.default_rng(0)
        for size in CHECKED:
            noise_NHW = rng.integers(0, 256, (size, *IMAGE_SHAPE), np.uint8)
            noise = Images(images_NHW=noise_NHW, labels_N=np.zeros(size, np.uint8))
            for images in (real.take(np.arange(min(size, len(real)))), noise):
                log_probs_NK = log_probabilities(classifier, images, torch.device("cpu")).numpy()
                if not written.agrees(images.images_NHW, log_probs_NK):
                    raise RuntimeError(f"{path} is not the classifier, at batch {size}")
