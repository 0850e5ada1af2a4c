"""Interchange interventions and trained subspaces: exact on both engines, right where the truth is known."""

import pytest
import torch

import mechlab as ml
from mechlab.circuits.abstraction import Alignment
from mechlab.metrics import with_rows
from mechlab.runs.engines import run_of

CHANCE = torch.Generator().manual_seed(3)
BASE, SOURCE = torch.randint(5, 60, (2, 4, 7), generator=CHANCE)
METRIC = ml.logit_difference([7, 8, 9, 10], [11, 12, 13, 14])
PLACES = [
    ("resid_pre", 1, None),
    ("post", 2, None),
    ("mlp_out", 0, None),
    ("z", 1, 2),
    ("v", 1, 1),
    ("q", 2, 3),
]


def orthonormal(size, k):
    return torch.linalg.qr(torch.randn(size, k, generator=torch.Generator().manual_seed(k)))[0]


def sized(run, site, layer):
    return run.at(site, layer).shape[-1]


@pytest.fixture(scope="module", params=["gqa", "gpt2"])
def tiny(request):
    return ml.tiny(request.param)


@pytest.mark.parametrize(("site", "layer", "head"), PLACES)
@pytest.mark.parametrize("pos", (-1, torch.tensor([2, 6, 3, 5])), ids=("last", "each its own"))
def test_both_engines_exchange_what_a_hook_would(tiny, site, layer, head, pos):
    fast, plain = run_of(tiny, BASE), run_of(tiny, BASE, engine="plain")
    Q = orthonormal(sized(fast, site, layer), 3)
    where = {"site": site, "layer": layer, "head": head, "pos": pos, "Q": Q}
    found = ml.interchange(tiny, fast, SOURCE, METRIC, **where)
    assert torch.allclose(found, ml.interchange(tiny, plain, SOURCE, METRIC, **where), atol=1e-4)
    name = {"resid_pre": "hook_resid_pre", "mlp_out": "hook_mlp_out", "post": "mlp.hook_post"}.get(
        site, f"attn.hook_{site}"
    )
    name, rows = f"blocks.{layer}.{name}", torch.arange(4)
    at = torch.as_tensor(pos).expand(4) % 7
    theirs = tiny.run_with_cache(SOURCE)[1][name]

    def exchange(x, hook):
        x = x.clone()
        spot = (rows, at) if head is None else (rows, at, head)
        x[spot] = x[spot] + (theirs[spot] - x[spot]) @ Q @ Q.T
        return x

    with torch.no_grad(), tiny.hooks(fwd_hooks=[(name, exchange)]):
        assert torch.allclose(found, METRIC(tiny(BASE)), atol=1e-4)
    assert (found - fast.value(METRIC)).abs().max() > 1e-4


def test_a_whole_basis_is_the_whole_activation_and_the_parts_of_two_halves(tiny):
    base, source = run_of(tiny, BASE), run_of(tiny, SOURCE)
    Q = orthonormal(sized(base, "resid_pre", 1), sized(base, "resid_pre", 1))
    exchange = lambda Q=None: ml.interchange(tiny, base, source, METRIC, layer=1, Q=Q)
    assert torch.allclose(exchange(Q), exchange(), atol=1e-4)
    mixed = Q[:, :3] @ torch.linalg.qr(torch.randn(3, 3, generator=CHANCE))[0]
    assert torch.allclose(exchange(Q[:, :3]), exchange(mixed), atol=1e-4)  # a subspace, not its basis
    assert torch.allclose(exchange(Q[:, :1]), exchange(-Q[:, :1]), atol=1e-5)


def test_bad_subspaces_and_places_are_refused(tiny):
    size = sized(run_of(tiny, BASE), "resid_pre", 1)
    exchange = lambda **given: ml.interchange(tiny, BASE, SOURCE, METRIC, **({"layer": 1} | given))
    with pytest.raises(ValueError, match="not orthonormal"):
        exchange(Q=torch.ones(size, 2))
    for shape in ((size + 1, 1), (size, size + 1), (size, 0)):
        with pytest.raises(ValueError, match=f"{size} rows"):
            exchange(Q=torch.zeros(shape))
    with pytest.raises(ValueError, match="say which one"):
        exchange(site="z")
    with pytest.raises(ValueError, match="no heads"):
        exchange(head=0)
    with pytest.raises(ValueError, match="head"):
        exchange(site="z", head=99)
    with pytest.raises(ValueError, match="site"):
        exchange(site="pattern")
    with pytest.raises(ValueError, match=r"prompts|equal|correspond"):
        ml.interchange(tiny, BASE, SOURCE[:, :5], METRIC, layer=1)
    with pytest.raises(ValueError, match="layer"):
        exchange(layer=99)


def test_iia_says_four_shares():
    values, before = torch.tensor([1.0, -1.0, -2.0, 3.0, -1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])
    flips = torch.tensor([False, True, True, True, False])
    found = ml.iia(values, flips, before)
    expected = {"all": 3 / 5, "flip": 2 / 3, "stay": 1 / 2, "no change": 1 / 5}
    assert found == pytest.approx(expected)
    assert torch.tensor(ml.iia(values, torch.ones(5, dtype=torch.bool), before)["stay"]).isnan()
    with pytest.raises(ValueError, match="one number for each"):
        ml.iia(values, flips[:3], before)


# Where the truth is known: the planted circuit of two names.


@pytest.fixture(scope="module")
def planted():
    """(circuit, base, source, metric, flips by position, flips by name) of 24 prompts in three sources."""
    circuit = ml.planted("ioi")
    clean = circuit.prompts(24).clean
    first, second, subject = clean[:, 1], clean[:, 3], clean[:, 6]
    rival = torch.where(subject == first, second, first)
    sources = []
    for names in ((first, second, rival), (second, first, rival), (second, first, subject)):
        tokens = clean.clone()
        tokens[:, 1], tokens[:, 3], tokens[:, 6] = names
        sources.append(tokens)
    base = ml.run_of(circuit.model, clean).rows([*range(24)] * 3)
    says = lambda each: torch.tensor(each).repeat_interleave(24)
    metric = ml.logit_difference(rival.repeat(3), subject.repeat(3))
    source = ml.run_of(circuit.model, torch.cat(sources))
    return circuit, base, source, metric, says([True, False, True]), says([True, True, False])


def test_the_right_program_at_the_right_head_has_accuracy_one(planted):
    circuit, base, source, metric, position, name = planted
    for part, right, wrong in (("S-inhibition", position, name), ("name mover", name, position)):
        layer, head = circuit.heads[part]
        values = ml.interchange(circuit.model, base, source, metric, "z", layer=layer, head=head)
        assert ml.iia(values, right, base.value(metric))["all"] > 0.95
        assert ml.iia(values, wrong, base.value(metric))["all"] < 0.4


def test_training_finds_the_variable_and_not_a_wrong_one(planted):
    circuit, base, source, metric, position, name = planted
    half = torch.arange(72) % 24 < 12
    train, test = (
        (base.rows(rows), source.rows(rows), with_rows(metric, rows.nonzero()[:, 0]))
        for rows in (half, ~half)
    )
    fit = ml.align(circuit.model, *train, position[half], layer=3)
    assert isinstance(fit, Alignment) and fit.history[-1] < fit.history[0] / 2
    assert torch.allclose(fit.Q.T @ fit.Q, torch.eye(1), atol=1e-5)
    score = lambda Q, says: ml.iia(
        ml.interchange(circuit.model, *test, layer=3, Q=Q), says[~half], test[0].value(test[2])
    )
    assert score(fit.Q, position)["all"] == 1
    wrong = ml.align(circuit.model, *train, name[half], layer=3, k=8)
    assert score(wrong.Q, name)["all"] < 0.6
    again = ml.align(circuit.model, *train, position[half], layer=3)
    other = ml.align(circuit.model, *train, position[half], layer=3, seed=1)
    assert torch.equal(fit.Q, again.Q) and not torch.equal(fit.Q, other.Q)


def test_training_on_both_engines_is_the_same_and_leaves_the_model_alone(tiny):
    flips = torch.tensor([True, False, True, True])
    before = {name: weight.clone() for name, weight in tiny.original_model.named_parameters()}
    found = []
    for engine in ("fast", "plain"):
        base = run_of(tiny, BASE, engine=engine)
        with torch.no_grad():
            found.append(
                ml.align(
                    tiny, base, run_of(tiny, SOURCE, like=base), METRIC, flips, layer=1, steps=4, batch=3
                )
            )
    assert found[0].history == pytest.approx(found[1].history, abs=1e-4)
    assert torch.allclose(found[0].Q, found[1].Q, atol=1e-3)
    for name, weight in tiny.original_model.named_parameters():
        assert weight.grad is None and torch.equal(weight, before[name])


def test_training_refuses_what_cannot_be_trained(tiny):
    flips = torch.tensor([True, False, True, True])
    train = lambda metric=METRIC, flips=flips, **given: ml.align(
        tiny, BASE, SOURCE, metric, flips, **({"layer": 1} | given)
    )
    for given, why in (
        ({"k": 10_000}, "not larger"),
        ({"k": 0}, "k is"),
        ({"steps": 0}, "steps"),
        ({"flips": ~torch.ones(4, dtype=torch.bool)}, "flips no answer"),
        ({"flips": flips[:2]}, "flips is for 2"),
        ({"metric": ml.log_prob(7)}, "some logits"),
        ({"metric": lambda logits: logits.sum((1, 2))}, "some logits"),
    ):
        with pytest.raises(ValueError, match=why):
            train(**given)
    with torch.inference_mode():
        assert not train(steps=1).Q.is_inference()
