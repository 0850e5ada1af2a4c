"""Checks of notebook 31, activation patching and causal tracing."""

from dataclasses import replace

import torch
from torch import Tensor

import mechlab as ml
from mechlab.runs.hooks import intervene, replace_with
from mechlab.statistics import bootstrap
from mechlab_course.checking import close, declare, only_wrong, random, refuse, seeded
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


@torch.no_grad()
def _indexed(model, base, source, layer, index) -> Tensor:
    """The run on base with what stands at this index of z of the run on source."""
    name = f"blocks.{layer}.attn.hook_z"
    value = model.run_with_cache(source, names_filter=name)[1][name]

    def put(z, hook):
        z = z.clone()
        z[index] = value[index]
        return z

    with intervene(model, [(name, put)]):
        return model(base)


@declare(
    "31.1",
    axes="prompt, pos, d_vocab",
    says="One head, all positions, on three models; a prompt into itself changes nothing, and no hook is "
    "left.",
)
class PatchedRun:
    def cases():
        return _runs("gqa", 0, 1, 0), _runs("gpt2", 1, 0, 1), _runs("gqa", 1, 2, 2)

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

    def coordinate(model, base, source, layer, head):
        """You patched one coordinate of all heads. z is [prompt, pos, head, d_head]: the head is the third
        index, `z[:, :, head]`."""
        return _indexed(model, base, source, layer, (..., head))

    def position(model, base, source, layer, head):
        """You patched one position of all heads. z is [prompt, pos, head, d_head]: the head is the third
        index, `z[:, :, head]`."""
        return _indexed(model, base, source, layer, (slice(None), head))

    def prompt(model, base, source, layer, head):
        """You patched one prompt. z is [prompt, pos, head, d_head]: the head is the third index,
        `z[:, :, head]`."""
        return _indexed(model, base, source, layer, head)

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


GATES = {  # neither, only a, only b, both
    (0.0, 0.0, 0.0, 1.0): "AND",
    (0.0, 1.0, 1.0, 1.0): "OR",
    (-4.5, -4.4, -4.3, 0.3): "AND",
    (2.0, 8.9, 9.1, 9.2): "OR",
    (5.0, 4.9, 5.1, -3.0): "AND",
    (5.0, -3.0, -2.9, -3.0): "OR",
    (0.001, 0.0011, 0.0012, 0.004): "AND",
    (0.002, 0.0041, 0.0039, 0.004): "OR",
    (1.0, 3.0, 4.0, 6.0): "neither",
    (0.0, 0.3, 0.3, 1.0): "neither",
    (-2.0, 7.0, -2.0, 7.0): "neither",
    (0.0, 0.05, 0.9, 1.0): "neither",
    (0.0, 0.8, -0.9, 1.0): "AND",
    (3.0, 4.0, 2.0, 3.0): "neither",
    (0.0, 0.25, 0.25, 1.0): "neither",
    (4.0, 1.0, 1.0, 0.0): "neither",
    (0.0, 0.7, 0.7, 1.0): "neither",
}


def _verdict(extra: float) -> str:
    return "AND" if extra > 0.5 else "OR" if extra < -0.5 else "neither"


def _brought(neither, a, b, both) -> tuple[float, float, float]:
    """What each part brings alone, as a share of what both bring; and whether they bring anything."""
    whole = both - neither
    return ((a - neither) / whole, (b - neither) / whole, whole) if abs(whole) > 1e-6 else (0.5, 0.5, 0.0)


WRONG_GATES = {
    "You compare with a half in the metric's own unit, and a metric may have any scale: divide by what both "
    "parts bring.": lambda n, a, b, ab: _verdict(ab - a - b + n),
    "Measure everything from `neither`: what part a brings alone is only_a − neither.": lambda n, a, b, ab: (
        _verdict((ab - a - b) / (ab - n)) if abs(ab - n) > 1e-6 else "neither"
    ),
    "AND and OR are exchanged. Where each alone does nothing, both are needed.": lambda *four: {
        "AND": "OR",
        "OR": "AND",
        "neither": "neither",
    }[_verdict(1 - sum(_brought(*four)[:2]))],
    "Where the metric falls instead of rising, you take one gate for the other. Divide by both − neither, "
    "sign and all.": lambda n, a, b, ab: (
        _verdict((ab - a - b + n) / abs(ab - n)) if abs(ab - n) > 1e-6 else "neither"
    ),
    "Where one part does it all and the other nothing there is no gate: they add up, and that is "
    '"neither".': lambda *four: (
        "neither" if not _brought(*four)[2] else "OR" if max(_brought(*four)[:2]) > 0.5 else "AND"
    ),
    "You look at each part alone. With a share of 0.3 each, 0.4 needs both together, less than "
    "half: compare the sum of the two.": lambda *four: (
        "AND" if max(_brought(*four)[:2]) < 0.5 else "OR" if min(_brought(*four)[:2]) > 0.5 else "neither"
    ),
    "Keep the signs of what each brings: where one part works against the other, abs takes it for a "
    "help.": lambda n, a, b, ab: (
        _verdict(1 - (abs(a - n) + abs(b - n)) / abs(ab - n)) if abs(ab - n) > 1e-6 else "neither"
    ),
    "You compare with the stronger of the two. The sum of what each brings alone is meant.": lambda *four: (
        _verdict(1 - max(_brought(*four)[:2])) if _brought(*four)[2] else "neither"
    ),
    "The line is at half, more than half of what both bring, and you draw it at 0.": lambda *four: _verdict(
        1e9 * (1 - sum(_brought(*four)[:2]))
    ),
    'Exactly half is not more than half: "neither".': lambda *four: _verdict(
        1.001 * (1 - sum(_brought(*four)[:2]))
    ),
    'Where both together bring nothing there is no gate to speak of: "neither".': lambda n, a, b, ab: (
        _verdict((ab - a - b + n) / (ab - n) if abs(ab - n) > 1e-6 else 1)
    ),
}


@checker("31.6")
def check_gate(attempt: Attempt) -> str:
    found = {four: attempt(*four) for four in GATES}
    for said in found.values():
        known = type(said) is str and said in ("AND", "OR", "neither")
        refuse(not known, f'Return "AND", "OR" or "neither"; you returned {said!r:.40}.')
    for why, wrong in WRONG_GATES.items():
        refuse(found != GATES and all(wrong(*four) == said for four, said in found.items()), why)
    for four, said in found.items():
        refuse(said != GATES[four], f"For the four values {four} you say {said}; it is {GATES[four]}.")
    return "Right for metrics that rise and fall, of any scale, and where there is no gate."


COUPLES = 12  # balanced pairs that no notebook shows
LEAST = 0.15, 0.1  # of 23.1: its share, and the low end of its interval


@checker("31.7")
def check_corruption(attempt: Attempt, model) -> str:
    prompts = ml.ioi_prompts(model, 2 * COUPLES, seed=2027)
    given = replace(prompts, tokens=prompts.tokens.clone())
    corrupted = _tokens(attempt(given), prompts.tokens)
    refuse(
        not torch.equal(given.tokens, prompts.tokens),
        "Your function changes `prompts.tokens` in place. Begin with `tokens = prompts.tokens.clone()`.",
    )
    rows, end = torch.arange(len(prompts)), prompts.positions["end"]
    refuse(
        bool((corrupted[rows, end] != prompts.tokens[rows, end]).any()),
        "You changed the last token. The patch is there: it must stay as it is.",
    )
    same = (corrupted == prompts.tokens).all(1).float().mean().item()
    refuse(same == 1, "Nothing is corrupted: these are the clean prompts.")
    refuse(same > 0.2, f"{same:.0%} of your prompts are not corrupted at all. Change something in each.")
    found = _heads_of_23(model, corrupted, prompts)
    low, high = bootstrap(found, prompts.pairs)
    share = found.mean(0)
    mover = f"23.1 brings back {share[1]:.2f} [{low[1]:.2f}, {high[1]:.2f}]"
    s1, s2 = (corrupted[rows, prompts.positions[name]] for name in ("S1", "S2"))
    repeated = s2 != prompts.tokens[rows, prompts.positions["S2"]]
    kept = (s1 == s2).float().mean() > 0.5  # somebody else is named twice
    told = f"On {COUPLES} other couples {mover} and 23.3 {share[3]:.2f}. "
    other = "Somebody is named twice, but somebody else: 23.3 carries which name that is. Leave S1 and S2."
    refuse(share[1] <= share[3] and repeated.float().mean() > 0.5 and bool(kept), told + other)
    refuse(
        share[1] <= share[3] and repeated.float().mean() > 0.5,
        told + "You changed who is named again, and that is what 23.3 carries. Leave it alone.",
    )
    refuse(share[1] <= share[3], told + "What does 23.3 carry? Leave that as it is.")
    refuse(
        share[1] < LEAST[0] or low[1] < LEAST[1],
        told
        + f"Ask for {LEAST[0]} and an interval above {LEAST[1]}. What does a name mover carry? Change that.",
    )
    more = (corrupted != prompts.tokens).sum(1).float().mean() > 1.5
    also = " (You change more than the name at IO; that alone does it.)" if more else ""
    return f"On {COUPLES} couples that you have not seen, {mover}, and 23.3 {share[3]:.2f}.{also}"


def _tokens(returned, clean: Tensor) -> Tensor:
    """What was returned, as tokens of the clean prompts' shape."""
    returned = getattr(returned, "tokens", returned)
    shape = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
    refuse(shape != tuple(clean.shape), f"Return tokens of shape {tuple(clean.shape)}; yours: {shape}.")
    refuse(
        returned.is_floating_point() or returned.dtype == torch.bool or returned.is_complex(),
        f"Token ids are whole numbers; yours are {str(returned.dtype).removeprefix('torch.')}.",
    )
    return returned.detach().to(clean)


@torch.no_grad()
def _heads_of_23(model, corrupted: Tensor, prompts) -> Tensor:
    """The share of the way of each head of layer 23, patched at the end, for each prompt."""
    refuse(
        bool((corrupted < 0).any() or (corrupted >= model.cfg.d_vocab).any()),
        f"A token id lies outside 0 to {model.cfg.d_vocab - 1}.",
    )
    before, after = (prompts.metric(model(tokens)) for tokens in (corrupted, prompts.tokens))
    refuse(
        bool((after - before).mean().abs() < 1),
        f"Clean, the logit difference is {after.mean():.1f}, and corrupted {before.mean():.1f}: so little is "
        "lost that no head can bring it back. Corrupt something that the answer rests on.",
    )
    patched = ml.activation_patching(
        model, corrupted, prompts.tokens, prompts.metric, "z", layers=[23], positions=[corrupted.shape[1] - 1]
    )
    return patched.per_prompt[:, 0]


@checker("31.5")
def check_noise(attempt: Attempt) -> str:
    cases = (6, 40, [1, 3], 3.0, 50, 0.13), (4, 64, [3], 1.5, 80, 2.0), (7, 32, [2, 3, 4], 0.5, 60, 0.5)
    for seed, (count, d, subject, level, samples, spread) in enumerate(cases):
        clean = random(count, d, seed=seed) + 1
        every = spread * random(200, d, seed=seed + 9) * torch.linspace(0.2, 1.8, d) + 0.3
        every *= torch.linspace(0.2, 1.8, 200)[:, None]  # some rows are longer than others, as in a model
        found = _noisy(attempt, clean, subject, every, level, samples, seed)
        noise = (found - clean)[:, subject]
        _noise_is_on_the_subject_only(found, clean, subject)
        _noise_is_everywhere(noise)
        _noise_is_new_everywhere(noise)
        _noise_is_added(noise, clean[subject])
        _noise_has_the_right_size(noise, clean[subject], every, level)
        _noise_is_normal(noise, every, level)
        _noise_has_no_copies(noise)
        again, other = (_noisy(attempt, clean, subject, every, level, samples, s) for s in (seed, seed + 1))
        refuse(
            not torch.equal(found, again) or close(found, other),
            "The same generator must give the same noise, and another one another: draw with "
            "`generator=generator`.",
        )
        copies = _noisy(attempt, clean, subject, every, 0.0, 3, seed=1)
        refuse(
            not close(copies, clean.expand_as(copies)), "With level 0 every copy must be the clean prompt."
        )
    return "On the subject only, new for each copy, normal, as strong as it should be, three times."


def _noisy(attempt: Attempt, clean, subject, every, level: float, samples: int, seed: int) -> Tensor:
    given = (clean, subject, every, level, samples, seeded(seed))
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


def _noise_has_the_right_size(noise, clean, every, level: float) -> None:
    strength, sd = noise.std(), every.std()
    mean = f"The noise has mean {noise.mean():.3f}; it must be 0. `torch.randn`, not `torch.rand`?"
    refuse(noise.mean().abs() > 5 * level * sd / noise.numel() ** 0.5, mean)
    near = lambda value: (strength - value).abs() < 0.05 * value
    if near(level * sd):
        return
    for why, value in {
        "`level` counts standard deviations of `all_subjects`: multiply by `all_subjects.std()`.": level,
        "Where is `level`? The noise has one standard deviation of `all_subjects`.": sd,
        "That is the variance. Multiply by the standard deviation.": level * sd**2,
        "You divided by the standard deviation of `all_subjects`. Multiply.": level / sd,
        "You took the mean of a standard deviation for each token. Take one, of all the entries.": level
        * every.std(1).mean(),
        "You took the mean of a standard deviation for each coordinate. Take one, of all the entries.": level
        * every.std(0).mean(),
        "That is the standard deviation of this prompt's embeddings, not all subjects'.": level * clean.std(),
        "You scaled with the mean length of the embeddings, not with the standard deviation of their "
        "entries.": level * every.norm(dim=1).mean(),
    }.items():
        refuse(near(value), why)
    wanted = f"level × the standard deviation of `all_subjects` is {level * sd:.3f}"
    raise NotYet(f"The noise has standard deviation {strength:.3f}; {wanted}.")


def _noise_is_normal(noise, every, level: float) -> None:
    alike = torch.corrcoef(torch.stack([noise.std((0, 1)), every.std(0)]))[0, 1]
    own = "Each coordinate has a strength of its own. One for all: that of all entries of `all_subjects`."
    refuse(alike > 0.8, own)
    tails = (noise.abs() > 2 * level * every.std()).float().mean().item()
    refuse(
        not 0.03 < tails < 0.06,
        f"The noise is not normally distributed: {tails:.1%} of it lies beyond two standard deviations, and "
        "4.6% should. `torch.randn`.",
    )


def _noise_has_no_copies(noise) -> None:
    rows = noise.flatten(1)
    copies = any(torch.corrcoef(each).triu(1).abs().max() > 0.9 for each in (rows, rows.T))
    refuse(copies, "Some of the draws are copies of others. One draw for each sample, token and coordinate.")
