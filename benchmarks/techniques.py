"""Every technique of the library as one call that gives numbers, so that devices, engines and precisions can be compared."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import mechlab as ml
from mechlab.runs import engines
from mechlab.runs.run import SITES, NotResumable

POSITIVE = ["The store is open", "John gave a drink to Mary", "Anna went to Paris", "The capital is here"]
NEGATIVE = ["When is the drink", "to the of and is", "went gave store and", "a drink of the store"]


@dataclass
class Asked:
    """A model, and what is asked of it; tokens lie on the CPU, as a person brings them.

    layers: which layers the slow techniques look at;  texts: what dictionaries and lenses read
    """

    model: Any
    base: Tensor
    source: Tensor
    right: list[int]
    wrong: list[int]
    layers: list[int]
    texts: Tensor
    metric: Any = field(init=False)

    def __post_init__(self):
        self.metric = ml.logit_difference(self.right, self.wrong)

    @property
    def given(self) -> tuple[Any, ...]:
        return self.model, self.base, self.source, self.metric

    @property
    def last(self) -> int:
        return self.base.shape[1] - 1


@dataclass(frozen=True)
class Technique:
    """What is called, and how far two devices may be apart, as a share of the largest number.

    runs: whether it goes by the engines, so that the fast and the plain one are compared too
    """

    call: Callable[[Asked], Any]
    limit: float
    runs: bool


TECHNIQUES: dict[str, Technique] = {}


def technique(name: str, *, limit: float = 1e-3, runs: bool = False, **given: Any):
    def kept(call: Callable) -> Callable:
        TECHNIQUES[name] = Technique(functools.partial(call, **given), limit, runs)
        return call

    return kept


def numbers(found: Any) -> Tensor:
    """All numbers of a result in one row, in float64 on the CPU; of scores those of each prompt."""
    return torch.cat([torch.zeros(0, dtype=torch.float64), *_parts(found)])


def _parts(found: Any) -> Iterator[Tensor]:
    if isinstance(found, ml.Scores):
        found = found.values if found.per_prompt is None else found.per_prompt
    if isinstance(found, Tensor | float | int | bool) or type(found).__module__ == "numpy":
        yield torch.as_tensor(found).detach().cpu().double().flatten()
    elif hasattr(found, "select_dtypes"):  # a table
        yield torch.as_tensor(found.select_dtypes("number").to_numpy()).double().flatten().nan_to_num()
    elif dataclasses.is_dataclass(found):
        yield from _parts([getattr(found, each.name) for each in dataclasses.fields(found)])
    elif isinstance(found, dict):
        yield from _parts([*found.values()])
    elif isinstance(found, list | tuple):
        for each in found:
            yield from _parts(each)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest number; infinite for results of another size or NaN."""
    if found.shape != wanted.shape or not (torch.isfinite(found).all() and torch.isfinite(wanted).all()):
        return float("inf")
    if not found.numel():
        return 0.0
    return ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3)).item()


@contextmanager
def plain_engine() -> Iterator[None]:
    """Runs are made by the plain engine inside, as for a model that the fast one does not know."""
    fast = engines.Fast

    class Refused(fast):
        def __init__(self, *_, **__):
            raise NotResumable("The plain engine was asked for.")

    engines.Fast = Refused
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        engines.Fast = fast


# --- what goes by the engines ---


def _patching(asked: Asked, site: str, **given: Any) -> Any:
    return ml.activation_patching(*asked.given, site, layers=asked.layers, normalized=False, **given)


for _site in SITES:
    technique(f"activation_patching({_site})", runs=True, site=_site)(_patching)


@technique("activation_patching(z, by position and head)", runs=True)
def at_two_places(asked: Asked) -> Any:
    places = [1, asked.last]
    return _patching(asked, "z", by=("pos", "head"), positions=places)


def _path(asked: Asked, into: str | None, **given: Any) -> Any:
    receivers = None if into is None else [(asked.layers[1], 0), (asked.layers[1], 2)]
    depth = asked.model.cfg.n_layers if receivers is None else asked.layers[1]
    senders = [[(layer, 1)] for layer in range(depth)] + [[(0, 0), (0, 2)]]
    given = {"senders": senders, "normalized": False, **given}
    return ml.path_patching(*asked.given, receivers, *([] if into is None else [into]), **given)


for _into in (None, "q", "k", "v"):
    technique(f"path_patching({_into or 'logits'})", runs=True, into=_into)(_path)
technique("path_patching(logits, MLPs held)", runs=True, into=None, frozen_mlps=True)(_path)
technique("path_patching(q, at the end)", runs=True, into="q", at=[-1, -1])(
    lambda asked, at, **given: _path(asked, at=torch.tensor([asked.last] * len(asked.base)), **given)
)


@technique("attribution_patching", runs=True)
def estimated(asked: Asked) -> Any:
    return [ml.attribution_patching(*asked.given, steps=n) for n in (1, 2)]


technique("edge_attribution", runs=True)(lambda asked: ml.edge_attribution(*asked.given))


def _tracing(asked: Asked, **given: Any) -> Any:
    given = {"samples": 2, "layers": asked.layers, "positions": [asked.last], **given}
    metric = ml.log_prob(asked.right[0])
    return ml.causal_tracing(asked.model, asked.base[:1], metric, subject=[1, 2], **given)


for _site, _window in (("resid_pre", 1), ("attn_out", 1), ("mlp_out", 2)):
    technique(f"causal_tracing({_site})", runs=True, site=_site, window=_window)(_tracing)


@technique("steering_sweep", runs=True)
def steered(asked: Asked) -> Any:
    vectors = ml.contrast_vectors(asked.model, POSITIVE, NEGATIVE)
    given = {"layers": asked.layers[1:], "strengths": [-0.5, 1], "text": asked.texts[:2]}
    sweep = functools.partial(ml.steering_sweep, asked.model, asked.base, asked.metric, **given)
    return [sweep(vectors=each) for each in (vectors, vectors.random())]


class Task:
    """Prompts of two templates, twice each, with positions that have names."""

    def __init__(self, asked: Asked, tokens: Tensor, metric: Any = None):
        self.tokens = torch.cat([tokens, tokens.flip(1)])[:4]
        self.tokens[:, 0] = tokens[0, 0]
        count = len(self.tokens)
        self.metric = metric or ml.logit_difference(asked.right[0], asked.wrong[0])
        self.templates = tuple("ab"[n % 2] for n in range(count))
        self.positions = {"end": torch.full((count,), asked.last), "middle": torch.full((count,), 2)}
        self.pairs = torch.arange(count) // 2


def _circuit(asked: Asked, **given: Any) -> ml.Circuit:
    first, second = asked.layers[:2]
    return ml.Circuit({"one": [(first, 0), (first, 1)], "two": [(second, 2)]}, {"two": ["end"]}, **given)


@technique("CircuitRuns", runs=True)
def knocked_out(asked: Asked) -> Any:
    found = []
    for how in ("mean", "resample", "zero"):
        runs = ml.CircuitRuns(asked.model, Task(asked, asked.base), Task(asked, asked.source), how)
        circuits = [None, ml.Circuit({}), _circuit(asked), _circuit(asked, mlps=asked.layers[:1])]
        found += [runs.measure(circuits), runs.removing([_circuit(asked)]), runs.intact]
    return found


@technique("criteria of circuits", limit=1e-2, runs=True)
def proven(asked: Asked) -> Any:
    metric = ml.log_prob(asked.right[0])  # far from zero in every model
    runs = ml.CircuitRuns(asked.model, Task(asked, asked.base, metric), Task(asked, asked.source))
    circuit, heads = _circuit(asked), [(asked.layers[0], 0), (asked.layers[1], 2)]
    table = ml.completeness(runs, circuit, {"one": heads[:1], "two": heads})
    found = [ml.faithfulness(runs, [circuit])[0], table, ml.minimality(runs, circuit)]
    return [*found, ml.greedy_gap(runs, circuit, candidates=2, steps=1)[1]]


@technique("direct_contributions", runs=True)
def said_directly(asked: Asked) -> Any:
    runs = ml.CircuitRuns(asked.model, Task(asked, asked.base), Task(asked, asked.source))
    return [ml.direct_contributions(runs), ml.direct_contributions(runs, _circuit(asked))]


@technique("explorer of a circuit", runs=True)
def clicked(asked: Asked) -> Any:
    from mechlab.pictures.graph.trials import Trials

    circuit = _circuit(asked)
    runs = ml.CircuitRuns(asked.model, Task(asked, asked.base), Task(asked, asked.source))
    trials = Trials(runs, circuit)
    own = [trials.direct(head) if trials.reads is not None else () for head in circuit.heads]
    heads = circuit.heads[:1]
    return [
        trials.without(heads),
        own,
        [trials.pattern(head) for head in heads],
        trials.looks((*circuit.heads[-1],)),
    ]


@technique("prune", limit=1e-2, runs=True)
def pruned(asked: Asked) -> Any:
    metric = ml.log_prob(asked.right[0])
    runs = ml.CircuitRuns(asked.model, Task(asked, asked.base, metric), Task(asked, asked.source))
    heads = [(asked.layers[0], 0), (asked.layers[1], 1), (asked.layers[1], 2)]
    left = ml.prune(runs, 0.05, candidates={head: ["end", "middle"] for head in heads})
    return runs.measure([left])


@technique("values of ROME", limit=1e-2, runs=True)
def written_value(asked: Asked) -> Any:
    from mechlab.intervention.rome import fact_value

    fact = ml.Fact("The store of {} went to the", "Paris", " Mary")
    layer, prefixes = asked.layers[0], asked.texts[:1, :4]
    covariance = ml.key_covariance(asked.model, asked.texts.to(asked.model.cfg.device), layer=layer)
    found = [covariance, fact_value(asked.model, fact, layer, prefixes, steps=2)]
    with ml.edit_fact(asked.model, fact, layer, covariance, prefixes=prefixes, steps=2):
        found.append(asked.model(asked.base.to(asked.model.cfg.device))[:, -1])
        found += [*ml.edit_scores(asked.model, fact, " John", ["{} is"], {"John is": " John"}).values()][:1]
    return found


@technique("metrics", runs=True)
def metrics(asked: Asked) -> Any:
    """Each of them, with references and positions that lie on the CPU."""
    model, base, source = asked.model, asked.base, asked.source
    with torch.no_grad():
        reference = model(source.to(model.cfg.device)).cpu()
    ends = torch.tensor([asked.last - n % 2 for n in range(len(base))])
    right, wrong = torch.tensor(asked.right), torch.tensor(asked.wrong)
    own = lambda logits: logits[:, -1].float().logsumexp(-1)
    found = [ml.logit_difference(right, wrong, pos=ends), ml.log_prob(right), ml.probability(right, pos=ends)]
    found += [ml.kl_divergence(reference), ml.kl_divergence(reference, pos=ends), own]
    given = {"layers": asked.layers[:1], "normalized": False}
    return [ml.activation_patching(model, base, source, each, "mlp_out", **given) for each in found]


# --- attribution ---


def _direct(asked: Asked, unit: str) -> Any:
    return ml.direct_logit_attribution(asked.model, asked.base, asked.right, asked.wrong, unit=unit)


for _unit in ("layer", "component", "head", "neuron"):
    technique(f"direct_logit_attribution({_unit})", unit=_unit)(_direct)


def _inputs(asked: Asked, method: Callable, **given: Any) -> Any:
    return method(asked.model, asked.base, asked.source, asked.metric, **given)


for _name in ("gradient_norm", "gradient_x_difference", "occlusion", "shapley_values"):
    technique(_name, method=getattr(ml, _name))(_inputs)
technique("gradient_x_input", method=ml.INPUT_METHODS["gradient × input"])(_inputs)
technique("integrated_gradients", method=ml.integrated_gradients, steps=16)(_inputs)
technique("lime", limit=0.02, method=ml.lime, samples=32)(_inputs)
technique("kernel_shap", limit=0.02, method=ml.kernel_shap, samples=32)(_inputs)
technique("attention_rollout")(lambda asked: ml.attention_rollout(asked.model, asked.base))


@technique("baseline_tokens")
def baselines(asked: Asked) -> Any:
    found = [ml.baseline_tokens(asked.model, asked.base, by) for by in ("mean", "zero")]
    return [*found, ml.occlusion(asked.model, asked.base, found[0], asked.metric)]


@technique("deletion_curves")
def curves(asked: Asked) -> Any:
    scores = {"occlusion": ml.occlusion(*asked.given)}
    return [ml.deletion_curves(*asked.given, scores, orders=2, insertion=way) for way in (False, True)]


@technique("neurons", limit=1e-2)
def neurons(asked: Asked) -> Any:
    model, base, layers = asked.model, asked.base, asked.layers[1:]
    chosen = [(layer, n) for layer in layers for n in (3, 7)]
    zero = [(f"blocks.{layers[0]}.attn.hook_z", lambda z, hook: torch.zeros_like(z))]
    row = "gate" if model.cfg.gated_mlp else "in"
    return [
        ml.value_neuron_scores(model, base, asked.right, layers=layers),
        ml.query_neuron_scores(model, base, chosen[:1], [1.0], row=row),
        ml.comparative_neuron_scores(model, base, asked.right, zero, layers=layers[:1]),
        ml.ablate_neurons(model, base, asked.metric, chosen, draws=2).after,
        ml.value_tokens(model, chosen[0])["raised by"].tolist(),
    ]


# --- discovery ---


def _ablation(asked: Asked, unit: str) -> Any:
    whole = unit in ("attention", "mlp")
    parts = asked.layers[:2] if whole else [(layer, 1) for layer in asked.layers[:2]]
    given = {"unit": unit, "source": asked.texts[:, : asked.base.shape[1]]}
    call = functools.partial(ml.ablation_effects, asked.model, asked.base, asked.metric, parts)
    together = ml.ablate_together(asked.model, asked.base, asked.metric, parts[:1], draws=1, **given)
    return [*(call(how, **given) for how in ("zero", "mean", "resample", "noise")), together.after]


for _unit in ("head", "kv_head", "attention", "mlp", "neuron"):
    technique(f"ablation({_unit})", unit=_unit)(_ablation)


@technique("directions")
def without_a_direction(asked: Asked) -> Any:
    """By hooks, and for good."""
    model, base = asked.model, asked.base.to(asked.model.cfg.device)
    away = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(2))
    hooks = ml.direction_hooks(model, away, asked.layers[:2], reference=asked.texts)
    with ml.intervene(model, hooks), torch.no_grad():
        found = [model(base)[:, -1]]
    with ml.intervene(model, ml.write_hooks(model, away)), torch.no_grad():
        found.append(model(base)[:, -1])
    with ml.orthogonalize(model, away, level=0.1), torch.no_grad():
        found.append(model(base)[:, -1])
    return found


def _heads(asked: Asked, kind: str) -> Any:
    return ml.head_scores(asked.model, ml.repeated_tokens(asked.model, length=6, batch=2), kind)


for _kind in ("previous token", "duplicate token", "induction", "sink"):
    technique(f"head_scores({_kind})", kind=_kind)(_heads)
# shares of tokens: one that is on the edge may fall on either side
technique("copying_scores", limit=0.1)(
    lambda asked: [
        ml.copying_scores(asked.model, torch.arange(20, 120), k=40, against=way) for way in (False, True)
    ]
)
technique("matching_scores", limit=0.1)(
    lambda asked: [
        ml.matching_scores(asked.model, torch.arange(20, 120), **given)
        for given in ({}, {"distance": 3}, {"through": (asked.layers[0], 1)})
    ]
)
technique("in_context_learning_score")(
    lambda asked: ml.in_context_learning_score(asked.model, asked.base, early=1, late=4)
)


@technique("logit_lens")
def lenses(asked: Asked) -> Any:
    found = [ml.logit_lens(asked.model, asked.base, asked.right, what="log_prob")]
    table = ml.lens_table(asked.model, asked.base[:1])
    quality = ml.lens_quality(asked.model, asked.texts[:2], skip=2)
    return [*found, table.probability, quality.kl, quality.bias]


technique("logit_lens(rank)", limit=0.1)(
    lambda asked: ml.logit_lens(asked.model, asked.base, asked.right, what="rank")
)


@technique("tuned lens", limit=0.02)
def tuned_lens(asked: Asked) -> Any:
    if asked.model.cfg.d_model > 100:  # more tokens than is wanted here
        return 0.0
    lens = ml.AffineLens.fit(asked.model, asked.texts.to(asked.model.cfg.device), skip=1, ridge=0.1)
    return [lens.bias, ml.logit_lens(asked.model, asked.base, asked.right, what="log_prob", lens=lens)]


@technique("dictionaries", limit=0.02)
def dictionaries(asked: Asked) -> Any:
    model, layer, texts = asked.model, asked.layers[1], asked.texts.to(asked.model.cfg.device)
    seen = ml.token_activations(model, texts, hook := f"blocks.{layer}.hook_resid_post")
    width = model.cfg.d_model
    draw = lambda *size: torch.randn(*size, generator=torch.Generator().manual_seed(3)) / width**0.5
    parts = {"W_enc": draw(width, 64), "W_dec": draw(64, width)}
    biases = {"b_enc": torch.zeros(64), "b_dec": torch.zeros(width)}
    found = [seen]
    for kind in ("topk", "jumprelu"):
        threshold = None if kind == "topk" else torch.full((64,), 0.5)
        given: dict[str, Any] = {"kind": kind, "k": 8, "hook": hook, "threshold": threshold}
        sae = ml.SparseAutoencoder(**parts, **biases, **given).to(model.cfg.device)
        activity = ml.feature_activity(model, sae, texts)
        loudest = int(activity.feature.bincount().argmax())
        found += [activity.density, ml.splice(model, sae, texts), sae.decode(sae.encode(seen))]
        with ml.intervene(model, ml.feature_hooks(model, sae, loudest, value=3.0)), torch.no_grad():
            found.append(model(texts)[:, -1])
        with ml.intervene(model, ml.splice_hooks(model, sae)), torch.no_grad():
            found.append(model(texts)[:, -1])
    trained = ml.train_sae(seen, width=32, k=4, steps=4, batch=16, resample=False, hook=hook)
    return [*found, trained.sae.b_dec]


@technique("feature pages")
def pages(asked: Asked) -> Any:
    model, layer, texts = asked.model, asked.layers[1], asked.texts.to(asked.model.cfg.device)
    seen = ml.token_activations(model, texts, hook := f"blocks.{layer}.hook_resid_post")
    sae = ml.train_sae(seen, width=32, k=4, steps=1, batch=16, resample=False, hook=hook).sae
    activity = ml.feature_activity(model, sae, texts)
    page = ml.feature_page(model, sae, activity, int(activity.feature.bincount().argmax()))
    best = activity.on_word(model, " store")
    return [page.density, [value for _, value in [*page.raises, *page.needed, *best]]]


@technique("training with restarts", limit=1e9)
def trained(asked: Asked) -> Any:
    """Runs through; chance is amplified step by step, so the numbers are no one's."""
    texts, hook = asked.texts.to(asked.model.cfg.device), f"blocks.{asked.layers[0]}.hook_resid_post"
    seen = ml.token_activations(asked.model, texts, hook)
    saes = [ml.train_sae(seen, width=48, k=2, steps=8, batch=16, kind=kind) for kind in ("topk", "standard")]
    probes = ml.contrast_consistent_search(seen[0::2][:8], seen[1::2][:8], restarts=2, steps=5)
    truth = probes[0].truth(seen[0::2][:8], seen[1::2][:8])
    return [truth.float().mean().item() * 0, [sae.sae.d_sae for sae in saes]]


@technique("residual_streams")
def streams(asked: Asked) -> Any:
    return [ml.residual_streams(asked.model, asked.base, pos=pos) for pos in (-1, "mean", 1)]


@technique("hooks and monitors")
def hooks(asked: Asked) -> Any:
    model, base, layer = asked.model, asked.base.to(asked.model.cfg.device), asked.layers[1]
    with torch.no_grad():
        _, cache = model.run_with_cache(asked.source.to(base.device))
        kept = {
            name: cache[name].cpu()
            for name in (f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out")
        }
        one = ml.replace_head(model, (layer, 1), kept, positions=[-1])
        two = ml.replace_with(f"blocks.{layer}.hook_mlp_out", [*kept.values()][1], positions=[1, 2])
        with ml.intervene(model, [*one, *two]):
            found = [model(base)[:, -1]]
        vectors = ml.contrast_vectors(model, POSITIVE, NEGATIVE)
        along = vectors.along(torch.ones(model.cfg.d_model, device=model.cfg.device))
        for each in (vectors, along):
            with ml.intervene(model, each.hooks(layer, 0.5)):
                found.append(model(base)[:, -1])
    monitor = ml.Monitor(vectors.directions[layer], layer, 0.0)
    return [*found, monitor.projections(model, NEGATIVE)]


@technique("probe_layers", limit=0.3)
def probed(asked: Asked) -> Any:
    """Few examples: one that lies at the border may fall on either side."""
    features = ml.residual_streams(asked.model, asked.texts)
    labels = [n % 2 for n in range(len(asked.texts))]
    found = ml.probe_layers(features, labels, probe="mass_mean", folds=2)
    numbers = ml.probe_layers(features, [float(n) for n in range(len(labels))], probe="ridge", folds=2)
    return [found.score, numbers.score]


def random_asked(model: Any, seed: int = 7) -> Asked:
    """Prompts of nine random tokens for a tiny model, and texts that repeat something."""
    chance = torch.Generator().manual_seed(seed)
    base, source = torch.randint(5, 390, (2, 2, 9), generator=chance)
    source[:, :3], source[:, 6:8] = base[:, :3], base[:, 6:8]
    texts = torch.randint(5, 390, (12, 12), generator=chance)
    base[:, 0] = source[:, 0] = texts[:, 0] = 0
    return Asked(model, base, source, [50, 60], [51, 61], [0, 1, 2], texts)


def ioi_asked(model: Any) -> Asked:
    """Two pairs of IOI prompts for a model that can do them; three names differ."""
    prompts = ml.ioi_prompts(model, 4, templates=ml.circuits.ioi.words.ALIGNED[:1])
    other, depth = prompts.corrupted("abc"), model.cfg.n_layers
    layers = [0, depth // 2, depth - 1]
    texts = ml.own_text(model, length=24, count=12).cpu()
    io, s = prompts.io.tolist(), prompts.s.tolist()
    return Asked(model, prompts.tokens.cpu(), other.tokens.cpu(), io, s, layers, texts)


def measured(asked: Asked, name: str) -> Tensor | str:
    """The numbers of a technique, or the sentence with which this model is refused."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return numbers(TECHNIQUES[name].call(asked))
    except (ValueError, ml.HookError) as reason:
        return f"{type(reason).__name__}: {reason}"


def names(runs: bool = False, but: Sequence[str] = ()) -> list[str]:
    """The techniques, or those that go by the engines."""
    return [name for name, each in TECHNIQUES.items() if (each.runs or not runs) and name not in but]
