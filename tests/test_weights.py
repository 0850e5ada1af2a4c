"""Edits of weights: nothing can be written along the direction, and undoing gives back every bit."""

import json

import pytest
import torch
from safetensors.torch import save_file

import mechlab as ml
from mechlab.intervention import rome, saving, weights
from mechlab.runs import engines
from tests.test_hooks import hooks_left
from tests.test_runs import Refuses

TOKENS = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(request, tiny):
    """A tiny model whose weights are compared bit by bit, and memory by memory, afterwards."""
    before = {name: (p.clone(), p.data_ptr()) for name, p in tiny.original_model.named_parameters()}
    yield tiny
    for name, p in tiny.original_model.named_parameters():
        assert torch.equal(p, before[name][0]) and p.data_ptr() == before[name][1], name
        assert p.grad is None
    assert hooks_left(tiny) == 0


@pytest.fixture
def direction():
    return 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))


def along(model, direction):
    """What the stream has along the direction, at every layer, position and prompt."""
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    names = [
        f"blocks.{layer}.hook_{kind}"
        for layer in range(3)
        for kind in ("resid_pre", "resid_mid", "resid_post")
    ]
    return torch.stack([cache[name] @ (direction / direction.norm()) for name in names])


@pytest.mark.parametrize("level", [0.0, -1.5])
def test_nothing_is_written_along_it_any_more(model, direction, level):
    unembedding = model.W_U.clone()
    assert along(model, direction).abs().max() > 0.1
    with ml.orthogonalize(model, direction, level=level) as edit:
        assert torch.allclose(along(model, direction), torch.full((9, 2, 7), level), atol=1e-4)
        assert torch.equal(model.W_U, unembedding)
        assert "matrices of" in repr(edit)


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_hooks_on_all_that_is_written_do_the_same(model, direction, level):
    with torch.no_grad():
        with ml.intervene(model, ml.write_hooks(model, direction, level=level)):
            expected = model(TOKENS)
        with ml.orthogonalize(model, direction, level=level):
            found = model(TOKENS)
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(found, model(TOKENS), atol=1e-2)


def test_the_length_of_the_direction_does_not_matter(model, direction):
    with torch.no_grad(), ml.orthogonalize(model, direction):
        one = model(TOKENS)
    with torch.no_grad(), ml.orthogonalize(model, -0.01 * direction):
        assert torch.allclose(model(TOKENS), one, atol=1e-4)


def test_edits_stack_and_are_undone_in_turn(model, direction):
    first = ml.orthogonalize(model, direction)
    second = ml.orthogonalize(model, torch.ones(32))
    with pytest.raises(ValueError, match="undo the later edit first"):
        first.undo()
    second.undo()
    assert along(model, direction).abs().max() < 1e-4
    first.undo()
    first.undo()  # a second time changes nothing


only_tied = pytest.mark.parametrize(
    "folder", ["gpt2"], indirect=True
)  # the other has an unembedding of its own


@only_tied
def test_a_tied_unembedding_keeps_its_values_and_is_tied_again_afterwards(folder, direction):
    model = ml.load(folder[0], quiet=True, fold=False)
    width = model.cfg.d_model
    unembedding, logits = model.W_U.clone(), model(TOKENS)
    before = {name: id(p) for name, p in model.original_model.named_parameters(remove_duplicate=False)}
    assert model.W_E.data_ptr() == model.W_U.data_ptr()
    first = ml.orthogonalize(model, direction[:width])
    assert torch.equal(model.W_U, unembedding)
    assert model.W_E.data_ptr() != model.W_U.data_ptr()
    assert (model.W_E @ direction[:width]).abs().max() < 1e-4
    second = ml.orthogonalize(model, torch.ones(width))
    with pytest.raises(ValueError, match="undo the later edit first"):
        first.undo()
    second.undo()
    assert torch.equal(model.W_U, unembedding) and model.W_E.data_ptr() != model.W_U.data_ptr()
    with pytest.raises(ValueError, match="nothing was changed"):
        ml.orthogonalize(model, direction[:width], level=float("inf"))
    first.undo()
    assert before == {n: id(p) for n, p in model.original_model.named_parameters(remove_duplicate=False)}
    assert model.W_E.data_ptr() == model.W_U.data_ptr()
    assert torch.equal(model(TOKENS), logits)


@only_tied
def test_an_edit_of_the_untied_unembedding_must_be_undone_first(folder, direction):
    model = ml.load(folder[0], quiet=True, fold=False)
    first = ml.orthogonalize(model, direction[: model.cfg.d_model])
    later = weights.WeightEdit(model, "unembedding")
    later.change(model.W_U, 2 * model.W_U)
    with pytest.raises(ValueError, match="undo the later edit first"):
        first.undo()
    later.undo()
    first.undo()
    assert model.W_E.data_ptr() == model.W_U.data_ptr()


@only_tied
def test_a_refused_edit_leaves_a_tied_unembedding_tied(folder, direction):
    model = ml.load(folder[0], quiet=True, fold=False)
    with pytest.raises(ValueError, match="nothing was changed"):
        ml.orthogonalize(model, direction[: model.cfg.d_model], level=float("inf"))
    assert model.W_E.data_ptr() == model.W_U.data_ptr()


def test_an_adapter_is_what_peft_makes_of_it(folder, tmp_path):
    """The same adapter, merged by peft into the plain model and added by us to the bridge."""
    from peft import LoraConfig, get_peft_model

    path, plain = folder
    model = ml.load(path, quiet=True, fold=False)
    if model.cfg.n_key_value_heads is None:
        targets, conv = ["c_proj"], True
    else:
        targets, conv = ["q_proj", "v_proj", "o_proj", "down_proj"], False
    adapted = get_peft_model(
        plain, LoraConfig(r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=conv)
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        before, expected = model(TOKENS), adapted(TOKENS).logits
        with ml.load_adapter(model, tmp_path / "adapter"):
            assert torch.allclose(model(TOKENS), expected, atol=1e-3)
            assert not torch.allclose(expected, before, atol=1e-2)
        assert torch.equal(model(TOKENS), before)
        with ml.load_adapter(model, tmp_path / "adapter", scale=0.0):
            assert torch.allclose(model(TOKENS), before, atol=1e-5)


def test_an_adapter_of_another_model_changes_nothing(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no adapter"):
        ml.load_adapter(model, tmp_path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(2, 64), name.format("B"): torch.ones(64, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    with pytest.raises(ValueError, match=r"for another model: it changes model\.layers\.0"):
        ml.load_adapter(model, tmp_path)


def test_an_edited_model_is_saved_and_opened_again(folder, direction, tmp_path):
    from transformers import AutoModelForCausalLM

    model = ml.load(folder[0], quiet=True)
    with torch.no_grad(), ml.orthogonalize(model, direction[: model.cfg.d_model], level=0.5):
        expected = model(TOKENS)
        ml.save_model(model, tmp_path / "edited")
    again = ml.load(tmp_path / "edited", quiet=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    with torch.no_grad():
        for logits in (again(TOKENS), plain(TOKENS).logits):
            assert torch.allclose(logits.log_softmax(-1), expected.log_softmax(-1), atol=1e-3)
        assert not torch.allclose(expected, model(TOKENS), atol=1e-2)


def test_a_model_that_cannot_be_saved_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "named", lambda model: {})
    with pytest.raises(ValueError, match="gives other predictions"):
        ml.save_model(tiny, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (torch.zeros(32), "zero or NaN"),
        (torch.full((32,), torch.nan), "zero or NaN"),
        (torch.ones(31), "has 32 dimensions"),
    ],
)
def test_bad_directions_are_named(model, direction, message):
    with pytest.raises(ValueError, match=message):
        ml.orthogonalize(model, direction)
    with pytest.raises(ValueError, match=message):
        ml.write_hooks(model, direction)


def test_weights_that_would_overflow_are_refused(model, direction):
    with pytest.raises(ValueError, match="nothing was changed"):
        ml.orthogonalize(model, direction, level=float("inf"))


# ROME
FACT = ml.Fact("When Mary went to the store, {}", "John", " Paris")  # a random model carries nothing far
TEXTS = torch.randint(5, 60, (40, 12), generator=torch.Generator().manual_seed(2))


def said(model, text, answer):
    with torch.no_grad():
        return model(text)[0, -1].softmax(-1)[ml.single_token(model, answer)].item()


def test_the_covariance_is_the_second_moment_of_the_neurons(tiny):
    found = ml.key_covariance(tiny, TEXTS, layer=1, batch=7)
    with torch.no_grad():
        keys = tiny.run_with_cache(TEXTS)[1]["post", 1][:, 1:].flatten(0, 1)
    assert torch.allclose(found, keys.T @ keys / len(keys), atol=1e-4)


def test_a_stored_covariance_is_the_same(tiny, tmp_path):
    found = ml.key_covariance(tiny, TEXTS, layer=1)
    rome.save_covariance(tmp_path / "c.safetensors", found)
    again = ml.load_covariance(tmp_path / "c.safetensors")
    scale = found.diagonal().sqrt()
    assert ((again - found).abs() <= 1e-3 * torch.outer(scale, scale) + 1e-9).all()


def test_the_edit_says_the_new_answer_and_is_of_rank_one(model):
    covariance = ml.key_covariance(model, TEXTS, layer=1)
    before, W = said(model, FACT.text, " Paris"), model.blocks[1].mlp.W_out.clone()
    alone = torch.zeros(0, 1, dtype=torch.long)  # no prefixes
    with ml.edit_fact(model, FACT, 1, covariance, steps=40, prefixes=alone):
        after, change = said(model, FACT.text, " Paris"), model.blocks[1].mlp.W_out - W
        assert torch.linalg.matrix_rank(change, rtol=1e-3) == 1
        for other in (0, 2):
            assert torch.equal(model.blocks[other].mlp.W_out, model.blocks[other].mlp.W_out)
    assert after > 20 * before
    assert said(model, FACT.text, " Paris") == before


def test_the_fact_key_brings_back_the_new_value(model):
    """k (W + update) = v*, exactly: that is what the update solves for."""
    covariance = ml.key_covariance(model, TEXTS, layer=1)
    key, written = rome.fact_key(model, FACT, 1)
    value = rome.fact_value(model, FACT, 1)
    with ml.edit_fact(model, FACT, 1, covariance):
        again, now = rome.fact_key(model, FACT, 1)
    assert torch.allclose(again, key, atol=1e-5)  # the key comes before the edited matrix
    assert torch.allclose(now, value, atol=1e-2 * (value - written).norm())


def test_the_covariance_protects_ordinary_keys(model):
    """Beside the identity, ordinary keys are disturbed less by an edit of the same value."""
    covariance = ml.key_covariance(model, TEXTS, layer=1)
    with torch.no_grad():
        keys = model.run_with_cache(TEXTS)[1]["post", 1][:, 1:].flatten(0, 1)
    W, moved = model.blocks[1].mlp.W_out.clone(), {}
    for name, given in (("covariance", covariance), ("identity", torch.eye(len(covariance)))):
        with ml.edit_fact(model, FACT, 1, given, ridge=1e-3):
            moved[name] = (keys @ (model.blocks[1].mlp.W_out - W)).pow(2).mean().item()
    assert moved["covariance"] < moved["identity"]


def test_a_model_of_another_kind_finds_the_same_value(model, monkeypatch):
    expected = rome.fact_value(model, FACT, 1, steps=6)
    monkeypatch.setattr(engines, "Fast", Refuses)
    with pytest.warns(UserWarning, match="slower, the same numbers"):
        found = rome.fact_value(model, FACT, 1, steps=6)
    assert torch.allclose(found, expected, atol=1e-2)


def test_without_prefixes_there_is_one_context(model):
    none = torch.zeros(0, 1, dtype=torch.long)
    key, written = rome.fact_key(model, FACT, 1, none)
    with torch.no_grad():
        _, cache = model.run_with_cache(FACT.text)
    place = model.to_str_tokens(FACT.text).index(" John")
    assert torch.allclose(key, cache["post", 1][0, place], atol=1e-5)
    assert torch.allclose(written, cache["mlp_out", 1][0, place], atol=1e-5)
    several, _ = rome.fact_key(model, FACT, 1)
    assert not torch.allclose(several, key, atol=1e-3)


def test_several_edits_add_up(model):
    covariance = ml.key_covariance(model, TEXTS, layer=1)
    other = ml.Fact("{} went to the", "Mary", " France")
    first = ml.edit_fact(model, FACT, 1, covariance)
    second = ml.edit_fact(model, other, 2, ml.key_covariance(model, TEXTS, layer=2))
    second.undo()
    first.undo()


def test_an_answer_of_several_tokens_is_written_too(model):
    covariance = ml.key_covariance(model, TEXTS, layer=1)
    fact = ml.Fact(FACT.prompt, "John", " Paris France")
    ids = model.to_tokens(fact.answer, prepend_bos=False)[0]
    assert len(ids) == 2
    tokens = torch.cat([model.to_tokens(fact.text)[0], ids])[None]

    def told():
        with torch.no_grad():
            rows = model(tokens)[0, -3:-1].log_softmax(-1)
        return rows.gather(-1, ids[:, None]).sum().item()

    before = told()
    with ml.edit_fact(model, fact, 1, covariance, steps=40):
        assert told() > before + 1


def test_facts_that_cannot_be_written_are_named(model):
    covariance = torch.eye(model.cfg.d_mlp)
    with pytest.raises(ml.PromptError, match=r"must hold \{\} once"):
        ml.Fact("The capital of France is", "France", " Rome")
    with pytest.raises(ValueError, match="There is no layer 3"):
        ml.edit_fact(model, FACT, 3, covariance)
    with pytest.raises(ValueError, match=r"the MLP of this model has \d+ neurons"):
        ml.edit_fact(model, FACT, 1, torch.eye(5))
    with pytest.raises(ml.PromptError, match="The subject '' is empty"):
        ml.edit_fact(model, ml.Fact("{} gave a drink to", "", " Paris"), 1, covariance)
