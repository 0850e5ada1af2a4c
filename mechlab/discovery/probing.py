"""Probing: is a property in the activations, in a form that a simple reader can use?

A probe is a small supervised model on frozen activations. What its accuracy means depends on what it is
compared with, so every result here is made on examples that were held out, and the floors are one call away:
shuffled labels, random labels for each group (Hewitt and Liang 2019), a model with random weights, or
features of the text's surface.

Decodable is not used: a probe says that the information is there, never that the model reads it.
"""

from collections.abc import Collection
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

from mechlab.arguments import at_least, whole
from mechlab.discovery.streams import residual_entries
from mechlab.moved import was
from mechlab.results import Scores
from mechlab.runs.norms import wide
from mechlab.tokens import Prompts, batch_of, first_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PROBES = ("logistic", "ridge", "mass_mean")
Split = tuple[np.ndarray, np.ndarray]  # the examples to fit to, and those to score on


@was(position="pos")
@torch.no_grad()
def residual_streams(
    model: "TransformerBridge",
    texts: Prompts,
    *,
    pos: int | str = -1,
    batch: int = 32,
    skip: int | None = None,
) -> Float[Tensor, "layer text d_model"]:
    """The residual stream of each text at one position, on entering each layer and after the last.

    [n_layers + 1, text, d_model]. Texts may differ in length: those of one length are run together, so there
    is no padding.

    pos:  -1 is each text's last token; "mean" is the mean over all but the first `skip`
    skip: by default the model's first token. In models whose tokenizer adds none (Qwen, Pythia, Bloom)
          position 0 is a word, and often an attention sink with a far longer stream than others: skip=1
          leaves it out

    Raises a `PromptError` for a text beyond the context and a position that a text does not have.
    """
    if pos != "mean" and not whole(pos):
        raise ValueError(f'pos is {pos!r}: a number, or "mean".')
    given, batch = batch_of(model, texts, what="texts"), at_least("batch", batch, 1)
    skip = first_tokens(model) if skip is None else at_least("skip", skip, 0)
    if pos == "mean" and min(given.lengths) <= skip:
        raise ValueError("A text is empty, so there is nothing to take the mean of.")
    at = given.ends if isinstance(pos, str) else given.position(pos)
    found = torch.zeros(model.cfg.n_layers + 1, len(given), model.cfg.d_model)
    for length in sorted(set(given.lengths)):
        rows = (given.ends == length - 1).nonzero()[:, 0]
        places, begin = at[rows].split(batch), 0
        for streams in residual_entries(model, given.tokens[rows, :length], batch):
            place = places[begin // batch]
            own = torch.arange(len(place), device=place.device)
            seen = wide(streams[:, :, skip:]).mean(2) if pos == "mean" else streams[:, own, place]
            found[:, rows[begin : begin + len(place)].cpu()] = seen.float().cpu()
            begin += batch
    return found


@dataclass(frozen=True)
class ProbeResult:
    """What the probes of each layer said about examples that they had not seen.

    score:       share right (classes; its intervals are over whole groups, where there are any), or R²
                 (numbers; 0 is as good as always saying the mean, below 0 is worse)
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
    on: tuple[Float[Tensor, "its_layer other its_d_model"], ArrayLike] | None = None,
    folds: int = 5,
    penalty: float | int | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Fit one probe for each layer and score it on held-out examples.

    probe:  "logistic" or "mass_mean" (direction between the two class means, Marks and Tegmark 2023) for
            classes, "ridge" for numbers ([example] or [example, target]); or any scikit-learn estimator
    groups: examples of one group are held out together (all sentences about one city, say); a probe can
            otherwise recognise the example instead of the property
    on:     other features and labels of the same layers: fit on all examples, score on these (transfer)
    penalty: how strong it is (logistic: 1/C, default 1; ridge: default 1000; 0: none). Choosing it on the
             scores below is cheating

    Features are standardised on the training part. Each example is held out once (`folds` parts); classes
    keep their proportions. Source: Alain and Bengio 2016; Hewitt and Liang 2019 for what to compare with.
    """
    labels = _array(labels)
    estimator = _estimator(probe, penalty)
    numbers = is_regressor(estimator)
    _check(features, labels, groups, numbers)
    layers = _numpy(features)
    splits = [] if on else _splits(labels, groups, at_least("folds", folds, 2), numbers, seed)
    fitted = [clone(estimator).fit(layer, labels) for layer in layers]
    if on is None:
        truth = labels
        said = [_held_out(estimator, layer, labels, splits, numbers) for layer in layers]
    else:
        truth = _others(features, labels, *on)
        said = [probe.predict(layer) for probe, layer in zip(fitted, _numpy(on[0]), strict=True)]
    predictions, directions = np.stack(said), [_direction(probe) for probe in fitted]
    units = groups if on is None else None
    score = r_squared(predictions, truth) if numbers else _accuracy(predictions, truth, units)
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
    if len(labels) != len(groups) or len(set(labels)) < 2:
        raise ValueError(
            f"There are {len(groups)} groups and {len(labels)} labels of {len(set(labels))} classes: give "
            "one of each for every example, and at least two classes to draw from."
        )
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
    truth = _array(truth).astype(float)
    centre, said = truth.mean(0), np.asarray(predictions, dtype=float)
    if said.shape[1:] != truth.shape:
        raise ValueError(
            f"predictions are {said.shape}, the truth {truth.shape}: give [layer, example] (and [target])."
        )
    if within is not None:
        within = np.asarray(within)
        if len(within) != len(truth):
            raise ValueError(f"There are {len(truth)} examples, and within names the group of {len(within)}.")
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


def _array(labels: ArrayLike | Collection) -> np.ndarray:
    """Labels as an array, also where they are a tensor of another device."""
    return np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)


def _estimator(probe: str | BaseEstimator, penalty: float | int | None) -> BaseEstimator:
    if penalty is not None and not (penalty >= 0 and np.isfinite(penalty)):
        raise ValueError(f"penalty is {penalty}; it is a number of at least 0.")
    if penalty is not None and probe not in ("logistic", "ridge"):
        raise ValueError(f"Only logistic and ridge probes have a penalty here, and the probe is {probe!r}.")
    if not isinstance(probe, str):
        return probe
    if probe == "logistic":
        strength = np.inf if penalty == 0 else 1 / (1 if penalty is None else penalty)
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
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
    most = len(labels) if numbers else max((labels == name).sum() for name in set(labels))
    if groups is None and folds > most:
        raise ValueError(
            f"{folds} parts cannot be made of {'' if numbers else 'classes of at most '}{most} examples: set "
            f"folds={most}."
        )
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


def _check(
    features: Float[Tensor, "..."], labels: np.ndarray, groups: Collection | None, numbers: bool = False
) -> None:
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
    countable = np.issubdtype(labels.dtype, np.number)
    if numbers and not (countable or labels.dtype == bool):
        raise ValueError(
            f"The labels are words such as {str(labels.flat[0])!r}, and this probe fits numbers."
        )
    if countable and not np.isfinite(labels).all():
        raise ValueError("There are NaN or infinite values among the labels.")
    if numbers:
        return
    if labels.ndim != 1 or (countable and (labels != np.round(labels)).any()):
        raise ValueError(
            "The labels are numbers with decimals, or several for an example, and this probe tells classes "
            'apart: use probe="ridge".'
        )
    rare = [name for name in set(labels) if (labels == name).sum() < 2]
    if rare:
        raise ValueError(
            f"{len(labels)} examples of {len(set(labels))} classes, of {rare[0]} only one: give at least two "
            "of each."
        )


def _others(
    features: Float[Tensor, "layer example d_model"],
    labels: np.ndarray,
    other: Float[Tensor, "..."],
    truth: ArrayLike,
) -> np.ndarray:
    """The labels of other examples, after a check that the same probes can be scored on them."""
    truth = _array(truth)
    layers, _, d_model = features.shape
    if (
        other.ndim != 3
        or (other.shape[0], other.shape[2]) != (layers, d_model)
        or len(truth) != other.shape[1]
    ):
        raise ValueError(
            f"on= is {tuple(other.shape)} with {len(truth)} labels; the probes are for {layers} layers of "
            f"width {d_model}: give [layer, example, d_model] of the same layers, and a label for each."
        )
    if not torch.isfinite(other).all():
        raise ValueError("There are NaN or infinite activations in on=: no probe can be scored on them.")
    if truth.shape[1:] != labels.shape[1:]:
        raise ValueError(f"The labels of on= are {truth.shape}, and those that are fitted {labels.shape}.")
    return truth


def _numpy(features: Float[Tensor, "layer example d_model"]) -> np.ndarray:
    features = features.detach().cpu()
    return (features if features.dtype == torch.float64 else features.float()).numpy()


def _accuracy(predictions: np.ndarray, truth: np.ndarray, groups: Collection | None) -> Scores:
    right, name = torch.tensor(predictions == truth).T.float(), "share of held-out examples right"
    units = None if groups is None else torch.tensor(np.unique(_array(groups), return_inverse=True)[1])
    return Scores.over_prompts(right, ("layer",), name, signed=False, units=units)


def _direction(fitted: BaseEstimator) -> Float[Tensor, "d_model"] | None:
    """What a fitted linear probe reads, in the units of the features; None when it is not one direction."""
    last = fitted[-1] if isinstance(fitted, Pipeline) else fitted
    rows = np.atleast_2d(getattr(last, "coef_", np.zeros((2, 1))))
    if len(rows) != 1:
        return None
    return torch.tensor(rows[0] / (fitted[0].scale_ if isinstance(fitted, Pipeline) else 1)).float()
