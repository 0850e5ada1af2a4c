"""Ablations: four stand-ins by hand, templates kept apart, positions, shared value heads, directions; bad input."""

import pytest
import torch

import mechlab as ml
from mechlab.discovery.ablation import UNITS
from tests.test_hooks import hooks_left

BASE = torch.randint(5, 350, (4, 7), generator=torch.Generator().manual_seed(0))
REFERENCE = torch.randint(5, 350, (6, 7), generator=torch.Generator().manual_seed(1))
METRIC = ml.logit_difference(20, 30)


def run(model, hooks, name):
    seen = []
    with torch.no_grad(), ml.intervene(model, [*hooks, (name, lambda x, hook: seen.append(x.clone()))]):
        logits = model(BASE)
    return logits, seen[-1]


@torch.no_grad()
def test_zero_and_mean_write_what_they_say(tiny):
    name = "blocks.1.attn.hook_z"
    _, clean = run(tiny, [], name)
    _, cache = tiny.run_with_cache(REFERENCE)
    for how, expected in (("zero", torch.zeros(7, 8)), ("mean", cache[name][:, :, 2].mean(0))):
        hooks = ml.ablation_hooks(tiny, BASE, [(1, 2)], how, source=REFERENCE)
        _, after = run(tiny, hooks, name)
        assert torch.allclose(after[:, :, 2], expected.expand(4, 7, 8), atol=1e-5)
        assert torch.equal(after[:, :, [0, 1, 3]], clean[:, :, [0, 1, 3]])
    assert hooks_left(tiny) == 0


@torch.no_grad()
def test_resample_takes_rows_of_the_reference_and_noise_its_spread(tiny):
    name = "blocks.0.hook_mlp_out"
    _, cache = tiny.run_with_cache(REFERENCE)
    _, after = run(tiny, ml.ablation_hooks(tiny, BASE, [0], "resample", unit="mlp", source=REFERENCE), name)
    assert all(any(torch.allclose(row, other, atol=1e-5) for other in cache[name]) for row in after)
    many = torch.cat([REFERENCE] * 1)
    noisy = torch.cat([
        run(tiny, ml.ablation_hooks(tiny, BASE, [0], "noise", unit="mlp", source=many, seed=s), name)[1] for s in range(60)
    ])  # fmt: skip
    assert (noisy.mean(0) - cache[name].mean(0)).abs().mean() < 0.1 * cache[name].std()
    assert torch.allclose(noisy.std(0).mean(), cache[name].std(0, correction=0).mean(), rtol=0.1)


@torch.no_grad()
def test_templates_keep_their_own_means(tiny):
    name = "blocks.2.attn.hook_z"
    _, cache = tiny.run_with_cache(REFERENCE)
    of = (["b", "a", "b", "b"], ["a", "a", "b", "b", "b", "a"])
    _, after = run(tiny, ml.ablation_hooks(tiny, BASE, [(2, 0)], source=REFERENCE, templates=of), name)
    assert torch.allclose(after[1, :, 0], cache[name][[0, 1, 5], :, 0].mean(0), atol=1e-5)
    assert torch.allclose(after[0, :, 0], cache[name][[2, 3, 4], :, 0].mean(0), atol=1e-5)
    with pytest.raises(ValueError, match="No reference prompt has the template 'c' of prompt 2"):
        ml.ablation_hooks(tiny, BASE, [(2, 0)], source=REFERENCE, templates=(["a", "b", "c", "a"], of[1]))


@torch.no_grad()
def test_only_the_named_positions_change(tiny):
    name = "blocks.1.mlp.hook_post"
    _, clean = run(tiny, [], name)
    _, after = run(
        tiny, ml.ablation_hooks(tiny, BASE, [(1, 5)], "zero", unit="neuron", positions=[3, 6]), name
    )
    assert (after[:, [3, 6], 5] == 0).all() and torch.equal(
        after[:, [0, 1, 2, 4, 5]], clean[:, [0, 1, 2, 4, 5]]
    )


@torch.no_grad()
def test_a_value_head_serves_all_query_heads_that_share_it(gqa):
    by_value = ml.ablation_effects(gqa, BASE, METRIC, [(1, 1)], "zero", unit="kv_head")
    by_heads = ml.ablate_together(gqa, BASE, METRIC, [(1, 2), (1, 3)], "zero", draws=1)
    assert torch.allclose(by_value.per_prompt[:, 0], by_heads.after - by_heads.before, atol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("how", ["zero", "mean", "resample", "noise"])
def test_every_unit_can_be_taken_away_in_every_way(tiny, unit, how):
    part = 1 if UNITS[unit][1] is None else (1, 0)
    before = tiny(BASE)
    effects = ml.ablation_effects(tiny, BASE, METRIC, [part], how, unit=unit, source=REFERENCE)
    assert effects.per_prompt.shape == (4, 1) and effects.values.abs().max() > 0
    together = ml.ablate_together(tiny, BASE, METRIC, [part], how, unit=unit, source=REFERENCE, draws=3)
    assert together.random.shape == (3, 4)
    if how != "resample":
        assert torch.allclose(together.after - together.before, effects.per_prompt[:, 0], atol=1e-4)
    assert torch.equal(tiny(BASE), before)


@torch.no_grad()
def test_a_direction_is_gone_or_at_its_mean(tiny):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2))
    unit = direction / direction.norm()
    for reference in (None, REFERENCE):
        level = 0.0
        if reference is not None:
            _, cache = tiny.run_with_cache(reference)
            level = (cache["resid_post", 1][:, 1:] @ unit).mean()
        hooks = ml.direction_hooks(tiny, direction, [1], reference=reference)
        _, after = run(tiny, hooks, "blocks.2.hook_resid_pre")
        assert torch.allclose(after @ unit, torch.full((4, 7), float(level)), atol=1e-4)
    logits, _ = run(
        tiny, ml.direction_hooks(tiny, direction, [0, 1, 2], positions=[6]), "blocks.2.hook_resid_post"
    )
    assert torch.allclose(logits[:, :6], tiny(BASE)[:, :6], atol=1e-5)


def test_what_cannot_be_taken_away_is_refused(tiny):
    with pytest.raises(
        ValueError, match=r"no head \(7, 0\): a part is \(a layer from 0 to 2, a head from 0 to 3\)"
    ):
        ml.ablation_hooks(tiny, BASE, [(7, 0)])
    with pytest.raises(ValueError, match="no mlp 3: a part is a layer from 0 to 2"):
        ml.ablation_hooks(tiny, BASE, [3], unit="mlp")
    with pytest.raises(ValueError, match="no head 1: a part is"):
        ml.ablation_hooks(tiny, BASE, [1])
    with pytest.raises(ValueError, match="'zero', 'mean', 'resample', 'noise'"):
        ml.ablation_hooks(tiny, BASE, [(0, 0)], "half")
    with pytest.raises(ValueError, match="'head', 'kv_head'"):
        ml.ablation_hooks(tiny, BASE, [(0, 0)], unit="layer")
    with pytest.raises(ValueError, match="`parts` is empty"):
        ml.ablation_hooks(tiny, BASE, [])
    with pytest.raises(ValueError, match="base has 7 tokens and the reference 5"):
        ml.ablation_hooks(tiny, BASE, [(0, 0)], source=REFERENCE[:, :5])
    with pytest.raises(ValueError, match="Every head of layer 0 is chosen"):
        ml.ablate_together(tiny, BASE, METRIC, [(0, n) for n in range(4)])
    with pytest.raises(ValueError, match="points nowhere"):
        ml.direction_hooks(tiny, torch.zeros(32), [0])
