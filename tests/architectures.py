"""Small random models of the families that TransformerLens boots, from Hugging Face configs, in a folder each.

Norm weights and biases are drawn too, rotary bases and head sizes are nobody's defaults, so that a formula
that holds only for the usual ones cannot pass.
"""

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import mechlab as ml

SIZE: dict[str, Any] = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
LLAMA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    **SIZE,
}
WIDE = {**LLAMA, "head_dim": 12}  # heads of another size than d_model / n_heads
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# family -> Hugging Face's config class, and what it is given
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {**LLAMA, **ROPE, "tie_word_embeddings": True}),
    "Llama 3 (scaled rotary)": ("LlamaConfig", {**WIDE, "rope_parameters": SCALED}),
    "Llama with biases": ("LlamaConfig", {**LLAMA, **ROPE, "attention_bias": True, "mlp_bias": True}),
    "Mistral": ("MistralConfig", {**WIDE, **ROPE, "sliding_window": 6}),
    "Qwen2": ("Qwen2Config", {**LLAMA, **ROPE}),
    "Qwen3": ("Qwen3Config", {**WIDE, **ROPE}),
    "Gemma": ("GemmaConfig", {**WIDE, **ROPE}),
    "Gemma 2": (
        "Gemma2Config",
        {
            **WIDE,
            **ROPE,
            "sliding_window": 6,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "Gemma 3": (
        "Gemma3TextConfig",
        {
            **WIDE,
            "sliding_window": 6,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "GPT-2": ("GPT2Config", {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 64, **SIZE}),
    "GPT-Neo": (
        "GPTNeoConfig",
        {
            "num_layers": 3,
            "num_heads": 4,
            "hidden_size": 32,
            "max_position_embeddings": 64,
            "window_size": 6,
            "attention_types": [[["global", "local", "global"], 1]],
            **SIZE,
        },
    ),
    "GPT-J": (
        "GPTJConfig",
        {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 64, "rotary_dim": 4, **SIZE},
    ),
    "Pythia (GPT-NeoX)": (
        "GPTNeoXConfig",
        {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}},
    ),
    "Phi": (
        "PhiConfig",
        {
            **LLAMA,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
    ),
    "Phi-3": ("Phi3Config", {**LLAMA, **ROPE, "original_max_position_embeddings": 64}),
    "OPT": (
        "OPTConfig",
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "hidden_size": 32,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
            **SIZE,
        },
    ),
    "Bloom": ("BloomConfig", {"n_layer": 3, "n_head": 4, "hidden_size": 32, **SIZE}),
    "StableLM": (
        "StableLmConfig",
        {
            **LLAMA,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
    ),
    "OLMo2": ("Olmo2Config", {**LLAMA, **ROPE}),
    "Mixtral": ("MixtralConfig", {**WIDE, **ROPE, "num_local_experts": 3, "num_experts_per_tok": 2}),
}


def hf_model(family: str, seed: int = 0) -> torch.nn.Module:
    """A random Hugging Face model of the family, every parameter moved."""
    import transformers

    kind, given = FAMILIES[family]
    config = getattr(transformers, kind)(**given)
    config.initializer_range = 0.2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def folder(family: str, place: Path, seed: int = 0) -> Path:
    """The model in a folder of Hugging Face format, as somebody would bring it."""
    from mechlab.loading.conversion import no_progress_bars

    with no_progress_bars():
        hf_model(family, seed).save_pretrained(place)
    ml.models._tiny_tokenizer().save_pretrained(place)
    return place


def bridge(family: str, **given: Any):
    """The model as `ml.load` opens it, from a folder."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ml.load(folder(family, Path(place)), quiet=True, **given)
    model.cfg.model_name = family
    return model


@functools.cache
def kept(family: str):
    """`bridge`, built once; leave it as it is."""
    return bridge(family)
