"""Checks of notebook 12, direct logit attribution."""

from collections.abc import Generator
from itertools import islice

import torch

from mechlab.attribution.logits import direct_logit_attribution
from mechlab.discovery.ablation import ablation_hooks
from mechlab.loading.models import tiny
from mechlab.prompts import PromptError, single_token
from mechlab.runs.hooks import intervene
from mechlab_course.checking import close, declare, random, refuse, seeded, whole_number
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

    def own_norm(parts, W_U, answer, rival, scale):
        """You divided each part by its own norm. All parts are divided by one number, `scale`."""
        return _effects(parts, W_U, answer, rival) / parts.norm(dim=1)

    def one_divided(parts, W_U, answer, rival, scale):
        """Only the rival's logit is divided by the scale. Put the difference into brackets."""
        return parts @ W_U[:, answer] - parts @ W_U[:, rival] / scale

    def probabilities(parts, W_U, answer, rival, scale):
        """These are differences of probabilities. Logits are wanted: no softmax."""
        share = (parts @ W_U / scale).softmax(-1)
        return share[:, answer] - share[:, rival]

    def log_probabilities(parts, W_U, answer, rival, scale):
        """That is a log probability. The difference of two logits is wanted, without a softmax."""
        return (parts @ W_U / scale).log_softmax(-1)[:, answer]

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
    """What is said of a wrong layer, and which layers a mistake may give."""
    plain, sums = effects.cumsum(0), start + effects.cumsum(0)
    half, first = sums[-1] / 2, lambda above: [*above.nonzero()[:, 0].tolist(), len(sums)][:1]
    return {
        "That is the layer that adds most. The running sum may pass half elsewhere.": (
            (effects == effects.max()).nonzero()[:, 0].tolist()
        ),
        "Half of the final value is asked, not half of the largest.": [_last_below(sums, sums.max() / 2)],
        "Where is `start`, what the embedding and constants give?": [
            _last_below(rise, plain[-1] / 2) for rise in (plain, sums)
        ],
        "Half of the final value is asked, not half of the rise.": [_last_below(sums, start + plain[-1] / 2)],
        "It falls below half again afterwards, and must stay above: yours is the first above half.": first(
            sums > half
        ),
        "A sum right at half is not above it: `>`, and `<=` for those below.": [
            _last_below(sums + 1e-6, half)
        ],
        "One layer too far: the layer after which the sum stays above is the one that lifts it there.": [
            _last_below(sums, half) + 1
        ],
        "One layer early: that is the last at or below half.": [max(0, _last_below(sums, half) - 1)],
        "You ask when the sum is above 0. Half of its final value is asked.": [_last_below(sums, 0.0)],
    }


RUNS = (  # effects, start
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
)


@checker("12.2")
def check_turning_layer(attempt: Attempt) -> str:
    answers = []
    for effects, start in RUNS:
        sums = start + torch.tensor(effects).cumsum(0)
        try:
            found = whole_number(attempt(torch.tensor(effects), start), "the layer")
        except NotYet:
            _explain_layers(answers)  # an earlier answer tells more than the error
            raise
        shown = f"With effects {effects} and start {start}: the running sum is "
        shown += str([round(v, 2) for v in sums.tolist()])
        answers.append((found, sums, shown, _turn_mistakes(torch.tensor(effects), start)))
    _explain_layers(answers)
    return "The layer after which the running sum stays above half of its end, ten times."


def _explain_layers(answers: list[tuple]) -> None:
    """Raise `NotYet` if one is wrong. A cause is named if it explains all answers."""
    wrong = [each for each in answers if each[0] != _last_below(each[1], each[1][-1] / 2)]
    if not wrong:
        return
    for why in wrong[0][3]:
        refuse(all(found in told[why] for found, _, _, told in answers), f"{why} {wrong[0][2]}.")
    found, sums, shown, _ = wrong[0]
    half = sums[-1] / 2
    right = _last_below(sums, half)
    why = f"One layer too far. {shown}, and layer {right} is the one that ends above half."
    refuse(found == right + 1, why)
    why = f"It falls below half again afterwards; it must stay above. {shown}."
    refuse(found < right and (sums[:right] > half).any(), why)
    raise NotYet(f"{shown}. It stays above half from layer {right} on; you return {found}.")


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

    def otherwise(found, z, W_O, direction, scale):
        written = (z[-1, 0] @ W_O[0]).norm()
        told = (
            f"What head 0 writes at the last position, `z[-1, 0] @ W_O[0]`, is {written:.3g} long; its inner "
        )
        right = HeadEffects.right(z, W_O, direction, scale)[0]
        told += f"product with `direction`, divided by the scale, is {right:.4g}"
        return f"{told}. You return {found[0]:.4g} for it. Try that head alone."

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

    def one_early(z, W_O, direction, scale):
        """This is the position before the last. The answer is made at the last, `z[-1]`."""
        return _every_position(z, W_O, direction)[-2] / scale

    def unit_direction(z, W_O, direction, scale):
        """You scaled the direction to length 1. Take it as it is."""
        return _every_position(z, W_O, direction)[-1] / scale / direction.norm()

    def own_norm(z, W_O, direction, scale):
        """You divided what each head writes by its own length. All are divided by one number, `scale`."""
        written = torch.einsum("hd,hdm->hm", z[-1], W_O)
        return written @ direction / written.norm(dim=1)

    def cosines(z, W_O, direction, scale):
        """These are cosines: how much a head writes is lost. Take the inner product, divided by `scale`."""
        return torch.cosine_similarity(torch.einsum("hd,hdm->hm", z[-1], W_O), direction[None])

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

    def against(effects, answer, rival):
        """The second column has its sign turned. It is the effect on the rival, not against it."""
        return ForAndAgainst.right(effects, answer, rival) * torch.tensor([1, -1])

    def z_scores(effects, answer, rival):
        """You divided by the standard deviation too. Only the mean is taken away."""
        return ForAndAgainst.right(effects, answer, rival) / effects.std(1, keepdim=True)

    def median(effects, answer, rival):
        """You took the median away. Take the mean."""
        return (effects - effects.median(1, keepdim=True).values)[:, [answer, rival]]

    def neighbours(effects, answer, rival):
        """You cut out a slice. Pick the two columns: `[:, [answer, rival]]`."""
        return ForAndAgainst.right(effects, answer, answer + 1)

    def difference(effects, answer, rival):
        """That is the difference of the two. Keep them apart, each less the head's mean."""
        return (effects[:, [answer]] - effects[:, [rival]]).expand(-1, 2)

    def sum_of_names(effects, answer, rival):
        """You took away the sum over the names. Take away their mean."""
        return (effects - effects.sum(1, keepdim=True))[:, [answer, rival]]

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


def _again(before, factor):
    """What the heads would say, had only the norm changed."""
    return before * factor[:, None, None]


@declare("12.7", axes="layer head")
class SaidAnew:
    def cases():
        for seed in (0, 1):
            before, after = random(4, 3, 5, seed=seed), random(4, 3, 5, seed=seed + 10)
            yield before, after, 1.5 + random(4, seed=seed + 20).abs(), 1 + random(4, seed=seed + 30).abs()

    def right(before, after, scale_before, scale_after):
        return (after - _again(before, scale_before / scale_after)).mean(0)

    def with_norm(before, after, scale_before, scale_after):
        """This counts what the norm did too: a head that writes the same in both runs must get 0."""
        return (after - before).mean(0)

    def upside_down(before, after, scale_before, scale_after):
        """The ratio of the scales is upside down: a term grows when the scale falls."""
        return (after - _again(before, scale_after / scale_before)).mean(0)

    def old_scale(before, after, scale_before, scale_after):
        """You counted in the whole model's scale. Divide what is written by `scale_after`."""
        return (_again(after, scale_after / scale_before) - before).mean(0)

    def no_scale(before, after, scale_before, scale_after):
        """This is what is written more, before the norm. Divide it by `scale_after`, to have logits."""
        return (_again(after, scale_after) - _again(before, scale_before)).mean(0)

    def mean_scale(before, after, scale_before, scale_after):
        """You took the mean of the scales first. Every prompt has its own two."""
        return (after - before * scale_before.mean() / scale_after.mean()).mean(0)

    def norm_only(before, after, scale_before, scale_after):
        """This is the share of the norm. The rest of the change is wanted."""
        return (_again(before, scale_before / scale_after) - before).mean(0)

    def both_scaled(before, after, scale_before, scale_after):
        """You scaled `after` too. It is counted in the broken model's scale already."""
        return _again(after - before, scale_before / scale_after).mean(0)

    def wrong_one_scaled(before, after, scale_before, scale_after):
        """You scaled `after`. It is `before` that must be counted as the broken model counts it."""
        return (_again(after, scale_before / scale_after) - before).mean(0)

    def divided_again(before, after, scale_before, scale_after):
        """You divided by `scale_after` once more. Direct effects are divided by a scale already."""
        return _again(after - _again(before, scale_before / scale_after), 1 / scale_after).mean(0)

    def relative(before, after, scale_before, scale_after):
        """You divided by what was said before. The change itself is wanted."""
        same = _again(before, scale_before / scale_after)
        return ((after - same) / same).mean(0)

    def mean_of_ratios(before, after, scale_before, scale_after):
        """You took means before you multiplied. Scale prompt by prompt; the mean comes last."""
        return after.mean(0) - before.mean(0) * (scale_before / scale_after).mean()

    def median(before, after, scale_before, scale_after):
        """You took the median over the prompts. Take the mean."""
        return (after - _again(before, scale_before / scale_after)).median(0).values

    def added_up(before, after, scale_before, scale_after):
        """You added up over the prompts. Take the mean."""
        return SaidAnew.right(before, after, scale_before, scale_after) * len(before)

    def sign(before, after, scale_before, scale_after):
        """The sign is turned: positive where the head says more than before."""
        return -SaidAnew.right(before, after, scale_before, scale_after)

    def further(attempt):
        """In a real run no head up to the layer of a removed one can have read it."""
        model, tokens = tiny("gqa"), torch.randint(1, 300, (3, 6), generator=seeded(2))
        ids, runs = torch.tensor([7, 8, 9]), []
        for hooks in ([], ablation_hooks(model, tokens, [(1, 0)], "zero")):
            with torch.no_grad(), intervene(model, hooks):
                heads = direct_logit_attribution(model, tokens, ids, ids + 20, unit="head").per_prompt
                _, cache = model.run_with_cache(tokens, names_filter="ln_final.hook_scale")
            runs.append((heads, cache["ln_final.hook_scale"][:, -1, 0]))
        (before, old), (after, new) = runs
        found = attempt.tensor(before, after, old, new, shape=tuple(before.shape[1:]), axes="layer head")
        early = torch.cat([found[0], found[1, 1:]]).abs().max()
        why = "Head 1.0 of a small model was removed. Heads beside and below it cannot have read it, and yet "
        refuse(early > 1e-4, f"{why}one of them gets {early:.2g}.")
        return "Nothing for heads that cannot have read the removed one, whatever the norm did."


SEEN = ("John", "Mary", "Tom", "Laura", "Mark", "Anna", "Peter", "Sarah", "Paul", "Jane", "David", "Emma")
LEAN = 0.2  # logits that 28.1 must reach on the mean of a list
UNSEEN = (
    "As soon as {} and {} reached the station, {} threw the keys to",
    "In the evening {} and {} cooked together, and then {} passed the salt to",
    "Yesterday {} and {} met in the garden, and {} handed a letter to",
)


def _two_lists(found, model) -> list[list[tuple[str, str]]]:
    """The learner's two lists of couples, if they can be used."""
    form = 'Return two lists of couples of names: [("Ann", "Bob"), ...], [...].'
    listed = lambda given, count: isinstance(given, (list, tuple)) and len(given) in count
    refuse(not listed(found, (2,)), form)
    found = [list(islice(each, 99)) if isinstance(each, zip | map | Generator) else each for each in found]
    refuse(not all(listed(each, range(10**6)) for each in found), form)
    for couples in found:
        few = f"A list has {len(couples)} couples. Give at least six in each, and at most ten."
        refuse(not 6 <= len(couples) <= 10, few)
        for couple in couples:
            refuse(not listed(couple, (2,)) or not all(isinstance(name, str) for name in couple), form)
    lists = [[(giver.strip(), receiver.strip()) for giver, receiver in couples] for couples in found]
    used = [name for couples in lists for couple in couples for name in couple]
    for name in used:
        refuse(
            name in SEEN,
            f"{name} is one of the names of this notebook. What you find should hold for others.",
        )
        refuse(not name[:1].isupper(), f"{name!r} does not look like a name.")
        again = "One name in several places would say something about that name only."
        refuse(used.count(name) > 1, f"{name} is there twice. {again}")
        try:
            single_token(model, f" {name}")
        except PromptError as error:
            raise NotYet(str(error)) from None
    return lists


def _on_unseen(model, couples: list[tuple[str, str]]):
    """28.1 for each couple, and the means of 23.3 and of the whole, on sentences that nobody has seen."""
    rows = [(text, s, io, *both) for s, io in couples for both in ((s, io), (io, s)) for text in UNSEEN]
    texts = [text.format(first, second, s) for text, s, _, first, second in rows]
    answers, wrong = [f" {io}" for _, _, io, _, _ in rows], [f" {s}" for _, s, _, _, _ in rows]
    heads = direct_logit_attribution(model, texts, answers, wrong, unit="head")
    whole = heads.whole.mean().item() + heads.baselines["everything else"]
    each = heads.per_prompt[:, 28, 1].reshape(len(couples), -1).mean(1)
    return each, heads.values[23, 3].item(), whole


@checker("12.6")
def check_two_lists(attempt: Attempt, model) -> str:
    lists = _two_lists(attempt(), model)
    measured = [_on_unseen(model, couples) for couples in lists]
    means = [each.mean().item() for each, _, _ in measured]
    told = f"On sentences that the notebook does not show, 28.1 is {means[0]:+.2f} on your first list and "
    told += f"{means[1]:+.2f} on the second"
    swapped = means[0] < -LEAN and means[1] > LEAN
    refuse(
        swapped, f"{told}. The lists are the wrong way round: first the one where 28.1 speaks for the answer."
    )
    same = "Both lists lean the same way. What do the givers of one list have in common?"
    refuse(means[0] * means[1] > 0 and min(map(abs, means)) > LEAN, f"{told}. {same}")
    for which, couples, (each, _, _), sign in zip(("first", "second"), lists, measured, (1, -1), strict=True):
        agree, weakest = int((sign * each > 0).sum()), (sign * each).argsort()[:3].tolist()
        weak = ", ".join(f"{' and '.join(couples[n])} {each[n]:+.2f}" for n in weakest)
        weak = f"The weakest there: {weak}."
        much = f"{told}. The {which} list must reach {sign * LEAN:+.1f}. {weak}"
        refuse(sign * each.mean() < LEAN, much)
        few = f"{told}, but only {agree} of {len(each)} couples of the {which} list have that sign. {weak}"
        refuse(4 * agree < 3 * len(each), few)
    for which, (_, suppressor, whole) in zip(("first", "second"), measured, strict=True):
        refuse(suppressor <= 0 or whole <= 0, f"On the {which} list the model does not do the task any more.")
    both = " and ".join(f"{suppressor:+.1f}" for _, suppressor, _ in measured)
    return f"{told}. 23.3 says {both}: its sign follows the task, that of 28.1 the people."
