"""Every family at its base size on this CPU: accelerated, against transformers with eager attention, in one run.

    python -m benchmarks.families [--record] [--seconds 600] [--only siglip clip]

Random weights, with nothing left at 0 or 1; batch 1 and 8; transformers eager and SDPA in fp32, SDPA in bf16, and
vit-fast in fp32 and bf16, in turn. The answer of each accelerated model is held against float64 before it is timed.
One results file, families.json.
"""

import argparse
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import vit_fast

from .drop_in import show, with_attention
from .measure import in_turn, machine, quantile, write

BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
BATCHES = (1, 8)


def photographs(side: int) -> Callable[[int], dict[str, Any]]:
    return lambda batch: {"pixel_values": torch.randn(batch, 3, side, side)}


def naflex(batch: int) -> dict[str, Any]:
    """Images of 16 x 16 to 12 x 21 patches of 16 in 256 rows, as SigLIP 2's processor makes them."""
    shapes = torch.tensor([(16, 16), (12, 21), (14, 18), (20, 12)] * 2)[:batch]
    mask = torch.arange(256)[None, :] < shapes.prod(1)[:, None]
    pixels = torch.randn(batch, 256, 768) * mask[..., None]
    return dict(pixel_values=pixels, pixel_attention_mask=mask.int(), spatial_shapes=shapes)


# family: class, what its config has of its own, inputs of a batch
MODELS: Mapping[str, tuple[str, dict[str, Any], Callable[[int], dict[str, Any]]]] = {
    "ViT-B/16-224": ("ViTModel", {}, photographs(224)),
    "DeiT-B/16-224 distilled": ("DeiTForImageClassificationWithTeacher", {}, photographs(224)),
    "DINOv2-B/14-224": ("Dinov2Model", dict(image_size=518, patch_size=14), photographs(224)),
    "DINOv2-B/14-224 registers": (
        "Dinov2WithRegistersModel",
        dict(image_size=518, patch_size=14),
        photographs(224),
    ),
    "DINOv3-B/16-224": ("DINOv3ViTModel", dict(num_register_tokens=4), photographs(224)),
    "SigLIP-B/16-224": (
        "SiglipVisionModel",
        dict(image_size=224, patch_size=16),
        photographs(224),
    ),
    "SigLIP2-B/16 NaFlex 256": ("Siglip2VisionModel", dict(patch_size=16), naflex),
    "CLIP-B/16-224": ("CLIPVisionModel", dict(image_size=224, patch_size=16), photographs(224)),
    "I-JEPA at base size, 14-224": ("IJepaModel", dict(patch_size=14), photographs(224)),
}


@torch.no_grad()
def made(cls: str, config: Mapping[str, Any]) -> PreTrainedModel:
    """What transformers initialises to 0 and 1 is made random too, or it could hide mistakes."""
    torch.manual_seed(0)
    kind = getattr(transformers, cls)
    model = kind(kind.config_class(**BASE, **config))
    for p in model.parameters():
        if p.dim() == 1:
            p += 0.1 * torch.randn_like(p)
    return model.eval()


def first_tensor(output: Any) -> Tensor:
    return output[0]


def in_dtype(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def error(found: Any, reference: Any) -> float:
    return float((first_tensor(found).double() - first_tensor(reference)).abs().max())


def measure(name: str, seconds: float) -> list[dict[str, object]]:
    cls, config, inputs_of = MODELS[name]
    base = made(cls, config)
    fp32, bf16 = torch.float32, torch.bfloat16
    programs = {
        ("transformers, eager", fp32): with_attention(base, "eager", fp32),
        ("transformers, sdpa", fp32): with_attention(base, "sdpa", fp32),
        ("vit-fast", fp32): with_attention(base, "sdpa", fp32),
        ("transformers, sdpa", bf16): with_attention(base, "sdpa", bf16),
        ("vit-fast", bf16): with_attention(base, "sdpa", bf16),
    }
    for (program, _), model in programs.items():
        if program == "vit-fast":
            vit_fast.accelerate(model)
    exact, rows = copy.deepcopy(programs["transformers, sdpa", fp32]).double(), []
    for batch in BATCHES:
        torch.manual_seed(1)
        inputs = inputs_of(batch)
        given = {key: in_dtype(inputs, key[1]) for key in programs}
        reference = exact(**in_dtype(inputs, torch.float64))
        errors = {key: error(m(**given[key]), reference) for key, m in programs.items()}
        scale = float(first_tensor(reference).abs().max())
        for dtype in (fp32, bf16):
            allowed = 2 * errors["transformers, sdpa", dtype] + torch.finfo(dtype).eps * scale
            assert errors["vit-fast", dtype] <= allowed, (name, dtype, errors, allowed)
            (found,) = vit_fast.explain(programs["vit-fast", dtype])
            assert found.fast, found
        calls = {key: lambda m=m, x=given[key]: m(**x) for key, m in programs.items()}
        times = in_turn(calls, seconds / len(BATCHES))
        p50 = {key: quantile(t, 0.5) for key, t in times.items()}
        for (program, dtype), t in times.items():
            rows.append({
                "model": name, "dtype": str(dtype).removeprefix("torch."), "batch": batch, "program": program,
                "p50_ms": round(quantile(t, 0.5), 1), "p90_ms": round(quantile(t, 0.9), 1), "rounds": len(t),
                "speed_up": round(p50["transformers, eager", fp32] / p50[program, dtype], 2),
                "error": errors[program, dtype],
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="of timing, all in all")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="in a model's name")
    parser.add_argument(
        "--record", action="store_true", help="write to benchmarks/results, not .benchmarks"
    )
    args = parser.parse_args()
    names = [n for n in MODELS if any(text.lower() in n.lower() for text in args.only)]
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        for name in names:
            print(f"{name} ...", flush=True)
            rows += measure(name, args.seconds / len(names))
    show("base sizes, against transformers with eager attention in fp32", rows)
    results = {**machine("cpu"), "models": rows}
    print(f"\nwritten to {write('families', results, args.record)}")


if __name__ == "__main__":
    main()
