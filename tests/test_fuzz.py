"""Both engines and every technique on what nobody would think of: random edits, places, circuits, families and modes.

What is drawn is small and said in words, so that a failure shrinks to the fewest edits that show it; what is large
(tokens, values, masks) comes from a number. `python -m tests.fuzz MINUTES` goes on with fresh numbers.
"""

import functools
import warnings
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mechlab as ml
from mechlab.circuits.circuits import Circuit
from mechlab.results import Scores
from mechlab.runs.engines import run_of
from mechlab.runs.run import SITES, WITH_HEADS, Put, Run
from tests import architectures
from tests.architectures import FAMILIES, kept

FAST = [
    family for family in FAMILIES if family != "Mixtral"
]  # a mixture of experts has only the plain engine
# What an engine says that it cannot do, and the other may.
UNTOLD = "for single query heads", "has no gradients past an edit"
examples = lambda count: settings(
    max_examples=count,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
)
families = st.sampled_from(FAST)
seeds = st.integers(0, 10**6)


@pytest.fixture(scope="module", autouse=True)
def as_learners_run_it():
    """Shapes are not checked: what is wrong must be told by the library's own sentences."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@dataclass(frozen=True)
class Edit:
    """A `Put` in words.

    value: "source", "noise" (another one for each copy), "heads" (for query heads alone), or None
    where: None, or for each axis of the mask whether it is of size 1; share: how much of the mask is true
    """

    site: str
    layer: int
    value: str | None
    where: tuple[bool, ...] | None
    share: float
    held: bool
    seed: int

    def put(self, source: Run, copies: int) -> Put:
        if self.value is None:
            return Put(self.site, self.layer, held=True)
        chance, value = torch.Generator().manual_seed(self.seed), source.at(self.site, self.layer)[None]
        if self.value == "heads" and self.site in "kv":
            value = value.repeat_interleave(source.model.cfg.n_heads // value.shape[3], dim=3)
        if self.value == "noise":
            value = value + torch.randn(copies, *[1] * (value.ndim - 1), generator=chance).to(value)
        if self.where is None:
            return Put(self.site, self.layer, value, held=self.held)
        axes = (copies, *value.shape[1 : 4 if self.site in WITH_HEADS else 3])
        shape = [1 if one else size for one, size in zip(self.where, axes, strict=False)]
        mask = torch.rand(shape, generator=chance) < self.share
        return Put(self.site, self.layer, value, mask, held=self.held)


edits = st.builds(
    Edit,
    st.sampled_from([*SITES]),
    st.integers(0, 2),
    st.sampled_from(["source", "source", "noise", "heads", None]),
    st.none() | st.tuples(*[st.booleans()] * 4) | st.tuples(*[st.booleans()] * 3),
    st.sampled_from([0.2, 0.5, 1.1, 0.0]),
    st.booleans(),
    seeds,
)
lists_of_edits = st.lists(edits, min_size=1, max_size=4)
sizes = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 3))  # prompts, positions, copies


def prompts_of(model, size, seed):
    """Two batches of the same shape that begin alike."""
    chance = torch.Generator().manual_seed(seed)
    base, source = torch.randint(5, 390, (2, *size[:2]), generator=chance)
    same = int(torch.randint(0, size[1], (), generator=chance))
    source[:, :same] = base[:, :same]
    source[:, -1] = (base[:, -1] - 4) % 380 + 5  # never the same
    return base, source


def near(found, expected, what="", atol=5e-4, rtol=2e-3):
    """Whether the numbers are equal, by name where they have names."""
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), (what, found.keys() ^ expected.keys())
        for name in found:
            near(found[name], expected[name], name, atol, rtol)
        return
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    off = (found - expected).abs().max().item() if found.numel() else 0.0
    assert torch.allclose(found, expected.to(found), atol=atol, rtol=rtol), f"{what}: off by {off:.2g}"


def answer(ask, *given):
    """What is found, or the sentence of a refusal; anything else that is raised is a finding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ask(*given)
        except (ValueError, ml.HookError) as refusal:
            return str(refusal)


def agree(found, expected, **within):
    """Both found the same, or both were refused, in the same words but for what one engine cannot do."""
    if isinstance(found, str) or isinstance(expected, str):
        both = isinstance(found, str) and isinstance(expected, str)
        untold = any(words in str(each) for each in (found, expected) for words in UNTOLD)
        assert both or untold, (found, expected)
        assert untold or found == expected, (found, expected)
        return
    near(found, expected, **within)


METRICS = {
    "all logits at the end": ml.log_prob(7),
    "two logits somewhere": ml.logit_difference(7, 8, pos=0),
    "a function": lambda logits: logits.logsumexp(-1).sum(1) + logits[:, 0, 3],
}
metrics = st.sampled_from([*METRICS]).map(METRICS.__getitem__)


# --- runs ---


def everything(run, source, size, metric, first, second, embedded):
    """All that a run is asked for, after the edits `first` were made in it."""
    puts = [[each.put(source, size[2]) for each in edits] for edits in (first, second)]
    changed = run.changed([put.of_copy(0) for put in puts[0]])
    if embedded is not None:
        changed = changed.changed(embedded=embedded)
    places = torch.zeros(size[0], 1, dtype=torch.long)
    found = {
        "edited": run.edited(metric, puts[0]),
        "changed": changed.value(metric),
        "changed, edited": changed.edited(metric, puts[1]),
    }
    found |= {f"{site} {layer}": changed.at(site, layer) for site in SITES for layer in range(3)}
    found["the end"] = changed.at("resid_pre", 3)
    for site in ("q", "v", "z"):
        read = run.read(site, [0, 2], puts[0], places)
        found |= {f"read {site} {layer}": each for layer, each in read.items()}
    found["logits"] = run.logits(puts[0], 1)
    slopes = answer(lambda: [torch.stack(changed.site_gradients(metric)), *changed.reader_gradients(metric)])
    refused = isinstance(slopes, str) and any(words in slopes for words in UNTOLD)
    assert refused or not isinstance(slopes, str), slopes
    return found, None if refused else {f"slope {n}": each for n, each in enumerate(slopes)}


def check_runs(model, size, seed, metric, first, second, embedded=False):
    base, other = prompts_of(model, size, seed)
    run, plain = (run_of(model, base, engine=engine) for engine in ("fast", "plain"))
    source = run_of(model, other, like=run)
    chance = torch.Generator().manual_seed(seed)
    start = torch.randn(*size[:2], model.cfg.d_model, generator=chance) if embedded else None
    asked = (source, size, metric, first, second, start)
    found, expected = (answer(everything, each, *asked) for each in (run, plain))
    if isinstance(found, str) or isinstance(expected, str):
        agree(found, expected)
        return
    near(found[0], expected[0])
    if found[1] is not None and expected[1] is not None:
        near(found[1], expected[1])


runs = st.tuples(sizes, seeds, metrics, lists_of_edits, lists_of_edits, st.booleans())


@examples(30)
@given(families, runs)
def test_random_edits_give_the_same_on_both_engines(family, drawn):
    """Several at once in any order, on the run and on a changed run; what is refused is refused by both."""
    check_runs(kept(family), *drawn)


@examples(10)
@given(st.sampled_from(["gqa", "gpt2"]), runs)
def test_random_edits_on_the_tiny_models(kind, drawn):
    check_runs(ml.tiny(kind), *drawn)


# --- techniques ---


@st.composite
def positions(draw, count, prompts):
    """Everywhere, a list of positions from either end, or names for places that differ."""
    kind = draw(st.sampled_from(["all", "list", "names"]))
    places = st.integers(-count, count - 1)
    if kind == "all":
        return None
    if kind == "list":
        return draw(st.lists(places, min_size=1, max_size=3, unique_by=lambda place: place % count))
    rows = st.lists(places, min_size=prompts, max_size=prompts)
    return {name: draw(rows) for name in draw(st.sampled_from([["here"], ["here", "there"]]))}


layers = st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)
heads = st.tuples(st.integers(0, 2), st.integers(0, 3))


@st.composite
def patching(draw, prompts, count):
    site = draw(st.sampled_from([*SITES]))
    by = [None, (), ("pos",)] + ([("head",), ("pos", "head")] if site in WITH_HEADS else [])
    asked = {"by": draw(st.sampled_from(by)), "layers": draw(layers), "normalized": draw(st.booleans())}
    asked["positions"] = draw(positions(count, prompts))
    return lambda model, pair, metric: ml.activation_patching(model, *pair, metric, site, **asked)


@st.composite
def paths(draw, prompts, count):
    receivers = draw(
        st.none() | st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3)), min_size=1, max_size=3)
    )
    below = max((layer for layer, _ in receivers), default=0) if receivers else 3
    senders = st.lists(st.tuples(st.integers(0, below - 1), st.integers(0, 3)), min_size=1, max_size=3)
    asked = {"frozen_mlps": draw(st.booleans()), "normalized": draw(st.booleans())}
    asked["senders"] = draw(st.none() | st.lists(senders, min_size=1, max_size=3))
    into, place = draw(st.sampled_from("qkv")), st.integers(-count, count - 1)
    rows = st.lists(place, min_size=prompts, max_size=prompts)
    several = st.lists(rows, min_size=1, max_size=2).map(lambda columns: torch.tensor(columns).T)
    asked["at"] = draw(st.none() | rows | several) if receivers else None
    return lambda model, pair, metric: ml.path_patching(model, *pair, metric, receivers, into, **asked)


@st.composite
def estimates(draw, prompts, count):
    steps, rule = draw(st.integers(1, 3)), draw(st.sampled_from(["gradient", "half"]))
    if draw(st.booleans()):
        return lambda model, pair, metric: ml.edge_attribution(model, *pair, metric, steps=steps, rule=rule)
    by, where = draw(st.sampled_from([("head",), ("pos", "head")])), draw(positions(count, prompts))
    site, softmax = draw(st.sampled_from("zqkv")), draw(st.booleans())
    asked = {"site": site, "exact_softmax": softmax and site in "qk", "drop": draw(st.booleans())}
    return lambda model, pair, metric: ml.attribution_patching(
        model, *pair, metric, steps=steps, by=by, positions=where, rule=rule, **asked
    )


def both(ask, model, size, seed, metric):
    """A technique on runs of either engine: the source is of the engine of the base."""
    base, other = prompts_of(model, size, seed)
    agree(
        *(
            answer(lambda run: numbers(ask(model, (run, other), metric)), run_of(model, base, engine=each))
            for each in ("fast", "plain")
        )
    )


def numbers(scores: Scores) -> dict[str, torch.Tensor]:
    """Values and each prompt's, in the metric's unit: a share is of a gap that may be nearly nothing, of either sign."""
    gap = scores.baselines["source"] - scores.baselines["base"] if "share" in scores.name else 1
    assert all(len(labels) == scores.size(dim) for dim, labels in scores.labels.items())
    return {"values": scores.values * gap, "per prompt": scores.per_prompt * gap}


@pytest.mark.parametrize("technique", [patching, paths, estimates])
@examples(16)
@given(st.data())
def test_random_patches_give_the_same_on_both_engines(technique, data):
    size = data.draw(st.tuples(st.integers(1, 3), st.integers(2, 9)), "prompts, positions")
    ask = data.draw(technique(*size))
    both(ask, kept(data.draw(families)), (*size, 1), data.draw(seeds), data.draw(metrics))


class Refuses:
    """Stands for the fast engine where techniques make their runs themselves."""

    def __init__(self, *given, **named):
        raise ml.runs.run.NotResumable("New.")


def on_both(ask, within=5e-4):
    """What is found with the fast engine and without it."""
    found = answer(ask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ml.runs.engines, "Fast", Refuses)
        agree(found, answer(ask), atol=within)


@examples(10)
@given(
    families,
    st.integers(2, 9),
    seeds,
    st.sampled_from(["resid_pre", "attn_out", "mlp_out"]),
    st.integers(1, 3),
    layers,
    st.data(),
)
def test_random_tracing_gives_the_same_on_both_engines(family, count, seed, site, window, chosen, data):
    model, places = kept(family), st.lists(st.integers(-count, count - 1), min_size=1, max_size=2)
    base, _ = prompts_of(model, (1, count), seed)
    subject, metric = data.draw(places), data.draw(metrics)
    asked = {"layers": chosen, "site": site, "window": 1 if site == "resid_pre" else window, "seed": seed}
    asked["positions"] = data.draw(st.none() | places)
    traced = lambda: ml.causal_tracing(model, base, metric, subject=subject, samples=2, **asked)
    on_both(lambda: {"values": traced().values, "per draw": traced().per_prompt})


@examples(10)
@given(
    families,
    sizes,
    seeds,
    metrics,
    st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
    st.data(),
)
def test_random_steering_gives_the_same_on_both_engines(family, size, seed, metric, chosen, data):
    model = kept(family)
    base, text = prompts_of(model, (size[0], max(4, size[1])), seed)
    strengths = data.draw(st.lists(st.sampled_from([-2.0, -0.3, 0.0, 0.5, 1, 3]), min_size=1, max_size=3))
    vectors = ml.contrast_vectors(model, ["John went to Paris"], ["Mary gave a drink"]).random(seed=seed)

    def ask():
        result = ml.steering_sweep(
            model, base, metric, vectors=vectors, layers=chosen, strengths=strengths, text=text
        )
        return {"effect": result.effect.per_prompt, "cost": result.cost.per_prompt.log()}

    on_both(ask)


class Task:
    """Prompts of two templates, with their places."""

    metric = ml.log_prob(50)

    def __init__(self, tokens, places):
        prompts, count = tokens.shape
        self.tokens, self.pairs = tokens, torch.arange(prompts) // 2
        self.templates = ["a" if n < prompts // 2 else "b" for n in range(prompts)]
        self.positions = {"S": places % count, "end": torch.full((prompts,), count - 1)}


circuits = st.lists(heads, min_size=0, max_size=6, unique=True).flatmap(
    lambda chosen: st.builds(
        lambda at, mlps: Circuit({"here": chosen[::2], "everywhere": chosen[1::2]}, {"here": at}, mlps=mlps),
        st.sampled_from([["S"], ["end"], ["S", "end"]]),
        st.none() | st.lists(st.integers(0, 2), unique=True),
    )
)


@examples(10)
@given(
    families,
    st.integers(2, 9),
    seeds,
    st.sampled_from(["mean", "resample", "zero"]),
    st.lists(circuits, min_size=1, max_size=3),
)
def test_random_circuits_give_the_same_on_both_engines(family, count, seed, how, drawn):
    model, chance = kept(family), torch.Generator().manual_seed(seed)
    tokens, places = (
        torch.randint(5, 390, (2, 6, count), generator=chance),
        torch.randint(0, 9, (6,), generator=chance),
    )

    def ask():
        knockouts = ml.CircuitRuns(model, *(Task(each, places) for each in tokens), how, seed=seed)
        found = {"measured": knockouts.measure([*drawn, None]), "removed": knockouts.removing(drawn)}
        assert torch.allclose(found["measured"][-1], knockouts.intact, atol=1e-4)
        return found

    on_both(ask)


# --- precisions and modes ---


def techniques(model, size, seed):
    """What each technique gives on prompts of one size: numbers, or the sentence of a refusal."""
    base, other = prompts_of(model, size, seed)
    metric, places = ml.logit_difference(7, 8), torch.arange(size[0]) % size[1]
    pair, run, source = (model, base, other, metric), *(answer(run_of, model, each) for each in (base, other))
    chance = torch.Generator().manual_seed(seed)
    put = Put("z", 1, source.at("z", 1)[None], torch.rand(2, *base.shape, 1, generator=chance) < 0.5)
    vectors = ml.contrast_vectors(model, ["John went to Paris"], ["Mary gave a drink"])
    steered = {"vectors": vectors, "layers": [1], "strengths": [0.5], "text": other}
    tasks = Task(base, places), Task(other, places)
    asked = {
        "value": lambda: run.value(metric),
        "edited": lambda: run.edited(metric, [put]),
        "activation patching": lambda: ml.activation_patching(*pair, "k", normalized=False).per_prompt,
        "path patching": lambda: (
            ml.path_patching(*pair, [(2, 1)], "v", at=places, normalized=False).per_prompt
        ),
        "slopes": lambda: torch.stack(run.site_gradients(metric)),
        "attribution": lambda: numbers(ml.attribution_patching(*pair, steps=2))["per prompt"],
        "edges": lambda: numbers(ml.edge_attribution(*pair))["per prompt"],
        "tracing": lambda: (
            ml.causal_tracing(
                model, base[:1], metric, subject=[0], samples=2, site="mlp_out", window=2
            ).per_prompt
        ),
        "steering": lambda: ml.steering_sweep(model, base, metric, **steered).effect.per_prompt,
        "circuit": lambda: ml.CircuitRuns(model, *tasks, "resample", metric=metric).measure(
            [Circuit.of([(0, 1), (2, 2)])]
        ),
    }
    return {name: answer(ask) for name, ask in asked.items()}


long_enough = st.tuples(st.integers(2, 4), st.integers(4, 9))


@examples(4)
@given(st.sampled_from([*FAMILIES]), long_enough, seeds)
def test_modes_of_torch_change_no_number(family, size, seed):
    model = kept(family)
    usual = techniques(model, size, seed)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = techniques(model, size, seed)
        for name, each in usual.items():
            again = found[name] if isinstance(found[name], str) else found[name].clone()
            assert not isinstance(each, str), (name, each)
            agree(again, each, what=name, atol=1e-5, rtol=1e-5)


@functools.cache
def of_precision(family, dtype):
    return architectures.bridge(family, dtype=dtype)


@examples(8)
@given(families, runs)
def test_random_edits_in_double_precision(family, drawn):
    check_runs(of_precision(family, torch.float64), *drawn)


@examples(4)
@given(st.sampled_from([*FAMILIES]), st.sampled_from([torch.float16, torch.bfloat16]), long_enough, seeds)
def test_half_precision_is_near_the_numbers_of_the_whole(family, dtype, size, seed):
    """It rounds at every step, so only the size of what is found is held: a wrong formula is farther off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = techniques(of_precision(family, dtype), size, seed)
    for name, each in techniques(kept(family), size, seed).items():
        assert not isinstance(found[name], str), (name, found[name])
        bound = each.float().norm() + 0.1 * each.numel() ** 0.5
        assert (found[name].float() - each.float()).norm() < 0.3 * bound, name
