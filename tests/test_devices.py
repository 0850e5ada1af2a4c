"""A model on a device of its own, with prompts from the host: no technique lets the two meet where CUDA would not.

There is no GPU where tests run; `tests/devices.py` says how the CPU plays both. The techniques are those that
`python -m benchmarks.gpu` compares on a real one.
"""

import contextlib
from collections.abc import Iterable

import pytest
import torch

import mechlab as ml
from benchmarks import techniques
from benchmarks.techniques import TECHNIQUES, Asked, plain_engine, random_asked
from tests.architectures import bridge
from tests.devices import HOST, MODEL, Apart, TwoDevices, home

HOOK = "blocks.1.hook_resid_post"
# Known, and not mended yet: take each out here when it is.
OPEN: set[str] = set()
OPEN_HERE = "a fault on a GPU that is known and not mended yet"


def each(names: Iterable[str]) -> list:
    """Names as parameters; those that are open may fail."""
    marked = pytest.mark.xfail(reason=OPEN_HERE, raises=(Apart, AssertionError))
    return [pytest.param(name, marks=[marked] if name in OPEN else []) for name in names]


@pytest.fixture(scope="module")
def asked() -> Asked:
    """A model of its own: it stays on its device."""
    return random_asked(ml.tiny())


def apart(asked: Asked, names: list[str], *, plain: bool = False) -> dict[str, str]:
    """The techniques in which two devices meet, and where."""
    found = {}
    for name in names:
        with plain_engine() if plain else contextlib.nullcontext(), TwoDevices(asked.model):
            try:
                result = techniques.measured(asked, name)
                assert not isinstance(result, str), (name, result)
            except Apart as error:
                found[name] = str(error)
    return found


@pytest.mark.parametrize("name", each(TECHNIQUES))
def test_devices_do_not_meet(asked, name):
    assert not apart(asked, [name])


def test_devices_do_not_meet_in_full_runs(asked):
    slow = ("steering_sweep", "metrics", "values of ROME", "criteria of circuits")
    assert not apart(asked, techniques.names(runs=True, but=slow), plain=True)


def test_norms_caps_and_windows_lie_where_the_model_is():
    """Gemma 2: norms behind attention and MLP, capped scores and logits, a window."""
    asked = random_asked(bridge("Gemma 2", device="cpu"))
    names = [f"activation_patching({site})" for site in ("resid_pre", "z", "v", "pattern")]
    names += ["path_patching(k)", "edge_attribution", "CircuitRuns", "direct_contributions", "neurons"]
    names += ["direct_logit_attribution(head)", "copying_scores", "matching_scores", "directions"]
    assert not apart(asked, names)


@pytest.mark.parametrize("family", ["GPT-2", "Bloom", "GPT-J", "OLMo2"])
def test_positions_lie_where_the_model_is(family):
    """Slopes, turned neighbours, norms over all heads."""
    asked = random_asked(bridge(family, device="cpu"))
    names = ["activation_patching(q)", "path_patching(logits)", "attribution_patching", "matching_scores"]
    assert not apart(asked, [*names, "directions"])


def given_on_the_host(asked: Asked):
    """What a person made without thinking of devices: texts, dictionaries, masks and values of an edit."""
    model, texts = asked.model, asked.texts
    width, on = model.cfg.d_model, model.cfg.device
    draw = lambda *size: torch.randn(*size, generator=torch.Generator().manual_seed(0))
    parts = {"W_enc": draw(width, 48), "W_dec": draw(48, width), "b_enc": draw(48), "b_dec": draw(width)}
    sae = ml.SparseAutoencoder(**parts, k=8, hook=HOOK)
    there = texts.to(on)
    value, where = (
        torch.zeros(1, *texts[:2].shape, 4, 8),
        torch.ones(1, *texts[:2].shape, 4, dtype=torch.bool),
    )

    def put(site: str, **given) -> None:
        edits = [ml.Put(site, layer, value, where, **given) for layer in range(3)]
        ml.run_of(model, texts[:2]).edited(ml.logit_difference(50, 51), edits)

    def spliced() -> None:
        with ml.intervene(model, ml.splice_hooks(model, sae)):
            model(there)

    def steered() -> None:
        with ml.intervene(model, ml.feature_hooks(model, sae, 3, value=1.0)):
            model(there)

    numbers = draw(2, 12, 4).to(on)
    labels = torch.arange(12).to(on) % 2
    return {
        "token_activations": lambda: ml.token_activations(model, texts, HOOK),
        "feature_activity": lambda: ml.feature_activity(model, sae, texts),
        "feature_page": lambda: ml.feature_page(model, sae, ml.feature_activity(model, sae.to(on), there), 3),
        "splice": lambda: ml.splice(model, sae, texts),
        "splice_hooks": spliced,
        "feature_hooks": steered,
        "AffineLens": lambda: ml.AffineLens.fit(model, texts, skip=1),
        "key_covariance": lambda: ml.key_covariance(model, texts, layer=0),
        "Put(z)": lambda: put("z"),
        "Put(z, held)": lambda: put("z", held=True),
        "Put(k)": lambda: put("k"),
        "toy models": lambda: ml.train_toy_models(importance=torch.ones(5).to(on), steps=2),
        "labels of probes": lambda: ml.probe_layers(numbers, labels, folds=2),
        "estimate": lambda: ml.statistics.estimate(numbers[0, :, 0], torch.arange(12) // 2),
        "forward": lambda: ml.forward.forward(model, there[0]) if model.cfg.gated_mlp else None,
        "prompt_pair": lambda: _pair(model),
    }


def _pair(model) -> None:
    texts = [f"When John and Mary went to the store, {name} gave" for name in ("John", "Mary")]
    pair = ml.prompt_pair(model, *texts, " Mary", " John")
    places = {"again": pair.position(" John", 2)}
    ml.activation_patching(model, pair, pair.corrupted, pair.metric, "mlp_out", positions=places)


@pytest.mark.parametrize("name", each(given_on_the_host(random_asked(ml.tiny()))))
def test_what_is_made_on_the_host_may_be_handed_over(asked, name):
    with TwoDevices(asked.model):
        given_on_the_host(asked)[name]()


@pytest.mark.parametrize(
    "name", each(f"{name} (seeds)" for name in ("lime", "kernel_shap", "tiny", "random_weights"))
)
def test_random_numbers_of_a_gpu_are_left_alone(name, monkeypatch):
    """`torch.manual_seed` seeds every GPU, and what a person draws there next would be other numbers."""
    name, asked, seeded = name.removesuffix(" (seeds)"), random_asked(ml.tiny()), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    call = getattr(ml, name)
    given = {"tiny": (), "random_weights": (asked.model,)}.get(name, asked.given)
    call(*given, **({"samples": 8} if name in ("lime", "kernel_shap") else {}))
    assert torch.equal(torch.get_rng_state(), before) and not seeded


def test_two_devices_raise_where_cuda_would():
    model = ml.tiny()
    with TwoDevices(model):
        x, y = torch.ones(3, device=model.cfg.device), torch.ones(3)
        assert home(x) is MODEL and home(y) is HOST and home(x + 1) is MODEL and home(y.to(x)) is MODEL
        assert home(x.cpu()) is HOST and home(x) is MODEL  # as on CUDA, a copy
        assert home(x * torch.tensor(2.0)) is MODEL and home(x[torch.tensor([0, 1])]) is MODEL
        y[0] = x[0]  # copied, as CUDA does
        wrong = {
            "add": lambda: x + y,
            "a number of the model": lambda: y * x.sum(),
            "stack": lambda: torch.stack([x.sum(), y.sum()]),
            "index": lambda: y[torch.tensor([0], device=x.device)],
            "written": lambda: y.__setitem__([0, 1], x[:2]),
            "in place": lambda: y.add_(x),
            "numpy": lambda: x.numpy(),
            "generator": lambda: torch.rand(2, generator=torch.Generator(), device=x.device),
            "tokens": lambda: model(torch.tensor([[1, 2]])),
            "mask": lambda: torch.where(y > 0, x, 0.0),
        }
        for name, call in wrong.items():
            with pytest.raises(Apart):
                call()
                print(f"{name} was let through")
