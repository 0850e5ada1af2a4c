"""Sparse autoencoders: can the mix of features in a stream be undone?

x is rebuilt as a sum of few directions out of many: f = activation((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec.
Two ways to keep f sparse: an L1 penalty on a ReLU (Bricken et al. 2023), or keeping the k largest (Gao et al. 2024).
`train_sae` trains a small one in seconds; `SparseAutoencoder.load` also reads dictionaries that others published, in
SAELens' format and in that of EleutherAI's sparsify. Whether one is any good is what features.py is for.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

KINDS = ("standard", "topk", "jumprelu")
Acts = Float[Tensor, "... d_in"]


@dataclass(frozen=True)
class SparseAutoencoder:
    """A dictionary of directions for one activation of a model.

    kind: "standard" (ReLU), "topk" (the `k` largest), "jumprelu" (zero below `threshold`)
    hook: the activation that it was trained on, such as "blocks.12.hook_resid_post"
    apply_b_dec_to_input: whether b_dec is taken off before encoding; published dictionaries differ
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, "d_in"]
    kind: str = "topk"
    k: int = 32
    threshold: Float[Tensor, "d_sae"] | None = None
    hook: str = ""
    apply_b_dec_to_input: bool = True

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def encode(self, x: Acts) -> Float[Tensor, "... d_sae"]:
        """How active each feature is; zero for all but a few."""
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"This dictionary reads activations of width {self.d_in}; these have width {x.shape[-1]}."
            )
        before = (x - self.b_dec if self.apply_b_dec_to_input else x) @ self.W_enc + self.b_enc
        if self.kind == "topk":
            best = before.topk(min(self.k, self.d_sae), dim=-1)
            return torch.zeros_like(before).scatter(-1, best.indices, best.values.relu())
        return torch.where(before > self.threshold, before, 0) if self.kind == "jumprelu" else before.relu()

    def decode(self, features: Float[Tensor, "... d_sae"]) -> Acts:
        return features @ self.W_dec + self.b_dec

    def to(self, device) -> "SparseAutoencoder":
        moved = {name: getattr(self, name).to(device) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return replace(self, **moved, threshold=None if self.threshold is None else self.threshold.to(device))

    def save(self, folder: str | os.PathLike, *, half: bool = False) -> None:
        """Write SAELens' format: cfg.json and sae_weights.safetensors (half: float16, half the size)."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = ["W_enc", "b_enc", "W_dec", "b_dec"] + (["threshold"] if self.kind == "jumprelu" else [])
        kind = torch.float16 if half else torch.float32
        save_file(
            {name: getattr(self, name).to(kind).contiguous() for name in names},
            folder / "sae_weights.safetensors",
        )
        config = {
            "architecture": self.kind, "d_in": self.d_in, "d_sae": self.d_sae, "dtype": str(kind).removeprefix("torch."),
            "device": "cpu", "apply_b_dec_to_input": self.apply_b_dec_to_input, "normalize_activations": "none",
            "reshape_activations": "none", "metadata": {"hook_name": self.hook, "sae_lens_version": "6.0.0"},
        }  # fmt: skip
        config |= {"k": self.k} if self.kind == "topk" else {}
        (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike, *, hook: str | None = None) -> "SparseAutoencoder":
        """Read a dictionary from a folder, in SAELens' format (version 6 or older) or sparsify's.

        hook: what it reads, if the folder does not say (sparsify names it in the folder's name only).
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        weights = next(
            (folder / n for n in ("sae_weights.safetensors", "sae.safetensors") if (folder / n).exists()),
            None,
        )
        if weights is None or not (folder / "cfg.json").exists():
            raise ValueError(
                f"{folder} holds no dictionary: cfg.json and sae_weights.safetensors (SAELens) or sae.safetensors (sparsify) "
                "are needed."
            )
        config, found = json.loads((folder / "cfg.json").read_text()), load_file(weights)
        given = _sparsify(config, found) if weights.name == "sae.safetensors" else _saelens(config, found)
        loaded = cls(**given)
        return loaded if hook is None else replace(loaded, hook=hook)


def _saelens(config: dict, found: dict[str, Tensor]) -> dict:
    kind = config.get("architecture", "standard")
    options = config.get("activation_fn_kwargs") or {}
    if config.get("activation_fn_str", config.get("activation_fn")) == "topk":  # before version 6
        kind = "topk"
    if kind not in KINDS:
        raise ValueError(
            f"This dictionary is of the kind {kind!r}; {', '.join(map(repr, KINDS))} can be read."
        )
    normalised = config.get("normalize_activations", "none")
    if normalised not in ("none", None) or config.get("rescale_acts_by_decoder_norm"):
        raise ValueError(
            "This dictionary rescales its input. Fold the scale into its weights with SAELens first, and save it again."
        )
    given = {
        name: part.float()
        for name, part in found.items()
        if name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    }
    hook = config.get("hook_name") or (config.get("metadata") or {}).get("hook_name") or ""
    return {
        **given, "kind": kind, "k": config.get("k") or options.get("k") or 0, "hook": hook,
        "apply_b_dec_to_input": config.get("apply_b_dec_to_input", True),
    }  # fmt: skip


def _sparsify(config: dict, found: dict[str, Tensor]) -> dict:
    W_enc, W_dec = found["encoder.weight"].float().T, found["W_dec"].float()
    return {
        "W_enc": W_enc.contiguous(), "W_dec": W_dec if W_dec.shape == W_enc.T.shape else W_dec.T,
        "b_enc": found["encoder.bias"].float(), "b_dec": found["b_dec"].float(), "kind": "topk", "k": config["k"],
    }  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A dictionary and how its training went: one dictionary of numbers for every hundred steps."""

    sae: SparseAutoencoder
    history: list[dict[str, float | int]]


def train_sae(
    activations: Float[Tensor, "token d_in"],
    *,
    width: int = 1152,
    kind: str = "topk",
    k: int = 16,
    l1: float = 1.0,
    steps: int = 300,
    batch: int = 512,
    rate: float = 2e-3,
    resample: bool = True,
    seed: int = 0,
    hook: str = "",
) -> Trained:
    """Train a dictionary of `width` directions on activations (position 0 left out: it is an attention sink).

    kind "topk" keeps the k largest features; "standard" has a ReLU and the penalty `l1` times the sum of activities.
    Activations are divided by a common scale first, which is folded back into the weights. Decoder rows keep length 1.
    resample: twice on the way, features that fired on nothing lately start again on badly rebuilt examples.
    About 20 seconds for 300 steps at width 1152 on two cores.
    """
    if kind not in ("topk", "standard"):
        raise ValueError(f'kind is {kind!r}; "topk" and "standard" can be trained.')
    if activations.ndim != 2 or len(activations) < batch:
        raise ValueError(
            f"activations are {tuple(activations.shape)}; [token, d_in] with at least {batch} tokens are needed."
        )
    if not torch.isfinite(activations).all():
        raise ValueError("There are NaN or infinite activations: a dictionary trained on them would be NaN.")
    generator = torch.Generator().manual_seed(seed)
    mean, d = activations.mean(0), activations.shape[1]
    scale = (activations - mean).norm(dim=1).mean() / d**0.5
    data = (activations - mean) / scale
    W_dec = torch.nn.functional.normalize(torch.randn(width, d, generator=generator), dim=1).to(data)
    parts = {
        "W_enc": W_dec.T.clone(),
        "b_enc": data.new_zeros(width),
        "W_dec": W_dec,
        "b_dec": data.new_zeros(d),
    }
    for part in parts.values():
        part.requires_grad_()
    optimiser = torch.optim.Adam(parts.values(), lr=rate, betas=(0.9, 0.99))
    model, history, fired = SparseAutoencoder(**parts, kind=kind, k=k, hook=hook), [], data.new_zeros(width)
    for step in range(steps):
        x = data[torch.randint(len(data), (batch,), generator=generator).to(data.device)]
        with torch.enable_grad():
            features = model.encode(x)
            error = (model.decode(features) - x).pow(2).sum(-1)
            penalty = l1 * features.sum(-1) if kind == "standard" else 0
            loss = (error + penalty).mean() / d
            for group in optimiser.param_groups:  # a short start, and a decay over the last fifth
                group["lr"] = rate * min(1, (step + 1) / 20, (steps - step) / (steps / 5))
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
            fired += (features > 0).sum(0)
            if step % 100 == 99 or step == steps - 1:
                active = (features > 0).float()
                history.append({"step": step + 1, "unexplained": (error.sum() / x.pow(2).sum()).item(),
                                "active": active.sum(-1).mean().item(), "silent": (fired == 0).float().mean().item()})  # fmt: skip
            if resample and step in (steps // 4, steps // 2):
                _restart(parts, optimiser, (fired == 0).nonzero()[:, 0], x, error.detach(), generator)
            if step in (steps // 4, steps // 2, 3 * steps // 4):
                fired.zero_()
    done = {name: part.detach() for name, part in parts.items()}
    done["W_enc"] = done["W_enc"] / scale
    done["b_dec"], done["W_dec"] = done["b_dec"] * scale + mean, done["W_dec"] * scale
    return Trained(_unit_rows(SparseAutoencoder(**done, kind=kind, k=k, hook=hook)), history)


def _unit_rows(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Decoder rows of length 1, so that a feature's activity is how far it moves the stream."""
    size = sae.W_dec.norm(dim=1)
    return replace(sae, W_dec=sae.W_dec / size[:, None], W_enc=sae.W_enc * size, b_enc=sae.b_enc * size)


@torch.no_grad()
def _restart(
    parts: dict[str, Tensor], optimiser, silent: Tensor, x: Tensor, error: Tensor, generator
) -> None:
    """Point silent features at examples drawn by their squared error, as Bricken et al. 2023 do."""
    if not len(silent):
        return
    picked = torch.multinomial(
        error.cpu() / error.sum().cpu(), len(silent), replacement=True, generator=generator
    )
    direction = torch.nn.functional.normalize(x[picked] - parts["b_dec"], dim=1)
    parts["W_dec"][silent] = direction
    parts["W_enc"][:, silent] = direction.T * parts["W_enc"].norm(dim=0).mean()
    parts["b_enc"][silent] = 0
    for part, index in (("W_dec", (silent,)), ("W_enc", (slice(None), silent)), ("b_enc", (silent,))):
        for moment in ("exp_avg", "exp_avg_sq"):
            optimiser.state[parts[part]][moment][index] = 0
