"""Path patching: against the paper's recipe written out with hooks, and against TransformerLens' direct paths."""

from functools import partial

import pytest
import torch

import mechlab as ml
from mechlab.runs.engines import run_of
from tests.test_hooks import hooks_left

METRIC = ml.logit_difference([7, 8, 9], [11, 12, 13])
RECEIVERS = [(1, 2), (2, 0), (2, 3)]


@pytest.fixture(scope="module")
def tokens():
    generator = torch.Generator().manual_seed(3)
    base = torch.randint(5, 60, (3, 8), generator=generator)
    source = base.clone()
    source[:, 2:5] = torch.randint(5, 60, (3, 3), generator=generator)
    return base, source


def caches(model, tokens):
    with torch.no_grad():
        return [model.run_with_cache(each)[1] for each in tokens]


def frozen(model, cache, sender, value):
    """Hooks that hold every head at `cache`, and the sender at `value`."""

    def hold(z, hook, layer):
        z = cache["z", layer].clone()
        if layer == sender[0]:
            z[:, :, sender[1]] = value
        return z

    from functools import partial

    return [
        (f"blocks.{layer}.attn.hook_z", partial(hold, layer=layer)) for layer in range(model.cfg.n_layers)
    ]


def by_the_book(model, tokens, sender, receivers, into, at):
    """Steps C and D of the paper's appendix B, for one sender; each query head has keys and values of its own."""
    base = tokens[0]
    clean, other = caches(model, tokens)
    share = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
    rows = torch.arange(len(base))
    rotary = "rotary" in str(model.cfg.positional_embedding_type)
    names = {
        "q": "hook_rot_q" if rotary else "hook_q",
        "k": "hook_rot_k" if rotary else "hook_k",
        "v": "hook_v",
    }
    with (
        torch.no_grad(),
        ml.intervene(model, frozen(model, clean, sender, other["z", sender[0]][:, :, sender[1]])),
    ):
        _, found = model.run_with_cache(base)
        if receivers is None:
            return METRIC(model(base))

    def put(z, hook, layer):
        z = z.clone()
        name = f"blocks.{layer}.attn."
        for head in [h for at_layer, h in receivers if at_layer == layer and layer > sender[0]]:
            parts = {}
            for kind, axis in (("q", head), ("k", head // share), ("v", head // share)):
                x = live[name + names[kind]]
                new = found[name + names[kind]]
                if names[kind].startswith("hook_rot"):
                    x, new = (t if t.shape[1] == base.shape[1] else t.transpose(1, 2) for t in (x, new))
                parts[kind] = x[:, :, axis].clone()
                if kind == into:
                    for column in range(at.shape[1]):
                        parts[kind][rows, at[:, column]] = new[rows, at[:, column], axis]
            fit = parts["q"] @ parts["k"].transpose(1, 2) / model.cfg.d_head**0.5
            fit = fit.masked_fill(torch.ones_like(fit, dtype=torch.bool).triu(1), -torch.inf)
            z[:, :, head] = fit.softmax(-1) @ parts["v"]
        return z

    live = {}
    hooks = []
    for layer in range(model.cfg.n_layers):
        wanted = [f"blocks.{layer}.attn.{each}" for each in names.values()]
        for each in wanted:
            hooks.append((each, lambda x, hook, each=each: live.update({each: x})))
        hooks.append((f"blocks.{layer}.attn.hook_z", partial(put, layer=layer)))
    with torch.no_grad(), ml.intervene(model, hooks):
        return METRIC(model(base))


@pytest.mark.parametrize("into", ["q", "k", "v"])
@pytest.mark.parametrize("at", [None, [6, 7, 5]])
def test_it_is_the_papers_recipe(tiny, tokens, into, at):
    found = ml.path_patching(tiny, *tokens, METRIC, RECEIVERS, into, at=at, normalized=False)
    places = torch.arange(8).expand(3, -1) if at is None else torch.tensor(at)[:, None]
    with torch.no_grad():
        clean = METRIC(tiny(tokens[0]))
    for sender in [(0, 1), (1, 0)]:
        plain = by_the_book(tiny, tokens, sender, RECEIVERS, into, places) - clean
        assert torch.allclose(found.per_prompt[:, sender[0], sender[1]], plain, atol=2e-5), sender
    assert found.dims == ("layer", "head") and found.values.shape == (2, 4)
    assert found.values.abs().max() > 1e-4
    assert hooks_left(tiny) == 0


def test_to_the_logits(tiny, tokens):
    found = ml.path_patching(tiny, *tokens, METRIC, normalized=False)
    with torch.no_grad():
        clean = METRIC(tiny(tokens[0]))
    for sender in [(0, 2), (2, 1)]:
        plain = by_the_book(tiny, tokens, sender, None, "q", None) - clean
        assert torch.allclose(found.per_prompt[:, sender[0], sender[1]], plain, atol=2e-5)
    ends = ml.logit_difference([7, 8, 9], [11, 12, 13], pos=[6, 7, 5])
    here = ml.path_patching(tiny, *tokens, ends, normalized=False)
    general = ml.path_patching(tiny, *tokens, lambda logits: ends(logits), normalized=False)
    assert torch.allclose(here.values, general.values, atol=1e-5)


@pytest.mark.parametrize("into", ["q", "k", "v"])
def test_with_frozen_mlps_it_is_transformerlens_direct_path(tokens, into):
    from transformer_lens import patching

    model = ml.tiny("gpt2")
    base, source = tokens
    clean, corrupted = caches(model, (source, base))
    theirs = patching.get_act_patch_direct_path(
        model, base, clean, corrupted, lambda logits: METRIC(logits).mean(), 0, 2, into, verbose=False
    )
    before = METRIC(model(base)).mean().item()
    for receiver in [(1, 0), (2, 3)]:
        mine = ml.path_patching(
            model, base, source, METRIC, [receiver], into, frozen_mlps=True, normalized=False
        )
        assert mine.values[0, 2].item() + before == pytest.approx(theirs[receiver].item(), abs=2e-5)


def test_normalized_is_a_share_and_runs_can_be_kept(tiny, tokens):
    base = run_of(tiny, tokens[0])
    source = run_of(tiny, tokens[1], like=base)
    share = ml.path_patching(tiny, base, source, METRIC, [(2, 1)], "q")
    change = ml.path_patching(tiny, *tokens, METRIC, [(2, 1)], "q", normalized=False)
    gap = share.baselines["source"] - share.baselines["base"]
    assert torch.allclose(share.values * gap, change.values, atol=1e-5)


def test_senders_together(tiny, tokens):
    alone = ml.path_patching(tiny, *tokens, METRIC, [(2, 1)], "v", normalized=False)
    groups = [[(1, 3)], [(0, 0), (1, 3)], [(0, 0)], [(layer, h) for layer in (0, 1) for h in range(4)]]
    found = ml.path_patching(tiny, *tokens, METRIC, [(2, 1)], "v", senders=groups, normalized=False)
    assert torch.allclose(found.per_prompt[:, 0], alone.per_prompt[:, 1, 3], atol=1e-5)
    assert torch.allclose(found.per_prompt[:, 2], alone.per_prompt[:, 0, 0], atol=1e-5)
    assert (found.per_prompt[:, 1] - found.per_prompt[:, 3]).abs().max() > 1e-5
    assert found.labels["sender"][1] == "0.0, 1.3"


def test_with_frozen_mlps_senders_add_up_in_what_is_read(tokens):
    """Values are linear in the stream but for the norm's length, so with everything held groups nearly add up."""
    model = ml.tiny("gqa")
    given = {"frozen_mlps": True, "normalized": False}
    both = ml.path_patching(model, *tokens, METRIC, None, senders=[[(2, 0), (2, 1)]], **given)
    base, source = run_of(model, tokens[0]), run_of(model, tokens[1])
    z = source.at("z", 2)[:, -1] - base.at("z", 2)[:, -1]
    change = sum(z[:, head] @ model.W_O[2, head] for head in (0, 1))
    with torch.no_grad():
        logits = base.weights.unembed(base.at("resid_pre", 3)[:, -1:] + change[:, None])
    assert torch.allclose(both.per_prompt[:, 0], METRIC(logits) - METRIC(model(tokens[0])), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"receivers": []}, "`receivers` is empty"),
        ({"receivers": [(3, 0)]}, "Head 3.0 cannot receive: layers go from 1"),
        ({"receivers": [(0, 0)]}, "layer 0 has no head below it"),
        ({"receivers": [(1, 0)], "into": "z"}, "into is 'z'; it must be one of 'q', 'k', 'v'"),
        ({"receivers": [(1, 0)], "at": [1, 2, 8]}, "`at` is 8, and prompt 2 has 8 tokens: positions 0 to 7"),
        ({"at": [1, 2, 3]}, "the logits are read where the metric reads them"),
        ({"receivers": [(1, 0)], "senders": [[(1, 1)]]}, "1.1 cannot send to these receivers"),
        ({"receivers": [(1, 0)], "senders": [[]]}, "nothing cannot send"),
    ],
)
def test_what_is_refused(gqa, tokens, given, message):
    with pytest.raises(ValueError, match=message):
        ml.path_patching(gqa, *tokens, METRIC, **given)


def test_equal_runs_and_other_lengths_are_refused(gqa, tokens):
    with pytest.raises(ValueError, match="same tokens"):
        ml.path_patching(gqa, tokens[0], tokens[0].clone(), METRIC)
    with pytest.raises(ValueError, match="same number of tokens"):
        ml.path_patching(gqa, tokens[0], tokens[1][:, 1:], METRIC)


def test_a_difference_that_may_be_chance_earns_a_warning(gqa, tokens):
    with torch.no_grad():
        ends = [METRIC(gqa(each)) for each in tokens]
    flip = ((ends[1] - ends[0]) * torch.tensor([1.0, 1.0, -1.0])).sign()
    noisy = lambda logits: METRIC(logits) * flip * torch.tensor([1.0, -1.0, 1.0])
    with pytest.warns(UserWarning, match="may be chance"):
        ml.path_patching(gqa, *tokens, noisy)
