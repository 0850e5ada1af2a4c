"""Attention patterns: who looks where, and what a head does with what it sees.

Scores of a head's *pattern* (where it looks) on texts, and of its *weights*: the OV circuit (what it writes
about a token that it looks at) and the QK circuit (which key suits a query). Every query head has its own
pattern, also where several share one key/value head. Elhage et al. 2021; Olsson et al. 2022. Looking is not
using: ablate before you believe.
"""

from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import layer_of, one_of
from mechlab.results import Scores
from mechlab.runs.hooks import intervene
from mechlab.runs.rotary import rotate, turn_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = {
    "previous token": "from each token to the one before it",
    "duplicate token": "to earlier copies of the token itself",
    "induction": "to tokens that followed earlier copies of the token (prefix matching)",
    "sink": "to position 0",
}


def repeated_tokens(
    model: "TransformerBridge", *, length: int = 50, batch: int = 8, seed: int = 0
) -> Int[Tensor, "batch pos"]:
    """Random tokens, said twice, after the model's first token: [batch, 1 + 2 * length].

    Nothing but the repetition helps to predict the second half. Special tokens are not drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    special = set(model.tokenizer.all_special_ids)
    known = range(min(model.cfg.d_vocab, len(model.tokenizer)))
    allowed = torch.tensor([i for i in known if i not in special])
    half = allowed[torch.randint(len(allowed), (batch, length), generator=generator)]
    first = model.to_tokens("")[:, :1].cpu().expand(batch, 1)
    return torch.cat([first, half, half], dim=1).to(model.cfg.device)


def looked_for(tokens: Int[Tensor, "batch pos"], kind: str) -> Bool[Tensor, "batch query_pos key_pos"]:
    """The places that a head of this kind looks at, as a mask."""
    one_of("kind", kind, KINDS)
    count = tokens.shape[1]
    query, key = torch.arange(count)[:, None], torch.arange(count)[None]
    if kind == "previous token":
        mask = key == query - 1
    elif kind == "sink":
        mask = (key == 0) & (query > 0)
    else:
        same = tokens.cpu()[:, :, None] == tokens.cpu()[:, None]  # [batch, query, key]
        if kind == "induction":  # the token before the key
            same = torch.cat([torch.zeros_like(same[:, :, :1]), same[:, :, :-1]], dim=2)
            mask = same & (key <= query)
        else:
            mask = same & (key < query)
    return mask.expand(len(tokens), count, count).to(tokens.device)


@torch.no_grad()
def head_scores(model: "TransformerBridge", base: Int[Tensor, "batch pos"], kind: str) -> Scores:
    """How much of its attention each head gives to the places of one kind, from 0 to 1.

    dims ("layer", "head"). Averaged over the positions that have such a place (an earlier copy, say), then
    over texts. Kinds: "previous token", "duplicate token", "induction" (Olsson et al. call it prefix
    matching), "sink". TransformerLens' `detect_head` divides by all positions instead, also those that have
    no such place.
    """
    mask = looked_for(base, kind)
    has = mask.any(-1)
    if not has.any(-1).all():
        raise ValueError(
            f"A text has no place for {kind!r}: no token of it comes back. Give texts that repeat something."
        )
    found = torch.zeros(len(base), model.cfg.n_layers, model.cfg.n_heads)

    def score(pattern: Float[Tensor, "batch head query_pos key_pos"], hook) -> None:
        mass = (pattern * mask[:, None]).sum(-1)  # [batch, head, query]
        mean = (mass * has[:, None]).sum(-1) / has.sum(-1)[:, None]
        found[:, layer_of(hook.name)] = mean.float().cpu()

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    with intervene(model, [(name, score) for name in names]):
        model(base, stop_at_layer=model.cfg.n_layers)
    return Scores.over_prompts(found, ("layer", "head"), f"{kind} score (share of attention)", signed=False)


def copying_scores(
    model: "TransformerBridge", tokens: Int[Tensor, "token"], *, k: int = 5, against: bool = False
) -> Scores:
    """OV circuit: which tokens would each head raise among its k likeliest, if it looked only there?

    The share of `tokens`. against: among its k unlikeliest instead: a head that writes against what it sees.

    Each token's stream after the first layer goes through the head's W_V and W_O, the last norm and the
    unembedding (Wang et al. 2022, section 3). 1: the head copies what it sees. Chance is k / d_vocab. dims
    ("layer", "head").
    """
    return both_copying_scores(model, tokens, k=k)[against]


@torch.no_grad()
def both_copying_scores(
    model: "TransformerBridge", tokens: Int[Tensor, "token"], *, k: int = 5
) -> tuple[Scores, Scores]:
    """`copying_scores` for and against, out of one pass: the unembedding is what takes the time."""
    streams, found = _alone(model, tokens), torch.zeros(2, model.cfg.n_layers, model.cfg.n_heads)
    rows = torch.arange(len(tokens))
    for layer in range(model.cfg.n_layers):
        written = model.ln_final(_written(model, layer, streams).transpose(0, 1))
        for head, of_head in enumerate(written):
            product = of_head @ model.W_U
            for turned, logits in enumerate((model.b_U + product, model.b_U - product)):
                above = (logits > logits[rows, tokens, None]).count_nonzero(-1)
                found[turned, layer, head] = (above < k).float().mean()
    name = "copying score (share of tokens in the {} {})"
    ends = zip(found, ("top", "bottom"), strict=True)
    most, least = (Scores(each, ("layer", "head"), name.format(end, k), signed=False) for each, end in ends)
    return most, least


@torch.no_grad()
def matching_scores(
    model: "TransformerBridge",
    tokens: Int[Tensor, "token"],
    *,
    through: tuple[int, int] | None = None,
    distance: int = 0,
) -> Scores:
    """QK circuit: for what share of `tokens` does a head's query suit the key of the same token best?

    through: a (layer, head) whose output about a token stands in for its key, as a previous-token head leaves
        it on the next position: this is how an induction head finds what came after (K-composition). Later
        layers only.
    distance: how many positions apart query and key are, for rotary positions.
    1: matches like with like; chance is 1 / number of tokens. dims ("layer", "head"). Elhage et al. 2021.
    """
    streams = _alone(model, tokens)
    keys = streams if through is None else _written(model, through[0], streams)[:, through[1]]
    first = 0 if through is None else through[0] + 1
    found = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    turn = turn_of(model, distance + 1) if distance else None  # the query stands at `distance`, its keys at 0
    for layer in range(first, model.cfg.n_layers):
        attention = model.blocks[layer].attn
        q = _project(_normed(model, layer, streams), attention.W_Q, attention.b_Q)
        k = _project(_normed(model, layer, keys), attention.W_K, attention.b_K)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        q = q if turn is None else rotate(q, turn, slice(distance, None))
        fit = einsum(q, k, "query head d_head, key head d_head -> head query key")
        found[layer] = (fit.argmax(-1) == torch.arange(len(tokens), device=fit.device)).float().mean(-1).cpu()
    return Scores(found, ("layer", "head"), "matching score (share of tokens)", signed=False)


@torch.no_grad()
def in_context_learning_score(
    model: "TransformerBridge", texts: Int[Tensor, "batch pos"], *, early: int = 50, late: int = 500
) -> Float[Tensor, "batch"]:
    """Loss at token `late` minus loss at token `early`, in nats; negative: later tokens are easier.

    Olsson et al. 2022 define it with tokens 50 and 500 and find about −0.4 once induction heads are there.
    """
    if not 1 <= early < late < texts.shape[1]:
        raise ValueError(
            f"early and late are {early} and {late}; texts have tokens 1 to {texts.shape[1] - 1} to predict."
        )
    losses = model(texts, return_type="loss", loss_per_token=True)  # losses[:, n] is of token n + 1
    return losses[:, late - 1] - losses[:, early - 1]


def _alone(model: "TransformerBridge", tokens: Int[Tensor, "token"]) -> Float[Tensor, "token d_model"]:
    """Each token's stream after the first layer, in a text of its own: first token, then this one."""
    first = model.to_tokens("")[:, :1].expand(len(tokens), 1)
    texts, name = torch.cat([first, tokens[:, None].to(first)], dim=1), "blocks.0.hook_resid_post"
    _, cache = model.run_with_cache(texts, names_filter=name, stop_at_layer=1)
    return cache[name][:, -1]


def _normed(
    model: "TransformerBridge", layer: int, streams: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token d_model"]:
    return model.blocks[layer].ln1(streams[None])[0]


def _project(
    streams: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"] | None,
) -> Float[Tensor, "token head d_head"]:
    found = einsum(streams, weight, "token d_model, head d_model d_head -> token head d_head")
    return found if bias is None else found + bias


def _written(
    model: "TransformerBridge", layer: int, streams: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token head d_model"]:
    """What each head of a layer writes about each token when it looks only there."""
    attention = model.blocks[layer].attn
    v = _project(_normed(model, layer, streams), attention.W_V, attention.b_V)
    v = v.repeat_interleave(model.cfg.n_heads // v.shape[1], dim=1)
    return einsum(v, attention.W_O, "token head d_head, head d_head d_model -> token head d_model")
