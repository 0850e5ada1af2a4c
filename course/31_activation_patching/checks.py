"""Checks of notebook 31, activation patching and causal tracing."""

from functools import partial

import torch
from torch import Tensor

import mechlab as ml
from mechlab.runs.hooks import intervene, replace_with
from mechlab_course.checking import close, declare, must_equal, only_wrong, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _runs(kind: str, layer: int, head: int, seed: int):
    base, source = torch.randint(5, 60, (2, 3, 6 + seed), generator=seeded(seed))
    source[2] = base[2]  # one prompt is the same in both: there a patch must change nothing
    return ml.tiny(kind), base, source, layer, head


@torch.no_grad()
def _logits(model, tokens) -> Tensor:
    model.reset_hooks()  # an answer may have left some
    return model(tokens)


@torch.no_grad()
def _patched(model, base, source, layer, head, positions=None) -> Tensor:
    """The run on base with a head (None: all heads) of the run on source (None: zeros)."""
    model.reset_hooks()
    name = f"blocks.{layer}.attn.hook_z"
    value = torch.zeros(*base.shape, model.cfg.n_heads, model.cfg.d_head)
    if source is not None:
        value = model.run_with_cache(source, names_filter=name)[1][name]
    with intervene(model, replace_with(name, value, positions=positions, head=head)):
        return model(base)


@declare(
    "31.1",
    axes="prompt, pos, d_vocab",
    says="One head, all positions, on three models; a prompt into itself changes nothing, and no hook is "
    "left.",
)
class PatchedRun:
    def cases():
        return _runs("gqa", 1, 2, 0), _runs("gpt2", 0, 1, 1), _runs("gqa", 0, 3, 2)

    def right(model, base, source, layer, head):
        return _patched(model, base, source, layer, head)

    def nothing(model, base, source, layer, head):
        """These are the logits of the run on base, unchanged. Is the cache that of source, and the changed
        copy returned?"""
        return _logits(model, base)

    def run_on_source(model, base, source, layer, head):
        """These are the logits of the run on source. The model must read `base`."""
        return _logits(model, source)

    def exchanged(model, base, source, layer, head):
        """base and source are exchanged: the model reads `base`, the cache comes from `source`."""
        return _patched(model, source, base, layer, head)

    def all_heads(model, base, source, layer, head):
        """All heads of the layer are replaced. Only the one that is named should be."""
        return _patched(model, base, source, layer, None)

    def last_position(model, base, source, layer, head):
        """You patched only at the last position. Patch all positions."""
        return _patched(model, base, source, layer, head, [base.shape[1] - 1])

    def all_but_the_last(model, base, source, layer, head):
        """You patched every position but the last."""
        return _patched(model, base, source, layer, head, list(range(base.shape[1] - 1)))

    def first_prompt(model, base, source, layer, head):
        """You patched only the first prompt. Patch all of them."""
        return torch.cat([_patched(model, base, source, layer, head)[:1], _logits(model, base)[1:]])

    def zero(model, base, source, layer, head):
        """The activation is set to zero. Take it from the run on source."""
        return _patched(model, base, None, layer, head)

    def otherwise(found, model, base, source, layer, head):
        for n in range(model.cfg.n_heads):
            if n != head and close(found, _patched(model, base, source, layer, n)):
                return f"That is head {n}, not head {head}."
        for n in range(model.cfg.n_layers):
            if n != layer and close(found, _patched(model, base, source, n, head)):
                return f"That is layer {n}, not layer {layer}."
        return only_wrong(found, _patched(model, base, source, layer, head))

    def further(attempt):
        model, base, *given = _runs("gqa", 1, 2, 0)
        hooks = lambda: sum(len(point.fwd_hooks) for point in model.hook_dict.values())
        before, plain = hooks(), _logits(model, base)
        attempt(model, base, *given)
        refuse(
            hooks() != before or not close(_logits(model, base), plain),
            "Your hook is still on the model after the function returns, and would change every later run. "
            "Use `with ml.intervene(...)` or `with model.hooks(...)`.",
        )


@checker("31.2")
def check_share(attempt: Attempt) -> str:
    cases = (5, 3.0, 0.3, 0), (4, -8.0, 1.0, 4), (16, -2.0, -0.4, 1), (3, 6.0, 1.3, 2), (9, 0.4, 0.6, 3)
    for n, shift, moved, seed in cases:
        base, source = random(n, seed=seed), random(n, seed=seed + 10) + shift
        patched = base + moved * shift + 0.2 * random(n, seed=seed + 20)
        source[0] = base[0] + 0.01  # a prompt whose two runs nearly agree
        _share_is_right(attempt, patched, base, source)
    _share_is_right_for_close_runs(attempt)
    ends = [-4.0, -5.0], [5.0, 4.0]
    nothing, everything = (_share(attempt, end, *ends) for end in ends)
    why = f"Nothing done must give 0 and everything 1; yours gives {nothing:.2f} and {everything:.2f}."
    refuse(abs(nothing) > 1e-5 or abs(everything - 1) > 1e-5, why)
    return "0 for nothing, 1 for everything, below 0 and above 1 where it belongs, and never NaN."


def _share(attempt: Attempt, *runs, when_nan="Your share is not a number (NaN) or infinite.") -> float:
    try:
        value = float(attempt(*map(torch.as_tensor, runs)))
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("Return one number: the share over all prompts.") from None
    refuse(value != value or abs(value) == float("inf"), when_nan)
    return value


def _share_is_right(attempt: Attempt, patched, base, source) -> None:
    change, whole = patched - base, source - base
    found, share = torch.tensor(_share(attempt, patched, base, source)), change.mean() / whole.mean()
    sizes = change.abs().mean() / whole.abs().mean()
    told = {
        "That is the mean of the ratios. A prompt whose two runs nearly agree rules it. Take the means "
        "first, then one ratio.": (change / whole).mean(),
        "Your scale starts from source: 0 must be base (the patch did nothing), 1 source.": 1 - share,
        "base is missing in the denominator: the whole way is source − base.": change.mean() / source.mean(),
        "base is missing in the numerator: the way gone is patched − base.": patched.mean() / whole.mean(),
        "That is patched / source. Measure both from base.": patched.mean() / source.mean(),
        "That is the change in the metric's own unit. Divide by source − base.": change.mean(),
        "The sign is turned round.": -share,
        "You took the sizes of the changes. Signs matter: a patch can go the wrong way.": sizes,
        "You took the absolute value. A patch can go the wrong way, and then it is below 0.": share.abs(),
        "You used medians. The scale is of means.": change.median() / whole.median(),
    }
    must_equal(found, share, told, 1e-3, lambda: _unknown_share(found, share, base, source))


def _unknown_share(found, share, base, source) -> str:
    if found == 0 and source.mean() < base.mean() and share > 0:
        return (
            "Here source lies below base, and you return 0. Only where the two are equal is it 0: `.abs()`."
        )
    if abs(found - share.clamp(0, 1)) < 1e-3:
        return (
            f"The share is {share:.2f} and you return {found:.2f}. It can be above 1 (too far) and below 0 "
            "(the wrong way): do not cut it off."
        )
    return f"On {len(base)} random prompts the share is {share:.3f}, and yours is {found:.3f}."


def _share_is_right_for_close_runs(attempt: Attempt) -> None:
    small = _share(attempt, *([x * 1e-6] for x in (3, 1, 5)))
    refuse(
        abs(small - 0.5) > 2e-2,
        "From 0.000001 to 0.000005 the way is short, but not zero: 0.000003 is half of it, and yours is "
        f"{small:.3f}. Probabilities are that small.",
    )
    nan = "With base and source equal your share is not a number (0 / 0). There it is 0."
    for base in ([1.0, 2.0, 4.0], [0.0, 0.0]):
        same = _share(attempt, base, base, base, when_nan=nan)
        equal = f"With base, source and patched equal the share is 0, and yours is {same:.3f}."
        refuse(abs(same) > 1e-6, equal)
    nan = (
        "The means of base and source can be equal although the prompts differ; then your share is not a "
        "number. There it is 0."
    )
    crossed = _share(attempt, [1.0, 3.0], [1.0, 3.0], [3.0, 1.0], when_nan=nan)
    equal = "Where the means of base and source are equal and nothing changed, the share is 0."
    refuse(abs(crossed) > 1e-6, equal)


def _streams(seed: int, prompts: int, count: int, d_model: int, positions: list[int]):
    shape = prompts, count, d_model
    return random(*shape, seed=seed), random(*shape, seed=seed + 9), torch.tensor(positions)


def _put(base, source, positions):
    rows, changed = torch.arange(len(base)), base.clone()
    changed[rows, positions] = source[rows, positions]
    return changed


def _before(base, positions):
    """Whether a position lies before each prompt's own."""
    return (torch.arange(base.shape[1]) < positions[:, None])[..., None]


@declare(
    "31.3",
    axes="prompt, pos, d_model",
    says="One vector of each prompt, at its own place, and the input is left as it was.",
)
class PatchedStream:
    cases = (
        _streams(0, 3, 5, 4, [1, 4, 0]),
        _streams(1, 5, 5, 5, [2, 2, 3, 0, 4]),
        _streams(2, 2, 7, 3, [6, 3]),
        _streams(3, 1, 4, 2, [2]),
    )

    def right(base, source, positions):
        return _put(base, source, positions)

    def nothing(base, source, positions):
        """Nothing is changed. Do you return the changed copy?"""
        return base

    def everything(base, source, positions):
        """That is source. Only one vector of each prompt comes from it."""
        return source

    def exchanged(base, source, positions):
        """It is the wrong way round: the rest must come from base, and one vector from source."""
        return _put(source, base, positions)

    def all_positions_everywhere(base, source, positions):
        """All the positions are patched in every prompt. Prompt n gets positions[n] only."""
        return torch.where(torch.isin(torch.arange(base.shape[1]), positions)[:, None], source, base)

    def first_position_for_all(base, source, positions):
        """Every prompt got the first prompt's position. Each has its own."""
        return _put(base, source, positions[0])

    def last_position_for_all(base, source, positions):
        """Every prompt got the last prompt's position. Each has its own."""
        return _put(base, source, positions[-1])

    def first_prompt(base, source, positions):
        """Only the first prompt is patched."""
        return torch.cat([_put(base, source, positions)[:1], base[1:]])

    def last_prompt(base, source, positions):
        """Only the last prompt is patched."""
        return torch.cat([base[:-1], _put(base, source, positions)[-1:]])

    def from_there_on(base, source, positions):
        """Everything from the position on is patched. Patch the one vector there."""
        return torch.where(_before(base, positions), base, source)

    def up_to_there(base, source, positions):
        """Everything up to the position is patched. Patch the one vector there."""
        return torch.where(_before(base, positions + 1), source, base)

    def one_late(base, source, positions):
        """One position too late."""
        return _put(base, source, (positions + 1) % base.shape[1])

    def one_early(base, source, positions):
        """One position too early."""
        return _put(base, source, positions - 1)

    def added(base, source, positions):
        """The source's vector is added to base's. Put it in its place."""
        return _put(base, base + source, positions)

    def zero(base, source, positions):
        """The vector is set to zero. Take it from source."""
        return _put(base, 0 * source, positions)

    def vector_of_the_first_prompt(base, source, positions):
        """All prompts got the vector of the first prompt of source."""
        return _put(base, source[0, positions[0]].expand_as(base), positions)


@checker("31.4")
def check_output_with_values(attempt: Attempt) -> str:
    sizes = (9, 3, 5, 4), (4, 2, 6, 3), (6, 6, 4, 5), (8, 1, 5, 5), (8, 4, 3, 2)
    for seed, (heads, kv, count, d) in enumerate(sizes):
        future = torch.ones(count, count, dtype=torch.bool).triu(1)
        pattern = (3 * random(heads, count, count, seed=seed)).masked_fill(future, float("-inf")).softmax(-1)
        _outputs_are_right(attempt, pattern, random(count, kv, d, seed=seed + 9))
    return (
        "Right for nine heads on three, for two on one, for one on one, and where all share a single value "
        "head."
    )


def _outputs_are_right(attempt: Attempt, pattern, values) -> None:
    """Ask for every head, and judge all of them together."""
    heads, (count, kv, d) = len(pattern), values.shape
    run = lambda head: attempt.tensor(pattern, values, head, shape=(count, d), axes="query, d_head")
    found, expected = torch.stack([run(head) for head in range(heads)]), _output(pattern, values)
    where = f"With {heads} query heads and {kv} value heads (head, query, coordinate): "
    otherwise = lambda: where + only_wrong(found, expected)
    must_equal(found, expected, _wrong_outputs(pattern, values), otherwise=otherwise)


def _output(pattern, values, which=None) -> Tensor:
    """Each head's pattern, with the value heads of these numbers (None: those it reads)."""
    heads, kv = len(pattern), values.shape[1]
    which = torch.arange(heads) // (heads // kv) if which is None else which.clamp(max=kv - 1)
    return pattern @ values.transpose(0, 1)[which]


def _wrong_outputs(pattern, values) -> dict[str, Tensor]:
    heads, kv = len(pattern), values.shape[1]
    read, own = partial(_output, pattern, values), torch.arange(heads)
    number = own // (heads // kv)
    others, mean = _output(pattern[number], values), _output(pattern.mean(0).expand_as(pattern), values)
    return {
        "You took the remainder: heads 0, 3, 6 would share. Neighbours share a value head: a whole-number "
        "division.": read(own % kv),
        "The pattern is turned: for each query, add up over the keys.": _output(pattern.mT, values),
        "That is not this head's pattern, but the one that bears the value head's number.": others,
        "That is always value head 0. Which one does this query head read?": read(own * 0),
        "That is always the last value head. Which one does this query head read?": read(own * 0 + kv),
        "The number of the query head is no number of a value head: several share one.": read(own),
        "The value heads are in the reverse order.": read(kv - 1 - number),
        "You averaged over the value heads. The head reads one of them.": pattern @ values.mean(1),
        "You added up the value heads. The head reads one of them.": pattern @ values.sum(1),
        "You took the mean of the heads' patterns. This head keeps its own.": mean,
        "These are the values themselves, without the pattern.": values.transpose(0, 1)[number],
        "You divided by the number of value heads. Divide by how many query heads share one.": read(
            own // kv
        ),
        f"Do always three query heads share a value head? Here are {heads} and {kv}: read it off the "
        "shapes.": read(own // 3),
    }


@checker("31.5")
def check_noise(attempt: Attempt) -> str:
    cases = (6, 40, [1, 3], 3.0, 50, 0.13), (4, 64, [3], 1.5, 80, 2.0), (7, 32, [2, 3, 4], 0.5, 60, 0.5)
    for seed, (count, d, subject, level, samples, spread) in enumerate(cases):
        clean = random(count, d, seed=seed) + 1
        W_E = spread * random(200, d, seed=seed + 9) * torch.linspace(0.2, 1.8, d) + 0.3
        W_E *= torch.linspace(0.2, 1.8, 200)[:, None]  # some rows are longer than others, as in a model
        found = _noisy(attempt, clean, subject, W_E, level, samples, seed)
        noise = (found - clean)[:, subject]
        _noise_is_on_the_subject_only(found, clean, subject)
        _noise_is_everywhere(noise)
        _noise_is_new_everywhere(noise)
        _noise_is_added(noise, clean[subject])
        _noise_has_the_right_size(noise, clean[subject], W_E, level)
        _noise_is_normal(noise, W_E, level)
        _noise_has_no_copies(noise)
        again, other = (_noisy(attempt, clean, subject, W_E, level, samples, s) for s in (seed, seed + 1))
        refuse(
            not torch.equal(found, again) or close(found, other),
            "The same generator must give the same noise, and another one another: draw with "
            "`generator=generator`.",
        )
        copies = _noisy(attempt, clean, subject, W_E, 0.0, 3, seed=1)
        refuse(
            not close(copies, clean.expand_as(copies)), "With level 0 every copy must be the clean prompt."
        )
    return "On the subject only, new for each copy, normal, as strong as it should be, three times."


def _noisy(attempt: Attempt, clean, subject, W_E, level: float, samples: int, seed: int) -> Tensor:
    given = (clean, subject, W_E, level, samples, seeded(seed))
    return attempt.tensor(*given, shape=(samples, *clean.shape), axes="sample, pos, d_model")


def _noise_is_on_the_subject_only(found, clean, subject: list[int]) -> None:
    rest = [p for p in range(len(clean)) if p not in subject]
    alone = close(found[:, rest], 0 * found[:, rest])
    refuse(alone, "That is the noise alone. Add it to copies of the embeddings.")
    outside = (found - clean)[:, rest].abs().max() > 1e-5
    refuse(outside, "There is noise outside the subject. Every other position must stay as it is.")


def _noise_is_everywhere(noise) -> None:
    size = noise.abs()
    refuse(size.max() < 1e-6, "There is no noise at all. Is the changed copy returned?")
    missing = size.amax((0, 2)).min() < 1e-6
    refuse(missing, "Some of the subject's tokens have no noise. All of them are corrupted.")
    refuse(size.amax((1, 2)).min() < 1e-6, "One of the copies is clean. All of them are corrupted.")


def _noise_is_new_everywhere(noise) -> None:
    same = lambda first: close(noise, first.expand_as(noise))
    refuse(
        same(noise[:1]),
        "All copies have the same noise. Each sample is a new draw, or the average over samples averages "
        "nothing.",
    )
    tokens = noise.shape[1] > 1 and same(noise[:, :1])
    refuse(tokens, "All tokens of the subject get the same noise. Each has its own draw.")
    one = "All coordinates of a token get the same number. Each coordinate has its own draw."
    refuse(same(noise[..., :1]), one)


def _noise_is_added(noise, clean) -> None:
    replaced = (noise.mean(0) + clean).norm() < 0.5 * clean.norm()
    refuse(replaced, "The noise stands in the place of the embeddings. It is added to them.")
    grows = noise[-9:].std() > 2 * noise[:9].std()
    refuse(grows, "The noise grows from copy to copy: each begins with the clean prompt.")


def _noise_has_the_right_size(noise, clean, W_E, level: float) -> None:
    strength, sd = noise.std(), W_E.std()
    mean = f"The noise has mean {noise.mean():.3f}; it must be 0. `torch.randn`, not `torch.rand`?"
    refuse(noise.mean().abs() > 5 * level * sd / noise.numel() ** 0.5, mean)
    near = lambda value: (strength - value).abs() < 0.05 * value
    if near(level * sd):
        return
    for why, value in {
        "`level` counts standard deviations of W_E: multiply by `W_E.std()`.": level,
        "Where is `level`? The noise has one standard deviation of W_E.": sd,
        "That is the variance. Multiply by the standard deviation.": level * sd**2,
        "You divided by the standard deviation of W_E. Multiply.": level / sd,
        "That is the standard deviation of this prompt's embeddings, not of W_E.": level * clean.std(),
        "You scaled with the mean length of the embeddings, not with the standard deviation of their "
        "entries.": level * W_E.norm(dim=1).mean(),
    }.items():
        refuse(near(value), why)
    wanted = f"level × the standard deviation of W_E is {level * sd:.3f}"
    raise NotYet(f"The noise has standard deviation {strength:.3f}; {wanted}.")


def _noise_is_normal(noise, W_E, level: float) -> None:
    alike = torch.corrcoef(torch.stack([noise.std((0, 1)), W_E.std(0)]))[0, 1]
    own = "Each coordinate has a strength of its own. One standard deviation, of all entries of W_E."
    refuse(alike > 0.8, own)
    tails = (noise.abs() > 2 * level * W_E.std()).float().mean().item()
    refuse(
        not 0.03 < tails < 0.06,
        f"The noise is not normally distributed: {tails:.1%} of it lies beyond two standard deviations, and "
        "4.6% should. `torch.randn`.",
    )


def _noise_has_no_copies(noise) -> None:
    rows = noise.flatten(1)
    copies = any(torch.corrcoef(each).triu(1).abs().max() > 0.9 for each in (rows, rows.T))
    refuse(copies, "Some of the draws are copies of others. One draw for each sample, token and coordinate.")
