"""End to end: every family by transformers' own class and processor, on a toy; and mistakes, which must show."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import photographs, subjects
from benchmarks.case import Case
from benchmarks.measured import measure
from benchmarks.method import Method
from benchmarks.registry import HF, OURS
from benchmarks.subjects import SUBJECTS, Subject
from benchmarks.task import judge, ordinary_tensors
from benchmarks.tasks import TASKS

pytest.importorskip("skimage")

CPU = torch.device("cpu")
FEW = Method(seconds=0.0, least_rounds=2, pause_ms=0.0)
PEAKS = {"fp32": {"measured_tflops": 0.5, "nominal_tflops": None}, "copy_gbps": 10.0}


def toy(of: str, **config: int) -> Subject:
    """The classes of a subject, at the sizes of a toy."""
    sizes = dict(image=32, patch=8, dim=64, depth=2, heads=2, mlp=128)
    model = replace(SUBJECTS[of].model, name=f"Toy {of}", **sizes)
    return Subject(model, SUBJECTS[of].classes, config)


TOYS = {
    "toy-siglip": toy("siglip-b-16"),
    "toy-clip": toy("clip-b-16", projection_dim=48),
    # its positions are resized, as DINOv2's are
    "toy-dinov2": toy("dinov2-b-14", image_size=72),
    "toy-deit": toy("deit-b-16"),
}
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# subject, what, class, transformers' field, its width
ASKED = [
    ("toy", "logits", "ViTForImageClassification", "logits", 1000),
    ("toy-siglip", "pooled", "SiglipVisionModel", "pooler_output", 64),
    ("toy-clip", "embedding", "CLIPVisionModelWithProjection", "image_embeds", 48),
    ("toy-dinov2", "pooled", "Dinov2Model", "pooler_output", 64),
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: programs are timed as they are."""


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for key, subject in TOYS.items():
        monkeypatch.setitem(SUBJECTS, key, subject)


def case(subject: str, what: str, dtype: str = "fp32", batch: int = 2) -> Case:
    return Case("end to end", subject, what, dtype, batch, (*HF, *OURS))


def broken(of: Case) -> dict[str, str]:
    """What of the rule each program of ours breaks, or "": as prepare() holds it, without its counting."""
    with ordinary_tensors():
        task = TASKS["end to end"](of, CPU)
        programs = {name: task.ours[name]() for name in OURS}
    with torch.inference_mode():
        reference, baseline = task.reference(), task.module(*task.inputs)
        assert reference.dtype == torch.float64
        found = {n: judge(p.call(*task.inputs), reference, baseline) for n, p in programs.items()}
    assert all(accuracy is not None for accuracy, _ in found.values())
    return {name: wrong for name, (_, wrong) in found.items()}


@pytest.mark.parametrize("given, dtype", [("jpeg", "fp32"), ("uint8", "fp32"), ("uint8", "bf16")])
@pytest.mark.parametrize("subject, output", [a[:2] for a in ASKED])
def test_every_family_is_right(subject, output, given, dtype):
    found = broken(case(subject, f"{given} to {output}", dtype))
    assert found == {"vit-fast": "", "vit-fast ViT": ""}


def test_an_embedding_is_timed():
    found = measure(case("toy-clip", "jpeg to embedding"), CPU, FEW, PEAKS)
    assert found["name"] == "end to end Toy clip-b-16 jpeg to embedding fp32 batch 2"
    for row in found["rows"]:
        assert row["status"] == "ok" and row["p50_ms"] > 0 and row["speed_up"] > 0


@pytest.mark.parametrize("subject, output, cls, field, width", ASKED)
def test_the_answer_is_that_of_transformers_class(subject, output, cls, field, width):
    task = TASKS["end to end"](case(subject, f"uint8 to {output}"), CPU)
    module = task.module
    assert type(module.hf).__name__ == cls
    with torch.inference_mode():
        pixels = module.processor(*task.inputs, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (2, 3, 32, 32)
        expected = module.hf(pixels)[field]
        assert expected.shape == (2, width)
        assert module(*task.inputs).equal(expected)


@pytest.mark.parametrize("given, kind", [("jpeg", bytes), ("uint8", np.ndarray)])
def test_photographs_are_of_several_sizes(given, kind):
    ((first, second),) = TASKS["end to end"](case("toy", f"{given} to logits"), CPU).inputs
    assert isinstance(first, kind) and isinstance(second, kind)
    shapes = [photographs.decoded(image).shape for image in (first, second)]
    assert shapes == [(300, 451, 3), (512, 512, 3)]


@pytest.mark.parametrize(
    "subject, edge, resample, means",
    [
        ("toy", None, Image.Resampling.BILINEAR, HALF),
        ("toy-siglip", None, Image.Resampling.BICUBIC, HALF),
        ("toy-clip", 224, Image.Resampling.BICUBIC, CLIP),
        ("toy-dinov2", 256, Image.Resampling.BICUBIC, IMAGENET),
    ],
)
def test_pixels_are_those_of_the_published_checkpoint(subject, edge, resample, means):
    """By Pillow and NumPy alone, of a photograph that is wider than high, at the checkpoints' 224 pixels."""
    (image,) = photographs.photographs(1)
    if edge is None:
        small = image.resize((224, 224), resample)
    else:
        small = image.resize((int(edge * image.width / image.height), edge), resample)
        left, top = (small.width - 224) // 2, (small.height - 224) // 2
        small = small.crop((left, top, left + 224, top + 224))
    mean, std = map(np.array, means)
    expected = torch.from_numpy((np.asarray(small) / 255 - mean) / std).permute(2, 0, 1)

    output = next(o for s, o, *_ in ASKED if s == subject)
    processor = photographs.processor(subjects.make(subject, output), 224)
    (pixels,) = processor([np.asarray(image)], return_tensors="pt")["pixel_values"]
    # torchvision's resizing, where it is there, may be two grey levels away, and is not on the whole
    assert pixels.shape == (3, 224, 224)
    assert (pixels - expected).abs().max() <= 2.5 / 255 / min(std)
    assert (pixels - expected).mean((1, 2)).abs().max() < 2e-3


MISTAKES = {
    "mean": lambda factor, mean, std: (factor, tuple(m + 0.05 for m in mean), std),
    "std": lambda factor, mean, std: (factor, mean, tuple(s * 1.1 for s in std)),
    "factor": lambda factor, mean, std: (1 / 256, mean, std),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("subject, output", [a[:2] for a in ASKED])
def test_wrong_values_of_a_processor_are_wrong(subject, output, mistake, monkeypatch):
    """uint8 pixels are held to what transformers' processor makes of them, in float64."""
    right = photographs.Normalization
    monkeypatch.setattr(photographs, "Normalization", lambda *v: right(*MISTAKES[mistake](*v)))
    found = broken(case(subject, f"uint8 to {output}"))
    assert found["vit-fast"] == "" and "allowed" in found["vit-fast ViT"]


@pytest.mark.parametrize("what", ["png to logits", "jpeg", "jpeg to words", "uint8 to "])
def test_what_is_not_known(what):
    with pytest.raises(ValueError, match=f"'jpeg' or 'uint8' to tokens, .*; got '{what}'"):
        TASKS["end to end"](case("toy", what), CPU)


def test_a_family_without_a_processor():
    with pytest.raises(ValueError, match="no image processor for deit, expected one of vit, "):
        TASKS["end to end"](case("toy-deit", "jpeg to logits"), CPU)
