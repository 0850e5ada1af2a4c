"""Checks of notebook 42, the IOI circuit: proving it."""

from functools import lru_cache
from random import Random

import torch
from torch import Tensor

import mechlab as ml
from mechlab.loading.models import DEFAULT
from mechlab_course.checking import must_equal, refuse, seeded, whole_number
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
        "Only the first head is marked. Does the `return` stand inside the loop?": mask(
            heads=dict([*acts.items()][:1])
        ),
        "Your heads stay in at all the named positions. Each acts at its own, those in `acts`.": mask(
            heads={head: [*positions] for head in acts}
        ),
        "Nothing is marked. Do you write into the mask that you return?": mask(heads={}),
        "Layer and head are exchanged: the keys of `acts` are (layer, head).": mask(heads=turned),
    }


def _pairs_of(many: int, within: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Circuit, whole, pairs: the two prompts of a pair are the more alike, the smaller `within` is."""
    draw = seeded(seed)
    normal = lambda n: torch.randn(n, generator=draw)
    shuffled = torch.randperm(2 * many, generator=draw)
    numbers = torch.arange(many).repeat_interleave(2)[shuffled]
    whole = (4 + 1.2 * normal(many))[numbers] + within * normal(2 * many)
    circuit = 0.8 * whole + (0.9 * normal(many))[numbers] + within * normal(2 * many)
    whole[0] = 0.3
    return circuit, whole, 3 * numbers + 5


def _sums(circuit: Tensor, whole: Tensor, pairs: Tensor) -> list[Tensor]:
    """The sums over each pair, of the circuit and of the whole model."""
    numbers = pairs.unique(return_inverse=True)[1]
    zero = torch.zeros(len(pairs.unique()))
    return [zero.index_add(0, numbers, each) for each in (circuit, whole)]


@checker("42.3")
def check_share(attempt: Attempt) -> str:
    cases = [_pairs_of(*of, seed) for seed, of in enumerate(((16, 0.2), (40, 0.9), (10, 0.5)))]
    intervals = []
    for seed, given in enumerate(cases):
        share, *ends = _three(attempt(*given, 4000, seeded(seed)))
        _share(share, *given)
        refuse(ends[1] < ends[0], "Return the share, then the lower end, then the upper one.")
        intervals.append(ends)
    _judge(intervals, cases)
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
    near = f"The share is the ratio of the two means, {expected:.4f}, and yours is {found:.4f}. The draws "
    _told(found, expected, mistakes, near + "serve the two ends only.")


def _judge(found: list[list[float]], cases: list[tuple]) -> None:
    """Compare the intervals with those of many draws of pairs, and of draws after likely mistakes.

    A mistake is named if it explains all of them; if two do, both are named.
    """
    ends = [_ends(*case) for case in cases]
    right = [each[""] for each in ends]
    width = [high - low for low, high in right]
    far = lambda ones, others: max(
        (abs(a - c) + abs(b - d)) / w for (a, b), (c, d), w in zip(ones, others, width, strict=True)
    )
    if far(found, right) < 0.055:
        return
    likes = {why: [each[why] for each in ends] for why in ends[0]}
    near = sorted((far(found, like), why) for why, like in likes.items() if far(like, right) > 0.055)
    told = [why for distance, why in near if distance < min(0.05, near[0][0] + 0.03)]
    if told:
        raise NotYet(" Or: ".join(told[:2]))
    (low, high), (its_low, its_high) = right[0], found[0]
    wide = (its_high - its_low) / (high - low)
    raise NotYet(
        f"The share is right; its ends should be about {low:.3f}, {high:.3f}, and are {its_low:.3f}, "
        f"{its_high:.3f}: {wide:.1f} times as wide. Ask in turn: are whole pairs drawn, as many as there "
        "are, with replacement? Are the ends the quantiles 0.025 and 0.975 of the ratios?"
    )


# What is said of ends taken elsewhere: the tails below and above.
ENDS = {
    "": (0.025, 0.975),
    "That is a 90 % interval. Take the quantiles 0.025 and 0.975.": (0.05, 0.95),
    "That is a 99 % interval. Take the quantiles 0.025 and 0.975.": (0.005, 0.995),
    "These are the quartiles. Take the quantiles 0.025 and 0.975.": (0.25, 0.75),
    "Your ends lie one standard deviation from the middle: that holds two draws in three. Take the "
    "quantiles 0.025 and 0.975.": (0.159, 0.841),
}


def _ends(circuit: Tensor, whole: Tensor, pairs: Tensor) -> dict[str, list[float]]:
    """The ends of the interval of one set: "" for the right ones, and after each mistake, or two together."""
    top, bottom = _sums(circuit, whole, pairs)
    share, found = float(top.sum() / bottom.sum()), {}
    for how, ratios in _draws(circuit, whole, top, bottom).items():
        for where, tails in [*ENDS.items()][: 2 if how else None]:
            found[f"{how} {where}".strip()] = ratios.quantile(torch.tensor(tails)).tolist()
    return found | {"Your interval has no width. Draw with replacement: `torch.randint`.": [share, share]}


def _draws(circuit: Tensor, whole: Tensor, top: Tensor, bottom: Tensor) -> dict[str, Tensor]:
    """Ratios of many draws: rightly made, and after each mistake."""
    many, draw, own = len(top), seeded(99), top / bottom
    drawn, other = (torch.randint(many, (20000, many), generator=draw) for _ in range(2))
    single, few = (torch.randint(n, (20000, 2 * many), generator=draw) for n in (2 * many, many))
    gaps = torch.randint(3 * many + 3, (20000, 3 * many + 3), generator=draw)
    ratio = lambda one, two, numbers: one[numbers].sum(1) / two[numbers].sum(1)
    return {
        "": ratio(top, bottom, drawn),
        "You drew as many pairs as there are prompts. Draw as many as there are pairs.": ratio(
            top, bottom, few
        ),
        "You drew prompts one by one. The two of a pair go together: draw pairs, or the interval is too "
        "narrow.": ratio(circuit, whole, single),
        "The numbers drawn are used for prompts: only the first half of them can come. Add up each pair "
        "first.": ratio(circuit, whole, drawn),
        "The two means are drawn apart. Each draw of pairs serves both, or the interval is too wide.": top[
            drawn
        ].sum(1)
        / bottom[other].sum(1),
        "These are quantiles of the pairs' own ratios. Take them of the ratios of many draws.": own,
        "The whole model's mean is held fixed. It is uncertain too: draw it with the same pairs.": top[
            drawn
        ].sum(1)
        / bottom.sum(),
        "You averaged the pairs' ratios in each draw. Divide the sums.": own[drawn].mean(1),
        "The numbers in `pairs` have gaps, and you draw the gaps too. Number them 0, 1, 2, ... first.": ratio(
            *(torch.cat([each, torch.zeros(2 * many + 3)]) for each in (top, bottom)), gaps
        ),
    }


def _three(value) -> tuple[float, float, float]:
    if isinstance(value, (str, dict)) or not hasattr(value, "__getitem__") or len(value) != 3:
        raise NotYet("Return three numbers: the share, the lower end and the upper end.")
    return tuple(_number(each) for each in value)


def _number(value) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"A number is needed; there is a {type(value).__name__}.") from None
    refuse(value != value, "The number that you return is NaN.")
    return value


def _told(found: float, expected: float, mistakes: dict[str, float], otherwise: str) -> None:
    """`must_equal` for single numbers."""
    one = lambda value: torch.tensor(float(value), dtype=torch.double)
    must_equal(
        one(found), one(expected), {w: one(m) for w, m in mistakes.items()}, otherwise=lambda: otherwise
    )


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
        refuse(
            not isinstance(value[0], (list, tuple, set, frozenset)),
            "First the chosen K itself, a list of heads, then the change, a number.",
        )
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
            "You divided by F without K. The change itself is wanted.": change / before[K],
        }
        rest, gone = _cut(circuit, K), _cut(circuit, K, [head])
        _told(
            found,
            change,
            mistakes,
            f"The K is right. Without it F is {left(rest):.2f}, and without the head too {left(gone):.2f}: "
            f"the change is {change:.2f}, and you return {found:.2f}.",
        )
    return "The right K and its change, with sign, eight times."


# Names that no notebook has, each one token for the default model.
UNSEEN = """
    Frank Gary Roger Harold Douglas Albert Jerry Ralph Roy Eugene Russell Bobby Howard Victor Ernest Todd
    Craig Alan Earl Jimmy Johnny Fred Ray Joel Alex Max Ben Sam Nick Mike Tony Dan Betty Deborah Virginia
    Janet Frances Joan Ann Judith Rose Grace Marie Joyce Ruby Eva Kim Sue Beth Lily
""".split()  # noqa: SIM905


@lru_cache(maxsize=1)
def _on_new_names(model) -> ml.CircuitRuns:
    prompts = ml.ioi_prompts(model, 48, names=UNSEEN, seed=7)
    return ml.CircuitRuns(model, prompts, ml.ioi_prompts(model, 64, names=UNSEEN, seed=8).corrupted("abc"))


@checker("42.7")
def check_holds(attempt: Attempt, model) -> str:
    refuse(model.cfg.model_name != DEFAULT, "This circuit is one of SmolLM2: load the default model.")
    circuit, found = ml.ioi.found_circuit(), attempt()
    try:
        K = [(whole_number(layer, "a layer"), whole_number(head, "a head")) for layer, head in found]
    except (TypeError, ValueError):
        raise NotYet("Return a list of heads, each as (layer, head), such as [(20, 0), (8, 1)].") from None
    refuse(len({*K}) < len(K), "A head is in your K twice.")
    refuse(not 2 <= len(K) <= 5, f"K has two to five heads; yours has {len(K)}.")
    stray = [f"{layer}.{head}" for layer, head in K if (layer, head) not in circuit.heads]
    refuse(stray, f"{', '.join(stray)} is not in the circuit, so it cannot be taken out of it.")
    refuse(
        {*K} in map(set, circuit.roles.values()),
        "That is a whole role of the circuit. Find a set of your own.",
    )
    greedy = [{*row["K"]} for row in ml.ioi.found_figures()["completeness"].values() if "K" in row]
    refuse(
        {f"{a}.{b}" for a, b in K} in greedy, "That is one of the stored greedy sets. Find a set of your own."
    )
    row = ml.completeness(_on_new_names(model), circuit, {"K": K}).iloc[0]
    gap = f"{row['gap']:.2f} [{row['95 % low']:.2f}, {row['95 % high']:.2f}]"
    lost = f"model {row['model without K']:.2f}, circuit {row['circuit without K']:.2f}"
    why = "the circuit has more left than the model. Wanted is a K that only the model makes up for"
    refuse(row["gap"] > 0, f"On new names the gap is {gap} ({lost}): {why}.")
    why = "Ask several sets again on other prompts before you choose one."
    refuse(row["gap"] > -0.3, f"It did not hold: on new names the gap is {gap} ({lost}). {why}")
    refuse(row["95 % high"] >= 0, f"On new names the gap is {gap}: it may be zero. Look for a larger one.")
    return f"It holds: on 24 pairs of new names the gap is {gap} ({lost})."


# Gap and interval in lines: an end right on a line, and an interval with both ends beyond and zero in it.
EDGES = (1.5, 1, 2), (-1.5, -2, -1), (0.2, -0.5, 1), (-0.2, -1, 0.5), (1.5, -2, 3), (-1.5, -3, 2)


def _tables():
    """Sets with their gap and interval, a line, and the verdicts; every way to lie turns up."""
    draw = Random(5)
    for line in (0.5, 0.2, 1.5):
        gaps, right = {}, {}
        for number in range(40):
            gap, half = draw.uniform(-3, 3) * line, draw.uniform(0.05, 1.2) * line
            low, high = gap - half * draw.uniform(0.7, 1.3), gap + half * draw.uniform(0.7, 1.3)
            name = f"set {number}"
            gaps[name] = (gap, low, high)
            kinds = {abs(end) > line for end in (low, high)} | ({False} if low < 0 < high else set())
            right[name] = "open" if len(kinds) > 1 else "beyond" if kinds == {True} else "within"
        for number, (gap, low, high) in enumerate(EDGES):
            gaps[f"edge {number}"], right[f"edge {number}"] = (gap * line, low * line, high * line), "open"
        yield gaps, line, right


def _rule(low: bool, high: bool, inside: bool) -> str:
    return "beyond" if low or high else "within" if inside else "open"


# What is wrong -> a rule that gives just these verdicts.
SAID = {
    "You judge from the gap alone. What may it be by chance? Look at both ends of the interval.": (
        lambda gap, low, high, line: "beyond" if abs(gap) > line else "within"
    ),
    "There is a line below zero too: an interval that lies wholly below −line, the lower line, is beyond.": (
        lambda gap, low, high, line: _rule(low > line, False, high < line)
    ),
    "You ask of an interval whether it holds zero. The line was drawn elsewhere, at `line`.": (
        lambda gap, low, high, line: "beyond" if low > 0 or high < 0 else "within"
    ),
    "An interval that crosses a line is not beyond it: the whole of it must be.": (
        lambda gap, low, high, line: "beyond" if max(-low, high) > line else "within"
    ),
    "Compare sizes with care: an interval from −2 to 2 has both ends beyond, and zero in it. It is open.": (
        lambda gap, low, high, line: _rule(
            min(abs(low), abs(high)) > line, False, max(abs(low), abs(high)) < line
        )
    ),
    "An end right on a line leaves it open: `<` and `>`, not `<=` and `>=`.": (
        lambda gap, low, high, line: _rule(low >= line, high <= -line, -line <= low and high <= line)
    ),
    "An end right on a line leaves it open; you call it within. Write `<`, not `<=`.": (
        lambda gap, low, high, line: _rule(low > line, high < -line, -line <= low and high <= line)
    ),
    "An end right on a line leaves it open; you call it beyond. Write `<` and `>`.": (
        lambda gap, low, high, line: _rule(low >= line, high <= -line, -line < low and high < line)
    ),
    "Nothing lies above +line and below −line at once: say `or`.": (
        lambda gap, low, high, line: _rule(False, False, -line < low and high < line)
    ),
    "Within needs both ends: an interval that reaches below −line is not within.": (
        lambda gap, low, high, line: _rule(low > line, high < -line, high < line)
    ),
    "Zero in the interval says nothing here: it is within if both ends are nearer to zero than the line.": (
        lambda gap, low, high, line: _rule(
            low > line, high < -line, -line < low and high < line and low * high > 0
        )
    ),
    "The gap says nothing here, only the ends: the whole interval must lie on one side of a line.": (
        lambda gap, low, high, line: _rule(abs(gap) > line and low * high > 0, False, abs(gap) < line)
    ),
}


@checker("42.8")
def check_verdicts(attempt: Attempt) -> str:
    for gaps, line, right in _tables():
        given = dict(gaps)
        found = attempt(given, line)
        refuse(given != gaps, "Your function changes the dictionary it was given. Only read it.")
        kinds = "a dictionary, name -> one of the words beyond, within, open"
        ok = isinstance(found, dict) and {*found.values()} <= {"beyond", "within", "open"}
        refuse(not ok, f"Return {kinds}.")
        refuse({*found} != {*gaps}, "Every set needs its verdict, and nothing else has one.")
        for why, rule in SAID.items():
            refuse(found == {k: rule(*v, line) for k, v in gaps.items()} != right, why)
        for name, ends in gaps.items():
            gap, low, high = (f"{each:.2f}" for each in ends)
            what = (
                f"A gap of {gap} with an interval from {low} to {high} is {right[name]} at a line of {line}"
            )
            refuse(found[name] != right[name], f"{what}; you say {found[name]}.")
    return "120 intervals, beyond, within and across, above zero and below."
