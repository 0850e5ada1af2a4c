"""Checks of notebook 43, the IOI circuit: automating it."""

from itertools import pairwise

import torch
from torch import Tensor

from mechlab_course.checking import close, must_equal, number, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("43.1")
def check_guess(attempt: Attempt) -> str:
    shapes = ((3, 4, 2, 5), (2, 6, 3, 4), (4, 3, 4, 3), (5, 5, 5, 2))
    for seed, (prompts, count, heads, d) in enumerate(shapes):
        base, source, slope = (random(prompts, count, heads, d, seed=seed + more) for more in (0, 10, 20))
        ends = random(2, prompts, seed=seed + 30)
        ends = ends - ends.mean(1, keepdim=True) + torch.tensor([[0.7], [2.2 + seed]])
        guess = lambda *given, h=heads: attempt.tensor(*given, shape=(h,), axes="head")
        right, mistakes = _guesses(base, source, slope, ends)
        must_equal(guess(base, source, slope, ends), right, mistakes)
        if not close(guess(base, base, slope, ends), torch.zeros(heads)):
            raise NotYet("With source equal to base nothing is patched: every guess must be 0.")
        if not close(guess(base, source, slope, ends.flip(0)), -right):
            raise NotYet("When source's metric is below base's the difference is negative: keep its sign.")
    return "Step times slope, means first, share of the way: right on four sets."


def _guesses(base: Tensor, source: Tensor, slope: Tensor, ends: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    product = (source - base) * slope
    each, gap = product.sum((1, 3)), ends[1].mean() - ends[0].mean()
    right, count, d = each.mean(0) / gap, base.shape[1], base.shape[3]
    share = lambda x: x.mean(0) / gap
    early = ((source - base).mean(0) * slope.mean(0)).sum((0, 2)) / gap
    no_difference = "The step is a difference of activations, source − base. You used one of the two"
    return right, {
        "The sign is turned round: base and source are exchanged in one of the differences.": -right,
        "You averaged the share of each prompt. Take the means first, then the share.": (each / (ends[1] - ends[0])[:, None]).mean(0),
        "You took means over prompts before you multiply. Each has its own step and slope.": early,
        f"{no_difference}: source.": share((source * slope).sum((1, 3))),
        f"{no_difference}: base.": share((base * slope).sum((1, 3))),
        "Where is the share? Divide by the difference of the mean metrics.": each.mean(0),
        "You added up over the prompts. Take the mean.": each.sum(0) / gap,
        "You took the mean over positions. All are patched together: add them up.": right / count,
        "You took the mean over d_head. An inner product adds up.": right / d,
        "Only the last position is there. All positions are patched.": share(product[:, -1].sum(2)),
        "The sizes are added up. Keep the signs: they may cancel.": share(product.abs().sum((1, 3))),
        "Divide by source's mean metric minus base's, not by base's alone.": each.mean(0) / ends[0].mean(),
        "Divide by source's mean metric minus base's, not by source's alone.": each.mean(0) / ends[1].mean(),
    }  # fmt: skip


@checker("43.2")
def check_mean(attempt: Attempt) -> str:
    for seed, (count, d, steps) in enumerate(((2, 5, 2), (4, 3, 5), (3, 2, 4), (3, 4, 1))):
        base, source = random(count, d, seed=seed), random(count, d, seed=seed + 9)
        mix = random(d, 3, seed=seed + 18)
        for curve in (lambda x: 3 * x**2, lambda x, mix=mix: (x @ mix).tanh()):
            shape = tuple(curve(base).shape)
            found = attempt.tensor(curve, base, source, steps, shape=shape, axes="of the gradient")
            must_equal(found, *_ways(curve, base, source, steps))
    base, source = random(4, 6, seed=50), random(4, 6, seed=51)
    slope = attempt.tensor(lambda x: 2 * x, base, source, 3, shape=(4, 6), axes="pos, d_model")
    if not close(((source - base) * slope).sum(), (source**2 - base**2).sum(), 1e-3):
        raise NotYet("For a parabola, step times mean slope must be the whole change. Yours is not.")
    return "Right on curves, with one to five steps; for a parabola it adds up exactly."


def _ways(curve, base: Tensor, source: Tensor, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    at = lambda shares: torch.stack([curve(base + share * (source - base)) for share in shares])
    start = torch.arange(steps) / steps
    middle = start + 0.5 / steps
    return at(middle).mean(0), {
        "You took the start of each step. Take its middle.": at(start).mean(0),
        "You took the end of each step. Take its middle.": at(start + 1 / steps).mean(0),
        "That is the gradient at base alone. Go on the way.": at([0.0])[0],
        "That is the gradient at source alone. Go on the way.": at([1.0])[0],
        "That is the gradient at the mean embedding. Take the mean of the gradients.": at([0.5])[0],
        "Both ends are among your points. Take the middles.": at(torch.linspace(0, 1, steps)).mean(0),
        "Your points are one more than the steps. Take the middles.": at(torch.linspace(0, 1, steps + 1)).mean(0),
        "Your points divide the way by steps + 1. The middles lie at (n + 0.5) / steps.": at(torch.arange(1, steps + 1) / (steps + 1)).mean(0),
        "The gradients are added up. Take their mean.": at(middle).sum(0),
        "That is the last of the gradients. Take the mean of all.": at(middle)[-1],
        "That is the first of the gradients. Take the mean of all.": at(middle)[0],
        "You went from source further on, not from base towards source.": at(1 + middle).mean(0),
        "You went from base away from source.": at(-middle).mean(0),
        "The start is missing: base + share · (source − base).": torch.stack([curve(s * (source - base)) for s in middle]).mean(0),
    }  # fmt: skip


@checker("43.3")
def check_edges(attempt: Attempt) -> str:
    shapes = (
        (2, 6, 2, 5, 7, 4),
        (3, 9, 3, 4, 6, 2),
        (2, 4, 4, 5, 3, 3),
        (4, 4, 1, 2, 4, 5),
        (2, 8, 2, 6, 3, 5),
    )
    for seed, (prompts, heads, kv, count, d_model, d_head) in enumerate(shapes):
        change, W = random(prompts, count, d_model, seed=seed), random(kv, d_model, d_head, seed=seed + 9)
        slopes = random(prompts, heads, count, d_head, seed=seed + 18)
        found = attempt.tensor(change, slopes, W, shape=(kv,), axes="key_head")
        must_equal(found, *_edges(change, slopes, W))
    return "Right with one, two, three and four query heads to a key."


def _edges(change: Tensor, slopes: Tensor, W: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    prompts, heads, count, d_head = slopes.shape
    kv = len(W)
    score = lambda W: torch.einsum("npm,hmd,nhpd->nhp", change, W, slopes)  # a key matrix for each query head
    each = score(W.repeat_interleave(heads // kv, 0)).unflatten(1, (kv, -1))
    strided = score(W.repeat(heads // kv, 1, 1)).unflatten(1, (-1, kv))
    right = each.sum((2, 3)).mean(0)
    means = torch.einsum("pm,kmd,kspd->k", change.mean(0), W, slopes.mean(0).unflatten(0, (kv, -1)))
    first = torch.einsum("npm,kmd,nkpd->k", change, W, slopes[:, :kv]) / prompts
    return right, {
        "Query heads that share a key head are neighbouring: 0, 1, 2 use the first of three.": strided.sum((1, 3)).mean(0),
        "One key moves all query heads that share it: take their sum, not the mean.": right * kv / heads,
        "Only the first query head of each group counts. All that share the key do.": each[:, :, 0].sum(2).mean(0),
        "Only the last query head of each group counts. All that share the key do.": each[:, :, -1].sum(2).mean(0),
        "The first few query heads do not stand for the key heads. Add those that share.": first,
        "You took the mean over positions. Add them up.": right / count,
        "You added up over prompts. Take the mean.": right * prompts,
        "You took the mean over d_head. An inner product adds up.": right / d_head,
        "Only the last position is there. Add up all of them.": each[..., -1].sum(2).mean(0),
        "The sign is turned round.  More along the slope is a positive effect.": -right,
        "The sizes are added up. Query heads may cancel: keep the signs.": each.abs().sum((2, 3)).mean(0),
        "You took means over prompts before multiplying. Each has its own change and slopes.": means,
    }  # fmt: skip


@checker("43.4")
def check_step(attempt: Attempt) -> str:
    wrong, explained = "", None
    for trial in range(150):
        whole, heads, measure = _task(trial)
        kept, head = heads[: 4 + trial % 3], heads[trial % 4]
        threshold = 0.02 + 0.3 * torch.rand((), generator=seeded(trial)).item()
        found = attempt(measure, list(kept), head, whole, threshold)
        if not isinstance(found, (list, tuple)):
            raise NotYet(f"Return a list of heads; you returned a {type(found).__name__}.")
        without = [other for other in kept if other != head]
        found = sorted(found, key=str)
        if found not in (sorted(kept, key=str), sorted(without, key=str)):
            raise NotYet(f"Of {kept}, trying {head}, all stay or all but {head}. Yours: {str(found)[:80]}.")
        goes = len(found) < len(kept)
        expected, mistakes = _goes(kept, without, measure, whole, threshold)
        same = {why for why, like in mistakes.items() if bool(like) == goes}
        explained = same if explained is None else explained & same
        if goes != bool(expected):
            wrong = f"Of {kept}, trying {head} at {threshold:.2f}, it should {'go' if expected else 'stay'}."
    if wrong:
        raise NotYet(next((why for why in mistakes if why in explained), wrong))
    return "150 steps on made-up models, with parts that help and parts that hurt."


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


def _goes(kept: list, without: list, measure, whole: Tensor, threshold: float) -> tuple[Tensor, dict]:
    """Whether the head goes, and whether it would after likely mistakes."""
    mean = lambda left: measure(left).mean()
    error = lambda left: (mean(left) - whole.mean()).abs()
    each = lambda left: (measure(left) - whole).abs().mean()
    size, grows = whole.mean().abs() * threshold, error(without) - error(kept)
    lost = mean(kept) - mean(without)
    return grows < size, {
        "The condition is turned round: the head goes when the error grows by little.": grows >= size,
        "What counts is how much the error grows, not how large it is with the head gone.": error(without) < size,
        "The error is a distance: a metric too far up counts as much as one too far down.": lost < size,
        "Compare with the whole model. A change that brings the metric nearer to it is no harm.": lost.abs() < size,
        "Take the mean first, then the distance: prompts may cancel here.": each(without) - each(kept) < size,
        "An error that shrinks by much is no reason to keep the head.": grows.abs() < size,
        "The threshold is a share of the whole model's mean. Multiply by its size.": grows < threshold,
        "The threshold is a share of the whole model's mean, not of the kept heads'.": grows < threshold * mean(kept).abs(),
        "The whole model's mean may be negative. Its size sets the threshold.": grows < threshold * whole.mean(),
        "You never take a head away. Compare the two errors.": torch.tensor(False),
        "You always take the head away. Compare the two errors first.": torch.tensor(True),
    }  # fmt: skip


@checker("43.5")
def check_auc(attempt: Attempt) -> str:
    trials = []
    for seed, (layers, heads, many) in enumerate(((6, 5, 7), (4, 3, 3), (3, 8, 5), (5, 2, 9), (7, 4, 6))):
        scores = random(layers, heads, seed=seed)
        if seed % 2:
            scores = (2 * scores).round()  # ties
        order = torch.randperm(layers * heads, generator=seeded(seed))[:many]
        circuit = [divmod(n, heads) for n in order.tolist()]
        found = number(attempt(scores, list(circuit)), "the share of pairs")
        trials.append((torch.tensor(found), *_areas(scores, circuit)))
    if wrong := [trial for trial in trials if not close(*trial[:2])]:  # the mistake that explains them all
        whys = (why for why in trials[0][2] if all(close(x, told[why]) for x, _, told in trials))
        raise NotYet(next(whys, only_wrong(*wrong[0][:2])))
    good, bad = torch.zeros(3, 3), torch.ones(3, 3)
    good[1, 2], bad[1, 2] = -1.0, 0.0
    for scores, right in ((good, 1.0), (bad, 0.0), (torch.ones(3, 3), 0.5)):
        if abs(number(attempt(scores, [(1, 2)]), "the share of pairs") - right) > 1e-5:
            raise NotYet("A perfect ranking has 1, the opposite 0, and all equal 0.5. Not all are so here.")
    return "Right with ties and signs; 1 for a perfect ranking, 0 for the opposite, 0.5 for none."


def _areas(scores: Tensor, circuit: list) -> tuple[Tensor, dict[str, Tensor]]:
    inside = torch.zeros(scores.shape, dtype=torch.bool)
    inside[tuple(torch.tensor(circuit).T)] = True

    def area(size, ties=0.5, others=~inside):
        mine, rest = size[inside][:, None], size[others]
        return ((mine > rest).float() + ties * (mine == rest).float()).mean()

    size = scores.abs()
    first = size.flatten().argsort(descending=True)[: len(circuit)]
    right = area(size)
    return right, {
        "The size of a score counts, not its sign: a head may work against the answer.": area(scores),
        "Equal scores count half, and yours count nothing.": area(size, 0.0),
        "Equal scores count half, and yours count whole.": area(size, 1.0),
        "Pair each head of the circuit with those outside the circuit, not with all.": area(size, others=size >= 0),
        "That is the share of the circuit among as many largest scores. Compare all pairs.": inside.flatten()[first].float().mean(),
        "It is turned round: how often has the head inside the larger score?": 1 - right,
        "You added the pairs up. Divide by how many there are.": right * inside.sum() * (~inside).sum(),
        "That is the Gini index, 2 · AUC − 1. Return the share of pairs.": 2 * right - 1,
    }  # fmt: skip


@checker("43.6")
def check_agreement(attempt: Attempt) -> str:
    for seed, (layers, heads, sizes) in enumerate(
        ((6, 5, (7, 7, 7)), (10, 9, (12, 8, 15, 9)), (4, 4, (5, 6)))
    ):
        draw, many = seeded(seed), layers * heads
        some = [torch.randperm(many // 2, generator=draw)[:size].tolist() for size in sizes]
        circuits = [[divmod(n, heads) for n in numbers] for numbers in some]

        def run(seed, circuits=circuits, layers=layers, heads=heads):
            given = [list(circuit) for circuit in circuits]
            return _pair(attempt(given, layers, heads, seeded(seed)))

        sets = [set(circuit) for circuit in circuits]
        must_equal(torch.tensor(run(seed)[0]), *_indices(sets))
        controls = [run(seed)[1] for seed in range(120)]
        if controls[:20] != [run(seed)[1] for seed in range(20)]:
            raise NotYet("The same generator must give the same control: draw with `generator`.")
        if len({*controls}) < 2:
            raise NotYet(
                "The control is the same for every generator. Draw random circuits with `generator`."
            )
        _control(sum(controls) / 120, many, len(set.union(*sets)), sizes)
    return "Exact for three sets of circuits, and the control is what chance gives for their sizes."


def _indices(sets: list[set]) -> tuple[Tensor, dict[str, Tensor]]:
    both = [(a, b) for n, a in enumerate(sets) for b in sets[:n]]
    jaccard = lambda a, b: len(a & b) / len(a | b)
    mean = lambda measure, pairs=both: torch.tensor(sum(measure(*two) for two in pairs) / len(pairs))
    everybody = torch.tensor(len(set.intersection(*sets)) / len(set.union(*sets)))
    return mean(jaccard), {
        "A circuit is compared with itself too. Take pairs of different circuits.": mean(jaccard, [(a, b) for a in sets for b in sets]),
        "Divide by the heads in either of the two, not by those of the smaller.": mean(lambda a, b: len(a & b) / min(len(a), len(b))),
        "Divide by the heads in either of the two, not by those of the larger.": mean(lambda a, b: len(a & b) / max(len(a), len(b))),
        "That is the Dice index. Divide by the heads in either, each counted once.": mean(lambda a, b: 2 * len(a & b) / (len(a) + len(b))),
        "In the sum of the sizes shared heads count twice. Divide by the heads in either.": mean(lambda a, b: len(a & b) / (len(a) + len(b))),
        "You took neighbours in the list only. Take all pairs.": mean(jaccard, [*pairwise(sets)]),
        "You compared all with the first circuit only. Take all pairs.": mean(jaccard, [(sets[0], each) for each in sets[1:]]),
        "That is what all share over what any has. Take pairs, then the mean.": everybody,
        "You counted the shared heads. Divide by the heads in either, pair by pair.": mean(lambda a, b: len(a & b)),
        "The indices are added up. Take their mean.": mean(jaccard) * len(both),
    }  # fmt: skip


def _control(found: float, many: int, used: int, sizes) -> None:
    """Compare the mean control with chance: out of all heads, or only out of those that are used."""
    draw, chance = seeded(99), {}
    for n in (many, used):
        total = []
        for _ in range(500):
            drawn = [{*torch.randperm(n, generator=draw)[:size].tolist()} for size in sizes]
            total.append(_indices(drawn)[0].item())
        chance[n] = sum(total) / len(total)
    if abs(found - chance[many]) <= 0.15 * chance[many]:
        return
    if abs(found - chance[used]) <= 0.15 * chance[used]:
        raise NotYet("Random circuits are drawn from all heads, not only from those that some circuit has.")
    raise NotYet(
        f"For circuits of {', '.join(map(str, sizes))} out of {many} heads chance gives about {chance[many]:.3f}; "
        f"yours is {found:.3f} on average. Draw as many different heads as each circuit has."
    )


def _pair(value) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise NotYet("Return two numbers: the mean index, and that of the random circuits.")
    return number(value[0], "the mean index first"), number(value[1], "the control second")
