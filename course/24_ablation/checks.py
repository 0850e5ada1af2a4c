"""Checks of notebook 24, ablation."""

import torch

from mechlab_course.checking import close, is_like, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("24.1")
def check_mean(attempt: Attempt) -> str:
    for batch, other, pos, heads, d, head, seed in (
        (3, 5, 4, 3, 2, 1, 0),
        (2, 2, 6, 4, 3, 3, 1),
        (4, 6, 3, 2, 5, 0, 2),
    ):
        z, reference = (
            random(batch, pos, heads, d, seed=seed),
            random(other, pos, heads, d, seed=seed + 9) + 1,
        )
        put = lambda value, z=z, head=head: torch.cat(
            [z[:, :, :head], value.expand(len(z), z.shape[1], z.shape[3])[:, :, None], z[:, :, head + 1 :]], 2
        )
        usual = reference[:, :, head]
        expected = put(usual.mean(0))
        found = attempt.tensor(z, reference, head, shape=tuple(z.shape), axes="batch, pos, head, d_head")
        is_like(
            found,
            {
                "You averaged over the positions too. Each has its own mean: position by position.": put(
                    usual.mean((0, 1))
                ),
                "That is the mean over these prompts themselves. The reference prompts say what is usual.": put(
                    z[:, :, head].mean(0)
                ),
                "All heads are replaced. Only the one that is named should be.": reference.mean(0).expand_as(
                    z
                ),
                "That is zero ablation. Write the mean.": put(torch.zeros(pos, d)),
                "You wrote one reference prompt. Write the mean over all of them.": put(usual[0]),
                "You averaged over d_head too. The mean is a vector.": put(
                    usual.mean((0, 2))[:, None].expand(pos, d)
                ),
                "Nothing is changed. Do you return the changed copy?": z,
                "You added up over the reference prompts. Take the mean.": put(usual.sum(0)),
                "You added the mean to what was there. Write it in its place.": put(
                    z[:, :, head] + usual.mean(0)
                ),
                "All the other heads are replaced, and this one is not.": torch.cat(
                    [
                        reference.mean(0).expand_as(z)[:, :, :head],
                        z[:, :, head : head + 1],
                        reference.mean(0).expand_as(z)[:, :, head + 1 :],
                    ],
                    2,
                ),
            },
        )
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "Only the named head, position by position, and the input is left as it was."


@checker("24.2")
def check_templates(attempt: Attempt) -> str:
    for seed, its, templates in (
        (0, ["a", "ab", "a", "ab", "ab", "a"], ["ab", "a", "ab"]),
        (1, ["x", "y", "z", "z", "x"], ["z", "z", "y", "x"]),
    ):
        found_in = random(len(its), 4, 3, seed=seed)
        rows = lambda t, its=its: [n for n, other in enumerate(its) if other == t]
        expected = torch.stack([found_in[rows(t)].mean(0) for t in templates])
        found = attempt.tensor(
            found_in, list(its), list(templates), shape=tuple(expected.shape), axes="batch, pos, d"
        )
        is_like(
            found,
            {
                "That is the mean of all templates. Each prompt gets the mean of its own.": found_in.mean(
                    0
                ).expand_as(expected),
                "One prompt of the template is not its mean. Average over all of them.": torch.stack(
                    [found_in[rows(t)[0]] for t in templates]
                ),
                "You averaged over the positions too. Keep them apart.": torch.stack(
                    [found_in[rows(t)].mean((0, 1)).expand(4, -1) for t in templates]
                ),
                "You added up. Take the mean.": torch.stack([found_in[rows(t)].sum(0) for t in templates]),
                "These are the means of all the other templates.": torch.stack(
                    [found_in[[n for n in range(len(its)) if its[n] != t]].mean(0) for t in templates]
                ),
            },
        )
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
    return "Each prompt gets the mean of its own template, on two sets of templates."


@checker("24.3")
def check_direction(attempt: Attempt) -> str:
    for seed, level in ((0, 0.7), (1, 0.0), (2, -3.0)):
        shape = (2 + seed, 3, 6 - seed)
        stream, direction = random(*shape, seed=seed), 2.5 * random(shape[2], seed=seed + 9)
        unit = direction / direction.norm()
        along = (stream @ unit)[..., None]
        expected = stream + (level - along) * unit
        found = attempt.tensor(stream, direction, level, shape=shape, axes="batch, pos, d_model")
        mistakes = {
            "Nothing is changed. When `level` is 0 the component must become 0.": stream,
            "Scale the direction to length 1 first: otherwise too much is taken out.": stream
            + (level - stream @ direction)[..., None] * direction,
            "Where is `level`? The component must become `level`, not 0.": stream - along * unit,
            "It goes the wrong way: the component along the direction grew. Take it off, then put `level`.": stream
            + (level + along) * unit,
            "That is only the part along the direction. Everything at right angles to it must stay.": level
            * unit.expand_as(stream),
            "You added `level` without taking off what was there.": stream + level * unit,
            "You put `level` times the direction as it is. Use the direction of length 1.": stream
            - along * unit
            + level * direction,
            "The stream is reflected: taken off twice.": stream + (level - 2 * along) * unit,
        }
        is_like(found, {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
        again = attempt.tensor(found, direction, level, shape=shape, axes="batch, pos, d_model")
        if not close(again, found):
            raise NotYet("Done a second time it must change nothing.")
        other = attempt.tensor(stream, -4 * direction, -level, shape=shape, axes="batch, pos, d_model")
        if not close(other, expected, 1e-3):
            raise NotYet("A direction four times as long, turned round, with −level, is the same request.")
    return "The component is `level`, the rest is as before, and a second time changes nothing."


@checker("24.4")
def check_interval(attempt: Attempt) -> str:
    for n, seed in ((16, 0), (40, 1), (9, 2)):
        effects = 2 * random(n, seed=seed) - 1
        low, high = _pair(attempt(effects, 4000, seeded(seed)))
        mean, error = effects.mean().item(), (effects.std(correction=0) / n**0.5).item()
        if high < low:
            raise NotYet("The lower end comes first.")
        if abs(high - low) < 1e-4:
            raise NotYet(
                "Your interval has no width. Drawn without replacement, a sample as large as the data is the data: draw with "
                "replacement (`torch.randint`)."
            )
        spread = effects.quantile(torch.tensor([0.025, 0.975])).tolist()
        if abs(low - spread[0]) + abs(high - spread[1]) < 1e-3:
            raise NotYet(
                "These are quantiles of the effects themselves. Take them of the means of many samples."
            )
        width = (high - low) / (2 * 1.96 * error)
        if width < 0.85:
            raise NotYet(
                f"The interval is too narrow: {high - low:.2f}, and about {2 * 1.96 * error:.2f} is right. 2.5 % and 97.5 %? Samples of {n}?"
            )
        if width > 1.15:
            raise NotYet(
                f"The interval is too wide: {high - low:.2f}, and about {2 * 1.96 * error:.2f} is right. Are the samples as large as the data?"
            )
        if not mean - 2.6 * error < low < mean < high < mean + 2.6 * error:
            raise NotYet(f"The mean is {mean:.2f}; your interval is from {low:.2f} to {high:.2f}.")
    one = [_pair(attempt(effects, 300, seeded(s))) for s in (1, 1, 2)]
    if one[0] != one[1] or one[0] == one[2]:
        raise NotYet(
            "The same generator must give the same interval, and another one another: draw with `generator=generator`."
        )
    for place in (
        0,
        -1,
    ):  # the means of samples are whole numbers: 0, 1, 2, 3, ... with the chances of a binomial
        spike = torch.zeros(10)
        spike[place] = 10.0
        low, high = _pair(attempt(spike, 4000, seeded(3)))
        if abs(low) > 1e-4 or abs(high - 3) > 1e-4:
            raise NotYet(
                f"With one effect of 10 and nine of 0 the means of samples are 0, 1, 2, ..., and the interval goes from 0 to 3. "
                f"Yours goes from {low:.2f} to {high:.2f}: take the 2.5 % and 97.5 % quantiles of means of samples of 10, from all 10."
            )
    low, high = _pair(attempt(effects, 1, seeded(4)))
    if abs(high - low) > 1e-5:
        raise NotYet("`draws` is how many samples are drawn. With one sample both ends are its mean.")
    return "As wide as theory says, around the mean, on three sets."


def _pair(value) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("Return two numbers: the lower and the upper end.") from None
    if low != low or high != high:
        raise NotYet("An end of the interval is NaN.")
    return low, high
