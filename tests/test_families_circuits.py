"""Each technique of intervention and circuits on each family of models: as by hand with hooks, or refused with a reason.

Nothing here uses the engines to say what is right: the numbers by hand come from runs of the whole model with
hooks of TransformerLens, or from its gradients.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import mechlab as ml
from mechlab.runs.engines import run_of
from mechlab.runs.fast import Fast
from mechlab.runs.run import SITES
from tests.architectures import FAMILIES, LLAMA, SIZE, bridge
from tests.test_families_discovery import OTHERS, far

CHANCE = torch.Generator().manual_seed(7)
BASE, SOURCE = torch.randint(5, 390, (2, 2, 9), generator=CHANCE)
SOURCE[:, :2] = BASE[:, :2]
METRIC = ml.logit_difference([50, 60], [51, 61])
LAYER, HEAD = 1, 2
WITHIN = 3e-4
PLAIN_ONLY = ("Mixtral",)
CHECKS: dict[str, Callable] = {}


def technique(name: str):
    return lambda check: CHECKS.setdefault(name, check)


def outcomes(model) -> dict[str, tuple[str, float | str]]:
    """For each technique "exact" or "plain" with the largest difference found, or "refused" with the sentence."""
    engine = "exact" if isinstance(run_of(model, BASE), Fast) else "plain"
    found: dict[str, tuple[str, float | str]] = {}
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                found[name] = engine, float(check(model))
        except (ValueError, ml.HookError) as error:
            found[name] = "refused", str(error)
    return found


# --- by hand ---


def seen(model, tokens=BASE):
    return model.run_with_cache(tokens)[1]


def hook(layer: int, site: str, model=None) -> str:
    """OLMo 2 has one norm over the queries of all heads: behind it they are told apart."""
    if site in "qk" and model is not None and model.cfg.model_name == "OLMo2":
        return f"blocks.{layer}.attn.{site}_norm.hook_out"
    return f"blocks.{layer}.{SITES[site]}"


def put(model, written: dict[str, Callable[[Tensor], Tensor]], tokens=BASE) -> Tensor:
    """Logits of a whole run in which hooks make something else of what they see."""
    hooks = [(name, lambda x, hook, change=change: change(x)) for name, change in written.items()]
    with model.hooks(fwd_hooks=hooks):
        return model(tokens)


def only_head(mine: Tensor, theirs: Tensor, head: int = HEAD) -> Tensor:
    """What one head has is theirs."""
    changed = mine.clone()
    changed[:, :, head] = theirs[:, :, head]
    return changed


def shared(model, x: Tensor) -> Tensor:
    """Keys or values for each query head."""
    return x.repeat_interleave(model.cfg.n_heads // x.shape[2], dim=2)


def change_of(model, logits: Tensor) -> Tensor:
    return METRIC(logits) - METRIC(model(BASE))


# --- patching ---


def patched(model, site):
    found = ml.activation_patching(model, BASE, SOURCE, METRIC, site, by=(), normalized=False).per_prompt
    theirs, ours, by_hand = seen(model, SOURCE), seen(model), []
    for layer in range(model.cfg.n_layers):
        value = theirs[hook(layer, site, model)]
        if site == "pattern":  # by what the heads then gather, which every model takes from its hook
            z = torch.einsum("bhqk,bkhd->bqhd", value, shared(model, ours[hook(layer, "v")]))
            by_hand.append(change_of(model, put(model, {hook(layer, "z"): lambda x, z=z: z})))
        else:
            by_hand.append(
                change_of(model, put(model, {hook(layer, site, model): lambda x, value=value: value}))
            )
    assert found.abs().max() > 1e-3
    return far(found, torch.stack(by_hand, 1))


for each_site in SITES:
    technique(f"activation_patching({each_site})")(partial(patched, site=each_site))


@technique("activation_patching(z, each head and place)")
def heads_at_places(model):
    found = ml.activation_patching(
        model,
        BASE,
        SOURCE,
        METRIC,
        "z",
        by=("pos", "head"),
        layers=[LAYER],
        positions=[4, -1],
        normalized=False,
    ).per_prompt[:, 0]
    theirs, by_hand = seen(model, SOURCE)[hook(LAYER, "z")], torch.zeros_like(found)
    for column, place in enumerate((4, 8)):
        for head in range(model.cfg.n_heads):

            def one(x, place=place, head=head):
                x = x.clone()
                x[:, place, head] = theirs[:, place, head]
                return x

            by_hand[:, column, head] = change_of(model, put(model, {hook(LAYER, "z"): one}))
    return far(found, by_hand)


@technique("interchange(resid_pre, three dimensions)")
def interchanged(model):
    Q = torch.linalg.qr(torch.randn(model.cfg.d_model, 3, generator=torch.Generator().manual_seed(5)))[0]
    found = ml.interchange(model, BASE, SOURCE, METRIC, layer=LAYER, Q=Q)
    theirs = seen(model, SOURCE)[hook(LAYER, "resid_pre")][:, -1]

    def exchange(x):
        x, part = x.clone(), Q.to(x) @ Q.T.to(x)
        x[:, -1] = x[:, -1] + (theirs - x[:, -1]) @ part
        return x

    return far(found, METRIC(put(model, {hook(LAYER, "resid_pre"): exchange})))


@technique("align(one step)")
def aligned(model):
    """The step's loss, with the subspace it starts from, against a run with a hook."""
    fit = ml.align(model, BASE, SOURCE, METRIC, torch.tensor([True, False]), layer=LAYER, k=2, steps=1)
    start = torch.randn(model.cfg.d_model, 2, generator=torch.Generator().manual_seed(0))
    Q = torch.linalg.qr(torch.linalg.qr(start)[0])[0]
    values = ml.interchange(model, BASE, SOURCE, METRIC, layer=LAYER, Q=Q)
    loss = torch.nn.functional.softplus(torch.tensor([1.0, -1.0]) * values).mean()
    return far(torch.tensor(fit.history), loss[None])


# --- two prompts, every change written out ---


@technique("Contrast")
def contrast(model):
    """Flow, and a neuron's own row, against whole runs; how it is followed is in tests/test_contrast.py."""
    flow = ml.Contrast(model, BASE, SOURCE, METRIC).flow().per_prompt.sum(1)
    row = ml.Contrast(model, BASE[:1], SOURCE[:1], ml.logit_difference(50, 51)).direct([(LAYER, 6, 3)])
    found = torch.stack([flow[0], flow[1], row.change[0] - row.gap[0]])
    ours, theirs = (
        seen(model, tokens)[f"blocks.{LAYER}.mlp.hook_post"][0, 6, 3] for tokens in (BASE, SOURCE)
    )
    change = METRIC(model(BASE)) - METRIC(model(SOURCE))
    return far(found, torch.stack([change[0], change[1], ours - theirs]))


@technique("FrozenRun")
def frozen_run(model):
    """What it is made of, and a neuron's own row, against a whole run; more is in tests/test_frozen.py."""
    flow = ml.FrozenRun(model, BASE, METRIC).flow().per_prompt.sum(1)
    row = ml.FrozenRun(model, BASE[:1], ml.logit_difference(50, 51)).direct([(LAYER, 6, 3)])
    found = torch.stack([flow[0], flow[1], row.change[0] - row.gap[0]])
    ours, value = seen(model, BASE)[f"blocks.{LAYER}.mlp.hook_post"][0, 6, 3], METRIC(model(BASE))
    return far(found, torch.stack([value[0], value[1], ours]))


@technique("kept_and_away")
def kept_and_away(model):
    followed = ml.Contrast(model, BASE, SOURCE, METRIC)
    totals, theirs = followed.totals(), seen(model, SOURCE)
    found = ml.kept_and_away(followed, totals, [30]).per_prompt[:, :, 0]
    rank = (
        totals.per_prompt.flatten(1)
        .abs()
        .argsort(1, descending=True)
        .argsort(1)
        .view(totals.per_prompt.shape)
    )
    ends, by_hand = METRIC(model(SOURCE)), []
    for mine in (rank < 30, rank >= 30):
        swap = lambda layer, mine=mine: (
            lambda x: torch.where(mine[:, layer], x, theirs[f"blocks.{layer}.mlp.hook_post"])
        )
        written = {f"blocks.{layer}.mlp.hook_post": swap(layer) for layer in range(model.cfg.n_layers)}
        by_hand.append((METRIC(put(model, written)) - ends) / followed.change)
    return far(found, torch.stack(by_hand, 1))


@technique("group_hooks")
def group_hooks(model):
    """Two neurons at their places, half of the way from what they have on source."""
    group, theirs = (
        [(LAYER, 4, 3), (LAYER, 8, 7)],
        ml.group_values(model, SOURCE, [(LAYER, 4, 3), (LAYER, 8, 7)]),
    )
    with ml.intervene(model, ml.group_hooks(model, group, around=theirs, times=0.5)):
        found = METRIC(model(BASE))

    other = seen(model, SOURCE)[f"blocks.{LAYER}.mlp.hook_post"]

    def half(x):
        x = x.clone()
        for _, pos, neuron in group:
            x[:, pos, neuron] = (x[:, pos, neuron] + other[:, pos, neuron]) / 2
        return x

    return far(found, METRIC(put(model, {f"blocks.{LAYER}.mlp.hook_post": half})))


# --- paths ---


def frozen(model, sender) -> dict[str, Callable]:
    """All heads below the receivers held at base, but for one that sends what it had on source."""
    ours, theirs = seen(model), seen(model, SOURCE)
    held = {
        name: (lambda x, z=ours[name]: z)
        for name in (hook(layer, "z") for layer in range(model.cfg.n_layers))
    }
    name = hook(sender[0], "z")
    held[name] = lambda x: only_head(ours[name], theirs[name], sender[1])
    return held


@technique("path_patching(to the logits)")
def to_the_logits(model):
    found = ml.path_patching(model, BASE, SOURCE, METRIC, normalized=False).per_prompt
    cells = [(0, 1), (1, 3), (2, 0)]
    by_hand = torch.stack([change_of(model, put(model, frozen(model, cell))) for cell in cells], 1)
    return far(torch.stack([found[:, layer, head] for layer, head in cells], 1), by_hand)


def into(model, letter):
    """The receiver's queries, keys or values as they were in the frozen run; for it alone, by its z."""
    receiver, sender = (2, HEAD), (0, 1)
    found = ml.path_patching(model, BASE, SOURCE, METRIC, [receiver], letter, normalized=False).per_prompt
    name, read = hook(2, letter, model), {}
    held = {key: change for key, change in frozen(model, sender).items() if not key.startswith("blocks.2.")}
    put(model, held | {name: lambda x: read.setdefault("x", x)})
    by_head = lambda x: x if x.ndim == 4 else x.unflatten(-1, (-1, model.cfg.d_head))
    group = HEAD if letter == "q" else HEAD // (model.cfg.n_heads // by_head(read["x"]).shape[2])
    kept_z = {}
    changed = {name: lambda x: only_head(by_head(x), by_head(read["x"]), group).reshape(x.shape)}
    put(model, changed | {hook(2, "z"): lambda x: kept_z.setdefault("z", x)})
    by_hand = change_of(model, put(model, {hook(2, "z"): lambda x: only_head(x, kept_z["z"])}))
    return far(found[:, 0, 1], by_hand)


for each_letter in "qkv":
    technique(f"path_patching(into {each_letter})")(partial(into, letter=each_letter))


# --- gradients ---


def slopes(model, tokens, names):
    """The gradient of the metric for what hooks see, by autograd through the whole model."""
    found = {}

    def look(x, hook, name):
        found[name] = x if x.requires_grad else x.requires_grad_()
        return found[name]

    start = ("blocks.0.hook_resid_pre", lambda x, hook: x.detach().clone().requires_grad_())
    with torch.enable_grad():
        with model.hooks(fwd_hooks=[start, *((name, partial(look, name=name)) for name in names)]):
            total = METRIC(model(tokens)).sum()
        return torch.autograd.grad(total, [found[name] for name in names])


@technique("attribution_patching")
def estimated(model):
    found = ml.attribution_patching(model, BASE, SOURCE, METRIC).per_prompt
    names = [hook(layer, "z") for layer in range(model.cfg.n_layers)]
    ours, theirs, gradients = seen(model), seen(model, SOURCE), slopes(model, BASE, names)
    by_hand = [((theirs[n] - ours[n]) * g).sum((1, 3)) for n, g in zip(names, gradients, strict=True)]
    gap = (METRIC(model(SOURCE)) - METRIC(model(BASE))).mean()
    return far(found, torch.stack(by_hand, 1) / gap)


@technique("attribution_patching(3 steps)")
def estimated_on_the_way(model):
    found = ml.attribution_patching(model, BASE, SOURCE, METRIC, steps=3).per_prompt
    names, start = [hook(layer, "z") for layer in range(model.cfg.n_layers)], hook(0, "resid_pre")
    ours, theirs, total = seen(model), seen(model, SOURCE), 0
    for step in range(3):
        x, kept_z = ours[start].lerp(theirs[start], (step + 0.5) / 3).requires_grad_(), {}
        look = lambda z, hook, kept_z=kept_z: kept_z.setdefault(hook.name, z)
        with torch.enable_grad():
            with model.hooks(fwd_hooks=[(start, lambda _, hook, x=x: x), *((name, look) for name in names)]):
                value = METRIC(model(BASE)).sum()
            gradients = torch.autograd.grad(value, [kept_z[name] for name in names])
        total = total + torch.stack(
            [((theirs[n] - ours[n]) * g).sum((1, 3)) for n, g in zip(names, gradients, strict=True)], 1
        )
    gap = (METRIC(model(SOURCE)) - METRIC(model(BASE))).mean()
    return far(found, total / 3 / gap)


@technique("edge_attribution")
def edges(model):
    """The edges of a sender add up to the sender's own score; those into the logits are its direct effect."""
    scores = ml.edge_attribution(model, BASE, SOURCE, METRIC)
    heads = ml.attribution_patching(model, BASE, SOURCE, METRIC).per_prompt.flatten(1)
    found = scores.per_prompt.sum(2)
    labels = scores.labels["sender"]
    rows = [n for n, label in enumerate(labels) if "." in label]
    embed, last = hook(0, "resid_pre"), f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    ours, theirs = seen(model), seen(model, SOURCE)
    gap = (METRIC(model(SOURCE)) - METRIC(model(BASE))).mean()
    begin, end = slopes(model, BASE, [embed, last])
    whole = ((theirs[embed] - ours[embed]) * begin).sum((1, 2)) / gap
    direct = ((theirs[embed] - ours[embed]) * end).sum((1, 2)) / gap
    mlp = hook(0, "mlp_out")
    (slope,) = slopes(model, BASE, [mlp])
    of_mlp = ((theirs[mlp] - ours[mlp]) * slope).sum((1, 2)) / gap
    return max(
        far(found[:, rows], heads),
        far(found[:, 0], whole),
        far(scores.per_prompt[:, 0, -1], direct),
        far(found[:, labels.index("mlp 0")], of_mlp),
    )


# --- tracing, steering ---


@technique("causal_tracing")
def traced(model):
    metric, base = ml.probability(50), BASE[:1]
    found = ml.causal_tracing(model, base, metric, subject=[2, 3], samples=2, layers=[0, 1], positions=[3, 5])
    drawn = torch.randn(2, 2, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    clean, begin, both = seen(model, base), hook(0, "resid_pre"), base.expand(2, -1)
    spread = model.W_E.std()
    if "hook_pos_embed" not in model.hook_dict:
        spread = spread * clean[begin].std() / model.W_E[base].std()
    noisy = clean[begin].repeat(2, 1, 1)
    noisy[:, 2:4] += 3 * spread * drawn
    start = {begin: lambda x: noisy}
    corrupted, by_hand = metric(put(model, start, both)), torch.zeros(2, 2, 2)
    for row, layer in enumerate((0, 1)):
        for column, place in enumerate((3, 5)):
            name = hook(layer, "resid_pre")

            def restore(x, place=place, name=name):
                x = (noisy if name == begin else x).clone()
                x[:, place] = clean[name][:, place]
                return x

            by_hand[:, row, column] = metric(put(model, start | {name: restore}, both)) - corrupted
    return far(found.per_prompt, by_hand)


@technique("steering_sweep")
def steered(model):
    vectors = ml.contrast_vectors(model, ["John went to Paris"], ["Mary gave a drink"])
    result = ml.steering_sweep(
        model, BASE, METRIC, vectors=vectors, layers=[1, 2], strengths=[0.5, -1.0], text=SOURCE
    )
    skip, by_hand, cost = len(model.to_tokens("")[0]), [], []
    tokens = SOURCE[:, skip + 1 :, None]
    loss = lambda logits: -logits[:, skip:-1].log_softmax(-1).gather(-1, tokens)[..., 0].mean(1)
    for layer in (1, 2):
        for strength in (0.5, -1.0):
            vector = strength * vectors.lengths[layer] * vectors.directions[layer]

            def push(x, vector=vector):
                return torch.cat([x[:, :skip], x[:, skip:] + vector], 1)

            name = hook(layer, "resid_pre")
            by_hand.append(change_of(model, put(model, {name: push})))
            cost.append((loss(put(model, {name: push}, SOURCE)) - loss(model(SOURCE))).exp())
    effect = far(result.effect.per_prompt.flatten(1), torch.stack(by_hand, 1))
    return max(effect, far(result.cost.per_prompt.flatten(1), torch.stack(cost, 1)))


# --- circuits ---


class Task:
    """Four prompts of two templates, with their places."""

    templates, pairs = ("a", "a", "b", "b"), torch.tensor([0, 0, 1, 1])
    metric = ml.logit_difference([50, 60, 52, 53], [51, 61, 54, 55])

    def __init__(self, seed):
        self.positions = {"S": torch.tensor([2, 3, 2, 4]), "end": torch.tensor([8, 8, 8, 8])}
        self.tokens = torch.randint(5, 390, (4, 9), generator=torch.Generator().manual_seed(seed))


CIRCUIT = ml.Circuit({"one": [(0, 1), (1, 2)], "two": [(2, 0)]}, {"one": ["S"]})


def knocked_out(model, prompts, reference, circuit):
    """Logits with every head outside the circuit at its mean over the reference prompts of the same template."""
    usual, written = seen(model, reference.tokens), {}
    for layer in range(model.cfg.n_layers):
        name = hook(layer, "z")

        def hold(z, layer=layer, name=name):
            mean = (
                usual[name]
                .unflatten(0, (2, 2))
                .mean(1, keepdim=True)
                .expand(2, 2, *z.shape[1:])
                .flatten(0, 1)
            )
            mean = mean.clone()
            for head in (head for at, head in circuit.heads if at == layer):
                names = circuit.positions((layer, head))
                for row in range(4):
                    places = slice(None) if names is None else [int(prompts.positions[n][row]) for n in names]
                    mean[row, places, head] = z[row, places, head]
            return mean

        written[name] = hold
    return put(model, written, prompts.tokens)


@technique("CircuitRuns")
def circuit_alone(model):
    prompts, reference = Task(1), Task(2)
    found = ml.CircuitRuns(model, prompts, reference).measure([CIRCUIT])[0]
    return far(found, prompts.metric(knocked_out(model, prompts, reference, CIRCUIT)))


@technique("prune")
def pruned(model):
    """What is left measures what it says; a run from the first trial on."""
    prompts, reference = Task(1), Task(2)
    prompts.metric = ml.log_prob(50)  # not near zero for any model
    runs = ml.CircuitRuns(model, prompts, reference)
    circuit = ml.prune(runs, 0.05, candidates=[(1, 0), (1, 2), (2, 1)])
    by_hand = prompts.metric(knocked_out(model, prompts, reference, circuit))
    return far(runs.measure([circuit])[0], by_hand)


@technique("direct_contributions")
def said_directly(model):
    prompts, reference = Task(1), Task(2)
    found = ml.direct_contributions(ml.CircuitRuns(model, prompts, reference)).per_prompt
    right, wrong = [50, 60, 52, 53], [51, 61, 54, 55]
    same = ml.direct_logit_attribution(model, prompts.tokens, right, wrong, unit="head").per_prompt
    return far(found, same)


# --- architectures that nobody prepared for ---

SEQUENTIAL = {**FAMILIES["Pythia (GPT-NeoX)"][1], "use_parallel_residual": False}
FALCON = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "multi_query": True, **SIZE}
MORE = OTHERS | {
    "GPT-NeoX, one after the other": ("GPTNeoXConfig", SEQUENTIAL),
    "Falcon": ("FalconConfig", FALCON),
    "GLM-4": ("Glm4Config", {**LLAMA, "head_dim": 8}),
}


@pytest.mark.parametrize("family", MORE)
@pytest.mark.filterwarnings("ignore:.*slower, the same numbers")
def test_an_architecture_of_another_kind_is_exact_or_refused(family, monkeypatch):
    monkeypatch.setitem(FAMILIES, family, MORE[family])
    found = outcomes(bridge(family))
    wrong = {name: off for name, (kind, off) in found.items() if kind != "refused" and not off < WITHIN}
    assert not wrong, wrong
    refused = {name for name, (kind, _) in found.items() if kind == "refused"}
    by_matrices = {"edge_attribution", "direct_contributions", "Contrast", "FrozenRun", "kept_and_away"}
    assert refused <= by_matrices, refused


def test_a_model_that_multiplies_what_its_parts_write_is_refused_where_that_matters(monkeypatch):
    monkeypatch.setitem(FAMILIES, "Granite", MORE["Granite"])
    model = bridge("Granite")
    with pytest.raises(ValueError, match="do not add up to what the stream gains"):
        ml.edge_attribution(model, BASE, SOURCE, METRIC)


# --- rules of a gradient, and one edge ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*slower, the same numbers")
def test_the_half_rule_is_the_same_in_both_engines_and_the_gradient_where_nothing_is_gated(family):
    """Also with another activation than silu at the gate; a mixture of experts is refused."""
    model = bridge(family)
    run, plain = run_of(model, BASE), run_of(model, BASE, engine="plain")
    if family == "Mixtral":
        with pytest.raises(ValueError, match="mixture of experts"):
            run.site_gradients(METRIC, rule="half")
        return
    usual, half = (run.site_gradients(METRIC, rule=rule) for rule in ("gradient", "half"))
    for mine, theirs in zip(half, plain.site_gradients(METRIC, rule="half"), strict=True):
        assert far(mine, theirs) < WITHIN
    readers = (each.reader_gradients(METRIC, rule="half") for each in (run, plain))
    assert all(far(mine, theirs) < WITHIN for mine, theirs in zip(*readers, strict=True))
    gated = getattr(model.blocks[0].mlp, "W_gate", None) is not None
    same = [torch.equal(mine, theirs) for mine, theirs in zip(usual, half, strict=True)]
    assert all(same) if not gated else not any(same[:2])  # behind the last layer's heads an MLP may stand


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*slower, the same numbers")
def test_an_edge_into_an_mlp_is_the_same_in_both_engines(family):
    model = bridge(family)
    edges = [("0.1", "mlp 1 in"), ("0.1", "1.2 q"), ("mlp 0", "mlp 2 in"), ("1.0", "logits")]
    found = [
        ml.edge_patching(model, run, SOURCE, METRIC, edges, normalized=False).per_prompt
        for run in (run_of(model, BASE), run_of(model, BASE, engine="plain"))
    ]
    assert far(*found) < WITHIN and found[0].abs().max() > 1e-3
    asked = {"site": "k", "exact_softmax": True, "by": ("pos", "head")}
    guessed = [
        ml.attribution_patching(model, run, SOURCE, METRIC, **asked).per_prompt
        for run in (run_of(model, BASE), run_of(model, BASE, engine="plain"))
    ]
    assert far(*guessed) < WITHIN
