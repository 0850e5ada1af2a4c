"""A planted circuit: the model, where its parts are, prompts for it, and the truth to judge methods by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechlab.arguments import at_least, one_of
from mechlab.circuits.paths import readers, writers
from mechlab.circuits.planted.compiling import compiled
from mechlab.circuits.planted.plan import Head, Plan, Table, edges_of
from mechlab.circuits.planted.tasks import TASKS, Task
from mechlab.circuits.planted.traps import TRAPS
from mechlab.metrics import Metric, logit_difference
from mechlab.results import Scores

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CORRUPTIONS = ("flip", "third")


@dataclass(frozen=True)
class Prompted:
    """Prompts that end before the answer: clean, corrupted, and the metric by which both are judged."""

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    metric: Metric


@dataclass(frozen=True, eq=False)
class Planted:
    """A model with a known circuit.

    heads: name of a part -> (layer, head). Where they are is drawn by the seed
    task:  what its prompts are drawn from; None for a plan of one's own
    """

    model: "TransformerBridge"
    plan: Plan
    heads: dict[str, tuple[int, int]]
    task: Task | None

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "batch pos"]:
        """Prompts of equally many words, with the beginning. A `ValueError` for a word not in the plan."""
        ids = {word: n for n, word in enumerate(self.plan.words)}
        rows = [text.split() for text in texts]
        unknown = sorted({word for row in rows for word in row if word not in ids})
        if unknown:
            raise ValueError(f"The plan has no word {', '.join(unknown)}. It has {', '.join(ids)}.")
        if not rows or len({len(row) for row in rows}) > 1:
            raise ValueError("Give prompts of equally many words, and at least one.")
        if len(rows[0]) >= self.plan.positions:
            raise ValueError(f"A prompt of this plan has at most {self.plan.positions - 1} words.")
        return torch.tensor([[0, *(ids[word] for word in row)] for row in rows])

    def prompts(self, count: int = 32, *, corruption: str = "flip", seed: int = 0) -> Prompted:
        """Prompts by chance, in balanced pairs where the task has roles to exchange.

        corruption: "flip", the corrupted prompt asks for the rival; "third", for neither of the two
        """
        if self.task is None:
            raise ValueError("This plan is your own, and so are its prompts: `tokens` makes ids of them.")
        at_least("count", count, 2)
        one_of("corruption", corruption, CORRUPTIONS)
        rows = self.task.rows(count, torch.Generator().manual_seed(seed))
        words = [*self.plan.words]
        clean, corrupted = (
            self.tokens([" ".join(getattr(row, kind)) for row in rows]) for kind in ("clean", corruption)
        )
        answers = [[words.index(getattr(row, name)) for row in rows] for name in ("answer", "rival")]
        return Prompted(clean, corrupted, logit_difference(*answers))

    @cached_property
    def truth(self) -> Bool[Tensor, "layer head"]:
        """Which heads the answer depends on."""
        return self._marked(True)

    @cached_property
    def open(self) -> Bool[Tensor, "layer head"]:
        """Heads of which one may think either way, say a backup that sleeps: not to be judged by."""
        return self._marked(None)

    def true_edges(self, scores: Scores) -> Bool[Tensor, "sender reader"]:
        """Which of the edges that `edge_attribution` scores are there."""
        senders, readers = scores.labels["sender"], scores.labels["reader"]
        found = torch.zeros(len(senders), len(readers), dtype=torch.bool)
        for sender, reader, into in edges_of(self.plan):
            found[senders.index(self._called(sender)), readers.index(self._called(reader, into))] = True
        return found

    def true_nodes(self, scores: Scores) -> Bool[Tensor, "node"]:
        """Which of some nodes ("node", as of `by_node`) the answer depends on: heads and MLPs."""
        return self._of_nodes(scores, True)

    def open_nodes(self, scores: Scores) -> Bool[Tensor, "node"]:
        """Nodes not to be judged by: what sleeps, and the embedding, from which all comes."""
        embedded = [name == "embed" for name in scores.labels["node"]]
        return self._of_nodes(scores, None) | torch.tensor(embedded)

    def open_edges(self, scores: Scores) -> Bool[Tensor, "sender reader"]:
        """Edges not to be judged by: those of open nodes, and those that would run backwards."""
        known = readers(self.model)
        senders, names = scores.labels["sender"], scores.labels["reader"]
        asleep = {self._called(part.name) for part in self._parts() if part.truth is None}
        every = writers(self.model)
        backwards = [[every.index(sender) >= known[name][3] for name in names] for sender in senders]
        closed = [name in asleep or name == "embed" for name in senders]
        theirs = [name.rpartition(" ")[0] in asleep for name in names]
        return torch.tensor(backwards) | torch.tensor(closed)[:, None] | torch.tensor(theirs)

    def _parts(self) -> tuple[Head | Table, ...]:
        return (*self.plan.heads, *self.plan.tables)

    def _of_nodes(self, scores: Scores, truth: bool | None) -> Bool[Tensor, "node"]:
        these = {self._called(part.name) for part in self._parts() if part.truth is truth}
        return torch.tensor([name in these for name in scores.labels["node"]])

    def _called(self, name: str, into: str = "") -> str:
        """The name of a part, or of what it reads, in scores of edges."""
        if name == "logits":
            return name
        part = self.plan.part(name)
        if not isinstance(part, Head):
            return f"mlp {part.layer}" + " in" * bool(into)
        layer, head = self.heads[name]
        return f"{layer}.{head} {into}".rstrip()

    def _marked(self, truth: bool | None) -> Bool[Tensor, "layer head"]:
        marked = torch.zeros(self.plan.layers, self.plan.slots, dtype=torch.bool)
        for head in self.plan.heads:
            marked[self.heads[head.name]] = head.truth is truth
        return marked


def planted(
    task: str | Plan = "ioi", trap: str | Callable[[Plan], Plan] = "plain", *, seed: int = 0
) -> Planted:
    """A model with a circuit of known heads, in a tenth of a second.

    task: "ioi" (two names, one of them again), "induction" (A B … A), "sum" (two digits modulo five, with an
          MLP); or a plan of your own, which has no prompts of ours
    trap: "plain", or one that fools some method: see `TRAPS`; or a function that takes a plan and gives one
    seed: of the places of the heads and of what the others do
    """
    if not isinstance(task, Plan):
        one_of("task", task, TASKS)
    if not callable(trap):
        one_of("trap", trap, TRAPS)
    given = None if isinstance(task, Plan) else TASKS[task]
    untrapped = task if isinstance(task, Plan) else TASKS[task].plan()
    plan = (TRAPS[trap] if isinstance(trap, str) else trap)(untrapped)
    if not isinstance(plan, Plan):
        raise TypeError(f"The trap gave a {type(plan).__name__}; it takes a plan and gives a plan.")
    model, heads = compiled(plan, seed=seed)
    return Planted(model, plan, heads, given)


def score_against(
    scores: Scores, truth: Bool[Tensor, "*place"], *, excluded: Bool[Tensor, "*place"] | None = None
) -> dict[str, float]:
    """How well the sizes of some scores tell true places from others.

    auroc:             the probability that a true place has a larger score than a false one
    average precision: how pure the top of the list is, over all of its lengths
    weakest true, strongest false: as shares of the largest score. A usual cut at a tenth of the largest takes
                       in what is above 0.1. These two say how far the method is from a mistake

    excluded: places that do not count. A `ValueError` without true places, or without others
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    sizes = scores.values.abs()
    if truth.shape != sizes.shape:
        raise ValueError(f"The truth is of {tuple(truth.shape)}, and the scores of {tuple(sizes.shape)}.")
    counts = torch.ones_like(truth) if excluded is None else ~excluded
    sizes, truth = sizes[counts].double(), truth[counts]
    if not 0 < int(truth.sum()) < len(truth):
        raise ValueError("Scores are judged by true places and by others, and one of the two is missing.")
    largest = float(sizes.max())
    if not largest > 0:
        raise ValueError("All scores are 0: there is nothing to judge.")
    return {
        "auroc": float(roc_auc_score(truth, sizes)),
        "average precision": float(average_precision_score(truth, sizes)),
        "weakest true": float(sizes[truth].min()) / largest,
        "strongest false": float(sizes[~truth].max()) / largest,
    }
