"""The classifier as an ONNX file: equal to torch's, equal bytes, and no other form is read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import AttributeProto, ModelProto, TensorProto, helper

from mnist.core import config, paths
from mnist.core.errors import InputError
from mnist.training import model, onnx_export, onnx_model
from mnist.training.model import Classifier
from tests.conftest import DIGITS, SmallData, digits

ROOT = Path(__file__).parents[3]
DIGEST = "d" * 64


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep exported graphs in an empty folder, unless a test names another one."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


def build(*, seed: int = 0, **changes: object) -> Classifier:
    settings = config.load(ROOT / paths.PARAMS).model_copy(update=changes)
    return model.build(settings, classes=DIGITS.classes, seed=seed, mean=0.1 + seed / 10, std=0.3).eval()


def export(path: Path, classifier: Classifier, small_data: SmallData) -> bytes:
    onnx_export.export(path, classifier, weights_sha256=DIGEST, images=small_data.test)
    return path.read_bytes()


def kept(root: Path) -> list[Path]:
    return list(root.glob(".cache/onnx/*"))


def assert_same(path: Path, classifier: Classifier) -> None:
    loaded = onnx_model.load(path)
    assert loaded.about.classes == DIGITS.classes
    assert loaded.about.weights_sha256 == DIGEST
    for size in (1, 3, 2001):
        images_NHW = digits(size, seed=size).images_NHW
        with torch.inference_mode():
            expected_NK = classifier(torch.from_numpy(images_NHW)).numpy()
        probs_NK = loaded.predict(images_NHW)
        assert probs_NK.dtype == np.float32
        np.testing.assert_allclose(probs_NK, expected_NK, rtol=0, atol=1e-6)


def test_equal_classifiers_give_equal_bytes_from_a_kept_graph_too(
    tmp_path: Path, root: Path, small_data: SmallData
) -> None:
    path = tmp_path / "model.onnx"
    first = export(path, build(seed=1), small_data)
    assert_same(path, build(seed=1))
    assert str(ROOT).encode() not in first  # torch notes the lines of code
    assert export(path, build(seed=2), small_data) != first  # by the graph of the first
    assert_same(path, build(seed=2))
    (graph,) = kept(root)
    graph.unlink()
    assert export(path, build(seed=1), small_data) == first


def test_a_kept_graph_that_is_damaged_is_exported_again(
    tmp_path: Path, scored: Path, root: Path, small_data: SmallData, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is no graph, one that computes something else, and one whose bytes alone are others."""
    (good,) = kept(scored)
    graph = onnx.load(good)
    (scale,) = (node for node in graph.graph.node if node.op_type == "Exp")
    scale.op_type = "Abs"
    graph.ClearField("metadata_props")
    onnx.helper.set_model_props(graph, {onnx_export.SHA256: onnx_export._digest(graph)})
    path, classifier = tmp_path / "model.onnx", build()
    renamed = onnx.load(good)
    renamed.producer_name = "other"
    for damage in (b"no graph", graph.SerializeToString(), renamed.SerializeToString()):
        (root / ".cache/onnx").mkdir(parents=True, exist_ok=True)
        (root / ".cache/onnx" / good.name).write_bytes(damage)
        export(path, classifier, small_data)
        assert_same(path, classifier)
        assert "is exported again" in capsys.readouterr().out
        assert (root / ".cache/onnx" / good.name).read_bytes() == good.read_bytes()


def test_shuffled_pixels_are_a_constant_of_a_graph_that_is_not_kept(
    tmp_path: Path, root: Path, small_data: SmallData
) -> None:
    path, classifier = tmp_path / "model.onnx", build(model="mlp", permute_pixels=True)
    assert export(path, classifier, small_data) == export(path, classifier, small_data)
    assert_same(path, classifier)
    assert kept(root) == []


def test_a_log_probability_far_from_zero_does_not_make_other_probabilities_agree(scored: Path) -> None:
    loaded, images_NHW = onnx_model.load(scored / paths.ONNX), digits(5, seed=0).images_NHW
    log_probs_NK = np.log(loaded.predict(images_NHW))
    log_probs_NK[:, log_probs_NK.mean(0).argmin()] = -2e5
    assert not loaded.agrees(images_NHW, np.roll(log_probs_NK, 1, axis=1))


def test_a_file_that_does_not_agree_is_not_written(
    tmp_path: Path, scored: Path, small_data: SmallData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(scored))
    other = build(seed=7)
    monkeypatch.setattr(onnx_export, "_fill", lambda *_: True)
    monkeypatch.setattr(onnx_export, "_exported", lambda _: onnx.load(scored / paths.ONNX))
    with pytest.raises(RuntimeError, match="is not the classifier, at batch 1"):
        export(tmp_path / "model.onnx", other, small_data)
    assert list(tmp_path.iterdir()) == []


def external(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def external_constant(model: ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["more"])
    node.attribute.add(name="value", type=AttributeProto.TENSOR).t.external_data.add(
        key="location", value="x"
    )


def another_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def another_shape(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def two_outputs(model: ModelProto) -> None:
    model.graph.output.add().CopyFrom(model.graph.output[0])


def another_operator(model: ModelProto) -> None:
    model.graph.node[0].domain = "evil.org"


def another_domain(model: ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def a_loop(model: ModelProto) -> None:
    model.graph.node.add(op_type="Loop").attribute.add(name="body", type=AttributeProto.GRAPH)


def a_function(model: ModelProto) -> None:
    model.functions.add(name="Exp", domain="")


def not_a_number(model: ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.full((6, 1, 5, 5), np.nan, np.float32), "network.conv1.weight")
    )


def too_few_numbers(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"1234567"


def no_metadata(model: ModelProto) -> None:
    model.ClearField("metadata_props")


def nine_classes(model: ModelProto) -> None:
    about = {"classes": list("012345678"), "weights_sha256": DIGEST}
    helper.set_model_props(model, {onnx_model.ABOUT: json.dumps(about)})


def names_that_control_a_terminal(model: ModelProto) -> None:
    about = {"classes": ["\x1b[2J", *"123456789"], "weights_sha256": DIGEST}
    helper.set_model_props(model, {onnx_model.ABOUT: json.dumps(about)})


def a_layer_without_output(model: ModelProto) -> None:
    model.graph.node.add(op_type="Relu", input=["network.conv1.weight"])


def no_operator(model: ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (external, "tensors in another file"),
        (external_constant, "tensors in another file"),
        (another_input, "inputs and outputs [('images', 1, "),
        (another_shape, "inputs and outputs [('images', 2, [1, 28"),
        (two_outputs, "inputs and outputs "),
        (not_a_number, "numbers that are not finite, or too few, in the tensor network.conv1.weight"),
        (too_few_numbers, "numbers that are not finite, or too few, in"),
        (another_operator, "the operator evil.org."),
        (another_domain, "operators that are not ONNX's own"),
        (a_function, "operators that are not ONNX's own"),
        (a_loop, "a graph within the operator Loop"),
        (no_metadata, "no classes"),
        (nine_classes, "inputs and outputs "),
        (names_that_control_a_terminal, "names of classes that are not printable"),
        (a_layer_without_output, "[ONNXRuntimeError]"),
        (no_operator, "[ONNXRuntimeError]"),
    ],
)
def test_another_form_is_not_read(
    change: Callable[[ModelProto], None], found: str, scored: Path, tmp_path: Path
) -> None:
    changed = onnx.load(scored / paths.ONNX)
    change(changed)
    path = tmp_path / "model.onnx"
    path.write_bytes(changed.SerializeToString())
    with pytest.raises(InputError) as caught:
        onnx_model.load(path, where="models:/m/1")
    assert caught.value.where == "models:/m/1"
    assert caught.value.found.startswith(found)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_onnx_or_too_large_or_missing_is_not_read(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    for content in (b"", b"no model", (scored / paths.ONNX).read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(InputError):
            onnx_model.load(path)
    with pytest.raises(InputError, match="no such file"):
        onnx_model.load(tmp_path / "none.onnx")
    size = (scored / paths.ONNX).stat().st_size
    monkeypatch.setattr(onnx_model, "MAX_BYTES", size)
    onnx_model.load(scored / paths.ONNX)
    monkeypatch.setattr(onnx_model, "MAX_BYTES", size - 1)
    with pytest.raises(InputError, match="found more than "):
        onnx_model.load(scored / paths.ONNX)
