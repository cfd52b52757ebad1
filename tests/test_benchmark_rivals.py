"""Adapters: each gives the answer of the task, or says why it cannot."""

import builtins
import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch._inductor.codecache import PyCodeCache

from benchmarks.case import Case
from benchmarks.prepared import prepare
from benchmarks.rivals import RIVALS
from benchmarks.rivals.compiled import behind_compile, forget_compiled
from benchmarks.rivals.eager import sdpa
from benchmarks.task import Unavailable, ordinary_tensors
from benchmarks.tasks import TASKS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: rivals run as they are."""


def task(layer: str = "model", what: str = "tokens", dtype: str = "fp32", batch: int = 2):
    case = Case(layer, "toy", what, dtype, batch, ("transformers, eager",))
    return TASKS[layer](case, CPU)


def answer(name: str, of) -> dict:
    """The row of a program, held against the baseline."""
    with torch.inference_mode():
        reference = of.reference()
        baseline = prepare("transformers, eager", of, reference, None)
        assert baseline.row["status"] == "ok"
        return prepare(name, of, reference, baseline.result).row


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["transformers, sdpa", "transformers, sdpa flash", "vit-fast", "vit-fast ViT"]
)
def test_programs_of_pytorch(name, dtype):
    row = answer(name, task(dtype=dtype))
    assert row["status"] == "ok", row
    assert row["build_s"] >= 0 and row["first_s"] > 0 and row["launches"] > 10


@pytest.mark.parametrize(
    "name",
    ["torch.compile", pytest.param("torch.compile max-autotune", marks=pytest.mark.slow)],
)
def test_torch_compile(name):
    import torch._inductor.config as inductor

    assert answer(name, task(layer="block", what="block"))["status"] == "ok"
    assert not inductor.freezing and not inductor.max_autotune


def test_what_was_compiled_and_frozen_is_what_is_timed():
    """Not compiled anew, and not frozen, because another one was compiled since, or in another mode than is timed."""
    of = task(layer="block", what="block")
    with torch.inference_mode():
        with ordinary_tensors():
            programs = [
                RIVALS["torch.compile"].build(of),
                RIVALS["torch.compile max-autotune"].build(of),
                # timm's tokens are a method of its model
                behind_compile(of.sdpa().forward, of),
            ]
        expected = of.module(*of.inputs)
        with torch.compiler.set_stance("fail_on_recompile"):
            for program in programs:
                torch.testing.assert_close(program.call(*of.inputs), expected)


@pytest.mark.parametrize("backend", ["efficient", "cuDNN"])
def test_an_attention_backend_that_a_cpu_has_not(backend):
    row = answer(f"transformers, sdpa {backend}", task())
    assert row["status"] == "skipped" and row["why"].startswith("on cpu: ")


def test_a_cuda_graph_on_a_cpu():
    row = answer("torch.compile reduce-overhead", task())
    assert row["status"] == "skipped" and "no CUDA graphs" in row["why"]


def test_attention_is_held_to_the_backend_in_the_call():
    program = sdpa(task(), "MATH")
    assert torch.backends.cuda.flash_sdp_enabled()
    with program.held():
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("layer, what", [("model", "logits"), ("block", "block")])
def test_onnx_runtime(layer, what):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    row = answer("ONNX Runtime", task(layer, what))
    assert row["status"] == "ok", row
    assert row["launches"] is None


def test_onnx_runtime_has_attention_as_one_operator(monkeypatch):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    session, found = onnxruntime.InferenceSession, []

    def opened(path, *args, **kwargs):
        found.extend(node.op_type for node in onnx.load(path).graph.node)
        return session(path, *args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    RIVALS["ONNX Runtime"].build(task())
    assert found.count("Attention") == 2  # a layer
    assert not {"Softmax", "IsNaN"} & set(found)


def test_onnx_runtime_in_bf16():
    pytest.importorskip("onnxruntime")
    assert "fp32 only" in answer("ONNX Runtime", task(dtype="bf16"))["why"]


@pytest.mark.parametrize(
    "layer, what, dtype",
    [("model", "logits", "fp32"), ("block", "block", "bf16"), ("operation", "fc2", "fp32")],
)
def test_openvino(layer, what, dtype):
    pytest.importorskip("openvino")
    row = answer("OpenVINO", task(layer, what, dtype))
    # its bf16 may be beyond the rule on a toy; it is a number then, and says so
    assert row["status"] in (("ok",) if dtype == "fp32" else ("ok", "inaccurate", "skipped")), row
    assert row["status"] != "skipped" or "no bf16 on this processor" in row["why"]


def test_openvino_by_streams_keeps_the_order_of_images():
    pytest.importorskip("openvino")
    row = answer("OpenVINO streams", task(batch=5))
    assert row["status"] == "ok", row
    alone = answer("OpenVINO streams", task(batch=1))
    assert alone["status"] == "skipped" and "see OpenVINO" in alone["why"]


def test_timm_on_the_same_weights():
    timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    assert timm
    for what in ("tokens", "logits"):
        row = answer("timm, torch.compile", task(what=what))
        assert row["status"] == "ok", row


@pytest.mark.parametrize(
    "name, package", [("ONNX Runtime", "onnx"), ("OpenVINO", "openvino"), ("timm, torch.compile", "timm")]
)  # fmt: skip
def test_a_rival_that_is_not_installed_is_skipped_with_the_command(name, package, monkeypatch):
    found = builtins.__import__

    def without(module, *args, **kwargs):
        if module.split(".")[0] == package:
            raise ImportError(f"No module named {module!r}", name=package)
        return found(module, *args, **kwargs)

    of = task()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unavailable, match="pip install"):
        RIVALS[name].build(of)


def test_a_rival_has_the_weights_as_they_are_rounded():
    """A program in fp32 inside, of a bf16 task, is not to be better than bf16 by its weights."""
    of = task(dtype="bf16")
    wide = of.in_dtype(torch.float32)
    for p, q in zip(of.module.parameters(), wide.parameters(), strict=True):
        assert p.dtype == torch.bfloat16 and q.dtype == torch.float32 and q.equal(p.float())
    assert of.module.hf.config._attn_implementation == "eager"


def test_bf16_inputs_are_those_of_every_program():
    of = task("operation", "attention", "bf16")
    q, _, v = of.inputs
    assert q.dtype == torch.bfloat16
    # views of one product, as in the runtime
    assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()


def test_what_was_compiled_is_forgotten_with_its_weights():
    """Inductor keeps the modules that it writes, and with freezing the weights are theirs."""
    found = task("model", "tokens", "fp32")
    with torch.inference_mode():
        program = RIVALS["torch.compile"].build(found)
    held = [
        weakref.ref(value)
        for module in PyCodeCache.modules
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]
    assert held
    del program
    forget_compiled()
    gc.collect()
    assert not any(ref() is not None for ref in held)
