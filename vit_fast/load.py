"""A hub id or a folder -> a loaded transformers model and its image processor's values, or one line that says why not.

transformers does the loading, old checkpoints with other key names included. What it would only warn of, weights that
are missing and left at random, is an error here.
"""

import os
import pickle
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from vit_fast.families import DTYPES, SUPPORTED, family_named
from vit_fast.weights import Normalization

HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")


def load(
    source: str | os.PathLike[str],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    hub: dict[str, Any],
) -> tuple[PreTrainedModel, Normalization | None]:
    """The model in eval mode on `device`, in `dtype` (None: the checkpoint's), and its processor's values.

    OSError: nothing to load there. ValueError: not an encoder that vit_fast runs, or not all of its weights.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"dtype must be one of {', '.join(map(str, DTYPES))} or None, got {dtype!r}"
        )
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r} and PyTorch sees no CUDA GPU: pass device='cpu'")
    if unknown := set(hub) - set(HUB_ARGUMENTS):
        raise TypeError(
            f"unknown argument {', '.join(sorted(unknown))}: expected some of {', '.join(HUB_ARGUMENTS)}"
        )
    source = os.fspath(source)
    fields = _config(source, hub)
    names = fields.get("architectures") or []
    family = family_named(fields.get("model_type"))
    forms = (*family.forms, *family.holders) if family else ()
    classes = {cls.__name__: cls for cls in forms}
    # a config that names no architecture is that of what AutoModel makes of it
    named = fields.get("model_type")
    first = next(iter(classes), f"model_type {named!r}")
    name = names[0] if names else MODEL_MAPPING_NAMES.get(named, first)
    if name not in classes:
        # a model with another head may hold an encoder that transformers can load alone
        encoder = f"{first}.from_pretrained(...)" if classes else "model.vision_tower, say"
        hint = f"; its encoder: ViT.from_hf({encoder})"
        raise ValueError(
            f"{source!r} is a {name}, which is not supported: expected {SUPPORTED}{hint}"
        )
    if "quantization_config" in fields:
        raise ValueError(
            f"{source!r} is quantized, which is not supported: save a dequantized copy of it"
        )
    model = _weights(classes[name], source, dtype, hub)
    try:
        values = get_image_processor_config(source, **hub)
        normalization = normalization_of(
            values, getattr(model.config, "vision_config", model.config).num_channels
        )
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"cannot use the preprocessor_config.json of {source!r} ({_first_line(error)}): "
            "expected JSON with rescale_factor, image_mean and image_std as numbers"
        ) from error
    return model.eval().to(device), normalization


def normalization_of(processor: dict[str, Any], channels: int) -> Normalization | None:
    """The fields of a preprocessor_config.json -> its values; None where they are not all given.

    Read from the fields because some releases of transformers make no image processor object without torchvision.
    A file of old may leave rescale out: it is then the default of every processor of transformers, 1/255.
    """
    mean, std = (0.0,), (1.0,)
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean"), processor.get("image_std")
        if mean is None or std is None:
            return None
    rescale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    return Normalization(rescale, _per_channel(mean, channels), _per_channel(std, channels))


def _config(source: str, hub: dict[str, Any]) -> dict[str, Any]:
    """config.json's fields, before any class is chosen by them."""
    if os.path.isdir(source):
        if not os.path.isfile(os.path.join(source, "config.json")):
            raise OSError(
                f"the folder {source!r} has no config.json: expected what save_pretrained writes"
            )
    elif os.path.exists(source) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise OSError(
            f"{source!r} is not a folder: expected one that save_pretrained wrote, or a hub id 'name/model'"
        )
    try:
        fields, _ = PreTrainedConfig.get_config_dict(source, **hub)
    except OSError as error:
        expected = (
            "a config.json as save_pretrained writes it"
            if os.path.isdir(source)
            else "a folder, or a hub id that exists, a network to reach it, and a token if it is gated"
        )
        raise OSError(
            f"cannot read the config of {source!r} ({_first_line(error)}): expected {expected}"
        ) from error
    except TypeError:  # of some releases, for JSON that is not an object
        fields = None
    if not isinstance(fields, dict) or not ("model_type" in fields or "architectures" in fields):
        raise ValueError(f"the config.json of {source!r} names no model: expected a model_type")
    return fields


def _weights(
    cls: type[PreTrainedModel], source: str, dtype: torch.dtype | None, hub: dict[str, Any]
) -> PreTrainedModel:
    try:
        model, report = cls.from_pretrained(
            source,
            dtype=dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # listed in the report, and an error below
            **hub,
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the weights of {source!r} are a pickle that torch.load(weights_only=True) refuses: "
            "convert it to safetensors where you trust it"
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(
            f"cannot read the weights of {source!r} ({_first_line(error)}): "
            "expected a model.safetensors or pytorch_model.bin that fits the config"
        ) from error
    except (ArithmeticError, LookupError, StrictDataclassError, TypeError, ValueError) as error:
        # what transformers and torch.load say of a nonsensical config or file
        raise ValueError(
            f"cannot make a {cls.__name__} of {source!r} ({type(error).__name__}: {_first_line(error)}): "
            "check its config.json, and that its weights are a safetensors or PyTorch file"
        ) from error
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    if missing == {"pooler.dense.weight", "pooler.dense.bias"}:
        # saved without a pooler: transformers would compute with a random one
        model.pooler, missing = None, set()
    # of masked pre-training, which an encoder does not use
    missing, unexpected = (
        {key for key in keys if not key.endswith("embeddings.mask_token")}
        for keys in (missing, unexpected)
    )
    mismatched = {
        f"{key} {tuple(found)} for {tuple(wanted)}"
        for key, found, wanted in report["mismatched_keys"]
    }
    wrong = (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
    if any(keys for _, keys in wrong):
        found = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in wrong if keys)
        raise ValueError(
            f"the weights of {source!r} are not those of its {cls.__name__} ({found}): check its config.json"
        )
    return model


def _per_channel(
    values: float | list[float] | tuple[float, ...], channels: int
) -> tuple[float, ...]:
    values = (values,) if isinstance(values, (int, float)) else values
    return tuple(float(v) for v in (values if len(values) > 1 else [*values] * channels))


def _some(keys: set[str], limit: int = 3) -> str:
    return ", ".join(sorted(keys)[:limit]) + (", ..." if len(keys) > limit else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
