"""Without a CUDA GPU the kernels run in Triton's interpreter, chosen before anything imports triton.

Memory that PyTorch allocates and does not write is filled with NaN: an output that a kernel leaves
out cannot pass for a result.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# cuBLAS asks for it where results are to be the same every time
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def poisoned_memory():
    # what torch.utils.deterministic.fill_uninitialized_memory does, on by default in this mode
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def on_device():
    """New tensors are on the GPU where there is one: where the kernels of this process run."""
    with torch.device("cuda:0" if torch.cuda.is_available() else "cpu"):
        yield


@pytest.fixture(params=["ViTModel", "ViTForImageClassification"])
def pair(request):
    """(stock, accelerated) of each supported class; see twins.py."""
    import transformers

    from twins import twins

    return twins(getattr(transformers, request.param))
