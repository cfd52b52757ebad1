"""Several at once: threads, replicas, shards."""

import copy
import threading

import pytest
import torch
from torch import nn
from transformers import (
    ViTModel,
)

import vit_fast
from models import images
from twins import PIXELS, assert_fast, assert_same, reason, twins
from vit_fast.state import state_of


def test_replicas_of_data_parallel(pair):
    """replicate() copies __dict__, state and all, and gives the copy tensors in place of parameters."""
    stock, fast = pair
    assert_fast(fast, stock, PIXELS)
    replica = fast._replicate_for_data_parallel()
    for name, child in fast.named_children():
        copied = copy.deepcopy(child)
        replica._modules[name] = copied
    with torch.no_grad():
        for p in replica.parameters():
            p.mul_(2)
        assert not torch.allclose(replica(PIXELS)[0], fast(PIXELS)[0], atol=1e-2)
    assert state_of(fast).owner() is fast
    assert_fast(fast, stock, PIXELS)


def test_data_parallel(pair):
    stock, fast = pair
    with torch.no_grad():
        assert_same(nn.DataParallel(fast)(PIXELS), stock(PIXELS), 2e-5)


def test_threads():
    """Eight at once, of several sizes and forms, each with its own answer; and while one converts the model."""
    stock, fast = twins(ViTModel)
    sizes = [(32, 32), (64, 48), (40, 72), (8, 8)]
    with torch.no_grad():
        calls = [
            (
                images(1 + i % 3, 3, *sizes[i % 4], seed=i),
                dict(interpolate_pos_encoding=True, output_hidden_states=i % 2 == 0),
            )
            for i in range(8)
        ]
        expected = [stock(pixels, **form) for pixels, form in calls]
    failures = []

    def run(i: int) -> None:
        try:
            for _ in range(10):
                with torch.inference_mode():
                    assert_same(fast(calls[i][0], **calls[i][1]), expected[i], 2e-5)
        except BaseException as error:
            failures.append((i, error))

    for clear in (False, True):
        threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        while clear and any(thread.is_alive() for thread in threads):
            vit_fast.refresh(fast)
        for thread in threads:
            thread.join()
        assert not failures, failures
    (found,) = vit_fast.explain(fast)
    assert found.other_calls == 0


def test_fully_sharded(tmp_path):
    """FSDP2 on one process: the weights are DTensors, and the class is FSDP's."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    stock, fast = twins(ViTModel)
    inner = copy.deepcopy(fast)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        for layer in inner.layers:
            fully_shard(layer, mesh=mesh)
        with torch.no_grad():
            assert_same(inner(PIXELS), stock(PIXELS), 1e-6)
        assert reason(inner)
        vit_fast.restore(inner)
        with pytest.warns(UserWarning, match="FSDP"):
            vit_fast.accelerate(inner)
    finally:
        dist.destroy_process_group()
