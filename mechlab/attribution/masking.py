"""A prompt of which some tokens are replaced: the question that every perturbation method asks the model.

Tokens are players. A mask gives each player a number: 1 = the token stands as in `base`, 0 = it is replaced
by `source`, in between = that far along the line from one embedding to the other. The value of a mask is the
metric of the prompt it makes. Occlusion, LIME, SHAP and Shapley values ask for the values of whole masks, and
gradient methods for slopes of the same function; so what they say can be compared.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.metrics import Metric, per_prompt
from mechlab.prompts import PromptError, single_token

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Tokens = Int[Tensor, "batch pos"]
Source = Int[Tensor, "its_batch its_pos"] | Float[Tensor, "its_batch its_pos d_model"]  # ids, or embeddings
CHUNK = 256  # masks run together: more are hardly faster, and cost memory
FIXED = 60  # what calling the model costs, however few the tokens, counted in tokens (0.1 s here)


def baseline_tokens(
    model: "TransformerBridge", base: Tokens, by: str = ",", *, keep: tuple[int, ...] = (0,)
) -> Tokens | Float[Tensor, "batch pos d_model"]:
    """The baseline of an attribution: `base` with every token replaced, except at the positions in `keep`.

    by: a word of one token, such as "," or "<|endoftext|>"; or "mean" or "zero", which replace the embedding
    by the mean of all embeddings, or by zeros: vectors that no token has. Position 0 is kept, since without
    its first token this kind of model loses its footing everywhere.
    """
    kept = [position % base.shape[1] for position in keep]
    if by not in ("mean", "zero"):
        source = torch.full_like(base, single_token(model, by))
        source[:, kept] = base[:, kept]
        return source
    embedding = model.embed(base).detach()
    vector = model.W_E.detach().mean(0) if by == "mean" else torch.zeros_like(embedding[0, 0])
    source = vector.expand_as(embedding).clone()
    source[:, kept] = embedding[:, kept]
    return source


@dataclass
class Game:
    """Prompts whose tokens can be replaced one by one. Make one with `input_game`.

    players:  the positions at which base and source differ in any prompt
    full:     the metric of each prompt as it is;  empty: the metric with every player replaced
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
        self.full = per_prompt(self.metric, logits)
        # A metric that reads only the last position needs no other logits, and lets prefixes be shared.
        try:
            self.last_only = torch.allclose(self.metric(logits[:, -1:]), self.full, atol=1e-6)
        except (IndexError, RuntimeError):
            self.last_only = False
        without = self.model.original_model(inputs_embeds=self.x_source).logits
        self.empty = per_prompt(self.metric, without)
        if self.last_only:  # sharing needs a model whose past can be cached; try it before relying on it
            self.shared = self._past_can_be_kept()

    def _past_can_be_kept(self) -> bool:
        """Run the prompts in two halves, the second on the kept past of the first: is the metric the same?"""
        from transformers import DynamicCache

        model: Any = self.model.original_model  # of transformers
        half = self.x.shape[1] // 2
        past = {"past_key_values": DynamicCache(config=model.config), "use_cache": True, "logits_to_keep": 1}
        for part in (self.x[:, :half], self.x[:, half:]):
            logits = model(inputs_embeds=part, **past).logits
        return torch.allclose(self.metric(logits), self.full, atol=1e-3)

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
        unique, inverse = masks.to(self.x).unique(dim=0, return_inverse=True)
        run = self._run_shared if self.shared else self.run
        return torch.cat([run(row, chunk) for chunk in unique.split(CHUNK)])[inverse].to(masks.device)

    def run(self, row: int, masks: Float[Tensor, "mask player"]) -> Float[Tensor, "mask"]:
        """The metric under each mask, in one batched pass through which gradients flow."""
        last = {"logits_to_keep": 1} if self.last_only else {}
        logits = self.model.original_model(inputs_embeds=self.mixed(row, masks.to(self.x)), **last).logits
        return self._measure(row, logits).to(masks.device)

    def mixed(self, row: int, masks: Float[Tensor, "mask player"]) -> Float[Tensor, "mask pos d_model"]:
        """Embeddings of prompt `row` with each player as far from the source as its mask says."""
        share = torch.ones(len(masks), self.base.shape[1], device=masks.device, dtype=self.x.dtype)
        share = share.index_copy(1, torch.tensor(self.players, device=masks.device), masks)
        return self.x_source[row] + share[..., None] * (self.x[row] - self.x_source[row])

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
        return torch.stack([self.metric(one.expand(len(self), -1, -1))[row] for one in logits])


def input_game(
    model: "TransformerBridge",
    base: Int[Tensor, "*batch pos"],
    source: Int[Tensor, "*its_batch its_pos"] | Float[Tensor, "*its_batch its_pos d_model"],
    metric: Metric,
) -> Game:
    """Check prompts, baseline and metric, and make the `Game` that the attribution methods play.

    Raises `PromptError` for prompts of unequal length (padding would be given a share of the answer), for a
    source of another length and for one that is equal to base; `ValueError` for a metric that returns one
    number for the whole batch.
    """
    _refuse_padding(model, base)
    base = base.to(model.cfg.device)
    source = source.to(model.cfg.device)
    if source.shape[:2] != base.shape:
        raise PromptError(
            f"base is {tuple(base.shape)} [prompts, tokens] and source {tuple(source.shape[:2])}. Every "
            "token needs its own replacement: `baseline_tokens(model, base)` makes a source that fits."
        )
    with torch.no_grad():
        x = model.embed(base)
        x_source = source.to(x) if source.is_floating_point() else model.embed(source)
    players = ((x - x_source).abs().amax(-1) > 0).any(0).nonzero()[:, 0].tolist()
    if not players:
        raise PromptError("base and source are the same prompts, so there is nothing to attribute.")
    return Game(model, base, x, x_source, metric, players)


def _refuse_padding(model: "TransformerBridge", base: Int[Tensor, "*batch pos"]) -> None:
    """Unequal prompts are padded by `to_tokens`: their rows end (or begin) with different counts of it."""
    if base.ndim != 2:
        raise PromptError(
            f"base is {tuple(base.shape)}; it must be [prompts, tokens]. Use `model.to_tokens(...)`."
        )
    pad = getattr(model.tokenizer, "pad_token_id", None)
    if pad is None or len(base) < 2:
        return
    for rows, where in ((base.flip(1), "end"), (base, "beginning")):
        counts = (rows == pad).long().cumprod(1).sum(1).tolist()
        if len(set(counts)) > 1:
            raise PromptError(
                f"The prompts have different lengths: they are padded at the {where} with {counts} tokens. "
                "Padding would be given a share of the answer. Run prompts of one length together, the "
                "others in calls of their own."
            )


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
