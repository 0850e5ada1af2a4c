"""The rest of the model: run many changed copies of a run from the layer and the position where they differ.

A patch at layer L and position p leaves every earlier layer, and every earlier position, as it was. So the stream is
taken up at layer L, only positions p, p+1, ... are computed, and they look back at the keys and values of the first
run. Nothing is approximated: the numbers are those of a full run, for a fraction of the multiplications.

Written for models of the GPT-2 and Llama kind. There is no list of architectures: on setting up, the result is
compared with the model's own logits, and a model that computes something else is refused (`NotResumable`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.attribution.logits import require_folded

ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class NotResumable(ValueError):
    """This model computes something that the short way does not know. Run it in full instead."""


@dataclass(frozen=True)
class Layer:
    """The matrices of one layer, heads side by side: [d_model, head · d_head] in, [head · d_head, d_model] out."""

    W_QKV: Float[Tensor, "d_model qkv"]
    b_QKV: Float[Tensor, "qkv"]
    W_O: Float[Tensor, "z d_model"]
    b_O: Float[Tensor, "d_model"]
    W_in: Float[Tensor, "d_model mlp_in"]  # gate and up side by side, where there is a gate
    b_in: Float[Tensor, "mlp_in"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, "d_model"]


class Resume:
    """One run of some prompts of equal length, kept so that changed copies can be taken up anywhere in it.

    resid_pre, resid_mid: [layer, prompt, pos, d_model], the stream before attention and before the MLP
    z: [layer, prompt, pos, head, d_head], what the heads hand to W_O
    """

    @torch.no_grad()
    def __init__(self, model, base: Int[Tensor, "prompt pos"], *, tolerance: float = 1e-3):
        require_folded(model)
        cfg = model.cfg
        if cfg.act_fn not in ACTIVATIONS or cfg.normalization_type not in ("RMS", "RMSPre", "LN", "LNPre"):
            raise NotResumable(f"The short way does not know {cfg.act_fn!r} with {cfg.normalization_type!r}.")
        self.model, self.base = model, base
        self.heads, self.d_head = cfg.n_heads, cfg.d_head
        self.kv_heads = cfg.n_key_value_heads or cfg.n_heads
        self.gated, self.act, self.eps = bool(cfg.gated_mlp), ACTIVATIONS[cfg.act_fn], cfg.eps
        self.centred = cfg.normalization_type.startswith("LN")
        self.layers = [_layer(model, layer) for layer in range(cfg.n_layers)]
        names = [
            name
            for name in ("blocks.0.hook_resid_pre", "rotary_emb.hook_cos", "rotary_emb.hook_sin")
            if name in model.hook_dict
        ]
        logits, cache = model.run_with_cache(base, names_filter=names)
        turns = [cache[name] for name in names[1:]]
        self.turn = None if not turns else tuple(part.reshape(-1, *part.shape[-2:])[0] for part in turns)
        stream, pre, mid, z, self.keys, self.values = cache[names[0]], [], [], [], [], []
        for layer in range(cfg.n_layers):
            pre.append(stream)
            q, k, v = self._qkv(layer, stream, 0)
            self.keys.append(k)
            self.values.append(v)
            heads = self._attend(q, k, v, 0)
            z.append(heads.unflatten(-1, (self.heads, self.d_head)))
            stream = self._write(layer, stream, heads)
            mid.append(stream)
            stream = self._mlp(layer, stream)
        self.resid_pre, self.resid_mid, self.z = torch.stack(pre), torch.stack(mid), torch.stack(z)
        self.logits = self._unembed(stream)
        off = (self.logits - logits).abs().max().item()
        if not off <= tolerance * max(1.0, logits.abs().max().item()):
            raise NotResumable(
                f"The short way gives other logits than the model: off by {off:.2g}. Run it in full instead."
            )

    @torch.no_grad()
    def run(
        self,
        layer: int,
        prompts: Int[Tensor, "run"],
        stream: Float[Tensor, "run later d_model"],
        first: int,
        *,
        middle: bool = False,
        positions: slice = slice(-1, None),
    ) -> Float[Tensor, "run read d_vocab"]:
        """Logits of changed runs, from `layer` on.

        prompts: which prompt of `base` each run is a copy of; stream: its stream at positions `first` and later, on
        entering the layer (middle: between its attention and its MLP); positions: where to read logits.
        """
        if first + stream.shape[1] != self.base.shape[1]:
            raise ValueError(
                f"The stream has {stream.shape[1]} positions from position {first} on; prompts have {self.base.shape[1]}."
            )
        for current in range(layer, len(self.layers)):
            if not (middle and current == layer):
                q, k, v = self._qkv(current, stream, first)
                k, v = (
                    torch.cat([kept[current][prompts, :, :first], new], 2)
                    for kept, new in ((self.keys, k), (self.values, v))
                )
                stream = self._write(current, stream, self._attend(q, k, v, first))
            stream = self._mlp(current, stream)
        return self._unembed(stream[:, positions])

    def _norm(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()

    def _qkv(self, layer: int, stream: Tensor, first: int) -> list[Tensor]:
        """Queries, keys and values, [run, head, pos, d_head], turned by their positions."""
        W = self.layers[layer]
        sizes = [count * self.d_head for count in (self.heads, self.kv_heads, self.kv_heads)]
        parts = torch.addmm(W.b_QKV, self._norm(stream).flatten(0, 1), W.W_QKV).split(sizes, dim=-1)
        parts = [part.view(*stream.shape[:2], -1, self.d_head).transpose(1, 2) for part in parts]
        if self.turn is not None:
            parts[:2] = [self._turned(part, first) for part in parts[:2]]
        return parts

    def _turned(self, x: Tensor, first: int) -> Tensor:
        cos, sin = (part[first : first + x.shape[2]] for part in self.turn)
        x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        left, right = x.chunk(2, dim=-1)
        return torch.cat([x * cos + torch.cat([-right, left], -1) * sin, rest], -1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, first: int) -> Float[Tensor, "run pos z"]:
        """What the heads bring, side by side. Position i looks at positions up to `first` + i."""
        count = q.shape[2]
        seen = torch.ones(count, first + count, dtype=torch.bool, device=q.device).tril(first)
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if count == 1 else seen, enable_gqa=self.heads != self.kv_heads
        )
        return z.transpose(1, 2).flatten(2)

    def _write(self, layer: int, stream: Tensor, z: Tensor) -> Tensor:
        W = self.layers[layer]
        return stream + torch.addmm(W.b_O, z.flatten(0, 1), W.W_O).view_as(stream)

    def _mlp(self, layer: int, stream: Tensor) -> Tensor:
        W = self.layers[layer]
        x = torch.addmm(W.b_in, self._norm(stream).flatten(0, 1), W.W_in)
        if self.gated:
            gate, up = x.chunk(2, dim=-1)
            x = self.act(gate) * up
        else:
            x = self.act(x)
        return stream + torch.addmm(W.b_out, x, W.W_out).view_as(stream)

    def _unembed(self, stream: Tensor) -> Tensor:
        return self._norm(stream) @ self.model.W_U + self.model.b_U


def _layer(model, index: int) -> Layer:
    block = model.blocks[index]

    def heads(kind: str) -> tuple[Tensor, Tensor]:
        W = getattr(block.attn, f"W_{kind}")
        return W.transpose(0, 1).flatten(1), _or_zero(
            block.attn, f"b_{kind}", W.shape[0] * W.shape[2], W
        ).flatten()

    (q, bq), (k, bk), (v, bv) = heads("Q"), heads("K"), heads("V")
    W_O, W_in, W_out = block.attn.W_O.flatten(0, 1), block.mlp.W_in, block.mlp.W_out
    b_in = _or_zero(block.mlp, "b_in", W_in.shape[1], W_in)
    if model.cfg.gated_mlp:
        W_in = torch.cat([block.mlp.W_gate, W_in], 1)
        b_in = torch.cat([_or_zero(block.mlp, "b_gate", b_in.shape[0], W_in), b_in])
    d_model = W_O.shape[1]
    parts = (
        torch.cat([q, k, v], 1), torch.cat([bq, bk, bv]), W_O, _or_zero(block.attn, "b_O", d_model, W_O),
        W_in, b_in, W_out, _or_zero(block.mlp, "b_out", d_model, W_out),
    )  # fmt: skip
    return Layer(*(part.detach().contiguous() for part in parts))


def _or_zero(owner, name: str, size: int, like: Tensor) -> Tensor:
    """A bias, or zeros where the model has none."""
    try:
        found = getattr(owner, name)
    except AttributeError:
        found = None
    return like.new_zeros(size) if found is None else found
