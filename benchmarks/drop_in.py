"""What accelerate() gives on this CPU, and what it costs: a whole ViT, its matrix products, and the host's time a call.

    python -m benchmarks.drop_in [--record] [--seconds 60]

Three tables, in one results file, drop_in.json:

1. ViT-B/16 at 224, random weights, batch 1 and 8, fp32 and bf16: transformers eager and SDPA, accelerated, and
   accelerated with cpu="plain", in turn, against transformers eager in fp32. Accuracy is that of what is timed.
2. Its matrix products alone, F.linear against oneDNN on packed weights. Their rate bounds the model: its FLOPs over
   the best rate seen is the least time that a program with these products can take, whatever else it fuses.
3. Host time: what a call costs around the engine, on a model of 2 layers, with an engine that returns at once; and the
   difference between a call and the engine's own time in it, where caches are cold.
"""

import argparse
import copy
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

import vit_fast
from vit_fast import onednn, torch_ops
from vit_fast.state import state_of

from .measure import in_turn, machine, quantile, write

DTYPES = (torch.float32, torch.bfloat16)
BATCHES = (1, 8)
SPEC = vit_fast.ViTSpec(
    family="vit",
    image_size=(224, 224),
    patch=16,
    channels=3,
    dim=768,
    depth=12,
    heads=12,
    head_dim=64,
    mlp_dim=3072,
    eps=1e-12,
)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def vit_b() -> ViTModel:
    """What transformers initialises to 0 and 1 is made random too, or it could hide mistakes."""
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(), add_pooling_layer=False)
    for p in model.parameters():
        if p.dim() == 1:
            p += 0.1 * torch.randn_like(p)
    return model.eval()


def with_attention(model: ViTModel, name: str, dtype: torch.dtype) -> ViTModel:
    twin = copy.deepcopy(model).to(dtype)
    twin.set_attn_implementation(name)
    return twin


def largest(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def models(seconds: float) -> list[dict[str, object]]:
    base, rows = vit_b(), []
    eager32 = with_attention(base, "eager", torch.float32)
    exact = with_attention(base, "sdpa", torch.float64)
    for dtype in DTYPES:
        sdpa = with_attention(base, "sdpa", dtype)
        programs = {
            "transformers, eager fp32": eager32,
            "transformers, eager": with_attention(base, "eager", dtype),
            "transformers, sdpa": sdpa,
            "vit-fast, cpu='plain'": vit_fast.accelerate(copy.deepcopy(sdpa), cpu="plain"),
            "vit-fast": vit_fast.accelerate(copy.deepcopy(sdpa)),
        }
        for batch in BATCHES:
            pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
            results = {n: m(pixels).last_hidden_state for n, m in programs.items()}
            reference, eager = (
                exact(pixels.double()).last_hidden_state,
                results["transformers, eager"],
            )
            allowed = 2 * largest(eager, reference) + torch.finfo(dtype).eps * float(reference.abs().max())  # fmt: skip
            times = in_turn(
                {n: lambda m=m, x=pixels: m(x) for n, m in programs.items()}, seconds / 4
            )
            p50 = {n: quantile(t, 0.5) for n, t in times.items()}
            for n, result in results.items():
                (found,) = vit_fast.explain(programs[n])
                assert found.fast == n.startswith("vit-fast"), found
                error = largest(result, reference)
                assert not found.fast or error <= allowed, (n, error, allowed)
                rows.append({
                    "dtype": name_of(dtype), "batch": batch, "program": n, "operations": found.ops,
                    "p50_ms": round(p50[n], 2), "p90_ms": round(quantile(times[n], 0.9), 2),
                    "speed_up": round(p50["transformers, eager fp32"] / p50[n], 3), "rounds": len(times[n]),
                    "difference_to_eager_fp32": largest(result, results["transformers, eager fp32"]),
                    "error": error, "error_allowed": allowed, "held_bytes": found.nbytes,
                })  # fmt: skip
    return rows


def products(seconds: float) -> list[dict[str, object]]:
    """GFLOP/s of the linear layers of ViT-B, at the best of the rounds: a rate that the processor has shown."""
    shapes = [("qkv", 768, 2304), ("proj", 768, 768), ("fc1 + gelu", 768, 3072), ("fc2", 3072, 768)]
    dtypes = [dtype for dtype in DTYPES if not onednn.why_not(dtype)]
    cells = [(dtype, batch, *shape) for dtype in dtypes for batch in BATCHES for shape in shapes]
    return [product(*cell, seconds / len(cells)) for cell in cells]


def product(
    dtype: torch.dtype, batch: int, name: str, K: int, N: int, seconds: float
) -> dict[str, object]:
    x, w, b = (torch.randn(*shape).to(dtype) for shape in ((197 * batch, K), (N, K), (N,)))
    packed, activation = onednn.pack(w), "gelu" if "gelu" in name else None
    plain = torch_ops().linear
    programs = {
        "F.linear": lambda: plain(x, w, b, activation),
        "oneDNN, packed": lambda: onednn.onednn_linear(x, packed, b, activation),
        "oneDNN, as it is": lambda: onednn.onednn_linear(x, w, b, activation),
    }
    times = in_turn(programs, seconds)
    rates = {n: round(2e-6 * x.numel() * N / min(t), 1) for n, t in times.items()}
    return {"dtype": name_of(dtype), "batch": batch, "product": name, **rates}


def least_ms(products: list[dict[str, object]], gflop: float) -> dict[str, float]:
    """dtype and batch -> the model's FLOPs at the best rate of any product."""
    best: dict[tuple[str, int], float] = {}
    for row in products:
        cell = row["dtype"], row["batch"]
        best[cell] = max(best.get(cell, 0.0), *(v for v in row.values() if isinstance(v, float)))
    return {f"{d} batch {b}": round(1e3 * b * gflop / rate, 1) for (d, b), rate in best.items()}


def host_time(rounds: int = 3000) -> list[dict[str, object]]:
    """Microseconds a call, medians."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for layers in (2, 12):
        config = ViTConfig(hidden_size=64, num_hidden_layers=layers, num_attention_heads=1, intermediate_size=64,
                           image_size=32, patch_size=16)  # fmt: skip
        for model in (ViTModel(config, add_pooling_layer=False), ViTForImageClassification(config)):
            vit_fast.accelerate(model.eval())
            if hasattr(model, "classifier"):
                model.classifier = nn.Identity()
            pixels = torch.randn(1, 3, 32, 32)
            model(pixels)
            engine = state_of(model).bound.engine
            encode, inside = engine.encode, []
            ready = encode(pixels, state_of(model).bound.ops)

            def timed(*args, encode=encode, inside=inside):
                begin = perf_counter()
                result = encode(*args)
                inside.append(perf_counter() - begin)
                return result

            engine.encode = lambda *args, ready=ready: ready
            warm = in_turn({"call": lambda m=model, x=pixels: m(x)}, 0, least=rounds)["call"]
            engine.encode = timed
            cold = in_turn({"call": lambda m=model, x=pixels: m(x)}, 0, least=rounds)["call"]
            around = [1e3 * call - 1e6 * t for call, t in zip(cold, inside[1:])]
            watch = state_of(model).bound.watch
            look = in_turn({"watch": watch.unchanged}, 0, least=rounds)["watch"]
            rows.append({
                "model": type(model).__name__, "layers": layers,
                "around_the_engine_us": round(1e3 * median(warm), 1),
                "around_the_engine_in_a_whole_call_us": round(median(around), 1),
                "of_which_the_watch_us": round(1e3 * median(look), 1),
                "the_engine_us": round(1e6 * median(inside), 1),
            })  # fmt: skip
    torch.set_num_threads(threads)
    return rows


def show(title: str, rows: list[dict[str, object]]) -> None:
    print(f"\n{title}")
    table = [[cell(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows[:1], *table)]
    for line in [*map(list, rows[:1]), *table]:
        print("  ".join(f"{text:>{width}}" for text, width in zip(line, widths)))


def cell(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) and abs(value) < 0.5 else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120, help="of timing, all in all")
    parser.add_argument(
        "--record", action="store_true", help="write to benchmarks/results, not .benchmarks"
    )
    args = parser.parse_args()
    with torch.inference_mode():
        results = {
            **machine("cpu"),
            "host_time": host_time(),
            "products_gflops": products(0.2 * args.seconds),
            "models": models(0.8 * args.seconds),
        }
    gflop = SPEC.flops() / 1e9
    results["gflop_per_image"] = gflop
    results["least_ms_by_products"] = least_ms(results["products_gflops"], gflop)
    show("host time a call, microseconds", results["host_time"])
    show("matrix products, GFLOP/s", results["products_gflops"])
    print(f"\nleast ms by these products alone: {results['least_ms_by_products']}")
    show("ViT-B/16 at 224", results["models"])
    print(f"\nwritten to {write('drop_in', results, args.record)}")


if __name__ == "__main__":
    main()
