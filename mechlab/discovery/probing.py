"""Probing: is a property in the activations, in a form that a simple reader can use?

A probe is a small supervised model on frozen activations. What its accuracy means depends on what it is
compared with, so every result here is made on examples that were held out, and the floors are one call away:
shuffled labels, random labels for each group (Hewitt and Liang 2019), a model with random weights, or
features of the text's surface.

Decodable is not used: a probe says that the information is there, never that the model reads it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn import model_selection as ms
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_regressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mechlab.discovery.streams import residual_entries
from mechlab.moved import was
from mechlab.results import Scores

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PROBES = ("logistic", "ridge", "mass_mean")
Split = tuple[np.ndarray, np.ndarray]  # the examples to fit to, and those to score on


@was(position="pos")
@torch.no_grad()
def residual_streams(
    model: "TransformerBridge", texts: Sequence[str], *, pos: int | str = -1, batch: int = 32
) -> Float[Tensor, "layer text d_model"]:
    """The residual stream of each text at one position, on entering each layer and after the last.

    [n_layers + 1, text, d_model]. Texts may differ in length: those of one length are run together, so there
    is no padding. Position -1 is the last token; "mean" is the mean over all but the first, which is the
    model's own.
    """
    if pos != "mean" and not isinstance(pos, int):
        raise ValueError(f'pos is {pos!r}: a number, or "mean".')
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError("Give a list of at least one text.")
    tokens = [model.to_tokens(text)[0] for text in texts]
    found = torch.zeros(model.cfg.n_layers + 1, len(texts), model.cfg.d_model)
    for length in sorted({len(row) for row in tokens}):
        if pos == "mean" and length < 2:
            raise ValueError("A text is empty, so there is nothing to take the mean of.")
        if pos != "mean" and not -length <= pos < length:
            raise ValueError(f"A text has {length} tokens, so it has no position {pos}.")
        rows = [n for n, row in enumerate(tokens) if len(row) == length]
        streams = residual_entries(model, torch.stack([tokens[n] for n in rows]), batch)
        at = lambda stream: stream[:, :, 1:].mean(2) if pos == "mean" else stream[:, :, pos]
        found[:, rows] = torch.cat([at(stream).float().cpu() for stream in streams], dim=1)
    return found


@dataclass(frozen=True)
class ProbeResult:
    """What the probes of each layer said about examples that they had not seen.

    score:       share right (classes), or R² (numbers; 0 is as good as always saying the mean, below 0 is
                 worse)
    predictions: [layer, example] or, for several numbers an example, [layer, example, target]
    directions:  [layer, d_model], what the probe fitted to all examples reads; None for more than two classes
                 or targets
    """

    score: Scores
    predictions: np.ndarray
    directions: Float[Tensor, "layer d_model"] | None


@was(strength="penalty")
def probe_layers(
    features: Float[Tensor, "layer example d_model"],
    labels: ArrayLike,
    *,
    probe: str | BaseEstimator = "logistic",
    groups: Collection | None = None,
    on: tuple[Float[Tensor, "layer other d_model"], ArrayLike] | None = None,
    folds: int = 5,
    penalty: float | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Fit one probe for each layer and score it on held-out examples.

    probe:  "logistic" or "mass_mean" (direction between the two class means, Marks and Tegmark 2023) for
            classes, "ridge" for numbers ([example] or [example, target]); or any scikit-learn estimator
    groups: examples of one group are held out together (all sentences about one city, say); a probe can
            otherwise recognise the example instead of the property
    on:     other features and labels: fit on all examples, score on these (transfer)
    penalty: how strong it is (logistic: 1/C, default 1; ridge: default 1000). Choosing it on the scores below
             is
              cheating

    Features are standardised on the training part. Each example is held out once (`folds` parts); classes
    keep their proportions. Source: Alain and Bengio 2016; Hewitt and Liang 2019 for what to compare with.
    """
    labels = np.asarray(labels)
    _check(features, labels, groups)
    estimator = _estimator(probe, penalty)
    numbers = is_regressor(estimator)
    layers = features.numpy()
    splits = [] if on else _splits(labels, groups, folds, numbers, seed)
    fitted = [clone(estimator).fit(layer, labels) for layer in layers]
    if on is None:
        truth = labels
        said = [_held_out(estimator, layer, labels, splits, numbers) for layer in layers]
    else:
        truth = np.asarray(on[1])
        said = [probe.predict(np.asarray(layer)) for probe, layer in zip(fitted, on[0], strict=False)]
    predictions, directions = np.stack(said), [_direction(probe) for probe in fitted]
    score = r_squared(predictions, truth) if numbers else _accuracy(predictions, truth)
    known = [direction for direction in directions if direction is not None]
    return ProbeResult(score, predictions, torch.stack(known) if len(known) == len(directions) else None)


def _held_out(
    estimator: BaseEstimator, layer: np.ndarray, labels: np.ndarray, splits: list[Split], numbers: bool
) -> np.ndarray:
    """What probes that were fitted to the other parts say about each part."""
    said = np.zeros(labels.shape, dtype=float if numbers else labels.dtype)
    for train, test in splits:
        said[test] = clone(estimator).fit(layer[train], labels[train]).predict(layer[test])
    return said


def control_labels(groups: Collection, labels: ArrayLike, *, seed: int = 0) -> np.ndarray:
    """A control task: every group gets a label drawn at random, in the proportions of the real ones.

    What a probe can learn here it learned by memory; the real accuracy less this one is its selectivity
    (Hewitt and Liang 2019). Score it with a split that does *not* hold groups out, or it is chance by design.
    """
    labels, names = np.asarray(labels), list(dict.fromkeys(groups))
    mixed = np.random.default_rng(seed).permutation(np.resize(labels, max(len(names), len(labels))))
    drawn = mixed[: len(names)]
    if len(set(drawn)) < 2 <= len(names):
        drawn[: len(names) // 2] = next(label for label in labels if label != drawn[0])
    given = dict(zip(names, drawn, strict=True))
    return np.array([given[group] for group in groups])


def r_squared(predictions: np.ndarray, truth: np.ndarray, *, within: ArrayLike | None = None) -> Scores:
    """R² for each layer (and target): 1 − squared error / squared distance from the mean.

    dims ("layer",) or ("layer", "target").

    within: a group for each example; distances are then measured from the mean of the group, which asks what
    the probe knows beyond the group. Below 0: worse than saying the group's mean.
    """
    truth = np.asarray(truth, dtype=float)
    centre, said = truth.mean(0), predictions
    if within is not None:
        within = np.asarray(within)
        centre = np.stack([truth[within == group].mean(0) for group in within])
    error = ((said - truth) ** 2).sum(1)
    spread = ((truth - centre) ** 2).sum(0)
    dims = ("layer",) if truth.ndim == 1 else ("layer", "target")
    return Scores(torch.tensor(1 - error / spread), dims, "R² on held-out examples")


class MassMean(ClassifierMixin, BaseEstimator):
    """A probe without training: project on the line between the two class means, split at the middle."""

    def fit(self, features: np.ndarray, labels: np.ndarray) -> "MassMean":
        self.classes_ = np.unique(labels)
        if len(self.classes_) != 2:
            raise ValueError(f"mass_mean tells two classes apart, and there are {len(self.classes_)}.")
        low, high = (features[labels == name].mean(0) for name in self.classes_)
        self.coef_, self.intercept_ = (high - low)[None], -(high - low) @ (low + high) / 2
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        return self.classes_[(features @ self.coef_[0] + self.intercept_ > 0).astype(int)]


def _estimator(probe: str | BaseEstimator, penalty: float | None) -> BaseEstimator:
    if not isinstance(probe, str):
        return probe
    if probe == "logistic":
        return make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / (1 if penalty is None else penalty), max_iter=1000)
        )
    if probe == "ridge":
        return make_pipeline(StandardScaler(), Ridge(alpha=1000 if penalty is None else penalty))
    if probe == "mass_mean":
        return MassMean()
    raise ValueError(
        f"probe is {probe!r}; it must be one of {', '.join(PROBES)}, or a scikit-learn estimator."
    )


def _splits(
    labels: np.ndarray, groups: Collection | None, folds: int, numbers: bool, seed: int
) -> list[Split]:
    if groups is not None:
        count = len(set(groups))
        if count < folds:
            raise ValueError(
                f"There are {count} groups, too few to hold each out once in {folds} parts: set "
                f"folds={count}."
            )
        kind = ms.GroupKFold if numbers else ms.StratifiedGroupKFold
    else:
        kind = ms.KFold if numbers else ms.StratifiedKFold
    by = labels if labels.ndim == 1 else np.zeros(len(labels))
    splits = list(kind(folds, shuffle=True, random_state=seed).split(by, by, groups))
    for train, _ in splits if not numbers else ():
        missing = set(labels) - set(labels[train])
        if missing:
            raise ValueError(
                f"With these groups one training part has no example of class {missing.pop()}: a group holds "
                "all of them. Use smaller groups, or fewer folds."
            )
    return splits


def _check(features: Float[Tensor, "..."], labels: np.ndarray, groups: Collection | None) -> None:
    if features.ndim != 3:
        raise ValueError(f"features are {tuple(features.shape)}; they must be [layer, example, d_model].")
    if len(labels) != features.shape[1] or (groups is not None and len(groups) != len(labels)):
        raise ValueError(
            f"There are {features.shape[1]} examples, {len(labels)} labels"
            + ("." if groups is None else f" and {len(groups)} groups.")
        )
    if not torch.isfinite(features).all():
        raise ValueError("There are NaN or infinite activations: no probe can be fitted to them.")
    if labels.ndim == 1 and len(set(labels)) < 2:
        raise ValueError(f"All labels are {labels[0]}. A probe needs at least two classes to tell apart.")
    classes = labels.ndim == 1 and not np.issubdtype(labels.dtype, np.floating)
    if classes and len(labels) < 2 * len(set(labels)):
        raise ValueError(f"{len(labels)} examples of {len(set(labels))} classes: give at least two of each.")


def _accuracy(predictions: np.ndarray, truth: np.ndarray) -> Scores:
    right = torch.tensor(predictions == truth).T
    return Scores.over_prompts(right.float(), ("layer",), "share of held-out examples right", signed=False)


def _direction(fitted: BaseEstimator) -> Float[Tensor, "d_model"] | None:
    """What a fitted linear probe reads, in the units of the features; None when it is not one direction."""
    last = fitted[-1] if isinstance(fitted, Pipeline) else fitted
    rows = np.atleast_2d(getattr(last, "coef_", np.zeros((2, 1))))
    if len(rows) != 1:
        return None
    return torch.tensor(rows[0] / (fitted[0].scale_ if isinstance(fitted, Pipeline) else 1)).float()
