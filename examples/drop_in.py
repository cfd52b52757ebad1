"""Three ways to run a Vision Transformer of transformers on vit-fast: the same numbers, in less time.

    python examples/drop_in.py [--model ID_OR_FOLDER] [--batch 1] [--dtype float32] [--rounds 7]

Without --model it makes a ViT-B/16 with random weights and saves it to a temporary folder. It exits with 1 if a
result is further from transformers' own than rounding explains.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import transformers

import vit_fast

# the largest difference from transformers' own result that rounding explains, for values up to 9
ALLOWED = {"float32": 2e-5, "bfloat16": 0.125, "float16": 2e-2}


@torch.no_grad()
def save_checkpoint(folder: str) -> None:
    """A ViT-B/16; what is initialised to 0 and 1 is made random too, or it could hide mistakes."""
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig())
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)


def in_turn(programs: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, timed round by round after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a hub id or a folder of a ViT; default: one with random weights")  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, help="images a call; default 1")
    parser.add_argument("--dtype", choices=[*ALLOWED], default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each; default 7")
    args = parser.parse_args()
    if min(args.batch, args.rounds) < 1:
        parser.error("--batch and --rounds must be at least 1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if not args.model:
            save_checkpoint(folder)
        try:
            return compare(args.model or folder, args.dtype, args.batch, args.rounds)
        except (OSError, ValueError) as error:
            print(f"drop_in: {error}", file=sys.stderr)
            return 2


def compare(source: str, name: str, batch: int, rounds: int) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, name)

    # before: transformers, with eager attention and with its default
    options = dict(dtype=dtype)
    eager = transformers.ViTModel.from_pretrained(source, attn_implementation="eager", **options)
    sdpa = transformers.ViTModel.from_pretrained(source, **options)
    eager, sdpa = eager.to(device).eval(), sdpa.to(device).eval()

    # 1. the import is the only line that changes
    from vit_fast import ViTModel

    imported = ViTModel.from_pretrained(source, **options).to(device).eval()

    # 2. any model in place, and back
    accelerated = transformers.AutoModel.from_pretrained(source, **options).to(device).eval()
    vit_fast.accelerate(accelerated)

    # 3. the bare runtime
    encoder = vit_fast.ViT.from_pretrained(source, dtype=dtype, device=device)

    height, width = encoder.spec.image_size
    pixels = torch.randn(batch, encoder.spec.channels, height, width, dtype=dtype, device=device)
    programs = {
        "transformers, eager": lambda: eager(pixels).last_hidden_state,
        "transformers, sdpa": lambda: sdpa(pixels).last_hidden_state,
        "1. from vit_fast import ViTModel": lambda: imported(pixels).last_hidden_state,
        "2. vit_fast.accelerate(model)": lambda: accelerated(pixels).last_hidden_state,
        "3. vit_fast.ViT": lambda: encoder(pixels),
    }
    results = {name: program() for name, program in programs.items()}
    before = results["transformers, eager"]
    apart = {k: float((r.float() - before.float()).abs().max()) for k, r in results.items()}
    times = in_turn(programs, rounds)
    first = times["transformers, eager"]
    print(f"{type(eager).__name__}, {batch} x {height} x {width} pixels, {name}, on the {device}\n")
    print(f"{'':34}{'ms':>9}{'times as fast':>15}{'largest difference':>20}")
    for k, ms in times.items():
        print(f"{k:34}{ms:9.1f}{first / ms:15.2f}{apart[k]:20.1e}")

    print(f"\nvit_fast.explain(model)\n{vit_fast.explain(accelerated)}")
    accelerated(pixels, attention_mask=torch.ones(before.shape[:2], device=device))
    print(f"\nafter a call with an attention mask\n{vit_fast.explain(accelerated)}")
    vit_fast.restore(accelerated)
    assert type(accelerated) is type(sdpa)
    print(f"\nafter vit_fast.restore(model)\n{vit_fast.explain(accelerated)}")

    worst = max(apart.values())
    same = worst <= ALLOWED[name]
    verdict = "same numbers" if same else "NOT THE SAME NUMBERS"
    print(f"\n{verdict}: at most {worst:.1e} apart, {ALLOWED[name]:.1e} allowed")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
