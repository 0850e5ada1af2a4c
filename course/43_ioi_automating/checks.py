"""Checks of notebook 43, the IOI circuit: automating it."""

from itertools import combinations, pairwise

import torch
from torch import Tensor

from mechlab_course.checking import close, declare, must_equal, number, only_wrong, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _patched_case(seed: int, prompts: int, count: int, heads: int, d: int):
    base, source, slope = (random(prompts, count, heads, d, seed=seed + more) for more in (0, 10, 20))
    ends = random(2, prompts, seed=seed + 30)
    return base, source, slope, ends - ends.mean(1, keepdim=True) + torch.tensor([[0.7], [2.2 + seed]])


def _gap(ends):
    return ends[1].mean() - ends[0].mean()


def _guess(base, source, slope, ends):
    """Of each prompt and head: step times slope, before the share is taken."""
    return ((source - base) * slope).sum((1, 3))


def _share(base, source, slope, ends):
    return _guess(base, source, slope, ends).mean(0) / _gap(ends)


@declare("43.1", axes="head")
class GuessedEffects:
    cases = (
        _patched_case(0, 3, 4, 2, 5),
        _patched_case(1, 2, 6, 3, 4),
        _patched_case(2, 4, 3, 4, 3),
        _patched_case(3, 5, 5, 5, 2),
    )
    right = _share

    def further(attempt):
        for base, source, slope, ends in GuessedEffects.cases:
            right = _share(base, source, slope, ends)
            guess = lambda *given, like=right: attempt.tensor(*given, shape=tuple(like.shape), axes="head")
            why = "With source equal to base nothing is patched: every guess must be 0."
            refuse(not close(guess(base, base, slope, ends), 0 * right), why)
            why = "When source's metric is below base's the difference is negative: keep its sign."
            refuse(not close(guess(base, source, slope, ends.flip(0)), -right), why)
        return "Step times slope, means first, share of the way: right on four sets."

    def sign(*given):
        """The sign is turned round: base and source are exchanged in one of the differences."""
        return -_share(*given)

    def shares_first(base, source, slope, ends):
        """You averaged the share of each prompt. Take the means first, then the share."""
        return (_guess(base, source, slope, ends) / (ends[1] - ends[0])[:, None]).mean(0)

    def means_first(base, source, slope, ends):
        """You took means over prompts before you multiply. Each has its own step and slope."""
        return ((source - base).mean(0) * slope.mean(0)).sum((0, 2)) / _gap(ends)

    def source_alone(base, source, slope, ends):
        """The step is a difference of activations, source − base. You used one of the two: source."""
        return _share(0 * base, source, slope, ends)

    def base_alone(base, source, slope, ends):
        """The step is a difference of activations, source − base. You used one of the two: base."""
        return _share(0 * base, base, slope, ends)

    def no_share(*given):
        """Where is the share? Divide by the difference of the mean metrics."""
        return _guess(*given).mean(0)

    def added_up(base, *given):
        """You added up over the prompts. Take the mean."""
        return _share(base, *given) * len(base)

    def over_positions(base, *given):
        """You took the mean over positions. All are patched together: add them up."""
        return _share(base, *given) / base.shape[1]

    def over_d_head(base, *given):
        """You took the mean over d_head. An inner product adds up."""
        return _share(base, *given) / base.shape[3]

    def last_position(base, source, slope, ends):
        """Only the last position is there. All positions are patched."""
        return _share(base[:, -1:], source[:, -1:], slope[:, -1:], ends)

    def sizes(base, source, slope, ends):
        """The sizes are added up. Keep the signs: they may cancel."""
        return _share(0 * base, (source - base).abs(), slope.abs(), ends)

    def by_base(base, source, slope, ends):
        """Divide by source's mean metric minus base's, not by base's alone."""
        return _guess(base, source, slope, ends).mean(0) / ends[0].mean()

    def by_source(base, source, slope, ends):
        """Divide by source's mean metric minus base's, not by source's alone."""
        return _guess(base, source, slope, ends).mean(0) / ends[1].mean()


def _curves():
    """Two gradients and a way, with two, five, four steps and one."""
    for seed, (count, d, steps) in enumerate(((2, 5, 2), (4, 3, 5), (3, 2, 4), (3, 4, 1))):
        base, source = random(count, d, seed=seed), random(count, d, seed=seed + 9)
        mix = random(d, 3, seed=seed + 18)
        yield lambda x: 3 * x**2, base, source, steps
        yield lambda x, mix=mix: (x @ mix).tanh(), base, source, steps


def _at(shares, curve, base, source, steps):
    """The gradients at these shares of the way; in what follows `way` is curve, base, source, steps."""
    return torch.stack([curve(base + share * (source - base)) for share in shares])


def _middles(steps: int) -> Tensor:
    return (torch.arange(steps) + 0.5) / steps


@declare("43.2", axes="of the gradient")
class MeanGradient:
    cases = _curves

    def right(curve, base, source, steps):
        return _at(_middles(steps), curve, base, source, steps).mean(0)

    def further(attempt):
        base, source = random(4, 6, seed=50), random(4, 6, seed=51)
        slope = attempt.tensor(lambda x: 2 * x, base, source, 3, shape=(4, 6), axes="pos, d_model")
        whole = close(((source - base) * slope).sum(), (source**2 - base**2).sum(), 1e-3)
        refuse(not whole, "For a parabola, step times mean slope must be the whole change. Yours is not.")
        return "Right on curves, with one to five steps; for a parabola it adds up exactly."

    def starts(*way):
        """You took the start of each step. Take its middle."""
        return _at(torch.arange(way[-1]) / way[-1], *way).mean(0)

    def ends(*way):
        """You took the end of each step. Take its middle."""
        return _at((torch.arange(way[-1]) + 1) / way[-1], *way).mean(0)

    def base_alone(*way):
        """That is the gradient at base alone. Go on the way."""
        return _at([0.0], *way)[0]

    def source_alone(*way):
        """That is the gradient at source alone. Go on the way."""
        return _at([1.0], *way)[0]

    def halfway(*way):
        """That is the gradient at the mean embedding. Take the mean of the gradients."""
        return _at([0.5], *way)[0]

    def both_ends(*way):
        """Both ends are among your points. Take the middles."""
        return _at(torch.linspace(0, 1, way[-1]), *way).mean(0)

    def one_more(*way):
        """Your points are one more than the steps. Take the middles."""
        return _at(torch.linspace(0, 1, way[-1] + 1), *way).mean(0)

    def by_one_more(*way):
        """Your points divide the way by steps + 1. The middles lie at (n + 0.5) / steps."""
        return _at((torch.arange(way[-1]) + 1) / (way[-1] + 1), *way).mean(0)

    def added_up(*way):
        """The gradients are added up. Take their mean."""
        return _at(_middles(way[-1]), *way).sum(0)

    def last(*way):
        """That is the last of the gradients. Take the mean of all."""
        return _at(_middles(way[-1]), *way)[-1]

    def first(*way):
        """That is the first of the gradients. Take the mean of all."""
        return _at(_middles(way[-1]), *way)[0]

    def further_on(*way):
        """You went from source further on, not from base towards source."""
        return _at(1 + _middles(way[-1]), *way).mean(0)

    def away(*way):
        """You went from base away from source."""
        return _at(-_middles(way[-1]), *way).mean(0)

    def no_start(curve, base, source, steps):
        """The start is missing: base + share · (source − base)."""
        return torch.stack([curve(share * (source - base)) for share in _middles(steps)]).mean(0)


def _keys_case(seed: int, prompts: int, heads: int, kv: int, count: int, d_model: int, d_head: int):
    change, W = random(prompts, count, d_model, seed=seed), random(kv, d_model, d_head, seed=seed + 9)
    return change, random(prompts, heads, count, d_head, seed=seed + 18), W


def _scores(change, slopes, W):
    """Change times key matrix times slope: [prompt, key head, query head that shares it, position]."""
    groups = slopes.unflatten(1, (len(W), -1))
    return torch.einsum("npm,kmd,nkspd->nksp", change, W, groups)


def _into(change, slopes, W):
    return _scores(change, slopes, W).sum((2, 3)).mean(0)


@declare("43.3", axes="key_head", says="Right with one, two, three and four query heads to a key.")
class IntoKeys:
    cases = (
        _keys_case(0, 2, 6, 2, 5, 7, 4),
        _keys_case(1, 3, 9, 3, 4, 6, 2),
        _keys_case(2, 2, 4, 4, 5, 3, 3),
        _keys_case(3, 4, 4, 1, 2, 4, 5),
        _keys_case(4, 2, 8, 2, 6, 3, 5),
    )
    right = _into

    def strided(change, slopes, W):
        """Query heads that share a key head are neighbouring: 0, 1, 2 use the first of three."""
        return _into(change, slopes.unflatten(1, (-1, len(W))).transpose(1, 2).flatten(1, 2), W)

    def mean_of_queries(change, slopes, W):
        """One key moves all query heads that share it: take their sum, not the mean."""
        return _scores(change, slopes, W).mean(2).sum(2).mean(0)

    def first_query(change, slopes, W):
        """Only the first query head of each group counts. All that share the key do."""
        return _scores(change, slopes, W)[:, :, 0].sum(2).mean(0)

    def last_query(change, slopes, W):
        """Only the last query head of each group counts. All that share the key do."""
        return _scores(change, slopes, W)[:, :, -1].sum(2).mean(0)

    def first_few(change, slopes, W):
        """The first few query heads do not stand for the key heads. Add those that share."""
        return _into(change, slopes[:, : len(W)], W)

    def over_positions(change, slopes, W):
        """You took the mean over positions. Add them up."""
        return _into(change, slopes, W) / change.shape[1]

    def added_up(change, slopes, W):
        """You added up over prompts. Take the mean."""
        return _into(change, slopes, W) * len(change)

    def over_d_head(change, slopes, W):
        """You took the mean over d_head. An inner product adds up."""
        return _into(change, slopes, W) / W.shape[2]

    def last_position(change, slopes, W):
        """Only the last position is there. Add up all of them."""
        return _scores(change, slopes, W)[..., -1].sum(2).mean(0)

    def sign(change, slopes, W):
        """The sign is turned round. More along the slope is a positive effect."""
        return -_into(change, slopes, W)

    def sizes(change, slopes, W):
        """The sizes are added up. Query heads may cancel: keep the signs."""
        return _scores(change, slopes, W).abs().sum((2, 3)).mean(0)

    def means_first(change, slopes, W):
        """You took means over prompts before multiplying. Each has its own change and slopes."""
        return _into(change.mean(0)[None], slopes.mean(0)[None], W)


def _task(seed: int):
    """A made-up model of six heads, of which some help and some hurt."""
    draw = seeded(seed + 100)
    heads = [divmod(n, 3) for n in torch.randperm(9, generator=draw)[:6].tolist()]
    sizes = torch.tensor([2.0, 0.3, 1.0, 0.2, 0.6, 1.4])[:, None]
    weights = torch.randn(6, 7, generator=draw) * sizes
    whole = (3.0 if seed % 4 else -3.0) + 0.2 * torch.randn(7, generator=draw)
    start = whole * torch.rand((), generator=draw) * 1.3 - weights.sum(0) * 0.6

    def measure(left):
        if len({*map(tuple, left)}) < len(left):
            raise NotYet("A head stands twice in the list that you measure.")
        return start + weights[[heads.index(tuple(head)) for head in left]].sum(0)

    return whole, heads, measure


def _goes(kept: list, without: list, measure, whole: Tensor, threshold: float) -> tuple[bool, dict]:
    """Whether the head goes, and whether it would after likely mistakes."""
    before, after, mean = measure(kept), measure(without), whole.mean()
    error = lambda left: (left.mean() - mean).abs()
    each = lambda left: (left - whole).abs().mean()
    size, grows = mean.abs() * threshold, error(after) - error(before)
    lost, left = before.mean() - after.mean(), before.mean().abs()
    nearer = "A change that brings the metric nearer to it is no harm."
    far_up = "a metric too far up counts as much as one too far down."
    return grows < size, {
        "The condition is turned round: the head goes when the error grows by little.": grows >= size,
        "What counts is how much the error grows, not how large it is with the head gone.": error(after)
        < size,
        f"The error is a distance: {far_up}": lost < size,
        f"Compare with the whole model. {nearer}": lost.abs() < size,
        "Take the mean first, then the distance: prompts may cancel here.": each(after) - each(before) < size,
        "An error that shrinks by much is no reason to keep the head.": grows.abs() < size,
        "The threshold is a share of the whole model's mean. Multiply by its size.": grows < threshold,
        "The threshold is a share of the whole model's mean, not of the kept heads'.": grows
        < threshold * left,
        "The whole model's mean may be negative. Its size sets the threshold.": grows < threshold * mean,
        "You never take a head away. Compare the two errors.": False,
        "You always take the head away. Compare the two errors first.": True,
    }


def _step(attempt: Attempt, trial: int) -> tuple[str, set[str]]:
    """What is wrong with one step, if something is, and the mistakes that would have done the same."""
    whole, heads, measure = _task(trial)
    kept, head = heads[: 4 + trial % 3], heads[trial % 4]
    threshold = 0.02 + 0.3 * torch.rand((), generator=seeded(trial)).item()
    found = attempt(measure, kept, head, whole, threshold)
    if not isinstance(found, (list, tuple)):
        raise NotYet(f"Return a list of heads; you returned a {type(found).__name__}.")
    without = [other for other in kept if other != head]
    found = sorted(found, key=str)
    if found not in (sorted(kept, key=str), sorted(without, key=str)):
        raise NotYet(f"Of {kept}, trying {head}, all stay or all but {head}. Yours: {str(found)[:80]}.")
    goes = len(found) < len(kept)
    expected, mistakes = _goes(kept, without, measure, whole, threshold)
    what = f"Of {kept}, trying {head} at {threshold:.2f}, it should {'go' if expected else 'stay'}."
    return "" if goes == expected else what, [why for why, like in mistakes.items() if like == goes]


@checker("43.4")
def check_step(attempt: Attempt) -> str:
    steps = [_step(attempt, trial) for trial in range(150)]
    wrong = [what for what, _ in steps if what]
    if wrong:
        explained = (why for why in steps[0][1] if all(why in same for _, same in steps))
        raise NotYet(next(explained, wrong[-1]))
    return "150 steps on made-up models, with parts that help and parts that hurt."


def _ranking(seed: int, layers: int, heads: int, many: int):
    scores = random(layers, heads, seed=seed)
    order = torch.randperm(layers * heads, generator=seeded(seed))[:many]
    ties = (2 * scores).round()
    return ties if seed % 2 else scores, [divmod(n, heads) for n in order.tolist()]


@checker("43.5")
def check_auc(attempt: Attempt) -> str:
    sizes = ((6, 5, 7), (4, 3, 3), (3, 8, 5), (5, 2, 9), (7, 4, 6))
    cases = [_ranking(seed, *each) for seed, each in enumerate(sizes)]
    found = torch.tensor([number(attempt(*case), "the share of pairs") for case in cases])
    right, mistakes = zip(*(_areas(*case) for case in cases), strict=True)
    told = {why: torch.stack([each[why] for each in mistakes]) for why in mistakes[0]}  # in all cases
    wrong = [only_wrong(*both) for both in zip(found, right, strict=True) if not close(*both)]
    must_equal(found, torch.stack(right), told, otherwise=lambda: wrong[0])
    good, bad = torch.zeros(3, 3), torch.ones(3, 3)
    good[1, 2], bad[1, 2] = -1.0, 0.0
    for scores, area in ((good, 1.0), (bad, 0.0), (torch.ones(3, 3), 0.5)):
        off = abs(number(attempt(scores, [(1, 2)]), "the share of pairs") - area)
        why = "A perfect ranking has 1, the opposite 0, and all equal 0.5. Not all are so here."
        refuse(off > 1e-5, why)
    return "Right with ties and signs; 1 for a perfect ranking, 0 for the opposite, 0.5 for none."


def _areas(scores: Tensor, circuit: list) -> tuple[Tensor, dict[str, Tensor]]:
    """The area, and what likely mistakes give."""
    inside = torch.zeros(scores.shape, dtype=torch.bool)
    inside[tuple(torch.tensor(circuit).T)] = True

    def area(size, ties=0.5, others=~inside):
        mine, rest = size[inside][:, None], size[others]
        return ((mine > rest).float() + ties * (mine == rest).float()).mean()

    size = scores.abs()
    right, everyone = area(size), torch.ones_like(inside)
    first = inside.flatten()[size.flatten().argsort(descending=True)[: len(circuit)]].float().mean()
    return right, {
        "The size of a score counts, not its sign: a head may work against the answer.": area(scores),
        "Equal scores count half, and yours count nothing.": area(size, 0.0),
        "Equal scores count half, and yours count whole.": area(size, 1.0),
        "Pair each head of the circuit with those outside the circuit, not with all.": area(
            size, others=everyone
        ),
        "That is the share of the circuit among as many largest scores. Compare all pairs.": first,
        "It is turned round: how often has the head inside the larger score?": 1 - right,
        "You added the pairs up. Divide by how many there are.": right * inside.sum() * (~inside).sum(),
        "That is the Gini index, 2 · AUC − 1. Return the share of pairs.": 2 * right - 1,
    }


@checker("43.6")
def check_agreement(attempt: Attempt) -> str:
    cases = ((6, 5, (7, 7, 7)), (10, 9, (12, 8, 15, 9)), (4, 4, (5, 6)))
    for seed, (layers, heads, sizes) in enumerate(cases):
        draw, many = seeded(seed), layers * heads
        some = [torch.randperm(many // 2, generator=draw)[:size].tolist() for size in sizes]
        circuits = [[divmod(n, heads) for n in numbers] for numbers in some]
        run = lambda seed, given=(circuits, layers, heads): _pair(attempt(*given, seeded(seed)))
        sets = [set(circuit) for circuit in circuits]
        must_equal(torch.tensor(run(seed)[0]), *_indices(sets))
        controls = [run(seed)[1] for seed in range(120)]
        why = "The same generator must give the same control: draw with `generator`."
        refuse(controls[:20] != [run(seed)[1] for seed in range(20)], why)
        why = "The control is the same for every generator. Draw random circuits with `generator`."
        refuse(len({*controls}) < 2, why)
        _control(sum(controls) / 120, many, len(set.union(*sets)), sizes)
    return "Exact for three sets of circuits, and the control is what chance gives for their sizes."


def _indices(sets: list[set]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean index of all pairs, and what likely mistakes give."""
    both = [*combinations(sets, 2)]
    shared = lambda a, b: len(a & b)
    jaccard = lambda a, b: len(a & b) / len(a | b)
    mean = lambda measure, pairs=both: torch.tensor(sum(measure(*two) for two in pairs) / len(pairs))
    over = lambda size: mean(lambda a, b: len(a & b) / size(len(a), len(b)))  # divided by another size
    dice, total = over(lambda a, b: (a + b) / 2), over(lambda a, b: a + b)
    itself, of_first = [(a, b) for a in sets for b in sets], [(sets[0], each) for each in sets[1:]]
    everybody = torch.tensor(len(set.intersection(*sets)) / len(set.union(*sets)))
    return mean(jaccard), {
        "A circuit is compared with itself too. Take pairs of different circuits.": mean(jaccard, itself),
        "Divide by the heads in either of the two, not by those of the smaller.": over(min),
        "Divide by the heads in either of the two, not by those of the larger.": over(max),
        "That is the Dice index. Divide by the heads in either, each counted once.": dice,
        "In the sum of the sizes shared heads count twice. Divide by the heads in either.": total,
        "You took neighbours in the list only. Take all pairs.": mean(jaccard, [*pairwise(sets)]),
        "You compared all with the first circuit only. Take all pairs.": mean(jaccard, of_first),
        "That is what all share over what any has. Take pairs, then the mean.": everybody,
        "You counted the shared heads. Divide by the heads in either, pair by pair.": mean(shared),
        "The indices are added up. Take their mean.": mean(jaccard) * len(both),
    }


def _control(found: float, many: int, used: int, sizes) -> None:
    """Compare the mean control with chance: out of all heads, or only out of those that are used."""
    draw, chance = seeded(99), {}
    for n in (many, used):
        some = lambda size, n=n: {*torch.randperm(n, generator=draw)[:size].tolist()}
        chance[n] = sum(_indices([some(size) for size in sizes])[0].item() for _ in range(500)) / 500
    near = lambda n: abs(found - chance[n]) <= 0.15 * chance[n]
    if not near(many):
        why = "Random circuits are drawn from all heads, not only from those that some circuit has."
        refuse(near(used), why)
        raise NotYet(
            f"For circuits of {', '.join(map(str, sizes))} out of {many} heads chance gives about "
            f"{chance[many]:.3f}; yours is {found:.3f} on average. Draw as many different heads as each "
            "circuit has."
        )


def _pair(value) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise NotYet("Return two numbers: the mean index, and that of the random circuits.")
    return number(value[0], "the mean index first"), number(value[1], "the control second")
