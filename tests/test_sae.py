"""Sparse autoencoders: planted features come back, both kinds; files of SAELens and sparsify; the splice; bad input."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mechlab as ml
from mechlab.discovery.sae_evaluation import splice
from tests.test_hooks import hooks_left


def planted(tokens=6000, d=16, features=24, active=2, seed=0):
    """Activations made of a few of 24 directions in 16 dimensions, far from zero."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(features, d, generator=g), dim=1)
    chosen = torch.rand(tokens, features, generator=g).topk(active, dim=1).indices
    strength = torch.zeros(tokens, features).scatter(1, chosen, 1 + torch.rand(tokens, active, generator=g))
    return 5 * strength @ directions + 3 * torch.randn(d, generator=g), directions


@pytest.mark.parametrize(("kind", "given"), [("topk", {"k": 2}), ("standard", {"l1": 0.3})])
def test_planted_directions_come_back(kind, given):
    data, directions = planted()
    trained = ml.train_sae(data, width=48, kind=kind, steps=800, batch=256, rate=5e-3, **given)
    sae = trained.sae
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-4)
    features = sae.encode(data)
    unexplained = (sae.decode(features) - data).pow(2).sum() / (data - data.mean(0)).pow(2).sum()
    assert unexplained < 0.15
    match = (directions @ sae.W_dec.T).max(1).values
    assert (match > 0.9).float().mean() > 0.7
    assert (
        trained.history[-1]["step"] == 800
        and trained.history[-1]["unexplained"] < trained.history[0]["unexplained"]
    )
    if kind == "topk":
        assert ((features > 0).sum(1) <= 2).all()


def test_what_is_saved_is_saelens_format_and_comes_back(tmp_path):
    data, _ = planted(2000)
    sae = ml.train_sae(data, width=20, k=3, steps=30, batch=128, hook="blocks.1.hook_resid_post").sae
    for half, tolerance in ((False, 1e-4), (True, 5e-2)):
        sae.save(tmp_path / str(half), half=half)
        config = json.loads((tmp_path / str(half) / "cfg.json").read_text())
        assert config["architecture"] == "topk" and config["k"] == 3 and config["d_sae"] == 20
        assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
        shapes = {
            n: tuple(t.shape) for n, t in load_file(tmp_path / str(half) / "sae_weights.safetensors").items()
        }
        assert shapes == {"W_enc": (16, 20), "b_enc": (20,), "W_dec": (20, 16), "b_dec": (16,)}
        back = ml.SparseAutoencoder.load(tmp_path / str(half))
        assert back.hook == sae.hook and back.k == 3
        off = (back.decode(back.encode(data)) - sae.decode(sae.encode(data))).abs().amax(1)
        assert (
            off < tolerance
        ).float().mean() > 0.97  # rounding may swap two features of nearly equal strength


def test_published_formats_are_read(tmp_path):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    W, b = torch.randn(10, 6, generator=torch.Generator().manual_seed(1)), torch.randn(6)
    # sparsify (EleutherAI): the encoder is a linear layer, the decoder has a row for each feature
    (tmp_path / "layers.3.mlp").mkdir()
    (tmp_path / "layers.3.mlp" / "cfg.json").write_text(json.dumps({"d_in": 6, "num_latents": 10, "k": 2}))
    save_file(
        {"encoder.weight": W, "encoder.bias": torch.ones(10), "W_dec": 2 * W, "b_dec": b},
        tmp_path / "layers.3.mlp" / "sae.safetensors",
    )
    sae = ml.SparseAutoencoder.load(tmp_path / "layers.3.mlp", hook="blocks.3.hook_mlp_out")
    best = ((x - b) @ W.T + 1).topk(2, dim=1)
    expected = torch.zeros(5, 10).scatter(1, best.indices, best.values.relu())
    assert torch.allclose(sae.encode(x), expected, atol=1e-5)
    assert torch.allclose(sae.decode(sae.encode(x)), expected @ (2 * W) + b, atol=1e-4)
    # SAELens before version 6, without b_dec at the input; and a JumpReLU
    parts = {"W_enc": W.T.contiguous(), "b_enc": torch.zeros(10), "W_dec": W, "b_dec": b}
    for config, kind in (
        (
            {
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 4},
                "hook_name": "h",
                "apply_b_dec_to_input": False,
            },
            "topk",
        ),
        ({"architecture": "jumprelu", "hook_name": "h", "apply_b_dec_to_input": False}, "jumprelu"),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "cfg.json").write_text(json.dumps(config))
        extra = {"threshold": torch.full((10,), 1.5)} if kind == "jumprelu" else {}
        save_file(parts | extra, folder / "sae_weights.safetensors")
        sae = ml.SparseAutoencoder.load(folder)
        features = sae.encode(x)
        assert sae.kind == kind and sae.hook == "h"
        if kind == "jumprelu":
            before = x @ W.T
            assert torch.allclose(features, torch.where(before > 1.5, before, torch.zeros(())), atol=1e-5)
        else:
            assert ((features > 0).sum(1) <= 4).all()


def test_the_splice_brackets_and_leaves_nothing_behind(tiny):
    texts = torch.randint(5, 350, (12, 14), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = tiny.run_with_cache(texts)
    hook = "blocks.1.hook_resid_post"
    data = cache[hook][:, 1:].flatten(0, 1)
    sae = ml.train_sae(data, width=96, k=12, steps=400, batch=128, hook=hook).sae
    before = tiny(texts)
    found = splice(tiny, sae, texts)
    assert torch.equal(tiny(texts), before) and hooks_left(tiny) == 0
    assert found.loss["intact"] == pytest.approx(
        tiny(texts, return_type="loss", loss_per_token=True)[:, 1:].mean().item(), abs=1e-4
    )
    perfect = ml.SparseAutoencoder(  # every coordinate, both signs: rebuilds exactly
        torch.cat([torch.eye(32), -torch.eye(32)], 1), torch.zeros(64), torch.cat([torch.eye(32), -torch.eye(32)]),
        torch.zeros(32), kind="standard", hook=hook,
    )  # fmt: skip
    exact = splice(tiny, perfect, texts)
    assert abs(exact.recovered - 1) < 1e-3 and exact.unexplained < 1e-6 and exact.active <= 32
    assert found.unexplained < 0.6 and found.active <= 12 and "recovered" in repr(found)


def test_what_cannot_be_trained_or_read_is_refused(tiny, tmp_path):
    data, _ = planted(300)
    with pytest.raises(ValueError, match='"topk" and "standard" can be trained'):
        ml.train_sae(data, kind="gated")
    with pytest.raises(ValueError, match="at least 512 tokens"):
        ml.train_sae(data)
    with pytest.raises(ValueError, match="NaN or infinite"):
        ml.train_sae(data * float("nan"), batch=64)
    sae = ml.train_sae(data, width=20, k=2, steps=3, batch=64).sae
    with pytest.raises(ValueError, match="width 16; these have width 32"):
        sae.encode(torch.zeros(2, 32))
    with pytest.raises(ValueError, match="does not say which activation"):
        splice(tiny, sae, torch.ones(1, 4).long())
    with pytest.raises(ValueError, match="holds no dictionary"):
        ml.SparseAutoencoder.load(tmp_path)
    sae.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    for change, message in (
        ({"architecture": "gated"}, "kind 'gated'"),
        ({"normalize_activations": "layer_norm"}, "rescales its input"),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            ml.SparseAutoencoder.load(tmp_path)


@pytest.mark.model
def test_the_dictionary_of_the_repository_fits_the_model(smollm2):
    sae = ml.SparseAutoencoder.load(ml.reference.data_dir() / "sae" / "smollm2_layer12")
    assert (sae.d_in, sae.d_sae, sae.k, sae.hook) == (576, 2304, 32, "blocks.12.hook_resid_post")
    found = ml.splice(smollm2, sae, ml.own_text(smollm2, length=81, count=6))
    assert (
        found.recovered > 0.9
        and found.unexplained < 0.3
        and found.loss["spliced"] < found.loss["intact"] + 0.6
    )
