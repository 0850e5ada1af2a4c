"""Checks of notebook 44, causal abstraction."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import mechlab as ml
from mechlab.circuits.ioi.words import NAMES
from mechlab_course.checking import declare, number, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _orthonormal(size: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(random(size, k, seed=seed))[0]


@declare("44.1", axes="batch, size", says="The part in Q is of the source, all else of the base.")
class Exchange:
    cases = tuple(
        (random(4, size, seed=size), random(4, size, seed=size + 1), _orthonormal(size, k, seed=k))
        for size, k in ((6, 1), (7, 2), (8, 5))
    )

    def right(x, y, Q):
        return x + (y - x) @ Q @ Q.T

    def otherwise(found, x, y, Q):
        inside = lambda each: each @ Q @ Q.T
        kept = (found - inside(found) - x + inside(x)).norm()
        return (
            f"Outside of Q's span yours differs from x by a length of {kept:.2g}; inside of it, from y by "
            f"{inside(found - y).norm():.2g}. Both should be 0."
        )

    def nothing(x, y, Q):
        """Nothing has changed: this is x."""
        return x

    def whole(x, y, Q):
        """You exchanged everything: this is y. Only the part in Q's span."""
        return y

    def exchanged(x, y, Q):
        """Base and source are exchanged: you put a part of x into y."""
        return y + (x - y) @ Q @ Q.T

    def part_alone(x, y, Q):
        """This is y's part alone. What x has outside of the span must stay."""
        return y @ Q @ Q.T

    def added(x, y, Q):
        """You added y's part and left x's own in its place. Take that away first."""
        return x + y @ Q @ Q.T

    def taken_away(x, y, Q):
        """You took x's part away and put nothing in its place."""
        return x - x @ Q @ Q.T

    def backwards(x, y, Q):
        """You went from x away from y: the change is y's part minus x's."""
        return x - (y - x) @ Q @ Q.T

    def coordinates(x, y, Q):
        """You exchanged the first k coordinates. Q's columns need not be axes."""
        return torch.cat([y[:, : Q.shape[1]], x[:, Q.shape[1] :]], dim=1)

    def one_column(x, y, Q):
        """You used Q's first column only."""
        return x + (y - x) @ Q[:, :1] @ Q[:, :1].T


Triple = tuple[int, int, int]
PROGRAMS: dict[str, tuple[Callable, Callable]] = {
    "position": (
        lambda first, second, subject: subject == second,
        lambda first, second, value: first if value else second,
    ),
    "name": (
        lambda first, second, subject: subject,
        lambda first, second, value: second if value == first else first,
    ),
    "larger id": (
        lambda first, second, subject: max(first, second) - subject,
        lambda first, second, value: first if value > 0 else second,
    ),
}


def _pairs(seed: int, count: int = 40) -> tuple[list[Triple], list[Triple]]:
    """Bases and sources: flips, swaps, exchanged names, two other people."""
    chance, base, sources = seeded(seed), [], []
    for n in range(count):
        a, b, c, d = (torch.randperm(50, generator=chance)[:4] + 100).tolist()
        options = [(a, b, b), (b, a, b), (b, a, a), (c, d, c), (d, c, c), (a, b, a), (c, b, b)]
        base.append((a, b, a) if n % 2 else (a, b, b))
        sources.append(options[n % len(options)])
    return base, sources


@checker("44.2")
def check_flips(attempt: Attempt) -> str:
    found, likely = [], []
    for seed, (variable, answer) in enumerate(PROGRAMS.values()):
        base, sources = _pairs(seed)
        mine = _booleans(attempt(variable, answer, base, sources), len(base))
        told = _told(variable, answer, base, sources)
        found.append((mine, told.pop(RIGHT)))
        likely.append(told)
    if all(mine == right for mine, right in found):
        return "What three programs say about forty interchanges each, sources with other people among them."
    for why in likely[0]:
        refuse(all(mine == told[why] for (mine, _), told in zip(found, likely, strict=True)), why)
    seed, (mine, right) = next((n, each) for n, each in enumerate(found) if each[0] != each[1])
    base, sources = _pairs(seed)
    row = next(n for n, value in enumerate(mine) if value != right[n])
    raise NotYet(
        f"For the program {[*PROGRAMS][seed]!r}, base {base[row]} and source {sources[row]}, it should be "
        f"{right[row]}; yours says {mine[row]}."
    )


RIGHT = "right"


def _told(
    variable: Callable, answer: Callable, base: Sequence[Triple], sources: Sequence[Triple]
) -> dict[str, list[bool]]:
    """What the right function says of each interchange, and what functions with a mistake say."""
    rows = [*zip(base, sources, strict=True)]
    says = lambda names, given: answer(names[0], names[1], variable(*given))
    return {
        RIGHT: [says(b, s) != says(b, b) for b, s in rows],
        "Your program answers the source: the two names to choose from must be base's.": [
            says(s, s) != says(b, b) for b, s in rows
        ],
        "You compared the variables. Two values can lead to one answer: compare answers.": [
            variable(*b) != variable(*s) for b, s in rows
        ],
        "This is True where the answer stays. It should be True where it flips.": [
            says(b, s) == says(b, b) for b, s in rows
        ],
        "You exchanged base and source: these are source's names with base's variable.": [
            says(s, b) != says(s, s) for b, s in rows
        ],
        "You compare with base's subject. Compare with the program's answer to the base itself.": [
            says(b, s) != b[2] for b, s in rows
        ],
    }


def _booleans(found, count: int) -> list[bool]:
    found = found.tolist() if isinstance(found, Tensor) else found
    fits = isinstance(found, (list, tuple)) and len(found) == count and all(each in (0, 1) for each in found)
    refuse(not fits, f"Return a list of {count} booleans, one for each interchange.")
    return [bool(each) for each in found]


def _agrees(values: Tensor, flips: Tensor) -> Tensor:
    return ((values > 0) != flips).float()


def _four(agrees: Tensor, flips: Tensor, untouched: Tensor) -> Tensor:
    return torch.stack([agrees.mean(), agrees[flips].mean(), agrees[~flips].mean(), untouched.mean()])


def _furthest(found, values, flips, before) -> int:
    return int((found - Accuracy.right(values, flips, before)).abs().argmax())


@declare("44.3", axes="all, flip, stay, no change", says="All four shares, on four tables of interchanges.")
class Accuracy:
    def cases():
        for seed, count in enumerate((11, 17, 24, 30)):
            flips = torch.rand(count, generator=seeded(seed)) < (0.3, 0.6, 0.5, 0.8)[seed]
            values, before = random(2, count, seed=seed + 9) + torch.tensor([[0.0], [0.6]])
            yield values, flips, before

    def right(values, flips, before):
        return _four(_agrees(values, flips), flips, _agrees(before, flips))

    def otherwise(found, values, flips, before):
        right, n = Accuracy.right(values, flips, before), _furthest(found, values, flips, before)
        agrees = _agrees(values if n < 3 else before, flips)
        some = agrees[(flips, ~flips)[n - 1]] if n in (1, 2) else agrees
        name = ("all", "flip", "stay", "no change")[n]
        told = f"the answer is the program's in {int(some.sum())} of {len(some)} interchanges"
        return f'For "{name}" {told}: {right[n]:.4g}, not {found[n]:.4g}.'

    def signs(values, flips, before):
        """The signs are turned: where the program flips, the difference should be below 0."""
        return _four(1 - _agrees(values, flips), flips, 1 - _agrees(before, flips))

    def exchanged_parts(values, flips, before):
        """Flip and stay are exchanged."""
        return _four(_agrees(values, flips), ~flips, _agrees(before, flips))

    def share_of_stays(values, flips, before):
        """Your last number takes it that the model is always right by itself. Count with `before`."""
        return _four(_agrees(values, flips), flips, (~flips).float())

    def own_accuracy(values, flips, before):
        """Your last number is how often the model is right by itself. Ask it what the program says."""
        return _four(_agrees(values, flips), flips, (before > 0).float())

    def changed(values, flips, before):
        """You ask whether the answer has changed. Ask whether it is the program's, whatever it was before."""
        return _four(((values > 0) != (before > 0)).float().eq(flips).float(), flips, _agrees(before, flips))

    def parts_of_all(values, flips, before):
        """You divided flips and stays by the number of all. Each is a share of its own."""
        agrees = _agrees(values, flips)
        parts = (agrees * flips).mean(), (agrees * ~flips).mean()
        return torch.stack([agrees.mean(), *parts, _agrees(before, flips).mean()])

    def mean_of_two(values, flips, before):
        """Your first number is the mean of the two shares. It is the share of all interchanges."""
        right = _four(_agrees(values, flips), flips, _agrees(before, flips))
        return torch.cat([right[1:3].mean(0, keepdim=True), right[1:]])

    def no_abs(values, flips, before):
        """The first and the last are exchanged."""
        return _four(_agrees(values, flips), flips, _agrees(before, flips))[[3, 1, 2, 0]]


def _toy(size: int, k: int, seed: int) -> tuple[Callable, Callable, Tensor]:
    """A model that reads a variable from hidden directions, on interchanges to train on and on others."""
    hidden, count = _orthonormal(size, k, seed + 1), 80
    x, y = random(2, 2 * count, size, seed=seed)
    sign = torch.where(torch.arange(2 * count) % 4 < 2, -1.0, 1.0)
    x = x - x @ hidden @ hidden.T + 2 * hidden.sum(1) / k**0.5
    y = y - y @ hidden @ hidden.T + 2 * sign[:, None] * hidden.sum(1) / k**0.5

    def values_of(Q: Tensor, rows: slice) -> Tensor:
        return 2 * (x[rows] + (y[rows] - x[rows]) @ Q @ Q.T) @ hidden.sum(1) / k**0.5

    return lambda Q: values_of(Q, slice(count)), lambda Q: values_of(Q, slice(count, None)), sign[:count] < 0


@checker("44.4")
def check_training(attempt: Attempt) -> str:
    for size, k, seed in ((12, 1, 0), (20, 2, 1)):
        train, held_out, flips = _toy(size, k, seed)
        Q = attempt(train, flips, size, k, seeded(seed))
        refuse(not isinstance(Q, Tensor), f"Return Q as a tensor [{size}, {k}].")
        shape = tuple(Q.shape)
        refuse(shape != (size, k), f"The shape is {shape}; it should be ({size}, {k}): [size, k].")
        Q = Q.detach().cpu().float()
        off = (Q.T @ Q - torch.eye(k)).abs().max().item()
        refuse(
            not off < 1e-3, f"The columns are not orthonormal: Qᵀ Q is off by {off:.2g}. Do you return a Q?"
        )
        agrees = _agrees(held_out(Q), flips)
        flip, stay = agrees[flips].mean(), agrees[~flips].mean()
        refuse(
            min(flip, stay) < 0.9,
            f"On interchanges not trained on, {flip:.2f} of the answers that should flip do so, and "
            f"{stay:.2f} of those that should stay do. Enough steps, at a rate near 0.03? Is the loss "
            "small where values are negative on `flips`, and positive elsewhere?",
        )
    return "Orthonormal, and the variable is found in two toy models, on interchanges it was not trained on."


@declare("44.5", axes="a single number", says="The share, for tall, square and deficient matrices.")
class NullShare:
    cases = (
        (random(12, seed=0), random(12, 4, seed=1)),
        (random(9, seed=2) * 3, random(9, 2, seed=3) @ random(2, 5, seed=4)),
        (random(7, seed=5), random(7, 3, seed=6) @ random(3, 7, seed=7)),
        (random(6, seed=8) / 5, random(6, 5, seed=9)),
    )

    def right(v, W):
        U, sizes, _ = torch.linalg.svd(W, full_matrices=False)
        U = U[:, sizes > 1e-5 * sizes[0]]
        return 1 - (v @ U).square().sum() / v.square().sum()

    def otherwise(found, v, W):
        whole, right = v.square().sum(), NullShare.right(v, W)
        told = f"v has the squared length {whole:.4g}, and {(1 - right) * whole:.4g} of it lies where W reads"
        return f"{told}: the share of the rest is {right:.4g}, not {found:.4g}."

    def visible(v, W):
        """This is the visible share. The null space is the rest."""
        return 1 - NullShare.right(v, W)

    def rooted(v, W):
        """This is a ratio of lengths. Shares add up to 1 for squared lengths."""
        return NullShare.right(v, W).sqrt()

    def one_less_length(v, W):
        """You took 1 minus a ratio of lengths: square them first."""
        return 1 - (1 - NullShare.right(v, W)).sqrt()

    def length_missing(v, W):
        """You took it that v has length 1. Divide by its squared length."""
        return 1 - (1 - NullShare.right(v, W)) * v.square().sum()

    def not_a_share(v, W):
        """This is the squared length of the null part. Divide by that of v."""
        return NullShare.right(v, W) * v.square().sum()

    def with_sizes(v, W):
        """You projected with W itself. Its columns are not orthonormal: take U of its SVD."""
        return 1 - (v @ W).square().sum() / v.square().sum()

    def columns_kept(v, W):
        """You kept columns of U whose singular value is 0. W reads nothing along those."""
        U = torch.linalg.svd(W, full_matrices=False).U
        return 1 - (v @ U).square().sum() / v.square().sum()

    def dimensions(v, W):
        """This is the share of dimensions, the same for every v. How much of this v lies there?"""
        return torch.tensor(1 - float(torch.linalg.matrix_rank(W)) / len(W))


HELD_OUT = (
    "Later {first} and {second} met in the {place}, {subject} lent a {object} to",
    "Since {first} and {second} worked at the {place}, {subject} brought a {object} to",
    "Then {first} and {second} hurried to the {place}, {subject} gave a {object} to",
    "Soon {first} and {second} returned to the {place}, {subject} handed a {object} to",
)
SOURCES = ("flip",), ("swap names",), ("order",), ("names",), ("order", "names")
PLACES = {"S2": 10, "end": 14}
MOST, ABOVE, FLIPPED = 8, 0.2, 0.4


@checker("44.6")
def check_program(attempt: Attempt, model) -> str:
    variable, answer, layer, place, Q = _program(model, attempt(model))
    prompts = ml.ioi_prompts(model, 16, templates=HELD_OUT, names=NAMES[1::2], seed=44)
    sources = [prompts]
    for chain in SOURCES:
        source = prompts
        for how in chain:
            source = source.corrupted(how, seed=3)
        sources.append(source)
    flips = torch.tensor(
        [each for source in sources[1:] for each in _says(variable, answer, prompts.tokens, source.tokens)]
    )
    count = len(SOURCES)
    base = ml.run_of(model, prompts).rows([*range(len(prompts))] * count)
    source = ml.run_of(model, torch.cat([each.tokens for each in sources[1:]]))
    metric = ml.logit_difference(prompts.io.repeat(count), prompts.s.repeat(count))
    try:
        values = ml.interchange(model, base, source, metric, layer=layer, pos=PLACES[place], Q=Q)
    except ValueError as error:
        raise NotYet(str(error)) from None
    found = ml.iia(values.cpu(), flips, base.value(metric).cpu())
    shares = ", ".join(f"{name} {share:.2f}" for name, share in found.items())
    told = f"In sentences you have not seen, the program's answers among {len(flips)}: {shares}."
    refuse(
        found["all"] < found["no change"] + ABOVE,
        f"That is too near to no change: {ABOVE} more is wanted. {told}",
    )
    refuse(not found["flip"] >= FLIPPED, f"At least {FLIPPED} of the flips are wanted. {told}")
    return told


def _program(model, given) -> tuple[Callable, Callable, int, str, Tensor]:
    """The five parts of an answer, if each is what it should be."""
    fits = isinstance(given, (tuple, list)) and len(given) == 5
    refuse(not fits, 'Return five things: variable, answer, layer, "S2" or "end", and Q.')
    variable, answer, layer, place, Q = given
    refuse(not (callable(variable) and callable(answer)), "The first two are functions, as in 44.2.")
    layer = int(number(layer, "a layer third"))
    refuse(
        not 0 <= layer < model.cfg.n_layers, f"The layer is {layer}; there are 0 to {model.cfg.n_layers - 1}."
    )
    refuse(not isinstance(place, str) or place not in PLACES, 'The fourth is a place: "S2" or "end".')
    size = model.cfg.d_model
    fits = isinstance(Q, Tensor) and Q.ndim == 2 and len(Q) == size and Q.is_floating_point()
    refuse(not fits, f"Q is a tensor of floats, [{size}, k].")
    refuse(
        not 1 <= Q.shape[1] <= MOST,
        f"Q has {Q.shape[1]} columns: at least one, and at most {MOST}.",
    )
    return variable, answer, layer, place, Q.detach().float()


def _says(variable: Callable, answer: Callable, base: Tensor, source: Tensor) -> Sequence[bool]:
    """Where the program flips; a `NotYet` where it does not answer with one of base's two names."""
    places, found = [2, 4, 10], []
    for mine, theirs in zip(base[:, places].tolist(), source[:, places].tolist(), strict=True):
        try:
            own = answer(mine[0], mine[1], variable(*mine))
            other = answer(mine[0], mine[1], variable(*theirs))
        except Exception as error:
            raise NotYet(f"Your program stops at base {mine}, source {theirs}: {error!r:.80}") from None
        refuse(
            {own, other} - {*mine[:2]} != set(), f"For base {mine} your program answers with another name."
        )
        refuse(own == mine[2], f"For the base {mine} your program answers with the name that is said again.")
        found.append(other != own)
    return found
