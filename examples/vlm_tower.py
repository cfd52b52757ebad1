"""The vision tower of a VLM on vit-fast: the same tokens out of generate, and the time of a call of the tower.

    python examples/vlm_tower.py [--batch 1] [--rounds 5] [--width 1152] [--layers 3]

Two models with random weights, in the shape of PaliGemma (a SigLIP so400m tower) and of LLaVA (a CLIP L/14-336 tower):
layers as wide as the real ones, but few of them, and a language model of two tiny layers, all in float32. It exits with
1 if the tokens are others, or a tower did not run fast.
"""

import argparse
import copy
import math
import sys

import torch
import transformers
from drop_in import in_turn  # beside this file
from torch import Tensor, nn
from transformers import PreTrainedModel

import vit_fast

IMAGE = 99  # the token in whose place an image's tokens are put
TEXT = dict(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=32,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def paligemma(width: int, layers: int) -> PreTrainedModel:
    """As google/paligemma-3b-pt-224: 256 tokens an image, heads of 72."""
    vision = transformers.SiglipVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 72,
        intermediate_size=round(width * 4304 / 1152),
        image_size=224,
        patch_size=14,
        vision_use_head=False,
    )
    config = transformers.PaliGemmaConfig(
        vision_config=vision,
        text_config=transformers.GemmaConfig(**TEXT),
        image_token_index=IMAGE,
        projection_dim=TEXT["hidden_size"],
        hidden_size=TEXT["hidden_size"],
        vocab_size=TEXT["vocab_size"],
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def llava(width: int, layers: int) -> PreTrainedModel:
    """As llava-hf/llava-1.5-7b-hf: 576 tokens an image, heads of 64."""
    width = width * 8 // 9  # 1024 beside 1152
    vision = transformers.CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        image_size=336,
        patch_size=14,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_seq_length=576,
    )
    return transformers.LlavaForConditionalGeneration(config)


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Weights that keep activations near 1; fresh ones are so small that an image would hardly be seen."""
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        r = torch.randn_like(p)
        if p.dim() > 1:
            p.copy_(r / math.sqrt(p[0].numel()))
        else:
            p.copy_(0.1 * r + (0.0 if name.endswith("bias") else 1.0))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1, help="images a call; default 1")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each; default 5")
    parser.add_argument("--width", type=int, default=1152, help="a multiple of 576; default 1152")
    parser.add_argument("--layers", type=int, default=3, help="of a tower; default 3")
    args = parser.parse_args()
    if min(args.batch, args.rounds, args.layers) < 1:
        parser.error("--batch, --rounds and --layers must be at least 1")
    if args.width < 1 or args.width % 576:
        parser.error(f"--width must be a multiple of 576, got {args.width}")
    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{args.layers} layers, {args.batch} images, float32, on the {device}\n")
    good = True
    with torch.inference_mode():
        for make in (paligemma, llava):
            model = make(args.width, args.layers)
            randomize(model)
            model = model.to(device).eval()
            good = compare(model, args.batch, args.rounds) and good
    return 0 if good else 1


def compare(model: PreTrainedModel, batch: int, rounds: int) -> bool:
    tower = model.model.vision_tower
    side, patch = tower.config.image_size, tower.config.patch_size
    pixels = torch.randn(batch, 3, side, side, device=model.device)
    prompt = torch.tensor([IMAGE] * (side // patch) ** 2 + [20, 21, 22, 23], device=model.device)
    prompt = prompt.expand(batch, -1).contiguous()

    def generate() -> Tensor:
        found = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=pixels,
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
        )
        return found[:, prompt.shape[1] :]

    stock = copy.deepcopy(tower)
    before = generate()
    vit_fast.accelerate(model)
    after = generate()
    (found,) = vit_fast.explain(model)
    fast, same = found.fast and not found.other_calls, torch.equal(before, after)

    programs = {
        "transformers": lambda: stock(pixels).last_hidden_state,
        "vit_fast.accelerate": lambda: tower(pixels).last_hidden_state,
    }
    theirs, ours = (program() for program in programs.values())
    apart = float((ours - theirs).abs().max())
    times = in_turn(programs, rounds)

    print(f"{type(model).__name__}, {found.type} of {side} x {side} pixels")
    print(f"{'':24}{'ms a call':>12}{'times as fast':>15}")
    for name, ms in times.items():
        print(f"    {name:20}{ms:12.1f}{times['transformers'] / ms:15.2f}")
    print(
        f"    tokens out of generate: {'the same' if same else 'NOT THE SAME'}, {after[0].tolist()}"
    )
    print(
        f"    last_hidden_state: at most {apart:.1e} apart, of values up to {float(theirs.abs().max()):.0f}"
    )
    print(f"    {found}\n")
    return fast and same


if __name__ == "__main__":
    sys.exit(main())
