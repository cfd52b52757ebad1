"""What is measured, as data: the cases of each suite.

Every front end (`python -m benchmarks run`, `vit-fast bench`, `pytest benchmarks`) takes its cases from here.
"""

from collections.abc import Callable, Iterator, Mapping

from .case import NORM, Case

OURS = ("vit-fast", "vit-fast ViT")
HF = ("transformers, eager", "transformers, sdpa")
CPU_RIVALS = (
    *HF,
    "torch.compile",
    "torch.compile max-autotune",
    "ONNX Runtime",
    "OpenVINO",
    "OpenVINO streams",
    "timm, torch.compile",
)
GPU_RIVALS = (
    *HF,
    "transformers, sdpa flash",
    "transformers, sdpa efficient",
    "transformers, sdpa cuDNN",
    "torch.compile",
    "torch.compile reduce-overhead",
    "torch.compile max-autotune",
    "timm, torch.compile",
)
# SDPA held to one of its backends
BACKENDS = tuple(r for r in GPU_RIVALS if r.startswith("transformers, sdpa "))
# of single operations, beside PyTorch's own, which are cuBLAS, cuDNN and oneDNN or MKL
# OpenVINO is given arrays of fp32: of one operation in bf16 their conversion would be what is timed
CPU_OPERATIONS = {"fp32": ("torch.compile", "ONNX Runtime", "OpenVINO"), "bf16": ("torch.compile",)}
GPU_OPERATIONS = (*BACKENDS, "torch.compile", "torch.compile max-autotune")


OPERATIONS = ("patch_embed", "layer_norm", "qkv", "attention", "proj", "fc1", "fc2")
JOINED = ("proj" + NORM, "fc2" + NORM)
# what ViT-B/16 has not: rotary positions, a mask, a gated hidden layer
OTHER_OPERATIONS = {
    "dinov3-b-16": "attention",
    "siglip2-b-16-naflex": "attention",
    "dinov2-g-14": "fc1",
}


def models(
    subjects: Mapping[str, tuple[str, ...]],
    dtypes: tuple[str, ...],
    batches: tuple[int, ...],
    rivals: tuple[str, ...],
) -> Iterator[Case]:
    """subjects: key -> the outputs that are asked for."""
    for subject, outputs in subjects.items():
        for output in outputs:
            for dtype in dtypes:
                for batch in batches:
                    yield Case("model", subject, output, dtype, batch, (*rivals, *OURS))


def operation_cases(
    subject: str,
    dtype: str,
    batch: int,
    rivals: tuple[str, ...] = (),
    caches: tuple[str, ...] = ("warm",),
    names: tuple[str, ...] = OPERATIONS,
) -> Iterator[Case]:
    """rivals: beside PyTorch; SDPA's backends where there is attention alone."""
    for what in names:
        kept = [r for r in rivals if what == "attention" or r not in BACKENDS]
        for cache in caches:
            yield Case("operation", subject, what, dtype, batch, ("PyTorch", *kept, "vit-fast"), cache)  # fmt: skip


def other_operations(
    dtype: str, batch: int, rivals: tuple[str, ...], caches: tuple[str, ...] = ("warm",)
) -> Iterator[Case]:
    for subject, name in OTHER_OPERATIONS.items():
        yield from operation_cases(subject, dtype, batch, rivals, caches, (name,))


def block(subject: str, dtype: str, batch: int, rivals: tuple[str, ...]) -> Case:
    return Case("block", subject, "block", dtype, batch, (*rivals, "vit-fast"))


def ablation(subject: str, dtype: str, batch: int) -> Case:
    return Case("ablation", subject, "tokens", dtype, batch, ("transformers, eager",))


def end_to_end(subject: str, what: str, dtype: str, batch: int) -> Case:
    return Case("end to end", subject, what, dtype, batch, (*HF, *OURS))


def cold_start(subject: str, dtype: str, rivals: tuple[str, ...]) -> Case:
    return Case("cold start", subject, "first answer", dtype, 1, rivals)


def quick(device: str) -> Iterator[Case]:
    """Minutes: a model beside its main rivals, its operations, a block, what each fusion gives, from JPEG, a start."""
    main = "vit-b-16"
    if device == "cuda":
        rivals = (*HF, "torch.compile reduce-overhead")
        yield from models({main: ("tokens",)}, ("bf16",), (1, 64), rivals)
        yield from operation_cases(main, "bf16", 64, BACKENDS, ("cold", "warm"))
        yield block(main, "bf16", 64, HF)
        yield ablation(main, "bf16", 64)
        yield end_to_end(main, "jpeg to logits", "bf16", 1)
        return
    rivals = (*HF, "torch.compile", "ONNX Runtime", "OpenVINO")
    yield from models({main: ("tokens",)}, ("fp32",), (1,), rivals)
    yield from models({main: ("tokens",)}, ("bf16",), (1,), (*HF, "OpenVINO"))
    yield from operation_cases(main, "fp32", 1)
    yield block(main, "fp32", 1, HF)
    yield ablation(main, "fp32", 1)
    yield end_to_end(main, "jpeg to logits", "fp32", 1)
    yield cold_start(main, "fp32", ("transformers, sdpa", "vit-fast"))


def full(device: str) -> Iterator[Case]:
    """Everything that a day's argument needs."""
    if device == "cuda":
        yield from gpu(device)
        return
    main = {
        "vit-b-16": ("tokens",),
        "siglip-b-16": ("tokens",),
        "dinov2-b-14": ("tokens",),
    }
    head = {"vit-b-16": ("logits",), "siglip-b-16": ("pooled",), "dinov2-b-14": ("pooled",)}
    yield from models(main, ("fp32", "bf16"), (1, 8), CPU_RIVALS)
    many = (*HF, "OpenVINO", "OpenVINO streams")
    yield from models({"vit-b-16": ("tokens",)}, ("fp32", "bf16"), (32,), many)
    for dtype in ("fp32", "bf16"):
        rivals = CPU_OPERATIONS[dtype]
        for batch in (1, 8):
            yield from operation_cases(
                "vit-b-16", dtype, batch, rivals, names=(*OPERATIONS, *JOINED)
            )
            yield block("vit-b-16", dtype, batch, (*HF, "OpenVINO"))
            yield ablation("vit-b-16", dtype, batch)
        yield from other_operations(dtype, 8, rivals)
        yield end_to_end("vit-b-16", "jpeg to logits", dtype, 1)
        yield end_to_end("vit-b-16", "uint8 to logits", dtype, 8)
        yield end_to_end("siglip-b-16", "jpeg to pooled", dtype, 1)
        yield end_to_end("dinov2-b-14", "jpeg to pooled", dtype, 1)
        yield end_to_end("clip-b-16", "jpeg to embedding", dtype, 8)
    yield cold_start("vit-b-16", "fp32", ("transformers, sdpa", "torch.compile", *OURS))
    yield from models(head, ("fp32", "bf16"), (8, 1), (*HF, "OpenVINO"))


def families(device: str) -> Iterator[Case]:
    """Every family at its base size, against transformers alone."""
    outputs = {
        "vit-b-16": ("tokens",),
        "deit-b-16": ("logits",),
        "dinov2-b-14": ("tokens",),
        "dinov2-b-14-registers": ("tokens",),
        "dinov3-b-16": ("tokens",),
        "siglip-b-16": ("pooled",),
        "siglip2-b-16-naflex": ("pooled",),
        "clip-b-16": ("tokens",),
        "ijepa-b-14": ("tokens",),
    }
    dtypes = ("bf16",) if device == "cuda" else ("fp32", "bf16")
    yield from models(outputs, dtypes, (1, 8), HF)


def gpu(device: str) -> Iterator[Case]:
    """The models that people run, in bf16, from one image to many."""
    first = {"vit-b-16": ("tokens",), "vit-l-16": ("tokens",), "siglip-b-16": ("tokens",)}
    large = {
        "so400m-14-384": ("tokens",),
        "clip-l-14-336": ("tokens",),
        "dinov2-b-14-518": ("tokens",),
        "deit-b-16": ("tokens",),
    }
    yield from models(first, ("bf16",), (1, 8, 64, 256), GPU_RIVALS)
    yield from models(large, ("bf16",), (1, 64), GPU_RIVALS)
    for subject in ("vit-b-16", "vit-l-16"):
        yield from operation_cases(
            subject, "bf16", 64, GPU_OPERATIONS, ("cold", "warm"), (*OPERATIONS, *JOINED)
        )
        yield block(subject, "bf16", 64, (*HF, "torch.compile max-autotune"))
        yield ablation(subject, "bf16", 64)
    yield from other_operations("bf16", 64, GPU_OPERATIONS, ("cold", "warm"))
    yield ablation("vit-b-16", "bf16", 1)
    yield end_to_end("vit-b-16", "jpeg to logits", "bf16", 1)
    yield end_to_end("vit-b-16", "uint8 to logits", "bf16", 64)
    yield end_to_end("siglip-b-16", "jpeg to pooled", "bf16", 1)
    yield end_to_end("siglip-b-16", "uint8 to pooled", "bf16", 64)
    yield cold_start("vit-b-16", "bf16", ("transformers, sdpa", "torch.compile", *OURS))


def toy(device: str) -> Iterator[Case]:
    """Each layer once, in seconds: what tests run, and no speed of it means anything."""
    yield from models({"toy": ("tokens",)}, ("fp32",), (1, 2), HF)
    yield from operation_cases("toy", "fp32", 1, names=("layer_norm", "qkv"))
    yield block("toy", "fp32", 1, HF)
    yield ablation("toy", "fp32", 1)
    yield end_to_end("toy", "uint8 to logits", "fp32", 2)


SUITES: Mapping[str, Callable[[str], Iterator[Case]]] = {
    "quick": quick,
    "full": full,
    "families": families,
    "gpu": gpu,
    "toy": toy,
}


def cases(suite: str, device: str, only: tuple[str, ...] = ()) -> list[Case]:
    """Of a suite on "cpu" or "cuda"; of them those whose name contains one of `only`.

    ValueError for a suite that is not known or made for the other device, and where `only` leaves nothing.
    """
    if suite not in SUITES:
        raise ValueError(f"no suite {suite!r}, expected one of {', '.join(SUITES)}")
    if suite == "gpu" and device != "cuda":
        raise ValueError(
            "the suite gpu is for CUDA; on this device there are quick, full and families"
        )
    found = list(SUITES[suite](device))
    kept = [c for c in found if not only or any(word.lower() in c.name.lower() for word in only)]
    if not kept:
        raise ValueError(
            f"--only {' '.join(only)}: no such case; the first of {len(found)} is {found[0].name!r}"
        )
    return kept
