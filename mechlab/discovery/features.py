"""Features of a dictionary: what is one of them about?

Explained three ways: from its inputs (where it is active), from its outputs (which logits its direction
raises), and by intervention (what changes when it is set to another value). Check first with `splice` that
the dictionary is worth reading.
"""

import html
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import layer_of
from mechlab.discovery.labels import Label, read_labels
from mechlab.discovery.sae import SparseAutoencoder
from mechlab.discovery.sae_evaluation import hook_of
from mechlab.loading.files import check_shapes, read_tensors
from mechlab.loading.models import require_folded
from mechlab.runs.hooks import Hook, intervene
from mechlab.tokens import Prompts, texts_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Example = tuple[str, str, str, float]  # the text before, the token, the text after, the strength
Ranked = tuple[str, float]  # a token, and a number


@dataclass(frozen=True)
class Activity:
    """Where the features of a dictionary are active: an entry for each token and feature active on it.

    token: which token, counted through `texts` row by row; activation: how active
    skip:  how many positions of each text were left out
    labels: what programs say about the features, where such labels were made (labels.py)
    """

    texts: Int[Tensor, "batch pos"]
    token: Int[Tensor, "entry"]
    feature: Int[Tensor, "entry"]
    activation: Float[Tensor, "entry"]
    d_sae: int
    skip: int
    labels: Mapping[int, Label] = field(default_factory=dict, repr=False)

    @property
    def strength(self) -> Float[Tensor, "entry"]:
        """What `activation` was called."""
        warnings.warn("activity.strength is now activity.activation.", FutureWarning, stacklevel=2)
        return self.activation

    @property
    def tokens(self) -> int:
        """How many tokens were read."""
        return self.texts[:, self.skip :].numel()

    @property
    def density(self) -> Float[Tensor, "feature"]:
        """The share of tokens on which each feature is active."""
        return torch.bincount(self.feature, minlength=self.d_sae) / self.tokens

    def values(self, feature: int) -> Float[Tensor, "batch pos"]:
        """The activation of one feature at each token, 0 where it is not active."""
        _check(feature, self.d_sae)
        mine, found = self._entries[feature], torch.zeros(self.texts.numel())
        found[self.token[mine]] = self.activation[mine]
        return found.view(self.texts.shape)

    @cached_property
    def _entries(self) -> tuple[Int[Tensor, "its_entry"], ...]:
        """Which entries are each feature's."""
        counts = torch.bincount(self.feature, minlength=self.d_sae)
        return self.feature.argsort(stable=True).split(counts.tolist())

    def loudest(
        self, feature: int, k: int | None = None
    ) -> tuple[Int[Tensor, "place"], Int[Tensor, "place"], Float[Tensor, "place"]]:
        """Text, position and strength of the k places where a feature is most active, loudest first."""
        _check(feature, self.d_sae)
        mine = self.feature == feature
        activation, order = self.activation[mine].sort(descending=True, stable=True)
        token = self.token[mine][order][:k]
        return token // self.texts.shape[1], token % self.texts.shape[1], activation[:k]

    def on_word(self, model: "TransformerBridge", word: str, k: int = 5) -> list[tuple[int, float]]:
        """The k features most active on a word of one token, with their mean strength there.

        Features of over a tenth of all tokens are left out. Upper and lower case, and the space before, count
        as the same word.
        """
        wanted = word.strip().lower()
        said = lambda i: model.tokenizer.decode([i]).strip().lower()
        same = torch.tensor([i for i in self.texts.unique().tolist() if wanted and said(i) == wanted]).long()
        here = torch.isin(self.texts.flatten()[self.token], same)
        places = torch.isin(self.texts[:, self.skip :], same).sum()
        total = torch.zeros(self.d_sae).index_add(0, self.feature[here], self.activation[here])
        best = torch.where(self.density < 0.1, total, 0).topk(min(k, self.d_sae))
        return [(int(n), float(sum_ / places)) for sum_, n in zip(*best, strict=True) if sum_ > 0]

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file of about 4 bytes an entry (strengths as float16)."""
        from safetensors.torch import save_file

        active = torch.bincount(self.token, minlength=self.texts.numel())
        size = torch.tensor([self.d_sae, self.skip])
        fits = self.d_sae < 2**15
        feature, active = (each.short() if fits else each.int() for each in (self.feature, active))
        half = not (self.activation.abs() > torch.finfo(torch.float16).max).any()
        parts = {"active": active, "feature": feature}
        parts["strength"] = self.activation.half() if half else self.activation
        save_file({"texts": self.texts.int(), **parts, "size": size}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Activity":
        """Read what `save` wrote, and labels.csv beside it, if there is one.

        Raises a `ValueError` for any other file.
        """
        names = ("texts", "active", "feature", "strength", "size")
        found = read_tensors(path, "an activity of features", needs=names)
        entries, tokens = int(found["active"].sum()), found["texts"].numel()
        check_shapes(
            path, found, {"active": (tokens,), "feature": (entries,), "strength": (entries,), "size": (2,)}
        )
        if found["texts"].ndim != 2 or (entries and found["feature"].max() >= found["size"][0]):
            raise ValueError(f"{path}: the texts or the numbers of features do not fit the rest of the file.")
        token = torch.arange(found["texts"].numel()).repeat_interleave(found["active"].long())
        texts, feature = found["texts"].long(), found["feature"].long()
        beside = Path(path).with_name("labels.csv")
        labels = read_labels(beside) if beside.exists() else {}
        return cls(texts, token, feature, found["strength"].float(), *found["size"].tolist(), labels)


@torch.inference_mode(False)
@torch.no_grad()
def feature_activity(
    model: "TransformerBridge",
    sae: SparseAutoencoder,
    texts: Prompts,
    *,
    skip: int = 1,
    batch: int = 32,
) -> Activity:
    """Read texts through a dictionary: where is which feature active, and how much?"""
    texts, sae = texts_of(model, texts), sae.to(model.W_E.device)
    name, length = hook_of(model, sae), texts.shape[1]
    if length <= skip or not len(texts):
        raise ValueError(f"The texts are {tuple(texts.shape)}: behind position {skip - 1} there is nothing.")
    layer, parts = layer_of(name), []
    for start, rows in enumerate(texts.split(batch)):
        _, cache = model.run_with_cache(rows, names_filter=name, stop_at_layer=layer + 1)
        features = sae.encode(cache[name][:, skip:])
        text, position, feature = (features > 0).nonzero(as_tuple=True)
        token = (text + start * batch) * length + position + skip
        parts.append([part.cpu() for part in (token, feature, features[text, position, feature])])
    token, feature, activation = (torch.cat(part) for part in zip(*parts, strict=True))
    return Activity(texts.cpu(), token, feature, activation, sae.d_sae, skip)


def feature_hooks(
    model: "TransformerBridge",
    sae: SparseAutoencoder,
    feature: int,
    *,
    value: float | int | None = None,
    times: float | int | None = None,
    skip: int = 1,
) -> list[Hook]:
    """Change one feature: set it to `value`, or multiply what it is by `times` (0 removes it).

    Adds (new − old) times the feature's direction, at all positions but the first `skip`; what the dictionary
    does not explain stays as it was. To steer, set a value of the size that the feature reaches by itself.
    With a cache of keys and values the single new token is treated as a later position.
    """
    if (value is None) == (times is None):
        raise ValueError("Give either value (set the feature) or times (multiply it).")
    _check(feature, sae.d_sae)
    sae = sae.to(model.W_E.device)
    direction = sae.W_dec[feature]

    def change(x: Float[Tensor, "batch pos d_in"], hook) -> Float[Tensor, "batch pos d_in"]:
        old = sae.encode(x)[..., feature]  # in the dictionary's precision, float32
        new = old if value is None else torch.full_like(old, value)
        step = (new if times is None else times * new) - old
        if x.shape[1] > 1:
            step = torch.cat([torch.zeros_like(step[:, :skip]), step[:, skip:]], dim=1)
        return (x + step[..., None] * direction).to(x.dtype)

    return [(hook_of(model, sae), change)]


@dataclass(frozen=True)
class FeaturePage:
    """What there is to say about one feature: evidence, not a name. The name is yours, and may be wrong.

    density:           share of tokens on which it is active
    examples, quieter: the loudest places, and places spread over the rest
    raises, lowers:    (token, logits for strength 1), from its direction
    needed:            (token, probability), what is less likely next when it is removed where it is loudest
    label:             a program that was found by search, with its scores; None where none was made
    """

    feature: int
    density: float
    examples: list[Example]
    quieter: list[Example]
    raises: list[Ranked]
    lowers: list[Ranked]
    needed: list[Ranked]
    label: Label | None = None

    def __repr__(self) -> str:
        lines = [f"Feature {self.feature}: active on {self.density:.2%} of the tokens."]
        for title, found in (("Loudest", self.examples), ("Quieter", self.quieter)):
            lines += [f"{title}:"] + [f"  {s:6.1f}  {b}[{t}]{a}".replace("\n", "↵") for b, t, a, s in found]
        for title, found in self._lists():
            lines.append(f"{title}: {', '.join(f'{t!r} {v:+.2f}' for t, v in found)}")
        return "\n".join([*lines, *([repr(self.label)] if self.label else [])])

    def _lists(self) -> list[tuple[str, list[Ranked]]]:
        read = [("Its direction raises (logits)", self.raises), ("and lowers", self.lowers)]
        return [*read, ("Without it, less likely next (probability)", self.needed)]

    def _repr_html_(self) -> str:
        shown = lambda text: html.escape(text.replace("\n", "↵"))
        rows = [f"<b>Feature {self.feature}</b>, active on {self.density:.2%} of the tokens"]
        for title, found in (("Loudest", self.examples), ("Quieter", self.quieter)):
            rows.append(f"<i>{title}</i>")
            mark = "<mark style='background:#FBD9C0;color:#222'>{}</mark>".format
            rows += [f"<code>{s:6.1f}</code> {shown(b)}{mark(shown(t))}{shown(a)}" for b, t, a, s in found]
        for title, found in self._lists():
            listed = ", ".join(f"<code>{shown(t)}</code>&nbsp;{v:+.2f}" for t, v in found)
            rows.append(f"<i>{title}:</i> {listed}")
        label = self.label._repr_html_() if self.label else ""
        return "<div style='line-height:1.7'>" + "<br>".join(rows) + label + "</div>"


@torch.no_grad()
def feature_page(
    model: "TransformerBridge",
    sae: SparseAutoencoder,
    activity: Activity,
    feature: int,
    *,
    k: int = 6,
    around: int = 8,
) -> FeaturePage:
    """Explain a feature three ways: from its inputs, from its outputs, and by intervention.

    k: examples and tokens of each kind; around: tokens of context on each side. Besides the loudest places it
    shows others, drawn evenly from the rest: the loudest alone make nearly every feature look clean.
    """
    require_folded(model)
    sae = sae.to(model.W_E.device)
    if activity.d_sae != sae.d_sae:
        raise ValueError(
            f"The activity is of a dictionary of {activity.d_sae} features, and this one has {sae.d_sae}: "
            "read the texts with `feature_activity` and this dictionary first."
        )
    text, position, _ = places = activity.loudest(feature)
    best = range(min(k, len(text)))
    step = (len(text) - len(best)) / k
    rest = [len(best) + int((n + 0.5) * step) for n in range(min(k, len(text) - len(best)))]
    effect = sae.W_dec[feature] @ model.W_U.to(sae.W_dec.dtype)
    effect = effect - effect.mean()
    fall = _fall(model, sae, activity, feature, text[:k], position[:k]) if len(best) else None
    return FeaturePage(
        feature,
        len(text) / activity.tokens,
        [_example(model, activity, places, n, around) for n in best],
        [_example(model, activity, places, n, around) for n in rest],
        _ranked(model, effect, k),
        [(token, -value) for token, value in _ranked(model, -effect, k)],
        [] if fall is None else [(token, -drop) for token, drop in _ranked(model, fall, k)],
        activity.labels.get(feature),
    )


def _example(
    model: "TransformerBridge", activity: Activity, places: tuple[Tensor, ...], n: int, around: int
) -> Example:
    """The n-th place of a feature, with some tokens of context on each side."""
    text, position, strength = (part[n] for part in places)
    row, at, said = activity.texts[text].tolist(), int(position), model.tokenizer.decode
    before, after = row[max(activity.skip, at - around) : at], row[at + 1 : at + 1 + around]
    return said(before), said([row[at]]), said(after), strength.item()


def _ranked(model: "TransformerBridge", values: Float[Tensor, "d_vocab"], k: int) -> list[Ranked]:
    """The k tokens with the largest values."""
    return [(model.tokenizer.decode([i]), values[i].item()) for i in values.topk(k).indices.tolist()]


def _fall(
    model: "TransformerBridge",
    sae: SparseAutoencoder,
    activity: Activity,
    feature: int,
    text: Int[Tensor, "place"],
    position: Int[Tensor, "place"],
) -> Float[Tensor, "d_vocab"]:
    """How much less likely each token is to come next when the feature is removed, mean over places."""
    rows = activity.texts[text, : int(position.max()) + 1].to(model.cfg.device)
    intact = _said(model, rows, position)
    with intervene(model, feature_hooks(model, sae, feature, times=0, skip=activity.skip)):
        without = _said(model, rows, position)
    return (intact - without).mean(0)


def _said(
    model: "TransformerBridge", rows: Int[Tensor, "place pos"], position: Int[Tensor, "place"]
) -> Float[Tensor, "place d_vocab"]:
    """Probabilities of the next token, in float32 or better."""
    logits = model(rows)[range(len(rows)), position]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


def _check(feature: int, count: int) -> None:
    if not 0 <= feature < count:
        raise ValueError(f"There is no feature {feature}: this dictionary has features 0 to {count - 1}.")
