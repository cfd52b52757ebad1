"""Real photographs through a Vision Transformer: transformers and vit-fast, the same answers, timed
in turn.

    python examples/demo.py [--model ID_OR_FOLDER] [--batch 8] [--seconds 40]

Without --model it asks the hub for google/vit-base-patch16-224, and makes a ViT-B/16 with random
weights where that cannot be reached. It exits with 1 if vit-fast's largest error against a float64
run is more than twice that of transformers in the same dtype, plus one unit of rounding.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub
import skimage
import torch
import transformers
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the package

import vit_fast
from benchmarks.measure import in_turn, machine, write

HUB_MODEL = "google/vit-base-patch16-224"
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png",
    "retina.jpg", "rocket.jpg",
)  # fmt: skip
ACCURACY = ("difference", "error", "error_allowed")


@contextmanager
def checkpoint(model: str | None):
    """A hub id or folder that holds a model, and what to say about it."""
    if model:
        yield model, model
        return
    print(f"looking for {HUB_MODEL} ...", flush=True)
    try:
        # without a network: what an earlier run has downloaded
        transformers.AutoConfig.from_pretrained(HUB_MODEL, local_files_only=not hub_reachable())
    except OSError:
        print(
            "the hub cannot be reached: a ViT-B/16 with random weights, saved to a folder, stands in for it"
        )
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(folder)
            yield folder, "ViT-B/16-224 made from its config, random weights"
    else:
        yield HUB_MODEL, HUB_MODEL


def hub_reachable() -> bool:
    host = urlparse(huggingface_hub.constants.ENDPOINT).hostname
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True


def make_checkpoint(folder: str) -> None:
    """A ViT-B/16 as transformers saves it; what it initialises to 0 and 1 is made random too, or it
    could hide mistakes.
    """
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    # the file that transformers' own ViTImageProcessor writes, with its defaults
    values = {"do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2, "do_rescale": True,
              "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
              "image_processor_type": "ViTImageProcessor"}  # fmt: skip
    Path(folder, "preprocessor_config.json").write_text(json.dumps(values))


def load_reference(source: str, dtype: torch.dtype, attention: str, device: str):
    """transformers' own encoder, as the checkpoint's config names it."""
    config = transformers.AutoConfig.from_pretrained(source)
    cls = getattr(transformers, (config.architectures or ["ViTModel"])[0])
    model = cls.from_pretrained(source, dtype=dtype, attn_implementation=attention)
    return getattr(model, "vit", model).to(device).eval()


def largest(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def compare(
    source: str, photographs: Tensor, pixels: Tensor, batch: int, seconds: float, device: str
):
    """One row a dtype and program. photographs: uint8, pixels: normalised fp32, [n, 3, H, W]."""
    photographs, pixels = photographs[:batch].to(device), pixels[:batch].to(device)
    # not eager: its softmax is fp32 whatever the dtype
    exact = load_reference(source, torch.float64, "sdpa", device)
    reference = exact(pixels.double()).last_hidden_state
    del exact
    rows, accurate = [], True
    for dtype in (torch.float32, torch.bfloat16):
        eager = load_reference(source, dtype, "eager", device)
        sdpa = load_reference(source, dtype, "sdpa", device)
        fast = vit_fast.ViT.from_pretrained(source, dtype=dtype, device=device)
        x = pixels.to(dtype)
        programs = {
            "transformers, eager": lambda m=eager, x=x: m(x).last_hidden_state,
            "transformers, sdpa": lambda m=sdpa, x=x: m(x).last_hidden_state,
            "vit-fast": lambda m=fast, x=x: m(x),
            "vit-fast, uint8 pixels": lambda m=fast: m(photographs),
        }
        results = {name: program() for name, program in programs.items()}
        theirs = largest(results["transformers, eager"], reference)
        allowed = 2 * theirs + torch.finfo(dtype).eps * float(reference.abs().max())
        times = in_turn(programs, seconds / 2, device)
        for name, result in results.items():
            p50, p90 = (float(torch.tensor(times[name]).quantile(q)) for q in (0.5, 0.9))
            error = largest(result, reference)
            if name.startswith("vit-fast"):
                accurate &= error <= allowed
            rows.append({
                "dtype": str(dtype).removeprefix("torch."),
                "program": name,
                "p50_ms": round(p50, 2),
                "p90_ms": round(p90, 2),
                "images_per_s": round(1e3 * batch / p50, 1),
                "difference": largest(result, results["transformers, eager"]),
                "error": error,
                "error_allowed": allowed,
                "rounds": len(times[name]),
            })  # fmt: skip
    return rows, accurate


def neighbours(model: vit_fast.ViT, photographs: Tensor) -> list[tuple[int, float]]:
    """Each photograph's nearest other one by cosine of pooled features, their mean taken off."""
    pooled = model.features(photographs.to(model.device), tokens=False, pooled=True).pooled.float()
    pooled = torch.nn.functional.normalize(pooled - pooled.mean(0), dim=1)
    cosine = (pooled @ pooled.T).fill_diagonal_(-1)
    return [(int(row.argmax()), float(row.max())) for row in cosine]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="a hub id or a folder; default: google/vit-base-patch16-224"
    )
    parser.add_argument("--batch", type=int, default=8, choices=range(1, len(PHOTOGRAPHS) + 1), metavar="N",
                        help="photographs a call, at most 16; default 8")  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=40, help="of timing, all in all; default 40"
    )
    parser.add_argument(
        "--record", action="store_true", help="write to benchmarks/results, not .benchmarks"
    )
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with checkpoint(args.model) as (source, title), torch.inference_mode():
        try:
            model = vit_fast.ViT.from_pretrained(source, dtype=torch.float32, device=device)
        except (OSError, ValueError) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 2
        if model.normalization is None or model.spec.channels != len("RGB"):
            print(
                f"demo: photographs need an RGB model with an image processor; {title} takes "
                f"{model.spec.channels} channels and has processor values {model.normalization}",
                file=sys.stderr,
            )
            return 2
        processor = transformers.AutoImageProcessor.from_pretrained(source)
        images = [Image.open(Path(skimage.data_dir, name)).convert("RGB") for name in PHOTOGRAPHS]
        pixels = processor(images, return_tensors="pt").pixel_values
        photographs = processor(
            images, do_rescale=False, do_normalize=False, return_tensors="pt"
        ).pixel_values
        print(f"{title}: {len(images)} photographs, {tuple(pixels.shape[1:])} pixels")
        ops, why = vit_fast.ops.choose_ops(model.device)
        print(f"vit-fast runs {ops.name} operations: {why}")
        print(f"timing, about {args.seconds:.0f} seconds ...", flush=True)
        rows, accurate = compare(source, photographs, pixels, args.batch, args.seconds, device)
        nearest = neighbours(model, photographs)

    card = machine(device)
    print(f"\n{card['device']}, batch {args.batch}")
    columns = {
        "p50_ms": 8,
        "rounds": 6,
        "images_per_s": 12,
        "difference": 11,
        "error": 8,
        "error_allowed": 13,
    }
    print(f"{'dtype':9}{'program':23}", *(f"{name:>{width}}" for name, width in columns.items()))
    for r in rows:
        cells = (
            f"{r[name]:{width}{'' if name == 'rounds' else '.1e' if name in ACCURACY else '.1f'}}"
            for name, width in columns.items()
        )
        print(f"{r['dtype']:9}{r['program']:23}", *cells)
    print(
        "difference: the largest, from transformers eager; error: the largest, from a float64 run of it"
    )
    print("\nnearest photographs")
    for name, (other, cosine) in zip(PHOTOGRAPHS, nearest, strict=True):
        print(f"  {Path(name).stem:18} {Path(PHOTOGRAPHS[other]).stem:18} cosine {cosine:.2f}")
    pairs = {
        Path(n).stem: [Path(PHOTOGRAPHS[o]).stem, c]
        for n, (o, c) in zip(PHOTOGRAPHS, nearest, strict=True)
    }
    results = {"model": title, "batch": args.batch, **card, "rows": rows, "nearest": pairs}
    print("\n" + ("same answers" if accurate else "NOT AS ACCURATE AS ALLOWED"), end="; ")
    try:
        print(f"written to {os.path.relpath(write('demo', results, args.record))}")
    except OSError as error:
        print(f"not written: {error}")
    return 0 if accurate else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ndemo: stopped")
