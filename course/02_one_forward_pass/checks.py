"""Checks of notebook 02, one forward pass by hand."""

from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from mechlab.runs import forward
from mechlab.runs.forward import attention_pattern, gated_mlp, head_outputs, rms_norm
from mechlab_course.checking import close, compare, declare, mistakes_in, only_wrong, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _seen(model, *names: str) -> list[Tensor]:
    """What one run of the model shows at these hooks."""
    _, cache = model.run_with_cache(torch.arange(5, 13)[None], names_filter=list(names))
    return [cache[name][0] for name in names]


def _agree(found: Tensor, expected: Tensor, why: str, tolerance: float = 1e-3) -> None:
    refuse(not close(found, expected, tolerance), why)


class Norms:
    def mean_of_sizes(x, eps):
        """You take the mean of the sizes. It is the root of the mean of the squares."""
        return x / (x.abs().mean(-1, keepdim=True) + eps)

    def one_for_all(x, eps):
        """You take one mean over all positions. Each row has its own: `mean(-1, keepdim=True)`."""
        return x / (x.pow(2).mean() + eps).sqrt()

    def multiplied(x, eps):
        """You multiply by the root. Divide by it."""
        return x * (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def mean_squared(x, eps):
        """You square the mean. Take the mean of the squares."""
        return x / (x.mean(-1, keepdim=True).pow(2) + eps).sqrt()

    def eps_squared(x, eps):
        """You add eps squared. Add eps itself."""
        return rms_norm(x, eps**2)

    def variance(x, eps):
        """You divide by the standard deviation, around the mean. RMS norm takes the squares themselves."""
        return x / (x.var(-1, keepdim=True) + eps).sqrt()

    def layer_norm(x, eps):
        """You subtract the mean: that is LayerNorm. RMS norm only divides."""
        return rms_norm(x - x.mean(-1, keepdim=True), eps)

    def no_root(x, eps):
        """The square root is missing: divide by sqrt(mean of squares + eps)."""
        return x / (x.pow(2).mean(-1, keepdim=True) + eps)

    def sum_of_squares(x, eps):
        """You take the sum of the squares; it must be their mean."""
        return x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt()

    def over_positions(x, eps):
        """You average over the positions. Each token is normalised on its own: the mean runs over the last
        axis."""
        return x / (x.pow(2).mean(0, keepdim=True) + eps).sqrt()

    def eps_outside(x, eps):
        """eps belongs under the square root, added to the mean of the squares."""
        return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps)

    def no_eps(x, eps):
        """eps is not used. It must be added to the mean of the squares."""
        return rms_norm(x, 0.0)

    def fixed_eps(x, eps):
        """eps is an argument: use it, not a fixed number."""
        return rms_norm(x, 1e-5 if eps != 1e-5 else 1e-6)


@checker("02.1")
def check_rms_norm(attempt: Attempt, model) -> str:
    for case in ((random(5, 8) * 3 + 1, 1e-5), (random(4, 8, seed=1) * 0.01, 1e-2)):
        compare(attempt, case, rms_norm, mistakes_in(Norms), "pos d_model", 1e-5)
    x = random(3, model.cfg.d_model)
    same = close(attempt(10 * x, 0.0), attempt(x, 0.0))
    refuse(not same, "With eps = 0 the length of x must not matter: 10 x and x should give the same result.")
    if model.cfg.n_layers > 7 and model.cfg.normalization_type == "RMS":
        resid, normalised = _seen(model, "blocks.7.hook_resid_pre", "blocks.7.ln1.hook_normalized")
        found = attempt(resid, model.cfg.eps)
        _agree(found, normalised, "It does not equal the model's own norm in layer 7.")
    return "Each row has mean square 1, its length does not matter, and layer 7 of the model agrees."


class Patterns:
    def not_scaled(q, k):
        """The scores are not divided by sqrt(d_head); without it the softmax is too sharp."""
        return attention_pattern(q * q.shape[-1] ** 0.5, k)

    def multiplied(q, k):
        """You multiply by sqrt(d_head). Divide by it."""
        return attention_pattern(q * q.shape[-1], k)

    def by_positions(q, k):
        """You divide by the root of the number of positions. It is that of d_head."""
        return attention_pattern(q * (q.shape[-1] / len(q)) ** 0.5, k)

    def keys_ask(q, k):
        """Queries and keys are exchanged: row q holds what query q gives to each key."""
        return attention_pattern(k.repeat_interleave(q.shape[1] // k.shape[1], 1), q)

    def by_d_head(q, k):
        """You divide by d_head; it should be its square root."""
        return attention_pattern(q / q.shape[-1] ** 0.5, k)

    def repeated(q, k):
        """Some heads use the wrong key head: with 4 query and 2 key heads the order is 0 0 1 1
        (repeat_interleave), not 0 1 0 1 (repeat)."""
        return attention_pattern(q, k.repeat(1, q.shape[1] // k.shape[1], 1))


def _odd_pattern(found, q, k) -> str:
    """What is wrong with a pattern, from its sums and from where it is zero."""
    expected, one = attention_pattern(q, k), torch.ones(found.shape[:2])
    if close(found.transpose(1, 2), expected, 1e-5):
        return "The last two axes are swapped: [head, query_pos, key_pos], so that each row sums to 1."
    if found.min() < -1e-6 or found.max() > 1 + 1e-6:
        return "There are shares below 0 or above 1. Is the softmax missing, or something after it?"
    if found.triu(1).abs().max() > 1e-6:
        later = f"Token 0 gives {found[0, 0, 1:].sum():.2g} of its attention to later tokens"
        return f"{later}, which do not exist yet. Write -inf over their scores before the softmax."
    if not close(found.sum(-1), one):
        if close(found.sum(-2), one):
            return "The columns sum to 1, not the rows: the softmax runs over the other axis, `softmax(-1)`."
        return "The rows do not sum to 1. Is the mask applied after the softmax? It belongs before."
    if found.diagonal(dim1=-2, dim2=-1)[:, 1:].abs().max() < 1e-6:
        return "A token may look at itself: hide only positions that come later, `triu(1)`, not `triu(0)`."
    return only_wrong(found, expected)


@checker("02.2")
def check_attention_pattern(attempt: Attempt, model) -> str:
    mistakes, axes = mistakes_in(Patterns), "head query_pos key_pos"
    for heads, kv_heads, seed in ((4, 2, 0), (9, 3, 1), (3, 3, 2)):
        case = random(7, heads, 6, seed=seed) * 2, random(7, kv_heads, 6, seed=seed + 10) * 2
        compare(attempt, case, attention_pattern, mistakes, axes, 1e-5, otherwise=_odd_pattern)
    if "rope_parameters" in vars(model.cfg):
        names = (f"blocks.3.attn.hook_{part}" for part in ("rot_q", "rot_k", "pattern"))
        q, k, pattern = _seen(model, *names)
        _agree(attempt(q, k), pattern, "It does not equal the pattern of layer 3 in the model.")
    return "Rows sum to 1, nothing looks ahead, the groups are right, and layer 3 of the model agrees."


class Heads:
    def no_pattern(pattern, v, W_O):
        """The pattern is not used: each position takes its own value only."""
        return torch.einsum("khd,hdm->khm", v, W_O)

    def mean_pattern(pattern, v, W_O):
        """You average the patterns over the heads. Each head has its own."""
        return head_outputs(pattern.mean(0, keepdim=True).expand_as(pattern), v, W_O)

    def mean_matrix(pattern, v, W_O):
        """You average W_O over the heads. Each head has its own."""
        return head_outputs(pattern, v, W_O.mean(0, keepdim=True).expand_as(W_O))

    def reversed_matrices(pattern, v, W_O):
        """The heads meet the matrices of W_O in reverse order."""
        return head_outputs(pattern, v, W_O.flip(0))

    def transposed(pattern, v, W_O):
        """The pattern is transposed: sum over the positions that are looked at (the last axis)."""
        return head_outputs(pattern.transpose(1, 2), v, W_O)

    def first_value(pattern, v, W_O):
        """Every head takes the values of head 0. Each head has its own."""
        return head_outputs(pattern, v[:, :1].expand_as(v), W_O)

    def first_matrix(pattern, v, W_O):
        """Every head goes through the W_O of head 0. Each head has its own matrix."""
        return head_outputs(pattern, v, W_O[:1].expand_as(W_O))


@checker("02.3")
def check_head_outputs(attempt: Attempt, model) -> str:
    axes = "pos head d_model"
    for heads in (4, 3):
        v, W_O = random(5, heads, 6, seed=1), random(heads, 6, 8, seed=2)
        future = torch.ones(5, 5, dtype=torch.bool).triu(1)
        pattern = (random(heads, 5, 5) * 2).masked_fill(future, -torch.inf).softmax(-1)
        result = attempt(pattern, v, W_O)
        shape = tuple(result.shape) if isinstance(result, Tensor) else None
        refuse(shape == (5, 8), "You have summed over the heads. Keep them apart: [pos, head, d_model].")
        swapped = shape == (heads, 5, 8)
        refuse(swapped, "The axes are [head, pos, d_model]; they should be [pos, head, d_model].")
        compare(attempt, (pattern, v, W_O), head_outputs, mistakes_in(Heads), axes)
    given = torch.zeros(4, 5, 5), random(5, 4, 6), random(4, 6, 8)
    written = attempt.tensor(*given, shape=(5, 4, 8), axes=axes).abs().max()
    refuse(written > 1e-6, "With a pattern of zeros nothing is taken, so nothing may be written.")
    if model.cfg.n_layers > 3:
        names = (f"blocks.3.{part}" for part in ("attn.hook_pattern", "attn.hook_v", "hook_attn_out"))
        pattern, v, written = _seen(model, *names)
        v = v.repeat_interleave(len(pattern) // v.shape[1], dim=1)
        found = attempt(pattern, v, model.W_O[3].detach()).sum(1)
        _agree(found, written, "The sum over your heads does not equal what the attention of layer 3 writes.")
    return "Right values, right matrices, and the sum over heads is what layer 3 of the model writes."


class Gates:
    def wrong_side(x, W_gate, W_in, W_out):
        """silu belongs on the gate, not on the value (W_in)."""
        return gated_mlp(x, W_in, W_gate, W_out)

    def relu(x, W_gate, W_in, W_out):
        """You used relu. This model's gate is silu: x times sigmoid(x)."""
        return ((x @ W_gate).relu() * (x @ W_in)) @ W_out

    def sigmoid(x, W_gate, W_in, W_out):
        """You used sigmoid. silu(x) is x times sigmoid(x)."""
        return ((x @ W_gate).sigmoid() * (x @ W_in)) @ W_out

    def gelu(x, W_gate, W_in, W_out):
        """You used gelu, as in GPT-2. This model's gate is silu."""
        return (gelu(x @ W_gate) * (x @ W_in)) @ W_out

    def tanh(x, W_gate, W_in, W_out):
        """You used tanh. This model's gate is silu: x times sigmoid(x)."""
        return ((x @ W_gate).tanh() * (x @ W_in)) @ W_out

    def softplus(x, W_gate, W_in, W_out):
        """You used softplus. This model's gate is silu: x times sigmoid(x)."""
        return (torch.nn.functional.softplus(x @ W_gate) * (x @ W_in)) @ W_out

    def leaky_relu(x, W_gate, W_in, W_out):
        """You used a leaky relu. This model's gate is silu: x times sigmoid(x)."""
        return (torch.nn.functional.leaky_relu(x @ W_gate) * (x @ W_in)) @ W_out

    def softmax(x, W_gate, W_in, W_out):
        """You used a softmax. Each neuron's gate is by itself: silu."""
        return ((x @ W_gate).softmax(-1) * (x @ W_in)) @ W_out

    def silu_on_the_output(x, W_gate, W_in, W_out):
        """silu belongs on the gate alone, not on what W_out gives."""
        return silu(((x @ W_gate) * (x @ W_in)) @ W_out)

    def no_value(x, W_gate, W_in, W_out):
        """W_in is never used: a neuron is the product of gate and value."""
        return silu(x @ W_gate) @ W_out

    def no_gate(x, W_gate, W_in, W_out):
        """W_gate is never used: a neuron is the product of gate and value."""
        return silu(x @ W_in) @ W_out

    def added(x, W_gate, W_in, W_out):
        """Gate and value are multiplied, not added."""
        return (silu(x @ W_gate) + x @ W_in) @ W_out

    def no_silu(x, W_gate, W_in, W_out):
        """silu is missing on the gate."""
        return ((x @ W_gate) * (x @ W_in)) @ W_out

    def silu_on_both(x, W_gate, W_in, W_out):
        """silu belongs on the gate alone, not on both."""
        return (silu(x @ W_gate) * silu(x @ W_in)) @ W_out

    def silu_on_the_product(x, W_gate, W_in, W_out):
        """silu belongs on the gate alone, not on the product."""
        return silu((x @ W_gate) * (x @ W_in)) @ W_out

    def with_the_stream(x, W_gate, W_in, W_out):
        """Return what the MLP writes, without adding the stream: that happens in the block."""
        return x + gated_mlp(x, W_gate, W_in, W_out)


@checker("02.4")
def check_gated_mlp(attempt: Attempt, model) -> str:
    unknown = "With the same x, silu(x @ W_gate) * (x @ W_in) through W_out gives other numbers."
    for seed in (0, 1):
        shapes = (4, 6), (6, 10), (6, 10), (10, 6)
        case = tuple(random(*shape, seed=seed + n) for n, shape in enumerate(shapes))
        compare(attempt, case, gated_mlp, mistakes_in(Gates), "pos d_model", otherwise=lambda *_: unknown)
    if model.W_gate is not None:
        x, written = _seen(model, "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
        weights = [W[3].detach() for W in (model.W_gate, model.W_in, model.W_out)]
        _agree(attempt(x, *weights), written, "It does not equal what the MLP of layer 3 writes.")
    return "Gate and value in their places, and layer 3 of the model agrees."


_A, _M = random(6, 6, seed=1), random(6, 6, seed=2)
_PARTS = (lambda x: (x @ _A).tanh()), (lambda x: (x @ _M).tanh() * 2), rms_norm


@declare(
    "02.5",
    axes="pos d_model",
    says="Two additions in the right order; with silent parts the stream passes through unchanged.",
)
class Block:
    cases = ((random(4, 6, seed=0) * 3, *_PARTS), (random(4, 6, seed=5) * 3, *_PARTS))

    def right(resid, attention, mlp, norm):
        resid = resid + attention(norm(resid))
        return resid + mlp(norm(resid))

    def same_stream(resid, attention, mlp, norm):
        """The MLP reads the same stream as attention. It must read the stream after attention has added to
        it."""
        return resid + attention(norm(resid)) + mlp(norm(resid))

    def never_added(resid, attention, mlp, norm):
        """What attention and the MLP return is not added to the stream, so the stream is lost."""
        return mlp(norm(attention(norm(resid))))

    def no_norm(resid, attention, mlp, norm):
        """The parts read the stream without the norm."""
        resid = resid + attention(resid)
        return resid + mlp(resid)

    def mlp_without_norm(resid, attention, mlp, norm):
        """The MLP reads the stream without the norm."""
        resid = resid + attention(norm(resid))
        return resid + mlp(resid)

    def added_to_the_copy(resid, attention, mlp, norm):
        """You add to the normalised copy. The norm is for reading; the sum goes into the stream itself."""
        resid = norm(norm(resid) + attention(norm(resid)))
        return resid + mlp(resid)

    def attention_without_norm(resid, attention, mlp, norm):
        """Attention reads the stream without the norm."""
        resid = resid + attention(resid)
        return resid + mlp(norm(resid))

    def mlp_not_added(resid, attention, mlp, norm):
        """What the MLP returns is not added to the stream."""
        return mlp(norm(resid + attention(norm(resid))))

    def second_copy_normed(resid, attention, mlp, norm):
        """In the second step you add to the normalised copy. The norm is for reading only."""
        resid = resid + attention(norm(resid))
        return norm(resid) + mlp(norm(resid))

    def stream_twice(resid, attention, mlp, norm):
        """The stream is in your sum twice: after the first step it is part of the new one."""
        new = resid + attention(norm(resid))
        return resid + new + mlp(norm(new))

    def reads_attention_only(resid, attention, mlp, norm):
        """The MLP reads what attention wrote alone. It reads the whole stream, with that added."""
        written = attention(norm(resid))
        return resid + written + mlp(norm(written))

    def attention_never_added(resid, attention, mlp, norm):
        """What attention has written is never added to the stream."""
        return resid + mlp(norm(attention(norm(resid))))

    def no_mlp(resid, attention, mlp, norm):
        """The MLP is missing: the block has two steps."""
        return resid + attention(norm(resid))

    def attention_lost(resid, attention, mlp, norm):
        """What attention has written is lost: add the MLP's output to the new stream, not to the old
        one."""
        return resid + mlp(norm(resid + attention(norm(resid))))

    def normed_stream(resid, attention, mlp, norm):
        """The norm must not touch the stream itself: it is for reading only."""
        return norm(Block.right(resid, attention, mlp, norm))

    def mlp_first(resid, attention, mlp, norm):
        """The MLP comes before attention."""
        return Block.right(resid, mlp, attention, norm)

    def norm_after(resid, attention, mlp, norm):
        """The norm comes after the part, not before it."""
        resid = resid + norm(attention(resid))
        return resid + norm(mlp(resid))

    def otherwise(found, *case):
        return "Two steps are needed: stream + attention(norm(stream)), then the same with the MLP."

    def further(attempt):
        resid = random(4, 6, seed=5) * 3
        found = attempt(resid, torch.zeros_like, torch.zeros_like, rms_norm)
        silent = "If attention and MLP write nothing, the stream must come out as it went in."
        _agree(found, resid, silent, 1e-4)


@checker("02.6")
def check_sample(attempt: Attempt) -> str:
    for logits in (torch.tensor([2.0, 1.0, 0.0, -1.0, 2.5]), torch.tensor([0.5, 3.0, 2.9, -2.0])):
        _greedy(attempt, logits)
        _shares(attempt, logits)
    first, again, other = (_draw(attempt, logits, 1.0, seed, 40) for seed in (3, 3, 4))
    differ = "Two runs with the same generator seed differ: pass `generator=generator` to torch.multinomial."
    refuse(first != again or first == other, differ)
    shares = "at 0.5, 1 and 2 the shares of 2,500 draws are as they should be"
    return f"Greedy at 0; {shares}; runs can be repeated."


def _draw(attempt: Attempt, logits: Tensor, temperature: float, seed: int, n: int) -> list[int]:
    generator, last = seeded(seed), len(logits) - 1
    drawn = [attempt(logits, temperature, generator) for _ in range(n)]
    for token in drawn:
        kind = type(token)
        whole = isinstance(token, int) and kind is not bool
        refuse(not whole, f"Return an int; you returned a {kind.__name__}. `.item()` makes one of a tensor.")
        refuse(not 0 <= token <= last, f"Token ids go from 0 to {last} here, and you returned {token}.")
    return drawn


def _greedy(attempt: Attempt, logits: Tensor) -> None:
    try:
        drawn = sorted(set(_draw(attempt, logits, 0.0, 0, 50)))
    except NotYet as verdict:
        if not any(sign in str(verdict) for sign in ("inf", "nan", "ZeroDivision")):
            raise
        why = f"At temperature 0 nothing can be divided; take the largest logit. ({verdict})"
        raise NotYet(why) from None
    largest = f"At temperature 0 the answer is the largest logit, token {logits.argmax()}"
    refuse(drawn != [logits.argmax().item()], f"{largest}; you returned {drawn}.")


def _shares(attempt: Attempt, logits: Tensor) -> None:
    """Compare how often each token was drawn with softmax(logits / temperature)."""
    temperatures = (0.5, 1.0, 2.0)
    drawn = [torch.tensor(_draw(attempt, logits, t, 1, 2500)) for t in temperatures]
    shares = torch.stack([torch.bincount(tokens, minlength=len(logits)) / len(tokens) for tokens in drawn])
    expected = torch.stack([(logits / t).softmax(-1) for t in temperatures])
    far = lambda share, p: bool((share - p).abs().max() > 0.04)
    wrong = far(shares, expected)
    mistakes = {
        "Every draw gives the same token. Either you take always the largest logit, also above temperature "
        "0, or the generator is seeded again at each call: draw with the one you are given.": (
            (shares == 1).any(1).all()
        ),
        "You multiply by the temperature; divide by it. Above 1 it must flatten, and yours sharpens.": (
            wrong and not far(shares[2], expected[0])
        ),
        "The temperature changes nothing in yours: divide the logits by it before the softmax.": (
            wrong and not far(shares[2], shares[0])
        ),
    }
    for why, so in mistakes.items():
        refuse(so, why)
    t, token = divmod((shares - expected).abs().argmax().item(), len(logits))
    right, yours = f"{expected[t, token]:.0%}", f"{shares[t, token]:.0%}"
    asked = f"At temperature {temperatures[t]}, token {token} should be drawn {right} of the time"
    refuse(wrong, f"{asked}; yours {yours}.")


def _seeing(ahead: int):
    """An attention pattern whose queries see this many tokens too far."""

    def pattern(q, k):
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        hidden = torch.ones(len(q), len(q), dtype=torch.bool).triu(1 + ahead)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1)

    return {"attention_pattern": pattern}


ROTATE = forward.rotate
CONSTANT = "There a constant is added to all logits of a row. It changes no probability: nothing is broken."
ROUNDING = "There the logits differ by rounding only, by less than 0.001. Allow for that."
# what is wrong, the functions exchanged, what is added to the logits, what is said if nothing is wrong
SUSPECTS = (
    ("nothing", {}, 0.0, "There both passes are the same to the last digit."),
    ("nothing", {}, 3e-4, ROUNDING),
    ("nothing", {}, 7.0, CONSTANT),
    ("norm", {"rms_norm": lambda x, eps=1e-5: rms_norm(x - x.mean(-1, keepdim=True), eps)}, 0.0, ""),
    ("norm", {"rms_norm": lambda x, eps=1e-5: x / x.norm(dim=-1, keepdim=True)}, 0.0, ""),
    ("future", _seeing(100_000), 0.0, ""),
    ("future", _seeing(1), 0.0, ""),
    ("positions", {"rotate": lambda x, theta: x}, 0.0, ""),
    ("positions", {"rotate": lambda x, theta: ROTATE(x, 100.0)}, 0.0, ""),
)
BROKEN = {
    "norm": "There the norm is another. That shows in a text of one token, in which nothing is hidden and "
    "nothing is far: look at one first.",
    "future": "There tokens see later ones. That shows at the first token of a longer text, "
    "which should see only itself.",
    "positions": "There the rotation is wrong. It leaves the first token alone, which sees only itself; "
    "later ones change. Seeing later tokens would change the first.",
}


def _short(model, wrong: dict, shift: float):
    """The first four layers by hand, with some functions exchanged: from token ids to logits."""

    def run(tokens):
        tokens = torch.as_tensor(tokens).flatten()
        with patch.multiple(forward, **{"rotate": ROTATE, **wrong}), torch.no_grad():
            resid = model.W_E[tokens]
            for layer in range(min(4, model.cfg.n_layers)):
                resid = forward.block(model, layer, resid)
            logits = forward.rms_norm(resid, model.cfg.eps) @ model.W_U
        noise = random(*logits.shape) / 4 if shift < 0.1 else torch.ones(len(tokens), 1)
        return logits + shift * noise

    return run


@checker("02.7")
def check_diagnose(attempt: Attempt, model) -> str:
    right = _short(model, {}, 0.0)
    for truth, wrong, shift, why in SUSPECTS:
        found = attempt(_short(model, wrong, shift), right)
        words = ("future", "positions", "norm", "nothing")
        known = isinstance(found, str) and found in words
        told = f"Return one of the four words {', '.join(words)}; you returned {str(found)[:40]!r}."
        refuse(not known, told)
        refuse(found != truth, f'Yours says "{found}". {why or BROKEN[truth]}')
    return "Nine passes, each told right: three times nothing, twice each of future, positions and norm."
