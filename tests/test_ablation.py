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
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("how", ["zero", "mean", "resample", "noise"])
@pytest.mark.parametrize("positions", [None, [-1], [3, 5]])
def test_an_effect_is_what_its_hooks_do(tiny, unit, how, positions):
    """A run taken up where the part is, beside whole runs of the model."""
    parts = [2, 1] if UNITS[unit][1] is None else [(2, 0), (1, 1)]
    given = {"unit": unit, "source": REFERENCE, "positions": positions, "seed": 3}
    if how == "zero":
        del given["source"]

    def whole(parts):
        with ml.intervene(tiny, ml.ablation_hooks(tiny, BASE, parts, how, **given)):
            return METRIC(tiny(BASE)) - before

    before = METRIC(tiny(BASE))
    found = ml.ablation_effects(tiny, BASE, METRIC, parts, how, **given)
    alone = torch.stack([whole([part]) for part in parts], 1)
    assert torch.allclose(found.per_prompt, alone, atol=1e-4) and alone.abs().max() > 1e-3
    parts = parts[: 1 if UNITS[unit][1] is None else 2]  # others of other layers must be left
    together = ml.ablate_together(tiny, BASE, METRIC, parts, how, **given, draws=1)
    assert torch.allclose(together.after - together.before, whole(parts), atol=1e-4)


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


# --- an ablation that takes nothing away ---


@pytest.mark.parametrize("how", ["mean", "resample", "noise"])
def test_a_prompt_that_would_be_replaced_by_itself_is_refused(tiny, how):
    says = "Prompt 0 would be replaced by itself: .* the reference has no other prompt"
    one = BASE[:1]
    for source in (
        None,
        one,
        one.repeat(3, 1),
        ml.discovery.ablation.reference_run(tiny, one, one, [0, 1, 2]),
    ):
        with pytest.raises(ValueError, match=says):
            ml.ablation_hooks(tiny, one, [(1, 2)], how, source=source)
    for call in (ml.ablation_effects, ml.ablate_together):
        with pytest.raises(ValueError, match=says):
            call(tiny, one, METRIC, [(1, 2)], how)
    with pytest.raises(ValueError, match=r"no other prompt of its template.*or use how='zero'"):
        ml.ablation_effects(tiny, BASE, METRIC, [(1, 2)], how, templates=(list("abcd"), list("abcd")))
    begun = torch.cat([torch.zeros(4, 1).long(), BASE], 1)  # all begin alike: nothing differs at position 0
    with pytest.raises(ValueError, match="up to the last place of the ablation the reference has no other"):
        ml.ablation_effects(tiny, begun, METRIC, [(1, 2)], how, positions=[0])
    assert ml.ablation_effects(tiny, one, METRIC, [(1, 2)], "zero").values.abs() > 1e-3
    if how != "noise":
        other = ml.ablation_effects(tiny, one, METRIC, [(1, 2)], how, source=BASE[1:2])
        assert other.values.abs() > 1e-3


def test_noise_of_one_prompt_has_no_spread(tiny):
    with pytest.raises(ValueError, match="has one prompt for prompt 0, and the noise no spread"):
        ml.ablation_effects(tiny, BASE[:1], METRIC, [(1, 2)], "noise", source=BASE[1:2].repeat(2, 1))


@torch.no_grad()
def test_resampling_draws_another_prompt_whatever_the_seed(tiny):
    two, name = BASE[:2], "blocks.1.attn.hook_z"
    _, cache = tiny.run_with_cache(two)
    for seed in range(8):
        seen = []
        hooks = ml.ablation_hooks(tiny, two, [(1, 2)], "resample", seed=seed)
        with ml.intervene(tiny, [*hooks, (name, lambda x, hook, seen=seen: seen.append(x))]):
            tiny(two)
        assert torch.allclose(seen[0][:, :, 2], cache[name].flip(0)[:, :, 2], atol=1e-5)
    doubled = BASE[[0, 0, 1]]  # a copy of a prompt is no other prompt
    for seed in range(8):
        found = ml.ablation_effects(tiny, doubled, METRIC, [(1, 2)], "resample", seed=seed).per_prompt
        assert (found.abs() > 1e-4).all()


def test_no_place_and_no_part_is_named_twice_or_missing(tiny):
    for positions, says in (
        ([1, 1], r"positions is \[1, 1\]: one position is there twice"),
        ([6, -1], "one position is there twice"),
        ([], "positions is empty"),
        ([7], r"A position is 7, and prompt 0 has 7 tokens"),
        ([-8], r"A position is -8, and prompt 0 has 7 tokens"),
    ):
        with pytest.raises(ValueError, match=says):
            ml.ablation_hooks(tiny, BASE, [(1, 1)], positions=positions)
        with pytest.raises(ValueError, match=says):
            ml.direction_hooks(tiny, torch.ones(32), [1], positions=positions, base=BASE)
    last, minus = (ml.ablation_effects(tiny, BASE, METRIC, [(1, 1)], positions=[p]) for p in (6, -1))
    assert torch.equal(last.values, minus.values) and last.values.abs() > 0
    for call in (ml.ablation_effects, ml.ablate_together):
        with pytest.raises(ValueError, match=r"The head \(1, 1\) is named twice"):
            call(tiny, BASE, METRIC, [(1, 1), (2, 0), (1, 1)])
    with pytest.raises(ValueError, match="The mlp 1 is named twice"):
        ml.ablation_hooks(tiny, BASE, [1, 1], unit="mlp")


def test_a_direction_is_taken_out_where_it_is_asked(tiny):
    away = torch.randn(32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for positions, base in (([6], None), ([-1], BASE), ([6], BASE)):
            hooks = ml.direction_hooks(tiny, away, [1], positions=positions, base=base)
            _, after = run(tiny, hooks, "blocks.2.hook_resid_pre")
            along = after @ away / away.norm()
            assert along[:, 6].abs().max() < 1e-4 < along[:, :6].abs().min()
    with pytest.raises(
        ValueError, match="A position without base= is -1; it must be a whole number of at least 0"
    ):
        ml.direction_hooks(tiny, away, [1], positions=[-1])
    with pytest.raises(ValueError, match="one is there twice"):
        ml.direction_hooks(tiny, away, [1], positions=[2, 2])
    with pytest.raises(ml.HookError, match="this run has positions 0 to 6"):
        run(tiny, ml.direction_hooks(tiny, away, [1], positions=[7]), "blocks.2.hook_resid_pre")
    with torch.no_grad():
        _, cache = tiny.run_with_cache(REFERENCE)
        for skip in (0, 1, 3):
            hooks = ml.direction_hooks(tiny, away, [1], reference=REFERENCE, skip=skip)
            _, after = run(tiny, hooks, "blocks.2.hook_resid_pre")
            level = (cache["resid_post", 1][:, skip:] @ away / away.norm()).mean()
            assert torch.allclose(after @ away / away.norm(), level.expand(4, 7), atol=1e-4)
    with pytest.raises(ValueError, match="No position of the reference is left after the first 7"):
        ml.direction_hooks(tiny, away, [1], reference=REFERENCE, skip=7)


def test_hooks_suit_the_prompts_they_were_made_for(tiny):
    for given in ({"source": REFERENCE}, {"how": "zero", "positions": [-1]}):
        hooks = ml.ablation_hooks(tiny, BASE, [(1, 1)], **given)
        with pytest.raises(ml.HookError, match=r"made for prompts of \(4, 7\) .* was run on \(2, 7\)"):
            with ml.intervene(tiny, hooks):
                tiny(BASE[:2])
    with ml.intervene(tiny, ml.ablation_hooks(tiny, BASE, [(1, 1)], "zero")):
        assert tiny(BASE[:2, :4]).shape[:2] == (2, 4)  # zero everywhere suits any
    with pytest.raises(ValueError, match="templates are 3 and 6, of 4 prompts and 6 of the reference"):
        ml.ablation_hooks(tiny, BASE, [(1, 1)], source=REFERENCE, templates=(list("abc"), list("abcabc")))
    with pytest.raises(ValueError, match='was not run to "tokens"'):
        ml.ablation_hooks(tiny, BASE, [(1, 1)], source={"blocks.1.attn.hook_z": torch.zeros(2, 7, 4, 8)})


# --- controls, metrics ---


def test_a_control_that_would_be_smaller_than_the_set_is_refused(tiny):
    for unit in ("mlp", "attention"):
        with pytest.raises(ValueError, match="2 of 3 layers are chosen, and 1 are left"):
            ml.ablate_together(tiny, BASE, METRIC, [0, 1], unit=unit)
    with pytest.raises(
        ValueError, match="3 of the 4 heads of layer 1 are chosen, so there are not as many others"
    ):
        ml.ablate_together(tiny, BASE, METRIC, [(1, 0), (1, 1), (1, 2)])
    many = [(1, n) for n in range(tiny.cfg.d_mlp // 2 + 1)]
    with pytest.raises(ValueError, match="neurons of layer 1 are chosen, so there are not as many others"):
        ml.ablate_neurons(tiny, BASE, METRIC, many)
    for call in (
        lambda: ml.ablate_together(tiny, BASE, METRIC, [(1, 0)], draws=0),
        lambda: ml.ablate_neurons(tiny, BASE, METRIC, [(1, 0)], draws=0),
    ):
        with pytest.raises(ValueError, match="draws is 0; it must be a whole number of at least 1"):
            call()


@pytest.mark.parametrize(
    "metric",
    [lambda logits: logits[:, -1].argmax(-1) > 200, lambda logits: logits[:, -1].argmax(-1), ml.log_prob(20)],
    ids=["bool", "whole number", "nats"],
)
def test_metrics_may_be_whole_numbers_or_true_and_false(tiny, metric):
    effects = ml.ablation_effects(tiny, BASE, metric, [(1, 1)], "zero", unit="neuron")
    with torch.no_grad():
        before = metric(tiny(BASE)).float()
        with ml.intervene(tiny, ml.ablation_hooks(tiny, BASE, [(1, 1)], "zero", unit="neuron")):
            after = metric(tiny(BASE)).float()
    assert torch.allclose(effects.per_prompt[:, 0], after - before, atol=1e-5)
    found = ml.ablate_neurons(tiny, BASE, metric, [(1, 1)], draws=1)
    assert torch.allclose(found.after, after, atol=1e-5) and "draws" in repr(found)
    together = ml.ablate_together(tiny, BASE, metric, [(1, 1)], draws=1)
    assert together.after.dtype == torch.float32
