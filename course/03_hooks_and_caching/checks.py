"""Checks of notebook 03, hooks and caching."""

import torch

from mechlab.loading.models import tiny
from mechlab_course.checking import close, random, whole_number
from mechlab_course.exercises import Attempt, NotYet, checker

WANTED = {
    "who looks where": "attn.hook_pattern",
    "gathered": "attn.hook_z",
    "neurons": "mlp.hook_post",
    "stream in": "hook_resid_pre",
}
CONFUSED = {  # what a wrong choice is, in words
    "attn.hook_attn_scores": "scores before the softmax, which do not sum to 1",
    "hook_attn_out": "the sum over all heads, after W_O",
    "attn.hook_v": "the values, before the pattern weighs them",
    "mlp.hook_pre": "the neurons before the nonlinearity",
    "mlp.hook_pre_linear": "the ungated half of the neurons, not passed through the nonlinearity",
    "hook_mlp_out": "what the MLP writes, after the output matrix",
    "hook_resid_post": "the stream after the layer has changed it",
    "hook_resid_mid": "the stream after attention, in the middle of the layer",
    "ln1.hook_normalized": "the stream after the norm",
}


def _run(kind: str, names=None):
    model = tiny(kind)
    tokens = torch.arange(1, 9).reshape(2, 4)
    with torch.no_grad():
        return model, tokens, model.run_with_cache(tokens, names_filter=names)[1]


@checker("03.1")
def check_hook_names(attempt: Attempt) -> str:
    for kind in ("gqa", "gpt2"):
        model, _, cache = _run(kind)
        for layer in (1, 2, 0):
            found = attempt(layer)
            if not isinstance(found, dict) or set(found) != set(WANTED):
                raise NotYet(f"Return a dictionary with these keys: {', '.join(WANTED)}.")
            for what, ending in WANTED.items():
                name = found[what]
                if not isinstance(name, str):
                    raise NotYet(f'"{what}": give the name as a string; you gave a {type(name).__name__}.')
                elsewhere = isinstance(name, str) and not name.startswith(f"blocks.{layer}.")
                if elsewhere and name.startswith("blocks."):
                    raise NotYet(
                        f'"{what}": for layer {layer} you return {name}, in another layer. Use the argument `layer`.'
                    )
                if name not in model.hook_dict:
                    raise NotYet(
                        f'"{what}": there is no hook "{name}". Compare with the table, letter by letter.'
                    )
                if name not in cache:
                    raise NotYet(
                        f'"{what}": the hook "{name}" exists but is off by default, so it shows nothing.'
                    )
                expected = cache[f"blocks.{layer}.{ending}"]
                if cache[name].shape == expected.shape and torch.equal(cache[name], expected):
                    continue
                for other, meaning in CONFUSED.items():
                    if name == f"blocks.{layer}.{other}":
                        raise NotYet(f'"{what}": {name} is {meaning}.')
                raise NotYet(f'"{what}": {name} is something else. Read the last column of the table.')
    return "All four, in three layers of two models."


@checker("03.2")
def check_patterns_only(attempt: Attempt) -> str:
    for kind in ("gqa", "gpt2"):
        model, tokens, full = _run(kind)
        cache = attempt(model, tokens)
        if isinstance(cache, tuple):
            raise NotYet("`run_with_cache` returns two things, logits and cache; return the cache alone.")
        if not hasattr(cache, "keys"):
            raise NotYet(f"Return the cache; you returned a {type(cache).__name__}.")
        names = [str(name) for name in cache.keys()]  # noqa: SIM118
        scores = [name for name in names if name.endswith("attn_scores")]
        if scores and not any(name.endswith("hook_pattern") for name in names):
            raise NotYet(
                f"{scores[0]} holds the scores before the softmax. The pattern is what comes after it."
            )
        extra = [name for name in names if not name.endswith("hook_pattern")]
        if extra:
            raise NotYet(f"The cache holds more than patterns: {len(extra)} other names, such as {extra[0]}.")
        missing = [n for n in range(model.cfg.n_layers) if f"blocks.{n}.attn.hook_pattern" not in names]
        if missing:
            raise NotYet(f"A pattern of every layer is wanted; layer {missing[0]} is missing.")
        for layer in range(model.cfg.n_layers):
            if not close(cache[f"blocks.{layer}.attn.hook_pattern"], full["pattern", layer]):
                raise NotYet(f"The pattern of layer {layer} is not the one of a plain run on these tokens.")
        if any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values()):
            raise NotYet(
                "A hook is still on the model afterwards. Use `run_with_cache`, which takes its hooks off."
            )
    return "Every pattern, nothing else, on two models, and no hook left behind."


@checker("03.3")
def check_stream_before(attempt: Attempt, model) -> str:
    for kind in ("gqa", "gpt2"):
        small, _, cache = _run(kind)
        for layer in range(small.cfg.n_layers):
            expected = cache["resid_pre", layer]
            parts = _parts(cache, small)
            found = attempt.tensor(parts, layer, shape=tuple(expected.shape), axes="batch pos d_model")
            untouched = _parts(cache, small)
            if set(parts) != set(untouched) or not all(
                torch.equal(parts[n], untouched[n]) for n in untouched
            ):
                raise NotYet(
                    "Your function changes the cache: `+=` adds into the stored tensor. Write `stream = stream + ...`."
                )
            if close(found, expected, 1e-3):
                continue
            rest = expected - found
            if close(found, cache["resid_post", layer], 1e-3):
                raise NotYet(
                    f"You included layer {layer}, the layer itself. The stream that *enters* it has only earlier parts."
                )
            if "hook_pos_embed" in cache and close(rest, cache["hook_pos_embed"].expand_as(rest), 1e-3):
                raise NotYet(
                    'On a GPT-2-like model cache["hook_pos_embed"] is missing: it is added when the cache has it.'
                )
            for missing, name in (("MLPs are", "mlp_out"), ("attention outputs are", "attn_out")):
                if layer and close(rest, sum(cache[name, i] for i in range(layer)), 1e-3):
                    raise NotYet(f"The {missing} missing: each layer writes twice.")
            if close(rest, cache["hook_embed"], 1e-3):
                raise NotYet("The embedding is missing: the sum starts with it.")
            raise NotYet(
                f"For layer {layer} of a {kind} model your sum is {rest.norm():.2f} away from resid_pre."
            )
    wanted = lambda n: n.endswith(("hook_embed", "attn_out", "mlp_out", "resid_pre"))
    _, cache = model.run_with_cache(torch.arange(5, 11)[None], names_filter=wanted)
    last = model.cfg.n_layers - 1
    if not close(attempt(_parts(cache, model), last)[0, 1:], cache["resid_pre", last][0, 1:], 1e-3):
        raise NotYet("On the real model the sum does not equal the stream that enters the last layer.")
    return "Equal to resid_pre in every layer of two small models, and in the last layer of the real one."


def _parts(cache, model):
    """A cache that holds copies of what is written into the stream, and not the stream itself."""
    from transformer_lens import ActivationCache

    endings = ("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out")
    return ActivationCache({n: cache[n].clone() for n in cache if n.endswith(endings)}, model)


@checker("03.4")
def check_first_parting(attempt: Attempt) -> str:
    growth = torch.linspace(1, 40, 12)[:, None]
    a = random(12, 8) * growth
    size = torch.tensor([0.01, 0.02, 0.05, 0.08, 0.15, 0.3, 0.25, 0.12, 0.4, 0.3, 0.2, 0.15])
    away = random(12, 8, seed=1)
    away = (
        away - (away * a).sum(-1, keepdim=True) / a.pow(2).sum(-1, keepdim=True) * a
    )  # sideways: lengths stay close
    b = a + away / away.norm(dim=-1, keepdim=True) * a.norm(dim=-1, keepdim=True) * size[:, None]
    expected = {0.1: 4, 0.28: 5, 0.35: 8, 0.5: -1, 0.005: 0}
    found = {t: whole_number(attempt(a, b, t), "a layer number") for t in expected}
    above = {t: [n for n, v in enumerate(size) if v > t] for t in expected}
    first = lambda values: {t: next((n for n, v in enumerate(values) if v > t), -1) for t in expected}
    lengths = (a.norm(dim=-1) - b.norm(dim=-1)).abs() / a.norm(dim=-1)
    mistakes = {
        "You compare the plain distance with the threshold. It must be relative: divided by the length of a.": first(
            (a - b).norm(dim=-1)
        ),
        "You return the last layer above the threshold; the first is wanted.": {
            t: (rows or [-1])[-1] for t, rows in above.items()
        },
        "When the streams never part the answer is -1; you return 0.": {
            t: (rows or [0])[0] for t, rows in above.items()
        },
        "You compare lengths. Two streams of equal length can point in different directions: take (a - b).": first(
            lengths
        ),
    }
    if found != expected:
        for message, values in mistakes.items():
            if found == values:
                raise NotYet(message)
        t = next(t for t in expected if found[t] != expected[t])
        shown = ", ".join(f"{v:.2f}" for v in size.tolist())
        raise NotYet(
            f"With relative distances {shown} and threshold {t} the answer is {expected[t]}; yours is {found[t]}."
        )
    # Cases in which other ways of measuring a distance give another answer.
    ones, one = torch.ones(3, 8), torch.zeros(3, 8)
    one[1:, 0] = 1.0
    if attempt(ones, ones + one, 0.25) != 1:  # sqrt(1/8) = 0.35; the sum of absolute values would give 0.125
        raise NotYet("Measure with the ordinary length, `norm`: the root of the sum of squares.")
    if attempt(ones, ones * torch.tensor([1.0, 1.5, 1.5])[:, None], 0.45) != 1:
        raise NotYet(
            "Divide by the length of `a`, and compare the streams as they are: b may also be longer than a."
        )
    if attempt(a, a, 0.0) != -1:
        raise NotYet("Two equal streams never part, so the answer must be -1.")
    return "Relative, first, and -1 for streams that never part."
