"""Checks of notebook 02, one forward pass by hand."""

import torch

from mechlab.runs import forward
from mechlab_course.checking import close, is_like, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("02.1")
def check_rms_norm(attempt: Attempt, model) -> str:
    for x, eps in ((random(5, 8) * 3 + 1, 1e-5), (random(4, 8, seed=1) * 0.01, 1e-2)):
        found = attempt.tensor(x, eps, shape=tuple(x.shape), axes="pos d_model")
        mean = x.mean(-1, keepdim=True)
        square = x.pow(2).mean(-1, keepdim=True)
        mistakes = {
            "You subtract the mean: that is LayerNorm. RMS norm only divides.": forward.rms_norm(
                x - mean, eps
            ),
            "The square root is missing: divide by sqrt(mean of squares + eps).": x / (square + eps),
            "You take the sum of the squares; it must be their mean.": x
            / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt(),
            "You average over the positions. Each token is normalised on its own: the mean runs over the last axis.": x
            / (x.pow(2).mean(0, keepdim=True) + eps).sqrt(),
            "eps belongs under the square root, added to the mean of the squares.": x / (square.sqrt() + eps),
            "eps is not used. It must be added to the mean of the squares.": x / square.sqrt(),
            "eps is an argument: use it, not a fixed number.": forward.rms_norm(
                x, 1e-5 if eps != 1e-5 else 1e-6
            ),
        }
        expected = forward.rms_norm(x, eps)
        if not close(found, expected, 1e-5):
            is_like(found, mistakes, 1e-5)
            raise NotYet(only_wrong(found, expected))
    x = random(3, model.cfg.d_model)
    doubled, once = attempt(10 * x, 0.0), attempt(x, 0.0)
    if not close(doubled, once):
        raise NotYet("With eps = 0 the length of x must not matter: 10 x and x should give the same result.")
    names = ["blocks.7.hook_resid_pre", "blocks.7.ln1.hook_normalized"]
    if model.cfg.n_layers > 7 and model.cfg.normalization_type == "RMS":
        _, cache = model.run_with_cache(torch.arange(5, 11)[None], names_filter=names)
        if not close(attempt(cache[names[0]][0], model.cfg.eps), cache[names[1]][0], 1e-3):
            raise NotYet("It does not equal the model's own norm in layer 7.")
    return "Each row has mean square 1, its length does not matter, and layer 7 of the model agrees."


@checker("02.2")
def check_attention_pattern(attempt: Attempt, model) -> str:
    for heads, kv_heads, seed in ((4, 2, 0), (9, 3, 1), (3, 3, 2)):
        q, k = random(7, heads, 6, seed=seed) * 2, random(7, kv_heads, 6, seed=seed + 10) * 2
        found = attempt.tensor(q, k, shape=(heads, 7, 7), axes="head query_pos key_pos")
        expected = forward.attention_pattern(q, k)
        if close(found, expected, 1e-5):
            continue
        if close(found.transpose(1, 2), expected, 1e-5):
            raise NotYet(
                "The last two axes are swapped: [head, query_pos, key_pos], so that each row sums to 1."
            )
        if found.min() < -1e-6 or found.max() > 1 + 1e-6:
            raise NotYet(
                "There are shares below 0 or above 1. Is the softmax missing, or something after it?"
            )
        if found.triu(1).abs().max() > 1e-6:
            raise NotYet(
                f"Token 0 gives {found[0, 0, 1:].sum():.2g} of its attention to later tokens, which do not exist yet. "
                "Write -inf over their scores before the softmax."
            )
        if not close(found.sum(-1), torch.ones(heads, 7), 1e-4):
            if close(found.sum(-2), torch.ones(heads, 7), 1e-4):
                raise NotYet(
                    "The columns sum to 1, not the rows: the softmax runs over the other axis, `softmax(-1)`."
                )
            raise NotYet(
                "The rows do not sum to 1. Is the mask applied after the softmax? It belongs before."
            )
        spread = k.repeat(1, heads // kv_heads, 1)
        unscaled = forward.attention_pattern(q * 6**0.5, k)
        mistakes = {
            "The scores are not divided by sqrt(d_head); without it the softmax is too sharp.": unscaled,
            "You divide by d_head; it should be its square root.": forward.attention_pattern(q / 6**0.5, k),
            "Some heads use the wrong key head: with 4 query and 2 key heads the order is 0 0 1 1 (repeat_interleave), not 0 1 0 1 (repeat).": forward.attention_pattern(
                q, spread
            ),
        }
        is_like(found, mistakes, 1e-5)
        if found.diagonal(dim1=-2, dim2=-1)[:, 1:].abs().max() < 1e-6:
            raise NotYet(
                "A token may look at itself: hide only positions that come later, `triu(1)`, not `triu(0)`."
            )
        raise NotYet(only_wrong(found, expected))
    if "rope_parameters" in vars(model.cfg):
        names = [f"blocks.3.attn.hook_{part}" for part in ("rot_q", "rot_k", "pattern")]
        _, cache = model.run_with_cache(torch.arange(5, 13)[None], names_filter=names)
        if not close(attempt(cache[names[0]][0], cache[names[1]][0]), cache[names[2]][0], 1e-3):
            raise NotYet("It does not equal the pattern of layer 3 in the model.")
    return "Rows sum to 1, nothing looks ahead, the groups are right, and layer 3 of the model agrees."


@checker("02.3")
def check_head_outputs(attempt: Attempt, model) -> str:
    for heads, kv_heads in ((4, 2), (3, 3)):
        pattern = (
            (random(heads, 5, 5) * 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
        )
        v, W_O = random(5, kv_heads, 6, seed=1), random(heads, 6, 8, seed=2)
        result = attempt(pattern, v, W_O)
        if isinstance(result, torch.Tensor) and tuple(result.shape) == (5, 8):
            raise NotYet("You have summed over the heads. Keep them apart: [pos, head, d_model].")
        if isinstance(result, torch.Tensor) and tuple(result.shape) == (heads, 5, 8):
            raise NotYet("The axes are [head, pos, d_model]; they should be [pos, head, d_model].")
        found = attempt.tensor(pattern, v, W_O, shape=(5, heads, 8), axes="pos head d_model")
        mistakes = {
            "The pattern is transposed: sum over the positions that are looked at (the last axis).": forward.head_outputs(
                pattern.transpose(1, 2), v, W_O
            ),
            "Some heads use the wrong value head: the order is 0 0 1 1 (repeat_interleave), not 0 1 0 1 (repeat).": forward.head_outputs(
                pattern, v.repeat(1, heads // kv_heads, 1), W_O
            ),
            "Every head goes through the W_O of head 0. Each head has its own matrix.": forward.head_outputs(
                pattern, v, W_O[:1].expand_as(W_O)
            ),
        }
        if not close(found, forward.head_outputs(pattern, v, W_O)):
            is_like(found, mistakes)
            raise NotYet(only_wrong(found, forward.head_outputs(pattern, v, W_O)))
    given = (torch.zeros(4, 5, 5), random(5, 2, 6), random(4, 6, 8))
    nowhere = attempt.tensor(*given, shape=(5, 4, 8), axes="pos head d_model")
    if nowhere.abs().max() > 1e-6:
        raise NotYet("With a pattern of zeros nothing is taken, so nothing may be written.")
    if model.cfg.n_layers > 3:
        _, cache = model.run_with_cache(torch.arange(5, 13)[None])
        written = attempt(cache["pattern", 3][0], cache["v", 3][0], model.W_O[3].detach()).sum(1)
        if not close(written, cache["attn_out", 3][0], 1e-3):
            raise NotYet("The sum over your heads does not equal what the attention of layer 3 writes.")
    return "Right values, right matrices, and the sum over heads is what layer 3 of the model writes."


@checker("02.4")
def check_gated_mlp(attempt: Attempt, model) -> str:
    silu = torch.nn.functional.silu
    for seed in (0, 1):
        x = random(4, 6, seed=seed)
        W_gate, W_in, W_out = (
            random(6, 10, seed=seed + 1),
            random(6, 10, seed=seed + 2),
            random(10, 6, seed=seed + 3),
        )
        found = attempt.tensor(x, W_gate, W_in, W_out, shape=(4, 6), axes="pos d_model")
        gate, value = x @ W_gate, x @ W_in
        mistakes = {
            "silu belongs on the gate, not on the value (W_in).": (gate * silu(value)) @ W_out,
            "You used relu. This model's gate is silu: x times sigmoid(x).": (gate.relu() * value) @ W_out,
            "You used sigmoid. silu(x) is x times sigmoid(x).": (gate.sigmoid() * value) @ W_out,
            "You used gelu, as in GPT-2. This model's gate is silu.": (torch.nn.functional.gelu(gate) * value)
            @ W_out,
            "W_in is never used: a neuron is the product of gate and value.": silu(gate) @ W_out,
            "W_gate is never used: a neuron is the product of gate and value.": silu(value) @ W_out,
            "Gate and value are multiplied, not added.": (silu(gate) + value) @ W_out,
            "silu is missing on the gate.": (gate * value) @ W_out,
            "silu belongs on the gate alone, not on both.": (silu(gate) * silu(value)) @ W_out,
            "silu belongs on the gate alone, not on the product.": silu(gate * value) @ W_out,
            "Return what the MLP writes, without adding the stream: that happens in the block.": x
            + (silu(gate) * value) @ W_out,
        }
        if not close(found, forward.gated_mlp(x, W_gate, W_in, W_out)):
            is_like(found, mistakes)
            raise NotYet("With the same x, silu(x @ W_gate) * (x @ W_in) through W_out gives other numbers.")
    if model.W_gate is not None:
        names = ["blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"]
        _, cache = model.run_with_cache(torch.arange(5, 13)[None], names_filter=names)
        weights = [W[3].detach() for W in (model.W_gate, model.W_in, model.W_out)]
        if not close(attempt(cache[names[0]][0], *weights), cache[names[1]][0], 1e-3):
            raise NotYet("It does not equal what the MLP of layer 3 writes.")
    return "Gate and value in their places, and layer 3 of the model agrees."


@checker("02.5")
def check_block(attempt: Attempt) -> str:
    A, M = random(6, 6, seed=1), random(6, 6, seed=2)
    attention, mlp, norm = (lambda x: (x @ A).tanh()), (lambda x: (x @ M).tanh() * 2), forward.rms_norm
    for seed in (0, 5):
        resid = random(4, 6, seed=seed) * 3
        found = attempt.tensor(resid, attention, mlp, norm, shape=(4, 6), axes="pos d_model")
        middle = resid + attention(norm(resid))
        wrong = norm(resid) + attention(norm(resid))
        mistakes = {
            "The MLP reads the same stream as attention. It must read the stream after attention has added to it.": middle
            + mlp(norm(resid)),
            "What attention and the MLP return is not added to the stream, so the stream is lost.": mlp(
                norm(attention(norm(resid)))
            ),
            "The parts read the stream without the norm.": resid
            + attention(resid)
            + mlp(resid + attention(resid)),
            "The MLP reads the stream without the norm.": middle + mlp(middle),
            "You add to the normalised copy. The norm is for reading; the sum goes into the stream itself.": norm(
                wrong
            )
            + mlp(norm(wrong)),
            "Attention reads the stream without the norm.": (resid + attention(resid))
            + mlp(norm(resid + attention(resid))),
            "What the MLP returns is not added to the stream.": mlp(norm(middle)),
            "The MLP is missing: the block has two steps.": middle,
            "What attention has written is lost: add the MLP's output to the new stream, not to the old one.": resid
            + mlp(norm(middle)),
            "The norm must not touch the stream itself: it is for reading only.": norm(
                middle + mlp(norm(middle))
            ),
            "The MLP comes before attention.": (resid + mlp(norm(resid)))
            + attention(norm(resid + mlp(norm(resid)))),
            "The norm comes after the part, not before it.": resid
            + norm(attention(resid))
            + norm(mlp(resid + norm(attention(resid)))),
        }
        if not close(found, middle + mlp(norm(middle))):
            is_like(found, mistakes)
            raise NotYet(
                "Two steps are needed: stream + attention(norm(stream)), then the same with the MLP."
            )
    silent = attempt(resid, torch.zeros_like, torch.zeros_like, norm)
    if not close(silent, resid):
        raise NotYet("If attention and MLP write nothing, the stream must come out as it went in.")
    return "Two additions in the right order; with silent parts the stream passes through unchanged."


@checker("02.6")
def check_sample(attempt: Attempt) -> str:
    def draw(logits, temperature: float, seed: int, n: int) -> list[int]:
        generator = seeded(seed)
        drawn = [attempt(logits, temperature, generator) for _ in range(n)]
        for token in drawn:
            if isinstance(token, bool) or not isinstance(token, int):
                raise NotYet(
                    f"Return an int; you returned a {type(token).__name__}. `.item()` makes one of a tensor."
                )
            if not 0 <= token < len(logits):
                raise NotYet(f"Token ids go from 0 to {len(logits) - 1} here, and you returned {token}.")
        return drawn

    for logits in (torch.tensor([2.0, 1.0, 0.0, -1.0, 2.5]), torch.tensor([0.5, 3.0, 2.9, -2.0])):
        best = logits.argmax().item()
        try:
            greedy = draw(logits, 0.0, 0, 50)
        except NotYet as verdict:
            if not any(sign in str(verdict) for sign in ("inf", "nan", "ZeroDivision")):
                raise
            raise NotYet(
                f"At temperature 0 nothing can be divided; take the largest logit. ({verdict})"
            ) from None
        if set(greedy) != {best}:
            raise NotYet(
                f"At temperature 0 the answer is the largest logit, token {best}; you returned {sorted(set(greedy))}."
            )
        _check_shares(lambda t, logits=logits: draw(logits, t, 1, 2500), logits)
    again = [draw(logits, 1.0, seed, 40) for seed in (3, 3, 4)]
    if again[0] != again[1] or again[0] == again[2]:
        raise NotYet(
            "Two runs with the same generator seed differ: pass `generator=generator` to torch.multinomial."
        )
    return (
        "Greedy at 0; at 0.5, 1 and 2 the shares of 2,500 draws are as they should be; runs can be repeated."
    )


def _check_shares(draw, logits) -> None:
    """Compare how often each token was drawn with softmax(logits / temperature)."""
    n = len(logits)
    drawn = {t: torch.tensor(draw(t)) for t in (0.5, 1.0, 2.0)}
    shares = {t: torch.bincount(tokens, minlength=n) / len(tokens) for t, tokens in drawn.items()}
    expected = {t: (logits / t).softmax(-1) for t in shares}
    far = lambda share, p: (share - p).abs().max().item() > 0.04
    if all(share.max() == 1 for share in shares.values()):
        raise NotYet(
            "Every draw gives the same token. Either you take always the largest logit, also above temperature 0, or the "
            "generator is seeded again at each call: draw with the one you are given."
        )
    if not any(far(shares[t], expected[t]) for t in shares):
        return
    if not far(shares[2.0], expected[0.5]):
        raise NotYet(
            "You multiply by the temperature; divide by it. Above 1 it must flatten, and yours sharpens."
        )
    if not far(shares[2.0], shares[0.5]):
        raise NotYet("The temperature changes nothing in yours: divide the logits by it before the softmax.")
    worst = max(shares, key=lambda t: (shares[t] - expected[t]).abs().max())
    token = (shares[worst] - expected[worst]).abs().argmax()
    raise NotYet(
        f"At temperature {worst}, token {token} should be drawn {expected[worst][token]:.0%} of the time; "
        f"yours {shares[worst][token]:.0%}."
    )
