"""Attribution and discovery on prompts of unequal length, in every precision, and inside no_grad and inference_mode."""

import functools

import pytest
import torch

import mechlab as ml
from mechlab.prompts import PromptError
from tests.architectures import bridge, kept
from tests.test_hooks import hooks_left

LONG, SHORT = (
    "When John and Mary went to the store, John gave a drink to",
    "Mary gave John a drink and went to",
)
BASE = torch.tensor([[0, 11, 12, 13, 14, 11], [0, 21, 22, 23, 21, 24]])
SOURCE = torch.tensor([[0, 31, 12, 33, 14, 34], [0, 41, 22, 43, 21, 44]])
REFERENCE = torch.randint(5, 390, (3, 6), generator=torch.Generator().manual_seed(1))
RIGHT, WRONG = [50, 60], [51, 61]
METRIC = ml.logit_difference(RIGHT, WRONG)
TOKENS = torch.arange(20, 40)
DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(2))

attribution = functools.partial(ml.direct_logit_attribution, answers=RIGHT, wrong=WRONG)
ablation = functools.partial(ml.ablation_effects, metric=METRIC, source=REFERENCE)


def without_direction(model, base):
    with torch.no_grad(), ml.intervene(model, ml.direction_hooks(model, DIRECTION, [1], reference=REFERENCE)):
        return METRIC(model(base))


def deletion(model, base):
    each = torch.arange(12.0).view(2, 6)  # the same order in every precision
    scores = {"first": ml.Scores.over_prompts(each, ("pos",), "made up")}
    return ml.deletion_curves(model, base, SOURCE, METRIC, scores, orders=2).methods["first"]


CALLS = {
    **{f"attribution {unit}": functools.partial(attribution, unit=unit) for unit in ("component", "head", "neuron")},
    "value neurons": lambda model, base: ml.value_neuron_scores(model, base, RIGHT),
    "query neurons": lambda model, base: ml.query_neuron_scores(model, base, [(2, 5)], [1.0], row="in"),
    "ablated neurons": lambda model, base: ml.ablate_neurons(model, base, METRIC, [(0, 3), (2, 1)], draws=1).after,
    **{
        name: lambda model, base, method=method: method(model, base, SOURCE, METRIC)
        for name, method in ml.INPUT_METHODS.items()
    },
    "deletion": deletion,
    **{
        f"ablation {unit}": functools.partial(ablation, parts=[1 if unit in ("mlp", "attention") else (1, 1)], unit=unit)
        for unit in ("head", "kv_head", "attention", "mlp", "neuron")
    },
    "ablation noise": functools.partial(ablation, parts=[(1, 1)], how="noise"),
    "direction": without_direction,
    "head scores": lambda model, base: ml.head_scores(model, base, "previous token"),
    "in-context learning": lambda model, base: ml.in_context_learning_score(model, base, early=1, late=4),
    "logit lens": lambda model, base: ml.logit_lens(model, base, RIGHT, what="log_prob"),
    "lens table": lambda model, base: ml.lens_table(model, base[:1]).probability,
    "lens quality": lambda model, base: ml.lens_quality(model, base, skip=2).kl,
    "streams": lambda model, base: ml.residual_streams(model, base),
    "streams, mean": lambda model, base: ml.residual_streams(model, base, pos="mean"),
}  # fmt: skip


def numbers(found) -> torch.Tensor:
    """The numbers of a result, of each prompt."""
    if isinstance(found, torch.Tensor):
        return found.detach().float()
    return found.values if found.per_prompt is None else found.per_prompt


@functools.cache
def in_precision(family: str, dtype: torch.dtype):
    return bridge(family, dtype=dtype)


# --- prompts of unequal length ---

EACH = {
    **{
        f"attribution {unit}": lambda model, base, n, unit=unit: ml.direct_logit_attribution(
            model, base, RIGHT[n], WRONG[n], unit=unit
        )
        for unit in ("layer", "component", "head", "neuron")
    },
    "value neurons": lambda model, base, n: ml.value_neuron_scores(model, base, RIGHT[n]),
    "comparative": lambda model, base, n: ml.comparative_neuron_scores(
        model, base, RIGHT[n], [("blocks.0.attn.hook_z", lambda z, hook: z * 0)]
    ),
    "query neurons": lambda model, base, n: ml.query_neuron_scores(model, base, [(2, 5)], [1.0], row="in"),
    "ablated neurons": lambda model, base, n: ml.ablate_neurons(
        model, base, ml.logit_difference(RIGHT[n], WRONG[n]), [(0, 3), (2, 1)], draws=1
    ).after,
    "ablated neurons at the end": lambda model, base, n: ml.ablate_neurons(
        model, base, ml.log_prob(RIGHT[n]), [(0, 3), (2, 1)], draws=1, pos=-1
    ).after,
    "zero ablation": lambda model, base, n: ml.ablation_effects(
        model, base, ml.probability(RIGHT[n]), [(1, 1), (2, 0)], "zero"
    ),
    "zero ablation at the end": lambda model, base, n: ml.ablation_effects(
        model, base, ml.log_prob(RIGHT[n]), [(1, 1), (2, 0)], "zero", positions=[-1, 1]
    ),
    "previous token": lambda model, base, n: ml.head_scores(model, base, "previous token"),
    "sink": lambda model, base, n: ml.head_scores(model, base, "sink"),
    "duplicates": lambda model, base, n: ml.head_scores(model, base, "duplicate token"),
    "in-context learning": lambda model, base, n: ml.in_context_learning_score(model, base, early=2, late=6),
    "logit lens": lambda model, base, n: ml.logit_lens(model, base, RIGHT[n], what="log_prob"),
    "lens quality": lambda model, base, n: ml.lens_quality(model, base, skip=2).kl,
    "streams": lambda model, base, n: ml.residual_streams(model, base).transpose(0, 1),
    "mean of streams": lambda model, base, n: ml.residual_streams(model, base, pos="mean").transpose(0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("family", ["Llama", "Gemma 2", "GPT-2", "Pythia (GPT-NeoX)"])
def test_a_padded_batch_gives_each_prompts_own_numbers(family, name):
    model, call, both = kept(family), EACH[name], slice(None)
    texts = [SHORT + " Mary to John", LONG]
    for together in (texts, model.to_tokens(texts)):
        found = numbers(call(model, together, both))
        for row in range(2):
            alone = numbers(call(model, texts[row], row))
            assert torch.allclose(found[row], alone[0], atol=2e-4), (found[row] - alone[0]).abs().max()


def test_a_position_that_a_prompt_does_not_have_is_refused(tiny):
    texts = ["John gave", LONG]
    for call in (
        lambda: ml.direct_logit_attribution(tiny, texts, RIGHT, pos=12),
        lambda: ml.value_neuron_scores(tiny, texts, RIGHT, pos=12),
        lambda: ml.query_neuron_scores(tiny, texts, [(2, 5)], [1.0], row="in", pos=12),
        lambda: ml.ablate_neurons(tiny, texts, METRIC, [(0, 3)], pos=12),
        lambda: ml.logit_lens(tiny, texts, RIGHT, pos=12),
        lambda: ml.residual_streams(tiny, texts, pos=12),
        lambda: ml.ablation_effects(tiny, texts, METRIC, [(0, 1)], "zero", positions=[12]),
    ):
        with pytest.raises(PromptError, match="is 12, and prompt 0 has"):
            call()


def test_where_positions_must_correspond_unequal_prompts_are_refused(tiny):
    texts = ["John gave", LONG]
    for how in ("mean", "resample", "noise"):
        with pytest.raises(PromptError, match="what is usual is taken position by position"):
            ml.ablation_effects(tiny, texts, METRIC, [(0, 1)], how)
    with pytest.raises(PromptError, match="what is usual is taken position by position"):
        ml.ablation_hooks(tiny, BASE, [(0, 1)], source=texts)
    for name, method in ml.INPUT_METHODS.items():
        with pytest.raises(PromptError, match="each token gets a score of its own"):
            method(tiny, texts, tiny.to_tokens(texts), METRIC)
        assert name


def test_text_beyond_the_context_is_refused(tiny):
    long = " John" * 100 + " Mary"
    for call in (
        lambda: ml.direct_logit_attribution(tiny, long, 5),
        lambda: ml.logit_lens(tiny, long, 5),
        lambda: ml.lens_quality(tiny, [long]),
        lambda: ml.head_scores(tiny, long, "sink"),
        lambda: ml.residual_streams(tiny, ["a", long]),
        lambda: ml.ablation_effects(tiny, long, METRIC, [(0, 0)], "zero"),
        lambda: ml.attention_rollout(tiny, long),
        lambda: ml.repeated_tokens(tiny, length=32),
    ):
        with pytest.raises(PromptError, match=r"has \d+ tokens; this model reads at most 64"):
            call()


# --- precision ---


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("family", ["Llama", "GPT-2", "Gemma 2"])
def test_every_precision_gives_the_numbers_of_single_precision(family, dtype, name):
    whole, model = kept(family), in_precision(family, dtype)
    wanted, found = (numbers(CALLS[name](each, BASE)) for each in (whole, model))
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    share = {torch.float16: 0.02, torch.bfloat16: 0.08, torch.float64: 1e-5}[dtype]
    # shares of a total that may be next to nothing; elsewhere logits of about 2 are themselves as rough as this
    size = 10 * wanted.abs().max() if name == "query neurons" else max(wanted.abs().max(), 1)
    assert (found - wanted).abs().max() < share * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_circuits_of_heads_in_every_precision(dtype):
    whole, model = kept("Qwen3"), in_precision("Qwen3", dtype)
    for score in (ml.copying_scores, ml.matching_scores, functools.partial(ml.matching_scores, distance=3)):
        wanted, found = (score(each, TOKENS).values for each in (whole, model))
        assert (found - wanted).abs().mean() < 0.06  # shares of twenty tokens: one more or less is 0.05


def test_what_half_precision_adds_up_is_added_in_single_precision():
    """A mean of 4,000 bfloat16 numbers near 1 stops growing at 256 if it is summed in bfloat16."""
    model = in_precision("Llama", torch.bfloat16)
    found = ml.direct_logit_attribution(model, BASE, RIGHT, WRONG, unit="neuron")
    wanted = ml.direct_logit_attribution(kept("Llama"), BASE, RIGHT, WRONG, unit="neuron")
    assert (found.values.sum() - wanted.values.sum()).abs() < 0.05
    assert found.gap.abs().max() < 0.1


# --- modes ---


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", CALLS)
def test_a_mode_around_a_call_changes_nothing(name, mode, tiny):
    wanted = numbers(CALLS[name](tiny, BASE))
    with mode():
        found = numbers(CALLS[name](tiny, BASE))
        made_inside = numbers(CALLS[name](tiny, BASE.clone()))
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert torch.equal(found, wanted) and torch.equal(made_inside, wanted)
    assert torch.is_grad_enabled() and hooks_left(tiny) == 0
    assert all(p.grad is None and not p.requires_grad for p in tiny.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_trained_can_be_trained_inside_a_mode(mode):
    yes, no = torch.randn(20, 8), torch.randn(20, 8)
    wanted = ml.contrast_consistent_search(yes, no, restarts=1, steps=5)[0].direction
    toys = ml.train_toy_models(3, 2, density=[0.5], steps=5, batch=8).W
    with mode():
        assert torch.equal(
            ml.contrast_consistent_search(yes.clone(), no, restarts=1, steps=5)[0].direction, wanted
        )
        assert torch.equal(ml.train_toy_models(3, 2, density=[0.5], steps=5, batch=8).W, toys)


def test_numbers_made_in_inference_mode_are_named_where_gradients_need_them(tiny):
    with torch.inference_mode():
        metric = ml.log_prob(torch.tensor(RIGHT))
        assert ml.occlusion(tiny, BASE, SOURCE, metric).values.abs().max() > 0
        for method in (ml.gradient_norm, ml.integrated_gradients, ml.gradient_x_difference):
            try:
                found = method(tiny, BASE, SOURCE, metric)
            except ValueError as error:
                assert "made inside `torch.inference_mode()`" in str(error)
            else:
                assert torch.equal(found.values, method(tiny, BASE, SOURCE, ml.log_prob(RIGHT)).values)


def test_a_metric_without_slope_is_named(tiny):
    for method in (ml.gradient_norm, ml.integrated_gradients, ml.gradient_x_difference):
        with pytest.raises(ValueError, match="This metric has no gradient: it counts or compares"):
            method(tiny, BASE, SOURCE, lambda logits: (logits[:, -1].argmax(-1) > 100).float())
