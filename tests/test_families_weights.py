"""Edited weights, stored models and dictionaries on each family of models: as by hand, or refused with a reason.

One case of each technique for the table of docs/models.md; tests/test_edits.py and tests/test_artefacts.py have
the others.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import mechlab as ml
from mechlab.intervention import rome
from tests.architectures import hf_model
from tests.test_families_discovery import far

TOKENS = torch.randint(5, 390, (3, 8), generator=torch.Generator().manual_seed(5))
DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(6))
UNIT = DIRECTION / DIRECTION.norm()
FACT = ml.Fact("{} went to the", "John", " Paris")
NONE = torch.zeros(0, 2, dtype=torch.long)
WITHIN = 3e-4
NO_FACT = {"key_covariance", "edit_fact"}  # experts, or a norm between the MLP's matrix and the stream
REFUSED = dict.fromkeys(("Mixtral", "Gemma 2", "Gemma 3", "OLMo2"), NO_FACT)
CHECKS: dict[str, Callable] = {}


def technique(name: str):
    return lambda check: CHECKS.setdefault(name, check)


def outcomes(model) -> dict[str, tuple[str, float | str]]:
    """For each technique "exact" with the largest difference found, or "refused" with the sentence."""
    found: dict[str, tuple[str, float | str]] = {}
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            found[name] = "exact", float(check(model))
        except (ValueError, ml.HookError) as error:
            found[name] = "refused", str(error)
    return found


def told(logits):
    return logits.detach().double().log_softmax(-1)


def left_along(model) -> float:
    """The largest share of the stream that lies along the direction, at any layer."""
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    last = model.cfg.n_layers - 1
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(last + 1)] + [
        f"blocks.{last}.hook_resid_post"
    ]
    return max(((cache[name] @ UNIT).abs() / cache[name].norm(dim=-1)).max().item() for name in names)


@technique("orthogonalize")
def removed(model):
    assert left_along(model) > 0.05
    with ml.orthogonalize(model, DIRECTION):
        return left_along(model)


@technique("write_hooks")
def removed_by_hooks(model):
    with ml.intervene(model, ml.write_hooks(model, DIRECTION)):
        return left_along(model)


@technique("save_model")
def saved(model):
    """Opened again here and by transformers, it predicts the same."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        ml.save_model(model, folder)
        again, plain = (
            ml.load(folder, quiet=True)(TOKENS),
            AutoModelForCausalLM.from_pretrained(folder)(TOKENS),
        )
    want = told(model(TOKENS))
    return max((told(again) - want).abs().max(), (told(plain.logits) - want).abs().max()).item()


@technique("load_adapter")
def adapted(model):
    """On the matrix with which the last attention writes: what the factors' product adds, by a hook."""
    from safetensors.torch import save_file

    layer = model.cfg.n_layers - 1
    names = [
        n
        for n, m in hf_model(model.cfg.model_name).named_modules()
        if type(m).__name__ in ("Linear", "Conv1D")
    ]
    out = ("o_proj", "out_proj", "attn.c_proj", "attention.dense", "self_attn.dense")
    (name,) = [n for n in names if f".{layer}." in n and n.endswith(out)]
    width, conv = model.blocks[layer].attn.W_O.flatten(0, 1).shape[0], model.cfg.model_name == "GPT-2"
    A, B = torch.randn(2, width) / 9, torch.randn(32, 2) / 9
    with tempfile.TemporaryDirectory() as folder:
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": conv}
        (Path(folder) / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        key = f"base_model.model.{name}.lora_"
        save_file({f"{key}A.weight": A, f"{key}B.weight": B}, Path(folder) / "adapter_model.safetensors")
        with ml.load_adapter(model, folder), torch.no_grad():
            found, cache = model.run_with_cache(TOKENS)
    z = cache[f"blocks.{layer}.attn.hook_z"].flatten(2)
    more = lambda out, hook: out + 2 * z @ (B @ A).T
    with torch.no_grad(), model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.o.hook_out", more)]):
        by_hand = model(TOKENS)
    assert far(found, model(TOKENS)) > 1e-3
    return far(found, by_hand)


@technique("key_covariance")
def covariance(model):
    found = ml.key_covariance(model, TOKENS, layer=1, skip=1)
    keys = model.run_with_cache(TOKENS)[1]["blocks.1.mlp.hook_post"][:, 1:].flatten(0, 1)
    return far(found, keys.T @ keys / len(keys))


@technique("edit_fact")
def fact(model):
    """The key brings back the value that was searched, and the answer is likelier."""
    spread = ml.key_covariance(model, TOKENS, layer=1)
    value, answer = rome.fact_value(model, FACT, 1, NONE, steps=4), ml.single_token(model, " Paris")
    before = told(model(FACT.text))[0, -1, answer]
    with ml.edit_fact(model, FACT, 1, spread, prefixes=NONE, steps=4):
        assert told(model(FACT.text))[0, -1, answer] > before
        return far(rome.fact_key(model, FACT, 1, NONE)[1], value) / 3  # a solution of a linear system


@technique("random_weights")
def drawn(model):
    """The same architecture: what it computes is what transformers computes with its weights."""
    other = ml.random_weights(model, seed=3)
    assert other.cfg.n_layers == model.cfg.n_layers and far(other(TOKENS), model(TOKENS)) > 0.05
    return far(other(TOKENS), ml.random_weights(model, seed=3)(TOKENS))


@technique("AffineLens.fit")
def tuned(model):
    """The last entry is the model's own; the first one's map is the least-squares solution."""
    texts = torch.randint(5, 390, (4, 40), generator=torch.Generator().manual_seed(8))
    lens, last = ml.AffineLens.fit(model, texts, skip=4, ridge=0.01), model.cfg.n_layers - 1
    cache = model.run_with_cache(texts)[1]
    x, y = (
        cache[n][:, 4:].flatten(0, 1) for n in ("blocks.1.hook_resid_pre", f"blocks.{last}.hook_resid_post")
    )
    x, y = (each / each.pow(2).mean(-1, keepdim=True).sqrt() for each in (x, y))
    a, b = x - x.mean(0), (y - x) - (y - x).mean(0)
    xx = a.T @ a / len(a)
    weight = torch.linalg.solve(xx + 0.01 * xx.diagonal().mean() * torch.eye(32), a.T @ b / len(a))
    return far(lens.weight[1], weight) / 3


@technique("splice and feature_activity")
def dictionary(model):
    name = "blocks.1.hook_resid_post"
    rows = ml.token_activations(model, TOKENS, name, skip=1, longest=1e9)
    cache = model.run_with_cache(TOKENS)[1]
    off = far(rows, cache[name][:, 1:].flatten(0, 1))
    sae = ml.train_sae(rows.repeat(40, 1), width=48, k=6, steps=5, batch=64, hook=name).sae
    found = ml.splice(model, sae, TOKENS, skip=1)
    back = sae.decode(sae.encode(cache[name][:, 1:]))
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda x, hook: torch.cat([x[:, :1], back], 1))]):
        loss = model(TOKENS, return_type="loss", loss_per_token=True)[:, 1:].mean()
    activity = ml.feature_activity(model, sae, TOKENS, skip=1)
    active = (sae.encode(cache[name][:, 1:]) > 0).sum().item()
    assert len(activity.feature) == active
    return max(off, abs(found.loss["spliced"] - loss.item()))
