"""Checks of notebook 13, neurons."""

from collections import Counter

import torch

from mechlab.loading.models import tiny
from mechlab_course.checking import close, is_like, only_wrong, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("13.1")
def check_log_prob_increase(attempt: Attempt) -> str:
    for seed, d, vocab, answer in ((0, 5, 9, 4), (1, 8, 20, 0), (2, 3, 6, 5)):
        before, written, W_U = (
            random(d, seed=seed),
            random(d, seed=seed + 10),
            random(d, vocab, seed=seed + 20),
        )
        scale = 1.7 + seed
        log_p = lambda x, scale=scale, W_U=W_U: (x / scale @ W_U).log_softmax(-1)
        rms = lambda x: x.pow(2).mean().sqrt()
        low, high = log_p(before)[answer], log_p(before + written)[answer]
        expected = high - low
        found = attempt(before, written, W_U, scale, answer)
        found = torch.as_tensor(float(found) if not isinstance(found, torch.Tensor) else found)
        if found.numel() != 1:
            raise NotYet(f"One number is wanted, for the answer; you return {tuple(found.shape)}.")
        found = found.reshape(())
        norm_after = log_p((before + written) / rms(before + written) * scale)[answer]
        norm_before = log_p(before / rms(before) * scale)[answer]
        is_like(
            found.detach().float(),
            {
                "That is the log-probability with the neuron. Subtract the one without it.": high,
                "That is the rise of the logit. The log-probability also sees whether other tokens rise more: take "
                "`log_softmax` first.": written / scale @ W_U[:, answer],
                "That is a difference of probabilities. Take their logarithms.": high.exp() - low.exp(),
                "The sign is turned: with the neuron minus without it.": -expected,
                "The norm is missing: divide by `scale` before the unembedding.": log_p(
                    (before + written) * scale
                )[answer]
                - log_p(before * scale)[answer],
                "You divide each stream by its own length. Hold the norm: use `scale` both times.": norm_after
                - norm_before,
                "You read the neuron alone. Add it to the stream, and compare with the stream.": log_p(
                    written
                )[answer],
                "You read the neuron alone. Add it to the stream before the softmax.": log_p(written)[answer]
                - low,
            },
        )
        if not close(found.detach().float(), expected):
            raise NotYet(f"The result should be {expected:.4f}, and yours is {float(found):.4f}.")
        raised = attempt(before, written, W_U + random(d, 1, seed=5), scale, answer)
        if abs(float(raised) - expected) > 1e-3:
            raise NotYet(
                "A vector added to every column of W_U raises all logits alike and must change nothing."
            )
    return "Three times, and raising all logits alike changes nothing."


@checker("13.2")
def check_promoted(attempt: Attempt) -> str:
    for seed, activation, k in ((0, 2.0, 3), (1, -1.5, 4), (2, -0.2, 2), (3, 0.4, 5)):
        row, W_U = random(6, seed=seed), random(6, 30, seed=seed + 10)
        effect = activation * (row @ W_U)
        expected = effect.topk(k).indices
        found = attempt.tensor(row, activation, W_U, k, shape=(k,), axes="token", whole=True)
        if torch.equal(found, expected):
            continue
        if torch.equal(found, (row @ W_U).topk(k).indices):
            raise NotYet(
                f"The activation is {activation}: a neuron that is negative lowers what its row would raise. Multiply by "
                "it, with its sign."
            )
        if torch.equal(found, effect.abs().topk(k).indices):
            raise NotYet("You took the largest changes of either sign. The tokens that it raises are wanted.")
        if torch.equal(found, (-effect).topk(k).indices):
            raise NotYet("These are the tokens that it lowers most.")
        if set(found.tolist()) == set(expected.tolist()):
            raise NotYet("The right tokens in another order: the one raised most comes first.")
        raise NotYet(f"Expected {expected.tolist()}, and yours are {found.tolist()}.")
    return "For active and for negative neurons."


@checker("13.3")
def check_silence(attempt: Attempt) -> str:
    for kind, neurons in (("gqa", [(0, 3), (2, 7), (2, 8)]), ("gpt2", [(1, 100), (0, 0)])):
        model = tiny(kind)
        tokens = torch.randint(1, 300, (2, 6), generator=seeded(1))
        hooks = attempt(list(neurons))
        if not isinstance(hooks, (list, tuple)) or not all(
            isinstance(h, (tuple, list)) and len(h) == 2 for h in hooks
        ):
            raise NotYet("Return a list of pairs: [(hook name, function), ...].")
        hooks = [tuple(pair) for pair in hooks]
        if not hooks:
            raise NotYet("Your list of hooks is empty, so nothing is silenced.")
        for name, function in hooks:
            if name not in model.hook_dict:
                raise NotYet(f'There is no hook "{name}".')
            if not callable(function):
                raise NotYet(
                    f"The second of each pair must be a function (activation, hook); {name} has none."
                )
        with torch.no_grad():
            clean, cache = model.run_with_cache(tokens)
            kept = {n: cache["post", n].clone() for n in range(model.cfg.n_layers)}
            seen = {}

            def look(activation, hook, seen=seen):
                seen[int(hook.name.split(".")[1])] = activation.clone()

            watch = [(f"blocks.{n}.mlp.hook_post", look) for n in range(model.cfg.n_layers)]
            names = [name for name, _ in hooks]
            for name, function in hooks:
                given = kept.get(int(name.split(".")[1]), clean) if name.endswith("mlp.hook_post") else None
                if given is not None:
                    probe = given.clone()
                    result = _hooked(function, probe, model.hook_dict[name])
                    if result is not None and getattr(result, "shape", None) != given.shape:
                        raise NotYet(
                            f"Your function on {name} was given a tensor {tuple(given.shape)} and returned "
                            f"{tuple(getattr(result, 'shape', ())) or type(result).__name__}. Return one of the same shape."
                        )
                    if not torch.equal(probe, given):
                        raise NotYet(
                            f"Your function on {name} writes into the activation it was given. Make a copy first: "
                            "`activation = activation.clone()`."
                        )
            with model.hooks(fwd_hooks=[*hooks, *watch]):
                model(tokens)
        if not any(name.endswith("mlp.hook_post") for name in names):
            raise NotYet(
                f"You hook {names[0]}. What the output matrix reads, after the nonlinearity, is `mlp.hook_post`."
            )
        for layer in sorted({layer for layer, _ in neurons}):
            found, wanted = seen[layer], [index for of, index in neurons if of == layer]
            if not (found == 0).any():
                raise NotYet(
                    f"In layer {layer} no neuron is zero. Does your function return the changed copy?"
                )
            missing = [index for index in wanted if (found[..., index] != 0).any()]
            if missing:
                left, why = found[..., missing[0]], ""
                if (left == 0).all(1).any():
                    why = " in some prompts"
                elif (left == 0).all(0).any():
                    why = " at some positions"
                elif any((found[..., index] == 0).all() for of, index in neurons if index != missing[0]):
                    why = (
                        ", and another named one is silent here. Two hooks of one name? Or functions made in a loop, each of "
                        "which must keep its own index: `def f(activation, hook, index=index)`"
                    )
                raise NotYet(f"Neuron {missing[0]} of layer {layer} is still active{why}.")
            silent = (found == 0).all(0).all(0).nonzero()[:, 0].tolist()
            already = (kept[layer] == 0).all(0).all(0).nonzero()[:, 0].tolist()
            extra = set(silent) - set(wanted) - set(already)
            if extra:
                raise NotYet(
                    f"In layer {layer} {len(extra)} other neurons are silenced too, such as {min(extra)}."
                )
        right = [
            (
                f"blocks.{layer}.mlp.hook_post",
                lambda a, hook, at=index: a.index_fill(2, torch.tensor([at]), 0.0),
            )
            for layer, index in neurons
        ]
        first = min(layer for layer, _ in neurons)
        others = [n for n in range(first) if not torch.equal(seen[n], kept[n])]
        if others:
            raise NotYet(f"Layer {others[0]} changed, and no neuron of it was named.")
        with torch.no_grad():
            with model.hooks(fwd_hooks=right):
                expected = model(tokens)
            with model.hooks(fwd_hooks=hooks):
                found = model(tokens)
        if not close(found, expected):
            raise NotYet(
                "The named neurons are silent, but something else changed too: leave all others as they were."
            )
    return "The named neurons are zero at every position, all others as they were, on two models."


def _hooked(function, activation, hook):
    """Call a learner's hook as the model would; its errors become sentences."""
    try:
        return function(activation, hook=hook)
    except Exception as error:
        raise NotYet(
            f"Your hook function stopped with {type(error).__name__}: {str(error)[:200]}. It is called as "
            f"f(activation, hook=hook), here with an activation {tuple(activation.shape)} of a small model."
        ) from error


@checker("13.4")
def check_random_like(attempt: Attempt) -> str:
    chosen = [(2, 5), (2, 6), (0, 1), (1, 3)]
    drawn_all, n_neurons = Counter(), 10
    for seed in range(200):
        drawn = attempt(list(chosen), n_neurons, seeded(seed))
        try:
            drawn = [(int(layer), int(index)) for layer, index in drawn]
        except (TypeError, ValueError):
            raise NotYet("Return a list of pairs (layer, neuron).") from None
        if len(drawn) != len(chosen):
            raise NotYet(f"{len(chosen)} neurons were chosen, and you return {len(drawn)}.")
        if set(drawn) & set(chosen):
            raise NotYet(
                f"{sorted(set(drawn) & set(chosen))[0]} is one of the chosen neurons; the control must avoid them."
            )
        if len(set(drawn)) < len(drawn):
            raise NotYet(
                "The same neuron is drawn twice, so the control silences fewer neurons than you chose."
            )
        if Counter(layer for layer, _ in drawn) != Counter(layer for layer, _ in chosen):
            raise NotYet(
                f"The chosen neurons are in layers {sorted(n for n, _ in chosen)}, yours in {sorted(n for n, _ in drawn)}. "
                "The control needs as many of each layer: depth alone changes a lot."
            )
        if any(not 0 <= index < n_neurons for _, index in drawn):
            raise NotYet(f"Neurons are numbered from 0 to {n_neurons - 1}.")
        drawn_all.update(drawn)
    one = seeded(4)
    several = {
        tuple(sorted(tuple(map(int, n)) for n in attempt(list(chosen), n_neurons, one))) for _ in range(8)
    }
    if len(several) == 1:
        raise NotYet(
            "Called again with the same generator, your function draws the same neurons. Do not seed it anew."
        )
    again = [attempt(list(chosen), n_neurons, seeded(3)) for _ in range(2)]
    if [tuple(map(int, n)) for n in again[0]] != [tuple(map(int, n)) for n in again[1]]:
        raise NotYet("The same generator must give the same neurons: draw with `generator=generator`.")
    expected = {(layer, index) for layer in range(3) for index in range(n_neurons)} - set(chosen)
    if len(drawn_all) < len(expected):
        never = sorted(expected - set(drawn_all))[0]
        raise NotYet(
            f"In 200 draws only {len(drawn_all)} of {len(expected)} possible neurons came up, never {never}. Every one must have "
            "a chance."
        )
    return "As many of each layer, none of the chosen, none twice, and any can come up, in 200 draws."


@checker("13.5")
def check_key_shares(attempt: Attempt) -> str:
    for parts, d, seed in ((4, 6, 0), (7, 3, 1), (1, 5, 2)):
        written, key = random(parts, d, seed=seed), random(d, seed=seed + 10)
        products = written @ key
        expected = products / products.sum()
        found = attempt.tensor(written, key, shape=(parts,), axes="part")
        if parts > 1:
            is_like(
                found,
                {
                    "These are the inner products. Divide by their sum, so that the shares add up to 1.": products,
                    "You divided by the sum of sizes. Parts that push the other way have negative shares: divide by the "
                    "plain sum.": products / products.abs().sum(),
                    "A softmax makes every share positive. Divide by the sum.": products.softmax(0),
                    "You took cosines. A part that writes more has a larger share: do not divide by lengths.": torch.cosine_similarity(
                        written, key[None], dim=-1
                    ),
                    "You took sizes. A part can push the other way; keep the sign.": products.abs()
                    / products.abs().sum(),
                    "You took sizes. A part can push the other way; keep its sign.": products.abs()
                    / products.sum(),
                },
            )
        if not close(found, expected, 1e-3):
            raise NotYet(only_wrong(found, expected))
        half = attempt.tensor(written, -0.5 * key, shape=(parts,), axes="part")
        if not close(half, expected, 1e-3):
            raise NotYet("A key of half the length, turned round, must give the same shares.")
    return "Shares add up to 1, keep their sign, and do not depend on the key's length."
