"""From the GGUF file to safetensors in Hugging Face format, and the folding of the norms."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def gguf_to_safetensors(gguf: Path, out: Path, fold: bool) -> None:
    """Write `out/` in Hugging Face format, float32, norm weights folded in when asked."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with no_progress_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **files)
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **files)
    # The weights are plain float32 now; transformers refuses to save them while these marks remain.
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    tensors = dict(model.state_dict())
    if fold:
        fold_norms(tensors, model.config.num_hidden_layers)
        model.config.tie_word_embeddings = False
    else:
        del tensors["lm_head.weight"]  # tied to the embedding
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)


def fold_norms(tensors: dict, n_layers: int) -> None:
    """Fold each RMS norm's weight into the matrices that read it, and centre the unembedding, in place.

    The same arithmetic as TransformerLens' `enable_compatibility_mode()`, bit for bit (tested). Logits move
    by one constant per position, so log-probabilities and logit differences stay. `tensors` maps Hugging
    Face names to tensors; the output matrix becomes separate from the embedding.
    """
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for layer in range(n_layers):
        for norm, matrices in readers.items():
            scale = tensors[f"model.layers.{layer}.{norm}.weight"]
            for matrix in matrices:
                name = f"model.layers.{layer}.{matrix}.weight"
                tensors[name] = tensors[name] * scale[None, :]
            tensors[f"model.layers.{layer}.{norm}.weight"] = scale.new_ones(scale.shape)
    scale = tensors["model.norm.weight"]
    unembed = tensors["model.embed_tokens.weight"] * scale[None, :]
    tensors["lm_head.weight"] = unembed - unembed.mean(0, keepdim=True)
    tensors["model.norm.weight"] = scale.new_ones(scale.shape)


@contextmanager
def no_progress_bars() -> Generator[None]:
    """Silence transformers' own progress bars for a while, and leave the setting as it was."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
