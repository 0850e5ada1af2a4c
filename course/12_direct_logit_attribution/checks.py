"""Checks of notebook 12, direct logit attribution."""

import torch

from mechlab.loading.models import tiny
from mechlab_course.checking import close, declare, must_equal, random, refuse, seeded, whole_number
from mechlab_course.exercises import Attempt, NotYet, checker


def _final_stream(kind: str, seed: int = 0):
    """Parts of a real last residual stream of a tiny model, and its scale."""
    model = tiny(kind)
    tokens = torch.randint(1, 300, (1, 6), generator=seeded(seed))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    names = ["hook_embed", *(["hook_pos_embed"] if "hook_pos_embed" in cache else [])]
    names += [f"blocks.{n}.hook_{kind}_out" for n in range(model.cfg.n_layers) for kind in ("attn", "mlp")]
    parts = torch.stack([cache[name][0, -1] for name in names])
    return model, cache, parts, cache["ln_final.hook_scale"][0, -1, 0]


def _effects(parts, W_U, answer, rival):
    """What each part adds to the difference, before the norm."""
    return parts @ (W_U[:, answer] - W_U[:, rival])


@declare(
    "12.1",
    axes="part",
    says="The parts add up to the logit difference of two models, "
    "and raising all logits alike changes nothing.",
)
class DirectEffects:
    def cases():
        for kind, answer, rival in (("gqa", 7, 11), ("gpt2", 250, 3)):
            model, _, parts, scale = _final_stream(kind)
            yield parts, model.W_U.detach(), answer, rival, scale

    def right(parts, W_U, answer, rival, scale):
        return _effects(parts, W_U, answer, rival) / scale

    def no_norm(parts, W_U, answer, rival, scale):
        """The norm is missing: the logits read the stream after it is divided by `scale`."""
        return _effects(parts, W_U, answer, rival)

    def times_scale(parts, W_U, answer, rival, scale):
        """You multiplied by the scale. The norm divides by it."""
        return _effects(parts, W_U, answer, rival) * scale

    def sign(parts, W_U, answer, rival, scale):
        """The sign is turned: the answer's column minus the rival's."""
        return _effects(parts, W_U, rival, answer) / scale

    def answer_alone(parts, W_U, answer, rival, scale):
        """This is the logit of the answer alone (or against the mean of all tokens). Subtract the rival's."""
        return parts @ W_U[:, answer] / scale

    def own_length(parts, W_U, answer, rival, scale):
        """You divided each part by its own length. The norm sees only the sum of all parts, and divides by
        one number, `scale`."""
        return _effects(parts, W_U, answer, rival) / parts.pow(2).mean(-1).sqrt()

    def unit_direction(parts, W_U, answer, rival, scale):
        """You normalised the direction. The logits use the columns of W_U as they are."""
        return _effects(parts, W_U, answer, rival) / scale / (W_U[:, answer] - W_U[:, rival]).norm()

    def further(attempt):
        for parts, W_U, *ids, scale in DirectEffects.cases():
            expected = DirectEffects.right(parts, W_U, *ids, scale)
            shape, raised = expected.shape, W_U + random(len(W_U), 1, seed=3)
            again = attempt.tensor(parts, raised, *ids, scale, shape=shape, axes="part")
            shape = expected[2:].shape
            some = attempt.tensor(parts[2:], W_U, *ids, float(scale), shape=shape, axes="part")
            why = "With some of the parts only, their effects must stay what they are: "
            why += "use the `scale` you are given."
            refuse(not close(some, expected[2:], 1e-3), why)
            why = "The same vector added to every column of W_U raises all logits alike, "
            why += "and must change nothing."
            refuse(not close(again, expected, 1e-3), why)


def _last_below(sums, half: float) -> int:
    """The layer after the last one that ends at or below half."""
    return 1 + max((sums <= half).nonzero()[:, 0].tolist(), default=-1)


def _turn_mistakes(effects, start: float) -> dict:
    """What is said of a wrong layer, and which layers it is said of."""
    plain, sums = effects.cumsum(0), start + effects.cumsum(0)
    peaks = (effects == effects.max()).nonzero()[:, 0].tolist()
    peak = peaks if len(peaks) == 1 else []
    no_start = [_last_below(rise, plain[-1] / 2) for rise in (plain, sums)]
    half_rise = [_last_below(sums, start + plain[-1] / 2)]
    return {
        "That is the layer that adds most. The running sum may pass half elsewhere.": peak,
        "Half of the final value is asked, not half of the largest.": [_last_below(sums, sums.max() / 2)],
        "Where is `start`, what the embedding and constants give?": no_start if start else [],
        "Half of the final value is asked, not half of the rise.": half_rise if start else [],
    }


@checker("12.2")
def check_turning_layer(attempt: Attempt) -> str:
    for effects, start in (
        ([0.1, -0.2, 3.0, 1.0, 0.3], 0.0),
        ([0.5, 0.5, 0.5, 0.5, 3.0, -1.0], -1.0),
        ([2.0, 0.1, 0.1, 0.1], 0.0),
        ([-1.0, -1.0, 4.0, 2.5, 0.0], 1.5),
        ([1.0, -1.0, 0.2, 1.8, 0.0], 0.1),
        ([1.0, 1.5, 1.0, 1.0, 1.0, 1.0], 0.0),
        ([1.0, 1.0, 1.0, 2.0, 3.0, -4.0], 0.0),
        ([0.2, 1.0, 1.0, 1.5], 3.0),
        ([-1.0, 7.0, 0.5], -4.0),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0.0),
    ):
        sums = start + torch.tensor(effects).cumsum(0)
        half = sums[-1] / 2
        right = _last_below(sums, half)
        found = whole_number(attempt(torch.tensor(effects), start), "the layer")
        if found == right:
            continue
        rounded = [round(v, 2) for v in sums.tolist()]
        shown = f"With effects {effects} and start {start}: the running sum is {rounded}"
        for why, layers in _turn_mistakes(torch.tensor(effects), start).items():
            refuse(found in layers, f"{why} {shown}.")
        why = f"One layer too far. {shown}, and layer {right} is the one that ends above half."
        refuse(found == right + 1, why)
        why = f"It falls below half again afterwards; it must stay above. {shown}."
        refuse(found < right and (sums[:right] > half).any(), why)
        raise NotYet(f"{shown}. It stays above half from layer {right} on; you return {found}.")
    return "The layer after which the running sum stays above half of its end, ten times."


def _every_position(z, W_O, direction):
    """What each head writes along the direction at each position, before the norm."""
    return torch.einsum("phd,hdm->phm", z, W_O) @ direction


@declare(
    "12.3",
    axes="head",
    says="Head by head, in two layers of two models; together they are what the attention layer writes.",
)
class HeadEffects:
    def cases():
        for kind in ("gqa", "gpt2"):
            model, cache, _, scale = _final_stream(kind, seed=1)
            direction = (model.W_U[:, 20] - model.W_U[:, 30]).detach()
            for layer in (0, 2):
                yield cache["z", layer][0], model.W_O[layer].detach(), direction, scale

    def right(z, W_O, direction, scale):
        return _every_position(z, W_O, direction)[-1] / scale

    def no_norm(z, W_O, direction, scale):
        """The norm is missing: divide by `scale`."""
        return _every_position(z, W_O, direction)[-1]

    def times_scale(z, W_O, direction, scale):
        """You multiplied by the scale. The norm divides by it."""
        return _every_position(z, W_O, direction)[-1] * scale

    def sum_of_positions(z, W_O, direction, scale):
        """You added up all positions. The answer is read at the last position only."""
        return _every_position(z, W_O, direction).sum(0) / scale

    def mean_of_positions(z, W_O, direction, scale):
        """You took the mean over positions. The answer is read at the last position only."""
        return _every_position(z, W_O, direction).mean(0) / scale

    def first_position(z, W_O, direction, scale):
        """This is the first position. The answer is made at the last."""
        return _every_position(z, W_O, direction)[0] / scale

    def sum_of_heads(z, W_O, direction, scale):
        """Every head got the same number: the sum. Keep the heads apart."""
        return (_every_position(z, W_O, direction)[-1].sum() / scale).expand(len(W_O))

    def sign(z, W_O, direction, scale):
        """The sign is turned."""
        return -_every_position(z, W_O, direction)[-1] / scale

    def one_W_O(z, W_O, direction, scale):
        """You used one head's W_O for all heads. Each head has its own."""
        return z[-1] @ W_O[0] @ direction / scale


@declare("12.4", axes="head, (answer, rival)")
class ForAndAgainst:
    cases = ((random(4, 6), 1, 5), (random(3, 4, seed=1), 0, 2))

    def right(effects, answer, rival):
        return (effects - effects.mean(1, keepdim=True))[:, [answer, rival]]

    def no_mean(effects, answer, rival):
        """You left the mean in: a head that raises all names alike seems to speak for this one."""
        return effects[:, [answer, rival]]

    def mean_of_heads(effects, answer, rival):
        """You took the mean over the heads. Compare each head with its own mean over the names."""
        return (effects - effects.mean(0))[:, [answer, rival]]

    def swapped(effects, answer, rival):
        """The columns are swapped: the answer comes first."""
        return ForAndAgainst.right(effects, rival, answer)

    def sign(effects, answer, rival):
        """The sign is turned: the effect minus the mean."""
        return -ForAndAgainst.right(effects, answer, rival)

    def mean_of_two(effects, answer, rival):
        """You took the mean of the answer and the rival only. Take it over all names."""
        two = effects[:, [answer, rival]]
        return two - two.mean(1, keepdim=True)

    def mean_of_others(effects, answer, rival):
        """You left the name itself out of the mean. Take it over all names."""
        names = effects.shape[1]
        return ForAndAgainst.right(effects, answer, rival) * names / (names - 1)

    def one_mean(effects, answer, rival):
        """You took one mean of everything. Each head has its own."""
        return effects[:, [answer, rival]] - effects.mean()

    def further(attempt):
        for effects, *names in ForAndAgainst.cases:
            expected = ForAndAgainst.right(effects, *names)
            raised = effects + random(len(effects), 1, seed=9)
            again = attempt.tensor(raised, *names, shape=(len(effects), 2), axes="head, (answer, rival)")
            why = "A head that raises all names by one constant more must get the same numbers."
            refuse(not close(again, expected), why)
        return "Raising all names alike changes nothing, and answer minus rival is the head's direct effect."


def _repair_mistakes(before, change, gone) -> dict:
    """What is said of a wrong pair (lost, gained), and the pair."""
    lost, others = -change[gone].sum(), change[~gone]
    gained, gains, sizes = others.sum(), others.clamp(min=0).sum(), others.abs().sum()
    size, said = change[gone].abs().sum(), before[gone].sum()
    return {
        "The second number counts the removed heads too. Add up the others only.": (lost, change.sum()),
        "You took the size of the loss. A removed head can also gain: add up with signs.": (size, gained),
        "You took the size of the loss. It is before minus after, whatever its sign.": (lost.abs(), gained),
        "You counted gains only. The others can lose too: add up all changes with their signs.": (
            lost,
            gains,
        ),
        "Both signs are turned: lost is before minus after, gained is after minus before.": (-lost, -gained),
        "The two are swapped: first what was lost, then what the others gained.": (gained, lost),
        "The first number is what was lost: before minus after, positive when the heads said less.": (
            -lost,
            gained,
        ),
        "The second number is what the others gained: after minus before.": (lost, -gained),
        "You took what the removed heads said before. After the removal they may still say something: "
        "take before minus after.": (said, gained),
        "You added up sizes. Losses and gains of the other heads cancel: add them with their signs.": (
            lost,
            sizes,
        ),
    }


@checker("12.5")
def check_repair(attempt: Attempt) -> str:
    for seed, removed in ((1, [(2, 0), (2, 3), (1, 1)]), (0, [(0, 1)]), (2, [(0, 0), (1, 2)])):
        before, after = random(3, 4, seed=seed), random(3, 4, seed=seed + 20)
        change, gone = after - before, torch.zeros(3, 4, dtype=torch.bool)
        gone[tuple(zip(*removed, strict=True))] = True
        found = attempt(before, after, removed)
        if not isinstance(found, (torch.Tensor, str)) and hasattr(found, "__len__") and len(found) == 2:
            found = torch.as_tensor([float(v) for v in found])
        if not isinstance(found, torch.Tensor) or found.shape != (2,):
            raise NotYet("Return two numbers: what the removed heads lost, and what the others gained.")
        expected = torch.stack([-change[gone].sum(), change[~gone].sum()])
        mistakes = _repair_mistakes(before, change, gone)
        must_equal(found.float(), expected, {why: torch.stack(pair) for why, pair in mistakes.items()})
        whole = found[1] - found[0]
        refuse((change.sum() - whole).abs() > 1e-3, "Repaired minus lost must be the change of the whole.")
    return "Repaired minus lost is the change of the whole, in three cases."
