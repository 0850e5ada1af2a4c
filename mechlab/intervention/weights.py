"""Editing weights: remove a direction for good, add an adapter, save the result.

Every edit can be undone exactly. An edit puts new tensors in the place of some parameters and keeps the old
ones; `undo()` puts the very same memory back, so the model is bit for bit what it was. As a context manager
it undoes itself on leaving.

    with orthogonalize(model, direction):
        ...
"""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.runs.hooks import Hook, set_component, unit_direction
from mechlab.runs.matrices import layer_matrices

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class WeightEdit:
    """Parameters of a model that were replaced, and the tensors they had before."""

    def __init__(self, model: "TransformerBridge", what: str):
        self.model, self.what = model, what
        self._kept: list[tuple[torch.nn.Parameter, Tensor, Tensor]] = []  # parameter, before, after
        self._untied: list[tuple[torch.nn.Module, torch.nn.Parameter, torch.nn.Parameter, int]] = []

    def __repr__(self) -> str:
        count = sum(after.numel() for _, _, after in self._kept)
        changed = f"{len(self._kept)} matrices of {count / 1e6:.1f} M weights replaced"
        return f"{self.what}: {changed}; undo() puts the old ones back"

    @torch.no_grad()
    def change(self, weight: Float[Tensor, "..."], new: Float[Tensor, "..."]) -> None:
        """Let `weight` have the values `new`.

        `weight` is a matrix of the model, in whatever view TransformerLens gives it.
        """
        if not torch.isfinite(new).all():
            self.undo()
            raise ValueError("The edited weights would be NaN or infinite; nothing was changed.")
        found = [p for p in self.model.original_model.parameters() if p.data_ptr() == weight.data_ptr()]
        if not found:
            self.undo()
            raise ValueError(
                "This matrix is computed from other weights, so it cannot be replaced; nothing was changed."
            )
        before = found[0].data
        after = before.clone()
        view = torch.as_strided(
            after, weight.shape, weight.stride(), weight.storage_offset() - before.storage_offset()
        )
        view.copy_(new)
        found[0].data = after
        self._kept.append((found[0], before, after))

    def untie(self) -> None:
        """Give the unembedding its own memory, with the same values, where it shares the embedding's."""
        if self.model.W_E.data_ptr() != self.model.W_U.data_ptr():
            return
        found = self.model.original_model
        shared = next(p for p in found.parameters() if p.data_ptr() == self.model.W_E.data_ptr())
        for module in found.modules():
            if not isinstance(module, torch.nn.Embedding) and module._parameters.get("weight") is shared:
                own = torch.nn.Parameter(shared.data.clone(), requires_grad=shared.requires_grad)
                module._parameters["weight"] = own
                self._untied.append((module, shared, own, own.data_ptr()))

    def undo(self) -> None:
        """Put the old tensors back. Edits on top of this one must be undone first."""
        moved = [parameter.data_ptr() != after.data_ptr() for parameter, _, after in self._kept]
        moved += [m.get_parameter("weight").data_ptr() != place for m, _, _, place in self._untied]
        if any(moved):
            raise ValueError("The same weights were edited again since; undo the later edit first.")
        for parameter, before, _ in reversed(self._kept):
            parameter.data = before
        for module, shared, _, _ in self._untied:
            module._parameters["weight"] = shared
        self._kept, self._untied = [], []

    def __enter__(self) -> "WeightEdit":
        return self

    def __exit__(self, *_) -> None:
        self.undo()


def orthogonalize(
    model: "TransformerBridge", direction: Float[Tensor, "d_model"], *, level: float | int = 0.0
) -> WeightEdit:
    """Make it impossible to write along a direction.

    Take it out of every matrix and bias that writes to the stream: W ← W − (W r) rᵀ for the token and
    position embeddings, the attention output and the MLP output of every layer, and their biases (Arditi et
    al. 2024, section 4). Nothing else changes: where the unembedding is tied to the embedding, it gets its
    own copy first and keeps its values.

    level: what the stream has along the direction instead of 0, at every layer and position. It is written by
           the embedding, since nothing else can write there any more. 0 is Arditi's version; the mean of
           harmless prompts is the affine one (Marshall et al. 2024). A level that is large beside the
           embeddings drowns them, and the model says nothing any more: look at perplexity before counting
           refusals.
    """
    unit = unit_direction(model, direction)
    edit = WeightEdit(model, "orthogonalized")
    edit.untie()
    without = lambda W: set_component(W, unit)
    edit.change(model.W_E, set_component(model.W_E, unit, level))
    if "hook_pos_embed" in model.hook_dict and getattr(model, "W_pos", None) is not None:
        edit.change(model.W_pos, without(model.W_pos))
    for block in model.blocks:
        for owner, names in ((block.attn, ("W_O", "b_O")), (block.mlp, ("W_out", "b_out"))):
            for name in names:
                weight = getattr(owner, name, None)
                if weight is not None:
                    edit.change(weight, without(weight))
    return edit


def write_hooks(
    model: "TransformerBridge", direction: Float[Tensor, "d_model"], *, level: float | int = 0.0
) -> list[Hook]:
    """What `orthogonalize` does, by hooks on everything that is written to the stream.

    It is for a look before the edit.
    """
    unit = unit_direction(model, direction)
    names = ["blocks.0.hook_resid_pre"]
    names += [
        f"blocks.{layer}.hook_{kind}"
        for layer in range(model.cfg.n_layers)
        for kind in ("attn_out", "mlp_out")
    ]

    return [
        (name, lambda x, hook, put=level if n == 0 else 0.0: set_component(x, unit, put))
        for n, name in enumerate(names)
    ]


def load_adapter(
    model: "TransformerBridge", folder: str | os.PathLike, *, scale: float | int = 1.0
) -> WeightEdit:
    """Add a LoRA adapter in peft's format to the weights: W ← W + scale · α/r · B A (Hu et al. 2021).

    The adapter must have been trained on these weights; those in data/organisms belong to the folded SmolLM2.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(f"There is no adapter in {folder}: adapter_config.json is missing.")
    config = json.loads((folder / "adapter_config.json").read_text())
    found = load_file(folder / "adapter_model.safetensors")
    rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    parameters = _named(model)
    edit = WeightEdit(model, f"adapter {folder.name}")
    for key, A in found.items():
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
        delta = (
            found[key.replace("lora_A", "lora_B")].float() @ A.float() * (scale * config["lora_alpha"] / rank)
        )
        weight = parameters.get(name)
        delta = delta.T if config.get("fan_in_fan_out") else delta
        if weight is None or weight.shape != delta.shape:
            edit.undo()
            raise ValueError(
                f"This adapter is for another model: it changes {name} {tuple(delta.shape)}, which this "
                "model lacks."
            )
        edit.change(weight.data, weight.data + delta.to(weight))
    return edit


@torch.no_grad()
def save_model(model: "TransformerBridge", folder: str | os.PathLike) -> None:
    """Save the model as it is now in Hugging Face format; `mechlab.load(folder)` and transformers open it.

    Folded weights are saved folded. The file is written only if a model made from it predicts the same.
    """
    from transformers import AutoModelForCausalLM

    own = {"tie_word_embeddings": False, "output_attentions": False}  # TransformerLens turns the second on
    theirs: Any = model.original_model.config
    config = type(theirs).from_dict(theirs.to_dict() | own)
    plain = AutoModelForCausalLM.from_config(config).eval()
    have, state = _named(model), {}
    for name, like in plain.state_dict().items():
        state[name] = have.get(name, like)
        if ".c_attn." in name:  # TransformerLens keeps queries, keys and values apart
            layer = layer_matrices(model, int(re.findall(r"\d+", name)[0]))
            state[name] = torch.cat(
                [part[name.endswith("bias")] for part in (layer.Q, layer.K, layer.V)], dim=-1
            )
    if model.b_U.abs().max() > 0:  # what folding made of the last norm's bias
        last = next(name for name in state if name.endswith(("ln_f.bias", "norm.bias")))
        state[last] = torch.linalg.lstsq(model.W_U.T.double(), model.b_U.double()[:, None]).solution[:, 0]
    plain.load_state_dict({name: weight.detach().float().cpu() for name, weight in state.items()})
    probe = torch.arange(1, 9)[None]
    logits = plain(probe).logits, model(probe.to(model.cfg.device)).cpu()
    off = (logits[0].log_softmax(-1) - logits[1].log_softmax(-1)).abs().max().item()
    if not off < 1e-2:
        raise ValueError(
            f"A model of Hugging Face's {type(plain).__name__} with these weights gives other predictions "
            f"(off by {off:.2g}), "
            "so nothing was saved."
        )
    plain.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _named(model: "TransformerBridge") -> dict[str, torch.nn.Parameter]:
    """Parameters by the names that Hugging Face's model has for them."""
    found: dict[str, torch.nn.Parameter] = {}
    for name, parameter in model.original_model.named_parameters(remove_duplicate=False):
        found.setdefault(name.replace("._original_component", ""), parameter)
    return found
