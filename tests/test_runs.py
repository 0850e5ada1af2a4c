"""Runs: the fast engine gives the numbers of the plain one, and the plain one those of hooks written by hand."""

import itertools
import warnings

import pytest
import torch

import mechlab as ml
from mechlab.runs import engines, fast, matrices
from mechlab.runs.engines import run_of, runs_of
from mechlab.runs.fast import Fast
from mechlab.runs.plain import Plain
from mechlab.runs.run import SITES, WITH_HEADS, NotResumable, Put, Run
from tests.test_hooks import hooks_left

DIFFERENCE = ml.logit_difference([7, 8, 9], [10, 11, 12])
METRICS = {
    "two logits": DIFFERENCE,
    "all logits of one position": ml.log_prob(9, pos=8),
    "a position for each prompt": ml.log_prob([9, 3, 2], pos=[8, 2, 6]),
    "a function that says nothing": lambda logits: logits.logsumexp(-1).sum(1),
}
CHANCE = torch.Generator().manual_seed(0)
BASE, SOURCE = torch.randint(5, 60, (2, 3, 9), generator=CHANCE)
SOURCE[:, :2] = BASE[:, :2]  # what both begin with is not computed again


@pytest.fixture(scope="module", params=["gqa", "gpt2"])
def runs(request):
    """(model, fast base and source, plain base and source)."""
    model = ml.tiny(request.param)
    base, plain = run_of(model, BASE), run_of(model, BASE, engine="plain")
    return model, base, run_of(model, SOURCE, like=base), plain, run_of(model, SOURCE, like=plain)


def heads_at(model, site):
    return model.cfg.n_key_value_heads or 4 if site in ("k", "v") else 4


def places(model, site, copies=3, seed=0):
    """A mask of each copy's own, over heads too where there are heads."""
    shape = (copies, 3, 9, *((heads_at(model, site),) if site in WITH_HEADS else ()))
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5


def test_both_engines_keep_the_protocol(runs):
    _, base, source, plain, other = runs
    assert (
        isinstance(base, Fast)
        and isinstance(source, Fast)
        and isinstance(plain, Plain)
        and isinstance(other, Plain)
    )
    assert all(isinstance(run, Run) for run in runs[1:])


def test_the_first_run_is_the_models(runs):
    model, base, _, plain, _ = runs
    with torch.no_grad():
        logits, cache = model.run_with_cache(BASE)
    for run, layer in itertools.product((base, plain), range(model.cfg.n_layers)):
        for site in ("resid_pre", "attn_out", "mlp_out", "z", "v"):
            assert torch.allclose(run.at(site, layer), cache[site, layer], atol=1e-4), site
        assert torch.allclose(run.at("pattern", layer), cache["pattern", layer].transpose(1, 2), atol=1e-5)
    assert torch.allclose(base.resid_mid[1], cache["resid_mid", 1], atol=1e-4)
    for run in (base, plain):
        assert torch.allclose(run.at("resid_pre", 3), cache["resid_post", 2], atol=1e-4)
        assert torch.allclose(run.logits([], 4), logits[:, -4:], atol=1e-4)
        for metric in METRICS.values():
            assert torch.allclose(run.value(metric), metric(logits), atol=1e-4)
    assert hooks_left(model) == 0


def test_a_second_run_takes_up_what_both_begin_with(runs, monkeypatch):
    model, base, source, *_ = runs
    alone = run_of(model, SOURCE)
    for name in ("resid_pre", "resid_mid", "z"):
        assert torch.allclose(getattr(source, name), getattr(alone, name), atol=1e-5)
    for name in ("q", "k", "v", "queries", "keys"):
        for one, two in zip(getattr(source, name), getattr(alone, name), strict=True):
            assert torch.allclose(one, two, atol=1e-5)
    computed, real = [], Fast._run_on
    monkeypatch.setattr(
        Fast, "_run_on", lambda self, *given, **named: computed.append(given) or real(self, *given, **named)
    )
    run_of(model, SOURCE, like=base)
    assert computed == [(0, 2)]  # layer 0, position 2


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("held", [False, True])
def test_an_edit_is_a_hook_that_writes(runs, site, held):
    """One edit, written out with a hook; then both engines, for one, two and all layers and every kind of metric."""
    model, base, source, plain, other = runs
    where = places(model, site)
    puts = lambda its, layers: [Put(site, layer, its.at(site, layer)[None], where, held) for layer in layers]
    swap = (lambda x: x.transpose(1, 2)) if site == "pattern" else (lambda x: x)
    value, kept = other.at(site, 1), plain.at(site, 1)

    def write(x, hook, copy):
        mask = where[copy][(...,) + (None,) * (x.ndim - where.ndim + 1)]
        return swap(torch.where(mask, value, kept if held else swap(x)))

    by_hand = []
    for copy in range(3):
        hooks = [(f"blocks.1.{SITES[site]}", lambda x, hook, copy=copy: write(x, hook, copy))]
        with torch.no_grad(), ml.intervene(model, hooks):
            by_hand.append(DIFFERENCE(model(BASE)))
    assert torch.allclose(plain.edited(DIFFERENCE, puts(other, [1])), torch.stack(by_hand), atol=1e-5)
    assert (torch.stack(by_hand) - plain.value(DIFFERENCE)).abs().max() > 1e-3  # something did change
    for metric, layers in itertools.product(METRICS.values(), ([0], [2], [0, 1, 2])):
        found, expected = base.edited(metric, puts(source, layers)), plain.edited(metric, puts(other, layers))
        assert torch.allclose(found, expected, atol=1e-4)
    assert hooks_left(model) == 0


@pytest.mark.parametrize("first", [0, 4, 8])
def test_only_what_is_touched_is_computed(runs, first, monkeypatch):
    """From the layer and the position of the edit on; and nothing at all where nothing is put."""
    _, base, source, *_ = runs
    seen, real = [], Fast._run_on
    monkeypatch.setattr(
        Fast, "_run_on", lambda self, *given, **named: seen.append(given[:2]) or real(self, *given, **named)
    )
    where = (torch.arange(9) >= first).expand(1, 3, 9)
    base.edited(DIFFERENCE, [Put("mlp_out", 2, source.at("mlp_out", 2)[None], where), Put("z", 1, held=True)])
    nothing = base.edited(
        DIFFERENCE, [Put("mlp_out", 1, source.at("mlp_out", 1)[None], torch.zeros(4, 3, 9, dtype=torch.bool))]
    )
    assert seen == [(2, first)]
    assert nothing.shape == (4, 3) and torch.equal(nothing[2], base.value(DIFFERENCE))


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("mlps", ["free", "held"])
def test_heads_that_are_held(runs, metric, mlps):
    """Every copy another head from source, all others held: what path patching asks for."""
    model, base, source, plain, other = runs
    one = torch.zeros(12, 3, 1, 1, 4, dtype=torch.bool)
    for copy, (layer, head) in enumerate(sorted(itertools.product(range(3), range(4)), key=lambda at: at[1])):
        one[copy, layer, ..., head] = True  # not in the order of layers
    puts = lambda its: [
        Put("z", layer, its.at("z", layer)[None], one[:, layer], held=True) for layer in range(3)
    ]
    frozen = [Put("mlp_out", layer, held=True) for layer in range(3) if mlps == "held"]
    found = base.edited(metric, [*puts(source), *frozen])
    expected = plain.edited(metric, [*puts(other), *frozen])
    assert torch.allclose(found, expected, atol=1e-4) and found.std(0).max() > 1e-4
    where = torch.tensor([[3, 8], [4, 7], [8, 2]])
    for site in ("v", "resid_pre") if model.cfg.n_key_value_heads else ("q", "k", "v", "resid_pre"):
        read = [
            run.read(site, [1, 2], [*puts(its)[:2], *frozen[:2]], where)
            for run, its in ((base, source), (plain, other))
        ]
        for layer in (1, 2):
            assert torch.allclose(read[0][layer], read[1][layer], atol=1e-4), site


@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_keys_and_values_of_single_query_heads(runs, site):
    """Other query heads that share the key/value head keep theirs; in two layers at once."""
    model, base, source, plain, other = runs
    where = torch.zeros(2, 3, 9, 4, dtype=torch.bool)
    where[0, torch.arange(3), torch.tensor([3, 4, 8]), 1] = where[
        1, torch.arange(3), torch.tensor([5, 4, 2]), 2
    ] = True

    def puts(its):
        values = [its.at(site, layer) for layer in (1, 2)]
        values = [value.repeat_interleave(4 // value.shape[2], dim=2)[None] for value in values]
        return [Put(site, layer, value, where) for layer, value in zip((1, 2), values, strict=True)]

    found, expected = base.edited(DIFFERENCE, puts(source)), plain.edited(DIFFERENCE, puts(other))
    assert torch.allclose(found, expected, atol=1e-4)
    assert (found - base.value(DIFFERENCE)).abs().max() > 1e-4
    if site != "q" and model.cfg.n_key_value_heads:  # the whole group would be another number
        group = where[..., :2] | where[..., 2:]
        whole = [Put(site, layer, source.at(site, layer)[None], group) for layer in (1, 2)]
        assert not torch.allclose(base.edited(DIFFERENCE, whole), found, atol=1e-5)


def test_a_changed_run_is_a_run(runs):
    """Edits made for good: what it has, its metric, further edits on it, and gradients."""
    model, base, source, plain, other = runs
    puts = lambda its, layers: [Put("z", n, its.at("z", n)[None], places(model, "z", 1, n)) for n in layers]
    one, two = base.changed(puts(source, [0, 1])), plain.changed(puts(other, [0, 1]))
    for site, layer in itertools.product(("resid_pre", "attn_out", "mlp_out", "z", "v", "pattern"), range(3)):
        assert torch.allclose(one.at(site, layer), two.at(site, layer), atol=1e-4), (site, layer)
    assert torch.allclose(one.value(DIFFERENCE), base.edited(DIFFERENCE, puts(source, [0, 1]))[0], atol=1e-5)
    further = [run.edited(DIFFERENCE, puts(its, [2])) for run, its in ((one, source), (two, other))]
    whole = base.edited(DIFFERENCE, puts(source, [0, 1, 2]))
    assert torch.allclose(further[0], whole, atol=1e-4) and torch.allclose(further[1], whole, atol=1e-4)
    again = [run.changed(puts(its, [2])).value(DIFFERENCE) for run, its in ((one, source), (two, other))]
    assert torch.allclose(again[0], whole[0], atol=1e-4) and torch.allclose(again[1], whole[0], atol=1e-4)
    for left, right in zip(one.site_gradients(DIFFERENCE), two.site_gradients(DIFFERENCE), strict=True):
        assert torch.allclose(left, right, atol=1e-4)


def test_a_stream_of_ones_own_to_start_from(runs):
    model, base, source, plain, _ = runs
    noise = torch.randn(3, 9, model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), ml.intervene(model, [("blocks.0.hook_resid_pre", lambda x, hook: x + noise)]):
        expected = DIFFERENCE(model(BASE))
    start = base.at("resid_pre", 0) + noise
    noisy = [run_of(model, BASE, embedded=start, like=like) for like in (None, base, plain)]
    noisy += [base.changed(embedded=start), plain.changed(embedded=start)]
    for run in noisy:
        assert torch.allclose(run.value(DIFFERENCE), expected, atol=1e-4)
    put = [Put("z", 1, source.at("z", 1)[None], places(model, "z"))]
    assert torch.allclose(noisy[0].edited(DIFFERENCE, put), noisy[2].edited(DIFFERENCE, put), atol=1e-4)
    changed = noisy[0].changed(put[:1] and [put[0].of_copy(0)])  # it keeps its own start
    assert torch.allclose(changed.value(DIFFERENCE), noisy[0].edited(DIFFERENCE, put)[0], atol=1e-4)
    # nothing is taken over from a run that starts elsewhere, though its tokens are the same
    assert torch.allclose(
        run_of(model, BASE, like=noisy[0]).value(DIFFERENCE), base.value(DIFFERENCE), atol=1e-5
    )


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_gradients(runs, metric):
    model, base, _, plain, _ = runs
    for left, right in zip(base.site_gradients(metric), plain.site_gradients(metric), strict=True):
        assert torch.allclose(left, right, atol=1e-4)
    found, expected = base.reader_gradients(metric), plain.reader_gradients(metric)
    heads = model.cfg.n_key_value_heads or 4
    assert [slope.shape[2] for slope in found] == [4, heads, heads, 1] * 3 + [1]
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, atol=1e-4)
    assert not model.cfg.use_split_qkv_input and hooks_left(model) == 0
    assert all(p.grad is None for p in model.original_model.parameters())


def test_gradients_flow_back_to_what_is_put(runs):
    model, base, _, plain, _ = runs
    where, slopes = torch.arange(9)[None, None] == 4, []
    for run in (base, plain):
        delta = torch.zeros(model.cfg.d_model, requires_grad=True)
        logits = run.logits([Put("mlp_out", 1, run.at("mlp_out", 1)[None] + delta, where)], 3)
        slopes.append(torch.autograd.grad(logits[:, -1, 7].sum(), delta)[0])
    assert torch.allclose(*slopes, atol=1e-4) and slopes[0].abs().max() > 1e-3


def test_when_memory_runs_out_the_batch_becomes_smaller(runs, monkeypatch):
    _, base, source, *_ = runs
    put, sizes, real = Put("resid_pre", 1, source.at("resid_pre", 1).expand(7, -1, -1, -1)), [], Fast._run_on

    def at_most(self, start, first, edits, copies, **named):
        sizes.append(copies.stop - copies.start)
        if sizes[-1] > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return real(self, start, first, edits, copies, **named)

    monkeypatch.setattr(Fast, "_run_on", at_most)
    limit = 2
    found = base.edited(DIFFERENCE, [put])
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert torch.allclose(found, found[:1].expand(7, -1)) and found.shape == (7, 3)
    limit = 0
    with pytest.raises(MemoryError, match=r"One run of 3 prompts .* does not fit .* Patch fewer prompts"):
        base.edited(DIFFERENCE, [put])
    monkeypatch.setattr(Fast, "_run_on", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # other errors are not taken for a lack of memory
        base.edited(DIFFERENCE, [put])


def test_the_batch_follows_free_memory(runs, monkeypatch):
    _, base, *_ = runs
    sizes = []
    for free in (0, 4 * 10**6, 4 * 10**7, 10**12):
        monkeypatch.setattr(fast, "free_bytes", lambda device, free=free: free)
        sizes.append(base._batch(0, DIFFERENCE))
    assert sizes[0] == 1 < sizes[1] < sizes[2] == sizes[3] == fast.ROWS // 27
    assert base._batch(0, ml.log_prob(3)) <= sizes[3]


def test_a_model_that_the_fast_engine_does_not_know_is_run_in_full_with_a_word(runs, monkeypatch):
    model, base, *_ = runs
    with monkeypatch.context() as broken:
        broken.setattr(matrices.Weights, "capped", lambda self, logits: 1.1 * logits)
        with pytest.raises(NotResumable, match="other logits than this model"):
            run_of(model, BASE, engine="fast")
    monkeypatch.setattr(matrices, "ACTIVATIONS", {"softplus": torch.nn.functional.softplus})
    with pytest.raises(NotResumable, match="does not know the activation"):
        run_of(model, BASE, engine="fast")
    with pytest.warns(
        UserWarning,
        match="does not know the activation.*Each patch is a full run of the model: slower, the same numbers",
    ):
        run = run_of(model, BASE)
    assert isinstance(run, Plain) and torch.allclose(run.value(DIFFERENCE), base.value(DIFFERENCE), atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the other run of the pair is of the same kind without a second word
        assert isinstance(run_of(model, SOURCE, like=run), Plain)


def test_a_precision_that_the_plain_engine_cannot_give_is_refused(runs):
    *_, plain, other = runs
    with pytest.raises(ValueError, match="bfloat16 needs the fast engine"):
        plain.edited(DIFFERENCE, [Put("z", 1, other.at("z", 1)[None])], dtype=torch.bfloat16)


def test_the_weights_are_not_copied(runs):
    model, base, source, *_ = runs
    assert base.weights.layers[1].down[0].data_ptr() == model.blocks[1].mlp.W_out.data_ptr()
    assert base.weights.layers[1].out[0].data_ptr() == model.blocks[1].attn.W_O.data_ptr()
    assert source.weights is base.weights


PAIR = {"steps": 2}
TECHNIQUES = {
    "activation_patching": lambda model, pair: ml.activation_patching(model, *pair, DIFFERENCE, "q", by=("pos", "head")),
    "path_patching into logits": lambda model, pair: ml.path_patching(model, *pair, DIFFERENCE),
    "path_patching into keys": lambda model, pair: ml.path_patching(
        model, *pair, DIFFERENCE, [(1, 0), (2, 1), (2, 3)], "k", at=torch.tensor([[3, 8], [4, 7], [8, 5]])
    ),
    "path_patching, mlps frozen": lambda model, pair: ml.path_patching(model, *pair, DIFFERENCE, [(2, 2)], "v", frozen_mlps=True),
    "attribution_patching": lambda model, pair: ml.attribution_patching(model, *pair, DIFFERENCE, **PAIR),
    "edge_attribution": lambda model, pair: ml.edge_attribution(model, *pair, DIFFERENCE, **PAIR),
    "causal_tracing": lambda model, pair: ml.causal_tracing(model, pair[0][:1], ml.log_prob(7), subject=[2, 3], samples=2, site="mlp_out", window=2),
    "steering_sweep": lambda model, pair: ml.steering_sweep(
        model, pair[0], DIFFERENCE, layers=[0, 2],
        vectors=ml.contrast_vectors(model, ["John went", "Mary went"], ["John gave", "Mary gave"]),
        strengths=[-0.5, 1.0], text=pair[1],
    ).effect,
}  # fmt: skip


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_technique_runs_on_both_engines_with_the_same_numbers(tiny, technique, monkeypatch):
    found = TECHNIQUES[technique](tiny, (BASE, SOURCE))
    kinds, real = [], engines.Plain
    monkeypatch.setattr(engines, "Fast", Refuses)
    monkeypatch.setattr(
        real, "edited", lambda *given, real=real.edited, **named: kinds.append(1) or real(*given, **named)
    )
    with pytest.warns(UserWarning, match="Each patch is a full run"):
        expected = TECHNIQUES[technique](tiny, (BASE, SOURCE))
    assert (
        (kinds or "attribution" in technique)
        and found.dims == expected.dims
        and found.labels == expected.labels
    )
    assert torch.allclose(found.values, expected.values, atol=2e-4), (
        (found.values - expected.values).abs().max()
    )
    assert torch.allclose(found.per_prompt, expected.per_prompt, atol=2e-4)
    assert found.values.abs().max() > 1e-3 and hooks_left(tiny) == 0


class Refuses:
    """Stands for the fast engine on a model that it does not know."""

    def __init__(self, *given, **named):
        raise NotResumable("New.")


def test_pairs_of_runs_must_correspond(tiny):
    with pytest.raises(ValueError, match="the same tokens, so a patch changes nothing"):
        runs_of(tiny, BASE, BASE.clone())
    with pytest.raises(ValueError, match=r"base is \(3, 9\) and source \(3, 8\)"):
        runs_of(tiny, BASE, SOURCE[:, 1:])
    _, source = runs_of(tiny, run_of(tiny, BASE, engine="plain"), SOURCE)
    assert isinstance(source, Plain)  # the second is of the kind of the first


def test_a_site_that_an_engine_does_not_know_is_refused(runs):
    _, base, source, *_ = runs
    with pytest.raises(ValueError, match="site is 'mlp_post'; it must be one of 'resid_pre'"):
        base.edited(DIFFERENCE, [Put("mlp_post", 1, source.at("mlp_out", 1)[None])])


def test_a_beginning_is_not_taken_over_from_a_run_that_was_edited(runs):
    model, base, _, plain, _ = runs
    first = (torch.arange(9) == 0)[None, None]
    tokens = torch.cat([BASE[:, :4], SOURCE[:, 4:]], dim=1)
    for run in (base, plain):
        changed = run.changed([Put("z", 0, torch.zeros(1, 1, 1, 4, 8), first)])
        found = run_of(model, tokens, like=changed).value(DIFFERENCE)
        assert torch.allclose(found, run_of(model, tokens).value(DIFFERENCE), atol=1e-5)
        assert not torch.allclose(changed.value(DIFFERENCE), base.value(DIFFERENCE), atol=1e-4)


def test_masks_without_heads_and_values_without_masks(runs):
    _, base, _, plain, _ = runs
    zeros, every = torch.zeros(1, 1, 9, 4, 8), torch.ones(1, 3, 9, dtype=torch.bool)
    held = [Put("z", layer, zeros, every, held=True) for layer in range(3)]
    alone = [Put("z", 1, torch.ones(1, 1, 9, 4, 8))]
    for edits in (held, alone):
        assert torch.allclose(base.edited(DIFFERENCE, edits), plain.edited(DIFFERENCE, edits), atol=1e-4)


def test_the_end_of_the_stream_is_refused_and_not_ignored(runs):
    _, base, *_ = runs
    with pytest.raises(ValueError, match="There is no layer 3"):
        base.edited(DIFFERENCE, [Put("resid_pre", 3, torch.ones(1, 1, 1, 32))])


# --- what a run belongs to, and the order of edits ---


def test_a_run_belongs_to_its_model_and_its_weights(tiny):
    base, source = run_of(tiny, BASE), run_of(tiny, SOURCE)
    plain = run_of(tiny, BASE, engine="plain")
    other = ml.tiny("gqa", seed=5)
    with pytest.raises(ValueError, match=r"made with another model .*A run belongs to one model"):
        ml.path_patching(other, base, source, DIFFERENCE)
    with ml.orthogonalize(tiny, torch.randn(32, generator=torch.Generator().manual_seed(1))):
        for run in (base, plain):
            for asked in (
                lambda run=run: run.value(DIFFERENCE),
                lambda run=run: run.edited(DIFFERENCE, [Put("z", 1, torch.zeros(1, 1, 1, 4, 8))]),
                lambda run=run: run.site_gradients(DIFFERENCE),
                lambda run=run: run.changed([]),
                lambda run=run: run.logits([], 1),
                lambda run=run: run.read("z", [1], [], torch.zeros(3, 1, dtype=torch.long)),
                lambda run=run: ml.activation_patching(tiny, run, SOURCE, DIFFERENCE),
                lambda run=run: run_of(tiny, SOURCE, like=run),
            ):
                with pytest.raises(ValueError, match="were changed since this run was made"):
                    asked()
    assert torch.allclose(base.value(DIFFERENCE), plain.value(DIFFERENCE), atol=1e-4)  # undone: as before


def test_weights_that_are_written_in_place_are_noticed():
    model = ml.tiny("gqa")
    run = run_of(model, BASE)
    with torch.no_grad():
        model.blocks[1].mlp.W_out.mul_(1.5)
    with pytest.raises(ValueError, match="were changed since this run was made"):
        run.value(DIFFERENCE)


def test_edits_come_after_the_embedding(runs):
    _, base, _, plain, _ = runs
    first = torch.zeros(1, 1, 9, dtype=torch.bool)
    first[..., 2] = True
    put = Put("resid_pre", 0, torch.ones(1, 1, 1, 32), first)
    start = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(4))
    for run in (base, plain):
        changed = run.changed([put]).changed(embedded=start)
        assert (changed.at("resid_pre", 0)[:, 2] == 1).all()
        assert torch.allclose(changed.at("resid_pre", 0)[:, 3], start[:, 3])


def test_what_an_mlp_writes_is_what_it_writes_also_before_an_edited_stream(runs):
    _, base, _, plain, _ = runs
    put = Put("resid_pre", 2, torch.zeros(1, 1, 1, 32))
    for run in (base, plain):
        assert torch.allclose(run.changed([put]).at("mlp_out", 1), run.at("mlp_out", 1), atol=1e-5)


def test_keys_of_single_query_heads_made_for_good_see_later_edits():
    model = ml.tiny("gqa")
    base, plain = (run_of(model, BASE, engine=engine) for engine in ("fast", "plain"))
    where = torch.zeros(1, 3, 9, 4, dtype=torch.bool)
    where[..., 1] = True
    value = torch.randn(1, 3, 9, 4, 8, generator=torch.Generator().manual_seed(2))
    later = [Put("resid_pre", 0, torch.randn(1, 3, 9, 32, generator=torch.Generator().manual_seed(3)))]
    found = [run.changed([Put("k", 2, value, where)]).edited(DIFFERENCE, later) for run in (base, plain)]
    assert torch.allclose(*found, atol=1e-4)
    assert not torch.allclose(found[0], base.edited(DIFFERENCE, later), atol=1e-3)


def test_a_pattern_that_looks_ahead_reaches_earlier_places(runs):
    """No causal model has one, and a hook can write one: then a later edit moves what stands before it."""
    _, base, _, plain, _ = runs
    ahead = torch.full((1, 3, 9, 4, 9), 1 / 9)
    last = (torch.arange(9) == 8)[None, None]
    for run, other in ((base, plain),):
        edits = [Put("z", 0, torch.ones(1, 1, 1, 4, 8), last)]
        found, expected = (
            each.changed([Put("pattern", 1, ahead)]).edited(ml.log_prob(9, pos=3), edits)
            for each in (run, other)
        )
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(
            found, run.changed([Put("pattern", 1, ahead)]).value(ml.log_prob(9, pos=3)), atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_run_as_it_rounds(dtype):
    from tests.architectures import bridge

    model, whole = bridge("Llama", dtype=dtype), bridge("Llama")
    with pytest.warns(
        UserWarning, match=rf"In {str(dtype)[6:]} this model rounds at every step.*the same numbers"
    ):
        found = ml.activation_patching(model, BASE, SOURCE, DIFFERENCE, "z", normalized=False)
    expected = ml.activation_patching(whole, BASE, SOURCE, DIFFERENCE, "z", normalized=False)
    assert found.values.dtype == torch.float32
    assert (found.values - expected.values).abs().max() < 0.1 * expected.values.abs().max() + 0.1


def test_double_precision_is_served_by_the_fast_engine():
    from tests.architectures import bridge

    model, whole = bridge("Llama", dtype=torch.float64), bridge("Llama")
    found = ml.path_patching(model, BASE, SOURCE, DIFFERENCE, normalized=False)
    assert isinstance(run_of(model, BASE), Fast)
    assert torch.allclose(
        found.values, ml.path_patching(whole, BASE, SOURCE, DIFFERENCE, normalized=False).values, atol=1e-4
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_a_mode_around_a_run_changes_nothing(tiny, mode, engine):
    def asked(tokens):
        base = run_of(tiny, tokens, engine=engine)
        source = run_of(tiny, SOURCE, like=base)
        return [
            torch.stack(base.site_gradients(DIFFERENCE)),
            *base.reader_gradients(DIFFERENCE),
            ml.edge_attribution(tiny, base, source, DIFFERENCE, steps=2).values,
            ml.activation_patching(tiny, base, source, DIFFERENCE, "v").values,
        ]

    expected = asked(BASE)
    with mode():
        found = asked(BASE.clone())
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("which", ("fast", "plain"))
@pytest.mark.parametrize("made", ("as it was", "edited", "another start"))
def test_some_prompts_of_a_run_are_a_run(runs, which, made):
    """Out of order and twice; everything that is asked of it is as in a run of these prompts alone."""
    model, *four = runs
    run, other = four[:2] if which == "fast" else four[2:]
    held = Put("z", 1, other.at("z", 1)[None], places(model, "z", 1), held=True)
    if made == "edited":
        run = run.changed([held]).changed(
            [Put("resid_pre", 2, other.at("resid_pre", 2)[None], places(model, "resid_pre", 1))]
        )
    if made == "another start":
        run = run.changed(embedded=other.at("resid_pre", 0))
    rows = [2, 0, 2, 1]
    some, metric = run.rows(rows), ml.logit_difference([9, 7, 9, 8], [12, 10, 12, 11])
    assert torch.equal(some.tokens, BASE[rows]) and len(some.batch) == 4 and isinstance(some, Run)
    assert torch.allclose(some.value(metric), run.value(DIFFERENCE)[rows], atol=1e-4)
    for site in ("resid_pre", "z", "q", "pattern", "post", "mlp_out"):
        assert torch.allclose(some.at(site, 1), run.at(site, 1)[rows], atol=1e-5), site
    put = Put("resid_pre", 1, other.at("resid_pre", 1)[None], places(model, "resid_pre"))
    whole, part = run.edited(DIFFERENCE, [put]), some.edited(metric, [put.of_rows(torch.tensor(rows))])
    assert torch.allclose(part, whole[:, rows], atol=1e-4)
    twice = some.rows(slice(1, 3)).changed([put.of_copy(0).of_rows(torch.tensor([0, 2]))])
    assert torch.allclose(twice.value(ml.logit_difference([7, 9], [10, 12])), whole[0, [0, 2]], atol=1e-4)
    slopes = zip(some.site_gradients(metric), run.site_gradients(DIFFERENCE), strict=True)
    assert all(torch.allclose(part, whole[rows], atol=1e-4) for part, whole in slopes)


def test_some_prompts_share_the_memory_of_the_run(runs):
    base = runs[1]
    some = base.rows(torch.tensor([True, False, True]))
    assert some.resid_pre.values is base.resid_pre and some.weights is base.weights
    assert run_of(base.model, SOURCE[:2], like=some).tokens.shape == (2, 9)
    for wrong in ([3], [], [-4]):
        with pytest.raises(ValueError, match=r"prompts 0 to 2"):
            base.rows(wrong)


def test_the_metric_of_an_edited_run_has_gradients_for_what_is_put(runs):
    """In both engines alike, where a value asks for them, and only there."""
    _, base, source, plain, other = runs
    found = []
    for run, theirs in ((base, source), (plain, other)):
        value = theirs.at("resid_pre", 1)[None].clone().requires_grad_()
        total = run.edited(DIFFERENCE, [Put("resid_pre", 1, value)]).sum()
        found.append(torch.autograd.grad(total, value)[0])
        assert not run.edited(DIFFERENCE, [Put("resid_pre", 1, value.detach())]).requires_grad
    assert torch.allclose(*found, atol=1e-4) and found[0].abs().max() > 1e-3
