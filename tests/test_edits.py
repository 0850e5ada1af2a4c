"""Edits of weights on every family: the stream has nothing along the direction, saved models come back, half precision."""

import contextlib
import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import mechlab as ml
from mechlab.intervention import edits, layout, rome, saving, weights
from tests.architectures import FAMILIES, bridge, folder, hf_model

TOKENS = torch.randint(1, 300, (2, 14), generator=torch.Generator().manual_seed(3))
DIRECTION = 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
HALF = (torch.float16, torch.bfloat16)
by_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def families():
    """Bridges of all families, each made once; every test leaves them as they were."""
    made = {}

    def of(family, **given):
        key = family, *given.items()
        if key not in made:
            model = bridge(family, **given)
            before = {n: (p.data_ptr(), p.clone()) for n, p in model.original_model.named_parameters()}
            made[key] = model, before
        return made[key][0]

    yield of
    for (family, *_), (model, before) in made.items():
        for name, p in model.original_model.named_parameters():
            assert p.data_ptr() == before[name][0] and torch.equal(p, before[name][1]), (family, name)


def off(model, level):
    """How far the stream is from `level` along the direction, as a share of its length, at most."""
    unit = (DIRECTION / DIRECTION.norm()).double()
    with torch.no_grad():
        found = weights._streams(model, TOKENS)
    assert len(found) >= 2 * model.cfg.n_layers
    each = [((x.double() @ unit - level).abs() / x.double().norm(dim=-1)).max() for x in found.values()]
    return max(each).item()


@by_family
@pytest.mark.parametrize("level", [0.0, 1.5])
def test_nothing_is_written_along_it_on_any_family(families, family, level):
    model = families(family)
    assert off(model, level) > 0.1
    with ml.orthogonalize(model, DIRECTION, level=level):
        assert off(model, level) < 1e-5
    with ml.intervene(model, ml.write_hooks(model, DIRECTION, level=level)):
        assert off(model, level) < 1e-5
    assert off(model, level) > 0.1


@pytest.mark.parametrize("family", ["Llama", "Gemma 2", "Bloom", "Mixtral", "GPT-2"])
@pytest.mark.parametrize("dtype", HALF)
def test_nor_in_half_precision_or_unfolded(families, family, dtype):
    model = families(family, dtype=dtype)
    with ml.orthogonalize(model, DIRECTION, level=0.7):
        assert off(model, 0.7) < torch.finfo(dtype).eps
    with ml.orthogonalize(families(family, fold=False), DIRECTION):
        assert off(families(family, fold=False), 0) < 1e-5


def test_a_family_that_writes_in_another_way_is_refused_and_left_as_it_was(gqa, monkeypatch):
    before, writers = gqa.W_E.clone(), weights._writers
    monkeypatch.setattr(weights, "_writers", lambda model: [*writers(model)][:-1])
    with pytest.raises(ValueError, match=r"After the edit the stream at blocks\.2\.hook_resid_post is still"):
        ml.orthogonalize(gqa, DIRECTION)
    assert torch.equal(gqa.W_E, before)


def test_a_family_that_norms_the_stream_itself_is_refused(tmp_path):
    import transformers

    size = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 400}
    transformers.AutoModelForCausalLM.from_config(transformers.OpenAIGPTConfig(**size)).save_pretrained(
        tmp_path
    )
    ml.models._tiny_tokenizer().save_pretrained(tmp_path)
    model = ml.load(tmp_path, quiet=True)
    for use, when in ((ml.orthogonalize, "After the edit"), (ml.write_hooks, "With these hooks")):
        with pytest.raises(
            ValueError, match=f"{when} the stream at .* writes to the stream that is not known"
        ):
            use(model, DIRECTION)
    with pytest.raises(ValueError, match="none at the end: its blocks norm the stream itself"):
        ml.models.require_folded(model)


def test_every_expert_is_edited(families):
    model = families("Mixtral")
    with ml.orthogonalize(model, DIRECTION):
        down = dict(model.blocks[1].mlp.named_parameters())
        (W,) = {id(p): p for name, p in down.items() if name.endswith("down_proj")}.values()
        assert W.shape[0] == 3 and torch.einsum("edf,d->ef", W, DIRECTION).abs().max() < 1e-4


def told(logits):
    return logits.detach().double().log_softmax(-1)


@by_family
@pytest.mark.parametrize("given", [{}, {"fold": False}], ids=["folded", "unfolded"])
def test_a_saved_model_predicts_the_same_in_transformers_and_here(families, family, given, tmp_path):
    from transformers import AutoModelForCausalLM

    model = families(family, **given)
    chance = torch.get_rng_state()
    with ml.orthogonalize(model, DIRECTION):
        expected = told(model(TOKENS))
        ml.save_model(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), chance)
    assert (expected - told(model(TOKENS))).abs().max() > 1e-2  # it is the edited one that was saved
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    for logits in (
        plain(TOKENS).logits,
        *(ml.load(tmp_path, quiet=True, fold=f)(TOKENS) for f in (True, False)),
    ):
        assert torch.allclose(told(logits), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["Qwen2", "GPT-J", "StableLM", "Pythia (GPT-NeoX)"])
def test_a_model_in_half_precision_is_saved_as_it_is(families, family, tmp_path):
    model = families(family, dtype=torch.bfloat16)
    ml.save_model(model, tmp_path)
    again = ml.load(tmp_path, quiet=True, dtype=torch.float32)
    assert (told(again(TOKENS)) - told(model(TOKENS))).abs().max() < 0.2


def test_a_bias_that_has_no_place_is_refused_with_the_reason(families, tmp_path):
    model = families("Qwen2")
    edit = edits.WeightEdit(model, "bias")
    with edit.whole():
        narrow = torch.zeros(32, 32)
        edit.change(model.blocks[0].attn.W_O.flatten(0, 1), narrow)  # no value reaches the stream any more
    with edit, pytest.raises(ValueError, match="no bias behind its attention, and no bias of the values"):
        ml.save_model(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@by_family
def test_fused_matrices_are_taken_apart_as_the_family_does(families, family):
    model, state = families(family, fold=False), hf_model(family).state_dict()
    for fused in layout.fused_modules(model):
        parts = fused.split(state[f"{fused.name}.weight"])
        for part, found in zip(fused.parts, parts, strict=True):
            assert torch.equal(layout.linear(part), found)
        assert torch.equal(fused.joined(parts).float(), state[f"{fused.name}.weight"])
    have = layout.named(model)
    assert {name for name in state if name not in have and "bias" not in name} <= {"lm_head.weight"}


@pytest.mark.parametrize(
    "family", ["GPT-2", "Pythia (GPT-NeoX)", "Phi-3", "Bloom", "Gemma 2", "OPT", "GPT-J", "Qwen2"]
)
def test_an_adapter_of_all_linear_maps_is_what_peft_makes_of_it(families, family, tmp_path):
    """With rslora, and fused matrices."""
    from peft import LoraConfig, get_peft_model

    model, plain = families(family, fold=False), hf_model(family)
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules="all-linear",
        use_rslora=True,
        fan_in_fan_out=family == "GPT-2",
    )
    adapted = get_peft_model(plain, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        expected, before = adapted(TOKENS).logits, model(TOKENS)
        with ml.load_adapter(model, tmp_path):
            assert torch.allclose(told(model(TOKENS)), told(expected), atol=1e-3)
        assert torch.equal(model(TOKENS), before) and not torch.allclose(expected, before, atol=1e-2)


KEY = "base_model.model.model.layers.0.self_attn.q_proj."


def adapter(folder, config=None, tensors=None, without=()):
    """A small adapter in a folder: settings and tensors besides the usual ones."""
    usual = {KEY + "lora_A.weight": torch.ones(2, 32), KEY + "lora_B.weight": torch.ones(32, 2)}
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | (config or {})
    settings = {name: value for name, value in settings.items() if name not in without}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    found = {name: each for name, each in (usual | (tensors or {})).items() if each is not None}
    save_file(found, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_flag_of_next_year": 1}, "a_flag_of_next_year"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"layers_to_transform": [1]}, r"layers_to_transform=\[1\], and changes model.layers.0"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern={'q_proj': 3}"),
        ({"alpha_pattern": {"q_proj": 40}}, "alpha_pattern={'q_proj': 40}"),
        ({"r": 3}, "has rank 2, and the settings say 3"),
        ({"r": None}, "do not say r"),
        ({"lora_alpha": None}, "do not say lora_alpha"),
    ],
)
def test_a_setting_that_is_not_known_is_refused_by_its_name(gqa, tmp_path, config, message):
    before = gqa.blocks[0].attn.W_Q.clone()
    with pytest.raises(ValueError, match=message):
        ml.load_adapter(gqa, adapter(tmp_path, config))
    assert torch.equal(gqa.blocks[0].attn.W_Q, before)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({KEY + "lora_magnitude_vector": torch.ones(32)}, "lora_magnitude_vector"),
        ({KEY + "ia3_l": torch.ones(32)}, "ia3_l"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 400)}, "lora_embedding_A"),
        ({KEY.replace("q_proj", "k_proj") + "lora_B.weight": torch.ones(16, 2)}, "k_proj.lora_B"),
        ({KEY + "lora_B.weight": None}, "its lora_B is missing"),
        ({KEY + "lora_B.weight": torch.ones(32, 3)}, "do not make a product"),
        ({KEY + "lora_B.weight": torch.zeros(32, 2)}, "changes nothing"),
        ({KEY + "lora_B.weight": torch.full((32, 2), torch.nan)}, "NaN"),
        ({KEY + "lora_A.weight": None, KEY + "lora_B.weight": None, "x": torch.ones(2)}, "holds x"),
    ],
)
def test_a_tensor_that_would_not_be_used_is_refused_by_its_name(gqa, tmp_path, tensors, message):
    before = gqa.blocks[0].attn.W_Q.clone()
    with pytest.raises(ValueError, match=message):
        ml.load_adapter(gqa, adapter(tmp_path, None, tensors))
    assert torch.equal(gqa.blocks[0].attn.W_Q, before)


def test_a_damaged_adapter_is_one_sentence(gqa, tmp_path):
    adapter(tmp_path)
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        ml.load_adapter(gqa, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="so no adapter can be read"):
        ml.load_adapter(gqa, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON file"):
        ml.load_adapter(gqa, tmp_path)


def test_an_adapter_of_the_unfolded_model_is_said_to_be_one(gqa, tmp_path):
    adapter(tmp_path, {"base_model_name_or_path": "somebody/tiny"})
    with pytest.warns(UserWarning, match=r"trained on somebody/tiny.*Load the model with fold=False"):
        ml.load_adapter(gqa, tmp_path).undo()


@pytest.mark.parametrize("stop", range(1, 8))
def test_an_interrupted_edit_is_undone(gqa, tmp_path, monkeypatch, stop):
    """By a KeyboardInterrupt before the n-th change, or within it."""
    before = {n: (p.clone(), p.data_ptr()) for n, p in gqa.original_model.named_parameters()}
    old, count = weights.WeightEdit.change, [0]

    def change(self, weight, new):
        count[0] += 1
        if count[0] == stop:
            raise KeyboardInterrupt
        old(self, weight, new)
        if count[0] == stop - 1:
            raise KeyboardInterrupt

    many = {
        KEY.replace(".0.", f".{n}.") + f"lora_{x}.weight": torch.ones(*((2, 32) if x == "A" else (32, 2)))
        for n in (1, 2)
        for x in "AB"
    }
    place = adapter(tmp_path, None, many)
    monkeypatch.setattr(weights.WeightEdit, "change", change)
    fact = ml.Fact("{} went to the", "John", " store")
    none = torch.zeros(0, 3, dtype=torch.long)
    rewritten = lambda: ml.edit_fact(gqa, fact, 1, torch.eye(48), prefixes=none, steps=1)
    for run in (lambda: ml.orthogonalize(gqa, DIRECTION), lambda: ml.load_adapter(gqa, place), rewritten):
        count[0] = 0
        with contextlib.suppress(KeyboardInterrupt):
            run().undo()
        for name, p in gqa.original_model.named_parameters():
            assert torch.equal(p, before[name][0]) and p.data_ptr() == before[name][1], name


def test_an_interruption_ties_the_unembedding_again(families, monkeypatch):
    model = families("Llama", fold=False)
    assert model.W_E.data_ptr() == model.W_U.data_ptr()
    monkeypatch.setattr(weights.WeightEdit, "change", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ml.orthogonalize(model, DIRECTION)
    assert model.W_E.data_ptr() == model.W_U.data_ptr()


def test_parts_that_share_a_fused_matrix_s_memory_are_edited_where_they_are_read(families):
    model = families("Phi-3", fold=False)
    up = model.blocks[0].mlp.W_in
    before = told(model(TOKENS))
    edit = weights.WeightEdit(model, "up")
    edit.change(up, 2 * up)
    assert torch.equal(model.blocks[0].mlp.W_in, 2 * up)
    assert (told(model(TOKENS)) - before).abs().max() > 1e-2
    edit.undo()
    assert torch.equal(told(model(TOKENS)), before)


# ROME
NONE = torch.zeros(0, 1, dtype=torch.long)  # no prefixes
FACT = ml.Fact("When Mary went to the store, {}", "John", " Paris")
NO_PLACE = {
    "Gemma 2": "a norm stands between",
    "Gemma 3": "a norm stands between",
    "OLMo2": "a norm stands between",
    "Mixtral": "no one output matrix of its MLP",
}


@by_family
@pytest.mark.filterwarnings("ignore:.*slower, the same numbers")
def test_a_fact_is_written_on_every_family_with_an_output_matrix(families, family):
    model = families(family)
    if family in NO_PLACE:
        with pytest.raises(ValueError, match=NO_PLACE[family]):
            ml.edit_fact(model, FACT, 1, torch.eye(48))
        with pytest.raises(ValueError, match=NO_PLACE[family]):
            ml.key_covariance(model, TOKENS, layer=1)
        return
    covariance = ml.key_covariance(model, TOKENS, layer=1)
    value = rome.fact_value(model, FACT, 1, NONE, steps=4)
    before = told(model(FACT.text))[0, -1, ml.single_token(model, " Paris")]
    with ml.edit_fact(model, FACT, 1, covariance, prefixes=NONE, steps=4):
        _, written = rome.fact_key(model, FACT, 1, NONE)
        assert torch.allclose(written, value, atol=1e-3 * value.norm())
        assert told(model(FACT.text))[0, -1, ml.single_token(model, " Paris")] > before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_fact_is_the_same_inside_no_grad_and_inference_mode(gqa, mode):
    covariance = ml.key_covariance(gqa, TOKENS, layer=1)
    prefixes = TOKENS[:, :4]
    expected = rome.fact_value(gqa, FACT, 1, prefixes, steps=3)
    with mode():
        inside = ml.key_covariance(gqa, TOKENS.clone(), layer=1)
        assert torch.equal(inside, covariance) and not inside.is_inference()
        assert torch.equal(rome.fact_value(gqa, FACT, 1, prefixes.clone(), steps=3), expected)
        edit = ml.edit_fact(gqa, FACT, 1, inside, prefixes=prefixes.clone(), steps=3)
        more = ml.orthogonalize(gqa, DIRECTION.clone())
    assert not gqa.W_E.is_inference() and not gqa.blocks[1].mlp.W_out.is_inference()
    gqa.requires_grad_()
    gqa(TOKENS, return_type="loss").backward()  # gradients go on as before
    gqa.zero_grad()
    gqa.requires_grad_(False)
    more.undo()
    edit.undo()


@pytest.mark.parametrize("dtype", HALF)
def test_a_fact_in_half_precision_is_near_the_one_in_float32(families, dtype):
    whole, half = families("Llama"), families("Llama", dtype=dtype)
    find = lambda model: rome.fact_value(model, FACT, 1, NONE, steps=4)
    assert (find(half) - find(whole)).norm() < 0.1 * find(whole).norm()
    a, b = (ml.key_covariance(model, TOKENS, layer=1) for model in (whole, half))
    assert b.dtype == torch.float32 and (a - b).norm() < 0.05 * a.norm()
    with ml.edit_fact(half, FACT, 1, b, prefixes=NONE, steps=4):
        assert ml.edit_scores(half, FACT, " the", ["{} went to"], {"Tom went to": " the"})["probability"] > 0


def test_the_key_is_taken_at_the_subject_of_the_braces(gqa):
    """Not at another place where the same word stands, nor inside a longer one."""
    for prompt in ("{} gave a drink to John", "John gave a drink to {}", "{} and Johnny"):
        (tokens, found), *_ = rome._contexts(gqa, ml.Fact(prompt, "John", " Paris"), NONE)
        before = prompt[: prompt.index("{}")] + "John"
        assert gqa.to_string(tokens[0, 1 : found + 1]) == before, prompt
    assert ml.Fact("{} said {x}", "John", " Paris").text == "John said {x}"


def test_a_tokenizer_without_a_first_token_loses_no_word(tmp_path):
    from tokenizers.processors import ByteLevel

    tokenizer = copy.deepcopy(ml.models._tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = ByteLevel()
    tokenizer.add_bos_token = False
    folder("Qwen2", tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = ml.load(tmp_path, quiet=True)
    model.cfg.default_prepend_bos = False
    fact = ml.Fact("When {} went to", "John", " Paris")
    own = model.to_tokens(fact.text)[0].tolist()
    assert own == tokenizer(fact.text)["input_ids"]
    (bare, place), (behind, later) = rome._contexts(model, fact, TOKENS[:, :4])
    assert bare[0].tolist() == own and behind[0, 4:].tolist() == own
    assert behind[0, later] == bare[0, place] and model.to_string(bare[0, : place + 1]) == "When John"


def test_the_files_and_models_of_a_covariance_are_checked(gqa, tmp_path):
    covariance = ml.key_covariance(gqa, TOKENS, layer=1)
    path = tmp_path / "c.safetensors"
    rome.save_covariance(path, covariance)
    other, none = ml.tiny("gqa", seed=5), NONE
    for given in (covariance, ml.load_covariance(path)):
        with pytest.raises(
            ValueError, match=r"covariance was made from tiny-gqa, and this model \(tiny-gqa\)"
        ):
            ml.edit_fact(other, FACT, 1, given, prefixes=none, steps=1)
        ml.edit_fact(gqa, FACT, 1, given, prefixes=none, steps=1).undo()
    save_file(dict(load_file(path)), path)  # one that does not say its model
    ml.edit_fact(other, FACT, 1, ml.load_covariance(path), prefixes=none, steps=1).undo()
    for tensors, message in (
        ({"scale": torch.ones(4)}, "is not a covariance: it holds scale"),
        ({"scale": torch.ones(4), "upper": torch.ones(9)}, r"upper is \(9,\)"),
        ({"scale": torch.tensor([1.0, torch.nan]), "upper": torch.ones(3)}, "NaN"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message):
            ml.load_covariance(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        ml.load_covariance(path)
    with pytest.raises(FileNotFoundError, match=re.escape("so no covariance can be read")):
        ml.load_covariance(tmp_path / "nowhere")


def test_neurons_that_are_never_active_are_stored_too(tmp_path):
    covariance = torch.diag(torch.tensor([0.0, 1.0, 4.0]))
    rome.save_covariance(tmp_path / "c", covariance)
    assert torch.allclose(ml.load_covariance(tmp_path / "c"), covariance)


def test_facts_and_covariances_that_say_nothing_are_refused(gqa):
    for bad, message in ((("{} is", " ", " x"), "The subject"), (("{} is", "John", " "), "The answer")):
        with pytest.raises(ml.PromptError, match=message):
            ml.Fact(*bad)
    for covariance in (torch.zeros(48, 48), torch.full((48, 48), torch.nan)):
        with pytest.raises(ValueError, match="no key can be told from others"):
            ml.edit_fact(gqa, FACT, 1, covariance)
    with pytest.raises(ValueError, match="no tokens behind the first 14 positions"):
        ml.key_covariance(gqa, TOKENS, layer=1, skip=14)
    with pytest.raises(ml.PromptError, match=r"must hold \{\} once"):
        ml.edit_scores(gqa, FACT, " the", ["John went"], {"Tom": " the"})
    with pytest.raises(ml.PromptError, match="no paraphrases or neighbours"):
        ml.edit_scores(gqa, FACT, " the", [], {"Tom": " the"})


def test_saving_names_what_it_cannot_place(gqa, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_state", lambda model, like: {**like, "extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no place for these weights .*extra"):
        ml.save_model(gqa, tmp_path / "no")
    assert not (tmp_path / "no").exists()
