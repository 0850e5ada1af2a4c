"""Saving a model as it is now, edited or not, so that transformers and `mechlab.load` open it.

Folding makes biases that Hugging Face's model of the family may have no place for. They are put where they
have the same effect: what is added to an attention's output becomes a bias of the values; what is added to
the readers of a LayerNorm becomes its bias, times a mean that the readers' columns are given. (What LayerNorm
hands on has mean zero, so a column's own mean has no other effect.)
"""

import os
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.intervention.layout import fused_modules, inner, is_transposed, linear, named, theirs
from mechlab.loading.conversion import no_progress_bars

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@torch.inference_mode(False)
@torch.no_grad()
def save_model(model: "TransformerBridge", folder: str | os.PathLike) -> None:
    """Save the model as it is now in Hugging Face format; `mechlab.load(folder)` and transformers open it.

    In float32, norms folded or not, as they are. The file is written only if a model made from it predicts
    the same. Raises a `ValueError` with the reason where Hugging Face's model cannot.
    """
    from transformers import AutoModelForCausalLM

    own = {"tie_word_embeddings": False, "output_attentions": False}  # TransformerLens turns the second on
    theirs_: Any = model.original_model.config
    config = type(theirs_).from_dict(theirs_.to_dict() | own)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = _state(model, plain.state_dict())
    try:
        plain.load_state_dict({name: weight.float().cpu() for name, weight in state.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"{_kind(model)} has no place for these weights ({reason}); nothing was saved."
        ) from None
    _check_same(model, plain)
    with no_progress_bars():
        plain.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _kind(model: "TransformerBridge") -> str:
    return f"Hugging Face's {type(model.original_model).__name__}"


def _state(model: "TransformerBridge", like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's weights under the names of Hugging Face's model, whose own `like` names them all."""
    have = named(model)
    state = {name: have[name].detach() if name in have else other for name, other in like.items()}
    maps = _Maps(model, state)
    for block in model.blocks:
        maps.values_take(block)
        for norm, readers in _readers(block):
            maps.norm_takes(norm, readers)
    if getattr(model, "ln_final", None) is not None:
        maps.norm_takes(model.ln_final, [model.unembed])
    return maps.written()


def _readers(block: Any) -> list[tuple[Any, list[Any]]]:
    """The norms of a block, and the linear maps that read what each hands on."""
    parts = lambda owner, names: [
        getattr(owner, n) for n in names if hasattr(getattr(owner, n, None), "weight")
    ]
    attention = parts(getattr(block, "attn", None), "qkv")
    mlp = parts(getattr(block, "mlp", None), ("gate", "in"))
    first, second = getattr(block, "ln1", None), getattr(block, "ln2", None)
    pairs = [(first, attention), (second, mlp)] if second is not None else [(first, attention + mlp)]
    return [(norm, readers) for norm, readers in pairs if readers]


class _Maps:
    """The linear maps of a model, [out in] and a bias, on their way to Hugging Face's model."""

    def __init__(self, model: "TransformerBridge", state: dict[str, Tensor]):
        self.model, self.state = model, state
        self.names = {id(module): name for name, module in theirs(model).items()}
        self.fused = [*fused_modules(model)]
        self.names |= {id(inner(part)): each.name for each in self.fused for part in each.parts}
        self.maps: dict[int, tuple[Tensor, Tensor | None]] = {}

    def of(self, module: Any) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out"] | None]:
        """A map's matrix and its bias, in float64."""
        if id(inner(module)) not in self.maps:
            bias = self.model.b_U if module is self.model.unembed else getattr(module, "bias", None)
            bias = None if bias is None else bias.detach().cpu().double()
            self.maps[id(inner(module))] = linear(module).detach().cpu().double(), bias
        return self.maps[id(inner(module))]

    def homeless(self, module: Any) -> bool:
        """Whether a map has a bias for which Hugging Face's model has no place."""
        bias = self.of(module)[1]
        place = f"{self.names.get(id(inner(module)))}.bias"
        return bias is not None and place not in self.state and bool(bias.abs().max() > 0)

    def values_take(self, block: Any) -> None:
        """What is added to an attention's output becomes a bias of its values: patterns sum to 1."""
        attention: Any = getattr(block, "attn", None)
        if not hasattr(getattr(attention, "o", None), "weight") or not self.homeless(attention.o):
            return
        (W_O, b_O), (W_V, b_V) = self.of(attention.o), self.of(attention.v)
        heads = W_O.shape[1] // self.model.cfg.d_head
        shared = W_O.unflatten(1, (W_V.shape[0] // self.model.cfg.d_head, -1, self.model.cfg.d_head)).sum(2)
        assert b_O is not None and heads
        found = torch.linalg.lstsq(shared.flatten(1), b_O[:, None], driver="gelsd").solution[:, 0]
        off = (shared.flatten(1) @ found - b_O).abs().max()
        if off > max(1e-4, 8 * torch.finfo(self.model.W_E.dtype).eps) * b_O.abs().max():
            raise ValueError(
                f"{_kind(self.model)} has no bias behind its attention, and no bias of the values does the "
                f"same as this one (off by {off:.2g}), so nothing was saved."
            )
        self.maps[id(inner(attention.v))] = W_V, found if b_V is None else b_V + found
        self.maps[id(inner(attention.o))] = W_O, None

    def norm_takes(self, norm: Any, readers: list[Any]) -> None:
        """Biases of readers without a place for them go into the norm before them."""
        if not any(self.homeless(reader) for reader in readers):
            return
        name = self.names.get(id(inner(norm)))
        weight, bias = (self.state.get(f"{name}.{kind}") for kind in ("weight", "bias"))
        if weight is None or bias is None or not isinstance(inner(norm), torch.nn.LayerNorm):
            raise ValueError(
                f"{_kind(self.model)} has no place for the biases that this model has in "
                f"{self.names[id(inner(readers[0]))]}, so nothing was saved."
            )
        if (weight - 1).abs().max() > 0 or bias.abs().max() > 0:
            raise ValueError(
                f"The norm {name} is not folded, and a bias behind it has no place; nothing was saved."
            )
        self.state[f"{name}.bias"] = torch.ones_like(bias)
        for reader in readers:
            W, b = self.of(reader)
            W = W - W.mean(1, keepdim=True)
            if self.homeless(reader):
                assert b is not None
                W, b = W + b[:, None] / W.shape[1], None
            self.maps[id(inner(reader))] = W, b

    def written(self) -> dict[str, Tensor]:
        """The state with all maps in it."""
        modules = {id(module): module for module in theirs(self.model).values()}
        for each in self.fused:
            parts = [self.of(part) for part in each.parts]
            self.state[f"{each.name}.weight"] = each.joined([W for W, _ in parts])
            if f"{each.name}.bias" in self.state:
                self.state[f"{each.name}.bias"] = each.joined([b for _, b in parts])
        for key, (W, b) in self.maps.items():
            if key not in modules:  # a part of a fused one
                continue
            name = self.names[key]
            self.state[f"{name}.weight"] = W.T if is_transposed(modules[key]) else W
            if b is not None and f"{name}.bias" in self.state:  # else it is zero
                self.state[f"{name}.bias"] = b
        return self.state


def _check_same(model: "TransformerBridge", plain: Any) -> None:
    """Raise a `ValueError` unless both predict the same, as precisely as the model computes."""
    probe = torch.arange(1, 1 + min(16, model.cfg.d_vocab - 1, model.cfg.n_ctx))[None]
    said = model(probe.to(model.cfg.device)).cpu().double().log_softmax(-1)
    found = plain(probe).logits.double().log_softmax(-1)
    allowed = 1e-2
    if torch.finfo(model.W_E.dtype).bits < 32:
        rounded = type(plain)(plain.config).to(model.W_E.dtype).eval()
        rounded.load_state_dict(plain.state_dict())
        allowed += 3 * (rounded(probe).logits.double().log_softmax(-1) - found).abs().max().item()
    off = (found - said).abs().max().item()
    if not off < allowed:
        raise ValueError(
            f"A model of {_kind(model)} with these weights gives other predictions (off by {off:.2g}), so "
            "nothing was saved."
        )
