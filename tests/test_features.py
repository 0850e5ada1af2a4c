"""Features: where they are active, what their pages say, setting one and nothing else; the explorers; bad input."""

import pytest
import torch

import mechlab as ml
from mechlab.discovery.features import FeaturePage
from mechlab.pictures.widgets import feature_browser, pattern_explorer, toy_explorer
from tests.test_hooks import hooks_left

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", params=["gqa", "gpt2"])
def read(request):
    """A tiny model, texts, a dictionary of one of its streams, and where its features are active."""
    model = ml.tiny(request.param)
    texts = torch.randint(5, 60, (13, 14), generator=torch.Generator().manual_seed(0))
    data = ml.token_activations(model, texts, HOOK)
    sae = ml.train_sae(data, width=48, k=6, steps=200, batch=64, hook=HOOK).sae
    return model, texts, sae, ml.feature_activity(model, sae, texts, batch=5)


def test_activations_are_the_models_without_the_sink_and_the_outliers(read):
    model, texts, _, _ = read
    with torch.no_grad():
        _, cache = model.run_with_cache(texts)
    x = cache[HOOK]
    assert torch.allclose(
        ml.token_activations(model, texts, HOOK, batch=4), x[:, 1:].flatten(0, 1), atol=1e-5
    )
    length = x[:, 2:].flatten(0, 1).norm(dim=1)
    short = ml.token_activations(model, texts, HOOK, skip=2, longest=1.0)
    assert len(short) == (length < length.median()).sum() < len(length)
    with pytest.raises(ml.HookError, match="Nearest"):
        ml.token_activations(model, texts, "blocks.9.hook_resid_post")


def test_activity_is_the_encoding_entry_by_entry(read, tmp_path):
    model, texts, sae, activity = read
    with torch.no_grad():
        _, cache = model.run_with_cache(texts, names_filter=HOOK)
        dense = sae.encode(cache[HOOK])
    dense[:, 0] = 0  # left out
    again = torch.zeros(texts.numel(), sae.d_sae)
    again[activity.token, activity.feature] = activity.activation
    assert torch.allclose(again.view_as(dense), dense, atol=1e-4)
    assert activity.tokens == 13 * 13
    assert torch.allclose(activity.density, (dense > 0).float().sum((0, 1)) / activity.tokens)
    feature = int(activity.density.argmax())
    text, position, strength = activity.loudest(feature, 4)
    assert torch.equal(strength, strength.sort(descending=True).values) and len(strength) == 4
    assert strength[0] == dense[..., feature].max() and torch.allclose(
        dense[text, position, feature], strength, atol=1e-4
    )
    activity.save(tmp_path / "a.safetensors")
    back = ml.Activity.load(tmp_path / "a.safetensors")
    assert torch.equal(back.token, activity.token) and torch.equal(back.feature, activity.feature)
    assert torch.equal(back.texts, texts) and (back.d_sae, back.skip) == (48, 1)
    assert torch.allclose(back.activation, activity.activation, rtol=1e-3)
    for wrong in (-1, 48):
        with pytest.raises(ValueError, match="features 0 to 47"):
            activity.loudest(wrong)


def test_features_of_a_word(read):
    model, texts, sae, activity = read
    word = int(texts[3, 4])
    said = model.tokenizer.decode([word]).strip().lower()
    same = [i for i in texts.unique().tolist() if model.tokenizer.decode([i]).strip().lower() == said]
    here = torch.isin(texts[:, 1:], torch.tensor(same))
    dense = torch.zeros(texts.numel(), sae.d_sae).index_put(
        (activity.token, activity.feature), activity.activation
    )
    mean = dense.view(*texts.shape, -1)[:, 1:][here].mean(0)
    mean[activity.density >= 0.1] = 0
    found = activity.on_word(model, f" {said.upper()} ", k=2)
    expected = mean.topk(2)
    assert [n for n, _ in found] == expected.indices.tolist()[: len(found)]
    assert [v for _, v in found] == pytest.approx(expected.values.tolist()[: len(found)], rel=1e-4)
    assert activity.on_word(model, "no such word") == [] == activity.on_word(model, "  ")


@pytest.mark.parametrize("given", [{"value": 3.0}, {"times": -2.0}, {"times": 0}])
def test_one_feature_changes_and_nothing_else(read, given):
    model, texts, sae, _ = read
    with torch.no_grad():
        _, cache = model.run_with_cache(texts)
        x, seen = cache[HOOK], []
        with ml.intervene(
            model, [*ml.feature_hooks(model, sae, 7, **given), (HOOK, lambda y, hook: seen.append(y))]
        ):
            model(texts)
    old = sae.encode(x)[..., 7, None]
    new = given["value"] if "value" in given else given["times"] * old
    expected = x + (new - old) * sae.W_dec[7]
    assert torch.equal(seen[0][:, 0], x[:, 0]) and torch.allclose(seen[0][:, 1:], expected[:, 1:], atol=1e-4)
    assert hooks_left(model) == 0


def test_setting_a_feature_while_the_model_writes(read):
    model, texts, sae, _ = read
    hooks = ml.feature_hooks(model, sae, 7, value=40.0)
    with torch.no_grad(), ml.intervene(model, hooks):
        out = model.generate(
            texts[:2, :5], max_new_tokens=6, do_sample=False, verbose=False, stop_at_eos=False
        )
    tokens = texts[:2, :5]
    for _ in range(6):  # the same without a cache of keys and values
        with torch.no_grad(), ml.intervene(model, hooks):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(out, tokens)


def test_a_page_says_what_is_there(read):
    model, texts, sae, activity = read
    feature = int((activity.density * (activity.density < 0.5)).argmax())
    page = ml.feature_page(model, sae, activity, feature, k=3, around=2)
    text, position, strength = activity.loudest(feature)
    assert page.density == pytest.approx(len(text) / activity.tokens)
    said = model.tokenizer.decode
    row, at = texts[text[0]].tolist(), int(position[0])
    assert page.examples[0] == (
        said(row[max(1, at - 2) : at]), said([row[at]]), said(row[at + 1 : at + 3]), strength[0].item()
    )  # fmt: skip
    assert len(page.examples) == 3 == len(page.quieter)
    assert max(e[3] for e in page.quieter) <= min(e[3] for e in page.examples)
    effect = (sae.W_dec[feature] @ model.W_U).detach()
    assert page.raises[0][1] == pytest.approx((effect.max() - effect.mean()).item(), abs=1e-4)
    assert page.lowers[0][1] == pytest.approx((effect.min() - effect.mean()).item(), abs=1e-4)
    with torch.no_grad():
        places = (range(3), position[:3])
        intact = model(texts[text[:3]])[places].softmax(-1)
        with ml.intervene(model, ml.feature_hooks(model, sae, feature, times=0)):
            without = model(texts[text[:3]])[places].softmax(-1)
    assert page.needed[0][1] == pytest.approx(-(intact - without).mean(0).max().item(), abs=1e-6)
    assert f"Feature {feature}: active on" in repr(page) and "[" + page.examples[0][1].replace(
        "\n", "↵"
    ) in repr(page)
    assert "<mark" in page._repr_html_()
    bad = FeaturePage(0, 0.1, [("<b>", "&", "</b>", 1.0)], [], [], [], [])
    assert "<b>&" not in bad._repr_html_() and "&lt;b&gt;" in bad._repr_html_()
    silent = ml.Activity(
        texts, *(t[:0] for t in (activity.token, activity.feature, activity.activation)), sae.d_sae, 1
    )
    empty = ml.feature_page(model, sae, silent, 3)
    assert empty.density == 0 and empty.examples == empty.quieter == empty.needed == [] and empty.raises


def test_the_splice_in_parts(read):
    model, texts, sae, _ = read
    whole = ml.splice(model, sae, texts)
    with torch.no_grad(), ml.intervene(model, ml.splice_hooks(model, sae)):
        spliced = model(texts, return_type="loss", loss_per_token=True)[:, 1:].mean().item()
    assert whole.loss["spliced"] == pytest.approx(spliced, abs=1e-5)
    other = ml.train_sae(
        ml.token_activations(model, texts, HOOK), width=48, k=2, steps=20, batch=64, hook=HOOK
    ).sae
    alone, beside = ml.splice(model, other, texts), ml.splice(model, other, texts, beside=whole)
    assert beside.loss == pytest.approx(alone.loss, abs=1e-5) and beside.active == alone.active
    assert beside.unexplained == alone.unexplained != whole.unexplained
    with pytest.raises(ValueError, match="beside is of"):
        ml.splice(model, sae, texts[:-1], beside=whole)


def test_shares_have_intervals_over_texts(read):
    model, texts, sae, _ = read
    found = ml.splice(model, sae, texts[:9])
    x = model.run_with_cache(texts[:9])[1][HOOK][:, 1:]
    error = (x - sae.decode(sae.encode(x))).pow(2).sum((1, 2))
    around = (x - x.mean((0, 1))).pow(2).sum((1, 2))
    drawn = torch.randint(9, (4000, 9), generator=torch.Generator().manual_seed(5))
    low, high = (error[drawn].sum(1) / around[drawn].sum(1)).quantile(torch.tensor([0.025, 0.975])).tolist()
    shown = found.intervals()["unexplained"]
    assert shown.mean == pytest.approx(found.unexplained, abs=1e-5)
    assert (shown.low, shown.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert found.intervals()["recovered"].mean == pytest.approx(found.recovered, abs=1e-5)
    few = ml.splice(model, sae, texts[:7])
    assert few.intervals()["recovered"].low != few.intervals()["recovered"].low and "no interval" in repr(few)


def test_what_cannot_be_is_refused(read):
    model, texts, sae, _ = read
    for given in ({}, {"value": 1.0, "times": 2.0}):
        with pytest.raises(ValueError, match="either value"):
            ml.feature_hooks(model, sae, 1, **given)
    with pytest.raises(ValueError, match="features 0 to 47"):
        ml.feature_hooks(model, sae, 48, times=0)
    with pytest.raises(ValueError, match="at least 3"):
        ml.splice(model, sae, texts[:, :2])
    wide = ml.train_sae(torch.randn(200, 16), width=20, k=2, steps=3, batch=64, hook=HOOK).sae
    for refused in (ml.splice, ml.feature_activity):
        with pytest.raises(ValueError, match="width 16; these have width"):
            refused(model, wide, texts)
    assert hooks_left(model) == 0
    elsewhere = ml.train_sae(
        torch.randn(200, 16), width=20, k=2, steps=3, batch=64, hook="blocks.77.hook_resid_post"
    ).sae
    with pytest.raises(ml.HookError, match="no hook"):
        ml.feature_activity(model, elsewhere, texts)


def test_the_feature_browser_shows_searches_and_draws(read):
    model, texts, sae, activity = read
    box = feature_browser(model, sae, activity, feature=2)
    (number, draw, word), found, shown = box.children[0].children, box.children[1], box.children[2]
    assert "Feature 2<" in shown.value
    number.value = 5
    assert "Feature 5<" in shown.value
    draw.click()
    assert f"Feature {number.value}<" in shown.value
    ranked = []
    for token in texts.unique().tolist():
        said = model.tokenizer.decode([token]).strip()
        ranked = activity.on_word(model, said)
        if len(ranked) > 1:
            break
    word.value = said
    assert number.value == ranked[0][0] and f"Feature {ranked[0][0]}<" in shown.value
    assert [value for _, value in found.options] == [n for n, _ in ranked]
    found.value = ranked[1][0]
    assert f"Feature {ranked[1][0]}<" in shown.value
    word.value = "nowhere at all"
    assert "not in these texts" in found.options[0][0] and f"Feature {ranked[1][0]}<" in shown.value


def test_the_pattern_and_toy_explorers(read):
    model, texts, _, _ = read
    box = pattern_explorer(model, texts[:1], layer=1, head=2)
    (layer, head), shown = box.children[0].children, box.children[1]
    assert "head 1.2" in shown.value
    with torch.no_grad():
        _, cache = model.run_with_cache(texts[:1])
    before = shown.value
    head.value, layer.value = 0, 0
    assert "head 0.0" in shown.value and shown.value != before
    last = cache["pattern", 0][0, 0, -1]
    assert f"{last.max():.2f} on" in shown.value and shown.value.count("<tr>") == texts.shape[1]
    toy = ml.train_toy_models(5, 2, density=(1.0, 0.05), steps=600)
    box = toy_explorer(toy)
    slider, shown = box.children[:2]
    first = shown.value
    slider.value = 1
    assert (
        shown.value != first and "5 of 5 features are kept" in shown.value and shown.value.count("<line") == 5
    )
    with pytest.raises(ValueError, match="drawn in a plane"):
        toy_explorer(ml.train_toy_models(5, 3, density=(1.0,), steps=2))
