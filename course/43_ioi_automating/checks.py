"""Checks of notebook 43, the IOI circuit: automating it."""

from contextlib import suppress
from itertools import combinations, pairwise

import torch
from torch import Tensor

import mechlab as ml
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

    def slope_alone(base, source, slope, ends):
        """Where is the step? Multiply the gradient by source − base."""
        return slope.sum((1, 3)).mean(0) / _gap(ends)

    def lengths(base, source, slope, ends):
        """You multiplied lengths. An inner product asks for the angle too: multiply, then add up."""
        return ((source - base).norm(dim=-1) * slope.norm(dim=-1)).sum(1).mean(0) / _gap(ends)

    def sizes(base, source, slope, ends):
        """The sizes are added up. Keep the signs: they may cancel."""
        return _share(0 * base, (source - base).abs(), slope.abs(), ends)

    def by_base(base, source, slope, ends):
        """Divide by source's mean metric minus base's, not by base's alone."""
        return _guess(base, source, slope, ends).mean(0) / ends[0].mean()

    def by_source(base, source, slope, ends):
        """Divide by source's mean metric minus base's, not by source's alone."""
        return _guess(base, source, slope, ends).mean(0) / ends[1].mean()


def _neurons(seed: int, count: int, size: float = 1.5):
    return size * random(2, count, seed=seed), size * random(2, count, seed=seed + 9)


def _parts(gate, up):
    """At base: the sigmoid of the gate and both factors; then the steps of the gate and of `up`."""
    return gate[0].sigmoid(), gate[0] * gate[0].sigmoid(), up[0], gate[1] - gate[0], up[1] - up[0]


def _by_gradient(gate, up):
    sigma, silu, other, step, other_step = _parts(gate, up)
    return sigma * (1 + gate[0] * (1 - sigma)) * other * step + silu * other_step


def _by_half(gate, up):
    sigma, silu, other, step, other_step = _parts(gate, up)
    return (sigma * other * step + silu * other_step) / 2


def _silu_change(gate, up):
    value = gate * gate.sigmoid() * up
    return value[1] - value[0]


@declare("43.7", axes="guess, neuron")
class TwoGuesses:
    cases = tuple(_neurons(seed, 4 + seed) for seed in range(4))

    def right(gate, up):
        return torch.stack([_by_gradient(gate, up), _by_half(gate, up)])

    def further(attempt):
        gate, up = _neurons(20, 6)
        guess = lambda *given: attempt.tensor(*given, shape=(2, 6), axes="guess, neuron")
        to_zero = guess(gate * torch.tensor([[1.0], [0.0]]), up * torch.tensor([[1.0], [0.0]]))[1]
        why = "With both factors 0 on source the half rule takes away exactly what was there. Yours does not."
        refuse(not close(to_zero, -gate[0] * gate[0].sigmoid() * up[0]), why)
        near = [x[:1].lerp(x[1:], torch.tensor([[0.0], [1e-3]])) for x in (gate, up)]
        off = guess(*near)[0] - _silu_change(*near)
        refuse(
            off.abs().max() > 1e-4,
            "For a very small step the gradient's guess must be the change. Yours is not.",
        )
        return "Right on four sets of neurons; the gradient for small steps, the half rule down to zero."

    def turned(gate, up):
        """The two rows are exchanged: first the gradient's guess, then that of the half rule."""
        return torch.stack([_by_half(gate, up), _by_gradient(gate, up)])

    def sign(gate, up):
        """The sign is turned round: a step goes from base (row 0) to source (row 1)."""
        return -torch.stack([_by_gradient(gate, up), _by_half(gate, up)])

    def up_slope_without_gate(gate, up):
        """The slope for `up` is silu(gate) = gate · σ; the gate itself is missing in it."""
        less = (gate[0] - 1) * gate[0].sigmoid() * (up[1] - up[0])
        return torch.stack([_by_gradient(gate, up) - less, _by_half(gate, up) - less / 2])

    def up_at_source(gate, up):
        """The slope for the gate needs `up` at base, row 0."""
        sigma, _, _, step, other = _parts(gate, up)
        more = sigma * step * other
        first = _by_gradient(gate, up) + more * (1 + gate[0] * (1 - sigma))
        return torch.stack([first, _by_half(gate, up) + more / 2])

    def whole(gate, up):
        """The half is missing in the half rule: each factor gets half of its slope."""
        return torch.stack([_by_gradient(gate, up), 2 * _by_half(gate, up)])

    def true_slope(gate, up):
        """In the half rule silu(gate) / gate is held: the gate's slope is half of sigmoid(gate) · up."""
        return torch.stack([_by_gradient(gate, up), _by_gradient(gate, up) / 2])

    def held_in_both(gate, up):
        """The gradient's guess needs silu's own slope; you held silu(gate) / gate there too."""
        return torch.stack([2 * _by_half(gate, up), _by_half(gate, up)])

    def gate_alone(gate, up):
        """Only the gate moves in your guesses. The other factor moves too."""
        up = up[:1].expand(2, -1)
        return torch.stack([_by_gradient(gate, up), _by_half(gate, up)])

    def up_alone(gate, up):
        """Only the factor `up` moves in your guesses. The gate moves too."""
        gate = gate[:1].expand(2, -1)
        return torch.stack([_by_gradient(gate, up), _by_half(gate, up)])

    def at_source(gate, up):
        """You took the slopes at source. The gradient is taken at base, row 0."""
        return -torch.stack([_by_gradient(gate.flip(0), up.flip(0)), _by_half(gate.flip(0), up.flip(0))])

    def exact(gate, up):
        """That is the change itself. A guess may not compute silu at source."""
        return _silu_change(gate, up).expand(2, -1)

    def held_at_source(gate, up):
        """Hold silu(gate) / gate at what it is on base, not on source."""
        moved = torch.stack([gate[0], gate[1]]).flip(0)
        sigma = moved[0].sigmoid()
        half = sigma * (up[0] * (gate[1] - gate[0]) + gate[0] * (up[1] - up[0])) / 2
        return torch.stack([_by_gradient(gate, up), half])


def _step_of(found, which: str) -> tuple[Tensor, Tensor]:
    """One step as gate and up [2, 1], from ((gate, up), (gate, up)) of base and source."""
    try:
        numbers = [[number(each, "four numbers for each step") for each in end] for end in found]
    except TypeError:
        raise NotYet(f"The {which} step must be ((gate, up) at base, (gate, up) at source).") from None
    if [len(end) for end in numbers] != [2, 2]:
        raise NotYet(f"The {which} step must be ((gate, up) at base, (gate, up) at source).")
    ends = torch.tensor(numbers, dtype=torch.double)
    refuse(ends.abs().max() > 6, f"Stay between -6 and 6, where activations are; the {which} step does not.")
    return ends[:, :1], ends[:, 1:]


def _fails(ends: tuple[Tensor, Tensor], which: str, wrong, right, names: tuple[str, str]) -> None:
    """Refuse a step on which the guess `wrong` has the right sign, or `right` is far off."""
    true, bad, good = (float(guess(*ends)) for guess in (_silu_change, wrong, right))
    (gate, up), (gate_then, up_then) = ends[0][:, 0].tolist(), ends[1][:, 0].tolist()
    read = f"(gate {gate:g} to {gate_then:g}, up {up:g} to {up_then:g})"
    little = f"nothing much changes ({true:.3f}). Let it be 0.02 at least: a large `up` scales everything."
    refuse(abs(true) < 0.02, f"On the {which} step {read} {little}")
    told = f"{read} {names[0]} says {bad:.2f}, {names[1]} {good:.2f}, and it is {true:.2f}"
    refuse(
        bad * true > 0, f"On the {which} step {told}: the sign of {names[0]} is right, and should be wrong."
    )
    far = f"On the {which} step {told}: {names[1]} is off by more than a fifth."
    refuse(abs(good - true) > 0.2 * abs(true), far)


@checker("43.8")
def check_both_fail(attempt: Attempt) -> str:
    found = attempt()
    if isinstance(found, torch.Tensor) or type(found).__module__ == "numpy":
        found = found.tolist()
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise NotYet("Return two steps: where the gradient fails, then where the half rule does.")
    gradient, half = "the gradient", "the half rule"
    steps = [_step_of(step, which) for step, which in zip(found, ("first", "second"), strict=True)]
    asked = ((_by_gradient, _by_half, (gradient, half)), (_by_half, _by_gradient, (half, gradient)))
    turned = False
    with suppress(NotYet):
        for step, each in zip(steps, reversed(asked), strict=True):
            _fails(step, "", *each)
        turned = True
    refuse(turned, "Both steps are right, the wrong way round: first the one where the gradient fails.")
    for step, which, each in zip(steps, ("first", "second"), asked, strict=True):
        _fails(step, which, *each)
    return "Each rule has the wrong sign where the other is right: neither is the truth, an exact patch is."


MOST = 12  # edges that an answer may patch


class _Hunt:
    """Four prompts that the notebook does not show: both guesses of every edge, and exact patches."""

    def __init__(self, model, seed: int, how: str):
        prompts = ml.ioi_prompts(model, 4, seed=seed)
        clean = ml.run_of(model, prompts.tokens)
        spoiled = ml.run_of(model, prompts.corrupted(how).tokens, like=clean)
        ends = (clean, spoiled) if how == "abc" else (spoiled, clean)
        self.given = (model, *ends, prompts.metric)
        self.gradient = ml.edge_attribution(*self.given)
        self.half = ml.edge_attribution(*self.given, rule="half")
        self.known: dict[tuple[str, str], float] = {}

    def name(self, place: int) -> tuple[str, str]:
        senders, readers = (self.gradient.labels[axis] for axis in ("sender", "reader"))
        return senders[place // len(readers)], readers[place % len(readers)]

    def exact(self, edges) -> Tensor:
        new = [edge for edge in dict.fromkeys(edges) if edge not in self.known]
        if new:
            try:
                values = ml.edge_patching(*self.given, new).values.tolist()
            except ValueError as backwards:
                raise NotYet(str(backwards)) from None
            self.known |= dict(zip(new, values, strict=True))
        return torch.tensor([self.known[edge] for edge in edges])

    def largest(self, sizes: Tensor, many: int) -> list[tuple[str, str]]:
        """The edges out of heads with the largest sizes; those of 20.0 the notebook shows."""
        heads = torch.tensor(["." in name and name != "20.0" for name in self.gradient.labels["sender"]])
        order = (sizes.abs() * heads[:, None]).flatten().argsort(descending=True)
        return [self.name(n) for n in order[:many].tolist()]

    def error(self, edge: tuple[str, str]) -> float:
        guess = self.gradient.at(sender=edge[0], reader=edge[1]).item()
        return abs(guess - self.exact([edge]).item())


def _an_edge(edge, hunt: _Hunt) -> tuple[str, str]:
    if not isinstance(edge, (tuple, list)) or len(edge) != 2 or not all(isinstance(x, str) for x in edge):
        raise NotYet(
            f"An edge is two names, (sender, reader), such as ('20.0', 'mlp 20 in'). Yours: {edge!r:.60}."
        )
    known = hunt.gradient.labels
    turned = edge[0] in known["reader"] and edge[1] in known["sender"]
    refuse(turned, f"{edge[0]!r} is a reader: an edge is (sender, reader).")
    refuse(edge[0] not in known["sender"], f"No sender is called {edge[0]!r:.40}.")
    refuse(edge[1] not in known["reader"], f"No reader is called {edge[1]!r:.40}.")
    return tuple(edge)


def _hunted(attempt: Attempt, hunt: _Hunt) -> tuple[tuple[str, str], int]:
    """The edge that an answer finds, and how many it patched."""
    asked: set[tuple[str, str]] = set()

    def patch(edges) -> Tensor:
        edges = [_an_edge(edge, hunt) for edge in edges]
        asked.update(edges)
        if len(asked) > MOST:
            raise NotYet("too many edges")
        return hunt.exact(edges)

    try:
        edge = _an_edge(attempt(hunt.gradient, hunt.half, patch), hunt)
    except NotYet as verdict:
        much = f"You patch more than {MOST} different edges. Let the two guesses choose first."
        raise NotYet(much) if len(asked) > MOST else verdict from None
    refuse("." not in edge[0], f"The edge should come out of a head, such as '17.4'; {edge[0]!r} is none.")
    refuse(edge[0] == "20.0", "The edges of 20.0 are in the first picture. Find one of another head.")
    return edge, len(asked)


@checker("43.9")
def check_worst_edge(attempt: Attempt, model) -> str:
    found = []
    for seed, how in ((31, "flip"), (32, "abc")):
        hunt = _Hunt(model, seed, how)
        edge, many = _hunted(attempt, hunt)
        apart = hunt.largest(hunt.gradient.values - hunt.half.values, 8)
        pool = {*apart, *hunt.largest(hunt.gradient.values, 8)}
        worst = max(pool, key=hunt.error)
        off, most = hunt.error(edge), hunt.error(worst)
        told = f"With {how} prompts the guess for {edge[0]} → {edge[1]} is off by {off:.2f}"
        far, loudest = off < 0.8 * most, max(hunt.known, key=lambda each: abs(hunt.known[each]))
        first = hunt.largest(hunt.gradient.values, 1)[0]
        refuse(far and edge == first, f"{told}: the largest guess is not the worst one.")
        refuse(far and edge == loudest, f"{told}: the edge that does most is not the one guessed worst.")
        refuse(far and not many, f"{told}. You patched nothing, so you cannot know how far off it is.")
        refuse(
            far, f"{told}; another one is off by {most:.2f}. Large guesses and doubtful ones: look at both."
        )
        refuse(
            not many, f"{told}, and you patched nothing. How could you know it of prompts you have not seen?"
        )
        found.append(f"{off:.2f}")
    return f"On prompts that you have not seen, two corruptions, your edges are off by {' and '.join(found)}."


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
    why = "Is every head of the circuit, (layer, head), compared with every head outside it?"
    wrong = [f"{only_wrong(*both)} {why}" for both in zip(found, right, strict=True) if not close(*both)]
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
        "The size of a score counts, not its sign. And equal scores count half.": area(scores, 0.0),
        "That is a difference of two mean scores. Count pairs.": size[inside].mean() - size[~inside].mean(),
        "You compare with the median. Compare each head of the circuit with each outside it.": (
            (size[inside] > size.median()).float().mean()
        ),
        "That is the Gini index, 2 · AUC − 1. Return the share of pairs.": 2 * right - 1,
    }


@checker("43.6")
def check_agreement(attempt: Attempt) -> str:
    cases = ((3, 10, (7, 7, 7)), (10, 9, (4, 20, 9, 30)), (4, 4, (5, 6)))
    for seed, (layers, heads, sizes) in enumerate(cases):
        draw, many = seeded(seed), layers * heads
        some = [torch.randperm(many // 2, generator=draw)[:size].tolist() for size in sizes]
        circuits = [[divmod(n, heads) for n in numbers] for numbers in some]
        run = lambda seed, given=(circuits, layers, heads): _pair(attempt(*given, seeded(seed)))
        sets = [set(circuit) for circuit in circuits]
        (index, mistakes), both = _indices(sets), torch.tensor(run(seed))
        turned = "The two are exchanged: first the index of the given circuits, then that of random ones."
        must_equal(both[0], index, mistakes | ({turned: both[0]} if close(both[1], index) else {}))
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
    """Compare the mean control with chance, and with what likely mistakes give."""

    draw = seeded(99)

    def near(n: int, sizes) -> bool:
        some = lambda size: {*torch.randperm(n, generator=draw)[:size].tolist()}
        chance = sum(_indices([some(size) for size in sizes])[0].item() for _ in range(500)) / 500
        return abs(found - chance) <= 0.15 * chance

    if near(many, sizes):
        return
    why = "Random circuits are drawn from all heads, not only from those that some circuit has."
    refuse(near(used, sizes), why)
    why = "Each random circuit has the size of its own circuit, not that of the first."
    refuse(near(many, sizes[:1] * len(sizes)), why)
    raise NotYet(
        f"For circuits of {', '.join(map(str, sizes))} out of {many} heads your control is {found:.3f} on "
        "average, which is not what chance gives. Draw for each circuit as many different heads as it has, "
        "and compare random circuits with one another."
    )


def _pair(value) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise NotYet("Return two numbers: the mean index, and that of the random circuits.")
    return number(value[0], "the mean index first"), number(value[1], "the control second")
