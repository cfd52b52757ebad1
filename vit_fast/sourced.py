"""Sourced: where the parameters of a ViT come from, copies of another model's or, inside a drop-in, its live tensors.

Either way they are given as timm's name -> the tensors that make it up, concatenated on axis 0. A row [D] or a table
[n, D] may stand for [1, n, D].
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vit_fast.layers import Linear
from vit_fast.spec import ViTSpec
from vit_fast.weights import Normalization


class Sourced(nn.Module):
    """What a ViT has of it."""

    rope_freqs: Tensor | None
    _read: object | None
    _layout: dict[str, tuple[int, ...]]

    @classmethod
    def copying(
        cls,
        spec: ViTSpec,
        sources: Mapping[str, Sequence[Tensor]],
        normalization: Normalization | None,
    ) -> Any:
        """A ViT in eval mode with parameters of its own. It wants gradients if any of the sources does.

        ValueError as in read().
        """
        # a caller in inference mode gets parameters that know their version all the same
        with torch.inference_mode(False), torch.no_grad():
            with torch.device("meta"):
                vit = cls(spec, normalization)
            _check_fit(vit._shapes(), sources)
            copies = {name: torch.cat(tuple(parts)).contiguous() for name, parts in sources.items()}
            axes = {name: len(shape) for name, shape in vit._shapes().items()}
            copies = {name: t[(None,) * (axes[name] - t.dim())] for name, t in copies.items()}
            freqs = copies.pop("rope_freqs", None)
            vit.load_state_dict(copies, assign=True)
            vit.rope_freqs = freqs  # theirs, which may be another dtype's
        frozen = not any(t.requires_grad for parts in sources.values() for t in parts)
        return vit.eval().requires_grad_(not frozen)

    @classmethod
    def reading(cls, spec: ViTSpec, sources: Mapping[str, Sequence[Tensor]]) -> Any:
        """A ViT whose parameters are live tensors of another module."""
        with torch.device("meta"):
            vit = cls(replace(spec, pooler_dim=None, num_labels=0))
        vit._layout = vit._shapes()
        vit.read(sources)
        return vit.eval()

    def read(self, sources: Mapping[str, Sequence[Tensor]]) -> None:
        """Takes live tensors in place of its parameters.

        ValueError where they are not those of the spec, name for name and shape for shape.
        """
        _check_fit(self._layout, sources)
        before = self.tensors()
        for name, parts in sources.items():
            path, _, leaf = name.rpartition(".")
            module = self.get_submodule(path)
            if isinstance(module, Linear):
                module.read(leaf, parts)
            elif leaf in module._buffers:
                module._buffers[leaf] = parts[0]
            else:
                # not by setattr: a tensor may stand in for a parameter, as under torch.func.functional_call
                module._parameters[leaf] = parts[0]
        now = self.tensors()
        if self._read is None or [id(t) for t in now] != [id(t) for t in before]:
            self._read = object()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {name: tuple(p.shape) for name, p in self.named_parameters()}
        if self.rope_freqs is not None:
            shapes["rope_freqs"] = tuple(self.rope_freqs.shape)
        return shapes


def _check_fit(
    layout: Mapping[str, tuple[int, ...]], sources: Mapping[str, Sequence[Tensor]]
) -> None:
    for name in sorted(layout.keys() | sources.keys()):
        parts = sources.get(name, ())
        found = {tuple(t.shape[1:]) for t in parts}
        shape = (sum(len(t) for t in parts), *found.pop()) if len(found) == 1 else None
        expected = layout.get(name)
        # a live row stays as it is, not a view: an optimizer's steps are counted by the parameter itself
        if shape != expected and not (
            shape and expected and (1, 1, *shape)[-len(expected) :] == expected
        ):
            raise ValueError(
                f"{name} is {[tuple(t.shape) for t in parts]} in the model, expected {expected}"
            )
