"""Taking a run up in the middle: the numbers of a full run, for every layer, position and kind of metric."""

import pytest
import torch

import mechlab as ml
from mechlab.runs import fast as resume
from mechlab.runs.fast import NotResumable, Resume
from tests.test_hooks import hooks_left

DIFFERENCE = ml.logit_difference([7, 8, 9], [10, 11, 12])
METRICS = {
    "two logits": DIFFERENCE,
    "all logits of one position": ml.log_prob(9, end=8),
    "a position for each prompt": ml.log_prob([9, 3, 2], end=[8, 2, 6]),
    "a function that says nothing": lambda logits: logits.logsumexp(-1).sum(1),
}


@pytest.fixture(scope="module", params=["gqa", "gpt2"])
def run(request):
    model = ml.tiny(request.param)
    base, source = torch.randint(5, 60, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    source[:, :2] = base[:, :2]  # what both begin with is not computed again
    kept = Resume(model, base)
    return model, base, source, kept, Resume(model, source, like=kept)


def test_the_first_run_is_the_models(run):
    model, base, _, kept, _ = run
    assert hooks_left(model) == 0
    with torch.no_grad():
        logits, cache = model.run_with_cache(base)
    assert torch.allclose(kept.unembed(kept.resid_pre[-1]), logits, atol=1e-4)
    for layer in range(model.cfg.n_layers):
        assert torch.allclose(kept.resid_pre[layer], cache["resid_pre", layer], atol=1e-4)
        assert torch.allclose(kept.resid_mid[layer], cache["resid_mid", layer], atol=1e-4)
        assert torch.allclose(kept.z[layer], cache["z", layer], atol=1e-4)
        assert torch.allclose(kept.values[layer].transpose(1, 2), cache["v", layer], atol=1e-4)
    for metric in METRICS.values():
        assert torch.allclose(kept.ends(metric), metric(logits), atol=1e-4)


def test_a_second_run_takes_up_what_both_begin_with(run):
    model, _, source, kept, other = run
    assert other.first_difference(kept) == 2
    alone = Resume(model, source)
    for name in ("resid_pre", "resid_mid", "z"):
        assert torch.allclose(getattr(other, name), getattr(alone, name), atol=1e-5)
    for name in ("queries", "keys", "values"):
        for one, two in zip(getattr(other, name), getattr(alone, name), strict=True):
            assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("first", [0, 4, 8])
@pytest.mark.parametrize("middle", [False, True])
def test_a_changed_stream_gives_the_metric_of_a_full_run(run, first, middle, metric):
    model, base, _, kept, other = run
    for layer in range(model.cfg.n_layers):
        there = (other.resid_mid if middle else other.resid_pre)[layer]
        # the bridge's hook_resid_mid changes what the MLP reads and not the stream, so attention is changed instead
        name = f"blocks.{layer}.hook_{'attn_out' if middle else 'resid_pre'}"
        value = there - kept.resid_pre[layer] if middle else there
        put = lambda x, hook, value=value: torch.cat([x[:, :first], value[:, first:]], 1)
        with torch.no_grad(), ml.intervene(model, [(name, put)]):
            expected = metric(model(base))
        copies = torch.stack([there, (kept.resid_mid if middle else kept.resid_pre)[layer]])[:, :, first:]
        found = kept.measure(metric, layer, copies, first, middle=middle)
        assert torch.allclose(found[0], expected, atol=1e-4)
        assert torch.allclose(found[1], kept.ends(metric), atol=1e-4)
        assert (found[0] - found[1]).abs().max() > 1e-3  # something did change


def test_later_parts_can_be_overwritten(run):
    model, base, _, kept, other = run
    writes = {
        "attn_out": lambda run, layer: run.resid_mid[layer] - run.resid_pre[layer],
        "mlp_out": lambda run, layer: run.resid_pre[layer + 1] - run.resid_mid[layer],
    }
    for kind, written in writes.items():
        put = lambda x, hook, written=written: torch.cat([x[:, :5], written(other, 1)[:, 5:]], 1)
        with torch.no_grad(), ml.intervene(model, [(f"blocks.1.hook_{kind}", put)]):
            expected = DIFFERENCE(model(base))
        edit = lambda here, layer, x, copies, kind=kind, written=written: (
            written(other, 1)[:, 5:] if (here, layer) == (kind, 1) else x
        )
        found = kept.measure(DIFFERENCE, 0, kept.resid_pre[0][None, :, 5:], 5, edit=edit)[0]
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_stream_of_ones_own_to_start_from(run):
    model, base, _, first, _ = run
    noise = torch.randn(3, 9, model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    put = lambda x, hook: x + noise
    with torch.no_grad(), ml.intervene(model, [("blocks.0.hook_resid_pre", put)]):
        expected = DIFFERENCE(model(base))
    with torch.no_grad():
        _, cache = model.run_with_cache(base, stop_at_layer=1)
    start = cache["blocks.0.hook_resid_pre"] + noise
    for like in (None, first):
        kept = Resume(model, base, embedded=start, like=like)
        assert torch.allclose(kept.ends(DIFFERENCE), expected, atol=1e-4)


def test_when_memory_runs_out_the_batch_becomes_smaller(run, monkeypatch):
    _, _, _, kept, other = run
    copies, sizes, real = other.resid_pre[1].expand(7, -1, -1, -1), [], Resume._measure

    def at_most_two(self, metric, layer, stream, *rest):
        sizes.append(len(stream))
        if len(stream) > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return real(self, metric, layer, stream, *rest)

    monkeypatch.setattr(Resume, "_measure", at_most_two)
    limit = 2
    found = kept.measure(DIFFERENCE, 1, copies, 0)
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert torch.allclose(found, found[:1].expand(7, -1)) and found.shape == (7, 3)
    limit = 0
    with pytest.raises(MemoryError, match=r"One run of 3 prompts .* does not fit .* Patch fewer prompts"):
        kept.measure(DIFFERENCE, 1, copies, 0)
    monkeypatch.setattr(Resume, "_measure", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # other errors are not taken for a lack of memory
        kept.measure(DIFFERENCE, 1, copies, 0)


def test_the_batch_follows_free_memory(run, monkeypatch):
    _, _, _, kept, other = run
    stream = other.resid_pre[1].expand(50, -1, -1, -1)
    sizes = []
    for free in (0, 4 * 10**6, 4 * 10**7, 10**12):
        monkeypatch.setattr(resume, "free_bytes", lambda device, free=free: free)
        sizes.append(kept._batch(stream, DIFFERENCE))
    assert sizes[0] == 1 < sizes[1] < sizes[2] == sizes[3] == resume.ROWS // 27
    assert kept._batch(stream, ml.log_prob(3)) <= sizes[3]


def test_what_cannot_be_taken_up_is_refused(run):
    model, base, _, kept, _ = run
    with pytest.raises(ValueError, match="2 positions from position 4 on; prompts have 9"):
        kept.measure(DIFFERENCE, 0, kept.resid_pre[0][None, :, 4:6], 4)
    act = model.cfg.act_fn
    try:
        model.cfg.act_fn = "relu"
        with pytest.raises(NotResumable, match="other logits than the model"):
            Resume(model, base)
        model.cfg.act_fn = "softplus"
        with pytest.raises(NotResumable, match="does not know 'softplus'"):
            Resume(model, base)
    finally:
        model.cfg.act_fn = act


def test_the_weights_are_not_copied(run):
    model, _, _, kept, _ = run
    assert kept.layers[1].down[0].data_ptr() == model.blocks[1].mlp.W_out.data_ptr()
    assert kept.layers[1].out[0].data_ptr() == model.blocks[1].attn.W_O.data_ptr()
