"""Checks of notebook 12, direct logit attribution."""

import torch

from mechlab.loading.models import tiny
from mechlab_course.checking import close, is_like, only_wrong, random, seeded, whole_number
from mechlab_course.exercises import Attempt, NotYet, checker


def _final_stream(kind: str, seed: int = 0):
    """Parts of a real last residual stream of a tiny model, its scale, and its logits."""
    model = tiny(kind)
    tokens = torch.randint(1, 300, (1, 6), generator=seeded(seed))
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    names = ["hook_embed", *(["hook_pos_embed"] if "hook_pos_embed" in cache else [])]
    names += [f"blocks.{n}.hook_{kind}_out" for n in range(model.cfg.n_layers) for kind in ("attn", "mlp")]
    parts = torch.stack([cache[name][0, -1] for name in names])
    return model, cache, parts, cache["ln_final.hook_scale"][0, -1, 0], logits[0, -1]


@checker("12.1")
def check_direct_effects(attempt: Attempt) -> str:
    for kind, answer, rival in (("gqa", 7, 11), ("gpt2", 250, 3)):
        model, _, parts, scale, logits = _final_stream(kind)
        W_U = model.W_U.detach()
        direction = W_U[:, answer] - W_U[:, rival]
        expected = parts @ direction / scale
        found = attempt.tensor(parts, W_U, answer, rival, scale, shape=(len(parts),), axes="part")
        own = parts.pow(2).mean(-1).sqrt()
        is_like(
            found,
            {
                "The norm is missing: the logits read the stream after it is divided by `scale`.": parts
                @ direction,
                "You multiplied by the scale. The norm divides by it.": parts @ direction * scale,
                "The sign is turned: the answer's column minus the rival's.": -expected,
                "This is the logit of the answer alone (or against the mean of all tokens). Subtract the rival's.": parts
                @ W_U[:, answer]
                / scale,
                "You divided each part by its own length. The norm sees only the sum of all parts, and divides by one "
                "number, `scale`.": parts @ direction / own,
                "You normalised the direction. The logits use the columns of W_U as they are.": expected
                / direction.norm(),
            },
        )
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
        bias = model.b_U[answer] - model.b_U[rival]
        if abs(found.sum() + bias - (logits[answer] - logits[rival])) > 1e-3:
            raise NotYet("The parts do not add up to the model's own logit difference.")
        raised = W_U + random(len(W_U), 1, seed=3)
        again = attempt.tensor(parts, raised, answer, rival, scale, shape=(len(parts),), axes="part")
        some = attempt.tensor(
            parts[2:], W_U, answer, rival, float(scale), shape=(len(parts) - 2,), axes="part"
        )
        if not close(some, expected[2:], 1e-3):
            raise NotYet(
                "With some of the parts only, their effects must stay what they are: use the `scale` you are given."
            )
        if not close(again, expected, 1e-3):
            raise NotYet(
                "The same vector added to every column of W_U raises all logits alike, and must change nothing."
            )
    return "The parts add up to the logit difference of two models, and raising all logits alike changes nothing."


@checker("12.3")
def check_head_effects(attempt: Attempt) -> str:
    for kind in ("gqa", "gpt2"):
        model, cache, _, scale, _ = _final_stream(kind, seed=1)
        direction = (model.W_U[:, 20] - model.W_U[:, 30]).detach()
        for layer in (0, 2):
            z, W_O = cache["z", layer][0], model.W_O[layer].detach()
            every = torch.einsum("phd,hdm->phm", z, W_O) @ direction / scale
            expected = every[-1]
            found = attempt.tensor(z, W_O, direction, scale, shape=(len(W_O),), axes="head")
            is_like(
                found,
                {
                    "The norm is missing: divide by `scale`.": expected * scale,
                    "You multiplied by the scale. The norm divides by it.": expected * scale**2,
                    "You added up all positions. The answer is read at the last position only.": every.sum(0),
                    "You took the mean over positions. The answer is read at the last position only.": every.mean(
                        0
                    ),
                    "This is the first position. The answer is made at the last.": every[0],
                    "Every head got the same number: the sum. Keep the heads apart.": expected.sum().expand(
                        len(W_O)
                    ),
                    "The sign is turned.": -expected,
                    "You used one head's W_O for all heads. Each head has its own.": z[-1]
                    @ W_O[0]
                    @ direction
                    / scale,
                },
            )
            if not close(found, expected):
                raise NotYet(only_wrong(found, expected))
    return "Head by head, in two layers of two models; together they are what the attention layer writes."


@checker("12.4")
def check_for_and_against(attempt: Attempt) -> str:
    for heads, names, answer, rival, seed in ((4, 6, 1, 5, 0), (3, 4, 0, 2, 1)):
        effects = random(heads, names, seed=seed)
        centred = effects - effects.mean(1, keepdim=True)
        expected = torch.stack([centred[:, answer], centred[:, rival]], 1)
        found = attempt.tensor(effects, answer, rival, shape=(heads, 2), axes="head, (answer, rival)")
        across = effects - effects.mean(0)
        is_like(
            found,
            {
                "You left the mean in: a head that raises all names alike seems to speak for this one.": effects[
                    :, [answer, rival]
                ],
                "You took the mean over the heads. Compare each head with its own mean over the names.": across[
                    :, [answer, rival]
                ],
                "The columns are swapped: the answer comes first.": expected.flip(1),
                "The sign is turned: the effect minus the mean.": -expected,
                "You took the mean of the answer and the rival only. Take it over all names.": effects[
                    :, [answer, rival]
                ]
                - effects[:, [answer, rival]].mean(1, keepdim=True),
                "You left the name itself out of the mean. Take it over all names.": expected
                * names
                / (names - 1),
                "You took one mean of everything. Each head has its own.": effects[:, [answer, rival]]
                - effects.mean(),
            },
        )
        if not close(found, expected):
            raise NotYet(only_wrong(found, expected))
        again = attempt.tensor(
            effects + random(heads, 1, seed=9), answer, rival, shape=(heads, 2), axes="head, (answer, rival)"
        )
        if not close(again, expected):
            raise NotYet("A head that raises all names by one constant more must get the same numbers.")
    return "Raising all names alike changes nothing, and answer minus rival is the head's direct effect."


@checker("12.2")
def check_turning_layer(attempt: Attempt) -> str:
    cases = [
        (torch.tensor([0.1, -0.2, 3.0, 1.0, 0.3]), 0.0, 2),
        (torch.tensor([0.5, 0.5, 0.5, 0.5, 3.0, -1.0]), -1.0, 4),
        (torch.tensor([2.0, 0.1, 0.1, 0.1]), 0.0, 0),
        (torch.tensor([-1.0, -1.0, 4.0, 2.5, 0.0]), 1.5, 2),
        (torch.tensor([1.0, -1.0, 0.2, 1.8, 0.0]), 0.1, 3),
        (torch.tensor([1.0, 1.5, 1.0, 1.0, 1.0, 1.0]), 0.0, 2),
        (torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, -4.0]), 0.0, 2),
        (torch.tensor([0.2, 1.0, 1.0, 1.5]), 3.0, 1),
        (torch.tensor([-1.0, 7.0, 0.5]), -4.0, 1),
        (torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), 0.0, 3),
    ]
    for effects, start, expected in cases:
        found = whole_number(attempt(effects.clone(), start), "the layer")
        if found == expected:
            continue
        running = (start + effects.cumsum(0)).tolist()
        shown = f"effects {[round(v, 2) for v in effects.tolist()]} and start {start}: the running sum is {[round(v, 2) for v in running]}"
        last_below = lambda sums, half: 1 + max((sums <= half).nonzero()[:, 0].tolist(), default=-1)
        if found == int(effects.argmax()) and (effects == effects.max()).sum() == 1:
            raise NotYet(
                f"That is the layer that adds most. The running sum may pass half elsewhere. With {shown}."
            )
        plain, sums = effects.cumsum(0), start + effects.cumsum(0)
        if found == last_below(sums, sums.max() / 2):
            raise NotYet(f"Half of the final value is asked, not half of the largest. With {shown}.")
        if start and found in (last_below(plain, plain[-1] / 2), last_below(sums, plain[-1] / 2)):
            raise NotYet(f"Where is `start`, what the embedding and constants give? With {shown}.")
        if start and found == last_below(sums, start + plain[-1] / 2):
            raise NotYet(f"Half of the final value is asked, not half of the rise. With {shown}.")
        if found == expected + 1:
            raise NotYet(
                f"One layer too far. With {shown}, and layer {expected} is the one that ends above half."
            )
        after = [k for k in range(len(running)) if all(v > running[-1] / 2 for v in running[k:])]
        if any(v > running[-1] / 2 for v in running[: after[0]]) and found < expected:
            raise NotYet(f"It falls below half again afterwards; it must stay above. With {shown}.")
        raise NotYet(f"With {shown}. It stays above half from layer {expected} on; you return {found}.")
    return "The layer after which the running sum stays above half of its end, ten times."


@checker("12.5")
def check_repair(attempt: Attempt) -> str:
    for seed, removed in ((1, [(2, 0), (2, 3), (1, 1)]), (0, [(0, 1)]), (2, [(0, 0), (1, 2)])):
        before, after = random(3, 4, seed=seed), random(3, 4, seed=seed + 20)
        change = after - before
        mask = torch.zeros(3, 4, dtype=torch.bool)
        for layer, head in removed:
            mask[layer, head] = True
        lost, repaired = -change[mask].sum(), change[~mask].sum()
        expected = torch.stack([lost, repaired])
        found = attempt(before, after, list(removed))
        if not isinstance(found, (torch.Tensor, str)) and hasattr(found, "__len__") and len(found) == 2:
            found = torch.as_tensor([float(v) for v in found])
        if not isinstance(found, torch.Tensor) or found.shape != (2,):
            raise NotYet("Return two numbers: what the removed heads lost, and what the others gained.")
        mistakes = {
            "The second number counts the removed heads too. Add up the others only.": torch.stack(
                [lost, change.sum()]
            ),
            "You took the size of the loss. A removed head can also gain: add up with signs.": torch.stack(
                [change[mask].abs().sum(), repaired]
            ),
            "You took the size of the loss. It is before minus after, whatever its sign.": torch.stack(
                [lost.abs(), repaired]
            ),
            "You counted gains only. The others can lose too: add up all changes with their signs.": torch.stack(
                [lost, change[~mask].clamp(min=0).sum()]
            ),
            "Both signs are turned: lost is before minus after, gained is after minus before.": -expected,
            "The two are swapped: first what was lost, then what the others gained.": expected.flip(0),
            "The first number is what was lost: before minus after, positive when the heads said less.": torch.stack(
                [-lost, repaired]
            ),
            "The second number is what the others gained: after minus before.": torch.stack(
                [lost, -repaired]
            ),
            "You took what the removed heads said before. After the removal they may still say something: take before "
            "minus after.": torch.stack([before[mask].sum(), repaired]),
            "You added up sizes. Losses and gains of the other heads cancel: add them with their signs.": torch.stack(
                [lost, change[~mask].abs().sum()]
            ),
        }
        is_like(found.float(), {why: like for why, like in mistakes.items() if not close(like, expected)})
        if not close(found.float(), expected):
            raise NotYet(only_wrong(found.float(), expected))
        if abs((after.sum() - before.sum()) - (found[1] - found[0])) > 1e-3:
            raise NotYet("Repaired minus lost must be the change of the whole.")
    return "Repaired minus lost is the change of the whole, in three cases."
