"""Scores: what every technique returns, so that any two can be compared, tabulated and drawn.

Values carry named dimensions, labels for each place, the baselines they are measured against, and, where a
technique ran on several prompts, the value of each prompt (kept in `per_prompt`, averaged in `values`).
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from mechlab.statistics import FEWEST_UNITS, bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from mechlab.pictures.plots import Picture

    Values = Float[torch.Tensor, "..."]
else:
    Values = Any  # lists, arrays and whole numbers are taken too, and become tensors


@dataclass(frozen=True)
class Scores:
    """One number for each place in the model.

    values:     the numbers, one axis for each name in `dims`
    dims:       what the axes are, for example ("layer", "head")
    name:       the quantity, with its unit: "logit difference (logits)"
    labels:     names of the places along an axis; axes without labels are numbered
    baselines:  named reference values of the same quantity, such as {"clean": 4.1, "corrupted": -3.8}
    per_prompt: the same numbers before averaging, with a first axis "prompt"; None for a single prompt
    signed:     False for quantities that have no meaningful zero in the middle (attention, loss)
    whole:      for each prompt, what the values ought to add up to, where a method promises or hopes that
    units:      the cluster of each prompt (the two of a balanced pair, say): intervals are over clusters
    """

    values: Values
    dims: tuple[str, ...]
    name: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    per_prompt: Values | None = None
    signed: bool = True
    whole: Values | None = None
    units: Int[torch.Tensor, "prompt"] | None = None

    def __post_init__(self):
        set_ = lambda key, value: object.__setattr__(self, key, value)
        values = torch.as_tensor(self.values).detach().float().cpu()
        set_("values", values)
        set_("dims", tuple(self.dims))
        if values.ndim != len(self.dims):
            raise ValueError(
                f"values have {values.ndim} axes {tuple(values.shape)}, and dims names {len(self.dims)}: "
                f"{self.dims}."
            )
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).sum())
            raise ValueError(
                f'"{self.name}": {bad} of {values.numel()} values are NaN or infinite. Look for a division '
                "by zero (base and source equal?) or for NaN in the activations."
            )
        for dim, labels in self.labels.items():
            if dim not in self.dims:
                raise ValueError(f'labels are given for "{dim}", and the dims are {self.dims}.')
            if len(labels) != self.size(dim):
                raise ValueError(f'"{dim}" has {self.size(dim)} places and {len(labels)} labels.')
        set_("labels", {dim: distinct(labels) for dim, labels in self.labels.items()})
        if self.per_prompt is not None:
            kept = torch.as_tensor(self.per_prompt).detach().float().cpu()
            if kept.shape[1:] != values.shape:
                raise ValueError(
                    f"per_prompt is {tuple(kept.shape)}; it must be one {tuple(values.shape)} for each "
                    "prompt."
                )
            set_("per_prompt", kept)
        if self.whole is not None:
            whole = torch.as_tensor(self.whole).detach().float().cpu().reshape(-1)
            prompts = 1 if self.per_prompt is None else len(self.per_prompt)
            if len(whole) != prompts:
                raise ValueError(f"There are {prompts} prompts, and {len(whole)} wholes for them.")
            set_("whole", whole)
        if self.units is not None:
            units = torch.as_tensor(self.units).detach().cpu().reshape(-1)
            if self.per_prompt is None or len(units) != len(self.per_prompt):
                prompts = 0 if self.per_prompt is None else len(self.per_prompt)
                raise ValueError(f"units names the cluster of {len(units)} prompts, and {prompts} are kept.")
            set_("units", units)

    @classmethod
    def over_prompts(cls, per_prompt: Values, dims, name, **given) -> "Scores":
        """Scores whose values are the mean over the first axis; each prompt's values are kept."""
        per_prompt = torch.as_tensor(per_prompt)
        if not len(per_prompt):
            raise ValueError(f'"{name}": there is no prompt, and so no mean over prompts.')
        return cls(per_prompt.float().mean(0), dims, name, per_prompt=per_prompt, **given)

    @property
    def gap(self) -> Float[torch.Tensor, "prompt"]:
        """For each prompt, how much the values add up to too little: `whole` minus their sum."""
        if self.whole is None:
            raise ValueError(f'"{self.name}" has no whole that its values should add up to.')
        each = self.values[None] if self.per_prompt is None else self.per_prompt
        return self.whole - each.flatten(1).sum(1)

    def size(self, dim: str) -> int:
        return self.values.shape[self.dims.index(dim)]

    def label(self, dim: str, index: int) -> str:
        """The name of one place along an axis: its label, or its number."""
        return self.labels[dim][index] if dim in self.labels else str(index)

    def at(self, **places: str | int) -> torch.Tensor:
        """The values at named places: `edges.at(sender="20.0", reader="logits")`.

        Dims that are not named remain. A place is a label, or the number of an axis without labels. One that
        is not there raises a `ValueError` with the nearest that are.
        """
        found = self.values
        for dim in places:
            if dim not in self.dims:
                raise ValueError(f'There is no axis "{dim}"; the axes are {", ".join(self.dims)}.')
        for axis, dim in reversed([*enumerate(self.dims)]):
            if dim in places:
                names = [self.label(dim, n) for n in range(self.size(dim))]
                if str(places[dim]) not in names:
                    near = ", ".join(get_close_matches(str(places[dim]), names) or names[:5])
                    raise ValueError(f'"{dim}" has no place {places[dim]!r}; it has, for example, {near}.')
                found = found.select(axis, names.index(str(places[dim])))
        return found

    def place(self, index: Sequence[int]) -> str:
        """The name of one place: `23.3` for a head, `layer 4, ' John' 2` otherwise."""
        if self.dims == ("layer", "head"):
            return ".".join(self.label(d, i) for d, i in zip(self.dims, index, strict=True))
        named = zip(self.dims, index, strict=True)
        return ", ".join(self.label(d, i) if d in self.labels else f"{d} {i}" for d, i in named)

    def interval(
        self,
        level: float | int = 0.95,
        draws: int = 2000,
        seed: int = 0,
        units: Int[torch.Tensor, "row"] | None = None,
    ) -> torch.Tensor:
        """Bootstrap confidence interval of the mean over prompts: low and high, stacked on the first axis.

        Clusters are drawn with replacement, and all their prompts count: the scores' own `units`, or others
        that are given here. Without any, prompts are drawn as if each were independent of the others. Needs
        `per_prompt` with at least two prompts.
        """
        if self.per_prompt is None or len(self.per_prompt) < 2:
            raise ValueError(
                "An interval needs the values of at least two prompts, and these scores have one."
            )
        units = self.units if units is None else units
        return bootstrap(self.per_prompt, units, level=level, draws=draws, seed=seed)

    @property
    def independent(self) -> int:
        """How many independent units the values were measured on: clusters, or else prompts."""
        if self.per_prompt is None:
            return 1
        return len(self.per_prompt) if self.units is None else len(self.units.unique())

    def top(self, k: int = 10) -> "pd.DataFrame":
        """The k largest places, largest first; by absolute value when `signed`.

        With their 95 % intervals, where there are the eight independent units that one needs.
        """
        import pandas as pd

        size = self.values.abs() if self.signed else self.values
        order = size.flatten().argsort(descending=True, stable=True)[:k]
        places = [[int(k) for k in np.unravel_index(int(i), tuple(self.values.shape))] for i in order]
        rows = {"place": [self.place(p) for p in places], self.name: self.values.flatten()[order].numpy()}
        if self.per_prompt is not None and self.independent >= FEWEST_UNITS:
            shown = self.per_prompt.flatten(1)[:, order]  # only these: intervals of all places cost much more
            low, high = bootstrap(shown, self.units)
            rows |= {"95 % low": low.numpy(), "95 % high": high.numpy()}
        return pd.DataFrame(rows).round(3)

    def to_dataframe(self) -> "pd.DataFrame":
        """Every value, one row each, with a column for each dimension."""
        import pandas as pd

        grid = np.indices(tuple(self.values.shape)).reshape(len(self.dims), -1)
        columns = {
            dim: [self.label(dim, int(i)) for i in index] if dim in self.labels else index
            for dim, index in zip(self.dims, grid, strict=True)
        }
        return pd.DataFrame({**columns, self.name: self.values.flatten().numpy()})

    def summary(self) -> str:
        """One sentence: the range, and where the largest values are."""
        leaders = self.top(3)
        listed = ", ".join(f"{r.iloc[0]} ({r.iloc[1]:+.2f})" for _, r in leaders.iterrows())
        kinds = [["bars " if self.labels else "points "], ["rows ", "columns "]]
        kinds = kinds[len(self.dims) - 1] if len(self.dims) in (1, 2) else [""] * len(self.dims)
        sizes = zip(self.dims, kinds, strict=True)
        shape = " × ".join(f"{self.size(d)} {kind}({in_words(d)})" for d, kind in sizes)
        first = "Furthest from zero" if self.signed else "Largest"
        span = f"from {self.values.min():.2f} to {self.values.max():.2f}"
        text = f"{self.name}, {shape}, {span}. {first}: {listed}."
        if self.baselines:
            text += " " + ", ".join(f"{k} {v:.2f}" for k, v in self.baselines.items()) + "."
        if self.whole is not None:
            total, whole = self.values.sum(), self.whole.mean()
            text += f" They add up to {total:.2f} of {whole:.2f} (gap {self.gap.mean():.2f})."
        return text if self.signed else text.replace("(+", "(")

    def plot(self, **layout) -> "Picture":
        """A bar chart, line or heat map, whichever the dimensions ask for. Keywords go to plotly's layout."""
        from mechlab.pictures import plots

        return plots.scores(self, **layout)


def share_of_way(
    change: Float[torch.Tensor, "batch ..."],
    base: Float[torch.Tensor, "batch"],
    source: Float[torch.Tensor, "batch"],
    dims: Sequence[str],
    labels: Mapping[str, Sequence[str]] | None = None,
    *,
    normalized: bool = True,
    estimated: bool = False,
    units: Int[torch.Tensor, "batch"] | None = None,
) -> Scores:
    """What patches did, as the share of the way from base's metric to source's: 0 = nothing, 1 = everything.

    change: of the metric, for each prompt and place, over the mean difference of the two runs' metrics.
            normalized=False: as it is, in the metric's own unit
    units:  the cluster of each prompt

    No difference between the runs is a `ValueError`; one that may be chance earns a warning.
    """
    gap = source - base
    if normalized and gap.mean().abs() < 1e-6:
        raise ValueError(
            "base and source give the same metric, so there is no way between them to take a share of."
        )
    error = (gap.std() / len(gap) ** 0.5).item() if len(gap) > 1 else 0.0
    if normalized and gap.mean().abs() < 2 * error:
        warnings.warn(
            f"The metric is {base.mean():.2f} on base and {source.mean():.2f} on source, a difference that "
            "may be chance "
            f"({len(gap)} prompts, standard error {error:.2f}). If this model does not do the task, there is "
            "no circuit to "
            "find.",
            stacklevel=3,
        )
    return Scores.over_prompts(
        change / gap.mean() if normalized else change,
        tuple(dims),
        ("share of the way from base to source" if normalized else "change of the metric")
        + ", estimated" * estimated,
        labels=labels or {},
        baselines={"base": base.mean().item(), "source": source.mean().item()},
        units=units,
    )


@dataclass(frozen=True)
class AblationResult:
    """The metric before and after some parts of the model are taken away.

    Also the metric after random sets matched to them are taken away.

    before, after: one number a prompt;  random: [draw, prompt]
    """

    before: Float[torch.Tensor, "prompt"]
    after: Float[torch.Tensor, "prompt"]
    random: Float[torch.Tensor, "draw prompt"]

    def __repr__(self) -> str:
        means = self.random.mean(1)
        return (
            f"metric {self.before.mean():.2f}; without these parts {self.after.mean():.2f}; without as many "
            f"random others {means.mean():.2f} (from {means.min():.2f} to "
            f"{means.max():.2f} in {len(means)} draws)"
        )


def in_words(dim: str) -> str:
    """What an axis is called where people read it."""
    return {"pos": "position"}.get(dim, dim)


def distinct(tokens: Sequence[str]) -> list[str]:
    """Token labels that stay different when tokens repeat: `' John' 2` and `' John' 10`.

    A label that occurs once is left as it is.
    """
    found = [str(token) for token in tokens]
    while twice := {label for label, count in Counter(found).items() if count > 1}:
        found = [f"{label} {i}" if label in twice else label for i, label in enumerate(found)]
    return found


def named(heads: Sequence[tuple[int, int]]) -> str:
    """Heads as text: 23.0, 23.1."""
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "nothing"


def token_labels(model: "TransformerBridge", tokens: Int[torch.Tensor, "..."] | str) -> list[str]:
    """Labels for the positions of one prompt: each token in quotes, with its position: `' John' 2`."""
    return [f"{text!r} {i}" for i, text in enumerate(model.to_str_tokens(tokens))]


def position_labels(model: "TransformerBridge", tokens: Int[torch.Tensor, "batch pos"]) -> list[str]:
    """Labels for positions of several prompts of one length: the token where all agree, else `position 4`."""
    rows = [model.to_str_tokens(row) for row in tokens]
    return [
        f"{texts[0]!r} {i}" if len(set(texts)) == 1 else f"position {i}"
        for i, texts in enumerate(zip(*rows, strict=True))
    ]
