"""Activation patching: the fast way gives the numbers of the plain way and of TransformerLens."""

import warnings
from functools import cache

import pytest
import torch
from transformer_lens import patching as theirs

import mechlab as ml
from mechlab.runs import engines
from mechlab.runs.engines import run_of
from mechlab.runs.fast import Fast
from mechlab.runs.places import places_of
from mechlab.runs.run import SITES, WITH_HEADS, Put
from mechlab.tokens import batch_of
from tests.test_hooks import hooks_left
from tests.test_runs import Refuses

METRIC = ml.logit_difference([7, 8, 9], [10, 11, 12])
WAYS = [
    (site, by)
    for site in SITES
    for by in ((), ("pos",), ("head",), ("pos", "head"))
    if site in WITH_HEADS or "head" not in by
]
PLACES = {
    "everywhere": None,
    "two positions": [4, -1],
    "a place for each prompt": {"a": torch.tensor([1, 5, 8]), "b": torch.tensor([6, 6, 2])},
}


BASE, SOURCE = torch.randint(5, 60, (2, 3, 9), generator=torch.Generator().manual_seed(0))
BASE[:, :3] = SOURCE[:, :3]  # the runs are equal up to there


@pytest.fixture
def tokens():
    return BASE.clone(), SOURCE.clone()


def patched(run, other, layer, site, masks, heads):
    """Base's metric with a site patched where each mask says, for each head alone or for all: [prompt, head]."""
    count = other.at(site, layer).shape[2] if heads else 1
    alone = torch.eye(count, dtype=torch.bool)[:, None, None] if heads else None
    where = masks[None] if alone is None else masks[None, :, :, None] & alone
    return run.edited(run.metric, [Put(site, layer, other.at(site, layer)[None], where)]).T


@cache
def in_full(model, site, heads):
    """Whole runs with a hook: [prompt, layer, head] for every position alone, then for each of PLACES together.

    All of them are rows of one batch, each with its own mask, so there is one run for each layer (and head).
    """
    alone = torch.eye(9, dtype=torch.bool)[:, None].expand(-1, 3, -1)
    together = [places_of(batch_of(model, BASE), where, apart=False)["all"] for where in PLACES.values()]
    masks = torch.cat([alone, torch.stack(together)])  # [what, prompt, position]
    run, other = (run_of(model, tokens.repeat(len(masks), 1), engine="plain") for tokens in (BASE, SOURCE))
    run.metric = ml.logit_difference([7, 8, 9] * len(masks), [10, 11, 12] * len(masks))
    layers = range(model.cfg.n_layers)
    found = torch.stack(
        [patched(run, other, layer, site, masks.flatten(0, 1), heads) for layer in layers], dim=1
    )
    change = (found - run.value(run.metric)[:, None, None]).unflatten(0, (-1, 3))
    return change[:9], dict(zip(PLACES, change[9:], strict=True))


def plain(model, base, source, site, by, positions, metric=METRIC):
    """Each patch as a whole run with a hook: [prompt, layer, place, head]."""
    run, other = (run_of(model, tokens, engine="plain") for tokens in (base, source))
    run.metric = metric
    places = places_of(batch_of(model, base), positions, "pos" in by).values()
    found = [
        torch.stack([patched(run, other, layer, site, where, "head" in by) for where in places], dim=1)
        for layer in range(model.cfg.n_layers)
    ]
    return torch.stack(found, 1) - run.value(metric).view(-1, 1, 1, 1)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("site", "by"), WAYS)
def test_the_fast_way_is_the_plain_way(tiny, tokens, site, by, place):
    where = PLACES[place]
    found = ml.activation_patching(tiny, *tokens, METRIC, site, by=by, positions=where, normalized=False)
    alone, together = in_full(tiny, site, "head" in by)
    if "pos" not in by:
        expected = together[place][:, :, None]
    elif isinstance(where, dict):  # one place, another position in each prompt
        expected = torch.stack([alone[each, torch.arange(3)] for each in where.values()], dim=2)
    else:
        expected = alone[slice(None) if where is None else where].permute(1, 2, 0, 3)
    assert torch.allclose(found.per_prompt.flatten(), expected.flatten(), atol=1e-4)
    assert expected.abs().max() > 1e-3
    assert found.dims == ("layer", *by)
    assert hooks_left(tiny) == 0


@pytest.mark.parametrize(
    ("name", "site", "by"),
    [
        ("get_act_patch_resid_pre", "resid_pre", ("pos",)),
        ("get_act_patch_attn_out", "attn_out", ("pos",)),
        ("get_act_patch_mlp_out", "mlp_out", ("pos",)),
        ("get_act_patch_attn_head_out_all_pos", "z", ("head",)),
        ("get_act_patch_attn_head_out_by_pos", "z", ("pos", "head")),
        ("get_act_patch_attn_head_q_all_pos", "q", ("head",)),
        ("get_act_patch_attn_head_k_all_pos", "k", ("head",)),
        ("get_act_patch_attn_head_v_all_pos", "v", ("head",)),
        ("get_act_patch_attn_head_v_by_pos", "v", ("pos", "head")),
        ("get_act_patch_attn_head_pattern_all_pos", "pattern", ("head",)),
        ("get_act_patch_attn_head_pattern_by_pos", "pattern", ("pos", "head")),
    ],
)
def test_transformer_lens_finds_the_same(tiny, name, site, by):
    base, source = BASE[:, 2:7], SOURCE[:, 2:7]
    with torch.no_grad():
        _, cache = tiny.run_with_cache(source)
        expected = getattr(theirs, name)(tiny, base, cache, lambda logits: METRIC(logits).mean())
        start = METRIC(tiny(base)).mean()
    if "pattern" in name and by == ("pos", "head"):
        expected = expected.transpose(1, 2) if expected.shape[1] == tiny.cfg.n_heads else expected
    found = ml.activation_patching(tiny, base, source, METRIC, site, by=by, normalized=False)
    assert torch.allclose(found.values, expected - start, atol=1e-4)


def test_everything_patched_is_everything_and_nothing_is_nothing(tiny, tokens):
    base, source = tokens
    whole = ml.activation_patching(tiny, base, source, METRIC, "resid_pre", by=())
    assert torch.allclose(whole.values, torch.ones(3), atol=1e-4)
    nothing = ml.activation_patching(tiny, base, source, METRIC, "resid_pre", positions=[0, 2])
    assert torch.equal(nothing.values, torch.zeros(3, 2))  # equal so far: not even computed
    assert whole.baselines.keys() == {"base", "source"}


def test_denoising_and_noising_are_two_questions(tiny, tokens):
    base, source = tokens
    one = ml.activation_patching(tiny, base, source, METRIC, "z")
    other = ml.activation_patching(tiny, source, base, METRIC, "z")
    assert one.baselines["base"] == pytest.approx(other.baselines["source"], abs=1e-5)
    assert not torch.allclose(one.values, other.values, atol=1e-2)


def test_the_share_is_of_the_means_and_has_an_interval(tiny, tokens):
    share = ml.activation_patching(tiny, *tokens, METRIC, "z")
    change = ml.activation_patching(tiny, *tokens, METRIC, "z", normalized=False)
    span = change.baselines["source"] - change.baselines["base"]
    assert torch.allclose(share.values, change.values / span, atol=1e-5)
    assert share.interval().shape == (2, 3, 4)
    assert "95 % low" not in share.top(3).columns  # three prompts are too few to show one


def test_labels_name_layers_positions_and_heads(gqa, tokens):
    found = ml.activation_patching(gqa, *tokens, METRIC, "v", by=("head",), layers=[2, 1])
    assert found.values.shape == (2, 2) and found.place((0, 1)) == "2.1"
    named = ml.activation_patching(gqa, *tokens, METRIC, by=("pos",), positions={"end": [8, 8, 8]})
    assert list(named.labels["pos"]) == ["end"]
    assert "patching" not in named.name and "share" in named.name


def test_a_model_of_another_kind_is_run_in_full_with_a_word(tiny, tokens, monkeypatch):
    given = {"site": "z", "by": ("pos", "head"), "positions": [4, -1], "layers": [0, 2]}
    expected = ml.activation_patching(tiny, *tokens, METRIC, **given)
    monkeypatch.setattr(engines, "Fast", Refuses)
    with pytest.warns(
        UserWarning, match="New. Each patch is a full run of the model: slower, the same numbers"
    ):
        found = ml.activation_patching(tiny, *tokens, METRIC, **given)
    assert torch.allclose(found.values, expected.values, atol=1e-4)


def test_unfolded_norms_are_run_in_full(folder, tokens):
    model = ml.load(folder[0], quiet=True, fold=False)
    base, source = tokens
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ml.activation_patching(model, base, source, METRIC, "z", normalized=False)
    assert torch.allclose(
        found.per_prompt.flatten(), plain(model, base, source, "z", ("head",), None).flatten(), atol=1e-4
    )
    norms = [p for name, p in model.original_model.named_parameters() if "norm" in name or "ln_" in name]
    if any((p - p.round()).abs().max() > 0 for p in norms):
        assert any("run of the model" in str(w.message) for w in caught)


def test_a_folder_in_hugging_face_format(folder, tokens):
    model = ml.load(folder[0], quiet=True)
    found = ml.activation_patching(model, *tokens, METRIC, "z", normalized=False)
    assert torch.allclose(
        found.per_prompt.flatten(), plain(model, *tokens, "z", ("head",), None).flatten(), atol=1e-4
    )


def test_bfloat16_says_how_far_it_is_off(tiny, tokens, capsys):
    exact = ml.activation_patching(tiny, *tokens, METRIC, "z")
    rough = ml.activation_patching(tiny, *tokens, METRIC, "z", dtype=torch.bfloat16)
    off = (rough.values - exact.values).abs().max()
    assert 0 < off < 0.15
    assert "bfloat16" in capsys.readouterr().out


def test_an_interrupted_sweep_keeps_what_is_finished(tiny, tokens, monkeypatch, capsys):
    whole = ml.activation_patching(tiny, *tokens, METRIC, "z")
    real = Fast.edited

    def stop(self, metric, edits, **given):
        if edits[0].layer == 2:
            raise KeyboardInterrupt
        return real(self, metric, edits, **given)

    monkeypatch.setattr(Fast, "edited", stop)
    kept = ml.activation_patching(tiny, *tokens, METRIC, "z")
    assert torch.equal(kept.values, whole.values[:2])
    assert "layers 0 to 1 are finished" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):  # nothing is finished yet
        ml.activation_patching(tiny, *tokens, METRIC, "z", layers=[2])


def test_the_weights_stay_as_they_were(tiny, tokens):
    before = {name: p.clone() for name, p in tiny.original_model.state_dict().items()}
    for site in SITES:
        ml.activation_patching(tiny, *tokens, METRIC, site)
    assert all(torch.equal(p, before[name]) for name, p in tiny.original_model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "mlp"}, "site is 'mlp'; it must be one of 'resid_pre'"),
        ({"source": torch.ones(3, 8, dtype=torch.long)}, r"base is \(3, 9\) and source \(3, 8\)"),
        ({"source": "base"}, "the same tokens, so a patch changes nothing"),
        ({"layers": [1, 3]}, "the model has layers 0 to 2"),
        ({"layers": []}, "the model has layers 0 to 2"),
        ({"positions": [2, 9]}, "positions is 9, and prompt 0 has 9 tokens: positions 0 to 8"),
        ({"positions": []}, "nothing to patch"),
        ({"positions": {"S2": [1, 2, 12]}}, "The position of 'S2' is 12, and prompt 2 has 9 tokens"),
        ({"by": ("head",)}, "can be patched by"),
        ({"metric": ml.logit_difference([1, 2], 3)}, "3 prompts and 2 answers"),
        ({"metric": lambda logits: logits.mean()}, "one number per prompt"),
    ],
)
def test_bad_input_is_named(tiny, tokens, change, message):
    base, source = tokens
    given = {"base": base, "source": source, "metric": METRIC, "site": "resid_pre"} | change
    given["source"] = base if isinstance(given["source"], str) else given["source"]
    with pytest.raises(ValueError, match=message):
        ml.activation_patching(tiny, **given)


@pytest.mark.model
def test_on_the_model_of_the_course(smollm2):
    text = [
        "When John and Mary went to the store, {} gave a drink to",
        "When Tom and Laura went to the store, {} gave a drink to",
    ]
    clean = smollm2.to_tokens([text[0].format("John"), text[1].format("Tom")])
    corrupted = smollm2.to_tokens([text[0].format("Mary"), text[1].format("Laura")])
    answers = [ml.single_token(smollm2, name) for name in (" Mary", " Laura")]
    wrong = [ml.single_token(smollm2, name) for name in (" John", " Tom")]
    metric = ml.logit_difference(answers, wrong)
    found = ml.activation_patching(smollm2, corrupted, clean, metric, "z", layers=[16, 23])
    run, other = (run_of(smollm2, tokens, engine="plain") for tokens in (corrupted, clean))
    run.metric, everywhere = metric, torch.ones_like(clean, dtype=torch.bool)
    start, end = run.value(metric), other.value(metric)
    for row, (layer, head) in enumerate(((16, 0), (23, 3))):
        expected = patched(run, other, layer, "z", everywhere, True)[:, head] - start
        share = expected.mean() / (end - start).mean()
        assert found.values[row, head] == pytest.approx(share.item(), abs=1e-4)
