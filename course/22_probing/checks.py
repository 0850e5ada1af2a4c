"""Checks of notebook 22, probing."""

import torch

from mechlab_course.checking import close, is_like, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _number(value, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"Return one number, {what}.") from None
    if number != number:
        raise NotYet(f"Your {what} is NaN: a division by zero?")
    return number


@checker("22.1")
def check_mass_mean(attempt: Attempt) -> str:
    for ones, zeros, d, seed in ((12, 6, 5, 0), (5, 20, 8, 1), (9, 9, 3, 2)):
        direction, offset = random(d, seed=seed), 3 * random(d, seed=seed + 1)
        labels = torch.cat([torch.ones(ones), torch.zeros(zeros)]).long()
        labels = labels[torch.randperm(len(labels), generator=seeded(seed))]
        train = random(len(labels), d, seed=seed + 2) + labels[:, None] * 1.5 * direction + offset
        test = random(60, d, seed=seed + 3) + torch.linspace(-1, 2.5, 60)[:, None] * direction + offset
        low, high = train[labels == 0].mean(0), train[labels == 1].mean(0)
        split = lambda centre, low=low, high=high, test=test: ((test - centre) @ (high - low) > 0).long()
        expected = split((low + high) / 2)
        found = attempt(train, labels, test)
        if isinstance(found, torch.Tensor) and found.dtype == torch.bool:
            found = found.long()
        if not isinstance(found, torch.Tensor) or found.shape != (60,):
            raise NotYet("Return one label, 0 or 1, for each test example: a tensor of shape [other].")
        if not set(found.tolist()) <= {0, 1}:
            raise NotYet("The labels are 0 and 1: return which of the two, not a score.")
        found = found.long()
        along = test @ (high - low)
        mistakes = {
            "You split at zero. The means lie anywhere: split half way between them.": split(torch.zeros(d)),
            "It is turned round: the direction leads from class 0 to class 1.": 1 - expected,
            "You split at the mean of the test examples. Whatever is learned comes from the training examples.": (
                along > along.mean()
            ).long(),
            "You split at the mean of all examples. With unequal classes that is not half way between the two means.": split(
                train.mean(0)
            ),
            "You compare inner products with the two means. The nearer mean is asked for: the longer mean wins otherwise.": (
                test @ high > test @ low
            ).long(),
        }
        for why, like in mistakes.items():
            if torch.equal(found, like) and not torch.equal(like, expected):
                raise NotYet(why)
        if not torch.equal(found, expected):
            raise NotYet(f"{int((found != expected).sum())} of 60 test examples get the other label.")
    return "The nearer class mean, on three sets with unequal classes and means far from zero."


@checker("22.2")
def check_held_out(attempt: Attempt) -> str:
    seen = set()
    groups = [f"word {n % 11}" for n in (5, 3, 3, 0, 1, 7, 6, 2, 4, 4, 10, 1, 0, 5, 9, 8, 10, 15, 14, 13, 21)]
    for seed in range(60):  # 11 groups: shares that come to 3.3 and 3.85 groups, so that rounding shows
        share = (0.3, 0.35)[seed % 2]
        found = attempt(list(groups), share, seeded(seed))
        if not isinstance(found, torch.Tensor):
            found = torch.as_tensor(found)
        if found.shape != (len(groups),):
            raise NotYet(f"One True or False is needed for each of the {len(groups)} examples.")
        found = found.bool()
        test = {group for group, out in zip(groups, found.tolist(), strict=True) if out}
        train = {group for group, out in zip(groups, found.tolist(), strict=True) if not out}
        if test & train:
            raise NotYet(
                f"{sorted(test & train)[0]!r} is on both sides: draw among the groups, not among the examples."
            )
        if len(train) == round(share * 11) and len(test) != len(train):
            raise NotYet("You marked the examples for training. True is for testing.")
        if len(test) != round(share * 11):
            raise NotYet(
                f"There are 11 groups, and a share of {share} is {share * 11:.2f}, rounded {round(share * 11)}; you hold out {len(test)}."
            )
        if share == 0.3:
            seen.add(tuple(sorted(test)))
    if len(seen) == 1:
        raise NotYet("The same groups every time: draw them with `generator=generator`.")
    if len(seen) < 16:
        raise NotYet("Only a few of the possible sets are ever drawn. Any groups may be held out together.")
    same = {tuple(torch.as_tensor(attempt(list(groups), 0.5, seeded(9))).bool().tolist()) for _ in range(4)}
    if len(same) > 1:
        raise NotYet("The same generator must give the same split: draw with `generator=generator`.")
    return "Whole groups, as many as asked for, other ones with another generator."


@checker("22.3")
def check_control(attempt: Attempt) -> str:
    labels_seen = []
    for seed, names in [(seed, 9) for seed in range(30)] + [(30, 11), (31, 7), (32, 4)]:
        groups = [f"word {n * 5 % names}" for n in range(3 * names)]
        found = attempt(list(groups), seeded(seed))
        found = torch.as_tensor(found)
        if found.shape != (len(groups),):
            raise NotYet(f"One label is needed for each of the {len(groups)} examples.")
        if not set(found.tolist()) <= {0, 1}:
            raise NotYet("The labels are 0 and 1.")
        given = {}
        for group, label in zip(groups, found.long().tolist(), strict=True):
            if given.setdefault(group, label) != label:
                raise NotYet(
                    f"{group!r} has two labels. Draw one for each group, and look it up for its examples."
                )
        if sum(given.values()) != names // 2:
            raise NotYet(
                f"Of {names} groups {sum(given.values())} get a 1; half of the groups, rounded down, should: {names // 2}."
            )
        if names == 9:
            labels_seen.append(tuple(sorted(given.items())))
    if len(set(labels_seen)) == 1:
        raise NotYet("The labels are not random: with another generator the same groups get a 1.")
    if len(set(labels_seen)) < 15:
        raise NotYet(
            "Only a few of the possible labellings are ever drawn. Any half of the groups may get a 1."
        )
    groups = [f"word {n * 7 % 11}" for n in range(33)]
    again = {tuple(torch.as_tensor(attempt(list(groups), seeded(5))).tolist()) for _ in range(4)}
    if len(again) > 1:
        raise NotYet("The same generator must give the same labels: draw with `generator=generator`.")
    return "One label a group, half of the groups, and another half with another generator."


@checker("22.4")
def check_group_means(attempt: Attempt) -> str:
    for seed, targets, train, test in (
        (0, 2, ["a", "b", "a", "c", "b", "a", "c"], ["b", "a", "d", "c"]),
        (1, 3, ["c", "c", "f", "a", "f", "f", "c", "a", "g"], ["c", "c", "e", "f"]),
    ):
        values = 10 + random(len(train), targets, seed=seed)
        rows = lambda group, train=train: [n for n, other in enumerate(train) if other == group]
        expected = torch.stack([values[rows(g)].mean(0) if rows(g) else values.mean(0) for g in test])
        found = attempt.tensor(
            list(train), values, list(test), shape=(len(test), targets), axes="other, target"
        )
        known = torch.tensor([bool(rows(g)) for g in test])
        is_like(
            found,
            {
                "Everybody gets the mean of everything. Take the mean of the training examples of the same group.": values.mean(
                    0
                ).expand(len(test), -1),
                "You average the targets together, into one number. Keep latitude and longitude apart: mean over rows.": torch.stack(
                    [(values[rows(g)] if rows(g) else values).mean().expand(targets) for g in test]
                ),
                "You add up. Take the mean.": torch.stack(
                    [values[rows(g)].sum(0) if rows(g) else values.mean(0) for g in test]
                ),
                "You take the first example of the group. Take the mean of all.": torch.stack(
                    [values[rows(g)[0]] if rows(g) else values.mean(0) for g in test]
                ),
            },
        )
        if close(found[known], expected[known]) and not close(found, expected):
            raise NotYet("For a new group, say the mean of all training examples.")
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "The mean of the group, and of everything for a new group."


@checker("22.5")
def check_r_squared(attempt: Attempt) -> str:
    for n, seed in ((12, 0), (20, 1)):
        truth = random(n, seed=seed) + 4
        groups = [*("xyz" * 4 if n == 12 else "aabcbbbadcabbacbaaab")]
        truth = truth + torch.tensor(["xyzabcd".index(g) * 1.5 % 4 for g in groups])
        said = 0.7 * truth + 0.5 * random(n, seed=seed + 10) + 2
        error = (said - truth).pow(2).sum()
        centre = torch.stack([truth[torch.tensor([g == group for g in groups])].mean() for group in groups])
        plain = (1 - error / (truth - truth.mean()).pow(2).sum()).item()
        inside = (1 - error / (truth - centre).pow(2).sum()).item()
        first = _number(attempt(said, truth), "R²")
        correlation = torch.corrcoef(torch.stack([said, truth]))[0, 1].item()
        for value, why in (
            (correlation**2, "That is the square of a correlation. It forgives a wrong scale and a wrong mean; R² does not."),
            (correlation, "That is a correlation. R² compares errors."),
            ((1 - error / (said - said.mean()).pow(2).sum()).item(), "You divide by the spread of the predictions. Take that of the truth."),
            ((error / (truth - truth.mean()).pow(2).sum()).item(), "That is the share that is left. Take 1 minus it."),
            ((1 - error / truth.pow(2).sum()).item(), "You measure the truth from zero. Measure it from its mean."),
        ):  # fmt: skip
            if abs(first - value) < 1e-4 and abs(first - plain) > 1e-4:
                raise NotYet(why)
        if abs(first - plain) > 1e-3:
            raise NotYet(f"Without groups R² should be {plain:.3f}, and yours is {first:.3f}.")
        second = _number(attempt(said, truth, list(groups)), "R²")
        rows = [torch.tensor([g == group for g in groups]) for group in dict.fromkeys(groups)]
        middle = torch.stack([truth[row].mean() for row in rows]).mean()
        apart = torch.stack(
            [
                1 - (said - truth)[row].pow(2).sum() / (truth[row] - truth[row].mean()).pow(2).sum()
                for row in rows
            ]
        ).mean()
        if abs(second - (1 - error / (truth - middle).pow(2).sum())) < 1e-4 < abs(second - plain):
            raise NotYet(
                "You took one centre, the mean of the group means. Each example has the mean of its own group."
            )
        if abs(second - apart) < 1e-4:
            raise NotYet(
                "You took the mean of one R² for each group. Add up over all examples before you divide."
            )
        if abs(second - plain) < 1e-4:
            raise NotYet("You left the groups out: measure the truth from the mean of its own group.")
        if abs(second - inside) > 1e-3:
            raise NotYet(
                f"With groups it should be {inside:.3f}, and yours is {second:.3f}. Only the centre changes, not the error."
            )
        worse = 3 * random(n, seed=seed + 20)  # worse than the mean: below zero
        for given, centre_ in (((), truth.mean()), ((list(groups),), centre)):
            below = (1 - (worse - truth).pow(2).sum() / (truth - centre_).pow(2).sum()).item()
            said_so = _number(attempt(worse, truth, *given), "R²")
            if abs(said_so - below) > 1e-2 * abs(below):
                raise NotYet(
                    f"Predictions worse than the mean have an R² below zero: here {below:.2f}, and yours is {said_so:.2f}."
                )
    if abs(_number(attempt(truth, truth), "R²") - 1) > 1e-5:
        raise NotYet("Perfect predictions have R² 1.")
    return "1 for perfect predictions, and right with and without groups, also below zero."
