"""Checks of notebook 24, ablation."""

import torch

from mechlab_course.checking import close, declare, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _heads(batch: int, other: int, pos: int, heads: int, d_head: int, head: int, seed: int):
    return (
        random(batch, pos, heads, d_head, seed=seed),
        random(other, pos, heads, d_head, seed=seed + 9) + 1,
        head,
    )


def _put(z, head, value):
    z = z.clone()
    z[:, :, head] = value
    return z


@declare(
    "24.1",
    axes="batch, pos, head, d_head",
    says="Only the named head, position by position, and the input is left as it was.",
)
class MeanAblated:
    cases = (_heads(3, 5, 4, 3, 2, 1, 0), _heads(2, 2, 6, 4, 3, 3, 1), _heads(4, 6, 3, 2, 5, 0, 2))

    def right(z, reference, head):
        return _put(z, head, reference[:, :, head].mean(0))

    def one_mean_for_all_positions(z, reference, head):
        """You averaged over the positions too. Each has its own mean: position by position."""
        return _put(z, head, reference[:, :, head].mean((0, 1)))

    def of_these_prompts(z, reference, head):
        """That is the mean over these prompts themselves. The reference prompts say what is usual."""
        return _put(z, head, z[:, :, head].mean(0))

    def all_heads(z, reference, head):
        """All heads are replaced. Only the one that is named should be."""
        return reference.mean(0).expand_as(z)

    def zero(z, reference, head):
        """That is zero ablation. Write the mean."""
        return _put(z, head, 0)

    def one_reference_prompt(z, reference, head):
        """You wrote one reference prompt. Write the mean over all of them."""
        return _put(z, head, reference[0, :, head])

    def over_d_head(z, reference, head):
        """You averaged over d_head too. The mean is a vector."""
        return _put(z, head, reference[:, :, head].mean((0, 2))[:, None])

    def nothing(z, reference, head):
        """Nothing is changed. Do you return the changed copy?"""
        return z

    def added_up(z, reference, head):
        """You added up over the reference prompts. Take the mean."""
        return _put(z, head, reference[:, :, head].sum(0))

    def on_top(z, reference, head):
        """You added the mean to what was there. Write it in its place."""
        return _put(z, head, z[:, :, head] + reference[:, :, head].mean(0))

    def all_other_heads(z, reference, head):
        """All the other heads are replaced, and this one is not."""
        return _put(reference.mean(0).expand_as(z), head, z[:, :, head])


def _per_template(found, its_templates, templates, pool, other=False):
    """What `pool` makes of the reference prompts of each prompt's template, or of those of all others."""
    return torch.stack([pool(found[[(name == own) != other for name in its_templates]]) for own in templates])


@declare(
    "24.2",
    axes="batch, pos, d",
    says="Each prompt gets the mean of its own template, on two sets of templates.",
)
class TemplateMeans:
    cases = (
        (random(6, 4, 3, seed=0), ["a", "ab", "a", "ab", "ab", "a"], ["ab", "a", "ab"]),
        (random(5, 4, 3, seed=1), ["x", "y", "z", "z", "x"], ["z", "z", "y", "x"]),
    )

    def right(found, its_templates, templates):
        return _per_template(found, its_templates, templates, lambda same: same.mean(0))

    def of_all_templates(found, its_templates, templates):
        """That is the mean of all templates. Each prompt gets the mean of its own."""
        return found.mean(0).expand(len(templates), -1, -1)

    def one_prompt(found, its_templates, templates):
        """One prompt of the template is not its mean. Average over all of them."""
        return _per_template(found, its_templates, templates, lambda same: same[0])

    def one_mean_for_all_positions(found, its_templates, templates):
        """You averaged over the positions too. Keep them apart."""
        return _per_template(
            found, its_templates, templates, lambda same: same.mean((0, 1)).expand_as(same[0])
        )

    def added_up(found, its_templates, templates):
        """You added up. Take the mean."""
        return _per_template(found, its_templates, templates, lambda same: same.sum(0))

    def of_the_others(found, its_templates, templates):
        """These are the means of all the other templates."""
        return _per_template(found, its_templates, templates, lambda others: others.mean(0), other=True)


def _streams(shape: tuple[int, ...], level: float, seed: int):
    return random(*shape, seed=seed), 2.5 * random(shape[2], seed=seed + 9), level


def _set_along(stream, direction, level, taken=1):
    """The stream with `level` put along the direction, and what was there taken off so many times."""
    unit = direction / direction.norm()
    return stream + (level - taken * (stream @ unit))[..., None] * unit


@declare("24.3", axes="batch, pos, d_model")
class WithoutDirection:
    cases = (_streams((2, 3, 6), 0.7, 0), _streams((3, 3, 5), 0.0, 1), _streams((4, 3, 4), -3.0, 2))

    def right(stream, direction, level):
        return _set_along(stream, direction, level)

    def nothing(stream, direction, level):
        """Nothing is changed. When `level` is 0 the component must become 0."""
        return stream

    def not_scaled(stream, direction, level):
        """Scale the direction to length 1 first: otherwise too much is taken out."""
        return stream + (level - stream @ direction)[..., None] * direction

    def no_level(stream, direction, level):
        """Where is `level`? The component must become `level`, not 0."""
        return _set_along(stream, direction, 0)

    def sign(stream, direction, level):
        """It goes the wrong way: the component along the direction grew. Take it off, then put `level`."""
        return _set_along(stream, direction, level, taken=-1)

    def rest_lost(stream, direction, level):
        """That is only the part along the direction. Everything at right angles to it must stay."""
        return _set_along(0 * stream, direction, level)

    def not_taken_off(stream, direction, level):
        """You added `level` without taking off what was there."""
        return _set_along(stream, direction, level, taken=0)

    def level_not_scaled(stream, direction, level):
        """You put `level` times the direction as it is. Use the direction of length 1."""
        return _set_along(stream, direction, 0) + level * direction

    def reflected(stream, direction, level):
        """The stream is reflected: taken off twice."""
        return _set_along(stream, direction, level, taken=2)

    def further(attempt):
        for stream, direction, level in WithoutDirection.cases:
            run = lambda *given, shape=stream.shape: attempt.tensor(
                *given, shape=shape, axes="batch, pos, d_model"
            )
            once = run(stream, direction, level)
            refuse(not close(run(once, direction, level), once), "Done a second time it must change nothing.")
            refuse(
                not close(run(stream, -4 * direction, -level), once, 1e-3),
                "A direction four times as long, turned round, with −level, is the same request.",
            )
        return "The component is `level`, the rest is as before, and a second time changes nothing."


@checker("24.4")
def check_interval(attempt: Attempt) -> str:
    for n, seed in ((16, 0), (40, 1), (9, 2)):
        effects = 2 * random(n, seed=seed) - 1
        _is_as_wide_as_theory_says(effects, *_ends(attempt(effects, 4000, seeded(seed))))
    first, same, other = (_ends(attempt(effects, 300, seeded(seed))) for seed in (1, 1, 2))
    if first != same or first == other:
        raise NotYet(
            "The same generator must give the same interval, and another one another: draw with "
            "`generator=generator`."
        )
    _is_right_for_one_large_effect(attempt)
    low, high = _ends(attempt(effects, 1, seeded(4)))
    one = "`draws` is how many samples are drawn. With one sample both ends are its mean."
    refuse(abs(high - low) > 1e-5, one)
    return "As wide as theory says, around the mean, on three sets."


def _ends(value) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("Return two numbers: the lower and the upper end.") from None
    refuse(low != low or high != high, "An end of the interval is NaN.")
    return low, high


def _is_as_wide_as_theory_says(effects, low: float, high: float) -> None:
    mean, error = effects.mean().item(), (effects.std(correction=0) / len(effects) ** 0.5).item()
    spread = effects.quantile(torch.tensor([0.025, 0.975])).tolist()
    width, theory = high - low, 2 * 1.96 * error
    widths = f"{width:.2f}, and about {theory:.2f} is right."
    refuse(high < low, "The lower end comes first.")
    refuse(
        abs(width) < 1e-4,
        "Your interval has no width. Drawn without replacement, a sample as large as the data is the data: "
        "draw with replacement (`torch.randint`).",
    )
    refuse(
        abs(low - spread[0]) + abs(high - spread[1]) < 1e-3,
        "These are quantiles of the effects themselves. Take them of the means of many samples.",
    )
    narrow = f"The interval is too narrow: {widths} 2.5 % and 97.5 %? Samples of {len(effects)}?"
    refuse(width < 0.85 * theory, narrow)
    wide = f"The interval is too wide: {widths} Are the samples as large as the data?"
    refuse(width > 1.15 * theory, wide)
    beside = f"The mean is {mean:.2f}; your interval is from {low:.2f} to {high:.2f}."
    refuse(not mean - 2.6 * error < low < mean < high < mean + 2.6 * error, beside)


def _is_right_for_one_large_effect(attempt: Attempt) -> None:
    """The means of samples are whole numbers then: 0, 1, 2, 3, ... with the chances of a binomial."""
    for place in (0, -1):
        spike = torch.zeros(10)
        spike[place] = 10.0
        low, high = _ends(attempt(spike, 4000, seeded(3)))
        if abs(low) > 1e-4 or abs(high - 3) > 1e-4:
            raise NotYet(
                "With one effect of 10 and nine of 0 the means of samples are 0, 1, 2, ..., and the interval "
                f"goes from 0 to 3. Yours goes from {low:.2f} to {high:.2f}: take the 2.5 % and 97.5 % "
                "quantiles of means of samples of 10, from all 10."
            )
