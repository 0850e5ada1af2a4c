"""A prompt of which some tokens are replaced: the question that every perturbation method asks the model.

Tokens are players. A mask gives each player a number: 1 = the token stands as in `base`, 0 = it is replaced
by `source`, in between = that far along the line from one embedding to the other. The value of a mask is the
metric of the prompt it makes. Occlusion, LIME, SHAP and Shapley values ask for the values of whole masks, and
gradient methods for slopes of the same function; so what they say can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import outside_inference
from mechlab.attribution.readout import close, wide
from mechlab.metrics import Metric, PositionMetric, fitted, per_prompt
from mechlab.prompts import PromptError, single_token
from mechlab.tokens import Batch, Pair, Prompts, Task, batch_of, batches_of, first_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Ids = Int[Tensor, "its_pos"] | Int[Tensor, "its_batch its_pos"] | Sequence[int]
Source = str | Sequence[str] | Ids | Pair | Task | Float[Tensor, "its_batch its_pos d_model"]  # or embeddings
CHUNK = 256  # masks run together: more are hardly faster, and cost memory
FIXED = 60  # what calling the model costs, however few the tokens, counted in tokens (0.1 s here)
ONE_BY_ONE = "each token gets a score of its own, which padding must not share"


def begins(batch: Batch) -> int:
    """How many tokens stand before the texts: 1 if each begins with the model's first token, else 0."""
    if not first_tokens(batch.model):
        return 0
    first = batch.model.to_tokens("")[0, 0].to(batch.tokens)
    return int((batch.tokens[:, 0] == first).all())


def baseline_tokens(
    model: "TransformerBridge", base: Prompts, by: str = ",", *, keep: Sequence[int] | None = None
) -> Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_model"]:
    """The baseline of an attribution: `base` with every token replaced, except at the positions in `keep`.

    by:   a word of one token, such as "," or "<|endoftext|>"; or "mean" or "zero", which replace the
          embedding by the mean of all embeddings, or by zeros: vectors that no token has
    keep: -1 is the last position. By default the model's first token is kept, where the prompts begin with
          it, since without it this kind of model loses its footing everywhere. Models whose tokenizer adds
          none (Qwen, Pythia, Bloom) find their footing in whatever stands at position 0: keep=(0,) keeps it

    Raises a `PromptError` for prompts of unequal length and for a position that is not there.
    """
    batch = batch_of(model, base)
    tokens = batch.one_length(ONE_BY_ONE)
    keep = range(begins(batch)) if keep is None else keep
    kept = [int(batch.position(position, "A position in keep")[0]) for position in keep]
    if by not in ("mean", "zero"):
        source = torch.full_like(tokens, single_token(model, by))
        source[:, kept] = tokens[:, kept]
        return source
    with torch.no_grad():
        embedding = model.embed(tokens)
        source = torch.zeros_like(embedding) + (_mean_embedding(model).to(embedding) if by == "mean" else 0)
    source[:, kept] = embedding[:, kept]
    return source


def _mean_embedding(model: "TransformerBridge") -> Float[Tensor, "d_model"]:
    """The mean of all tokens' embeddings as the model makes them; some (Gemma) scale the rows of W_E."""
    every = torch.arange(model.cfg.d_vocab, device=model.cfg.device)
    sums = [model.embed(some[None])[0].double().sum(0) for some in every.split(8192)]
    return torch.stack(sums).sum(0) / len(every)


@dataclass
class Game:
    """Prompts whose tokens can be replaced one by one. Make one with `input_game`.

    players:  the positions at which base and source differ in any prompt
    full:     the metric of each prompt as it is;  empty: the metric with every player replaced

    A prompt is run from its embeddings; a model of which that is not the same run is refused.
    """

    model: "TransformerBridge"
    base: Int[Tensor, "batch pos"]
    x: Float[Tensor, "batch pos d_model"]
    x_source: Float[Tensor, "batch pos d_model"]
    metric: Metric
    players: list[int]
    full: Float[Tensor, "batch"] = field(init=False)
    empty: Float[Tensor, "batch"] = field(init=False)
    last_only: bool = field(init=False, default=False)
    shared: bool = field(init=False, default=False)

    @torch.no_grad()
    def __post_init__(self):
        logits = self.model(self.base)
        again = self.model.original_model(inputs_embeds=self.x).logits
        if not close(again, logits, self.model):
            raise ValueError(
                "This model makes something else of its own embeddings than of the tokens, so no token can "
                "be replaced by another embedding."
            )
        self.full = per_prompt(self.metric, wide(logits)).float()
        without = self.model.original_model(inputs_embeds=self.x_source).logits
        self.empty = per_prompt(self.metric, wide(without)).float()
        # A metric that reads only the last position needs no other logits, and lets prefixes be shared.
        self.last_only = self._reads_the_last()
        if self.last_only and isinstance(self.metric, PositionMetric):
            # sharing needs a model whose past can be cached; try it before relying on it
            self.metric = replace(self.metric, pos=-1)
            self.shared = self._past_can_be_kept(logits)

    def _reads_the_last(self) -> bool:
        """Whether the metric says that it reads the last position, and its logits can be made alone."""
        metric, last = self.metric, self.base.shape[1] - 1
        if not isinstance(metric, PositionMetric) or (
            metric.beside is not None and metric.beside.shape[1] != last + 1
        ):
            return False
        pos = torch.as_tensor(metric.pos)
        if not ((pos == -1) | (pos == last)).all():
            return False
        try:
            return self.model.original_model(inputs_embeds=self.x, logits_to_keep=1).logits.shape[1] == 1
        except TypeError:
            return False

    def _past_can_be_kept(self, whole: Float[Tensor, "batch pos d_vocab"]) -> bool:
        """Run the prompts in two halves, the second on the kept past of the first: same logits?"""
        from transformers import DynamicCache

        model: Any = self.model.original_model  # of transformers
        half = self.x.shape[1] // 2
        if not half:
            return False
        try:
            past = {
                "past_key_values": DynamicCache(config=model.config),
                "use_cache": True,
                "logits_to_keep": 1,
            }
            for part in (self.x[:, :half], self.x[:, half:]):
                logits = model(inputs_embeds=part, **past).logits
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        return close(logits[:, -1], whole[:, -1], self.model)

    def __len__(self) -> int:
        return len(self.base)

    @torch.no_grad()
    def values(self, row: int, masks: Float[Tensor, "mask player"]) -> Float[Tensor, "mask"]:
        """The metric of prompt `row` under each mask, in as few tokens as the model allows.

        A causal model computes a position from those before it. So masks that begin alike share the work of
        their beginning: for all 1,024 masks of ten players, about 2,200 tokens are run and not 11,264. Needs
        a metric that reads the last position only; any other is run mask by mask, in batches.
        """
        # unique sorts them: neighbours begin alike
        unique, inverse = wide(masks).to(self.x.device).unique(dim=0, return_inverse=True)
        run = self._run_shared if self.shared else self.run
        return torch.cat([run(row, chunk) for chunk in unique.split(CHUNK)])[inverse].to(masks.device)

    def run(self, row: int, masks: Float[Tensor, "mask player"]) -> Float[Tensor, "mask"]:
        """The metric under each mask, in one batched pass through which gradients flow."""
        return self.measured(row, self.mixed(row, masks)).to(masks.device)

    def measured(self, row: int, x: Float[Tensor, "mask pos d_model"]) -> Float[Tensor, "mask"]:
        """The metric of prompt `row` where its embeddings are these."""
        last = {"logits_to_keep": 1} if self.last_only else {}
        return self._measure(row, self.model.original_model(inputs_embeds=x, **last).logits)

    def mixed(self, row: int, masks: Float[Tensor, "mask player"]) -> Float[Tensor, "mask pos d_model"]:
        """Embeddings of prompt `row` with each player as far from the source as its mask says."""
        x, x_source = wide(self.x[row]), wide(self.x_source[row])
        masks = masks.to(x)
        share = torch.ones(len(masks), self.base.shape[1], device=x.device, dtype=x.dtype)
        share = share.index_copy(1, torch.tensor(self.players, device=x.device), masks)
        return (x_source + share[..., None] * (x - x_source)).to(self.x)

    def _run_shared(self, row: int, masks: Float[Tensor, "mask player"]) -> Float[Tensor, "mask"]:
        """Stretch by stretch, each distinct beginning once; the past is kept as keys and values."""
        from transformers import DynamicCache

        model: Any = self.model.original_model  # of transformers
        x = self.mixed(row, masks)
        cache = DynamicCache(config=model.config)
        past = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        beginnings = [self._beginnings(masks, end) for end in range(1, x.shape[1] + 1)]

        def logits(start: int, end: int) -> Float[Tensor, "beginning pos d_vocab"]:
            mine = beginnings[end - 1]
            first = torch.stack([(mine == n).nonzero()[0, 0] for n in range(int(mine.max()) + 1)])
            if start:
                cache.batch_select_indices(beginnings[start - 1][first])
            return model(inputs_embeds=x[first, start:end], **past).logits

        *earlier, last = cheapest_stretches([int(of.max()) + 1 for of in beginnings])
        for start, end in earlier:
            logits(start, end)
        return self._measure(row, logits(*last))[beginnings[-1]]

    def _beginnings(self, masks: Float[Tensor, "mask player"], end: int) -> Int[Tensor, "mask"]:
        """For each mask, the number of its beginning: masks with the same number agree before `end`."""
        decided = masks[:, : sum(place < end for place in self.players)]
        if not decided.shape[1]:
            return torch.zeros(len(masks), dtype=torch.long, device=masks.device)
        return decided.unique(dim=0, return_inverse=True)[1]

    def _measure(self, row: int, logits: Float[Tensor, "mask pos d_vocab"]) -> Float[Tensor, "mask"]:
        # The metric knows one answer per prompt, so each mask is shown to it as the whole batch.
        return torch.stack([self.metric(one.expand(len(self), -1, -1))[row] for one in wide(logits)]).float()


@outside_inference
def input_game(
    model: "TransformerBridge",
    base: Prompts,
    source: Source,
    metric: Metric,
) -> Game:
    """Check prompts, baseline and metric, and make the `Game` that the attribution methods play.

    Raises `PromptError` for prompts of unequal length (padding would be given a share of the answer), for a
    source of another length and for one that is equal to base; `ValueError` for a metric that returns one
    number for the whole batch.
    """
    batch = batch_of(model, base)
    tokens = batch.one_length(ONE_BY_ONE)
    with torch.no_grad():
        x = model.embed(tokens)
        x_source = _source(batch, source, x)
    players = ((x - x_source).abs().amax(-1) > 0).any(0).nonzero()[:, 0].tolist()
    if not players:
        raise PromptError("base and source are the same prompts, so there is nothing to attribute.")
    return Game(model, tokens, x, x_source, fitted(metric, batch), players)


def _source(
    batch: Batch, source: Source, x: Float[Tensor, "batch pos width"]
) -> Float[Tensor, "batch pos width"]:
    """What the tokens are replaced by, as embeddings."""
    given = isinstance(source, Tensor) and source.is_floating_point()
    theirs = source if given else batch_of(batch.model, source, what="source").tokens
    if theirs.shape[:2] != batch.tokens.shape:
        raise PromptError(
            f"base is {tuple(batch.tokens.shape)} [prompts, tokens] and source {tuple(theirs.shape[:2])}. "
            "Every token needs its own replacement: `baseline_tokens(model, base)` makes a source that fits."
        )
    if not given:
        return batch.model.embed(batches_of(batch.model, batch, source, "replacing tokens")[1].tokens)
    if theirs.shape != x.shape or not torch.isfinite(theirs).all():
        raise PromptError(
            f"source is {tuple(theirs.shape)}; embeddings of these prompts are {tuple(x.shape)}, all finite."
        )
    return theirs.to(x)


def cheapest_stretches(beginnings: list[int]) -> list[tuple[int, int]]:
    """Cut a prompt into stretches so that running each distinct beginning of each stretch once costs least.

    beginnings[i]: how many different beginnings of i + 1 tokens there are. A stretch costs a call of the
    model, and each of its tokens once for every beginning that reaches its end. One stretch = nothing shared.
    """
    best, came_from = [0], []
    for end, count in enumerate(beginnings, start=1):
        costs = [best[start] + FIXED + count * (end - start) for start in range(end)]
        best.append(min(costs))
        came_from.append(costs.index(best[-1]))
    stretches, end = [], len(beginnings)
    while end:
        stretches.append((came_from[end - 1], end))
        end = came_from[end - 1]
    return stretches[::-1]
