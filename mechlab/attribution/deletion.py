"""Is an attribution right? Delete the tokens in its order and watch the metric fall, beside random orders.

An order that knows which tokens matter makes the metric fall early (deletion) or rise early (insertion), so
the mean of its curve is low (high). What counts is the distance from random orders on the same prompts: the
mean of a curve has no scale of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import at_least, outside_inference
from mechlab.attribution.masking import Game, Source, input_game
from mechlab.metrics import Metric
from mechlab.results import Scores
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from mechlab.pictures.plots import Picture

BAND = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": "rgba(120,120,120,0.25)"}
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Curves:
    """The metric after each step, for each method and for random orders, on each prompt.

    methods: their curves;  random: those of random orders (the same orders for every method)
    insertion: False when tokens are replaced one after the other, True when they come back
    """

    methods: Mapping[str, Float[Tensor, "batch step"]]
    random: Float[Tensor, "order batch step"]
    insertion: bool

    def gain(self, name: str) -> Float[Tensor, "batch"]:
        """How much better a method's mean is than that of random orders, in units of the metric."""
        sign = 1 if self.insertion else -1
        return sign * (self.methods[name].mean(-1) - self.random.mean(-1).mean(0))

    def chance(self, name: str) -> float:
        """The share of random orders that do at least as well as the method, over all prompts."""
        sign = 1 if self.insertion else -1
        orders = sign * self.random.mean(-1).mean(1)
        return (orders >= sign * self.methods[name].mean()).float().mean().item()

    def table(self) -> "pd.DataFrame":
        """One row a method, best first: the mean of its curve, its gain with an interval, its chance."""
        import pandas as pd

        rows = []
        for name, curve in self.methods.items():
            gain = self.gain(name)
            row = {
                "method": name,
                "mean of the curve": curve.mean().item(),
                "better than random by": gain.mean().item(),
            }
            if len(gain) > 1:
                row["95 % low"], row["95 % high"] = Scores.over_prompts(gain, (), name).interval().tolist()
            rows.append(row | {"random orders as good": self.chance(name)})
        frame = pd.DataFrame(rows).set_index("method")
        return frame.sort_values("better than random by", ascending=False).round(3)

    def plot(self, **layout) -> "Picture":
        """The curves, averaged over prompts, on the band of nine in ten random orders at each step."""
        from mechlab.pictures import plots

        what = "put back" if self.insertion else "replaced"
        fig = plots.figure(f"Metric as tokens are {what}", f"tokens {what}", "metric", **layout)
        low, high = self.random.mean(1).quantile(torch.tensor([0.05, 0.95]), dim=0)
        steps = list(range(len(low)))
        fig.add_scatter(
            x=steps + steps[::-1],
            y=plots._floats(torch.cat([high, low.flip(0)])),
            name=f"{len(self.random)} random orders (nine in ten)",
            hoverinfo="skip",
            **BAND,
        )
        for n, (name, curve) in enumerate(self.methods.items()):
            line = {"mode": "lines+markers", "line": {"dash": DASHES[n % len(DASHES)]}}
            fig.add_scatter(x=steps, y=plots._floats(curve.mean(0)), name=name, **line)
        title = fig.layout.title.text
        return plots.Picture(fig, f"{title}: how much better than random orders, best first: {self._told()}.")

    def _told(self) -> str:
        return "; ".join(
            f"{name} {row['better than random by']:+.2f} "
            f"({row['random orders as good']:.0%} of random orders as good)"
            for name, row in self.table().iterrows()
        )


@outside_inference
def deletion_curves(
    model: "TransformerBridge",
    base: Prompts,
    source: Source,
    metric: Metric,
    scores: Mapping[str, Scores],
    *,
    insertion: bool = False,
    orders: int = 20,
    seed: int = 0,
) -> Curves:
    """Replace tokens by the source from the highest score down; for insertion, put them back in that order.

    scores: results of any attribution methods on the same prompts, by name. `orders` random orders are run on
    each prompt beside them. RISE's deletion and insertion curves (Petsiuk et al. 2018) for tokens. Prompts
    with tokens replaced are unlike anything the model was trained on, and the methods that replace tokens in
    the same way have an advantage: try a second source. Raises a `ValueError` for a single token, of which
    there is one order only.
    """
    if orders < 1:
        raise ValueError(
            "Without random orders (orders=0) a curve says nothing: there is nothing to compare with."
        )
    at_least("orders", orders, 1)
    if not scores:
        raise ValueError("`scores` is empty: give the results of at least one attribution method, by name.")
    played = input_game(model, base, source, metric)
    if len(played.players) < 2:
        raise ValueError(
            "One token alone differs between base and source, so every order is the same: there is nothing "
            "to compare with."
        )
    generator = torch.Generator().manual_seed(seed)
    names, n = list(scores), len(played.players)
    curves = []
    for row in range(len(played)):
        ranked = [_order(scores[name], name, row, played) for name in names]
        shuffled = [torch.randperm(n, generator=generator) for _ in range(orders)]
        masks = torch.stack([_steps(order, insertion) for order in ranked + shuffled])
        curves.append(played.values(row, masks.flatten(0, 1)).reshape(len(masks), n + 1).cpu())
    every = torch.stack(curves, 1).float()  # order, prompt, step
    return Curves(dict(zip(names, every, strict=False)), every[len(names) :], insertion)


def _order(scores: Scores, name: str, row: int, played: Game) -> Int[Tensor, "player"]:
    """The players, highest score first."""
    each = scores.values[None] if scores.per_prompt is None else scores.per_prompt
    if each.shape != played.base.shape:
        raise ValueError(
            f'The scores of "{name}" are for {tuple(each.shape)} [prompts, tokens], and base is '
            f"{tuple(played.base.shape)}."
        )
    return each[row, played.players].argsort(descending=True, stable=True)


def _steps(order: Int[Tensor, "player"], insertion: bool) -> Float[Tensor, "step player"]:
    """Masks from none replaced to all replaced, one more player in each; for insertion the reverse."""
    n = len(order)
    rank = order.argsort()
    changed = (rank < torch.arange(n + 1)[:, None]).float()
    return changed if insertion else 1 - changed
