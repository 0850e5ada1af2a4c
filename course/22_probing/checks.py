"""Checks of notebook 22, probing."""

import torch

from mechlab_course.checking import close, declare, must_equal, only_wrong, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _two_classes(ones: int, zeros: int, d: int, seed: int):
    """Training examples, their labels, and test examples, on a line far from zero."""
    direction, offset = random(d, seed=seed), 3 * random(d, seed=seed + 1)
    labels = torch.cat([torch.ones(ones), torch.zeros(zeros)]).long()
    labels = labels[torch.randperm(len(labels), generator=seeded(seed))]
    train = random(len(labels), d, seed=seed + 2) + labels[:, None] * 1.5 * direction + offset
    test = random(60, d, seed=seed + 3) + torch.linspace(-1, 2.5, 60)[:, None] * direction + offset
    return train, labels, test


@checker("22.1")
def check_mass_mean(attempt: Attempt) -> str:
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
            "You compare inner products with the two means. The nearer mean is asked for: "
            "the longer mean wins otherwise.": (test @ high > test @ low).long(),
        }
        wrong = f"{int((found != expected).sum())} of 60 test examples get the other label."
        must_equal(found, expected, mistakes, otherwise=lambda wrong=wrong: wrong)
    return "The nearer class mean, on three sets with unequal classes and means far from zero."


def _for_each(found, groups: list[str], what: str) -> torch.Tensor:
    """What the learner returned as a tensor with one entry for each example; else `NotYet`."""
    found = torch.as_tensor(found)
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


def _labels_of_groups(found, groups: list[str], names: int) -> dict[str, int]:
    """The label of each group, if it has one, and half of the groups get a 1; else `NotYet`."""
    found = _for_each(found, groups, "One label")
    refuse(not set(found.tolist()) <= {0, 1}, "The labels are 0 and 1.")
    given: dict[str, int] = {}
    for group, label in zip(groups, found.long().tolist(), strict=True):
        why = f"{group!r} has two labels. Draw one for each group, and look it up for its examples."
        refuse(given.setdefault(group, label) != label, why)
    ones, half = sum(given.values()), names // 2
    why = f"Of {names} groups {ones} get a 1; half of the groups, rounded down, should: {half}."
    refuse(ones != half, why)
    return given


@checker("22.3")
def check_control(attempt: Attempt) -> str:
    seen = set()
    for seed, names in [*((seed, 9) for seed in range(30)), (30, 11), (31, 7), (32, 4)]:
        groups = [f"word {n * 5 % names}" for n in range(3 * names)]
        given = _labels_of_groups(attempt(groups, seeded(seed)), groups, names)
        if names == 9:
            seen.add(tuple(sorted(given.items())))
    why = "The labels are not random: with another generator the same groups get a 1."
    refuse(len(seen) == 1, why)
    why = "Only a few of the possible labellings are ever drawn. Any half of the groups may get a 1."
    refuse(len(seen) < 15, why)
    groups = [f"word {n * 7 % 11}" for n in range(33)]
    again = {tuple(torch.as_tensor(attempt(groups, seeded(5))).tolist()) for _ in range(4)}
    why = "The same generator must give the same labels: draw with `generator=generator`."
    refuse(len(again) > 1, why)
    return "One label a group, half of the groups, and another half with another generator."


def _by_group(groups, values, asked, of):
    """For each group that is asked for, something of its rows; of a new group, the mean of all."""
    rows = {group: values[[n for n, other in enumerate(groups) if other == group]] for group in groups}
    return torch.stack([of(rows[group]) if group in rows else values.mean(0) for group in asked])


@declare("22.4", axes="other, target", says="The mean of the group, and of everything for a new group.")
class GroupMeans:
    cases = (
        ([*"abacbac"], 10 + random(7, 2), [*"badc"]),
        ([*"ccfaffcag"], 10 + random(9, 3, seed=1), [*"ccef"]),
    )

    def right(groups, values, asked):
        return _by_group(groups, values, asked, lambda rows: rows.mean(0))

    def otherwise(found, groups, values, asked):
        expected = GroupMeans.right(groups, values, asked)
        known = torch.tensor([group in groups for group in asked])
        if close(found[known], expected[known]):
            return "For a new group, say the mean of all training examples."
        return only_wrong(found, expected)

    def mean_of_all(groups, values, asked):
        """Everybody gets the mean of everything. Take the mean of the training examples of the same group."""
        return values.mean(0).expand(len(asked), -1)

    def one_number(groups, values, asked):
        """You average the targets together, into one number. Keep latitude and longitude apart:
        mean over rows."""
        return GroupMeans.right(groups, values, asked).mean(1, keepdim=True).expand(-1, values.shape[1])

    def added_up(groups, values, asked):
        """You add up. Take the mean."""
        return _by_group(groups, values, asked, lambda rows: rows.sum(0))

    def first_example(groups, values, asked):
        """You take the first example of the group. Take the mean of all."""
        return _by_group(groups, values, asked, lambda rows: rows[0])


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
