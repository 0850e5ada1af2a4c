"""The weights of a model and what it computes with them: norms, rotated heads, attention, MLPs.

Matrices are [in, out], heads side by side, in the model's own memory. What families do differently (which
norms stand where, how queries and keys are turned, who sees whom) is read off the model or found out by
trying; the fast engine compares with the model's own logits before it believes the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import key_value_heads
from mechlab.runs.attending import Attending, ways_of_attending
from mechlab.runs.norms import Norm
from mechlab.runs.run import NotResumable, Run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu squared": lambda x: F.relu(x) ** 2,
}

# [in, out] and a bias for each output, or none.
Affine = tuple[Float[Tensor, "_ _"], Float[Tensor, "_"] | None]


@dataclass(frozen=True)
class Norms:
    """The norms of one layer; None where there is none.

    before_attention, before_mlp: through which the two read the stream
    after_attention, after_mlp:   of what they write to it
    """

    before_attention: Norm | None
    before_mlp: Norm | None
    after_attention: Norm | None
    after_mlp: Norm | None


@dataclass(frozen=True)
class Layer:
    """The matrices of one layer, [in, out], heads side by side: the model's own memory, not a copy.

    A matrix comes with its bias, or None. `gate` is None where the MLP has none.
    """

    Q: Affine
    K: Affine
    V: Affine
    out: Affine
    gate: Affine | None
    up: Affine
    down: Affine
    norms: Norms

    def to(self, dtype: torch.dtype) -> "Layer":
        """The same with matrices of another precision."""

        def cast(part: Affine | None) -> Affine | None:
            return part and (part[0].to(dtype), None if part[1] is None else part[1].to(dtype))

        names = ("Q", "K", "V", "out", "gate", "up", "down")
        parts: dict[str, Any] = {name: cast(getattr(self, name)) for name in names}
        return replace(self, **parts)


def through(norm: Norm | None, x: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
    """x through a norm, where there is one."""
    return x if norm is None else norm(x)


def project(x: Float[Tensor, "copy pos in"], matrix: Affine) -> Float[Tensor, "copy pos out"]:
    """x W + b in the precision of W, back in the precision of x."""
    W, b = matrix
    rows = x.flatten(0, 1).to(W.dtype)
    found = rows @ W if b is None else torch.addmm(b, rows, W)
    return found.to(x.dtype).view(*x.shape[:2], -1)


def is_parallel(model: "TransformerBridge", layer: int = 0) -> bool:
    """Whether attention and MLP of a layer read the same stream, so that none stands between them."""
    return f"blocks.{layer}.hook_resid_mid" not in model.hook_dict


def norms_of(model: "TransformerBridge", layer: int) -> Norms:
    """The norms of a layer, as the model has them."""
    block = model.blocks[layer]
    first, second, third, fourth = (
        Norm.of(getattr(block, name, None), model) for name in ("ln1", "ln2", "ln1_post", "ln2_post")
    )
    second = first if second is None and is_parallel(model, layer) else second
    return Norms(first, second, third, fourth)


def layer_matrices(model: "TransformerBridge", index: int) -> Layer:
    """The matrices and norms of one layer; `NotResumable` for an MLP that has no such matrices."""
    attn, mlp = model.blocks[index].attn, model.blocks[index].mlp
    if getattr(mlp, "W_out", None) is None or getattr(attn, "W_O", None) is None:
        raise NotResumable(f"This model has parts of a kind of their own ({type(mlp).__name__}).")

    def affine(owner: Any, name: str) -> Affine:
        W, b = getattr(owner, f"W_{name}").detach(), getattr(owner, f"b_{name}", None)
        if W.ndim == 3:  # heads first
            W = W.flatten(0, 1) if name == "O" else W.transpose(0, 1).flatten(1)
        return W, None if b is None else b.detach().flatten()

    Q, K, V, out = (affine(attn, name) for name in "QKVO")
    gate = affine(mlp, "gate") if getattr(mlp, "W_gate", None) is not None else None
    return Layer(Q, K, V, out, gate, affine(mlp, "in"), affine(mlp, "out"), norms_of(model, index))


@dataclass(frozen=True)
class Weights:
    """All that a forward pass multiplies with, and how it is done.

    heads, kv_heads, d_head: of queries, of keys and values, and the size of one
    act:      the MLP's activation;  parallel: whether the MLP reads what attention reads
    attends:  how the heads of each layer look back
    last:     the norm before the unembedding; cap: logits x become cap · tanh(x / cap), or None
    halved:   whether gradients are taken back through gated MLPs by the half rule
    """

    layers: list[Layer]
    attends: list[Attending]
    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, "d_vocab"]
    heads: int
    kv_heads: int
    d_head: int
    act: Callable[[Tensor], Tensor]
    parallel: bool
    last: Norm
    cap: float | None
    halved: bool = False

    @classmethod
    def of(cls, model: "TransformerBridge", tokens: Int[Tensor, "1 pos"]) -> "Weights":
        """Those of a model, for prompts of at most as many positions as this one, which is tried.

        Raises `NotResumable` for a model that computes something else.
        """
        try:
            return cls._tried(model, tokens)
        except (ValueError, AttributeError, RuntimeError, KeyError, TypeError, IndexError) as reason:
            raise NotResumable(f"The fast engine does not know this model: {reason}") from None

    @classmethod
    def _tried(cls, model: "TransformerBridge", tokens: Int[Tensor, "1 pos"]) -> "Weights":
        """What the parts of the model say, beside what it does with one prompt."""
        cfg, layers = model.cfg, [layer_matrices(model, layer) for layer in range(model.cfg.n_layers)]
        last = Norm.of(model.ln_final, model)
        tried = (
            "attn.hook_q",
            "attn.hook_k",
            "attn.hook_pattern",
            "hook_pre",
            "hook_post",
            "hook_pre_linear",
        )
        with torch.no_grad():
            _, seen = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(tried))
        return cls(
            layers,
            ways_of_attending(model, seen, tokens.shape[1]),
            model.W_U,
            model.b_U,
            cfg.n_heads,
            key_value_heads(model),
            cfg.d_head,
            _activation(seen, layers[0].gate is not None),
            is_parallel(model),
            last or Norm(False, cfg.eps),
            getattr(model.original_model.config, "final_logit_softcapping", None),
        )

    def heads_of(
        self, x: Float[Tensor, "row pos d_model"], matrix: Affine
    ) -> Float[Tensor, "row head pos d_head"]:
        """One vector for each head."""
        return project(x, matrix).unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def reads(self, layer: int, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """The stream as the attention of a layer reads it."""
        return through(self.layers[layer].norms.before_attention, x)

    def attention_out(
        self, W: Layer, z: Float[Tensor, "row pos head d_head"]
    ) -> Float[Tensor, "row pos d_model"]:
        """What attention writes, from what its heads hand on."""
        return through(W.norms.after_attention, project(z.flatten(2), W.out))

    def mlp_in(self, layer: int, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """The stream as the MLP of a layer reads it."""
        return through(self.layers[layer].norms.before_mlp, x)

    def neurons(self, W: Layer, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_mlp"]:
        """What the neurons of an MLP hand on, from the stream as it reads it."""
        if W.gate is None:
            return self.act(project(x, W.up))
        gate, up = project(x, W.gate), project(x, W.up)
        found = self.act(gate) * up
        return by_half_rule(found, gate, up, self.act) if self.halved else found

    def mlp_out(self, W: Layer, neurons: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_model"]:
        """What the MLP writes, from what its neurons hand on."""
        return through(W.norms.after_mlp, project(neurons, W.down))

    def mlp(self, W: Layer, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """What the MLP writes, from the stream as it reads it."""
        return self.mlp_out(W, self.neurons(W, x))

    def unembed(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_vocab"]:
        """Logits of a last stream."""
        return self.capped(self.last(stream) @ self.W_U + self.b_U)

    def capped(self, logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Logits as the model gives them: in some, no further than a limit."""
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def written_by_heads(
    run: Run, layer: int, z: Float[Tensor, "batch pos head d_head"], *, moved: bool = False
) -> Float[Tensor, "batch pos head d_model"]:
    """What each head of a run writes to the stream when it hands on z, at every position.

    Where a norm stands behind attention, it divides by a length that all heads make together; that is held at
    the run's own. moved: z is a small change, and the length changes with it to first order.
    """
    attn = run.model.blocks[layer].attn
    mix = "batch pos head d_head, head d_head d_model -> batch pos head d_model"
    written = einsum(z, attn.W_O, mix)
    norm = Norm.of(getattr(run.model.blocks[layer], "ln1_post", None), run.model)
    if norm is None:
        return written
    whole = einsum(run.at("z", layer), attn.W_O, mix).sum(2, keepdim=True)
    whole = whole if attn.b_O is None else whole + attn.b_O
    return norm.moved(whole, written) if moved else norm.held(whole, written)


@torch.no_grad()
def check_sums(run: Run) -> None:
    """Raise a `ValueError` where heads, attention and MLPs do not add up to what the stream gains.

    In some models a number multiplies what they write on the way (Granite), and then a part writes something
    else than its matrix says.
    """
    for layer in range(run.model.cfg.n_layers):
        attn, written = run.model.blocks[layer].attn, run.at("attn_out", layer)
        heads = run.at("z", layer).flatten(2) @ attn.W_O.flatten(0, 1)
        heads = heads if attn.b_O is None else heads + attn.b_O
        heads = through(Norm.of(getattr(run.model.blocks[layer], "ln1_post", None), run.model), heads)
        sites = {(put.site, put.layer) for put in run.edits}
        gained = [] if ("resid_pre", layer + 1) in sites else [run.at("resid_pre", layer + 1)]
        for whole in gained:
            parts = torch.stack([run.at("resid_pre", layer), written, run.at("mlp_out", layer)])
            _must_agree(whole, parts.sum(0), parts, layer)
        if ("attn_out", layer) not in sites:
            _must_agree(written, heads, written[None], layer)


def _must_agree(found: Tensor, wanted: Tensor, size: Tensor, layer: int) -> None:
    off, rounding = (found - wanted).float().norm(), 64 * torch.finfo(found.dtype).eps
    if off > max(1e-3, rounding) * size.float().norm():
        raise ValueError(
            f"In layer {layer} of this model attention and MLP do not add up to what the stream gains: it "
            "multiplies or changes what they write, so what a part writes cannot be told."
        )


def reader_slopes(
    layer: Layer,
    streams: tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]],
    heads: Sequence[tuple[Float[Tensor, "batch _ pos d_head"], Float[Tensor, "d_model _"]]],
    mlp: Float[Tensor, "batch pos d_model"],
) -> list[Float[Tensor, "batch pos _ d_model"]]:
    """The gradient of each reader of a layer for the stream: queries, keys, values by head, and the MLP.

    streams: what attention and what the MLP read, before their norms
    heads:   the gradients for queries, keys and values, and the matrices that make them
    mlp:     the gradient for what the MLP reads, after its norm
    """
    slopes, back = [], "batch head pos d_head, d_model head d_head -> batch pos head d_model"
    for slope, matrix in heads:
        slope = einsum(slope, matrix.unflatten(1, (-1, slope.shape[-1])), back)
        slopes.append(slope_before(layer.norms.before_attention, streams[0], slope))
    return [*slopes, slope_before(layer.norms.before_mlp, streams[1], mlp[:, :, None])]


def slope_before(
    norm: Norm | None, x: Float[Tensor, "batch pos d_model"], slope: Float[Tensor, "batch pos reader d_model"]
) -> Float[Tensor, "batch pos reader d_model"]:
    """The gradient for a stream x, from gradients for what the norm makes of it; None: no norm."""
    return slope if norm is None else norm.slope(x[:, :, None], slope)


def _activation(seen: Any, gated: bool) -> Callable[[Tensor], Tensor]:
    """The activation that makes of the neurons before it what they are after it."""
    before, after = seen["blocks.0.mlp.hook_pre"], seen["blocks.0.mlp.hook_post"]
    return activation_between(before, after, seen["blocks.0.mlp.hook_pre_linear"] if gated else 1.0)


@torch.no_grad()
def activation_between(
    before: Float[Tensor, "*any d_mlp"],
    after: Float[Tensor, "*any d_mlp"],
    factor: Float[Tensor, "*any d_mlp"] | float,
) -> Callable[[Tensor], Tensor]:
    """The activation with which act(before) · factor is what comes after; `NotResumable` if none is known."""
    near = max(1e-4, 8 * torch.finfo(after.dtype).eps)
    act = min(ACTIVATIONS.values(), key=lambda each: (each(before) * factor - after).abs().max().nan_to_num())
    if not torch.allclose(act(before) * factor, after, atol=near, rtol=near):
        raise NotResumable("mechlab does not know the activation of this model's MLPs.")
    return act


def by_half_rule(
    found: Float[Tensor, "*any d_mlp"],
    gate: Float[Tensor, "*any d_mlp"],
    up: Float[Tensor, "*any d_mlp"],
    act: Callable[[Tensor], Tensor],
) -> Float[Tensor, "*any d_mlp"]:
    """The value of `found`, with the gradient of ½ · gate · up · (act(gate) / gate), the last held constant.

    So step times slope gives each of the two factors half of a change that both make together. Arras et al.
    2019 (the half rule), in RelP (Rezaei Jafari et al. 2025); RelP's rules for norms and attention are not
    here.
    """
    apart = gate.detach()
    apart = torch.where(apart.abs() < 1e-4, 1e-4, apart)  # at 0 the ratio is the slope
    product = gate * (act(apart) / apart) * up
    return found.detach() + (product - product.detach()) / 2


def held_norm_slope(
    model: "TransformerBridge", x: Float[Tensor, "*any d_model"], slope: Float[Tensor, "*any d_model"]
) -> Float[Tensor, "*any d_model"]:
    """The gradient for the last stream x where the norm's length is held.

    It is found from the gradient for what the norm makes of x.
    """
    norm = Norm.of(model.ln_final, model)
    return slope if norm is None else norm.held_slope(x, slope)
