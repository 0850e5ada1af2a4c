"""Loading: names, folders, devices, messages."""

import pytest
import torch

import mechlab as ml
from mechlab.loading import models
from mechlab.loading.models import ModelError, load, passes_known_answer_test, tiny
from tests import architectures


@pytest.mark.parametrize("kind", ["gqa", "gpt2"])
def test_tiny_models_are_random_but_fixed_and_leave_the_seed_alone(kind):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = tiny(kind), tiny(kind)
    assert torch.equal(torch.rand(1), expected)
    tokens = first.to_tokens("When John and Mary went to the store, John gave a drink to")
    assert torch.equal(first(tokens), second(tokens))
    assert not torch.equal(first(tokens), tiny(kind, seed=1)(tokens))
    assert first.cfg.n_layers == 3
    assert first.to_str_tokens(" Mary")[1:] == [" Mary"]
    assert tokens[0, 0] == first.tokenizer.bos_token_id


def test_tiny_gqa_shares_keys():
    model = tiny("gqa")
    assert model.cfg.n_heads == 4 and model.cfg.n_key_value_heads == 2


@pytest.mark.parametrize("kind", ["gqa", "gpt2"])
def test_weights_come_frozen_and_can_be_let_go(kind, folder):
    """A loss on activations makes no gradients of weights by the way."""
    for model in (tiny(kind), ml.random_weights(tiny(kind)), load(folder[0], device="cpu", quiet=True)):
        assert not any(each.requires_grad for each in model.parameters())
        start = model.W_E[torch.tensor([[1, 2, 3]])].detach().requires_grad_()
        hooks = [("blocks.0.hook_resid_pre", lambda x, hook, start=start: start)]
        with model.hooks(fwd_hooks=hooks):
            model(torch.tensor([[1, 2, 3]]), return_type="loss").backward()
        assert start.grad.abs().sum() > 0 and all(each.grad is None for each in model.parameters())
        assert model.requires_grad_().W_U.requires_grad


def test_unknown_tiny_model():
    with pytest.raises(ValueError, match='Choose "gpt2" or "gqa"'):
        tiny("bert")


def test_load_from_a_local_folder_keeps_the_predictions(folder, capsys):
    path, original = folder
    loaded = load(path, device="cpu")
    printed = capsys.readouterr().out
    assert printed.startswith("my-model: 2 layers × ") and printed.count("\n") == 1
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = original(tokens).logits.log_softmax(-1)
        assert torch.allclose(loaded(tokens).log_softmax(-1), expected, atol=1e-4)
        unfolded = load(path, fold=False, quiet=True)(tokens)
        assert torch.allclose(unfolded, original(tokens).logits, atol=1e-4)
    assert capsys.readouterr().out == ""
    assert not loaded.original_model.training


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"a folder without a config\.json"):
        load(tmp_path)


def test_a_path_that_does_not_exist():
    with pytest.raises(ModelError, match=r"There is no folder \./nowhere"):
        load("./nowhere")


def test_gpt2_without_network_and_without_a_folder_names_both_remedies(monkeypatch):
    import huggingface_hub

    def offline(*_, **given):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ModelError,
        match=r'"gpt2" is not on this machine and the Hugging Face Hub did not deliver it.*load\("path',
    ):
        load("gpt2")


def test_gpt2_from_the_hub_is_what_the_hub_delivers(monkeypatch, folder):
    import huggingface_hub

    path, _ = folder
    asked = []

    def hub(name, allow_patterns, local_files_only=False):
        asked.append((name, local_files_only))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert load("gpt2", quiet=True).cfg.model_name == "gpt2"
    assert asked == [("gpt2", True), ("gpt2", False)]  # the local cache first


def test_the_environment_can_choose_the_model(monkeypatch, folder):
    monkeypatch.setenv("MECHLAB_MODEL", str(folder[0]))
    assert load(quiet=True).cfg.model_name == "my-model"


def test_an_unsupported_transformer_lens_is_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.11.0")
    with pytest.raises(ModelError, match=r"needs TransformerLens 4, and 2\.11\.0 is installed"):
        load("smollm2")


class Elsewhere:
    """A model whose device gives wrong numbers."""

    def __init__(self, model):
        self.model, self.cfg, self.device = model, model.cfg, "cpu"

    def to(self, device):
        self.device = device
        return self


@pytest.mark.parametrize(("healthy", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_device_must_pass_the_known_answer_test(monkeypatch, capsys, healthy, expected):
    monkeypatch.setattr(models, "passes_known_answer_test", lambda model, device: healthy)
    model = models._to_device(Elsewhere(tiny("gqa")), "cuda", print)
    assert model.device == expected
    assert ("gave wrong numbers in the known-answer test" in capsys.readouterr().out) is not healthy


def test_a_device_that_is_not_there_falls_back_with_a_message(capsys):
    missing = f"cuda:{torch.cuda.device_count()}"
    model = models._to_device(tiny("gqa"), missing, print)
    assert str(model.cfg.device) == "cpu"
    assert f"The device {missing} could not be used" in capsys.readouterr().out


def test_the_known_answer_test_notices_wrong_numbers():
    class Wrong:
        cfg = tiny("gqa").cfg

    assert passes_known_answer_test(Wrong, "cpu")
    broken = tiny("gqa")
    broken.original_model.lm_head.weight.data += 0.1 * torch.randn_like(broken.original_model.lm_head.weight)
    real = models.tiny
    try:  # the probe computes on the "device" with other weights than on the CPU
        probe = real("gqa")
        probe.to = lambda device: broken
        models.tiny = lambda kind: probe
        assert not passes_known_answer_test(Wrong, "cpu")
    finally:
        models.tiny = real


@pytest.mark.model
def test_smollm2(smollm2, capsys):
    assert smollm2.cfg.model_name == "smollm2"
    assert (smollm2.cfg.n_layers, smollm2.cfg.n_heads, smollm2.cfg.n_key_value_heads) == (30, 9, 3)
    assert passes_known_answer_test(smollm2, "cpu")
    line = (ml.load(), capsys.readouterr().out)[1]
    assert line.startswith("smollm2: 30 layers × 9 heads, 135 M parameters, float32 on cpu, norms folded (")


@pytest.mark.model
def test_the_stored_answer_is_a_real_test(smollm2, monkeypatch):
    monkeypatch.setattr(models, "KNOWN_LOG_PROBS", {" Mary": -0.2, " John": -5.6817})
    assert not passes_known_answer_test(smollm2, "cpu")


@pytest.mark.model
def test_changing_a_loaded_model_does_not_reach_the_stored_weights(smollm2):
    """The weights are mapped from the file; writing must go to a private copy."""
    copy = ml.load(quiet=True)
    with torch.no_grad():
        copy.blocks[3].mlp.out.weight.add_(1.0)
    assert not torch.equal(copy.W_out[3], smollm2.W_out[3])
    assert torch.equal(ml.load(quiet=True).W_out[3], smollm2.W_out[3])


@pytest.mark.parametrize(
    ("family", "more", "given"),
    [("OPT", {"do_layer_norm_before": False}, {}), ("Mixtral", {}, {"dtype": torch.float64})],
)
def test_a_model_that_is_opened_and_cannot_be_run_is_one_sentence(family, more, given, monkeypatch):
    kind, config = architectures.FAMILIES[family]
    monkeypatch.setitem(architectures.FAMILIES, family, (kind, {**config, **more}))
    with pytest.raises(ml.ModelError, match=r"TransformerLens opens .* and cannot run it \(RuntimeError: "):
        architectures.bridge(family, **given)


def test_load_says_what_a_model_does_not_allow(tmp_path, capsys):
    ml.load(architectures.folder("GPT-J", tmp_path / "j"))
    said = capsys.readouterr().out
    assert "Limits of this model: attention patterns can be read by hooks and not written." in said
    ml.load(architectures.folder("Mixtral", tmp_path / "m"), dtype=torch.bfloat16)
    said = capsys.readouterr().out
    assert "mixtures of experts" in said and "in bfloat16 each patch is a full run" in said
    ml.load(architectures.folder("Llama", tmp_path / "l"))
    assert "Limits" not in capsys.readouterr().out
