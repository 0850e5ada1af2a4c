"""From a plan to a GPT-2 that does what it says: weights written down, nothing trained.

Each channel is a set of directions of one random orthonormal basis, all orthogonal to (1, …, 1). So the
norm's centring does nothing, and no axis of the stream gives the plan away. One channel holds a long constant
at every position, which makes what the norm divides by nearly the same everywhere. Heads and neurons that the
plan does not use are not empty: they do something by chance, and write a little of it to the answer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.planted import gated
from mechlab.circuits.planted.plan import ONE, Head, Match, Plan, Table
from mechlab.loading.models import wrap

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

LENGTH = 30.0  # of the constant: the norm's scale then moves by less than a hundredth
OTHERS = 8  # neurons in each MLP that the plan does not use
SHARP = 10.0  # a neuron's input when its rule holds: far into the straight part of its activation


@dataclass(frozen=True)
class Codes:
    """Where the channels of a plan stand in the stream: [code, d_model] for each."""

    of: dict[str, Float[Tensor, "code d_model"]]
    undo: float  # what a stream behind the norm is multiplied by to be itself again

    @classmethod
    def drawn(cls, plan: Plan, width: int, chance: torch.Generator) -> "Codes":
        """Directions by chance; a channel with less room than codes has unit vectors that overlap."""
        needed = sum(plan.dims(name) for name in plan.sizes)
        if needed > width - 1:
            raise ValueError(f"The channels need {needed} dimensions, and the stream has {width - 1}.")
        basis = torch.randn(width, width, generator=chance, dtype=torch.float64)
        basis[:, 0] = 1.0
        basis = torch.linalg.qr(basis)[0].T[1:]  # orthogonal to (1, …, 1)
        found, begin = {}, 0
        for name, count in plan.sizes.items():
            room = plan.dims(name)
            within = torch.eye(count, dtype=torch.float64) if room == count else _apart(count, room, chance)
            found[name] = (within @ basis[begin : begin + room]).float()
            begin += room
        found[ONE] = found[ONE] * LENGTH
        return cls(found, LENGTH / width**0.5)

    def read(self, name: str) -> Float[Tensor, "d_model code"]:
        """What finds the codes of a channel in a stream behind the norm: 1 where one is there."""
        rows = self.of[name]
        return self.undo * rows.T / rows.pow(2).sum(1)

    def write(self, name: str) -> Float[Tensor, "code d_model"]:
        return self.of[name]


def _apart(count: int, room: int, chance: torch.Generator) -> Float[Tensor, "code room"]:
    """More unit vectors than dimensions, as far from one another as a few hundred steps bring them."""
    rows = torch.randn(count, room, generator=chance, dtype=torch.float64)
    for _ in range(300):
        rows = torch.nn.functional.normalize(rows, dim=1)
        overlap = (rows @ rows.T).fill_diagonal_(0)
        rows = rows - 0.5 * overlap.pow(3) @ rows
    return torch.nn.functional.normalize(rows, dim=1)


def compiled(
    plan: Plan, *, seed: int = 0, noise: float = 0.02
) -> tuple["TransformerBridge", dict[str, tuple[int, int]]]:
    """A model that does what the plan says, and where its heads are: name -> (layer, head).

    noise: how much the heads and neurons that the plan does not use write to the answer
    seed:  of the directions, of the places of the heads, and of those others
    """
    chance = torch.Generator().manual_seed(seed)
    width, neurons = _width(plan), OTHERS + max([0, *(len(table.rules) for table in plan.tables)])
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        hf_model: Any = gated.llama(plan, width, neurons) if plan.gated else _gpt2(plan, width, neurons)
    codes, where = Codes.drawn(plan, width, chance), {}
    body = hf_model.model if plan.gated else hf_model.transformer
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            if "attn." in name or "mlp." in name:
                parameter.zero_()
        _embeddings(plan, codes, body)
        hf_model.lm_head.weight.copy_(plan.gain * codes.read(plan.answer).T)
        for layer, block in enumerate(body.layers if plan.gated else body.h):
            attention = block.self_attn if plan.gated else block.attn
            where |= _put_heads(plan, codes, layer, attention, noise, chance)
            _neurons_by_chance(plan, codes, block.mlp, noise, chance)
            for table in (table for table in plan.tables if table.layer == layer):
                (gated.put_table if plan.gated else _table)(codes, block.mlp, table)
    return wrap(hf_model, _tokenizer(plan), name="planted"), where


def _width(plan: Plan) -> int:
    """As wide as the channels and the heads need; a head is of an even size, since rotation takes pairs."""
    head = max([gated.turned(plan) if plan.gated else 1, *(_room(plan, head) for head in plan.heads)])
    size = max(head, sum(map(plan.dims, plan.sizes)) // plan.slots + 1)
    return plan.slots * (size + size % 2 * plan.gated)


def _gpt2(plan: Plan, width: int, neurons: int) -> "GPT2LMHeadModel":
    """An empty GPT-2 of the plan's size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(plan.words),
        n_layer=plan.layers,
        n_head=plan.slots,
        n_embd=width,
        n_inner=neurons,
        n_positions=plan.positions,
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config)


def _put_heads(
    plan: Plan, codes: Codes, layer: int, attention, noise: float, chance: torch.Generator
) -> dict[str, tuple[int, int]]:
    """All heads of a layer, those of the plan at places by chance: name -> (layer, head)."""
    here: list[Head | None] = [head for head in plan.heads if head.layer == layer]
    here += [None] * (plan.slots - len(here))
    where, width = {}, codes.write(ONE).shape[1]
    for slot, head in zip(torch.randperm(plan.slots, generator=chance).tolist(), here, strict=True):
        if head is None:
            parts = _by_chance(plan, codes, width // plan.slots, noise, chance)
        else:
            parts, where[head.name] = _head(plan, codes, head, width), (layer, slot)
        (gated.put_head if plan.gated else _put_head)(attention, slot, width // plan.slots, parts)
    return where


def _room(plan: Plan, head: Head) -> int:
    """How many dimensions of a head its matches and its moves need."""
    turned = gated.turned(plan) if plan.gated else 0
    codes = sum(plan.sizes[m.query] for m in head.match if not plan.gated or m.query != "pos")
    return max(turned + codes, sum(plan.sizes[m.read] for m in head.move))


def _embeddings(plan: Plan, codes: Codes, body) -> None:
    """What words and positions bring; a gated plan has no positions to add."""
    tokens = codes.write("token").clone()
    tokens[0] = 0  # the beginning says nothing: heads look there when they look for nothing
    for flag, words in plan.flags.items():
        tokens[[list(plan.words).index(word) for word in words]] += codes.write(flag)
    if plan.gated:
        body.embed_tokens.weight.copy_(tokens + codes.write(ONE))
        return
    body.wte.weight.copy_(tokens)
    places = codes.write("pos") + codes.write(ONE)
    for flag, here in plan.places.items():
        places[[*here]] += codes.write(flag)
    body.wpe.weight.copy_(places)
    body.ln_f.weight.fill_(1.0), body.ln_f.bias.zero_()


Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # Q, K, V [d_model, room] and O [room, d_model]


def _head(plan: Plan, codes: Codes, head: Head, width: int) -> Parts:
    size = width // plan.slots
    Q, K, V = (torch.zeros(width, size) for _ in range(3))
    out, free = torch.zeros(size, width), gated.still(plan, size) if plan.gated else [*range(size)]
    for match in head.match:
        if plan.gated and "pos" in (match.query, match.key):
            query, key = gated.offset(plan, codes, match, size)
        else:
            mine, free = free[: plan.sizes[match.query]], free[plan.sizes[match.query] :]
            query, key = torch.zeros(width, size), torch.zeros(width, size)
            query[:, mine] = codes.read(match.query) @ _shifted(plan, match)
            key[:, mine] = codes.read(match.key)
        Q += match.gain * size**0.5 * query
        K = torch.where(key != 0, key, K)  # two distances have the same keys
    at = 0
    for move in head.move:
        count = plan.sizes[move.read]
        V[:, at : at + count] = codes.read(move.read)
        out[at : at + count] = move.gain * _as(codes.write(move.write), count)
        at += count
    return Q, K, V, out


def _shifted(plan: Plan, match: Match) -> Float[Tensor, "query key"]:
    """Which code of the key each code of the query looks for."""
    queries, keys = plan.sizes[match.query], plan.sizes[match.key]
    if queries != keys:
        raise ValueError(f"{match.query} has {queries} codes and {match.key} {keys}: they cannot be matched.")
    return torch.diag_embed(torch.ones(queries - abs(match.shift)), match.shift)


def _as(rows: Float[Tensor, "code d_model"], count: int) -> Float[Tensor, "count d_model"]:
    if len(rows) != count:
        raise ValueError(f"A move reads {count} codes and writes to a channel of {len(rows)}.")
    return rows


def _by_chance(plan: Plan, codes: Codes, size: int, noise: float, chance: torch.Generator) -> Parts:
    """A head that looks somewhere, by what stands there, and writes something of it to the answer."""
    words = codes.write(plan.answer)
    out = noise * torch.randn(size, len(words), generator=chance) / size**0.5 @ words
    Q, K, V = (_content(codes, size, scale, chance) for scale in (2.0, 2.0, 1.0))
    return Q, K, V, out


def _neurons_by_chance(plan: Plan, codes: Codes, mlp, noise: float, chance: torch.Generator) -> None:
    """The last neurons of an MLP: they read something and write something to the answer."""
    words = codes.write(plan.answer)
    read = _content(codes, OTHERS, 1.0, chance)
    written = noise * torch.randn(OTHERS, len(words), generator=chance) @ words
    if plan.gated:
        mlp.gate_proj.weight[-OTHERS:], mlp.down_proj.weight[:, -OTHERS:] = read.T, written.T
        mlp.up_proj.weight[-OTHERS:] = _content(codes, OTHERS, 1.0, chance).T
    else:
        mlp.c_fc.weight[:, -OTHERS:], mlp.c_proj.weight[-OTHERS:] = read, written


def _content(codes: Codes, size: int, scale: float, chance: torch.Generator) -> Float[Tensor, "d_model size"]:
    """Weights by chance that read all but the constant."""
    constant = codes.write(ONE)[0] / LENGTH
    drawn = scale * codes.undo * torch.randn(len(constant), size, generator=chance)
    return drawn - torch.outer(constant, constant @ drawn)


def _put_head(attention, slot: int, size: int, parts: Parts) -> None:
    Q, K, V, out = parts
    width, here = len(Q), slice(slot * size, (slot + 1) * size)
    for n, matrix in enumerate((Q, K, V)):
        attention.c_attn.weight[:, n * width :][:, here] = matrix
    attention.c_proj.weight[here] = out


def _table(codes: Codes, mlp, table: Table) -> None:
    """Each rule a neuron: as many inputs as it asks for, less what all but one would give."""
    for n, rule in enumerate(table.rules):
        for name, code in rule.when.items():
            mlp.c_fc.weight[:, n] += 2 * SHARP * codes.read(name)[:, code]
        mlp.c_fc.bias[n] = -2 * SHARP * (len(rule.when) - 0.5)
        for name, (code, size) in rule.write.items():
            mlp.c_proj.weight[n] += size / SHARP * codes.write(name)[code]


def _tokenizer(plan: Plan) -> "PreTrainedTokenizerFast":
    """One token a word; every prompt begins with the first word of the plan."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    first = plan.words[0]
    made = Tokenizer(WordLevel({word: n for n, word in enumerate(plan.words)}, unk_token=first))
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(f"{first} $A", special_tokens=[(first, 0)])
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), first)
    return PreTrainedTokenizerFast(tokenizer_object=made, name_or_path="planted", add_bos_token=True, **marks)
