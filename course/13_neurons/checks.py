"""Checks of notebook 13, neurons."""

from functools import lru_cache

import torch

from mechlab.attribution.neurons import value_neuron_scores
from mechlab.discovery.ablation import ablation_hooks
from mechlab.loading.models import tiny
from mechlab.metrics import log_prob
from mechlab.prompts import single_token
from mechlab.runs.hooks import intervene
from mechlab_course.checking import close, declare, must_equal, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _log_prob_mistakes(before, written, W_U, scale, answer) -> dict:
    """What is said of a wrong rise of the log-probability, and the number."""
    log_p = lambda x: (x / scale @ W_U).log_softmax(-1)[answer]
    normed = lambda x: x / x.pow(2).mean().sqrt() * scale
    low, after = log_p(before), before + written
    return {
        "That is the log-probability with the neuron. Subtract the one without it.": log_p(after),
        "That is the rise of the logit. The log-probability also sees whether other tokens rise more: "
        "take `log_softmax` first.": written / scale @ W_U[:, answer],
        "That is a difference of probabilities. Take their logarithms.": log_p(after).exp() - low.exp(),
        "The sign is turned: with the neuron minus without it.": low - log_p(after),
        "These are bits. Nats are wanted: the natural logarithm.": (log_p(after) - low)
        / torch.tensor(2.0).log(),
        "That is a ratio of probabilities. The difference of their logarithms is wanted.": (
            log_p(after) - low
        ).exp(),
        "You divided the log-probabilities. Subtract them.": log_p(after) / low,
        "Only the stream is divided by `scale`. Divide the sum, with what is written.": (
            log_p(before + written * scale) - low
        ),
        "The norm is missing: divide by `scale` before the unembedding.": log_p(after * scale)
        - log_p(before * scale),
        "You divide each stream by its own length. Hold the norm: use `scale` both times.": log_p(
            normed(after)
        )
        - log_p(normed(before)),
        "You read the neuron alone. Add it to the stream, and compare with the stream.": log_p(written),
        "You read the neuron alone. Add it to the stream before the softmax.": log_p(written) - low,
    }


@checker("13.1")
def check_log_prob_increase(attempt: Attempt) -> str:
    for seed, d, vocab, answer in ((0, 5, 9, 4), (1, 8, 20, 0), (2, 3, 6, 5)):
        before, written = random(d, seed=seed), random(d, seed=seed + 10)
        W_U, scale = random(d, vocab, seed=seed + 20), 1.7 + seed
        low, high = ((x / scale @ W_U).log_softmax(-1)[answer] for x in (before, before + written))
        expected = high - low
        found = attempt(before, written, W_U, scale, answer)
        found = torch.as_tensor(float(found) if not isinstance(found, torch.Tensor) else found)
        shape = tuple(found.shape)
        refuse(found.numel() != 1, f"One number is wanted, for the answer; you return {shape}.")
        found = found.reshape(()).detach().float()
        otherwise = f"The log-probability is {low:.4f} without and {high:.4f} with what is written, so the "
        otherwise += f"rise is {expected:.4f}; you return {found:.4f}. Which of the two is not yours?"
        mistakes = _log_prob_mistakes(before, written, W_U, scale, answer)
        must_equal(found, expected, mistakes, otherwise=lambda otherwise=otherwise: otherwise)
        raised = attempt(before, written, W_U + random(d, 1, seed=5), scale, answer)
        why = "A vector added to every column of W_U raises all logits alike and must change nothing."
        refuse(abs(float(raised) - expected) > 1e-3, why)
    return "Three times, and raising all logits alike changes nothing."


@declare("13.2", axes="token", whole=True, says="For active and for negative neurons.")
class Promoted:
    def cases():
        for seed, activation, k in ((0, 2.0, 3), (1, -1.5, 4), (2, -0.2, 2), (3, 0.4, 5)):
            yield random(6, seed=seed), activation, random(6, 30, seed=seed + 10), k

    def right(row, activation, W_U, k):
        return (activation * (row @ W_U)).topk(k).indices

    def either_sign(row, activation, W_U, k):
        """You took the largest changes of either sign. The tokens that it raises are wanted."""
        return (row @ W_U).abs().topk(k).indices

    def cosines(row, activation, W_U, k):
        """You divided by the length of each column of W_U. Logits grow with it: leave it in."""
        return (activation * (row @ W_U) / W_U.norm(dim=0)).topk(k).indices

    def without_the_first(row, activation, W_U, k):
        """You left out the token that it raises most. No token is forbidden here."""
        return (activation * (row @ W_U)).topk(k + 1).indices[1:]

    def lowered(row, activation, W_U, k):
        """These are the tokens that it lowers most."""
        return (-row @ W_U).topk(k).indices

    def otherwise(found, row, activation, W_U, k):
        right = Promoted.right(row, activation, W_U, k)
        if torch.equal(found, (row @ W_U).topk(k).indices):
            return (
                f"The activation is {activation}: a neuron that is negative lowers what its row would raise. "
                "Multiply by it, with its sign."
            )
        if set(found.tolist()) == set(right.tolist()):
            return "The right tokens in another order: the one raised most comes first."
        return f"Expected {right.tolist()}, and yours are {found.tolist()}."


def _hook_list(hooks, model) -> list:
    """The learner's hooks, if they are pairs of a hook's name and a function; else `NotYet`."""
    pair = lambda hook: isinstance(hook, (tuple, list)) and len(hook) == 2
    if not isinstance(hooks, (list, tuple)) or not all(map(pair, hooks)):
        raise NotYet("Return a list of pairs: [(hook name, function), ...].")
    refuse(not hooks, "Your list of hooks is empty, so nothing is silenced.")
    for name, function in hooks:
        refuse(name not in model.hook_dict, f'There is no hook "{name}".')
        why = f"The second of each pair must be a function (activation, hook); {name} has none."
        refuse(not callable(function), why)
    return [tuple(hook) for hook in hooks]


def _call_hook(name: str, function, given, hook) -> None:
    """Call a learner's hook as the model would. Its errors become sentences; it returns a changed copy."""
    probe = given.clone()
    try:
        result = function(probe, hook=hook)
    except Exception as error:
        raise NotYet(
            f"Your hook function stopped with {type(error).__name__}: {str(error)[:200]}. It is called as "
            f"f(activation, hook=hook), here with an activation {tuple(given.shape)} of a small model."
        ) from error
    if result is not None and getattr(result, "shape", None) != given.shape:
        raise NotYet(
            f"Your function on {name} was given a tensor {tuple(given.shape)} and returned "
            f"{tuple(getattr(result, 'shape', ())) or type(result).__name__}. Return one of the same shape."
        )
    why = "writes into the activation it was given. Make a copy first: `activation = activation.clone()`."
    refuse(not torch.equal(probe, given), f"Your function on {name} {why}")


def _neurons(model, tokens, hooks: list) -> tuple:
    """The logits with these hooks, and the neurons of each layer."""
    seen = {}
    look = lambda activation, hook: seen.update({hook.name: activation.clone()})
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers)]
    with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, *((name, look) for name in names)]):
        return model(tokens), [seen[name] for name in names]


def _still_active(found, missing: int, named: list[int]) -> str:
    """Where a neuron is still active that should be silent, or why."""
    silent = found[..., missing] == 0
    if silent.all(1).any():
        return " in some prompts"
    if silent.all(0).any():
        return " at some positions"
    if any((found[..., index] == 0).all() for index in named if index != missing):
        return (
            ", and another named one is silent here. Two hooks of one name? Or functions made in a loop, "
            "each of which must keep its own index: `def f(activation, hook, index=index)`"
        )
    return ""


def _explain_layer(layer: int, found, clean, neurons: list[tuple[int, int]]) -> None:
    """Raise `NotYet` unless exactly the named neurons of a layer are silent."""
    why = f"In layer {layer} no neuron is zero. Does your function return the changed copy?"
    refuse(not (found == 0).any(), why)
    wanted, named = [index for of, index in neurons if of == layer], [index for _, index in neurons]
    for index in wanted:
        if (found[..., index] != 0).any():
            where = _still_active(found, index, named)
            raise NotYet(f"Neuron {index} of layer {layer} is still active{where}.")
    silent = lambda activation: set((activation == 0).flatten(0, 1).all(0).nonzero()[:, 0].tolist())
    extra = silent(found) - silent(clean) - set(wanted)
    if extra:
        raise NotYet(f"In layer {layer} {len(extra)} other neurons are silenced too, such as {min(extra)}.")


@checker("13.3")
def check_silence(attempt: Attempt) -> str:
    for kind, neurons in (("gqa", [(0, 3), (2, 7), (2, 8)]), ("gpt2", [(1, 100), (0, 0)])):
        model, tokens = tiny(kind), torch.randint(1, 300, (2, 6), generator=seeded(1))
        hooks = _hook_list(attempt(neurons), model)
        _, clean = _neurons(model, tokens, [])
        post = [(name, function) for name, function in hooks if name.endswith("mlp.hook_post")]
        for name, function in post:
            _call_hook(name, function, clean[int(name.split(".")[1])], model.hook_dict[name])
        logits, found = _neurons(model, tokens, hooks)
        why = "What the output matrix reads, after the nonlinearity, is `mlp.hook_post`."
        refuse(not post, f"You hook {hooks[0][0]}. {why}")
        layers = sorted({layer for layer, _ in neurons})
        bare = [n for n in layers if not any(name.startswith(f"blocks.{n}.") for name, _ in post)]
        why = "is in no hook of yours. One hook for each neuron: does the `return` stand inside the loop?"
        refuse(bare, f"Of {neurons}, layer {bare[:1]} {why}")
        for layer in layers:
            _explain_layer(layer, found[layer], clean[layer], neurons)
        for n in range(layers[0]):
            why = f"Layer {n} changed, and no neuron of it was named."
            refuse(not torch.equal(found[n], clean[n]), why)
        off = lambda index: lambda activation, hook: activation.index_fill(2, torch.tensor([index]), 0.0)
        right = [(f"blocks.{layer}.mlp.hook_post", off(index)) for layer, index in neurons]
        why = "The named neurons are silent, but something else changed too: leave all others as they were."
        refuse(not close(logits, _neurons(model, tokens, right)[0]), why)
    return "The named neurons are zero at every position, all others as they were, on two models."


def _pairs(drawn) -> list[tuple[int, int]]:
    """What was drawn, as (layer, neuron)."""
    try:
        return [(int(layer), int(index)) for layer, index in drawn]
    except (TypeError, ValueError):
        raise NotYet("Return a list of pairs (layer, neuron).") from None


def _refuse_draw(drawn: list, chosen: list, n_neurons: int) -> None:
    """Raise `NotYet` unless these neurons can be the control of the chosen ones."""
    count = f"{len(chosen)} neurons were chosen, and you return {len(drawn)}."
    refuse(len(drawn) != len(chosen), count)
    if both := set(drawn) & set(chosen):
        raise NotYet(f"{min(both)} is one of the chosen neurons; the control must avoid them.")
    twice = "The same neuron is drawn twice, so the control silences fewer neurons than you chose."
    refuse(len(set(drawn)) < len(drawn), twice)
    ours, theirs = (sorted(layer for layer, _ in some) for some in (chosen, drawn))
    why = "The control needs as many of each layer: depth alone changes a lot."
    refuse(ours != theirs, f"The chosen neurons are in layers {ours}, yours in {theirs}. {why}")
    outside = any(not 0 <= index < n_neurons for _, index in drawn)
    refuse(outside, f"Neurons are numbered from 0 to {n_neurons - 1}.")


@checker("13.4")
def check_random_like(attempt: Attempt) -> str:
    chosen, n_neurons, seen = [(2, 5), (2, 6), (0, 1), (1, 3)], 10, set()
    draw = lambda generator: _pairs(attempt(chosen, n_neurons, generator))
    for seed in range(200):
        drawn = draw(seeded(seed))
        _refuse_draw(drawn, chosen, n_neurons)
        seen.update(drawn)
    one = seeded(4)
    why = "Called again with the same generator, your function draws the same neurons. Do not seed it anew."
    refuse(len({tuple(sorted(draw(one))) for _ in range(8)}) == 1, why)
    why = "The same generator must give the same neurons: draw with `generator=generator`."
    refuse(draw(seeded(3)) != draw(seeded(3)), why)
    possible = {(layer, index) for layer in range(3) for index in range(n_neurons)} - set(chosen)
    if never := possible - seen:
        raise NotYet(
            f"In 200 draws only {len(seen)} of {len(possible)} possible neurons came up, never {min(never)}. "
            "Every one must have a chance."
        )
    return "As many of each layer, none of the chosen, none twice, and any can come up, in 200 draws."


CAPITALS = {"Austria": "Vienna", "Portugal": "Lisbon", "Cuba": "Havana", "Norway": "Oslo"}
CAPITALS |= {"Hungary": "Budapest", "Sweden": "Stockholm", "Kenya": "Nairobi", "Chile": "Santiago"}
LAYERS = range(20, 30)
CHOSEN_ON = "The capital of {} is"
ASKED_IN = "If you travel to {}, you will land in its capital,"


@lru_cache(maxsize=1)
def _other_capitals(model):
    """The scores of eight facts that the notebook does not show, and the question in another wording."""
    answers = [single_token(model, f" {city}") for city in CAPITALS.values()]
    chosen_on = [CHOSEN_ON.format(country) for country in CAPITALS]
    scores = value_neuron_scores(model, chosen_on, answers, layers=LAYERS).per_prompt[:, LAYERS.start :]
    asked, metric = [ASKED_IN.format(country) for country in CAPITALS], log_prob(answers)
    with torch.no_grad():
        return scores, asked, metric, metric(model(asked))


def _ten(chosen, shape) -> list[tuple[int, int]]:
    """Ten different neurons of these scores, as the learner names them."""
    pairs = _pairs(chosen)
    refuse(len(set(pairs)) != 10, f"Return ten different neurons; yours are {len(set(pairs))}.")
    inside = all(0 <= layer < shape[1] and 0 <= index < shape[2] for layer, index in pairs)
    why = f"`scores` has {shape[1]} layers and {shape[2]} neurons: return places in it, as (layer, neuron)."
    refuse(not inside, why)
    return [(LAYERS.start + layer, index) for layer, index in pairs]


@checker("13.6")
def check_ten_for_one(attempt: Attempt, model) -> str:
    scores, asked, metric, before = _other_capitals(model)
    tens = [_ten(attempt(scores, row), scores.shape) for row in range(len(scores))]
    same = all(set(ten) == set(tens[0]) for ten in tens)
    refuse(same, "You choose the same ten for every fact, so they cannot be one fact's own: use `row`.")
    left = []
    for ten in tens:
        with torch.no_grad(), intervene(model, ablation_hooks(model, asked, ten, "zero", unit="neuron")):
            left.append((metric(model(asked)) - before).exp())
    left = torch.stack(left)
    own, others = left.diagonal().mean(), (left.sum() - left.trace()) / (left.numel() - len(left))
    found = f"On eight other capitals their own fact keeps {own:.0%} and the others keep {others:.0%}"
    refuse(own > 0.5, f"{found}: your ten are hardly needed for it. At most half should be left.")
    why = "your ten are needed for the others nearly as much as their own. Compare with the other facts."
    refuse(others < 0.7, f"{found}: {why}")
    return f"{found}, asked in a wording that you did not choose on."
