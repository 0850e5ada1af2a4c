"""Attention patterns: who looks where, and what a head does with what it sees.

Scores of a head's *pattern* (where it looks) on texts, and of its *weights*: the OV circuit (what it writes
about a token that it looks at) and the QK circuit (which key suits a query). Every query head has its own
pattern, also where several share one key/value head. Elhage et al. 2021; Olsson et al. 2022. Looking is not
using: ablate before you believe.
"""

from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import at_least, check_head, layer_of, one_of
from mechlab.attribution.readout import close, norm_behind, wide
from mechlab.results import Scores
from mechlab.runs.caching import only
from mechlab.runs.hooks import intervene
from mechlab.runs.rotary import rotate, turn_of
from mechlab.tokens import Prompts, batch_of, check_context, first_tokens

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
    """Random tokens, said twice: [batch, 2 * length], and one more before, the model's first token.

    Models whose tokenizer adds no first token (Qwen, Pythia, Bloom) get none. Nothing but the repetition
    helps to predict the second half. Special tokens are not drawn. Raises a `PromptError` beyond the context.
    """
    at_least("length", length, 1)
    at_least("batch", batch, 1)
    check_context(model, first_tokens(model) + 2 * length, "Text of this length, said twice,")
    generator = torch.Generator().manual_seed(seed)
    special = set(model.tokenizer.all_special_ids)
    known = range(min(model.cfg.d_vocab, len(model.tokenizer)))
    allowed = torch.tensor([i for i in known if i not in special])
    half = allowed[torch.randint(len(allowed), (batch, length), generator=generator)]
    first = model.to_tokens("").cpu()[:, : first_tokens(model)].expand(batch, -1)
    return torch.cat([first.long(), half, half], dim=1).to(model.cfg.device)


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
def head_scores(model: "TransformerBridge", base: Prompts, kind: str) -> Scores:
    """How much of its attention each head gives to the places of one kind, from 0 to 1.

    dims ("layer", "head"). Averaged over the positions that have such a place (an earlier copy, say), then
    over texts; padding has no say. Kinds: "previous token", "duplicate token", "induction" (Olsson et al.
    call it prefix matching), "sink": position 0, whether the model's first token stands there or a word, as
    in models whose tokenizer adds none. TransformerLens' `detect_head` divides by all positions instead, also
    those that have no such place.
    """
    batch = batch_of(model, base)
    count = batch.tokens.shape[1]
    own = torch.arange(count, device=batch.ends.device) <= batch.ends[:, None]
    mask = looked_for(batch.tokens, kind) & own[:, :, None]
    has = mask.any(-1)
    if not has.any(-1).all():
        raise ValueError(
            f"A text has no place for {kind!r}: no token of it comes back. Give texts that repeat something."
        )
    found = torch.zeros(len(batch), model.cfg.n_layers, model.cfg.n_heads)

    def score(pattern: Float[Tensor, "batch head query_pos key_pos"], hook) -> None:
        mass = (wide(pattern) * mask[:, None]).sum(-1)  # [batch, head, query]
        mean = (mass * has[:, None]).sum(-1) / has.sum(-1)[:, None]
        found[:, layer_of(hook.name)] = mean.float().cpu()

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    with intervene(model, [(name, score) for name in names]):
        model(batch.tokens, stop_at_layer=model.cfg.n_layers)
    return Scores.over_prompts(found, ("layer", "head"), f"{kind} score (share of attention)", signed=False)


def copying_scores(
    model: "TransformerBridge", tokens: Int[Tensor, "token"], *, k: int = 5, against: bool = False
) -> Scores:
    """OV circuit: which tokens would each head raise among its k likeliest, if it looked only there?

    The share of `tokens`. against: among its k unlikeliest instead: a head that writes against what it sees.

    Each token's stream after the first layer goes through the head's W_V and W_O, the norm behind attention
    (Gemma 2, OLMo 2), the last norm and the unembedding (Wang et al. 2022, section 3). The token stands in a
    text of its own: behind the model's first token, or alone where the tokenizer adds none. 1: the head
    copies what it sees. Chance is k / d_vocab. dims ("layer", "head").
    """
    return both_copying_scores(model, tokens, k=k)[against]


@torch.no_grad()
def both_copying_scores(
    model: "TransformerBridge", tokens: Int[Tensor, "token"], *, k: int = 5
) -> tuple[Scores, Scores]:
    """`copying_scores` for and against, out of one pass: the unembedding is what takes the time."""
    at_least("k", k, 1)
    tokens = _some(model, tokens)
    streams, found = _alone(model, tokens), torch.zeros(2, model.cfg.n_layers, model.cfg.n_heads)
    rows, W_U, b_U = torch.arange(len(tokens), device=tokens.device), wide(model.W_U), wide(model.b_U)
    for layer in range(model.cfg.n_layers):
        written = model.ln_final(_written(model, layer, streams).transpose(0, 1))
        for head, of_head in enumerate(written):
            product = wide(of_head) @ W_U
            for turned, logits in enumerate((b_U + product, b_U - product)):
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
    distance: how many positions apart query and key are, for rotary positions; each layer turns them in its
        own way. Positions that are not rotary say nothing about which of several equally distant keys suits
        best.
    1: matches like with like; chance is 1 / number of tokens. Norms on queries and keys (Qwen 3, Gemma 3,
    OLMo 2) are gone through. dims ("layer", "head"). Elhage et al. 2021.
    """
    at_least("distance", distance, 0)
    tokens = _some(model, tokens)
    streams, first = _alone(model, tokens), 0
    keys = streams
    if through is not None:
        layer, head = check_head(model, through)
        keys, first = _written(model, layer, streams)[:, head], layer + 1
    found = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    _require_fit(model, tokens)
    for layer in range(first, model.cfg.n_layers):
        q, k = _query(model, layer, streams, distance), _key(model, layer, keys)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        fit = einsum(q, k, "query head d_head, key head d_head -> head query key")
        found[layer] = (fit.argmax(-1) == torch.arange(len(tokens), device=fit.device)).float().mean(-1).cpu()
    return Scores(found, ("layer", "head"), "matching score (share of tokens)", signed=False)


@torch.no_grad()
def in_context_learning_score(
    model: "TransformerBridge", texts: Prompts, *, early: int = 50, late: int = 500
) -> Float[Tensor, "batch"]:
    """Loss at token `late` minus loss at token `early`, in nats; negative: later tokens are easier.

    Tokens are counted from 0, with the model's first token where there is one. Olsson et al. 2022 define it
    with tokens 50 and 500 and find about −0.4 once induction heads are there.
    """
    batch = batch_of(model, texts)
    shortest = min(batch.lengths)
    if not 1 <= early < late < shortest:
        raise ValueError(
            f"early and late are {early} and {late}; texts have tokens 1 to {shortest - 1} to predict."
        )
    logits = model(batch.tokens)

    def loss(token: int) -> Float[Tensor, "batch"]:
        log_probs = wide(logits[:, token - 1]).log_softmax(-1)
        return -log_probs.gather(-1, batch.tokens[:, token, None])[:, 0]

    return loss(late) - loss(early)


def _some(model: "TransformerBridge", tokens: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
    """Tokens that the model has, on its device."""
    return batch_of(model, tokens[:, None], what="tokens").tokens[:, 0]


def _alone(model: "TransformerBridge", tokens: Int[Tensor, "token"]) -> Float[Tensor, "token d_model"]:
    """Each token's stream after the first layer, in its own text: behind the model's first token, if any.

    A model whose queries, keys and values are not what its matrices say is refused.
    """
    first = model.to_tokens("")[:, : first_tokens(model)].expand(len(tokens), -1)
    texts, ends = torch.cat([first.to(tokens), tokens[:, None]], dim=1), ("q", "k", "v")
    names = [
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_resid_post",
        *(f"blocks.0.attn.hook_{x}" for x in ends),
    ]
    _, cache = model.run_with_cache(texts, names_filter=lambda name: name in names, stop_at_layer=1)
    start = cache[names[0]][:, -1]
    for letter in ends:
        ours, theirs = _project(model, 0, start, letter), cache[f"blocks.0.attn.hook_{letter}"][:, -1]
        if not close(ours.flatten(1), theirs.flatten(1), model):
            raise ValueError(
                f"What attention computes as {letter} in layer 0 is not the stream through its norm and "
                f"W_{letter.upper()}: this architecture does something else that is not known here."
            )
    return cache[names[1]][:, -1]


def _normed(
    model: "TransformerBridge", layer: int, streams: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token d_model"]:
    """What attention reads of the stream; some models (OLMo 2) have no norm before it."""
    norm = norm_behind(model, layer, "ln1")
    return streams if norm is None else norm(streams[None])[0]


def _project(
    model: "TransformerBridge", layer: int, streams: Float[Tensor, "token d_model"], letter: str
) -> Float[Tensor, "token head d_head"]:
    """Queries ("q"), keys ("k") or values ("v") of some streams."""
    attention = model.blocks[layer].attn
    weight, bias = getattr(attention, f"W_{letter.upper()}"), getattr(attention, f"b_{letter.upper()}", None)
    x = wide(_normed(model, layer, streams))
    found = einsum(x, wide(weight), "token d_model, head d_model d_head -> token head d_head")
    return found if bias is None else found + wide(bias)


def _head_normed(
    model: "TransformerBridge", layer: int, x: Float[Tensor, "token head d_head"], name: str
) -> Float[Tensor, "token head d_head"]:
    """Queries or keys after the norm that some models have on them: one for each head, or over all heads."""
    norm: Any = getattr(model.blocks[layer].attn, name, None)
    if not isinstance(norm, torch.nn.Module):
        return x
    like = model.W_E.dtype
    if not isinstance(getattr(norm, "weight", None), Tensor):
        raise ValueError(
            f"This model has a norm on its queries and keys ({type(norm).__name__}) that is not known here."
        )
    over_all = norm.weight.numel() == x.shape[1] * x.shape[2] and x.shape[1] > 1
    return wide(norm(x.to(like).flatten(1)[None])[0].view_as(x) if over_all else norm(x.to(like)))


def _query(
    model: "TransformerBridge", layer: int, streams: Float[Tensor, "token d_model"], distance: int = 0
) -> Float[Tensor, "token head d_head"]:
    """Queries that stand `distance` positions behind their keys."""
    q = _head_normed(model, layer, _project(model, layer, streams, "q"), "q_norm")
    turn = turn_of(model, distance + 1, layer) if distance else None
    if distance and turn is None and model.cfg.positional_embedding_type == "rotary":
        raise ValueError(
            "This model turns queries and keys by their positions, and does not show how: only distance=0 "
            "can be answered."
        )
    return q if turn is None else rotate(q, turn, slice(distance, None))


def _require_fit(model: "TransformerBridge", tokens: Int[Tensor, "token"]) -> None:
    """Refuse a model whose attention on a short text is not what its queries and keys give here."""
    if model.cfg.positional_embedding_type == "alibi":  # adds what depends on the distance alone
        return
    text, cap = tokens.repeat(4)[None, :4], getattr(model.cfg, "attn_scores_soft_cap", None) or 0
    hooks = only("hook_resid_pre", "attn.hook_attn_scores", "attn.hook_pattern")
    _, cache = model.run_with_cache(text, names_filter=hooks, stop_at_layer=model.cfg.n_layers)
    for layer in range(model.cfg.n_layers):
        at = f"blocks.{layer}"
        stream, pattern = cache[f"{at}.hook_resid_pre"][0], cache[f"{at}.attn.hook_pattern"][0]
        seen = wide(pattern)[:, -1].log()  # [head, key], of the last query; -inf where a window hides a key
        if cap > 0:
            scores = wide(cache[f"{at}.attn.hook_attn_scores"][0, :, -1])
            uncapped = cap * torch.atanh((scores / cap).clamp(-0.9999, 0.9999))
            seen = torch.where(seen.isfinite(), uncapped, seen)
        q = torch.cat([_query(model, layer, stream[-1:], 3 - place) for place in range(4)])
        k = _key(model, layer, stream)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        ours, seen = (_centred(x, seen.isfinite()) for x in ((q * k).sum(-1).T, seen))
        times = (ours * seen).sum() / ours.pow(2).sum().clamp_min(1e-12)
        if not close((times * ours).flatten()[None], seen.flatten()[None], model):
            raise ValueError(
                f"Attention of layer {layer} is not what its queries and keys give here: the model turns "
                "them by their positions, or does something else, in a way that is not known here."
            )


def _centred(x: Float[Tensor, "head key"], shown: Bool[Tensor, "head key"]) -> Float[Tensor, "head key"]:
    """x less its mean over the keys that are shown; 0 for others."""
    x = torch.where(shown, x, 0)
    return torch.where(shown, x - x.sum(-1, keepdim=True) / shown.sum(-1, keepdim=True), 0)


def _key(
    model: "TransformerBridge", layer: int, streams: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token head d_head"]:
    return _head_normed(model, layer, _project(model, layer, streams, "k"), "k_norm")


def _written(
    model: "TransformerBridge", layer: int, streams: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token head d_model"]:
    """What each head of a layer writes about each token when it looks only there."""
    v, attention = _project(model, layer, streams, "v"), model.blocks[layer].attn
    v = v.repeat_interleave(model.cfg.n_heads // v.shape[1], dim=1)
    written = einsum(v, wide(attention.W_O), "token head d_head, head d_head d_model -> token head d_model")
    norm = norm_behind(model, layer, "ln1_post")
    return (written if norm is None else norm(written)).to(streams)
