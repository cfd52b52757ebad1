"""An accelerated model in pipelines, in larger models, and under the hooks of device_map."""

import copy
from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image
from torch import nn
from transformers import (
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import vit_fast
from models import TINY, hf_model, randomize
from twins import PIXELS, assert_fast, assert_same, reason, twins

CAT = Image.open(Path(skimage.data_dir, "chelsea.png"))
NAMES = {0: "cat", 1: "dog", 2: "cup", 3: "moon", 4: "page"}


@pytest.mark.parametrize("whole", [True, False], ids=["the pipeline", "its model"])
@pytest.mark.parametrize(
    "task, cls",
    [("image-classification", ViTForImageClassification), ("image-feature-extraction", ViTModel)],
)
def test_pipelines(task, cls, whole, tmp_path):
    hf_model(cls, id2label=NAMES).save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    stock, fast = (pipeline(task, model=str(tmp_path), image_processor=processor) for _ in range(2))
    assert vit_fast.accelerate(fast if whole else fast.model) is not None
    photographs = [CAT, CAT.rotate(90), CAT.resize((50, 80))]
    for arguments in ({}, {"batch_size": 2}):
        theirs, ours = stock(photographs, **arguments), fast(photographs, **arguments)
        assert reason(fast.model) == ""
        if cls is ViTModel:
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=2e-5)
        else:
            assert [[x["label"] for x in y] for y in ours] == [
                [x["label"] for x in y] for y in theirs
            ]
            assert ours[0][0]["score"] == pytest.approx(theirs[0][0]["score"], abs=1e-5)
    (found,) = vit_fast.explain(fast)
    assert (found.name, found.fast) == ("model", True)
    vit_fast.restore(fast)
    assert type(fast.model) is cls


def test_the_encoder_of_an_image_captioner():
    """ViT and GPT-2, as in vit-gpt2-image-captioning: the same tokens, beam search too."""
    encoder = randomize(ViTModel(ViTConfig(**TINY), add_pooling_layer=False))
    from transformers import GPT2LMHeadModel

    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=99,
            n_embd=64,
            n_layer=2,
            n_head=2,
            add_cross_attention=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    stock = VisionEncoderDecoderModel(encoder=encoder, decoder=randomize(decoder, 3)).eval()
    stock.generation_config.decoder_start_token_id = 1
    stock.generation_config.pad_token_id = 0
    fast = vit_fast.accelerate(copy.deepcopy(stock))
    for options in (dict(), dict(num_beams=3)):
        tokens = [
            m.generate(PIXELS, max_new_tokens=8, min_new_tokens=8, **options) for m in (stock, fast)
        ]
        assert torch.equal(*tokens)
    (found,) = vit_fast.explain(fast)
    assert (found.name, found.type, found.fast, found.other_calls) == (
        "encoder",
        "ViTModel",
        True,
        0,
    )


def test_the_vision_tower_of_a_vlm():
    """LLaVA asks for hidden states on every call and takes one of the last layers."""
    text = LlamaConfig(
        vocab_size=120,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = LlavaConfig(
        vision_config=ViTConfig(**TINY),
        text_config=text,
        image_token_index=119,
        image_seq_length=16,
    )
    stock = randomize(LlavaForConditionalGeneration(config)).eval()
    fast = vit_fast.accelerate(copy.deepcopy(stock))
    prompt = torch.cat((torch.full((2, 16), 119), torch.randint(1, 100, (2, 5))), 1)
    asked = dict(input_ids=prompt, pixel_values=PIXELS, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(*(m.generate(**asked) for m in (stock, fast)))
    (found,) = vit_fast.explain(fast)
    assert found.fast, found.reason
    assert found.fast_calls >= 1
    assert found.other_calls == 0
    assert found.name.endswith("vision_tower")


def test_a_frozen_tower_inside_a_model_that_is_trained():
    class Probe(nn.Module):
        def __init__(self, tower: nn.Module) -> None:
            super().__init__()
            self.tower = tower
            self.head = nn.Linear(64, 3)

        def forward(self, pixels):
            return self.head(self.tower(pixels).pooler_output)

    stock, fast = twins(ViTModel)
    grads = []
    for tower in (stock, fast):
        torch.manual_seed(0)
        probe = Probe(tower).train()
        probe(PIXELS).square().sum().backward()
        grads.append(probe.head.weight.grad)
    assert reason(fast) == ""
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["accelerated before", "accelerated after"])
def test_device_map(pair, order, tmp_path):
    """Offloading moves weights in and out around every forward, by a forward set on each instance."""
    accelerate = pytest.importorskip("accelerate")
    stock, fast = pair
    if order == "accelerated after":
        vit_fast.restore(fast)
    for model in pair:
        accelerate.cpu_offload(model, execution_device="cpu")
    if order == "accelerated after":
        with pytest.warns(UserWarning, match="a forward is set on the instance"):
            vit_fast.accelerate(fast)
        assert "a forward is set on the instance" in vit_fast.explain(fast)[0].reason
    with torch.no_grad():
        assert_same(fast(PIXELS), stock(PIXELS))
    if order == "accelerated before":
        assert reason(fast)
    for model in pair:
        accelerate.hooks.remove_hook_from_module(model, recurse=True)


def test_device_map_of_one_device(tmp_path):
    pytest.importorskip("accelerate")
    stock = hf_model(ViTModel)
    stock.save_pretrained(tmp_path)
    stock.set_attn_implementation("sdpa")
    for device_map in ("cpu", {"": "cpu"}, "auto"):
        fast = vit_fast.ViTModel.from_pretrained(tmp_path, device_map=device_map).eval()
        assert_fast(fast, stock, PIXELS)
