"""Dictionaries that others published: SAELens' format, version 6 and older, and that of sparsify.

A setting that changes what a dictionary computes and is not known here is refused by its name, as are
tensors that would not be used, that are missing, or that do not fit each other.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechlab.loading.files import check_shapes, read_json, read_tensors
from mechlab.loading.origin import Origin

KINDS = ("standard", "topk", "jumprelu")
PARTS = ("W_enc", "b_enc", "W_dec", "b_dec")
OF_SPARSIFY = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
NOTHING = (None, False, "", "none", {}, [])

# SAELens: settings that change what is computed, and the values with which they do not.
CHANGING: dict[str, tuple] = {
    "reshape_activations": NOTHING,
    "normalize_activations": NOTHING,
    "rescale_acts_by_decoder_norm": NOTHING,
    "finetuning_scaling_factor": NOTHING,
    "use_error_term": NOTHING,
    "hook_head_index": NOTHING,
    "hook_name_out": NOTHING,
    "noise_scale": (None, 0, 0.0),
    "use_ghost_grads": (None, False, True),  # of training only
}
# sparsify: all that it writes; what is not harmless must be unset.
HARMLESS = ("expansion_factor", "normalize_decoder", "num_latents", "k", "d_in", "activation")


def read_dictionary(folder: Path) -> dict[str, Any]:
    """What `SparseAutoencoder` is made of, from a folder. Raises a `ValueError` that says what is wrong."""
    files = [folder / "sae_weights.safetensors", folder / "sae.safetensors"]
    weights = next((file for file in files if file.exists()), None)
    if weights is None or not (folder / "cfg.json").exists():
        raise ValueError(
            f"{folder} holds no dictionary: cfg.json and sae_weights.safetensors (SAELens) or "
            "sae.safetensors (sparsify) are needed."
        )
    config = read_json(folder / "cfg.json")
    found = read_tensors(weights, "a dictionary")
    given = _sparsify(config, found) if weights.name == "sae.safetensors" else _saelens(config, found)
    _check(weights, config, given)
    return given


def _saelens(config: Mapping[str, Any], found: Mapping[str, Tensor]) -> dict[str, Any]:
    kind = config.get("architecture", "standard")
    options = config.get("activation_fn_kwargs") or {}
    activation = config.get("activation_fn_str", config.get("activation_fn")) or "relu"  # before version 6
    if activation == "topk" and kind in ("standard", "topk"):
        kind = "topk"
    elif activation != "relu" and not (kind == "topk" and activation == "topk"):
        raise ValueError(f"This dictionary has activation_fn={activation!r}; 'relu' and 'topk' can be read.")
    if kind not in KINDS:
        raise ValueError(
            f"This dictionary is of the kind {kind!r}; {', '.join(map(repr, KINDS))} can be read."
        )
    if config.get("rescale_acts_by_decoder_norm") or config.get("normalize_activations") not in NOTHING:
        what = "normalize_activations" if config.get("normalize_activations") not in NOTHING else ""
        raise ValueError(
            f"This dictionary rescales its input ({what or 'rescale_acts_by_decoder_norm'}). Fold the scale "
            "into its weights with SAELens first, and save it again."
        )
    for name, harmless in CHANGING.items():
        said = config.get(name, (config.get("metadata") or {}).get(name))
        if said not in harmless:
            raise ValueError(f"This dictionary has {name}={said!r}, which is not known here.")
    needs = (*PARTS, "threshold") if kind == "jumprelu" else PARTS
    _names(found, needs)
    notes = config.get("metadata") or {}
    hook = config.get("hook_name") or notes.get("hook_name") or ""
    given = {"kind": kind, "k": config.get("k") or options.get("k") or 0, "hook": hook}
    given |= {"apply_b_dec_to_input": config.get("apply_b_dec_to_input", True)}
    return (
        {name: found[name].float() for name in needs}
        | given
        | {"origin": Origin.read(notes.get("mechlab_origin"))}
    )


def _sparsify(config: Mapping[str, Any], found: Mapping[str, Tensor]) -> dict[str, Any]:
    if config.get("activation", "topk") != "topk":
        raise ValueError(f"This dictionary has activation={config['activation']!r}; only 'topk' can be read.")
    for name, value in config.items():
        if name not in HARMLESS and value not in NOTHING:
            raise ValueError(f"This dictionary has {name}={value!r}, which is not known here.")
    _names(found, OF_SPARSIFY)
    W_enc, W_dec = found["encoder.weight"].float().T, found["W_dec"].float()
    biases = {"b_enc": found["encoder.bias"].float(), "b_dec": found["b_dec"].float()}
    return {"W_enc": W_enc.contiguous(), "W_dec": W_dec, **biases, "kind": "topk", "k": config.get("k") or 0}


def _names(found: Mapping[str, Tensor], needs: Iterable[str]) -> None:
    """Refuse missing tensors, and those that would not be used."""
    missing, more = sorted({*needs} - {*found}), sorted({*found} - {*needs})
    if missing or more:
        said = (
            f"lacks {', '.join(missing)}" if missing else f"holds {', '.join(more)}, which is not known here"
        )
        raise ValueError(f"This dictionary {said}.")


def _check(weights: Path, config: Mapping[str, Any], given: dict[str, Any]) -> None:
    """Refuse sizes that do not fit each other, and a k that leaves nothing active."""
    W_enc: Float[Tensor, "..."] = given["W_enc"]
    if W_enc.ndim != 2:
        raise ValueError(f"{weights}: the encoder is {tuple(W_enc.shape)}, not a matrix.")
    d_in, d_sae = W_enc.shape
    shapes = {"b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "threshold": (d_sae,)}
    check_shapes(weights, given, {name: shape for name, shape in shapes.items() if name in given})
    for name, size in (("d_in", d_in), ("d_sae", d_sae), ("num_latents", d_sae)):
        if config.get(name) not in (None, 0, size):
            raise ValueError(f"cfg.json says {name}={config[name]}, and the weights have {size}.")
    k = given["k"]
    if given["kind"] == "topk" and not (isinstance(k, int) and 1 <= k <= d_sae):
        raise ValueError(
            f"This dictionary keeps the k largest of {d_sae} features, and cfg.json says k={k or None}: with "
            "that none would be active. Write k into cfg.json."
        )
