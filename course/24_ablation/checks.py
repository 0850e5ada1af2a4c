"""Checks of notebook 24, ablation."""

import torch

from mechlab.circuits.ioi import ioi_prompts
from mechlab.discovery.ablation import ablation_effects, ablation_hooks
from mechlab.runs.hooks import intervene
from mechlab_course.checking import close, declare, random, refuse, whole_number
from mechlab_course.exercises import Attempt, checker


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

    def over_heads(z, reference, head):
        """You averaged over the heads too. This head has its own mean."""
        return _put(z, head, reference.mean((0, 2)))

    def first_prompt(z, reference, head):
        """Only the first prompt is changed. Change all of them."""
        return torch.cat([MeanAblated.right(z, reference, head)[:1], z[1:]])

    def last_position(z, reference, head):
        """Only the last position is changed. Change all of them, each with its own mean."""
        return torch.cat([z[:, :-1], MeanAblated.right(z, reference, head)[:, -1:]], 1)

    def position(z, reference, head):
        """You replaced a position of all heads. The axes are [batch, pos, head, d_head]: the head is the
        third index, `z[:, :, head]`."""
        z = z.clone()
        z[:, head % z.shape[1]] = reference[:, head % z.shape[1]].mean(0)
        return z

    def coordinate(z, reference, head):
        """You replaced a coordinate of all heads. The axes are [batch, pos, head, d_head]: the head is the
        third index, `z[:, :, head]`."""
        z = z.clone()
        z[..., head % z.shape[3]] = reference[..., head % z.shape[3]].mean(0)
        return z

    def median(z, reference, head):
        """You took the median of the reference prompts. Take the mean."""
        return _put(z, head, reference[:, :, head].median(0).values)

    def subtracted(z, reference, head):
        """You took the mean off. Write it in the place of what was there."""
        return _put(z, head, z[:, :, head] - reference[:, :, head].mean(0))

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

    def scaled_once(stream, direction, level):
        """The direction is scaled to length 1 in one place and not in the other. Compute `unit` once."""
        return stream + (level - stream @ direction / direction.norm())[..., None] * direction

    def level_scaled_down(stream, direction, level):
        """What was there comes off rightly, but `level` is divided by the length of the direction."""
        return _set_along(stream, direction, level / direction.norm())

    def one_for_all(stream, direction, level):
        """You took one component for all positions, the mean. Each position has its own."""
        unit = direction / direction.norm()
        return stream + (level - (stream @ unit).mean()) * unit

    def level_everywhere(stream, direction, level):
        """You added `level` to every coordinate. It goes along the direction: `level * unit`."""
        return _set_along(stream, direction, 0) + level

    def sizes(stream, direction, level):
        """You took the size of the component. Its sign says which way it must move."""
        unit = direction / direction.norm()
        return stream + (level - (stream @ unit).abs())[..., None] * unit

    def cosines(stream, direction, level):
        """You measured the component on streams of length 1. Only the direction has length 1."""
        unit, short = direction / direction.norm(), stream / stream.norm(dim=-1, keepdim=True)
        return stream + (level - short @ unit)[..., None] * unit

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


ALONE, TOGETHER, MORE = 0.2, 0.4, 1.25  # shares of the logit difference; how much more than apart
FORMS = (  # none of the notebook's templates
    "When {first} and {second} stayed in the {place}, {subject} gave a {object} to",
    "While {first} and {second} rested at the {place}, {subject} handed a {object} to",
)
PEOPLE = ("Bill", "Bob", "Dan", "Frank", "Fred", "Gary", "Roger", "Alan")
PEOPLE += ("Rose", "Grace", "Eva", "Anne", "Joan", "Betty", "Nina", "Marie")


def _a_set(found, model) -> list[tuple[int, int]]:
    """The learner's heads, if they can be taken away."""
    form = "Return a list of two to six heads, such as [(23, 0), (24, 1)]."
    refuse(not isinstance(found, (list, tuple, set)), form)
    refuse(not all(isinstance(head, (list, tuple)) and len(head) == 2 for head in found), form)
    heads = [(whole_number(layer, "a layer"), whole_number(head, "a head")) for layer, head in found]
    for layer, head in heads:
        there = 0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads
        layers = f"layers go from 0 to {model.cfg.n_layers - 1}, heads to {model.cfg.n_heads - 1}."
        refuse(not there, f"There is no head {layer}.{head}: a head is (layer, head); {layers}")
        refuse(heads.count((layer, head)) > 1, f"{layer}.{head} is there twice.")
    refuse(not 2 <= len(heads) <= 6, f"You return {len(heads)} heads. {form}")
    return heads


@checker("24.5")
def check_hidden_set(attempt: Attempt, model) -> str:
    heads = _a_set(attempt(), model)
    prompts = ioi_prompts(model, 16, templates=FORMS, names=PEOPLE, seed=7)
    usual = ioi_prompts(model, 32, templates=FORMS, names=PEOPLE, seed=8).corrupted("abc")
    form = lambda of: [name.split(",")[0] for name in of.templates]
    given = {"source": usual, "templates": (form(prompts), form(usual))}
    with torch.no_grad():
        intact = prompts.metric(model(prompts.tokens)).mean().item()
        with intervene(model, ablation_hooks(model, prompts, heads, "mean", **given)):
            fall = intact - prompts.metric(model(prompts.tokens)).mean().item()
    names = ", ".join(f"{layer}.{head}" for layer, head in heads)
    told = (
        f"On other names and templates the model has {intact:.1f} logits. Without {names} together it loses "
    )
    told += f"{100 * fall / intact:.0f} %"
    short = f"{100 * TOGETHER:.0f} % it must lose at least: some other part still does their work. Which?"
    refuse(fall < TOGETHER * intact, f"{told}. {short}")
    single = -ablation_effects(model, prompts, prompts.metric, heads, "mean", **given).values / intact
    for (layer, head), change in zip(heads, single.tolist(), strict=True):
        seen = "A sweep over single heads sees it already."
        refuse(abs(change) > ALONE, f"{layer}.{head} alone changes it by {-100 * change:+.0f} %. {seen}")
    apart = single.clamp(min=0).sum().item()
    told += f", and their single losses sum to {100 * apart:.0f} %"
    added = "They hardly do more than add up: nothing stepped in for any of them."
    refuse(fall / intact < MORE * apart, f"{told}. {added}")
    return f"{told}: none of them is seen alone."
