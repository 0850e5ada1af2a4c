"""Dictionaries, lenses and activities: of files only what is known, of another model nothing, in every precision the same."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mechlab as ml
from mechlab.loading import models
from mechlab.loading.models import require_folded
from mechlab.loading.origin import Origin
from tests.architectures import FAMILIES, bridge, kept

HOOK = "blocks.1.hook_resid_post"
TEXTS = torch.randint(5, 300, (30, 14), generator=torch.Generator().manual_seed(0))
W = torch.randn(24, 32, generator=torch.Generator().manual_seed(1))
SAELENS = {"W_enc": W.T.contiguous(), "b_enc": torch.zeros(24), "W_dec": W.clone(), "b_dec": torch.zeros(32)}
SPARSIFY = {
    "encoder.weight": W,
    "encoder.bias": torch.zeros(24),
    "W_dec": W.clone(),
    "b_dec": torch.zeros(32),
}


def written(folder, config, tensors, name="sae_weights.safetensors"):
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / name)
    return folder


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"architecture": "gated"}, {}, "kind 'gated'"),
        ({"architecture": "matryoshka_batchtopk"}, {}, "kind 'matryoshka_batchtopk'"),
        ({"architecture": "transcoder"}, {}, "kind 'transcoder'"),
        ({"architecture": "topk"}, {}, "k=None: with that none would be active"),
        ({"architecture": "topk", "k": 0}, {}, "k=None"),
        ({"architecture": "topk", "k": 99}, {}, "k=99"),
        ({"activation_fn_str": "topk"}, {}, "k=None"),
        ({"activation_fn_str": "tanh-relu"}, {}, "activation_fn='tanh-relu'"),
        ({"reshape_activations": "hook_z"}, {}, "reshape_activations='hook_z'"),
        ({"normalize_activations": "layer_norm"}, {}, r"rescales its input \(normalize_activations\)"),
        ({"normalize_activations": "expected_average_only_in"}, {}, "rescales its input"),
        (
            {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True},
            {},
            "rescale_acts_by_decoder_norm",
        ),
        ({"finetuning_scaling_factor": True}, {}, "finetuning_scaling_factor=True"),
        ({"hook_head_index": 3}, {}, "hook_head_index=3"),
        ({"metadata": {"hook_head_index": 3}}, {}, "hook_head_index=3"),
        ({"architecture": "jumprelu"}, {}, "lacks threshold"),
        ({}, {"W_dec": None}, "lacks W_dec"),
        ({}, {"scaling_factor": torch.ones(24)}, "holds scaling_factor"),
        ({}, {"b_enc": torch.zeros(23)}, r"b_enc is \(23,\)"),
        ({}, {"W_dec": W.T.contiguous()}, r"W_dec is \(32, 24\)"),
        ({}, {"W_enc": torch.full((32, 24), torch.nan)}, "NaN or infinite numbers in W_enc"),
        ({"d_in": 64}, {}, "says d_in=64, and the weights have 32"),
        ({"d_sae": 48}, {}, "says d_sae=48"),
    ],
)
def test_a_dictionary_of_saelens_that_does_more_is_refused_by_name(tmp_path, config, tensors, message):
    with pytest.raises(ValueError, match=message):
        ml.SparseAutoencoder.load(written(tmp_path, config, SAELENS | tensors))


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"signed": True}, {}, "signed=True"),
        ({"multi_topk": True}, {}, "multi_topk=True"),
        ({"transcode": True}, {}, "transcode=True"),
        ({"skip_connection": True}, {}, "skip_connection=True"),
        ({"activation": "groupmax"}, {}, "activation='groupmax'"),
        ({"a_flag_of_next_year": 1}, {}, "a_flag_of_next_year"),
        ({"k": None}, {}, "k=None"),
        ({"num_latents": 25}, {}, "num_latents=25"),
        ({}, {"W_skip": torch.ones(32, 32)}, "holds W_skip"),
        ({}, {"encoder.bias": None}, "lacks encoder.bias"),
        ({}, {"W_dec": W.T.contiguous()}, r"W_dec is \(32, 24\)"),
    ],
)
def test_a_dictionary_of_sparsify_that_does_more_is_refused_by_name(tmp_path, config, tensors, message):
    usual = {"k": 4, "d_in": 32, "num_latents": 24, "signed": False, "transcode": False, "activation": "topk"}
    ml.SparseAutoencoder.load(written(tmp_path, usual, SPARSIFY, "sae.safetensors"), hook=HOOK)
    with pytest.raises(ValueError, match=message):
        ml.SparseAutoencoder.load(written(tmp_path, usual | config, SPARSIFY | tensors, "sae.safetensors"))


def test_a_damaged_dictionary_is_one_sentence(tmp_path):
    written(tmp_path, {}, SAELENS)
    path = tmp_path / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        ml.SparseAutoencoder.load(tmp_path)
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, not a dictionary of settings"):
        ml.SparseAutoencoder.load(tmp_path)


def trained(model, **given):
    acts = ml.token_activations(model, TEXTS, HOOK)
    return ml.train_sae(acts, **{"width": 48, "k": 6, "steps": 40, "batch": 64, "hook": HOOK} | given).sae


def test_an_activation_with_heads_is_no_activation_of_a_dictionary(gqa):
    for hook in ("blocks.1.attn.hook_z", "blocks.0.attn.hook_k", "hook_embed"):
        with pytest.raises(ValueError, match="is no activation"):
            ml.token_activations(gqa, TEXTS, hook)
        sae = dataclasses.replace(trained(gqa), hook=hook)
        for use in (ml.splice, ml.feature_activity):
            with pytest.raises(ValueError, match="is no activation"):
                use(gqa, sae, TEXTS)


def test_what_was_made_from_one_model_is_refused_by_another(gqa, tmp_path):
    """Of the same sizes; also from a file, not after an edit, and not in another precision or unfolded."""
    sae, lens, other = trained(gqa), ml.AffineLens.fit(gqa, TEXTS), ml.tiny("gqa", seed=5)
    sae.save(tmp_path / "sae")
    lens.save(tmp_path / "lens")
    message = r"was made from tiny-gqa, and this model \({}\) has other weights"
    for each in (sae, ml.SparseAutoencoder.load(tmp_path / "sae")):
        for use in (lambda m, s: ml.splice(m, s, TEXTS), lambda m, s: ml.feature_activity(m, s, TEXTS)):
            use(gqa, each)
            with pytest.raises(ValueError, match="dictionary " + message.format("tiny-gqa")):
                use(other, each)
        with pytest.raises(ValueError, match=message.format("random tiny-gqa")):
            ml.feature_hooks(ml.random_weights(gqa, seed=1), each, 1, times=0)
        with ml.orthogonalize(gqa, torch.randn(32, generator=torch.Generator().manual_seed(3))):
            ml.splice(gqa, each, TEXTS)
        ml.splice(other, dataclasses.replace(each, origin=None), TEXTS)
    for each in (lens, ml.AffineLens.load(tmp_path / "lens")):
        each.check(gqa)
        with pytest.raises(ValueError, match="lens " + message.format("tiny-gqa")):
            each.check(other)
    save_file(dict(load_file(tmp_path / "lens")), tmp_path / "lens")  # one that does not say its model
    ml.AffineLens.load(tmp_path / "lens").check(other)
    with pytest.raises(ValueError, match="3 layers of width 8; the model has 3 of width 32"):
        ml.AffineLens(torch.zeros(3, 8, 8), torch.zeros(3, 8)).check(gqa)
    with pytest.raises(ValueError, match="says about its model is damaged"):
        Origin.read("{")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_the_same_in_every_precision_and_folded_or_not(family):
    origin = Origin.read(Origin.of(kept(family)).text())
    others = [{"fold": False}, {"dtype": torch.bfloat16}]
    others += [{"dtype": torch.float64}] if family != "Mixtral" else []  # torch has no experts in float64
    for given in others:
        origin.check(bridge(family, **given), "This")
    with pytest.raises(ValueError, match="has other weights"):
        origin.check(ml.random_weights(kept(family), seed=1), "This")


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_is_what_the_norm_does(family):
    """Not what it stores: Gemma keeps 0 where it multiplies by 1."""
    folded, raw = kept(family), bridge(family, fold=False)
    norm = folded.ln_final.original_component
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)) * 4
    plain = x - x.mean(-1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else x
    plain = plain / plain.pow(2).mean(-1, keepdim=True).sqrt()
    if torch.allclose(norm(x), plain, atol=1e-3):
        require_folded(folded)
    else:
        assert family == "OLMo2"
        with pytest.raises(ValueError, match="TransformerLens does not fold the norms of Olmo2ForCausalLM"):
            require_folded(folded)
    with pytest.raises(ValueError, match=r"\(it has a (weight|bias) of its own\).*Load it with fold=True"):
        require_folded(raw)


@pytest.mark.parametrize("kind", ["gqa", "gpt2"])
def test_random_weights_are_drawn_and_folded_as_any_other_model(kind):
    """A short way where fresh norms fold to nothing: the same numbers, without two gigabytes of copies."""
    model = ml.tiny(kind)
    drawn = ml.random_weights(model, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        plain = AutoModelForCausalLM.from_config(
            copy.deepcopy(model.original_model.config), dtype=torch.float32
        )
    whole = models._boot("x", torch.float32, process=True, hf_model=plain, tokenizer=model.tokenizer)
    tokens = torch.randint(5, 390, (2, 9))
    with torch.no_grad():
        assert torch.equal(drawn(tokens), whole(tokens))
    assert torch.equal(drawn.W_U, whole.W_U) and torch.equal(drawn.W_E, whole.W_E)
    assert drawn.W_U.mean(-1).abs().max() < 1e-6


def test_random_weights_are_of_the_same_kind():
    for given in ({"dtype": torch.bfloat16}, {"fold": False}):
        model = bridge("GPT-2", **given)
        before = model.original_model.config.to_dict()
        drawn = ml.random_weights(model)
        assert drawn.W_E.dtype == model.W_E.dtype and drawn._weights_processed == model._weights_processed
        assert model.original_model.config.to_dict() == before
        assert not torch.allclose(drawn.W_E.float(), model.W_E.float(), atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dictionaries_and_lenses_in_every_precision(dtype):
    """The answers of float32, as near as the model's own precision lets them be."""
    whole, model = kept("Llama"), bridge("Llama", dtype=dtype)
    near = 0.1 if dtype == torch.bfloat16 else 0.02
    sae = trained(whole)
    a, b = (ml.splice(m, sae, TEXTS) for m in (whole, model))
    assert b.unexplained == pytest.approx(a.unexplained, rel=near) and b.loss == pytest.approx(
        a.loss, rel=near
    )
    read = ml.feature_activity(model, sae, TEXTS)
    assert read.activation.dtype == torch.float32
    assert (read.density - ml.feature_activity(whole, sae, TEXTS).density).abs().max() < 0.05
    feature = int(read.density.argmax())
    pages = [ml.feature_page(m, sae, read, feature, k=2) for m in (whole, model)]
    assert pages[1].raises[0][1] == pytest.approx(pages[0].raises[0][1], rel=near)
    assert pages[1].needed[0][1] == pytest.approx(pages[0].needed[0][1], abs=near)
    with ml.intervene(model, [*ml.splice_hooks(model, sae)]):
        assert model(TEXTS).dtype == dtype
    own = trained(model)
    assert own.W_dec.dtype == torch.float32 and torch.isfinite(own.W_dec).all()
    one, two = ml.AffineLens.fit(whole, TEXTS), ml.AffineLens.fit(model, TEXTS)
    assert two.weight.dtype == torch.float32 and (one.weight - two.weight).norm() < near * one.weight.norm()
    stream = torch.randn(2, 32).to(dtype)
    assert two(stream, 1).dtype == dtype


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad_and_inference_mode_nothing_changes(gqa, mode):
    sae, lens, read = (
        trained(gqa),
        ml.AffineLens.fit(gqa, TEXTS),
        ml.feature_activity(gqa, trained(gqa), TEXTS),
    )
    loss = ml.splice(gqa, sae, TEXTS).loss
    with mode():
        again = trained(gqa)
        assert torch.equal(again.W_dec, sae.W_dec) and not again.W_dec.is_inference()
        given = ml.token_activations(gqa, TEXTS.clone(), HOOK).clone()  # made inside
        assert torch.equal(ml.train_sae(given, width=48, k=6, steps=40, batch=64).sae.W_dec, sae.W_dec)
        fitted = ml.AffineLens.fit(gqa, TEXTS.clone())
        assert torch.equal(fitted.weight, lens.weight) and not fitted.weight.is_inference()
        assert torch.equal(ml.feature_activity(gqa, again, TEXTS).activation, read.activation)
        assert ml.splice(gqa, again, TEXTS).loss == loss


def test_files_that_are_no_lens_or_activity_are_refused(gqa, tmp_path):
    path, sae = tmp_path / "file.safetensors", trained(gqa)
    read = ml.feature_activity(gqa, sae, TEXTS)
    for load, what in ((ml.AffineLens.load, "affine lens"), (ml.Activity.load, "activity of features")):
        with pytest.raises(FileNotFoundError, match=f"so no {what} can be read"):
            load(tmp_path / "nowhere")
        path.write_bytes(b"no file of tensors")
        with pytest.raises(ValueError, match="damaged or no safetensors"):
            load(path)
        save_file({"weight": torch.ones(2)}, path)
        with pytest.raises(ValueError, match=rf"is not an? {what}: it holds weight"):
            load(path)
    ml.AffineLens.fit(gqa, TEXTS).save(path)
    parts = load_file(path)
    for change, message in (
        ({"scale": torch.ones(3, 32)}, r"scale is \(3, 32\)"),
        ({"bias": torch.ones(32)}, r"bias is \(32,\), not \[layer, d_model\]"),
        ({"bias": torch.full((3, 32), torch.inf)}, "NaN or infinite numbers in bias"),
    ):
        save_file(parts | change, path)
        with pytest.raises(ValueError, match=message):
            ml.AffineLens.load(path)
    read.save(path)
    parts = load_file(path)
    for change, message in (
        ({"strength": parts["strength"][1:].clone()}, "strength is"),
        ({"texts": parts["texts"][1:].clone()}, "active is"),
        ({"feature": parts["feature"] + 48}, "numbers of features do not fit"),
    ):
        save_file(parts | change, path)
        with pytest.raises(ValueError, match=message):
            ml.Activity.load(path)


def test_an_activity_is_stored_whatever_its_size(gqa, tmp_path):
    read = ml.feature_activity(gqa, trained(gqa), TEXTS)
    loud = dataclasses.replace(read, activation=read.activation * 1e6)  # beyond float16
    loud.save(tmp_path / "a")
    assert torch.equal(ml.Activity.load(tmp_path / "a").activation, loud.activation)
    with pytest.raises(ValueError, match="The activity is of a dictionary of 48"):
        ml.feature_page(gqa, trained(gqa, width=40), read, 1)
    with pytest.raises(ValueError, match="there is nothing"):
        ml.feature_activity(gqa, trained(gqa), TEXTS, skip=14)


def test_training_on_nothing_is_refused():
    with pytest.raises(ValueError, match="All activations are the same"):
        ml.train_sae(torch.ones(100, 8), width=10, k=2, batch=50)
    for k in (0, 11):
        with pytest.raises(ValueError, match=rf"k is {k}; of 10 features 1 to 10"):
            ml.train_sae(torch.randn(100, 8), width=10, k=k, batch=50)
