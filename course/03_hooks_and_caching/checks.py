"""Checks of notebook 03, hooks and caching."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mechlab.circuits.ioi import ioi_prompts
from mechlab.loading.models import tiny
from mechlab.prompts import single_token
from mechlab.runs.hooks import intervene
from mechlab_course.checking import close, random, refuse, whole_number
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


def _run(kind: str, layers: int = 3):
    model, tokens = tiny(kind, layers=layers), torch.arange(1, 9).reshape(2, 4)
    with torch.no_grad():
        return model, tokens, model.run_with_cache(tokens)[1]


@checker("03.1")
def check_hook_names(attempt: Attempt) -> str:
    for kind in ("gqa", "gpt2"):
        model, _, cache = _run(kind)
        for layer in (1, 2, 0):
            found = attempt(layer)
            keys = isinstance(found, dict) and set(found) == set(WANTED)
            refuse(not keys, f"Return a dictionary with these keys: {', '.join(WANTED)}.")
            for what, ending in WANTED.items():
                _same_hook(found[what], layer, ending, model, cache, f'"{what}":')
    return "All four, in three layers of two models."


def _same_hook(name, layer: int, ending: str, model, cache, what: str) -> None:
    """The hook of this name shows, in this layer, what the wanted one shows."""
    text = isinstance(name, str)
    refuse(not text, f"{what} give the name as a string; you gave a {type(name).__name__}.")
    refuse("{" in name, f"{what} in {name} the braces are still there. Write an f before the quotation mark.")
    shared = name == f"blocks.{layer - 1}.hook_resid_post" and ending == "hook_resid_pre"
    none = "but layer 0 has none before it. Take the hook on entering this layer."
    refuse(shared, f"{what} what leaves the layer before is the same stream, {none}")
    elsewhere = name.startswith("blocks.") and not name.startswith(f"blocks.{layer}.")
    where = f"{what} for layer {layer} you return {name}, in another layer."
    refuse(elsewhere, f"{where} Use the argument `layer`.")
    letters = "Compare with the table, letter by letter."
    refuse(name not in model.hook_dict, f'{what} there is no hook "{name}". {letters}')
    refuse(name not in cache, f'{what} the hook "{name}" exists but is off by default, so it shows nothing.')
    if not torch.equal(cache[name], cache[f"blocks.{layer}.{ending}"]):
        other = name.removeprefix(f"blocks.{layer}.")
        meaning = CONFUSED.get(other, "something else. Read the last column of the table")
        raise NotYet(f"{what} {name} is {meaning}.")


@checker("03.2")
def check_patterns_only(attempt: Attempt) -> str:
    for kind, depth in (("gqa", 3), ("gpt2", 3), ("gqa", 30)):  # as deep as the model of the course
        model, tokens, full = _run(kind, depth)
        with _keys_explained():
            cache, layers = attempt(model, tokens), range(depth)
        both = "`run_with_cache` returns two things, logits and cache; return the cache alone."
        refuse(isinstance(cache, tuple), both)
        refuse(not hasattr(cache, "keys"), f"Return the cache; you returned a {type(cache).__name__}.")
        names = [str(name) for name in cache.keys()]  # noqa: SIM118
        extra = [name for name in names if not name.endswith("hook_pattern")]
        scores = [name for name in extra if name.endswith("attn_scores")]
        if scores and extra == names:
            after = "The pattern is what comes after it."
            raise NotYet(f"{scores[0]} holds the scores before the softmax. {after}")
        if extra:
            raise NotYet(f"The cache holds more than patterns: {len(extra)} other names, such as {extra[0]}.")
        for layer in layers:
            missing, of = f"blocks.{layer}.attn.hook_pattern" not in names, f"of a model of {depth} layers"
            refuse(missing, f"A pattern of every layer is wanted; {of} layer {layer} is missing.")
        for layer in layers:
            equal = close(cache[f"blocks.{layer}.attn.hook_pattern"], full["pattern", layer])
            refuse(not equal, f"The pattern of layer {layer} is not the one of a plain run on these tokens.")
        left = any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())
        off = "Use `run_with_cache`, which takes its hooks off."
        refuse(left, f"A hook is still on the model afterwards. {off}")
    return "Every pattern, nothing else, on three models, and no hook left behind."


_KEYS = {  # part of an error -> what is behind it
    "matched no hook": "A text as the filter must be a whole name. For the end of a name: `ml.only(...)`.",
    "hook_resid": "The cache of this check holds what was written, and no stream: add the parts up.",
    "hook_pos_embed'": 'A model that rotates has no such entry. Ask first: `if "hook_pos_embed" in cache`.',
}


@contextmanager
def _keys_explained() -> Iterator[None]:
    """Where the learner's function stopped at a name that is not there, the verdict says why."""
    try:
        yield
    except NotYet as verdict:
        head, end, rest = str(verdict).partition("\n")
        why = "".join(f"\n{means}" for sign, means in _KEYS.items() if "KeyError" in head and sign in head)
        raise NotYet(head + why + end + rest) from None


@checker("03.3")
def check_stream_before(attempt: Attempt, model) -> str:
    for kind in ("gqa", "gpt2"):
        small, _, cache = _run(kind)
        for layer in range(small.cfg.n_layers):
            expected, parts, untouched = cache["resid_pre", layer], _parts(cache, small), _parts(cache, small)
            with _keys_explained():
                found = attempt.tensor(parts, layer, shape=tuple(expected.shape), axes="batch pos d_model")
            same = set(parts) == set(untouched) and all(torch.equal(parts[n], untouched[n]) for n in parts)
            copy = "`+=` adds into the stored tensor. Write `stream = stream + ...`."
            refuse(not same, f"Your function changes the cache: {copy}")
            if not close(found, expected, 1e-3):
                raise NotYet(_missing(expected - found, cache, layer, kind))
    wanted = lambda n: n.endswith(("hook_embed", "attn_out", "mlp_out", "resid_pre"))
    _, cache = model.run_with_cache(torch.arange(5, 11)[None], names_filter=wanted)
    last = model.cfg.n_layers - 1
    equal = close(attempt(_parts(cache, model), last)[0, 1:], cache["resid_pre", last][0, 1:], 1e-3)
    refuse(not equal, "On the real model the sum does not equal the stream that enters the last layer.")
    return "Equal to resid_pre in every layer of two small models, and in the last layer of the real one."


def _missing(rest: Tensor, cache, layer: int, kind: str) -> str:
    """What it is that a sum lacks, or has too much."""
    lacks = lambda part: close(rest, part.expand_as(rest), 1e-3)
    if close(cache["resid_pre", layer] - rest, cache["resid_post", layer], 1e-3):
        enters = "The stream that *enters* it has only earlier parts."
        return f"You included layer {layer}, the layer itself. {enters}"
    for what, name in (("attention", "attn_out"), ("MLP", "mlp_out")):
        refuse(lacks(-cache[name, layer]), f"The {what} of layer {layer} itself is in your sum too.")
    if "hook_pos_embed" in cache and lacks(cache["hook_pos_embed"]):
        added = "it is added when the cache has it."
        return f'On a GPT-2-like model cache["hook_pos_embed"] is missing: {added}'
    for what, name in (("MLPs are", "mlp_out"), ("attention outputs are", "attn_out")):
        if layer and lacks(sum(cache[name, i] for i in range(layer))):
            return f"The {what} missing: each layer writes twice."
    both = [cache["attn_out", i] + cache["mlp_out", i] for i in range(layer)]
    for i, written in enumerate(both):
        where = f"For layer {layer} the sum runs over the layers 0 to {layer - 1}."
        refuse(lacks(written), f"What layer {i} writes is missing. {where}")
    one = layer > 1 and lacks(sum(both[:-1]))
    refuse(one, f"Only the last layer before layer {layer} is in it. All earlier layers have written.")
    if lacks(cache["hook_embed"]):
        return "The embedding is missing: the sum starts with it."
    return f"For layer {layer} of a {kind} model your sum is {rest.norm():.2f} away from resid_pre."


def _parts(cache, model):
    """A cache that holds copies of what is written into the stream, and not the stream itself."""
    from transformer_lens import ActivationCache

    endings = ("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out")
    return ActivationCache({n: cache[n].clone() for n in cache if n.endswith(endings)}, model)


_SIZES = torch.tensor([0.01, 0.02, 0.05, 0.08, 0.15, 0.3, 0.25, 0.12, 0.4, 0.3, 0.2, 0.15])


def _streams() -> tuple[Tensor, Tensor]:
    """Two streams that are so far apart, sideways, so that their lengths stay close."""
    a = random(12, 8) * torch.linspace(1, 40, 12)[:, None]
    away = random(12, 8, seed=1)
    away = away - (away * a).sum(-1, keepdim=True) / a.pow(2).sum(-1, keepdim=True) * a
    return a, a + torch.nn.functional.normalize(away) * a.norm(dim=-1, keepdim=True) * _SIZES[:, None]


@checker("03.4")
def check_first_parting(attempt: Attempt) -> str:
    (a, b), thresholds = _streams(), (0.1, 0.28, 0.35, 0.5, 0.005)
    above = lambda sizes: [(sizes > t).nonzero()[:, 0].tolist() for t in thresholds]
    first = lambda sizes, never=-1: [(rows or [never])[0] for rows in above(sizes)]
    expected = first(_SIZES)
    found = [whole_number(attempt(a, b, t), "a layer number") for t in thresholds]
    lengths = (a.norm(dim=-1) - b.norm(dim=-1)).abs() / a.norm(dim=-1)
    mistakes = {
        "You compare the plain distance with the threshold. It must be relative: divided by the length "
        "of a.": first((a - b).norm(dim=-1)),
        "You return the last layer above the threshold; the first is wanted.": (
            [(rows or [-1])[-1] for rows in above(_SIZES)]
        ),
        "When the streams never part the answer is -1; you return 0.": first(_SIZES, never=0),
        "You measure by the cosine. Take the distance, `(a - b).norm(dim=-1)`.": first(
            1 - torch.cosine_similarity(a, b, dim=-1)
        ),
        "You divide by the length of all layers together. Each layer has its own: `norm(dim=-1)`.": first(
            (a - b).norm(dim=-1) / a.norm()
        ),
        "You take lengths along the layers. One number a layer: `norm(dim=-1)`.": first(
            (a - b).norm(dim=0) / a.norm(dim=0)
        ),
        "You look for the layer from which they stay apart. The first above the threshold is wanted.": [
            max((t >= _SIZES).nonzero()[:, 0].tolist(), default=-1) + 1 for t in thresholds
        ],
        "You compare squares. `norm` has the root, `.pow(2).sum(-1)` has not.": first(_SIZES**2),
        "That is the largest rise from one layer to the next. The first distance above the threshold is "
        "wanted.": [int(_SIZES.diff().argmax()) + 1] * len(thresholds),
        "You divide coordinate by coordinate. Divide one length by another: `norm(dim=-1)`.": first(
            ((a - b) / a).abs().mean(-1)
        ),
        "You compare lengths. Two streams of equal length can point in different directions: take "
        "(a - b).": first(lengths),
    }
    fit = [why for why, values in mistakes.items() if found == values]  # two may say the same of all
    refuse(fit, " Or: ".join(fit[:2]))
    shown = ", ".join(f"{v:.2f}" for v in _SIZES.tolist())
    for t, mine, right in zip(thresholds, found, expected, strict=True):
        asked = f"With relative distances {shown} and threshold {t} the answer is {right}"
        refuse(mine != right, f"{asked}; yours is {mine}.")
    # Cases in which other ways of measuring a distance give another answer.
    ones, one = torch.ones(3, 8), torch.zeros(3, 8)
    one[1:, 0] = 1.0  # sqrt(1/8) = 0.35; the sum of absolute values would give 0.125
    ordinary = attempt(ones, ones + one, 0.25) == 1
    refuse(not ordinary, "Measure with the ordinary length, `norm`: the root of the sum of squares.")
    by_a = attempt(ones, ones * torch.tensor([1.0, 1.5, 1.5])[:, None], 0.45) == 1
    longer = "compare the streams as they are: b may also be longer than a."
    refuse(not by_a, f"Divide by the length of `a`, and {longer}")
    equal = "Two equal streams never part, with threshold 0 too: the distance must be larger, `>`, not `>=`."
    refuse(attempt(a, a, 0.0) != -1, equal)
    return "Relative, first, and -1 for streams that never part."


FORMS = (  # none of the library's templates
    "When {first} and {second} stayed in the {place}, {subject} gave a {object} to",
    "While {first} and {second} rested at the {place}, {subject} handed a {object} to",
)
PEOPLE = ("Bill", "Bob", "Dan", "Frank", "Fred", "Gary", "Rose", "Grace", "Eva", "Anne", "Joan", "Betty")
FACTS = (
    ("The capital of Italy is", " Rome"),
    ("The capital of France is", " Paris"),
    ("One, two, three, four,", " five"),
    ("The opposite of hot is", " cold"),
    ("The Eiffel Tower is in the city of", " Paris"),
)
FALL, DAMAGE = 0.3, 0.3  # a share of the logit difference; nats


def _facts(model) -> float:
    """The mean log-probability of the facts."""
    found = []
    for text, answer in FACTS:
        logits = model(model.to_tokens(text))[0, -1]
        found.append(logits.log_softmax(-1)[single_token(model, answer)].item())
    return sum(found) / len(found)


def _at_zero(heads: list[tuple[int, int]]) -> list:
    def hook(head: int):
        def zero(z, hook):
            z = z.clone()
            z[:, :, head] = 0
            return z

        return zero

    return [(f"blocks.{layer}.attn.hook_z", hook(head)) for layer, head in heads]


def _heads(found, model, most: int) -> list[tuple[int, int]]:
    """The learner's heads, if they can be taken away."""
    form = f"Return a list of one to {most} heads, such as [(12, 0), (15, 1)]."
    refuse(not isinstance(found, (list, tuple, set)), form)
    refuse(not all(isinstance(head, (list, tuple)) and len(head) == 2 for head in found), form)
    heads = [(whole_number(layer, "a layer"), whole_number(head, "a head")) for layer, head in found]
    refuse(not 1 <= len(heads) <= most, f"You return {len(heads)} heads. {form}")
    for layer, head in heads:
        there = 0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads
        refuse(not there, f"There is no head {layer}.{head}: 30 layers from 0 to 29, nine heads from 0 to 8.")
        refuse(heads.count((layer, head)) > 1, f"{layer}.{head} is there twice.")
    return heads


@checker("03.5")
def check_needed_heads(attempt: Attempt, model) -> str:
    heads = _heads(attempt(), model, 3)
    known = [head for head in heads if head in ((20, 0), (23, 3))]
    refuse(known, "20.0 and 23.3 are the two that you know. Find others.")
    prompts = ioi_prompts(model, 16, templates=FORMS, names=PEOPLE, seed=3)
    with torch.no_grad():
        intact, knows = prompts.metric(model(prompts.tokens)).mean().item(), _facts(model)
        with intervene(model, _at_zero(heads)):
            left, still = prompts.metric(model(prompts.tokens)).mean().item(), _facts(model)
    fall, damage = (intact - left) / intact, knows - still
    told = f"On other names and sentences the logit difference {'falls' if fall > 0 else 'rises'} by "
    told += f"{100 * abs(fall):.0f} %"
    what = "That breaks the model, not the task: heads that everything needs say nothing about names."
    lost = f"the facts lose {damage:.2f} nats"
    refuse(fall >= FALL and damage > DAMAGE, f"{told}, but {lost}. {what}")
    more = " These heads work against the right name." if fall < -0.05 else ""
    refuse(fall < FALL, f"{told}; a fall of 30 % is wanted.{more} Sort all heads by what each costs alone.")
    return f"{told}, and {lost}: they are needed for this task, and hardly for the facts."
