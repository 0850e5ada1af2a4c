"""One forward pass of a Llama-like model, written out: norm, rotary grouped-query attention, gated MLP, sum.

For reading, and for checking the bridge against: equal to it within 1e-4 (tested). It works on folded
weights, one prompt at a time, and has no hooks; for experiments use the bridge.
"""

from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechlab.runs import rotary
from mechlab.tokens import Prompts, batch_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def rms_norm(x: Float[Tensor, "... d_model"], eps: float = 1e-5) -> Float[Tensor, "... d_model"]:
    """Divide each vector by the root of the mean of its squares (Zhang and Sennrich 2019).

    No mean is subtracted, unlike LayerNorm. The learned weight is folded into the matrices that read the
    result.
    """
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Float[Tensor, "pos head d_head"], theta: float) -> Float[Tensor, "pos head d_head"]:
    """Rotary positions: turn the pairs (i, i + d_head/2) by position · theta^(−2i/d_head).

    Su et al. 2021.
    """
    turn = rotary.turn_by(theta, len(x), x.shape[-1], x.device)
    return rotary.rotate(x.transpose(0, 1), turn).transpose(0, 1)


def attention_pattern(
    q: Float[Tensor, "pos head d_head"], k: Float[Tensor, "pos kv_head d_head"]
) -> Float[Tensor, "head query_pos key_pos"]:
    """Softmax of scaled products of queries with keys at the same or earlier positions; rows sum to 1.

    Grouped queries: consecutive query heads share a key head, so key head g serves heads g·n to g·n + n − 1.
    """
    n_pos, heads, d_head = q.shape
    k = k.repeat_interleave(heads // k.shape[1], dim=1)
    scores = einsum(q, k, "query head d_head, key head d_head -> head query key") / d_head**0.5
    future = torch.ones(n_pos, n_pos, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def head_outputs(
    pattern: Float[Tensor, "head query_pos key_pos"],
    v: Float[Tensor, "pos kv_head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
) -> Float[Tensor, "pos head d_model"]:
    """What each head writes into the residual stream: values weighted by the pattern, then through W_O."""
    v = v.repeat_interleave(len(pattern) // v.shape[1], dim=1)
    z = einsum(pattern, v, "head query key, key head d_head -> query head d_head")
    return einsum(z, W_O, "query head d_head, head d_head d_model -> query head d_model")


def gated_mlp(
    x: Float[Tensor, "pos d_model"],
    W_gate: Float[Tensor, "d_model d_mlp"],
    W_in: Float[Tensor, "d_model d_mlp"],
    W_out: Float[Tensor, "d_mlp d_model"],
) -> Float[Tensor, "pos d_model"]:
    """SwiGLU (Shazeer 2020): neurons are silu(x·W_gate) times x·W_in; each writes its row of W_out."""
    neurons = torch.nn.functional.silu(x @ W_gate) * (x @ W_in)
    return neurons @ W_out


def block(
    model: "TransformerBridge", layer: int, resid: Float[Tensor, "pos d_model"]
) -> Float[Tensor, "pos d_model"]:
    """One layer: attention reads the stream and adds to it, then the MLP reads the sum and adds to it."""
    theta, eps = vars(model.cfg)["rope_parameters"]["rope_theta"], model.cfg.eps
    x = rms_norm(resid, eps)
    project = "pos d_model, head d_model d_head -> pos head d_head"
    q, k, v = (einsum(x, W[layer], project) for W in (model.W_Q, model.W_K, model.W_V))
    pattern = attention_pattern(rotate(q, theta), rotate(k, theta))
    resid = resid + head_outputs(pattern, v, model.W_O[layer]).sum(1)
    mlp = model.blocks[layer].mlp
    return resid + gated_mlp(rms_norm(resid, eps), mlp.W_gate, mlp.W_in, mlp.W_out)


@torch.no_grad()
def forward(model: "TransformerBridge", tokens: Prompts) -> Float[Tensor, "pos d_vocab"]:
    """Logits of one prompt: embed, every block, last norm, unembed."""
    resid = model.W_E[batch_of(model, tokens).tokens[0]]
    for layer in range(model.cfg.n_layers):
        resid = block(model, layer, resid)
    return rms_norm(resid, model.cfg.eps) @ model.W_U
