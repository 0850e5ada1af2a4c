"""Checks of notebook 56, explanations on trial."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

import mechlab as ml
from mechlab_course.checking import declare, number, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _program_case(seed: int, size: int, base: float):
    """Tokens of a small vocabulary, so that some repeat within three, and five terms."""
    words = [" and", "and", " sand", "-", " And"]  # alike, but for spaces and letters
    drawn = torch.randint(len(words), (size,), generator=seeded(seed)).tolist()
    weights = random(6, seed=seed + 9).tolist()
    kinds = ("near", "previous", "token", "near", "previous", "token")
    about = [words[(seed + n) % len(words)] for n in range(6)]
    return [words[n] for n in drawn], base, [*zip(weights, kinds, about, strict=True)]


def _run(tokens, base, terms, true):
    """The base, and the weight of each term times what `true` says of it."""
    at = lambda pos: sum(weight * true(tokens, pos, kind, token) for weight, kind, token in terms)
    return torch.tensor([float(base + at(pos)) for pos in range(len(tokens))])


def _true(tokens, pos, kind, token, near=(1, 2, 3), previous=1):
    back = {"token": (0,), "previous": (previous,), "near": near}[kind]
    return any(0 <= pos - b < len(tokens) and tokens[pos - b] == token for b in back)


@declare("56.1", axes="pos", says="Base and weights, at the beginning too, in three programs.")
class Predicted:
    cases = (_program_case(0, 9, 0.5), _program_case(1, 12, -2.0), _program_case(2, 7, 0.0))

    def right(tokens, base, terms):
        return _run(tokens, base, terms, _true)

    def wrapped(tokens, base, terms):
        """At the beginning you look at the last tokens. Nothing stands before the first token."""
        around = lambda t, pos, kind, token: any(
            t[pos - b] == token for b in {"token": (0,), "previous": (1,), "near": (1, 2, 3)}[kind]
        )
        return _run(tokens, base, terms, around)

    def itself(tokens, base, terms):
        """Your "near" counts the token itself. It is about the three before."""
        return _run(tokens, base, terms, lambda *a: _true(*a, near=(0, 1, 2, 3)))

    def two_before(tokens, base, terms):
        """Your "near" looks at two tokens before. It is about three."""
        return _run(tokens, base, terms, lambda *a: _true(*a, near=(1, 2)))

    def four_before(tokens, base, terms):
        """Your "near" looks at four tokens before. It is about three."""
        return _run(tokens, base, terms, lambda *a: _true(*a, near=(1, 2, 3, 4)))

    def ahead(tokens, base, terms):
        """Your "previous" is the token after. No model of this kind sees that one."""
        return _run(tokens, base, terms, lambda *a: _true(*a, previous=-1))

    def counted(tokens, base, terms):
        """Your "near" counts how often. A statement is true or false: its weight comes once."""
        times = lambda t, pos, kind, token: (
            t[max(pos - 3, 0) : pos].count(token) if kind == "near" else _true(t, pos, kind, token)
        )
        return _run(tokens, base, terms, times)

    def without_base(tokens, base, terms):
        """The base is missing."""
        return _run(tokens, 0.0, terms, _true)

    def base_each(tokens, base, terms):
        """You add the base once for each term. It comes once."""
        return _run(tokens, base * len(terms), terms, _true)

    def last_term(tokens, base, terms):
        """Only the last of the true statements counts in yours. Add all of their weights."""
        at = lambda pos: [weight for weight, *rest in terms if _true(tokens, pos, *rest)][-1:]
        return torch.tensor([float(base + sum(at(pos))) for pos in range(len(tokens))])


def _score_case(seed: int, units: int, places: int):
    said, true = random(2, units, places, seed=seed)
    said = 3 + said * torch.arange(1, units + 1)[:, None] + 2 * true * (torch.arange(units)[:, None] % 2)
    said[-1] = 2.0
    return said, true + 1


def _centred(each: Tensor) -> Tensor:
    return each - each.mean(1, keepdim=True)


def _cosine(said: Tensor, true: Tensor) -> Tensor:
    length = said.norm(dim=1) * true.norm(dim=1)
    return torch.where(length > 1e-4, (said * true).sum(1) / length.clamp(min=1e-9), 0.0)


@declare("56.2", axes="unit", says="A correlation for each unit, and 0 where nothing was predicted.")
class Score:
    cases = (_score_case(0, 4, 30), _score_case(1, 6, 50), _score_case(2, 3, 16))

    def right(said, true):
        return _cosine(_centred(said), _centred(true))

    def otherwise(found, said, true):
        n = int((found - Score.right(said, true)).abs().argmax())
        lengths = [each[n].norm() for each in (_centred(said), _centred(true))]
        product = (_centred(said)[n] * _centred(true)[n]).sum()
        return (
            f"Unit {n}: without the means the sum of products is {product:.4g} and the lengths are "
            f"{lengths[0]:.4g} and {lengths[1]:.4g}. From these three, {found[n]:.4g} is no correlation."
        )

    def not_centred(said, true):
        """That is the cosine. Take each unit's mean off first: else a constant prediction scores well."""
        return _cosine(said, true)

    def one_centred(said, true):
        """You took the mean off the prediction alone; the lengths need both centred."""
        return _cosine(_centred(said), true)

    def centred_over_units(said, true):
        """You took off the mean over units. Each unit has its own mean, over its places."""
        return _cosine(said - said.mean(0), true - true.mean(0))

    def one_mean(said, true):
        """You took off one mean of all units. Each unit has its own."""
        return _cosine(said - said.mean(), true - true.mean())

    def covariance(said, true):
        """That is the covariance: it grows with the unit of the activation. Divide by both spreads."""
        return (_centred(said) * _centred(true)).mean(1)

    def slope(said, true):
        """That is a slope: you divided by one of the two spreads, squared. Divide by both."""
        square = _centred(said).square().sum(1)
        return torch.where(
            square > 1e-4, (_centred(said) * _centred(true)).sum(1) / square.clamp(min=1e-9), 0.0
        )

    def squared(said, true):
        """That is the square of the correlation. An explanation that is upside down would score well."""
        return _cosine(_centred(said), _centred(true)).square()

    def size(said, true):
        """The sign is lost. An explanation that is upside down would score well."""
        return _cosine(_centred(said), _centred(true)).abs()

    def constant_is_one(said, true):
        """Where the prediction is the same everywhere you give 1. It explained nothing: 0."""
        found = _cosine(_centred(said), _centred(true))
        return torch.where(_centred(said).norm(dim=1) > 1e-4, found, 1.0)


def _table_case(seed: int, train: int, places: int):
    generator = seeded(seed)
    tokens = torch.randint(0, 9, (train,), generator=generator).square() % 11  # some often, some never
    return (
        tokens,
        random(train, seed=seed + 5).abs() * (tokens + 1),
        torch.randint(0, 11, (places,), generator=generator),
    )


def _table(train_tokens, train_values, tokens, of=lambda mine: mine.mean(), unseen=None):
    known = {int(t): of(train_values[train_tokens == t]) for t in train_tokens.unique()}
    other = train_values.mean() if unseen is None else unseen(known)
    return torch.stack([torch.as_tensor(known.get(int(t), other)).float() for t in tokens])


@declare("56.3", axes="place", says="Means of tokens, and for unknown ones the mean over all places.")
class LookUp:
    cases = (_table_case(0, 30, 20), _table_case(1, 60, 25), _table_case(2, 12, 15))

    def right(train_tokens, train_values, tokens):
        return _table(train_tokens, train_values, tokens)

    def zero(train_tokens, train_values, tokens):
        """At a token that training does not have you predict 0. The mean over all places is better."""
        return _table(train_tokens, train_values, tokens, unseen=lambda known: 0.0)

    def mean_of_means(train_tokens, train_values, tokens):
        """Your mean for unknown tokens counts every token once. Take the mean over places."""
        return _table(
            train_tokens, train_values, tokens, unseen=lambda known: torch.stack([*known.values()]).mean()
        )

    def sums(train_tokens, train_values, tokens):
        """You added the activations of a token up. A common token would be the loudest: take the mean."""
        return _table(train_tokens, train_values, tokens, of=lambda mine: mine.sum())

    def largest(train_tokens, train_values, tokens):
        """That is a token's largest activation. Take the mean."""
        return _table(train_tokens, train_values, tokens, of=lambda mine: mine.max())

    def last(train_tokens, train_values, tokens):
        """You kept the last activation of each token, as a dict that is written again does. Take the mean."""
        return _table(train_tokens, train_values, tokens, of=lambda mine: mine[-1])

    def by_all(train_tokens, train_values, tokens):
        """You divided by the number of all places. Divide by the places of the token."""
        count = len(train_tokens)
        return _table(train_tokens, train_values, tokens, of=lambda mine: mine.sum() / count)


def _some_texts(seed: int, different: int, copies: list[int]) -> Tensor:
    """Different texts, some of them more than once, in no order; all begin alike."""
    texts = torch.randint(3, 50, (different, 7), generator=seeded(seed))
    texts[:, :2] = torch.tensor([0, 5])
    texts = torch.cat([texts, texts[copies]])
    return texts[torch.randperm(len(texts), generator=seeded(seed + 1))]


SPLITS = (
    (_some_texts(0, 9, [2, 2, 5]), 4),
    (_some_texts(3, 14, [0, 7, 7, 7, 9]), 3),
    (_some_texts(6, 6, []), 2),
)


@checker("56.4")
def check_split(attempt: Attempt) -> str:
    for texts, count in SPLITS:
        _, number_of = texts.unique(dim=0, return_inverse=True)
        drawn = []
        for seed in range(96):
            rows = _held_rows(attempt(texts, count, seeded(seed)), texts)
            held = torch.stack([rows[number_of == n].float().mean() for n in range(int(number_of.max()) + 1)])
            why = "A text is held out, and a copy of it is not: the search would have seen it."
            refuse(bool(((held > 0) & (held < 1)).any()), why)
            wrong = f"{int((held > 0).sum())} different texts are held out, and {count} were asked for."
            refuse(int((held > 0).sum()) != count, wrong)
            drawn.append(held > 0)
        often = torch.stack(drawn).float().mean(0)
        why = "Draw by chance: over 96 generators some texts are held out always, or never."
        refuse(bool((often == 1).any() or (often == 0).any()), why)
        why = "Draw each text by itself: yours come together, as neighbours do from a random start."
        refuse(len({tuple(each.tolist()) for each in drawn}) <= len(drawn[0]), why)
        again = [attempt(texts, count, seeded(4)) for _ in range(2)]
        refuse(
            not torch.equal(*again),
            "Two calls with equal generators differ: draw with the one that is given.",
        )
    return "Whole texts with their copies, as many as asked for, drawn by chance."


def _held_rows(found, texts: Tensor) -> Tensor:
    """Which texts are held out, where that is said alike at all their places."""
    fits = isinstance(found, Tensor) and found.dtype == torch.bool and found.shape == texts.shape
    what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    refuse(not fits, f"Return True or False for every place, {tuple(texts.shape)}; yours is {what}.")
    refuse(
        bool((found != found[:, :1]).any()),
        "Hold out whole texts: in yours some places of a text are held out and others are not.",
    )
    return found[:, 0]


def _pair_case(seed: int, places: int, share: float):
    generator = seeded(seed)
    tokens = torch.randint(0, 6, (places,), generator=generator)
    active = torch.rand(places, generator=generator) < share
    active[tokens == 5] = True  # a token without an inactive place
    active[tokens == 4] = False  # and one without an active one
    return tokens, active


@checker("56.5")
def check_pairs(attempt: Attempt) -> str:
    for tokens, active in (_pair_case(0, 60, 0.3), _pair_case(1, 90, 0.7), _pair_case(2, 40, 0.15)):
        counts = torch.stack([torch.bincount(tokens[active == a], minlength=6) for a in (True, False)])
        most, seen, used = int(counts.min(0).values.sum()), set(), set()
        for seed in range(60):
            pairs = _pairs(attempt(tokens, active, seeded(seed)), len(tokens))
            _must_be_hard(pairs, tokens, active, most)
            seen.add(tuple(sorted(map(tuple, pairs.tolist()))))
            used |= {*pairs.flatten().tolist()}
        refuse(len(seen) == 1, "Match by chance: with sixty generators your pairs are the same.")
        open_to = {n for n in range(len(tokens)) if 0 < active[tokens == tokens[n]].float().mean() < 1}
        never = (
            "Some places stand in no pair with any of sixty generators. Shuffle both sides before you cut."
        )
        refuse(bool(open_to - used), never)
        again = [attempt(tokens, active, seeded(4)) for _ in range(2)]
        refuse(not torch.equal(*again), "Two equal generators give different pairs: draw with the one given.")
    return "Same token, one active and one inactive, none twice, none left that could be paired."


def _pairs(found, size: int) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != 2 or found.is_floating_point():
        raise NotYet("Return pairs of places, whole numbers, as a tensor [pair, 2].")
    refuse(found.dtype == torch.bool or len(found) == 0, "Return the numbers of places; there are none here.")
    refuse(not 0 <= int(found.min()) <= int(found.max()) < size, "A place of yours is not there.")
    return found


def _must_be_hard(pairs: Tensor, tokens: Tensor, active: Tensor, most: int) -> None:
    on, off = pairs.T
    order = "The active place stands first in a pair, the inactive place second."
    refuse(not bool(active[on].all()) or bool(active[off].any()), order)
    easy = int((tokens[on] != tokens[off]).sum())
    refuse(
        easy > 0,
        f"{easy} of {len(pairs)} pairs are not of the same token: a table of tokens would tell them apart.",
    )
    refuse(len(pairs.flatten().unique()) < pairs.numel(), "A place of yours stands in two pairs, or more.")
    refuse(len(pairs) < most, f"You found {len(pairs)} pairs; the places allow {most}.")


LEFT_OUT, FRESH, FEATURE, AHEAD = 400, 80, 994, 0.1  # texts that the notebook reads, and those read here


@lru_cache(maxsize=1)
def _fresh(model) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """Texts as tokens, the feature's true activations at their places, and what the table predicts there."""
    refuse(model.cfg.n_layers != 30, "The dictionary of this check fits the model of the course only.")
    folder = ml.reference.data_dir() / "sae" / "smollm2_layer12"
    stored = ml.Activity.load(folder / "activity.safetensors")
    texts = ml.own_text(model, length=81)[LEFT_OUT : LEFT_OUT + FRESH]
    activity = ml.feature_activity(model, ml.SparseAutoencoder.load(folder), texts)
    train, fresh = ml.read_predicates(model, stored.texts[:280], texts)
    table = ml.explain(stored.values(FEATURE)[:280], train, using=[]).lookup
    rows = [[fresh.said(token[None]) for token in row] for row in fresh.texts]
    return rows, fresh.flat(activity.values(FEATURE)), fresh.flat(table.predict(fresh))


@checker("56.6")
def check_rule(attempt: Attempt, model) -> str:
    rows, true, table = _fresh(model)
    answers = (attempt(row[: pos + 1]) for row in rows for pos in range(1, len(row)))
    said = [float(n) if isinstance(n, bool) else number(n, "how active it is") for n in answers]
    said = np.array(said)
    refuse(np.ptp(said) == 0, "Your rule says the same everywhere. Where is the feature active?")
    mine, its = (float(np.corrcoef(each, true)[0, 1]) for each in (said, table))
    told = f"On {FRESH} texts of its own your rule has {mine:.2f}, the table {its:.2f}."
    if mine < its + AHEAD:
        last = {row[pos] for row in rows for pos in range(1, len(row))}
        tokens = np.array([row[pos] for row in rows for pos in range(1, len(row))])
        alone = all(np.ptp(said[tokens == token]) == 0 for token in last)
        why = " Yours looks at the last token alone: that is what the table has." if alone else ""
        raise NotYet(f"{told} It must beat the table by {AHEAD}.{why}")
    return f"{told} The search among six thousand predicates adds them up; you can say “and” of any two."
