"""Editing weights: remove a direction for good. Adapters and saving have files of their own.

Every edit can be undone exactly (edits.py). As a context manager it undoes itself on leaving.

    with orthogonalize(model, direction):
        ...
"""

import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.intervention.adapters import load_adapter as load_adapter
from mechlab.intervention.edits import WeightEdit as WeightEdit
from mechlab.intervention.saving import save_model as save_model
from mechlab.runs.hooks import Hook, intervene, set_component, unit_direction

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


_tried: "weakref.WeakSet[TransformerBridge]" = weakref.WeakSet()  # models on which `write_hooks` is enough


def orthogonalize(
    model: "TransformerBridge", direction: Float[Tensor, "d_model"], *, level: float | int = 0.0
) -> WeightEdit:
    """Make it impossible to write along a direction.

    Take it out of every matrix and bias that writes to the stream: W ← W − (W r) rᵀ for the token and
    position embeddings, the attention output and the MLP output (of every expert) of every layer, and their
    biases (Arditi et al. 2024, section 4). Nothing else changes: where the unembedding is tied to the
    embedding, it gets its own copy first and keeps its values. Where a norm with weight w stands between a
    matrix and the stream (Gemma 2 and 3, OLMo 2, Bloom's embedding), it is w ∘ r that is taken out.

    level: what the stream has along the direction instead of 0, at every layer and position. It is written by
           the embedding, since nothing else can write there any more. 0 is Arditi's version; the mean of
           harmless prompts is the affine one (Marshall et al. 2024). A level that is large beside the
           embeddings drowns them, and the model says nothing any more: look at perplexity before counting
           refusals.

    The edited model is run on a few tokens. Raises a `ValueError`, with nothing changed, where its stream
    still has something along the direction.
    """
    unit = unit_direction(model, _precise(direction))
    edit = WeightEdit(model, "orthogonalized")
    with edit.whole():
        writers, scale = [*_writers(model)], _embedding_scale(model) if level else 1.0
        edit.untie()
        for writer in writers:
            writer.clear(edit, unit, level / scale if writer.first else 0.0)
        _check_stream(model, unit, level, "After the edit")
    return edit


def write_hooks(
    model: "TransformerBridge", direction: Float[Tensor, "d_model"], *, level: float | int = 0.0
) -> list[Hook]:
    """What `orthogonalize` does, by hooks on everything that is written to the stream.

    It is for a look before the edit. Where a norm stands between a matrix and the stream, the hooks take
    the direction out after it, the edit before it: both leave nothing along the direction, and the rest
    differs a little. Raises a `ValueError` for a model that writes to its stream in other ways too: it is run
    on a few tokens, once.
    """
    unit = unit_direction(model, _precise(direction))
    names = ["blocks.0.hook_resid_pre"]
    names += [
        f"blocks.{layer}.hook_{kind}"
        for layer in range(model.cfg.n_layers)
        for kind in ("attn_out", "mlp_out")
    ]

    hooks: list[Hook] = [
        (name, lambda x, hook, put=level if n == 0 else 0.0: set_component(x, unit, put))
        for n, name in enumerate(names)
    ]
    if model not in _tried:
        with intervene(model, hooks):
            _check_stream(model, unit, level, "With these hooks")
        _tried.add(model)
    return hooks


@dataclass(frozen=True)
class _Writer:
    """What writes to the stream together: matrices and biases [..., d_model], and the norm behind them.

    first: whether it is the token embedding, which writes the level
    """

    weights: list[Tensor]
    norm: Any = None
    first: bool = False

    def clear(self, edit: WeightEdit, unit: Float[Tensor, "d_model"], level: float) -> None:
        """Let it write nothing along a direction; `level` where it is the first."""
        if self.norm is None:
            for weight in self.weights:
                edit.change(weight, set_component(_precise(weight), unit, level if weight.ndim > 1 else 0.0))
            return
        through = _through(self.norm, unit.to(_precise(self.weights[0])))
        if through.norm() > 1e-9:
            for weight in self.weights:
                edit.change(weight, set_component(_precise(weight), through / through.norm()))
        bias = getattr(getattr(self.norm, "original_component", self.norm), "bias", None)
        if bias is not None:
            edit.change(bias, set_component(_precise(bias), unit, level))
        elif level:
            raise ValueError(
                "A norm without a bias stands behind the embedding of this model, so no level can be written "
                "by the weights; nothing was changed. `write_hooks` writes it."
            )


def _writers(model: "TransformerBridge") -> Iterator[_Writer]:
    """Everything in a model that writes to the stream, as far as TransformerLens names it."""
    width, W_E = model.cfg.d_model, model.W_E
    if W_E.shape[-1] != width:
        raise ValueError(
            f"The embedding of this model has {W_E.shape[-1]} dimensions and its stream {width}: what stands "
            "between them is not known, so no direction can be taken out of the weights. Nothing was changed."
        )
    yield _Writer([W_E], getattr(model, "embed_ln", None), first=True)
    for module in model.original_model.modules():  # positions, token types
        mine = isinstance(module, torch.nn.Embedding) and module.weight.shape[-1] == width
        if mine and module.weight.data_ptr() != W_E.data_ptr():
            yield _Writer([module.weight], getattr(model, "embed_ln", None))
    for block in model.blocks:
        for part, names, norm in (
            ("attn", ("W_O", "b_O"), "ln1_post"),
            ("mlp", ("W_out", "b_out"), "ln2_post"),
        ):
            owner = getattr(block, part, None)
            found = [getattr(owner, name, None) for name in names]
            weights = [weight for weight in found if isinstance(weight, Tensor)]
            if found[0] is None and owner is not None:
                weights = [*_experts(owner, width)]
            if weights:
                yield _Writer(weights, getattr(block, norm, None))


def _experts(owner: torch.nn.Module, width: int) -> Iterator[Float[Tensor, "..."]]:
    """The output matrices and biases of a layer of experts, [..., d_model]."""
    for name, weight in owner.named_parameters():
        place = name.replace("_original_component.", "")
        ends = ("down_proj", "w2", "down_proj_bias")
        if not any(f".{place}.".find(f".{end}.") >= 0 for end in ends):
            continue
        last = weight.ndim == 1 or place.endswith("bias") or weight.shape[-2] != width
        yield weight if last else weight.transpose(-1, -2)


@torch.no_grad()
def _through(norm: Any, unit: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
    """Along what a norm must read nothing to write nothing along a direction but its bias.

    Its weight is found by trying: families store it differently.
    """
    inner = copy.deepcopy(getattr(norm, "original_component", norm)).to(unit.dtype)
    chance = torch.randn(unit.shape, generator=torch.Generator().manual_seed(0)).to(unit)
    x = chance + chance.sign()  # nothing near zero
    there, back, shifted = inner(x[None, None]), inner(-x[None, None]), inner(x[None, None] + 1)
    centred = torch.allclose(there, shifted, atol=1e-3)
    x = x - x.mean() if centred else x
    found = unit * (there - back)[0, 0] / 2 * x.pow(2).mean().sqrt() / x
    return found - found.mean() if centred else found


def _precise(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32 or better."""
    return x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()


def _embedding_scale(model: "TransformerBridge") -> float:
    """By how much the embedding is multiplied before it is the stream (Gemma: the root of its width).

    1 where a norm stands behind it, which has the level in its bias.
    """
    if getattr(model, "embed_ln", None) is not None:
        return 1.0
    tokens = torch.tensor([[1], [2]], device=model.cfg.device)
    stream = _streams(model, tokens)["blocks.0.hook_resid_pre"][:, 0].cpu().double()
    rows = model.W_E.detach()[tokens[:, 0]].cpu().double()
    step, own = stream[0] - stream[1], rows[0] - rows[1]
    return (step @ own / (own @ own)).item()


@torch.no_grad()
def _streams(model: "TransformerBridge", tokens: Tensor) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """The stream everywhere."""
    names = {f"hook_resid_{when}" for when in ("pre", "mid", "post")}
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.split(".")[-1] in names)
    return dict(cache.items())


def _check_stream(
    model: "TransformerBridge", unit: Float[Tensor, "d_model"], level: float | int, when: str
) -> None:
    """Run a few tokens; a `ValueError` unless the stream has `level` along the direction everywhere."""
    chance = torch.Generator().manual_seed(0)
    shape = (4, min(12, model.cfg.n_ctx))
    tokens = torch.randint(model.cfg.d_vocab, shape, generator=chance).to(model.cfg.device)
    precision = torch.finfo(model.W_E.dtype).eps
    for name, stream in _streams(model, tokens).items():
        stream = _precise(stream)
        left = (stream @ unit.to(stream) - level).abs()
        size = stream.norm(dim=-1).clamp(min=abs(level))
        if not (left <= max(2e-4, 1.5 * precision) * size + 1e-6).all():
            worst = left.flatten().argmax()
            raise ValueError(
                f"{when} the stream at {name} is still {left.flatten()[worst]:.2g} (of "
                f"{size.flatten()[worst]:.2g}) off along the direction: something in this model "
                f"({type(model.original_model).__name__}) writes to the stream that is not known here. "
                "Nothing was changed."
            )
