"""Lenses: exact at the last layer, TransformerLens' numbers, affine lenses a fit, tuned ones a descent; files; bad input."""

import pytest
import torch

import mechlab as ml
from mechlab.discovery import tuned_lens as module
from mechlab.discovery.streams import residual_entries
from tests.test_hooks import hooks_left


@pytest.fixture(scope="module")
def texts():
    return torch.randint(5, 350, (40, 14), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fitted(tiny, texts):
    return ml.AffineLens.fit(tiny, texts)


def test_every_lens_is_exact_at_the_last_entry(tiny, texts, fitted):
    logits = tiny(texts[:3])[:, -1].log_softmax(-1)
    for lens in (None, fitted):
        found = ml.logit_lens(tiny, texts[:3], [7, 8, 9], lens=lens, what="log_prob")
        assert torch.allclose(found.per_prompt[:, -1], logits[range(3), [7, 8, 9]], atol=1e-4)
        quality = ml.lens_quality(tiny, texts[:3], lens=lens)
        assert (
            quality.kl.values[-1] < 1e-5
            and quality.agreement.values[-1] == 1
            and quality.bias.values[-1] < 1e-5
        )
        assert len(quality.kl.values) == tiny.cfg.n_layers + 1
    assert hooks_left(tiny) == 0


def test_ranks_are_counted_by_hand(tiny, texts):
    with torch.no_grad():
        _, cache = tiny.run_with_cache(texts[:1])
        stream = cache["resid_pre", 1][0, -1]
        logits = tiny.unembed(tiny.ln_final(stream[None, None]))[0, 0]
    found = ml.logit_lens(tiny, texts[:1], 20)
    assert found.values[1] == (logits > logits[20]).sum()


def test_the_affine_lens_is_closer_than_the_logit_lens(tiny, texts, fitted):
    plain, tuned = (ml.lens_quality(tiny, texts[:10], lens=lens) for lens in (None, fitted))
    assert (tuned.kl.values[:-1] < plain.kl.values[:-1]).all()
    assert (tuned.bias.values[:-1] < plain.bias.values[:-1]).all()


def test_the_fit_is_least_squares(tiny, texts):
    lens = ml.AffineLens.fit(tiny, texts, ridge=1e-5, skip=2)
    with torch.no_grad():
        streams = torch.cat(list(residual_entries(tiny, texts, batch=7)), dim=1)[:, :, 2:]
    unit = module._unit(streams).flatten(1, 2).double()
    x, y = torch.cat([unit[1], torch.ones(len(unit[1]), 1)], 1), unit[-1]
    best = torch.linalg.lstsq(
        x, y, rcond=1e-5, driver="gelsd"
    ).solution  # streams of LayerNorm models have mean 0
    said = unit[1] + unit[1] @ lens.weight[1].double() + lens.bias[1].double()
    assert torch.allclose(said, x @ best, atol=2e-2)


def test_tuning_takes_the_steps_of_adam_along_the_slope_of_kl(tiny, texts, fitted):
    """One step of Adam is its rate, against the sign of the slope, which differences give; many lower the KL."""
    once = fitted.tune(tiny, texts, [1], steps=1, tokens=4000, rate=1e-3)
    streams = torch.cat(list(residual_entries(tiny, texts, batch=40)), dim=1)[:, :, 4:].flatten(1, 2)
    rows = torch.randint(streams.shape[1], (4000,), generator=torch.Generator().manual_seed(0))

    def kl(bias):
        lens = ml.AffineLens(fitted.weight, bias)
        p, q = (tiny.unembed(tiny.ln_final(s[None])) for s in (streams[-1], lens(streams[1], 1)))
        each = torch.nn.functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="none")[0].sum(-1)
        return each[rows].mean().item()

    step, slopes = once.bias[1] - fitted.bias[1], []
    for place in range(6):
        nudge = torch.zeros_like(fitted.bias)
        nudge[1, place] = 0.02
        slopes.append(kl(fitted.bias + nudge) - kl(fitted.bias - nudge))
    assert torch.allclose(step.abs(), torch.tensor(1e-3), rtol=1e-2)
    assert (step[:6].sign() == -torch.tensor(slopes).sign()).all()
    assert torch.equal(once.weight[[0, 2]], fitted.weight[[0, 2]]) and once.origin == fitted.origin
    tuned = fitted.tune(tiny, texts, [1], steps=30, tokens=200)
    before, after = (ml.lens_quality(tiny, texts, lens=lens).kl.values for lens in (fitted, tuned))
    assert after[1] < 0.99 * before[1] and torch.equal(after[[0, 2]], before[[0, 2]])


def test_saved_lenses_come_back_a_little_rounded(tiny, texts, fitted, tmp_path):
    fitted.save(tmp_path / "lens.safetensors")
    back = ml.AffineLens.load(tmp_path / "lens.safetensors")
    assert (back.weight - fitted.weight).abs().max() <= fitted.weight.abs().max() / 200
    assert torch.equal(back.bias, fitted.bias)
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(2)}, tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match="not an affine lens: it holds other"):
        ml.AffineLens.load(tmp_path / "no.safetensors")


def test_a_table_shows_tokens_by_layer_and_position(tiny, texts):
    table = ml.lens_table(tiny, texts[:1], every=2)
    assert len(table.tokens) == 3 and len(table.tokens[0]) == 14  # entries 0, 2 and 3
    best = tiny(texts[:1])[0].argmax(-1)
    assert table.tokens[-1] == [repr(tiny.tokenizer.decode(int(i))) for i in best]
    assert table.plot().figure.data[0].text is not None
    with pytest.raises(ValueError, match="one prompt"):
        ml.lens_table(tiny, texts[:2])


def test_what_cannot_be_read_is_refused(tiny, texts, fitted):
    with pytest.raises(ValueError, match="'rank', 'log_prob'"):
        ml.logit_lens(tiny, texts[:1], 3, what="probability")
    with pytest.raises(ValueError, match="3 layers of width 8; the model has 3 of width 32"):
        ml.logit_lens(tiny, texts[:1], 3, lens=ml.AffineLens(torch.zeros(3, 8, 8), torch.zeros(3, 8)))
    with pytest.raises(ValueError, match="no entry 9: this lens has 0 to 3"):
        fitted(torch.ones(1, 32), 9)
    with pytest.raises(ValueError, match="20 tokens cannot fit maps of width 32"):
        ml.AffineLens.fit(tiny, texts[:2])
    broken = [("blocks.1.hook_resid_pre", lambda x, hook: x * float("nan"))]
    with tiny.hooks(fwd_hooks=broken), pytest.raises(ValueError, match="NaN or infinite activations"):
        ml.AffineLens.fit(tiny, texts)


@pytest.mark.model
def test_the_fitted_lens_of_the_repository_reads_paris_early(smollm2):
    lens = ml.AffineLens.load(ml.reference.data_dir() / "lens" / "smollm2.safetensors")
    base = smollm2.to_tokens("The capital of France is")
    assert ml.logit_lens(smollm2, base, " Paris", lens=lens).values[24] == 0
    assert ml.logit_lens(smollm2, base, " Paris").values[24] > 50


@pytest.mark.model
def test_own_text_is_cut_to_length_and_refuses_what_it_does_not_have(smollm2):
    texts = ml.own_text(smollm2, length=40, count=5)
    assert texts.shape == (5, 40) and (texts[:, 0] == smollm2.to_tokens("")[0, 0]).all()
    assert torch.equal(texts, ml.own_text(smollm2, length=40, count=5))
    with pytest.raises(ValueError, match="0 texts of 5000 tokens"):
        ml.own_text(smollm2, length=5000, count=2)
