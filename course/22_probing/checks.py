"""Checks of notebook 22, probing."""

from itertools import combinations

import torch
from torch.nn.functional import cosine_similarity

from mechlab.reference import data_dir
from mechlab_course.checking import close, must_equal, must_equal_in_all, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _two_classes(ones: int, zeros: int, d: int, seed: int):
    """Training examples, their labels, and test examples, on a line far from zero."""
    direction, offset = random(d, seed=seed), 3 * random(d, seed=seed + 1)
    labels = torch.cat([torch.ones(ones), torch.zeros(zeros)]).long()
    labels = labels[torch.randperm(len(labels), generator=seeded(seed))]
    train = random(len(labels), d, seed=seed + 2) + labels[:, None] * 1.5 * direction + offset
    test = random(60, d, seed=seed + 3) + torch.linspace(-1, 2.5, 60)[:, None] * direction + offset
    return train, labels, test


def _split_of_sums(train, labels, test):
    low, high = (train[labels == n].sum(0) for n in (0, 1))
    return ((test - (low + high) / 2) @ (high - low) > 0).long()


@checker("22.1")
def check_mass_mean(attempt: Attempt) -> str:
    answers = []
    for sizes in ((12, 6, 5, 0), (5, 20, 8, 1), (9, 9, 3, 2)):
        train, labels, test = _two_classes(*sizes)
        found = attempt(train, labels, test)
        if not isinstance(found, torch.Tensor) or found.shape != (60,):
            raise NotYet("Return one label, 0 or 1, for each test example: a tensor of shape [other].")
        why = "The labels are 0 and 1: return which of the two, not a score."
        refuse(not set(found.tolist()) <= {0, 1}, why)
        found = found.long()
        low, high = train[labels == 0].mean(0), train[labels == 1].mean(0)
        along = test @ (high - low)
        split = lambda centre, along=along, line=high - low: (along > centre @ line).long()
        expected = split((low + high) / 2)
        mistakes = {
            "You split at zero. The means lie anywhere: split half way between them.": split(0 * low),
            "It is turned round: the direction leads from class 0 to class 1.": 1 - expected,
            "You split at the mean of the test examples. "
            "Whatever is learned comes from the training examples.": split(test.mean(0)),
            "You split at the mean of all examples. "
            "With unequal classes that is not half way between the two means.": split(train.mean(0)),
            "You split at the median of what you project. Half of the test need not be of class 1.": (
                split(test[(test @ (high - low)).argsort()[29]])
            ),
            "You compare cosines. The nearer mean is asked for: lengths count.": (
                cosine_similarity(test, high[None]) > cosine_similarity(test, low[None])
            ).long(),
            "Half is missing: the middle of two means is half of their sum.": split(low + high),
            "You added up the examples of each class. Take their means.": _split_of_sums(train, labels, test),
            "You took one number for each example. The means are vectors: average over the examples only.": (
                test.mean(1) > (train[labels == 0].mean() + train[labels == 1].mean()) / 2
            ).long(),
            "You compare inner products with the two means. The nearer mean is asked for: "
            "the longer mean wins otherwise.": (test @ high > test @ low).long(),
        }
        wrong = f"{int((found != expected).sum())} of 60 test examples get the other label."
        answers.append((found, expected, mistakes, f"{wrong} Is each put with the nearer class mean?"))
    must_equal_in_all(answers)
    return "The nearer class mean, on three sets with unequal classes and means far from zero."


def _for_each(found, groups: list[str], what: str) -> torch.Tensor:
    """What the learner returned as a tensor with one entry for each example; else `NotYet`."""
    try:
        found = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"{what} is needed for each of the {len(groups)} examples.") from None
    refuse(found.shape != (len(groups),), f"{what} is needed for each of the {len(groups)} examples.")
    return found


def _test_groups(found, groups: list[str], share: float) -> tuple[str, ...]:
    """The groups that are held out, if they are whole, and as many as asked for; else `NotYet`."""
    marked = _for_each(found, groups, "One True or False").bool().tolist()
    test, train = (
        {group for group, out in zip(groups, marked, strict=True) if out is side} for side in (True, False)
    )
    if both := test & train:
        raise NotYet(f"{min(both)!r} is on both sides: draw among the groups, not among the examples.")
    many = round(share * 11)
    turned = len(train) == many != len(test)
    refuse(turned, "You marked the examples for training. True is for testing.")
    why = f"There are 11 groups, and a share of {share} is {share * 11:.2f}, rounded {many}"
    refuse(len(test) != many, f"{why}; you hold out {len(test)}.")
    return tuple(sorted(test))


@checker("22.2")
def check_held_out(attempt: Attempt) -> str:
    words = (5, 3, 3, 0, 1, 7, 6, 2, 4, 4, 10, 1, 0, 5, 9, 8, 10, 15, 14, 13, 21)
    groups, seen = [f"word {n % 11}" for n in words], set()
    for seed in range(60):  # 11 groups: shares that come to 3.3 and 3.85 groups, so that rounding shows
        share = (0.3, 0.35)[seed % 2]
        test = _test_groups(attempt(groups, share, seeded(seed)), groups, share)
        if share == 0.3:
            seen.add(test)
    refuse(len(seen) == 1, "The same groups every time: draw them with `generator=generator`.")
    why = "Only a few of the possible sets are ever drawn. Any groups may be held out together."
    refuse(len(seen) < 16, why)
    same = {tuple(torch.as_tensor(attempt(groups, 0.5, seeded(9))).bool().tolist()) for _ in range(4)}
    why = "The same generator must give the same split: draw with `generator=generator`."
    refuse(len(same) > 1, why)
    return "Whole groups, as many as asked for, other ones with another generator."


def _by_group(groups, values, asked, of):
    """For each group that is asked for, something of its rows; of a new group, the mean of all."""
    rows = {group: values[[n for n, other in enumerate(groups) if other == group]] for group in groups}
    return torch.stack([of(rows[group]) if group in rows else values.mean(0) for group in asked])


def _one_number(value) -> torch.Tensor:
    """One number of whatever kind, as a tensor; else `NotYet`."""
    try:
        value = torch.tensor(float(value))
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("Return one number, R².") from None
    refuse(value.isnan(), "Your R² is NaN: a division by zero?")
    return value


def _r_squared(said, truth, centre):
    return 1 - (said - truth).pow(2).sum() / (truth - centre).pow(2).sum()


def _check_plain(found, said, truth) -> None:
    """R² without groups, against all that it is not."""
    correlation, expected = torch.stack([said, truth]).corrcoef()[0, 1], _r_squared(said, truth, truth.mean())
    spread = (said - said.mean()).pow(2).sum()
    mistakes = {
        "That is the square of a correlation. "
        "It forgives a wrong scale and a wrong mean; R² does not.": correlation**2,
        "That is a correlation. R² compares errors.": correlation,
        "You divide by the spread of the predictions. Take that of the truth.": 1
        - (said - truth).pow(2).sum() / spread,
        "That is the share that is left. Take 1 minus it.": 1 - expected,
        "You took sizes. R² compares squares.": 1
        - (said - truth).abs().sum() / (truth - truth.mean()).abs().sum(),
        "You took the root of both sums. R² compares the sums of squares themselves.": 1
        - (said - truth).norm() / (truth - truth.mean()).norm(),
        "You divide one sum by n and the other by n − 1. Divide sum by sum.": 1
        - (1 - expected) * (len(truth) - 1) / len(truth),
        "You measure the truth from zero. Measure it from its mean.": _r_squared(said, truth, 0),
    }
    why = f"Without groups R² should be {expected:.3f}, and yours is {found:.3f}."
    must_equal(found, expected, mistakes, 1e-3, lambda: why)


def _check_grouped(found, said, truth, groups: list[str], centre) -> None:
    """R² with groups, whose means are `centre`."""
    rows = [torch.tensor([g == group for g in groups]) for group in dict.fromkeys(groups)]
    middle = torch.stack([truth[row].mean() for row in rows]).mean()
    apart = [_r_squared(said[row], truth[row], truth[row].mean()) for row in rows if row.sum() > 1]
    mistakes = {
        "You left the groups out: measure the truth from the mean of its own group.": _r_squared(
            said, truth, truth.mean()
        ),
        "You took one centre, the mean of the group means. "
        "Each example has the mean of its own group.": _r_squared(said, truth, middle),
        "You took the mean of one R² for each group. "
        "Add up over all examples before you divide.": torch.stack(apart).mean(),
    }
    expected = _r_squared(said, truth, centre)
    why = f"With groups it should be {expected:.3f}, and yours is {found:.3f}. "
    why += "Only the centre changes, not the error."
    must_equal(found, expected, mistakes, 1e-3, lambda: why)


@checker("22.5")
def check_r_squared(attempt: Attempt) -> str:
    for groups, seed in (([*"xyzxyzxyzxyz"], 0), ([*"aabcbbbadcabbacbaaab"], 1)):
        truth = random(len(groups), seed=seed) + 4
        truth = truth + torch.tensor(["xyzabcd".index(g) * 1.5 % 4 for g in groups])
        said = 0.7 * truth + 0.5 * random(len(groups), seed=seed + 10) + 2
        centre = _by_group(groups, truth, groups, lambda rows: rows.mean())
        _check_plain(_one_number(attempt(said, truth)), said, truth)
        _check_grouped(_one_number(attempt(said, truth, groups)), said, truth, groups, centre)
        worse = 3 * random(len(groups), seed=seed + 20)  # worse than the mean: below zero
        for given, middle in (((), truth.mean()), ((groups,), centre)):
            below, found = _r_squared(worse, truth, middle), _one_number(attempt(worse, truth, *given))
            why = f"below zero: here {below:.2f}, and yours is {found:.2f}."
            refuse(not close(found, below, 1e-2), f"Predictions worse than the mean have an R² {why}")
    perfect = _one_number(attempt(truth, truth))
    refuse(abs(perfect - 1) > 1e-5, "Perfect predictions have R² 1.")
    return "1 for perfect predictions, and right with and without groups, also below zero."


# What the ridge probe of the notebook reaches on other cities, fitted to its 558, after the last layer: R² of
# latitude and longitude, less the mean of the continent.
PROBE = {"new cities": (0.14, 0.31), "new countries": (0.16, 0.16)}


def _table(name: str, like=None):
    """Cities, and their places less the mean of the continent, in the table itself or in one given."""
    import pandas as pd

    table = pd.read_csv(data_dir() / "probing" / name)
    middle = (table if like is None else like).groupby("continent")[["latitude", "longitude"]].mean()
    place = table[["latitude", "longitude"]].to_numpy() - middle.loc[table.continent].to_numpy()
    return table, torch.tensor(place)


def _groups(attempt: Attempt, table) -> list[str]:
    """The group of each city of a table, as text; else `NotYet`."""
    rows = list(table[["city", "country", "continent"]].itertuples(index=False, name=None))
    found = [attempt(*row) for row in rows]
    odd = next((each for each in found if not isinstance(each, str | int)), None)
    refuse(odd is not None, f"A group is a string; you returned a {type(odd).__name__}.")
    why = "The same city is in another group when it is asked again: leave chance out."
    refuse([attempt(*row) for row in rows[:60]] != found[:60], why)
    return [str(each) for each in found]


@checker("22.6")
def check_groups(attempt: Attempt) -> str:
    known, place = _table("cities.csv")
    others, truth = _table("more_cities.csv", like=known)
    group, asked = _groups(attempt, known), _groups(attempt, others)
    alone = "Nearly every group of yours holds one city, so a city that is new is in a new group."
    refuse(len(set(group)) > 0.8 * len(known), alone)
    means = {name: place[torch.tensor([each == name for each in group])].mean(0) for name in set(group)}
    said = torch.stack([means.get(name, 0 * place[0]) for name in asked])
    again = "You give the continent again (or all cities one group). Its mean is taken away already."
    refuse(said.abs().max() < 1e-6, again)
    others["group"] = asked
    old, reached = torch.tensor(others.country.isin(known.country).to_numpy()), {}
    for kind, rows in (("new cities", old), ("new countries", ~old)):
        r2 = [_r_squared(said[rows, n], truth[rows, n], truth[rows, n].mean()).item() for n in (0, 1)]
        probe = PROBE[kind]
        numbers = f"R² of latitude {r2[0]:.2f} and of longitude {r2[1]:.2f}, the probe "
        numbers += f"{probe[0]:.2f} and {probe[1]:.2f}"
        grouped = others[rows.numpy() & others.group.isin(means)]
        none = sorted({*others.continent[rows.numpy()]} - {*grouped.continent})
        why = f"For {kind} your table has a group for {len(grouped)} of {rows.sum()}"
        why += f" (none in {', '.join(none)})." if none else "."
        why += f" What is coarser than a country and finer than a continent? ({numbers})"
        unseen = kind == "new countries" and (len(grouped) < rows.sum() / 2 or bool(none))
        refuse(unseen, f"That kills the first number. {why}")
        nothing = "Your groups say little about where a city lies: they should be neighbours on a map."
        refuse(sum(r2) < 0.75 * sum(probe), f"{nothing} {kind.capitalize()}: {numbers}.")
        short = int(r2[1] - probe[1] < r2[0] - probe[0])
        axis = ("latitude", "longitude")[short]
        wide = known.groupby(group)[axis].agg(lambda each: each.quantile(0.9) - each.quantile(0.1)).idxmax()
        why = f"{kind.capitalize()}: {numbers}. Of {axis} your group {wide!r:.40} spans most: split it."
        refuse(r2[short] < probe[short], why)
        reached[kind] = numbers
    return "Killed. " + "; ".join(f"{kind}: {numbers}" for kind, numbers in reached.items()) + "."


def _dealt(streams, labels, groups: list[str]) -> dict[tuple, torch.Tensor]:
    """The right answer for every way to deal the labels out: the groups with a 1 -> the direction."""
    names, found = list(dict.fromkeys(groups)), {}
    real = streams[labels == 1].mean(0) - streams[labels == 0].mean(0)
    ones = sum(int(labels[groups.index(name)]) for name in names)
    for chosen in combinations(names, ones):
        new = torch.tensor([group in chosen for group in groups])
        drawn = streams[new].mean(0) - streams[~new].mean(0)
        found[chosen] = drawn - (drawn @ real) / (real @ real) * real
    return found


@checker("22.7")
def check_null(attempt: Attempt) -> str:
    for size, d, seed in ((7, 30, 0), (8, 40, 1)):
        groups = [f"word {n * 3 % size}" for n in range(3 * size)]
        streams = random(3 * size, d, seed=seed) + 2 * random(size, d, seed=seed + 9).repeat(3, 1)[: 3 * size]
        labels = torch.tensor([int(group[-1] in "024") for group in groups])
        _check_draws(attempt, streams, labels, groups)
    return "Whole groups, as many as before, at right angles to the real difference, another one each time."


def _check_draws(attempt: Attempt, streams, labels, groups: list[str]) -> None:
    """Many draws: each is one of the right answers, and not always the same."""
    right, seen, shape = _dealt(streams, labels, groups), set(), (streams.shape[1],)
    real = streams[labels == 1].mean(0) - streams[labels == 0].mean(0)
    for seed in range(25):
        found = attempt.tensor(streams, labels, groups, seeded(seed), shape=shape, axes="d_model")
        if found.norm() < 1e-4 * real.norm():  # the real labels were drawn, or all of them turned round
            continue
        slant = cosine_similarity(found, real, dim=0).abs() > 1e-3
        refuse(slant, "It is not at right angles to the real difference: take away the projection on that.")
        like = {chosen: cosine_similarity(found, each, dim=0) for chosen, each in right.items()}
        best = max(like, key=like.get)
        _explain_draw(found, streams, real, like[best].item(), min(like.values()).item())
        why = "The direction is right, its length is not: do not scale it."
        refuse(not close(found, right[best], 1e-3), why)
        seen.add(best)
    few = "The same few directions each time: deal the labels out with `generator=generator`."
    refuse(len(seen) < 6, few)
    again = {tuple(attempt(streams, labels, groups, seeded(3)).tolist()) for _ in range(3)}
    why = "The same generator must give the same direction: draw with `generator=generator`."
    refuse(len(again) > 1, why)


def _explain_draw(found, streams, real, cosine: float, opposite: float) -> None:
    """Why a direction is no difference of class means with whole groups dealt out; else `NotYet`."""
    turned = "The sign is turned: the mean of class 1 less that of class 0."
    if cosine > 0.999:
        return
    refuse(opposite < -0.999, turned)
    basis = torch.linalg.qr((streams - streams.mean(0)).T).Q  # of all differences between examples
    inside = (basis.T @ found).norm() / found.norm()
    foreign = "It is no difference of means of these streams. Isotropic noise would be the weakest null."
    refuse(inside < 0.98, foreign)
    raise NotYet("Deal the labels out among the groups, not the examples, and keep how many groups have a 1.")
