"""Checks of notebook 55, planted circuits."""

from itertools import combinations, permutations

import torch
from torch import Tensor

import mechlab as ml
from mechlab.circuits.planted.models import Planted, Prompted
from mechlab.circuits.planted.plan import Plan
from mechlab.circuits.planted.tasks import ioi
from mechlab.circuits.planted.traps import TRAPS
from mechlab_course.checking import declare, random, refuse
from mechlab_course.exercises import Attempt, NotYet, checker


def _softmax(scores: Tensor, causal: bool = True, axis: int = -1) -> Tensor:
    hidden = torch.ones(scores.shape, dtype=torch.bool).triu(1) & causal
    return scores.masked_fill(hidden, -torch.inf).softmax(axis)


def _agreement(query: Tensor, key: Tensor, shift: int) -> Tensor:
    codes = query.shape[1]
    return query @ torch.diag_embed(torch.ones(codes - abs(shift)), shift) @ key.T


@declare("55.1", axes="query_pos, key_pos", says="Rows of a causal softmax; shifts either way, and none.")
class PlannedPattern:
    cases = (
        (random(5, 7, seed=1), random(5, 7, seed=2), 1.5, 2),
        (torch.eye(6), torch.eye(6), 4.0, -1),
        (random(4, 5, seed=3), random(4, 5, seed=4), 0.7, 0),
        (random(6, 9, seed=5), random(6, 9, seed=6), -2.0, -3),
    )

    def right(query, key, gain, shift):
        return _softmax(gain * _agreement(query, key, shift))

    def other_way(query, key, gain, shift):
        """The shift goes the wrong way: code c of a *query* agrees with code c + shift of a *key*."""
        return _softmax(gain * _agreement(query, key, -shift))

    def not_causal(query, key, gain, shift):
        """Your positions look at later ones. A causal softmax hides them."""
        return _softmax(gain * _agreement(query, key, shift), causal=False)

    def round_and_round(query, key, gain, shift):
        """Codes that fall off one end come in again at the other. They agree with nothing."""
        return _softmax(gain * query @ key.roll(-shift, 1).T)

    def divided(query, key, gain, shift):
        """You divided by the root of the number of codes. `gain` is the whole factor."""
        return _softmax(gain * _agreement(query, key, shift) / query.shape[1] ** 0.5)

    def no_gain(query, key, gain, shift):
        """`gain` is missing: scores are gain · agreement."""
        return _softmax(_agreement(query, key, shift))

    def gain_later(query, key, gain, shift):
        """The gain stands outside the softmax, so rows no longer add up to 1. It belongs to the scores."""
        return gain * _softmax(_agreement(query, key, shift))

    def no_shift(query, key, gain, shift):
        """You left out the shift."""
        return _softmax(gain * query @ key.T)

    def exchanged(query, key, gain, shift):
        """Query and key are exchanged: rows are queries."""
        return _softmax(gain * _agreement(key, query, shift))

    def zero_hidden(query, key, gain, shift):
        """Later keys have a score of 0 in yours, and that is a weight. Put -inf before the softmax."""
        scores = gain * _agreement(query, key, shift)
        return scores.tril().softmax(-1)

    def over_queries(query, key, gain, shift):
        """Your columns add up to 1. A query shares its attention out among keys: `softmax(-1)`."""
        return _softmax(gain * _agreement(query, key, shift), axis=0)

    def not_itself(query, key, gain, shift):
        """A position cannot see itself in yours. Only what comes *later* is hidden: `triu(1)`."""
        scores = gain * _agreement(query, key, shift)
        return scores.masked_fill(torch.ones_like(scores).triu(0).bool(), -1e9).softmax(-1)

    def scores_alone(query, key, gain, shift):
        """These are the scores. The softmax is missing."""
        return gain * _agreement(query, key, shift)


DIGITS = range(5)
INPUTS = [(a, b) for a in DIGITS for b in DIGITS]


@checker("55.2")
def check_program(attempt: Attempt) -> str:
    plan = attempt()
    refuse(not isinstance(plan, Plan), f"Return a Plan; this is a {type(plan).__name__}.")
    names = {head.name for head in plan.heads}
    for name in ("first", "second"):
        refuse(
            name not in names, f"The plan has no head '{name}'. It has {', '.join(sorted(names)) or 'none'}."
        )
    shares = []
    for seed in (3, 8):
        circuit = _compiled(plan, seed)
        said, pairs = _said(circuit), torch.tensor(INPUTS)
        right = int((said == pairs.max(1).values).sum())
        wrong = next((n for n in range(25) if said[n] != pairs[n].max()), 0)
        told = f"'{INPUTS[wrong][0]} {INPUTS[wrong][1]} =' gives {_digit(said[wrong])}"
        refuse(right < 25, f"The model is right on {right} of 25 inputs; {told}.")
        shares += [_interchanged(circuit, "first", 0), _interchanged(circuit, "second", 1)]
    for name, share in zip(("first", "second"), shares, strict=False):
        refuse(
            share < 1,
            f"The model is right on all inputs, and it does not run this program: exchange what its head "
            f"'{name}' carries with another input's, and the answer is the program's in {share:.2f} of 625. "
            f"Does head '{name}' bring the {name} digit, all of it and nothing else?",
        )
    return "Right on all 25 inputs, and interchange accuracy 1.00 for both variables, at two seeds."


def _compiled(plan: Plan, seed: int) -> Planted:
    try:
        circuit = ml.planted(plan, seed=seed)
        circuit.tokens([f"{a} {b} =" for a, b in INPUTS])
    except ValueError as error:
        raise NotYet(f"This plan cannot be compiled: {error}") from None
    return circuit


def _ids(circuit: Planted) -> Tensor:
    return circuit.tokens([f"{a} {b} =" for a, b in INPUTS])


def _as_digits(circuit: Planted, logits: Tensor) -> Tensor:
    """The digit that is said, [input]; −1 for another word."""
    words = {circuit.plan.words.index(str(digit)): digit for digit in DIGITS}
    return torch.tensor([words.get(word, -1) for word in logits.argmax(-1).tolist()])


def _digit(said) -> str:
    return "another word" if said < 0 else f"{int(said)}"


@torch.no_grad()
def _said(circuit: Planted) -> Tensor:
    return _as_digits(circuit, circuit.model(_ids(circuit))[:, -1])


@torch.no_grad()
def _interchanged(circuit: Planted, name: str, digit: int) -> float:
    """How often the answer is the program's when one head has what it has on another input."""
    ids, (layer, head) = _ids(circuit), circuit.heads[name]
    z = ml.run_of(circuit.model, ids).at("z", layer)
    base, source = (
        each.flatten() for each in torch.meshgrid(torch.arange(25), torch.arange(25), indexing="ij")
    )

    def put(x, hook):
        x = x.clone()
        x[:, :, head] = z[source][:, :, head]
        return x

    with ml.intervene(circuit.model, [(f"blocks.{layer}.attn.hook_z", put)]):
        said = _as_digits(circuit, circuit.model(ids[base])[:, -1])
    digits = torch.tensor(INPUTS)[base].clone()
    digits[:, digit] = torch.tensor(INPUTS)[source][:, digit]
    return (said == digits.max(1).values).float().mean().item()


def _marked(seed: int, places: int, true: list[int], open_: list[int], ties: bool = False):
    scores, truth = random(places, seed=seed), torch.zeros(places, dtype=torch.long)
    truth[true], truth[open_] = 1, -1
    return (2 * scores).round() / 2 if ties else scores, truth


CASES = (
    (torch.tensor([-2.5, 0.7, 1.9, -0.2, 1.2, 6.0, -0.9]), torch.tensor([1, 1, 0, -1, 1, -1, 0])),
    _marked(1, 12, [0, 3, 7], [5]),
    _marked(2, 9, [1, 2, 8], [5, 6]),
    _marked(3, 20, [4, 5, 6, 13], [0, 7, 19], ties=True),
)


def _ahead(true: Tensor, false: Tensor, tie: float = 0.5) -> Tensor:
    ahead = true[:, None] - false
    return ((ahead > 0).double() + tie * (ahead == 0).double()).mean().float()


def _apart(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    return scores[truth == 1], scores[truth == 0]


@declare("55.3", axes="one number", says="As many pairs as there are, ties half, on four tables.")
class Auroc:
    cases = CASES

    def right(scores, truth):
        return _ahead(*_apart(scores.abs(), truth))

    def signed(scores, truth):
        """You compared signed scores. A head that matters may score below zero: sizes, `abs`."""
        return _ahead(*_apart(scores, truth))

    def open_as_false(scores, truth):
        """You count the places marked -1 as false ones. They are neither."""
        return _ahead(scores.abs()[truth == 1], scores.abs()[truth != 1])

    def open_as_true(scores, truth):
        """You count the places marked -1 as true ones. They are neither."""
        return _ahead(scores.abs()[truth != 0], scores.abs()[truth == 0])

    def ties_win(scores, truth):
        """A tie counts as a win in yours. It is half of one."""
        return _ahead(*_apart(scores.abs(), truth), 1.0)

    def ties_lose(scores, truth):
        """A tie counts as nothing in yours. It is half a win."""
        return _ahead(*_apart(scores.abs(), truth), 0.0)

    def upside_down(scores, truth):
        """That is 1 minus the AUROC: you counted the pairs in which the false one is ahead."""
        return 1 - _ahead(*_apart(scores.abs(), truth))

    def otherwise(found, scores, truth):
        true, false = _apart(scores.abs(), truth)
        ahead, level = (int(n.sum()) for n in (true[:, None] > false, true[:, None] == false))
        pairs = f"Of {len(true) * len(false)} pairs the true one is ahead in {ahead}, and {level} are level"
        return f"{pairs}: {Auroc.right(scores, truth):.4g}, not {found:.4g}."

    def a_sum(scores, truth):
        """That is the number of pairs. Divide by how many there are."""
        true, false = _apart(scores.abs(), truth)
        return _ahead(true, false) * len(true) * len(false)


def _both(true: Tensor, false: Tensor, over: Tensor) -> Tensor:
    return torch.stack([true, false]) / over


@declare(
    "55.4", axes="(weakest true, strongest false)", says="The two scores nearest to a mistake, as shares."
)
class Margins:
    cases = CASES

    def right(scores, truth):
        true, false = _apart(scores.abs(), truth)
        return _both(true.min(), false.max(), scores.abs()[truth >= 0].max())

    def signed(scores, truth):
        """You took signed scores. Sizes: `abs` first."""
        true, false = _apart(scores, truth)
        return _both(true.min(), false.max(), scores[truth >= 0].max())

    def means(scores, truth):
        """These are means. Wanted are the two scores nearest to a mistake: a minimum and a maximum."""
        true, false = _apart(scores.abs(), truth)
        return _both(true.mean(), false.mean(), scores.abs()[truth >= 0].max())

    def open_as_false(scores, truth):
        """Places marked -1 count as false in yours. Drop them first."""
        sizes = scores.abs()
        return _both(sizes[truth == 1].min(), sizes[truth != 1].max(), sizes.max())

    def open_as_true(scores, truth):
        """Places marked -1 count as true in yours. Drop them first."""
        sizes = scores.abs()
        return _both(sizes[truth != 0].min(), sizes[truth == 0].max(), sizes.max())

    def open_largest(scores, truth):
        """You divide by a size that is marked -1. The largest of all that counts."""
        true, false = _apart(scores.abs(), truth)
        return _both(true.min(), false.max(), scores.abs().max())

    def of_the_true(scores, truth):
        """You divide by the largest *true* size. A false one may be larger still."""
        true, false = _apart(scores.abs(), truth)
        return _both(true.min(), false.max(), true.max())

    def strongest_true(scores, truth):
        """You took the strongest true one. The weakest is the first to be missed."""
        true, false = _apart(scores.abs(), truth)
        return _both(true.max(), false.max(), scores.abs()[truth >= 0].max())

    def over_the_sum(scores, truth):
        """You divide by the sum of all sizes. By the largest of them."""
        true, false = _apart(scores.abs(), truth)
        return _both(true.min(), false.max(), scores.abs()[truth >= 0].sum())

    def medians(scores, truth):
        """These are medians. Wanted are the two scores nearest to a mistake: a minimum and a maximum."""
        true, false = _apart(scores.abs(), truth)
        return _both(true.median(), false.median(), scores.abs()[truth >= 0].max())

    def exchanged(scores, truth):
        """The two are exchanged: the weakest true comes first."""
        return Margins.right(scores, truth).flip(0)

    def not_shared(scores, truth):
        """These are sizes. Divide by the largest."""
        true, false = _apart(scores.abs(), truth)
        return _both(true.min(), false.max(), torch.tensor(1.0))


def _game(seed: int, players: int):
    """Any value for each set of players, the same every time."""
    sets = [frozenset(s) for k in range(players + 1) for s in combinations(range(players), k)]
    numbers = dict(zip(sets, random(len(sets), seed=seed).tolist(), strict=True))
    return numbers.__getitem__, players


GAMES = (_game(1, 4), _game(2, 3), (lambda s: 3.0 * (0 in s or 1 in s) - (2 in s), 4), _game(4, 5))


def _over_orders(value, players, orders) -> Tensor:
    total = torch.zeros(players)
    for order in orders:
        for n, player in enumerate(order):
            total[player] += value(frozenset(order[: n + 1])) - value(frozenset(order[:n]))
    return total / len(orders)


@declare("55.5", axes="player", says="In four games; the values add up to what all do together.")
class HeadShapley:
    cases = GAMES

    def right(value, players):
        return _over_orders(value, players, [*permutations(range(players))])

    def otherwise(found, value, players):
        right, all_ = HeadShapley.right(value, players), frozenset(range(players))
        n = int((found - right).abs().argmax())
        return (
            f"Player {n} should have {right[n]:.4g}, not {found[n]:.4g}. Yours add up to {found.sum():.4g}; "
            f"all players together change the value by {value(all_) - value(frozenset()):.4g}."
        )

    def one_order(value, players):
        """You went through one order. Who comes first gets what others could have had: take all of them."""
        return _over_orders(value, players, [tuple(range(players))])

    def alone(value, players):
        """That is what each does alone. In an OR with two members both would get all of it."""
        none = value(frozenset())
        return torch.tensor([value(frozenset({n})) - none for n in range(players)])

    def last(value, players):
        """That is what is lost without each: its change when it comes last. Average over all orders."""
        whole = frozenset(range(players))
        return torch.tensor([value(whole) - value(whole - {n}) for n in range(players)])

    def every_set_alike(value, players):
        """You weighed every set alike. Small and large sets stand for more orders than middling ones."""
        found = torch.zeros(players)
        for player in range(players):
            others = [n for n in range(players) if n != player]
            sets = [frozenset(s) for k in range(players) for s in combinations(others, k)]
            found[player] = sum(value(s | {player}) - value(s) for s in sets) / len(sets)
        return found

    def summed(value, players):
        """You added up all orders. Divide by how many there are."""
        orders = [*permutations(range(players))]
        return _over_orders(value, players, orders) * len(orders)

    def reversed_sign(value, players):
        """The sign is turned: value with the player less value without."""
        return -_over_orders(value, players, [*permutations(range(players))])

    def of_nothing(value, players):
        """You count what is there with the player, and not what was there before. Take the difference."""
        total, orders = torch.zeros(players), [*permutations(range(players))]
        for order in orders:
            for n, player in enumerate(order):
                total[player] += value(frozenset(order[: n + 1]))
        return total / len(orders)


def _ablated(model, asked: Prompted, how: str) -> Tensor:
    every = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    found = ml.ablation_effects(model, asked.clean, asked.metric, every, how)
    return found.values.view(model.cfg.n_layers, -1)


def _patched(model, base: Tensor, source: Tensor, asked: Prompted) -> Tensor:
    return ml.activation_patching(model, base, source, asked.metric, "z").values


def _guessed(model, asked: Prompted, steps: int = 1) -> Tensor:
    return ml.attribution_patching(model, asked.corrupted, asked.clean, asked.metric, steps=steps).values


# name -> the counterfactual in which it finds the plain circuit, and its scores
METHODS = {
    "patching, denoising": ("third", lambda m, a: _patched(m, a.corrupted, a.clean, a)),
    "patching, noising": ("third", lambda m, a: _patched(m, a.clean, a.corrupted, a)),
    "ablation, mean": ("third", lambda m, a: _ablated(m, a, "mean")),
    "ablation, zero": ("third", lambda m, a: _ablated(m, a, "zero")),
    "attribution patching": ("flip", _guessed),
    "attribution patching, 8 steps": ("third", lambda m, a: _guessed(m, a, 8)),
}
PROMPTS, CUT, WEIGHT, NEAR, MOST = 32, 0.1, 0.25, 0.05, 8


@checker("55.6")
def check_trap(attempt: Attempt) -> str:
    plain = ioi()
    name, plan = _answer(attempt(plain))
    like = [trap for trap, change in TRAPS.items() if trap != "gated" and _same(plan, change(plain))]
    refuse(
        bool(like),
        f"That is {next(iter(like), '')!r}, one of the library's own traps. Build another.",
    )
    told = []
    for seed in (0, 5):
        circuit = _planted(plan, seed)
        behaviour = _behaves(circuit, seed)
        missed = _missed(circuit, name, seed)
        told.append((behaviour, missed))
    names = {*told[0][1]} & {*told[1][1]}
    refuse(
        not names,
        f"'{name}' is not fooled: no head has less than {CUT} of the largest score at both seeds and changes "
        f"the logit difference by {WEIGHT} or more when it is exchanged. {told[0][0]}.",
    )
    worst = min(names, key=lambda each: told[0][1][each][0])
    shares = " and ".join(f"{missed[worst][0]:.3f}" for _, missed in told)
    weight = min(missed[worst][1] for _, missed in told)
    return (
        f"Fooled. '{name}' gives '{worst}' {shares} of the largest score; exchanging it changes up to "
        f"{weight:.2f} of the logit difference. {told[0][0]}."
    )


def _answer(answer) -> tuple[str, Plan]:
    fits = isinstance(answer, (tuple, list)) and len(answer) == 2
    refuse(not fits, "Return two things: the name of a method, and a plan.")
    name, plan = answer
    refuse(
        not isinstance(name, str) or name not in METHODS,
        f"There is no method {str(name)[:40]!r} here. There are {', '.join(METHODS)}.",
    )
    refuse(not isinstance(plan, Plan), f"The second thing must be a Plan; it is a {type(plan).__name__}.")
    plain = ioi()
    same = [*plan.words] == [*plain.words] and plan.answer == plain.answer
    refuse(not same, "Keep the words of the plan and its channel for answers: the task is the same.")
    refuse(len(plan.heads) > MOST, f"At most {MOST} heads in the plan, please; yours has {len(plan.heads)}.")
    return name, plan


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans say the same, whatever they call their parts and however loud the answer is."""
    told = lambda head: str(head).split(":", 1)[1] + str(head.layer)
    heads = lambda plan: sorted(told(head) for head in plan.heads if any(m.gain for m in head.move))
    tables = lambda plan: [(table.layer, [*table.rules]) for table in plan.tables]
    rest = lambda plan: (dict(plan.room), dict(plan.places), plan.gated, tables(plan))
    return heads(one) == heads(other) and rest(one) == rest(other)


def _planted(plan: Plan, seed: int) -> Planted:
    try:
        return ml.planted("ioi", lambda _: plan, seed=seed)
    except ValueError as error:
        raise NotYet(f"This plan cannot be compiled: {error}") from None


@torch.no_grad()
def _behaves(circuit: Planted, seed: int) -> str:
    """A sentence about behaviour, or `NotYet` where it is not that of the plain plan."""
    measured = []
    for each in (ml.planted("ioi", seed=seed), circuit):
        asked = each.prompts(2 * PROMPTS, seed=seed)
        difference = asked.metric(each.model(asked.clean))
        measured.append((difference.mean().item(), (difference > 0).float().mean().item()))
    (was, right), (now, right_now) = measured
    refuse(
        not abs(now - was) <= NEAR * was,
        f"The logit difference is {now:.2f}, and {was:.2f} in the plain plan: more than 5 % off. "
        "`replace(plan, gain=...)` makes every answer larger or smaller.",
    )
    refuse(right - right_now > NEAR, f"The model is right in {right_now:.2f}, and was in {right:.2f}.")
    return f"Behaviour stays: logit difference {now:.2f} after {was:.2f}, right in {right_now:.2f}"


def _missed(circuit: Planted, name: str, seed: int) -> dict[str, tuple[float, float]]:
    """The heads that matter and that the method misses: name -> share of the largest score, weight."""
    how, method = METHODS[name]
    sizes = method(circuit.model, circuit.prompts(PROMPTS, corruption=how, seed=seed)).abs()
    weight = _weights(circuit, seed)
    share = {head: (sizes[place] / sizes.max()).item() for head, place in circuit.heads.items()}
    return {
        head: (share[head], weight[head]) for head in share if share[head] < CUT and weight[head] >= WEIGHT
    }


@torch.no_grad()
def _weights(circuit: Planted, seed: int) -> dict[str, float]:
    """The most that exchanging a head changes, with any others of the plan exchanged, as a share."""
    asked, names = circuit.prompts(PROMPTS, corruption="third", seed=seed), [*circuit.heads]
    base, source = (ml.run_of(circuit.model, each) for each in (asked.clean, asked.corrupted))
    gone = torch.zeros(2 ** len(names), *circuit.truth.shape, dtype=torch.bool)
    for row in range(len(gone)):
        for bit, name in enumerate(names):
            gone[(row, *circuit.heads[name])] = bool(row >> bit & 1)
    puts = [
        ml.Put("z", layer, source.at("z", layer)[None], gone[:, layer, None, None])
        for layer in range(gone.shape[1])
    ]
    v = base.edited(asked.metric, puts).mean(1)
    rows = torch.arange(len(v))
    changes = [(v[rows | 1 << bit] - v[rows & ~(1 << bit)]).abs().max() for bit in range(len(names))]
    return {name: (each / v[0].abs()).item() for name, each in zip(names, changes, strict=True)}
