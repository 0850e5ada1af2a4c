"""Sparse autoencoders: can the mix of features in a stream be undone?

x is rebuilt as a sum of few directions out of many: f = activation((x − b_dec) W_enc + b_enc), x̂ = f W_dec +
b_dec. Two ways to keep f sparse: an L1 penalty on a ReLU (Bricken et al. 2023), or keeping the k largest (Gao
et al. 2024). `train_sae` trains a small one in seconds; `SparseAutoencoder.load` also reads dictionaries that
others published, in SAELens' format and in that of EleutherAI's sparsify. Whether one is any good is what
features.py is for.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.discovery.sae_formats import PARTS, read_dictionary
from mechlab.loading.origin import Origin, origin_of

Acts = Float[Tensor, "... d_in"]


@dataclass(frozen=True)
class SparseAutoencoder:
    """A dictionary of directions for one activation of a model.

    kind: "standard" (ReLU), "topk" (the `k` largest), "jumprelu" (zero below `threshold`)
    hook: the activation that it was trained on, such as "blocks.12.hook_resid_post"
    apply_b_dec_to_input: whether b_dec is taken off before encoding; published dictionaries differ
    origin: the model that it was trained on, where that is known; with another one it is refused

    Computes in the precision of its weights, float32, whatever the precision of the activations.
    """

    W_enc: Float[Tensor, "d_in feature"]
    b_enc: Float[Tensor, "feature"]
    W_dec: Float[Tensor, "feature d_in"]
    b_dec: Float[Tensor, "d_in"]
    kind: str = "topk"
    k: int = 32
    threshold: Float[Tensor, "feature"] | None = None
    hook: str = ""
    apply_b_dec_to_input: bool = True
    origin: Origin | None = None

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def encode(self, x: Acts) -> Float[Tensor, "... feature"]:
        """How active each feature is; zero for all but a few."""
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"This dictionary reads activations of width {self.d_in}; these have width {x.shape[-1]}."
            )
        x = x.to(self.W_enc.dtype)
        before = (x - self.b_dec if self.apply_b_dec_to_input else x) @ self.W_enc + self.b_enc
        if self.kind == "topk":
            best = before.topk(min(self.k, self.d_sae), dim=-1)
            return torch.zeros_like(before).scatter(-1, best.indices, best.values.relu())
        if self.kind != "jumprelu":
            return before.relu()
        if self.threshold is None:
            raise ValueError('This dictionary is of the kind "jumprelu" and has no threshold.')
        return torch.where(before > self.threshold, before, 0)

    def decode(self, features: Float[Tensor, "... feature"]) -> Acts:
        return features.to(self.W_dec.dtype) @ self.W_dec + self.b_dec

    def to(self, device: str | torch.device) -> "SparseAutoencoder":
        moved = {name: getattr(self, name).to(device) for name in PARTS}
        return replace(self, **moved, threshold=None if self.threshold is None else self.threshold.to(device))

    def save(self, folder: str | os.PathLike, *, half: bool = False) -> None:
        """Write SAELens' format: cfg.json and sae_weights.safetensors (half: float16, half the size)."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = [*PARTS, "threshold"] if self.kind == "jumprelu" else PARTS
        kind = torch.float16 if half else torch.float32
        weights = {name: getattr(self, name).to(kind).contiguous() for name in names}
        save_file(weights, folder / "sae_weights.safetensors")
        size = {"architecture": self.kind, "d_in": self.d_in, "d_sae": self.d_sae}
        place = {"dtype": str(kind).removeprefix("torch."), "device": "cpu"}
        plain = {"normalize_activations": "none", "reshape_activations": "none"}
        read = {"apply_b_dec_to_input": self.apply_b_dec_to_input, **plain}
        notes = {"hook_name": self.hook, "sae_lens_version": "6.0.0"}
        notes |= {} if self.origin is None else {"mechlab_origin": self.origin.text()}
        config = size | place | read | {"metadata": notes} | ({"k": self.k} if self.kind == "topk" else {})
        (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike, *, hook: str | None = None) -> "SparseAutoencoder":
        """Read a dictionary from a folder, in SAELens' format (version 6 or older) or sparsify's.

        hook: what it reads, if the folder does not say (sparsify names it in the folder's name only).
        Raises a `ValueError` that names a setting that is not known here, a tensor that is missing or would
        not be used, sizes that do not fit, NaN, or a damaged file.
        """
        given = read_dictionary(Path(folder))
        loaded = cls(**given)
        return loaded if hook is None else replace(loaded, hook=hook)


@dataclass(frozen=True)
class SaeTraining:
    """A dictionary and how its training went: one dictionary of numbers for every hundred steps."""

    sae: SparseAutoencoder
    history: list[dict[str, float | int]]


@torch.inference_mode(False)
@torch.no_grad()
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
) -> SaeTraining:
    """Train a dictionary of `width` directions on activations (position 0 left out: it is an attention sink).

    kind "topk" keeps the k largest features; "standard" has a ReLU and the penalty `l1` times the sum of
    activities. Activations are divided by a common scale first, which is folded back into the weights.
    Decoder rows keep length 1.
    resample: twice on the way, features that fired on nothing lately start again on badly rebuilt examples.
    About 20 seconds for 300 steps at width 1152 on two cores.
    """
    _check_training(activations, kind, batch, width, k)
    origin, activations = origin_of(activations), activations.detach().float().clone()
    generator = torch.Generator().manual_seed(seed)
    mean = activations.mean(0)
    scale = (activations - mean).norm(dim=1).mean() / activations.shape[1] ** 0.5
    if not scale > 0:
        raise ValueError("All activations are the same, so there is nothing that a dictionary could learn.")
    data = (activations - mean) / scale
    given = {"kind": kind, "k": k, "hook": hook, "origin": origin}
    training, history = _Training(data, width, generator, given), []
    for step in range(steps):
        x = data[torch.randint(len(data), (batch,), generator=generator).to(data.device)]
        share = min(1, (step + 1) / 20, (steps - step) / (steps / 5))  # a short start; a decay at the end
        features, error = training.step(x, rate * share, l1 if kind == "standard" else 0.0)
        if step % 100 == 99 or step == steps - 1:
            unexplained = (error.sum() / x.pow(2).sum()).item()
            active, silent = (features > 0).float().sum(-1).mean().item(), training.silent().float().mean()
            row = {"step": step + 1, "unexplained": unexplained, "active": active}
            history.append(row | {"silent": silent.item()})
        if resample and step in (steps // 4, steps // 2):
            training.restart(x, error, generator)
        if step in (steps // 4, steps // 2, 3 * steps // 4):
            training.fired.zero_()
    return SaeTraining(_folded_back(training.sae, scale, mean), history)


def _check_training(activations: Float[Tensor, "..."], kind: str, batch: int, width: int, k: int) -> None:
    if kind not in ("topk", "standard"):
        raise ValueError(f'kind is {kind!r}; "topk" and "standard" can be trained.')
    if kind == "topk" and not 1 <= k <= width:
        raise ValueError(f"k is {k}; of {width} features 1 to {width} can be kept.")
    if activations.ndim != 2 or len(activations) < batch:
        raise ValueError(
            f"activations are {tuple(activations.shape)}; [token, d_in] with at least {batch} tokens are "
            "needed."
        )
    if not torch.isfinite(activations).all():
        raise ValueError("There are NaN or infinite activations: a dictionary trained on them would be NaN.")


class _Training:
    """A dictionary on its way, its optimiser, and how often each feature was active lately."""

    def __init__(self, data: Acts, width: int, generator: torch.Generator, given: dict[str, Any]):
        d = data.shape[1]
        W_dec = torch.nn.functional.normalize(torch.randn(width, d, generator=generator), dim=1).to(data)
        biases = {"b_enc": data.new_zeros(width), "b_dec": data.new_zeros(d)}
        self.parts = {"W_enc": W_dec.T.clone(), "W_dec": W_dec, **biases}
        for part in self.parts.values():
            part.requires_grad_()
        self.optimiser = torch.optim.Adam(self.parts.values(), betas=(0.9, 0.99))
        whole: dict[str, Any] = {**self.parts, **given}
        self.sae, self.fired = SparseAutoencoder(**whole), data.new_zeros(width)

    def step(
        self, x: Float[Tensor, "token d_in"], rate: float, l1: float
    ) -> tuple[Float[Tensor, "token feature"], Float[Tensor, "token"]]:
        """One step on some tokens; how active the features were before it, and the squared errors."""
        with torch.enable_grad():
            features = self.sae.encode(x)
            error = (self.sae.decode(features) - x).pow(2).sum(-1)
            loss = (error + l1 * features.sum(-1)).mean() / x.shape[1]
            self.optimiser.param_groups[0]["lr"] = rate
            self.optimiser.zero_grad()
            loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.sae.W_dec.div_(self.sae.W_dec.norm(dim=1, keepdim=True))
            self.fired += (features > 0).sum(0)
        return features.detach(), error.detach()

    def silent(self) -> Bool[Tensor, "feature"]:
        return self.fired == 0

    @torch.no_grad()
    def restart(
        self, x: Float[Tensor, "token d_in"], error: Float[Tensor, "token"], generator: torch.Generator
    ) -> None:
        """Point silent features at examples drawn by their squared error, as Bricken et al. 2023 do."""
        silent, share = self.silent().nonzero()[:, 0], error.cpu() / error.sum().cpu()
        if not len(silent):
            return
        picked = torch.multinomial(share, len(silent), replacement=True, generator=generator)
        direction = torch.nn.functional.normalize(x[picked] - self.sae.b_dec, dim=1)
        self.sae.W_dec[silent] = direction
        self.sae.W_enc[:, silent] = direction.T * self.sae.W_enc.norm(dim=0).mean()
        self.sae.b_enc[silent] = 0
        for name, index in (("W_dec", (silent,)), ("W_enc", (slice(None), silent)), ("b_enc", (silent,))):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimiser.state[self.parts[name]][moment][index] = 0


def _folded_back(
    sae: SparseAutoencoder, scale: Float[Tensor, ""], mean: Float[Tensor, "d_in"]
) -> SparseAutoencoder:
    """The dictionary for activations as they were, before they were divided by `scale` around `mean`.

    Decoder rows get length 1, so that a feature's activity is how far it moves the stream.
    """
    W_dec, b_dec = sae.W_dec.detach() * scale, sae.b_dec.detach() * scale + mean
    size = W_dec.norm(dim=1)
    W_enc, b_enc = sae.W_enc.detach() / scale * size, sae.b_enc.detach() * size
    return replace(sae, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec / size[:, None], b_dec=b_dec)
