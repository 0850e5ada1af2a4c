"""Adapters: small changes of weights that somebody trained, in peft's format (Hu et al. 2021).

Only what is computed here is accepted. A setting that would change the result and is not known, or a tensor
that would not be used, is refused by its name.
"""

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.intervention.edits import WeightEdit
from mechlab.intervention.layout import Fused, fused_modules, inner, linear, theirs
from mechlab.loading.files import read_json, read_tensors

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Settings of peft that say nothing about the finished weights, or are read below. All others must be unset.
KNOWN = """
    auto_mapping base_model_name_or_path bias ensure_weight_tying eva_config exclude_modules
    fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout
    megatron_core peft_type peft_version qalora_group_size r revision runtime_config
    target_modules task_type use_rslora
"""
READERS = ("q", "k", "v", "gate", "in")  # TransformerLens' names of what reads a norm
# Ways to begin training that leave the model's own weights as they are; others (pissa, olora, ...) move them.
HARMLESS_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


def load_adapter(
    model: "TransformerBridge", folder: str | os.PathLike, *, scale: float | int = 1.0
) -> WeightEdit:
    """Add a LoRA adapter in peft's format to the weights: W ← W + scale · α/r · B A (Hu et al. 2021).

    The adapter must have been trained on these weights; those in data/organisms belong to the folded SmolLM2.
    Known: rslora, layers_to_transform, fused matrices. Raises a `ValueError` that names any other setting
    (ranks or alphas of their own for some modules, say), a tensor that would not be used, an adapter that
    changes nothing, or one for another model; the model is as it was then.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(f"There is no adapter in {folder}: adapter_config.json is missing.")
    config = read_json(folder / "adapter_config.json")
    _check_settings(config)
    pairs = _pairs(read_tensors(folder / "adapter_model.safetensors", "an adapter"), config)
    targets = _Targets(model)
    deltas = {name: _scaling(config) * (B.float() @ A.float()) for name, (A, B) in pairs.items()}
    for name, delta in deltas.items():
        targets.check(name, delta)
    if not any(delta.abs().max() > 0 for delta in deltas.values()):
        raise ValueError(
            f"The adapter in {folder} changes nothing: all its matrices B are zero (it is untrained)."
        )
    _warn_of_folding(model, config, deltas)
    edit = WeightEdit(model, f"adapter {folder.name}")
    with edit.whole():
        for name, delta in deltas.items():
            for weight, part in targets.of(name, delta):
                wide = torch.promote_types(weight.dtype, torch.float32)
                edit.change(weight, weight.to(wide) + (scale * part).to(weight.device, wide))
    return edit


def _check_settings(config: Mapping[str, Any]) -> None:
    """Refuse every setting that is not known to be harmless."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"This adapter has peft_type {kind!r}; only 'LORA' can be added to weights here.")
    missing = [name for name in ("r", "lora_alpha") if not isinstance(config.get(name), int | float)]
    if missing:
        raise ValueError(f"The adapter's settings do not say {missing[0]}, so its strength is not known.")
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"This adapter has bias={config['bias']!r}: biases were trained too, which is not known here."
        )
    if config.get("init_lora_weights", True) not in HARMLESS_BEGINNINGS:
        raise ValueError(
            f"This adapter has init_lora_weights={config['init_lora_weights']!r}, which moves the model's "
            "own weights; convert it to plain LoRA with peft first."
        )
    for name, value in config.items():
        if name not in KNOWN.split() and value not in (None, False, {}, [], ""):
            raise ValueError(
                f"This adapter has {name}={value!r}, which is not known here; without it the weights would "
                "be others. Merge it with peft, save the model, and load that."
            )


def _pairs(
    found: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out its_rank"]]]:
    """A and B by the module's name in Hugging Face's model; every tensor is used."""
    pairs, used = {}, set()
    for key in found:
        if not key.endswith(".lora_A.weight"):
            continue
        other = key.replace(".lora_A.", ".lora_B.")
        A, B = found[key], found.get(other)
        if B is None or A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            shapes = "missing" if B is None else f"{tuple(B.shape)}"
            raise ValueError(
                f"{key} is {tuple(A.shape)}, and its lora_B is {shapes}: they do not make a product."
            )
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if len(A) != config["r"]:
            raise ValueError(
                f"{key} has rank {len(A)}, and the settings say {config['r']}: the files do not belong "
                "together."
            )
        pairs[name] = A, B
        used |= {key, other}
    if set(found) - used or not pairs:
        first = min(set(found) - used, default="nothing at all")
        raise ValueError(
            f"This adapter holds {first}, which is not known here (only lora_A and lora_B of linear maps)."
        )
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    outside = [n for n in pairs if layers and (at := re.search(r"\.(\d+)\.", n)) and int(at[1]) not in layers]
    if outside:
        raise ValueError(f"This adapter has layers_to_transform={layers}, and changes {outside[0]} too.")
    return pairs


def _scaling(config: Mapping[str, Any]) -> float:
    return config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])


class _Targets:
    """The matrices that an adapter may change, by their names in Hugging Face's model."""

    def __init__(self, model: "TransformerBridge"):
        self.fused: dict[str, Fused] = {each.name: each for each in fused_modules(model)}
        modules = theirs(model).items()
        self.plain = {
            name: module for name, module in modules if getattr(inner(module), "weight", None) is not None
        }

    def check(self, name: str, delta: Float[Tensor, "out in"]) -> None:
        """Refuse an adapter for another model."""
        module = self.plain.get(name)
        wanted = None if module is None or isinstance(module, torch.nn.Embedding) else linear(module).shape
        if wanted != delta.shape:
            raise ValueError(
                f"This adapter is for another model: it changes {name}.weight {tuple(delta.shape)}, which "
                f"this model {'lacks' if wanted is None else f'has as {tuple(wanted)}'}."
            )

    def of(self, name: str, delta: Float[Tensor, "out in"]) -> list[tuple[Tensor, Tensor]]:
        """The model's own matrices [out in] that are changed, and by what."""
        if name not in self.fused:
            return [(linear(self.plain[name]).detach(), delta)]
        fused = self.fused[name]
        as_stored = delta if tuple(delta.shape) == fused.shape else delta.T
        as_stored = delta.T if type(self.plain[name]).__name__ == "Conv1D" else as_stored
        parts = zip(fused.parts, fused.split(as_stored.contiguous()), strict=True)
        return [(linear(part).detach(), change) for part, change in parts]


def _warn_of_folding(model: "TransformerBridge", config: Mapping[str, Any], changed: Iterable[str]) -> None:
    """Warn where an adapter was trained before the norms were folded into what it changes."""
    said = str(config.get("base_model_name_or_path") or "")
    if not said or "fold" in said or not getattr(model, "_weights_processed", False):
        return
    readers = [getattr(owner, n, None) for b in model.blocks for owner in b.children() for n in READERS]
    names = {id(module): name for name, module in theirs(model).items()}
    into = {names.get(id(inner(reader))) for reader in (*readers, model.unembed) if reader is not None}
    into |= {each.name for each in fused_modules(model)}
    folded = sorted(set(changed) & into)
    if folded:
        warnings.warn(
            f"This adapter was trained on {said}, and here the norms are folded into the weights that it "
            f"changes ({folded[0]}), so it does something else. Load the model with fold=False.",
            stacklevel=3,
        )
