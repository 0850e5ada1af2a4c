"""Interventions that cannot leak and cannot silently miss; what can be observed and what it costs."""

import pytest
import torch

import mechlab as ml
from mechlab.loading.limits import is_ignored
from mechlab.runs.caching import BLOCK_HOOKS, OUTER_HOOKS, cache_bytes, hook_map, only
from mechlab.runs.hooks import HookError, intervene, replace_head, replace_with
from tests.architectures import bridge, kept

TOKENS = torch.arange(1, 13).reshape(2, 6)
OTHER = torch.arange(20, 32).reshape(2, 6)


def hooks_left(model) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


@pytest.fixture
def runs(tiny):
    with torch.no_grad():
        logits, cache = tiny.run_with_cache(TOKENS)
        other_logits, other = tiny.run_with_cache(OTHER)
    return tiny, logits, cache, other_logits, other


@torch.no_grad()
def test_a_run_patched_into_itself_is_unchanged(runs):
    model, logits, cache, *_ = runs
    for layer in range(3):
        for head in range(4):
            with intervene(model, replace_head(model, (layer, head), cache)) as fired:
                assert torch.equal(model(TOKENS), logits)
            assert fired == [1]
    assert hooks_left(model) == 0


@torch.no_grad()
def test_everything_patched_gives_the_other_run(runs):
    model, _, _, other_logits, other = runs
    with intervene(model, replace_with("blocks.2.hook_resid_post", other["resid_post", 2])):
        assert torch.allclose(model(TOKENS), other_logits, atol=1e-5)


@torch.no_grad()
def test_one_head_at_one_position_equals_the_slow_way(runs):
    model, _, cache, _, other = runs
    by_hand = cache["z", 1].clone()
    by_hand[:, 3, 2] = other["z", 1][:, 3, 2]
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: by_hand)]):
        expected = model(TOKENS)
    with intervene(model, replace_head(model, (1, 2), other, positions=[3])):
        assert torch.equal(model(TOKENS), expected)


@torch.no_grad()
def test_the_fire_count_counts_runs(runs):
    model, _, _, _, other = runs
    with intervene(model, replace_head(model, (0, 1), other)) as fired:
        model(TOKENS), model(TOKENS)
    assert fired == [2]


@torch.no_grad()
def test_logits_and_hooks_are_as_before_even_after_an_error(runs):
    model, logits, *_ = runs

    def broken(z, hook):
        raise KeyError("learner's mistake")

    with pytest.raises(KeyError):
        with intervene(model, [("blocks.0.attn.hook_z", broken)]):
            model(TOKENS)
    assert hooks_left(model) == 0
    assert torch.equal(model(TOKENS), logits)


def test_an_unknown_name_lists_the_nearest(tiny):
    message = (
        r'no hook "blocks\.1\.attn\.hook_zz"\. The model has layers 0 to 2\. Nearest: blocks\.1\.attn\.hook_z'
    )
    with pytest.raises(HookError, match=message):
        with intervene(tiny, [("blocks.1.attn.hook_zz", lambda z, hook: z)]):
            pass


def test_a_layer_out_of_range_is_an_unknown_name(tiny):
    with pytest.raises(HookError, match="The model has layers 0 to 2"):
        with intervene(tiny, [("blocks.7.attn.hook_z", lambda z, hook: z)]):
            pass


def test_a_hook_that_never_fires_is_an_error(tiny, gqa):
    with pytest.raises(HookError, match=r"blocks\.0\.attn\.hook_z never fired"):
        with intervene(tiny, [("blocks.0.attn.hook_z", lambda z, hook: z)]):
            pass  # the model was not run
    with pytest.raises(HookError, match="hook_pos_embed never fired"):
        with intervene(gqa, [("hook_pos_embed", lambda x, hook: x)]):
            gqa(TOKENS)  # a rotary model adds no position embedding


def test_one_of_two_hooks_that_never_fires_is_noticed(gqa):
    hooks = [("blocks.0.attn.hook_z", lambda z, hook: z), ("hook_pos_embed", lambda x, hook: x)]
    with pytest.raises(HookError, match="hook_pos_embed never fired"):
        with intervene(gqa, hooks):
            gqa(TOKENS)


def test_writing_in_place_is_an_error(tiny):
    def zero(z, hook):
        z[:, :, 0] = 0
        return z

    with pytest.raises(HookError, match=r"writes into the activation it was given.*\.clone\(\)"):
        with torch.no_grad(), intervene(tiny, [("blocks.0.attn.hook_z", zero)]):
            tiny(TOKENS)
    assert hooks_left(tiny) == 0


def test_a_wrong_shape_is_an_error(tiny):
    with pytest.raises(HookError, match=r"returned shape \(2, 6, 4\); the activation is \(2, 6, 4, 8\)"):
        with torch.no_grad(), intervene(tiny, [("blocks.0.attn.hook_z", lambda z, hook: z.sum(-1))]):
            tiny(TOKENS)


def test_a_head_that_is_not_there_is_named(gqa):
    _, cache = gqa.run_with_cache(OTHER)
    with pytest.raises(ValueError, match=r"There is no head 1\.4: layers go from 0 to 2, heads from 0 to 3"):
        replace_head(gqa, (1, 4), cache)
    with pytest.raises(HookError, match=r"hook_k has no head 2: it has 2 heads"):
        with torch.no_grad(), intervene(gqa, replace_with("blocks.1.attn.hook_k", cache["k", 1], head=2)):
            gqa(TOKENS)


def test_runs_of_different_length_are_refused(tiny):
    _, cache = tiny.run_with_cache(OTHER[:, :5])
    with pytest.raises(HookError, match=r"\(2, 6, 4, 8\) here and \(2, 5, 4, 8\) in the other run"):
        with torch.no_grad(), intervene(tiny, replace_head(tiny, (0, 0), cache)):
            tiny(TOKENS)


def test_hooks_work_with_plain_transformer_lens_and_with_gradients(tiny):
    _, cache = tiny.run_with_cache(OTHER)
    hooks = replace_head(tiny, (1, 1), cache)
    with torch.no_grad(), tiny.hooks(fwd_hooks=hooks):
        expected = tiny(TOKENS)
    tiny.requires_grad_()  # weights come frozen
    try:
        with intervene(tiny, hooks):
            found = tiny(TOKENS)
    finally:
        tiny.requires_grad_(False)
    assert torch.allclose(found, expected, atol=1e-6) and found.requires_grad


# --- observing ---


@torch.no_grad()
def test_the_hook_map_tells_the_truth(tiny):
    frame = hook_map(tiny, layer=1)
    _, cache = tiny.run_with_cache(torch.arange(1, 6)[None])
    cfg = tiny.cfg
    sizes = {
        "batch": 1,
        "pos": 5,
        "query_pos": 5,
        "key_pos": 5,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp,
    }
    sizes |= {"head": cfg.n_heads, "kv_head": cfg.n_key_value_heads or cfg.n_heads, "1": 1}
    for row in frame.itertuples(index=False):
        assert tuple(cache[row.hook].shape) == row[2]
        assert tuple(sizes[axis] for axis in row.axes.split()) == row[2], row.hook
    assert len(frame) >= 18
    rotary = frame.hook.str.contains("hook_rot_q").any()
    assert rotary == (cfg.positional_embedding_type == "rotary")
    assert frame.hook.str.contains("pos_embed").any() != rotary


def test_the_hook_map_refuses_a_layer_that_is_not_there(tiny):
    with pytest.raises(ValueError, match="There is no layer 3: this model has layers 0 to 2"):
        hook_map(tiny, layer=3)


def test_every_hook_of_the_map_has_a_meaning():
    assert all(axes and what for axes, what in [*BLOCK_HOOKS.values(), *OUTER_HOOKS.values()])


def test_cache_bytes_counts_memory_once():
    tensor = torch.zeros(10, 10)
    distinct, listed = cache_bytes({"a": tensor, "alias": tensor, "view": tensor[:5], "b": torch.zeros(25)})
    assert (distinct, listed) == (400 + 100, 400 + 400 + 200 + 100)


@torch.no_grad()
def test_only_keeps_what_it_names(tiny):
    _, cache = tiny.run_with_cache(TOKENS, names_filter=only("hook_z", "hook_resid_post", layers=[1, 2]))
    wanted = {f"blocks.{n}.{end}" for n in (1, 2) for end in ("attn.hook_z", "hook_resid_post")}
    assert wanted <= set(cache)
    memory = lambda names: {cache[name].untyped_storage().data_ptr() for name in names}
    assert memory(cache) == memory(wanted)  # TransformerLens adds other names of the same tensors


@torch.no_grad()
def test_the_stream_is_the_sum_of_its_parts(tiny):
    _, cache = tiny.run_with_cache(TOKENS)
    total = cache["hook_embed"] + (cache["hook_pos_embed"] if "hook_pos_embed" in cache else 0)
    total = total + sum(cache["attn_out", n] + cache["mlp_out", n] for n in range(3))
    assert torch.allclose(total, cache["resid_post", 2], atol=1e-4)


def test_public_names_exist():
    for name in ml.__all__:
        assert getattr(ml, name) is not None
    with pytest.raises(AttributeError, match="mechlab has no 'lode'"):
        ml.lode  # noqa: B018


# --- hooks that fire and are ignored ---


@pytest.mark.parametrize("family", ["OPT", "GPT-J", "GPT-Neo"])
@pytest.mark.parametrize("site", ["hook_pattern", "hook_attn_scores"])
def test_a_hook_whose_result_is_not_used_is_refused(family, site):
    model, name = kept(family), f"blocks.2.attn.{site}"
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        before = model(tokens)
        with model.hooks(fwd_hooks=[(name, lambda x, hook: x * 0.5)]):
            assert torch.equal(model(tokens), before)  # what a person would have taken for an effect of 0
        with (
            pytest.raises(HookError, match=rf"{name} can be read in this model and not written"),
            ml.intervene(model, [(name, lambda x, hook: x * 0.5)]),
        ):
            model(tokens)
        with ml.intervene(model, [(name, lambda x, hook: None), (name, lambda x, hook: x)]) as fired:
            assert torch.equal(model(tokens), before)  # looking is no writing
    assert fired == [1, 1]
    assert is_ignored(model, name) and not is_ignored(model, "blocks.2.attn.hook_z")


def test_what_is_tried_leaves_hooks_of_others_alone():
    """Inside somebody's hooks, with their shapes, the trial of another hook neither meets nor removes them."""
    model, calls = bridge("OPT"), []
    tokens = torch.arange(1, 9)[None].expand(3, -1)

    def mine(x, hook):
        assert x.shape[:2] == (3, 8)
        calls.append(1)
        return x * 2

    with torch.no_grad(), ml.intervene(model, [("blocks.0.hook_mlp_out", mine)]):
        alone = model(tokens)
        with ml.intervene(model, [("blocks.1.attn.hook_z", lambda x, hook: x)]):
            assert torch.equal(model(tokens), alone)
    assert len(calls) == 2


@pytest.mark.parametrize("family", ["OPT", "Llama"])
def test_the_hook_map_marks_what_can_only_be_read(family):
    frame = hook_map(kept(family), layer=1)
    marked = set(frame["hook"][frame["what it is"].str.contains("read only")])
    names = {"blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"}
    assert marked == (names if family == "OPT" else set())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_writing_in_place_is_noticed_in_every_mode(tiny, mode):
    tokens = torch.arange(1, 9)[None]

    def spoil(x, hook):
        x[:, 2] = 0
        return x

    with (
        mode(),
        pytest.raises(HookError, match="writes into the activation"),
        ml.intervene(tiny, [("blocks.1.attn.hook_z", spoil)]),
    ):
        tiny(tokens)
    with mode(), ml.intervene(tiny, [("blocks.1.attn.hook_z", lambda x, hook: x.nan_to_num())]):
        tiny(tokens)
    assert hooks_left(tiny) == 0


@pytest.mark.parametrize("site", ["hook_pattern", "hook_attn_scores", "hook_z", "hook_v", "hook_resid_pre"])
def test_another_runs_activation_is_put_for_a_head_and_at_positions(tiny, site):
    """By a mask written out; patterns have their heads first, and the positions of the query."""
    base, other = torch.arange(1, 9)[None], torch.arange(21, 29)[None]
    name = f"blocks.1.{site}" if "resid" in site else f"blocks.1.attn.{site}"
    heads, positions = (None, [2, -1]) if "resid" in site else (1, [2, -1])
    with torch.no_grad():
        value = tiny.run_with_cache(other)[1][name]
        first = site in ("hook_pattern", "hook_attn_scores")

        def by_hand(x, hook):
            x = x.clone()
            for p in positions:
                index = (
                    (slice(None), p)
                    if heads is None
                    else ((slice(None), heads, p) if first else (slice(None), p, heads))
                )
                x[index] = value[index]
            return x

        with ml.intervene(tiny, ml.replace_with(name, value, head=heads, positions=positions)):
            found = tiny(base)
        with tiny.hooks(fwd_hooks=[(name, by_hand)]):
            assert torch.allclose(found, tiny(base), atol=1e-6)
        for given, message in (({"head": 4}, "has no head 4"), ({"positions": [8]}, "has no position 8")):
            if heads is None and "head" in given:
                message = "has no head 4: it has 0 heads"
            with (
                pytest.raises(HookError, match=message),
                ml.intervene(tiny, ml.replace_with(name, value, **given)),
            ):
                tiny(base)
