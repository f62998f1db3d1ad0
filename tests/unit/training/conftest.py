import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Compute with one thread, so that sums have one order."""
    torch.set_num_threads(1)
