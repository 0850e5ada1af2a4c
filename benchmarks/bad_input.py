"""What is not there, asked of every technique: positions, heads, neurons, tokens. On a GPU each must be refused before it runs.

An index out of range stops a kernel by an assertion on the device, after which the process can do nothing more.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

import mechlab as ml
from benchmarks.techniques import Asked, Task

Case = tuple[str, Callable[[], Any]]


def cases(asked: Asked) -> Iterator[Case]:
    """Each with its name."""
    for group in (_metrics, _tokens, _places, _parts, _circuits, _runs, _features):
        yield from group(asked).items()


def _metrics(asked: Asked) -> dict[str, Callable[[], Any]]:
    model, base, source, _ = asked.given
    count, vocabulary = base.shape[1], model.cfg.d_vocab
    difference = ml.logit_difference
    given = {
        "pos behind the end": difference(50, 51, pos=count),
        "pos before the start": difference(50, 51, pos=-count - 1),
        "pos of one prompt behind the end": difference(50, 51, pos=torch.tensor([1, 99])),
        "three positions for two prompts": difference(50, 51, pos=torch.tensor([1, 2, 3])),
        "an id beyond the vocabulary": difference(vocabulary, 51),
        "an id below zero": difference(50, -1),
        "an id beyond the vocabulary, log_prob": ml.log_prob([50, vocabulary]),
        "an id beyond the vocabulary, probability": ml.probability(torch.tensor([-7])),
        "three answers for two prompts": ml.log_prob([50, 51, 52]),
        "a shorter reference": ml.kl_divergence(torch.zeros(2, 3, vocabulary)),
        "a reference of another vocabulary": ml.kl_divergence(torch.zeros(2, count, 7)),
    }
    patch = lambda metric: ml.activation_patching(model, base, source, metric, "z")
    found = {f"metric: {name}": lambda m=metric: patch(m) for name, metric in given.items()}
    asks = {
        "attribution_patching": ml.attribution_patching,
        "edge_attribution": ml.edge_attribution,
        "path_patching": ml.path_patching,
        "integrated_gradients": ml.integrated_gradients,
        "shapley_values": ml.shapley_values,
        "gradient_norm": ml.gradient_norm,
    }
    for name, call in asks.items():
        for what in ("pos behind the end", "an id beyond the vocabulary", "an id below zero"):
            found[f"{name}: {what}"] = lambda call=call, m=given[what]: call(model, base, source, m)
    parts = lambda call, m: call(model, base, m, [(0, 1)], "zero")
    for name, call in (("ablation_effects", ml.ablation_effects), ("ablate_together", ml.ablate_together)):
        found[f"{name}: pos"] = lambda call=call: parts(call, given["pos behind the end"])
        found[f"{name}: id"] = lambda call=call: parts(call, given["an id beyond the vocabulary"])
    for engine in ("fast", "plain"):
        for name, metric in given.items():
            found[f"run ({engine}): {name}"] = lambda e=engine, m=metric: ml.run_of(
                model, base, engine=e
            ).value(m)
    return found


def _tokens(asked: Asked) -> dict[str, Callable[[], Any]]:
    """Tokens that the model does not have, and more of them than it reads."""
    model, base, source, metric = asked.given
    found: dict[str, Callable[[], Any]] = {}
    texts, hook = asked.texts, "blocks.1.hook_resid_post"
    wrongs = {
        "beyond the vocabulary": lambda x: x.masked_fill(torch.arange(x.shape[1]) == 2, model.cfg.d_vocab),
        "below zero": lambda x: x.masked_fill(torch.arange(x.shape[1]) == 2, -1),
        "more than the context": lambda x: x.repeat(1, 1 + model.cfg.n_ctx // x.shape[1]),
    }
    for what, wrong in wrongs.items():
        bad, worse, read = wrong(base), wrong(source), wrong(texts)
        on = read.to(model.cfg.device)
        calls = {
            "activation_patching": lambda b=bad, s=source: ml.activation_patching(model, b, s, metric),
            "activation_patching, source": lambda s=worse: ml.activation_patching(model, base, s, metric),
            "path_patching": lambda b=bad: ml.path_patching(model, b, source, metric),
            "causal_tracing": lambda b=bad: ml.causal_tracing(model, b[:1], metric, subject=[1]),
            "direct_logit_attribution": lambda b=bad: ml.direct_logit_attribution(model, b, 50, 51),
            "occlusion": lambda b=bad: ml.occlusion(model, b, source, metric),
            "occlusion, source": lambda s=worse: ml.occlusion(model, base, s, metric),
            "attention_rollout": lambda b=bad: ml.attention_rollout(model, b),
            "value_neuron_scores": lambda b=bad: ml.value_neuron_scores(model, b, 50),
            "ablation_effects": lambda b=bad: ml.ablation_effects(model, b, metric, [(0, 1)], "zero"),
            "ablation_effects, source": lambda s=read: ml.ablation_effects(
                model, base, metric, [(0, 1)], source=s
            ),
            "logit_lens": lambda b=bad: ml.logit_lens(model, b, 50),
            "lens_quality": lambda b=bad: ml.lens_quality(model, b, skip=1),
            "residual_streams": lambda b=bad: ml.residual_streams(model, b),
            "head_scores": lambda b=bad: ml.head_scores(model, b, "sink"),
            "in_context_learning_score": lambda b=bad: ml.in_context_learning_score(
                model, b, early=1, late=3
            ),
            "AffineLens.fit": lambda t=on: ml.AffineLens.fit(model, t, skip=1),
            "token_activations": lambda t=on: ml.token_activations(model, t, hook),
            "feature_activity": lambda t=on: ml.feature_activity(model, _sae(asked), t),
            "splice": lambda t=on: ml.splice(model, _sae(asked), t),
            "key_covariance": lambda t=on: ml.key_covariance(model, t, layer=0),
            "run": lambda b=bad: ml.run_of(model, b).value(metric),
        }
        found |= {f"tokens {what}: {name}": call for name, call in calls.items()}
    vocabulary = model.cfg.d_vocab
    for name, call in (("copying_scores", ml.copying_scores), ("matching_scores", ml.matching_scores)):
        for wrong in (vocabulary, -1):
            found[f"{name}: token {wrong}"] = lambda call=call, n=wrong: call(model, torch.tensor([3, n]))
    if model.cfg.gated_mlp:  # it is written out for models like Llama
        beyond = torch.tensor([1, vocabulary]).to(model.cfg.device)
        found["forward: tokens"] = lambda: ml.forward.forward(model, beyond)
    return found


def _places(asked: Asked) -> dict[str, Callable[[], Any]]:
    model, base, _, metric = asked.given
    count, right = base.shape[1], asked.right
    patch = lambda **given: ml.activation_patching(*asked.given, **given)
    found: dict[str, Callable[[], Any]] = {
        "positions of a mapping": lambda: patch(positions={"there": torch.tensor([1, 99])}),
        "positions of a mapping, too many": lambda: patch(positions={"there": [1, 2, 3]}),
        "keep": lambda: ml.baseline_tokens(model, base, "mean", keep=[99]),
    }
    for wrong in (count, -count - 1, 10**6):
        calls = {
            "activation_patching": lambda p=wrong: patch(positions=[1, p]),
            "attribution_patching": lambda p=wrong: ml.attribution_patching(*asked.given, positions=[p]),
            "path_patching, at": lambda p=wrong: ml.path_patching(*asked.given, [(1, 0)], "k", at=[p, 1]),
            "causal_tracing, subject": lambda p=wrong: ml.causal_tracing(
                model, base[:1], metric, subject=[p]
            ),
            "causal_tracing, positions": lambda p=wrong: ml.causal_tracing(
                model, base[:1], ml.log_prob(50), subject=[1], positions=[p]
            ),
            "direct_logit_attribution": lambda p=wrong: ml.direct_logit_attribution(
                model, base, right, pos=p
            ),
            "attention_rollout": lambda p=wrong: ml.attention_rollout(model, base, pos=p),
            "value_neuron_scores": lambda p=wrong: ml.value_neuron_scores(model, base, right, pos=p),
            "query_neuron_scores": lambda p=wrong: ml.query_neuron_scores(
                model, base, [(1, 1)], [1.0], pos=p
            ),
            "ablate_neurons": lambda p=wrong: ml.ablate_neurons(model, base, metric, [(1, 1)], pos=p),
            "ablation_effects": lambda p=wrong: ml.ablation_effects(
                model, base, metric, [(0, 1)], "zero", positions=[p]
            ),
            "direction_hooks": lambda p=wrong: ml.direction_hooks(
                model, torch.ones(model.cfg.d_model), [0], positions=[p], base=base
            ),
            "logit_lens": lambda p=wrong: ml.logit_lens(model, base, right, pos=p),
            "residual_streams": lambda p=wrong: ml.residual_streams(model, base, pos=p),
            "replace_head": lambda p=wrong: _replaced(asked, (0, 1), [p]),
            "in_context_learning_score": lambda p=wrong: ml.in_context_learning_score(
                model, base, early=1, late=p
            ),
        }
        found |= {f"position {wrong}: {name}": call for name, call in calls.items()}
    return found


def _replaced(asked: Asked, head: tuple[int, int], positions: list[int]) -> None:
    model, base = asked.model, asked.base.to(asked.model.cfg.device)
    with torch.no_grad():
        _, cache = model.run_with_cache(base)
        with ml.intervene(model, ml.replace_head(model, head, cache, positions=positions)):
            model(base)


def _parts(asked: Asked) -> dict[str, Callable[[], Any]]:
    """Layers, heads, neurons and answers."""
    model, base, _, metric = asked.given
    found: dict[str, Callable[[], Any]] = {}
    for head in ((0, 99), (99, 0), (-1, 0), (0, -1)):
        calls = {
            "path_patching, receivers": lambda h=head: ml.path_patching(*asked.given, [h]),
            "path_patching, senders": lambda h=head: ml.path_patching(*asked.given, senders=[[h]]),
            "ablation_effects": lambda h=head: ml.ablation_effects(model, base, metric, [h], "zero"),
            "ablation_effects, kv_head": lambda h=head: ml.ablation_effects(
                model, base, metric, [h], "zero", unit="kv_head"
            ),
            "ablation_effects, neuron": lambda h=(head[0], head[1] * 50): ml.ablation_effects(
                model, base, metric, [h if h != (99, 0) else (99, 1)], "zero", unit="neuron"
            ),
            "ablate_neurons": lambda h=(head[0], head[1] * 50): ml.ablate_neurons(model, base, metric, [h]),
            "value_tokens": lambda h=(head[0], head[1] * 50): ml.value_tokens(model, h),
            "query_neuron_scores": lambda h=(head[0], head[1] * 50): ml.query_neuron_scores(
                model, base, [h], [1.0]
            ),
            "matching_scores, through": lambda h=head: ml.matching_scores(
                model, torch.arange(20, 30), through=h
            ),
            "replace_head": lambda h=head: _replaced(asked, h, [1]),
        }
        found |= {f"head or neuron {head}: {name}": call for name, call in calls.items()}
    for layer in (99, -1):
        calls = {
            "activation_patching": lambda n=layer: ml.activation_patching(*asked.given, layers=[n]),
            "causal_tracing": lambda n=layer: ml.causal_tracing(
                model, base[:1], metric, subject=[1], layers=[n]
            ),
            "value_neuron_scores": lambda n=layer: ml.value_neuron_scores(model, base, 50, layers=[n]),
            "ablation_effects, mlp": lambda n=layer: ml.ablation_effects(
                model, base, metric, [n], "zero", unit="mlp"
            ),
            "lens_quality": lambda n=layer: ml.lens_quality(model, base, skip=1, layers=[n]),
            "key_covariance": lambda n=layer: ml.key_covariance(model, asked.texts, layer=n),
            "direction_hooks": lambda n=layer: ml.direction_hooks(model, torch.ones(model.cfg.d_model), [n]),
            "hook_map": lambda n=layer: ml.hook_map(model, n),
        }
        found |= {f"layer {layer}: {name}": call for name, call in calls.items()}
    for ids in (model.cfg.d_vocab, -1, [50, 10**6], [1, 2, 3]):
        calls = {
            "direct_logit_attribution": lambda i=ids: ml.direct_logit_attribution(model, base, i),
            "direct_logit_attribution, wrong": lambda i=ids: ml.direct_logit_attribution(model, base, 50, i),
            "value_neuron_scores": lambda i=ids: ml.value_neuron_scores(model, base, i),
            "logit_lens": lambda i=ids: ml.logit_lens(model, base, i),
        }
        found |= {f"answers {ids}: {name}": call for name, call in calls.items()}
    return found


def _circuits(asked: Asked) -> dict[str, Callable[[], Any]]:
    def runs(how: str = "mean", **changed: Any) -> ml.CircuitRuns:
        task, other = Task(asked, asked.base), Task(asked, asked.source)
        given = vars(task) | changed
        return ml.CircuitRuns(asked.model, SimpleNamespace(**given), other, how)

    wrong = {"end": torch.tensor([8, 8, 8, 99]), "middle": torch.full((4,), 2)}
    measured = lambda circuit, **given: runs(**given).measure([circuit])
    tokens = Task(asked, asked.base).tokens.index_fill(1, torch.tensor([3]), asked.model.cfg.d_vocab)
    middle = ml.Circuit({"one": [(0, 1)]}, {"one": ["middle"]})
    return {
        "a circuit with a head too many": lambda: measured(ml.Circuit.of([(0, 99)])),
        "a circuit with a layer too many": lambda: measured(ml.Circuit.of([(99, 0)])),
        "a circuit with a layer below zero": lambda: measured(ml.Circuit.of([(-1, 0)])),
        "a circuit at a place without a name": lambda: measured(ml.Circuit({"a": [(0, 1)]}, {"a": ["?"]})),
        "prompts that end behind their end": lambda: measured(None, positions=wrong),
        "prompts with a place behind their end": lambda: measured(
            middle, positions=wrong | {"end": torch.full((4,), 8), "middle": torch.tensor([1, 2, 3, 99])}
        ),
        "prompts with tokens beyond the vocabulary": lambda: measured(None, tokens=tokens),
        "a metric of a token beyond the vocabulary": lambda: measured(None, metric=ml.log_prob(10**6)),
        "an MLP of a layer that is not there": lambda: measured(ml.Circuit.of([(0, 1)], mlps=[99])),
        "prune with a head that is not there": lambda: ml.prune(
            runs(metric=ml.log_prob(50)), 0.1, candidates=[(0, 99)]
        ),
    }


def _runs(asked: Asked) -> dict[str, Callable[[], Any]]:
    """What a person asks of a run directly."""
    model, base, _, metric = asked.given
    shape = (1, *base.shape, model.cfg.n_heads, model.cfg.d_head)
    found: dict[str, Callable[[], Any]] = {}
    for engine in ("fast", "plain"):
        run = lambda e=engine: ml.run_of(model, base, engine=e)
        edited = lambda put, run=run: run().edited(metric, [put])
        calls = {
            "layer": lambda edited=edited: edited(ml.Put("z", 99, torch.zeros(shape))),
            "layer below zero": lambda edited=edited: edited(ml.Put("z", -1, torch.zeros(shape))),
            "site": lambda edited=edited: edited(ml.Put("nothing", 0, torch.zeros(shape))),
            "logits, last": lambda run=run: run().logits([], 99),
            "logits, none": lambda run=run: run().logits([], 0),
            "read, places": lambda run=run: run().read("z", [1], [], torch.tensor([[1], [99]])),
            "read, places below zero": lambda run=run: run().read("q", [1], [], torch.tensor([[1], [-99]])),
            "read, layer": lambda run=run: run().read("z", [99], [], torch.tensor([[1], [2]])),
            "at, layer": lambda run=run: run().at("z", 99),
            "at, layer below zero": lambda run=run: run().at("z", -1),
            "at, site": lambda run=run: run().at("nothing", 0),
        }
        found |= {f"run ({engine}), {name}": call for name, call in calls.items()}
    return found


def _sae(asked: Asked) -> ml.SparseAutoencoder:
    width = asked.model.cfg.d_model
    parts = {"W_enc": torch.eye(width), "W_dec": torch.eye(width)}
    biases = {"b_enc": torch.zeros(width), "b_dec": torch.zeros(width)}
    sae = ml.SparseAutoencoder(**parts, **biases, k=4, hook="blocks.1.hook_resid_post")
    return sae.to(asked.model.cfg.device)


def _features(asked: Asked) -> dict[str, Callable[[], Any]]:
    model, texts = asked.model, asked.texts.to(asked.model.cfg.device)

    def page(feature: int) -> Any:
        sae = _sae(asked)
        return ml.feature_page(model, sae, ml.feature_activity(model, sae, texts), feature)

    vectors = ml.SteeringVectors(torch.ones(3, model.cfg.d_model), torch.ones(3), torch.ones(3))
    fact = ml.Fact("{} is in", "Paris", " Mary")
    covariance = torch.eye(48 if model.cfg.gated_mlp else 128)
    given = {"vectors": vectors, "strengths": [1], "text": asked.texts}
    swept = lambda layer: ml.steering_sweep(model, asked.base, asked.metric, layers=[layer], **given)
    return {
        "feature_hooks, feature": lambda: ml.feature_hooks(model, _sae(asked), 999, value=1.0),
        "feature_hooks, feature below zero": lambda: ml.feature_hooks(model, _sae(asked), -1, value=1.0),
        "feature_page, feature": lambda: page(999),
        "steering_sweep, layer": lambda: swept(3),
        "steering_sweep, layer below zero": lambda: swept(-1),
        "edit_fact, layer": lambda: ml.edit_fact(model, fact, 99, covariance),
        "edit_fact, covariance": lambda: ml.edit_fact(model, fact, 0, torch.eye(3)),
    }
