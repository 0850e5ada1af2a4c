"""Checks of notebook 42, the IOI circuit: proving it."""

from random import Random

import torch
from torch import Tensor

from mechlab_course.checking import declare, must_equal, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _acting(seed: int, shape: tuple[int, ...]):
    """Four heads with the names of their positions, and where these stand in each prompt."""
    draw, (layers, prompts, count, heads) = seeded(seed), shape
    places = torch.stack([torch.randperm(count, generator=draw)[:4] for _ in range(prompts)])
    positions = dict(zip(("IO", "S1", "S2", "end"), places.T, strict=True))
    order = torch.randperm(layers * heads, generator=draw)[:4].tolist()
    names = (["S2"], ["S1", "IO"], ["end"], ["IO", "S2", "end"])
    return {divmod(n, heads): at for n, at in zip(order, names, strict=True)}, positions


@checker("42.1")
def check_mask(attempt: Attempt) -> str:
    for seed, shape in enumerate(((3, 4, 7, 3), (4, 5, 9, 2), (2, 1, 6, 5), (5, 6, 8, 5))):
        acts, positions = _acting(seed, shape)
        given = {head: list(at) for head, at in acts.items()}
        found = _bools(attempt(given, positions, shape), shape)
        refuse(given != acts, "Your function changes the dictionary it was given. Only read it.")
        right, mistakes = _masks(acts, positions, shape)
        if not torch.equal(found, right):
            where = _first_wrong(found != right, right, acts, positions)
            must_equal(found, right, mistakes, otherwise=lambda where=where: where)
    return "Every head stays in at its own positions, in each prompt at the right place, on four shapes."


def _bools(found, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(found, Tensor) or found.dtype != torch.bool:
        kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise NotYet(f"True and False are needed (`dtype=torch.bool`); you returned {kind}.")
    if tuple(found.shape) != shape:
        raise NotYet(f"The shape is {tuple(found.shape)}; it should be {shape}: [layer, prompt, pos, head].")
    return found.detach().cpu()


def _first_wrong(wrong: Tensor, right: Tensor, acts: dict, positions: dict) -> str:
    layer, prompt, at, head = wrong.nonzero()[0].tolist()
    names, here = acts.get((layer, head), "no position"), {k: int(v[prompt]) for k, v in positions.items()}
    return (
        f"Head {layer}.{head} acts at {names}. In prompt {prompt} these stand at {here}; "
        f"there, at position {at}, the mask should be {bool(right[layer, prompt, at, head])}."
    )


def _masks(acts, positions, shape) -> tuple[Tensor, dict[str, Tensor]]:
    """The right mask, and those of likely mistakes."""

    def mask(of=slice(None), where=lambda at, prompt: int(at[prompt]), heads=acts):
        kept = torch.zeros(shape, dtype=torch.bool)
        for (layer, head), names in heads.items():
            for name in names[of]:
                for prompt in range(shape[1]):
                    kept[layer, prompt, where(positions[name], prompt), head] = True
        return kept

    turned = {(head, layer): at for (layer, head), at in acts.items() if head < shape[0] and layer < shape[3]}
    everywhere, as_first = mask(where=lambda *_: slice(None)), mask(where=lambda at, _: int(at[0]))
    one = "A head with several names is marked at only one of its positions"
    return mask(), {
        "That is the other way round: True where a head acts.": ~mask(),
        "Each prompt has its own position: S2 of another prompt is marked here too. Pick pairs of prompt "
        "and position.": mask(where=lambda at, _: at),
        "Your heads stay in at every position. They act at the positions that `acts` names only.": everywhere,
        f"{one}. Go through all names.": mask(slice(1)),
        f"{one}, the last. Go through all names.": mask(slice(-1, None)),
        "All prompts are marked at the position of the first one. Each has its own position.": as_first,
        "Nothing is marked. Do you write into the mask that you return?": mask(heads={}),
        "Layer and head are exchanged: the keys of `acts` are (layer, head).": mask(heads=turned),
    }


def _still_case(seed: int, templates: str, its: str):
    templates, its = templates.split(), its.split()
    count, heads, size = 5 - seed, 3 + seed, 2 + seed
    z = random(len(templates), count, heads, size, seed=seed)
    kept = torch.rand(len(templates), count, heads, generator=seeded(seed)) < 0.4
    return z, kept, random(len(its), count, heads, size, seed=seed + 9) + 1, templates, its


def _usual(z, reference, templates, its, mean=lambda rows: rows.mean(0)):
    """For each prompt what stands in for it, such as the mean of the reference prompts of its template."""
    same = lambda template: [n for n, other in enumerate(its) if other == template]
    return torch.stack([mean(reference[same(template)]).expand_as(z[0]) for template in templates])


def _put(z, kept, *given):
    return torch.where(kept[..., None], z, _usual(z, *given))


@declare(
    "42.2",
    axes="prompt, pos, head, d_head",
    says="Kept where it is marked, and elsewhere the mean of its own template and position, three times.",
)
class HeldStill:
    cases = (
        _still_case(0, "b a b", "a b b a b"),
        _still_case(1, "x z y z", "z x x y z z"),
        _still_case(2, "k kk", "kk k kk k"),
    )
    right = _put

    def turned(z, kept, *given):
        """It is the wrong way round: keep z where `kept` is True, and put the mean elsewhere."""
        return _put(z, ~kept, *given)

    def all_templates(z, kept, reference, *templates):
        """That is the mean of all templates. Each prompt gets the mean of its own."""
        return _put(z, kept, reference, *templates, lambda _: reference.mean(0))

    def over_positions(*given):
        """You averaged over the positions too. Keep them apart."""
        return _put(*given, lambda rows: rows.mean((0, 1)))

    def over_heads(*given):
        """You averaged over the heads too. Each head has its own mean."""
        return _put(*given, lambda rows: rows.mean((0, 2))[:, None])

    def of_themselves(z, kept, reference, templates, its):
        """That is the mean over these prompts themselves.
        They know the answer; take the reference prompts."""
        return _put(z, kept, z, templates, templates)

    def one_prompt(*given):
        """One reference prompt of the template is not its mean. Average over all of them."""
        return _put(*given, lambda rows: rows[0])

    def added_up(*given):
        """You added up. Take the mean."""
        return _put(*given, lambda rows: rows.sum(0))

    def zero(*given):
        """That is zero in place of the mean."""
        return _put(*given, lambda rows: 0 * rows[0])

    def nothing(z, *given):
        """Nothing is held still. Do you return the changed copy?"""
        return z

    def everything(z, kept, *given):
        """Everything is held still, also what `kept` marks."""
        return _usual(z, *given)

    def on_top(z, kept, *given):
        """The mean is added to what was there. Write it in its place."""
        return torch.where(kept[..., None], z, z + _usual(z, *given))


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


def _sums(circuit: Tensor, whole: Tensor, pairs: Tensor) -> list[Tensor]:
    """The sums over each pair, of the circuit and of the whole model."""
    numbers = pairs.unique(return_inverse=True)[1]
    zero = torch.zeros(len(pairs.unique()))
    return [zero.index_add(0, numbers, each) for each in (circuit, whole)]


@checker("42.3")
def check_share(attempt: Attempt) -> str:
    for seed, many in enumerate((16, 40, 10)):
        given = _pairs_of(many, seed)
        share, low, high = _three(attempt(*given, 4000, seeded(seed)))
        _share(share, *given)
        refuse(high < low, "Return the share, then the lower end, then the upper one.")
        _interval((low, high), *given)
    one, same, other = (_three(attempt(*given, 200, seeded(seed))) for seed in (1, 1, 2))
    why = "The same generator must give the same interval: draw with `generator=generator`."
    refuse(one != same or one[1:] == other[1:], why)
    _, low, high = _three(attempt(*given, 1, seeded(4)))
    why = "`draws` is how many samples are drawn. With one sample both ends are its ratio."
    refuse(abs(high - low) > 1e-5, why)
    return "A ratio of means, and an interval from whole pairs, as wide as it should be, on three sets."


def _share(found: float, circuit: Tensor, whole: Tensor, pairs: Tensor) -> None:
    top, bottom = _sums(circuit, whole, pairs)
    expected = circuit.mean() / whole.mean()
    mistakes = {
        "That is the mean of the prompts' ratios. Divide the two means: a prompt near 0 must not rule "
        "the result.": (circuit / whole).mean(),
        "That is the mean of the pairs' ratios. Divide the two means.": (top / bottom).mean(),
        "The ratio is upside down: the circuit goes on top.": 1 / expected,
        "That is what is lost. The share that is left is wanted.": 1 - expected,
        "That is a difference. Divide.": (circuit - whole).mean(),
        "That is the median of the ratios. Divide the two means.": (circuit / whole).median(),
    }
    _told(found, expected, mistakes)


def _interval(found: tuple[float, float], circuit: Tensor, whole: Tensor, pairs: Tensor) -> None:
    """Compare the ends with those of many draws of pairs, and of draws after likely mistakes."""
    top, bottom = _sums(circuit, whole, pairs)
    many, draw = len(top), seeded(99)
    ends = lambda one, two: _quantiles(top[one].sum(1) / bottom[two].sum(1))
    drawn, other = (torch.randint(many, (20000, many), generator=draw) for _ in range(2))
    low, high = right = ends(drawn, drawn)
    apart = lambda one, two: (abs(one[0] - two[0]) + abs(one[1] - two[1])) / (high - low)
    if apart(found, right) < 0.12:
        return
    single, few = (torch.randint(n, (20000, 2 * many), generator=draw) for n in (2 * many, many))
    ratios, own, share = top[drawn].sum(1) / bottom[drawn].sum(1), top / bottom, top.sum() / bottom.sum()
    mistakes = {
        "You drew prompts one by one. The two of a pair go together: draw pairs, or the interval is too "
        "narrow.": _quantiles(circuit[single].mean(1) / whole[single].mean(1)),
        "The two means are drawn apart. Each draw of pairs serves both, or the interval is too wide.": ends(
            drawn, other
        ),
        "These are quantiles of the pairs' own ratios. Take them of the ratios of many draws.": _quantiles(
            own
        ),
        "The whole model's mean is held fixed. It is uncertain too: draw it with the same pairs.": _quantiles(
            top[drawn].sum(1) / bottom.sum()
        ),
        "You averaged the pairs' ratios in each draw. Divide the sums.": _quantiles(own[drawn].mean(1)),
        "You drew as many pairs as there are prompts. Draw as many as there are pairs.": ends(few, few),
        "Your interval has no width. Draw with replacement: `torch.randint`.": [share, share],
        "That is a 90 % interval. Take the quantiles 0.025 and 0.975.": _quantiles(ratios, 0.05),
        "These are the quartiles. Take the quantiles 0.025 and 0.975.": _quantiles(ratios, 0.25),
    }
    for why, like in mistakes.items():
        refuse(apart(found, like) < 0.12 < apart(like, right), why)
    yours = f"yours: {found[0]:.3f}, {found[1]:.3f}."
    raise NotYet(f"The ends should be about {low:.3f}, {high:.3f}; {yours}")


def _three(value) -> tuple[float, float, float]:
    if not isinstance(value, (tuple, list, Tensor)) or len(value) != 3:
        raise NotYet("Return three numbers: the share, the lower end and the upper end.")
    return tuple(_number(each) for each in value)


def _number(value) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"A number is needed; there is a {type(value).__name__}.") from None
    refuse(value != value, "The number that you return is NaN.")
    return value


def _told(found: float, expected: float, mistakes: dict[str, float]) -> None:
    """`must_equal` for single numbers."""
    one = lambda value: torch.tensor(float(value), dtype=torch.double)
    must_equal(one(found), one(expected), {why: one(like) for why, like in mistakes.items()})


def _toy(seed: int):
    """A metric that gives every set of heads its own value; all heads, those of a circuit, and chance."""
    draw = Random(seed)
    every = [(layer, head) for layer in range(3 + seed % 2) for head in range(4)]

    def left(heads) -> float:
        chosen = sorted({tuple(head) for head in heads})
        for head in chosen:
            if head not in every:
                raise ValueError(f"`left` was asked about {head}, which is no head of this model")
        return Random(f"{seed} {chosen}").gauss(0, 2)

    return left, every, sorted(draw.sample(every, 6)), draw


def _cut(heads: list, *gone: list) -> list:
    return [head for head in heads if not any(head in each for each in gone)]


@checker("42.4")
def check_gap(attempt: Attempt) -> str:
    for seed in range(5):
        left, every, circuit, draw = _toy(seed)
        K = draw.sample(circuit, (2, 1, 0, 6, 3)[seed])
        found = _number(attempt(left, every, circuit, K))
        few, many, C, M = left(_cut(circuit, K)), left(_cut(every, K)), left(circuit), left(every)
        outside = left(_cut(every, circuit))
        mistakes = {
            "The sign is turned: first the circuit, then minus the model.": many - few,
            "Take K away from the model too: F(M without K).": few - M,
            "Take K away from the circuit too: F(C without K).": C - many,
            "That is the gap of the whole circuit, its faithfulness. Where is K?": C - M,
            "You kept only K. Keep the circuit without K.": left(K) - many,
            "You kept only K, on both sides.": left(K) - C,
            "The model without the circuit is another question. Take K away.": few - outside,
            "That is a size without a sign. A gap is negative where the model has more to fall back on.": abs(
                few - many
            ),
            "That is F(C without K) alone. Subtract F(M without K).": few,
            "Both are compared with themselves before K was gone. Compare circuit and model.": few - C,
        }
        _told(found, few - many, mistakes)
    return "K goes on both sides, and the difference has the right sign, for five sets."


@checker("42.5")
def check_needed(attempt: Attempt) -> str:
    for seed in range(8):
        left, _, circuit, draw = _toy(seed + 20)
        head = draw.choice(circuit)
        options = [[], *(draw.sample(_cut(circuit, [head]), size) for size in (1, 2, 3, 5))]
        draw.shuffle(options)
        value = attempt(left, circuit, head, [list(K) for K in options])
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise NotYet("Return two things: the chosen K, a list of heads, and the change, a number.")
        K, found = frozenset(tuple(other) for other in value[0]), _number(value[1])
        before = {frozenset(k): left(_cut(circuit, k)) for k in options}
        after = {k: left(_cut(circuit, k, [head])) for k in before}
        refuse(K not in before, "The K that you return is none of `options`.")
        change, largest = after[K] - before[K], max(abs(after[k] - before[k]) for k in before)
        refuse(
            abs(change) < largest and abs(found - change) < 1e-4,
            "The change is right for this K, but another K of `options` gives a larger one, in either "
            "direction: choose by `abs(change)`. A head whose loss helps is needed for something too.",
        )
        C, without = left(circuit), left(_cut(circuit, [head]))
        mistakes = {
            "The change keeps its sign: it is negative where F falls without the head.": largest,
            "It is the other way round: F without K and the head, minus F without K.": -change,
            "K is gone on both sides: compare with C without K, not with the whole circuit.": after[K] - C,
            "K is not taken away: this is the head's change in the whole circuit.": without - C,
            "That is F without K and the head. Subtract F without K.": after[K],
        }
        _told(found, change, mistakes)
    return "The right K and its change, with sign, eight times."


# what is wrong with an answer that counts such a head, or does not count one; judged in this order
COUNTED = {
    "as loud": "One of your heads said as much before. What counts is the rise, not what is said afterwards.",
    "less": "One of your heads says less than before: rise = after − before.",
    "little": "One of your heads rose surely, but by less than `limit`.",
    "removed": "One of your heads was removed itself. It cannot step in.",
    "chance": "One of your heads rose on average by chance: in one pair of prompts, and in no other. "
    "Look at the interval.",
    "agree": "A head whose two prompts of a pair say the same is taken for sure. They count once: "
    "draw pairs.",
}
MISSED = {
    "cancel": "You miss a head that rises in every pair: its two prompts differ, their mean does not. "
    "Draw pairs.",
    "against": "You miss a head that spoke against the answer, and now does so less: after − before is "
    "above 0.",
    "more": "You miss a head that rose in nearly every pair, by more than `limit`.",
}
KINDS = COUNTED | MISSED


def _voices(many: int, seed: int):
    """Contributions before and after of nine heads, one of each kind; the pairs; which head is which."""
    draw = seeded(seed)
    steps = torch.linspace(-1, 1, many)
    steps = steps / steps.std(correction=0)  # mean 0, spread 1: what is sure can be told in advance
    mixed = lambda: steps[torch.randperm(many, generator=draw)]
    chance = torch.full((many,), -0.02)
    chance[int(torch.randint(many, (), generator=draw))] = 0.5 * many
    rises = {"as loud": (0, 0.01), "less": (-0.5, 0.2), "little": (0.05, 0.01), "removed": (0.6, 0.1)}
    rises |= {"agree": (0.4, 0.4 * many**0.5 / 1.62), "cancel": (0.4, 0.1)}
    rises |= {"against": (0.5, 0.2), "more": (0.5, 0.2)}
    rise = {kind: level + spread * mixed() for kind, (level, spread) in rises.items()} | {"chance": chance}
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
        for head in found:
            why = f"{head} is no head of this example. Is each entry (layer, head), from 0?"
            refuse(head not in names, why)
        kinds = {names[head] for head in found}
        for kind, why in KINDS.items():
            refuse((kind in kinds) != (kind in MISSED), why)
    return (
        "Those that surely say more, and none that rose by chance, fell, was loud before, "
        "or was removed; four times."
    )
