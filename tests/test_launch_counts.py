"""Every launch of a forward pass is counted, and nothing else touches memory."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import ViTModel

from models import DEVICE, hf_model, images, needs_triton
from vit_fast import ViT, triton_ops


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that are launched, with their counts."""
    counts = Counter()
    if DEVICE == "cuda":
        from triton import knobs

        monkeypatch.setattr(
            knobs.runtime, "launch_enter_hook", lambda m: counts.update([m.get()["name"]])
        )
    else:
        from triton.runtime.interpreter import GridExecutor

        run = GridExecutor.__call__

        def counted(self, *args, **kwargs):
            counts[self.fn.__name__] += 1
            return run(self, *args, **kwargs)

        monkeypatch.setattr(GridExecutor, "__call__", counted)
    return counts


def model(dtype=torch.float16):
    hf = hf_model(ViTModel, dtype, num_hidden_layers=12, add_pooling_layer=False).to(DEVICE)
    return ViT.from_hf(hf), images(2, 3, 32, 32, dtype=dtype).to(DEVICE)


@needs_triton
@pytest.mark.parametrize(
    "folded, total, products",
    [
        # patch embedding, the first LayerNorm, and in each block qkv, attention, proj and norm, fc1, fc2 and norm
        (False, 86, 48),
        # patch embedding, the first statistics, the last LayerNorm, and in each block qkv, attention, proj, fc1, fc2
        (True, 63, 48),
    ],
)
def test_launches_of_a_forward_pass(launched, folded, total, products):
    vit, pixels = model()
    ops = triton_ops(folded)
    with torch.inference_mode():
        vit.encode(pixels, ops)  # makes what is derived from the weights
        launched.clear()
        vit.encode(pixels, ops)
    assert sum(launched.values()) == total
    linear = sum(n for name, n in launched.items() if name.startswith("linear_"))
    assert linear == products
    assert launched["_patch_embed_kernel"] == 1
    assert launched["one_pass_kernel"] + launched["flash_kernel"] == 12


@needs_triton
@pytest.mark.parametrize("folded", [False, True])
def test_launches_for_the_class_token_alone(launched, folded):
    """q is a launch of its own in the last block."""
    vit, pixels = model()
    ops = triton_ops(folded)
    with torch.inference_mode():
        vit.encode(pixels, ops, rows=1)
        launched.clear()
        vit.encode(pixels, ops, rows=1)
    assert sum(launched.values()) == (64 if folded else 87)


VIT_B = """
import collections, functools, sys
import torch, triton
from torch.utils._python_dispatch import TorchDispatchMode
from vit_fast import Ops, ViT, ViTSpec
from vit_fast.ops import Folding
from vit_fast.kernels import attention, folding, layer_norm, linear, linear_folded, linear_norm
from vit_fast.kernels import patch_embed, static_check
from vit_fast.kernels.tuning import KNOWN

gpu, counts, others = KNOWN["sm_90"], collections.Counter(), set()

class Driver(static_check._Driver):
    def launcher_cls(self, source, metadata):
        return lambda *args: counts.update([source.fn.__name__])

class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not (func.is_view or "empty" in func.name()):
            others.add(func.name())
        return func(*args, **(kwargs or {}))

triton.runtime.driver.set_active(Driver(90))
def of(launch):
    return functools.partial(launch, gpu=gpu)

plain = [of(module.launch) for module in (patch_embed, layer_norm, linear, attention)]
norms = Folding(of(folding.launch), of(linear_folded.launch_statistics), of(linear_folded.launch_folded))
ops = Ops("counted", *plain, False, of(linear_norm.launch), None, norms if sys.argv[1] == "folded" else None)
with torch.device("meta"):
    vit = ViT(ViTSpec("vit", (224, 224), 16, 3, 768, 12, 12, 64, 3072, 1e-12)).to(torch.bfloat16)
    pixels = torch.empty(int(sys.argv[2]), 3, 224, 224, dtype=torch.bfloat16)
    # in inference mode a copy by contiguous() or reshape() would be seen as that, which counts as a view
    with torch.no_grad():
        vit.encode(pixels, ops)
        counts.clear()
        with Seen():
            vit.encode(pixels, ops)
print(sum(counts.values()), counts["linear_descriptor_kernel"], counts["_sum_norm_kernel"], sorted(others))
"""


@needs_triton
@pytest.mark.parametrize(
    "folded, batch, expected",
    [
        ("plain", 1, "86 48 24 []"),  # proj and fc2 split along K, their LayerNorm adds the parts
        ("plain", 256, "86 48 0 []"),
        ("folded", 1, "63 48 1 []"),  # the last one
    ],
)
def test_vit_b_on_a_gpu_that_is_not_here(folded, batch, expected):
    """ViT-B/16 as it would be launched on an H200: kernels, and PyTorch operations that are neither views nor empty."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", VIT_B, folded, str(batch)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr
