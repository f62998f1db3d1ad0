"""Products by oneDNN: right for every shape and layout, with gradients, and without MKL."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mnist.core import config
from mnist.core.config import Params
from mnist.training import ONE_INSTRUCTION_SET, loop, model, products
from tests.conftest import DIGITS, SmallData

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (24, 36, 900), (0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_a_product_is_right_in_every_layout(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, inner, columns = shape
    a_MK, b_KN = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    expected_MN = a_MK.double().numpy() @ b_KN.double().numpy()
    for a in (a_MK, a_MK.t().contiguous().t()):
        for b in (b_KN, b_KN.t().contiguous().t()):
            found = products.product(a, b)
            assert (found.shape, found.dtype) == ((rows, columns), dtype)
            np.testing.assert_allclose(found, expected_MN, rtol=0, atol=1e-5)


def test_gradients_are_those_of_a_linear_layer() -> None:
    layer = products.Linear(4, 3).double()

    def outputs(x_BI: Tensor, weight_OI: Tensor) -> Tensor:
        return products.differentiable_product(x_BI, weight_OI.t()) + layer.bias

    x_BI = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (x_BI, layer.weight))
    torch.testing.assert_close(layer(x_BI), torch.nn.functional.linear(x_BI, layer.weight, layer.bias))


@pytest.mark.skipif(not ONE_INSTRUCTION_SET, reason="the processor has no AVX2")
@pytest.mark.parametrize("kind", ["simple_cnn", "mlp"])
def test_training_leaves_no_product_to_mkl(
    kind: str, small_data: SmallData, capfd: pytest.CaptureFixture[str]
) -> None:
    params: Params = config.load(ROOT / "params.yaml").model_copy(update={"model": kind})
    net = model.build(params, classes=DIGITS.classes, seed=0, mean=0.13, std=0.31)
    some = small_data.train.take(np.arange(130))
    with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):  # MKL prints a line for each of its calls
        torch.ones(30, 30) @ torch.ones(30, 30)
        assert "SGEMM" in capfd.readouterr().out
        for _ in loop.fit(net, train=some, val=some, recipe=params, seed=0, device=CPU, precision="float32"):
            pass
    assert "MKL_VERBOSE" not in capfd.readouterr().out
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
