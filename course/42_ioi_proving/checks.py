"""Checks of notebook 42, the IOI circuit: proving it."""

from random import Random

import torch
from torch import Tensor

from mechlab_course.checking import must_equal, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("42.1")
def check_mask(attempt: Attempt) -> str:
    for seed, shape in enumerate(((3, 4, 7, 3), (4, 5, 9, 2), (2, 1, 6, 5), (5, 6, 8, 5))):
        draw, (layers, prompts, count, heads) = seeded(seed), shape
        places = torch.stack([torch.randperm(count, generator=draw)[:4] for _ in range(prompts)])
        positions = dict(zip(("IO", "S1", "S2", "end"), places.T, strict=True))
        order = torch.randperm(layers * heads, generator=draw)[:4].tolist()
        names = (["S2"], ["S1", "IO"], ["end"], ["IO", "S2", "end"])
        acts = {divmod(n, heads): list(at) for n, at in zip(order, names, strict=True)}
        given = {head: list(at) for head, at in acts.items()}
        found = _bools(attempt(given, positions, shape), shape)
        if given != acts:
            raise NotYet("Your function changes the dictionary it was given. Only read it.")
        masks = _masks(acts, positions, shape)
        expected = masks.pop("right")
        for why, like in masks.items():
            if torch.equal(found, like) and not torch.equal(like, expected):
                raise NotYet(why)
        for layer, prompt, at, head in (found != expected).nonzero().tolist():
            names = acts.get((layer, head), "no position")
            raise NotYet(
                f"Head {layer}.{head} acts at {names}. In prompt {prompt} these stand at { {k: int(v[prompt]) for k, v in positions.items()} }; "
                f"there, at position {at}, the mask should be {bool(expected[layer, prompt, at, head])}."
            )  # fmt: skip
    return "Every head stays in at its own positions, in each prompt at the right place, on four shapes."


def _bools(found, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(found, Tensor) or found.dtype != torch.bool:
        kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise NotYet(f"True and False are needed (`dtype=torch.bool`); you returned {kind}.")
    if tuple(found.shape) != shape:
        raise NotYet(f"The shape is {tuple(found.shape)}; it should be {shape}: [layer, prompt, pos, head].")
    return found.detach().cpu()


def _masks(acts, positions, shape) -> dict[str, Tensor]:
    def mask(of=lambda names: names, where=lambda at, prompt: int(at[prompt]), heads=acts):
        kept = torch.zeros(shape, dtype=torch.bool)
        for (layer, head), names in heads.items():
            for name in of(names):
                for prompt in range(shape[1]):
                    kept[layer, prompt, where(positions[name], prompt), head] = True
        return kept

    turned = {(head, layer): at for (layer, head), at in acts.items() if head < shape[0] and layer < shape[3]}
    return {
        "right": mask(),
        "That is the other way round: True where a head acts.": ~mask(),
        "Each prompt has its own position: S2 of another prompt is marked here too. Pick pairs of prompt and position.": mask(where=lambda at, _: at),
        "Your heads stay in at every position. They act at the positions that `acts` names only.": mask(where=lambda *_: slice(None)),
        "A head with several names is marked at only one of its positions. Go through all names.": mask(of=lambda names: names[:1]),
        "A head with several names is marked at only one of its positions, the last. Go through all names.": mask(of=lambda names: names[-1:]),
        "All prompts are marked at the position of the first one. Each has its own position.": mask(where=lambda at, _: int(at[0])),
        "Nothing is marked. Do you write into the mask that you return?": torch.zeros(shape, dtype=torch.bool),
        "Layer and head are exchanged: the keys of `acts` are (layer, head).": mask(heads=turned),
    }  # fmt: skip


@checker("42.2")
def check_stand_in(attempt: Attempt) -> str:
    cases = (("b a b", "a b b a b"), ("x z y z", "z x x y z z"), ("k kk", "kk k kk k"))
    for seed, (templates, its) in enumerate((one.split(), other.split()) for one, other in cases):
        rows, count, heads, size = len(templates), 5 - seed, 3 + seed, 2 + seed
        z, more = random(rows, count, heads, size, seed=seed), (len(its), count, heads, size)
        reference = random(*more, seed=seed + 9) + 1
        kept = torch.rand(rows, count, heads, generator=seeded(seed)) < 0.4
        given = (z, kept, reference, list(templates), list(its))
        found = attempt.tensor(*given, shape=tuple(z.shape), axes="prompt, pos, head, d_head")
        same = lambda template, names: [n for n, other in enumerate(names) if other == template]

        def put(mean, z=z, kept=kept, templates=templates, its=its, reference=reference, same=same):
            value = torch.stack([mean(reference[same(t, its)]).expand_as(z[0]) for t in templates])
            return torch.where(kept[..., None], z, value)

        means = torch.stack([reference[same(t, its)].mean(0) for t in templates])
        own = torch.stack([z[same(t, templates)].mean(0) for t in templates])
        must_equal(found, put(lambda x: x.mean(0)), {
            "It is the wrong way round: keep z where `kept` is True, and put the mean elsewhere.": torch.where(kept[..., None], means, z),
            "That is the mean of all templates. Each prompt gets the mean of its own.": put(lambda _, every=reference: every.mean(0)),
            "You averaged over the positions too. Keep them apart.": put(lambda x: x.mean((0, 1))),
            "You averaged over the heads too. Each head has its own mean.": put(lambda x: x.mean((0, 2))[:, None]),
            "That is the mean over these prompts themselves. They know the answer; take the reference prompts.": torch.where(kept[..., None], z, own),
            "One reference prompt of the template is not its mean. Average over all of them.": put(lambda x: x[0]),
            "You added up. Take the mean.": put(lambda x: x.sum(0)),
            "That is zero in place of the mean.": put(lambda x: 0 * x[0]),
            "Nothing is held still. Do you return the changed copy?": z,
            "Everything is held still, also what `kept` marks.": means,
            "The mean is added to what was there. Write it in its place.": torch.where(kept[..., None], z, z + means),
        })  # fmt: skip
    return "Kept where it is marked, and elsewhere the mean of its own template and position, three times."


def _pairs_of(many: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = seeded(seed)
    normal = lambda n: torch.randn(n, generator=draw)
    shuffled = torch.randperm(2 * many, generator=draw)
    numbers = torch.arange(many).repeat_interleave(2)[shuffled]
    whole = (4 + 1.2 * normal(many))[numbers] + 0.2 * normal(2 * many)
    circuit = 0.8 * whole + (0.9 * normal(many))[numbers] + 0.2 * normal(2 * many)
    whole[0] = 0.3
    return circuit, whole, 3 * numbers + 5


def _quantiles(values: Tensor, tail: float = 0.025) -> list[float]:
    return values.quantile(torch.tensor([tail, 1 - tail])).tolist()


@checker("42.3")
def check_share(attempt: Attempt) -> str:
    for many, seed in ((16, 0), (40, 1), (10, 2)):
        circuit, whole, pairs = _pairs_of(many, seed)
        share, low, high = _three(attempt(circuit, whole, pairs, 4000, seeded(seed)))
        numbers = pairs.unique(return_inverse=True)[1]
        top, bottom = (torch.zeros(many).index_add_(0, numbers, each) for each in (circuit, whole))
        _told(share, expected := (circuit.mean() / whole.mean()).item(), {
            "That is the mean of the prompts' ratios. Divide the two means: a prompt near 0 must not rule the result.": (circuit / whole).mean(),
            "That is the mean of the pairs' ratios. Divide the two means.": (top / bottom).mean(),
            "The ratio is upside down: the circuit goes on top.": 1 / expected,
            "That is what is lost. The share that is left is wanted.": 1 - expected,
            "That is a difference. Divide.": (circuit - whole).mean(),
            "That is the median of the ratios. Divide the two means.": (circuit / whole).median(),
        })  # fmt: skip
        draw = seeded(99)
        drawn, other = (torch.randint(many, (20000, many), generator=draw) for _ in range(2))
        right = _quantiles(ratios := top[drawn].sum(1) / bottom[drawn].sum(1))
        width = right[1] - right[0]
        apart = lambda one, two, w=width: (abs(one[0] - two[0]) + abs(one[1] - two[1])) / w
        if high < low:
            raise NotYet("Return the share, then the lower end, then the upper one.")
        if apart((low, high), right) < 0.12:
            continue
        single, few = (torch.randint(n, (20000, 2 * many), generator=draw) for n in (2 * many, many))
        for why, ends in {
            "You drew prompts one by one. The two of a pair go together: draw pairs, or the interval is too narrow.": _quantiles(circuit[single].mean(1) / whole[single].mean(1)),
            "The two means are drawn apart. Each draw of pairs serves both, or the interval is too wide.": _quantiles(top[drawn].sum(1) / bottom[other].sum(1)),
            "These are quantiles of the pairs' own ratios. Take them of the ratios of many draws.": _quantiles(top / bottom),
            "The whole model's mean is held fixed. It is uncertain too: draw it with the same pairs.": _quantiles(top[drawn].sum(1) / bottom.sum()),
            "You averaged the pairs' ratios in each draw. Divide the sums.": _quantiles((top / bottom)[drawn].mean(1)),
            "You drew as many pairs as there are prompts. Draw as many as there are pairs.": _quantiles(top[few].sum(1) / bottom[few].sum(1)),
            "Your interval has no width. Draw with replacement: `torch.randint`.": [expected, expected],
            "That is a 90 % interval. Take the quantiles 0.025 and 0.975.": _quantiles(ratios, 0.05),
            "These are the quartiles. Take the quantiles 0.025 and 0.975.": _quantiles(ratios, 0.25),
        }.items():  # fmt: skip
            if apart((low, high), ends) < 0.12 < apart(ends, right):
                raise NotYet(why)
        raise NotYet(
            f"The ends should be about {right[0]:.3f}, {right[1]:.3f}; yours: {low:.3f}, {high:.3f}."
        )
    one = [_three(attempt(circuit, whole, pairs, 200, seeded(s))) for s in (1, 1, 2)]
    if one[0] != one[1] or one[0][1:] == one[2][1:]:
        raise NotYet("The same generator must give the same interval: draw with `generator=generator`.")
    _, low, high = _three(attempt(circuit, whole, pairs, 1, seeded(4)))
    if abs(high - low) > 1e-5:
        raise NotYet("`draws` is how many samples are drawn. With one sample both ends are its ratio.")
    return "A ratio of means, and an interval from whole pairs, as wide as it should be, on three sets."


def _three(value) -> tuple[float, float, float]:
    if not isinstance(value, (tuple, list, Tensor)) or len(value) != 3:
        raise NotYet("Return three numbers: the share, the lower end and the upper end.")
    return tuple(_number(each) for each in value)


def _toy(seed: int):
    """A metric in which every set of heads has a value of its own; all heads, those of a circuit, and a source of chance."""
    draw = Random(seed)
    every = [(layer, head) for layer in range(3 + seed % 2) for head in range(4)]

    def left(heads) -> float:
        chosen = sorted({tuple(head) for head in heads})
        for head in chosen:
            if head not in every:
                raise ValueError(f"`left` was asked about {head}, which is no head of this model")
        return Random(f"{seed} {chosen}").gauss(0, 2)

    return left, every, sorted(draw.sample(every, 6)), draw


@checker("42.4")
def check_gap(attempt: Attempt) -> str:
    for seed in range(5):
        left, every, circuit, draw = _toy(seed)
        K = draw.sample(circuit, (2, 1, 0, 6, 3)[seed])
        found = _number(attempt(left, list(every), list(circuit), list(K)))
        few, many = ([head for head in all_of if head not in K] for all_of in (circuit, every))
        outside = [head for head in every if head not in circuit]
        expected = left(few) - left(many)
        _told(found, expected, {
            "The sign is turned: first the circuit, then minus the model.": -expected,
            "Take K away from the model too: F(M without K).": left(few) - left(every),
            "Take K away from the circuit too: F(C without K).": left(circuit) - left(many),
            "That is the gap of the whole circuit, its faithfulness. Where is K?": left(circuit) - left(every),
            "You kept only K. Keep the circuit without K.": left(K) - left(many),
            "You kept only K, on both sides.": left(K) - left(circuit),
            "The model without the circuit is another question. Take K away.": left(few) - left(outside),
            "That is a size without a sign. A gap is negative where the model has more to fall back on.": abs(expected),
            "That is F(C without K) alone. Subtract F(M without K).": left(few),
            "Both are compared with themselves before K was gone. Compare circuit and model.": left(few) - left(circuit),
        })  # fmt: skip
    return "K goes on both sides, and the difference has the right sign, for five sets."


@checker("42.5")
def check_needed(attempt: Attempt) -> str:
    for seed in range(8):
        left, _, circuit, draw = _toy(seed + 20)
        head = draw.choice(circuit)
        rest = [other for other in circuit if other != head]
        options = [[], *(draw.sample(rest, size) for size in (1, 2, 3, 5))]
        draw.shuffle(options)
        value = attempt(left, list(circuit), head, [list(K) for K in options])
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise NotYet("Return two things: the chosen K, a list of heads, and the change, a number.")
        K, found = frozenset(tuple(other) for other in value[0]), _number(value[1])
        cut = lambda gone, circuit=circuit: [other for other in circuit if other not in gone]
        before = {frozenset(k): left(cut(k)) for k in options}
        change = {frozenset(k): left(cut([*k, head])) - before[frozenset(k)] for k in options}
        if K not in change:
            raise NotYet("The K that you return is none of `options`.")
        size = lambda k, change=change: abs(change[k])
        if max(change, key=size) != K and abs(found - change[K]) < 1e-4:
            raise NotYet(
                "The change is right for this K, but another K of `options` gives a larger one, in either direction: choose by "
                "`abs(change)`. A head whose loss helps is needed for something too."
            )
        _told(found, change[K], {
            "The change keeps its sign: it is negative where F falls without the head.": size(K),
            "It is the other way round: F without K and the head, minus F without K.": -change[K],
            "K is gone on both sides: compare with C without K, not with the whole circuit.": change[K] + before[K] - left(circuit),
            "K is not taken away: this is the head's change in the whole circuit.": left(cut([head])) - left(circuit),
            "That is F without K and the head. Subtract F without K.": change[K] + before[K],
        })  # fmt: skip
    return "The right K and its change, with sign, eight times."


def _number(value) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"A number is needed; there is a {type(value).__name__}.") from None
    if value != value:
        raise NotYet("The number that you return is NaN.")
    return value


def _told(found: float, expected: float, mistakes: dict[str, float]) -> None:
    if abs(found - expected) < 1e-4:
        return
    for why, like in mistakes.items():
        if abs(found - like) < 1e-4 and abs(like - expected) > 1e-3:
            raise NotYet(why)
    raise NotYet(f"On a small example the result should be {expected:.4g}, and yours is {found:.4g}.")


# kind -> (whether such a head says more, what is wrong with an answer that takes it otherwise); judged in this order
KINDS = {
    "as loud": (False, "One of your heads said as much before. What counts is the rise, not what is said afterwards."),
    "less": (False, "One of your heads says less than before: rise = after − before."),
    "little": (False, "One of your heads rose surely, but by less than `limit`."),
    "removed": (False, "One of your heads was removed itself. It cannot step in."),
    "chance": (False, "One of your heads rose on average by chance: in one pair of prompts, and in no other. Look at the interval."),
    "agree": (False, "A head whose two prompts of a pair say the same is taken for sure. They count once: draw pairs."),
    "cancel": (True, "You miss a head that rises in every pair: its two prompts differ, their mean does not. Draw pairs."),
    "against": (True, "You miss a head that spoke against the answer, and now does so less: after − before is above 0."),
    "more": (True, "You miss a head that rose in nearly every pair, by more than `limit`."),
}  # fmt: skip


def _voices(many: int, seed: int):
    """Contributions before and after of nine heads, one of each kind; the pairs; which head is which."""
    draw = seeded(seed)
    steps = torch.linspace(-1, 1, many)
    steps = steps / steps.std(correction=0)  # mean 0, spread 1: what is sure can be told in advance
    mixed = lambda: steps[torch.randperm(many, generator=draw)]
    chance = torch.full((many,), -0.02)
    chance[int(torch.randint(many, (), generator=draw))] = 0.5 * many
    rise = {
        "as loud": 0.01 * mixed(), "less": -0.5 + 0.2 * mixed(), "little": 0.05 + 0.01 * mixed(), "removed": 0.6 + 0.1 * mixed(),
        "chance": chance, "agree": 0.4 + 0.4 * many**0.5 / 1.62 * mixed(), "cancel": 0.4 + 0.1 * mixed(),
        "against": 0.5 + 0.2 * mixed(), "more": 0.5 + 0.2 * mixed(),
    }  # fmt: skip
    numbers, within = torch.arange(many).repeat_interleave(2), torch.tensor([5.0, -5.0]).repeat(many)
    columns = torch.stack([rise[kind][numbers] + within * (kind == "cancel") for kind in KINDS], 1)
    start = torch.tensor([{"as loud": 2.0, "against": -0.6}.get(kind, 0.0) for kind in KINDS])
    before = start + 0.1 * torch.randn(2 * many, len(KINDS), generator=draw)
    order, rows = torch.randperm(9, generator=draw), torch.randperm(2 * many, generator=draw)
    grid = lambda each: each[rows][:, order].view(2 * many, 3, 3)
    names = {divmod(place, 3): list(KINDS)[kind] for place, kind in enumerate(order.tolist())}
    return grid(before), grid(before + columns), (7 * numbers + 2)[rows], names


@checker("42.6")
def check_backup(attempt: Attempt) -> str:
    for seed, many in enumerate((12, 16, 20, 12)):
        before, after, pairs, names = _voices(many, seed)
        removed = [head for head, kind in names.items() if kind == "removed"]
        value = attempt(before, after, removed, pairs, 0.2, seeded(seed))
        found = [(int(layer), int(head)) for layer, head in value]
        stray = [head for head in found if head not in names]
        if stray:
            raise NotYet(f"{stray[0]} is no head of this example. Is each entry (layer, head), from 0?")
        kinds = {names[head] for head in found}
        for kind, (wanted, why) in KINDS.items():
            if (kind in kinds) != wanted:
                raise NotYet(why)
    return "Those that surely say more, and none that rose by chance, fell, was loud before, or was removed; four times."
