"""What is other where a plan becomes a Llama: gated MLPs, no biases, positions that are turned and not added.

A rule of two codes is a product here, act(gate) · up: the gate reads one of them and `up` the other. Heads
find positions by rotation. Their first pairs turn at the frequencies k / P of P positions, and the cosines of
all of these add up to 1 at one distance and 0 at all others. The other pairs do not turn.
"""

import math
from typing import TYPE_CHECKING

import torch

from mechlab.circuits.planted.plan import ONE, Match, Plan, Table, reads_of

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

    from mechlab.circuits.planted.compiling import Codes, Parts

SHARP = 10.0  # what a gate lets through when its code is there


def llama(plan: Plan, width: int, neurons: int) -> "LlamaForCausalLM":
    """An empty Llama of the plan's size, whose heads turn their first pairs as `offset` needs it."""
    from transformers import LlamaForCausalLM

    taken = [move.read for head in plan.heads for move in head.move]  # what a head only matches is turned
    if plan.places or "pos" in [*taken, *(name for table in plan.tables for name in reads_of(table))]:
        raise ValueError("In a gated plan positions are turned: nothing in the stream says where it is.")
    hf_model = LlamaForCausalLM(_config(plan, width, neurons))
    frequencies = hf_model.model.rotary_emb.inv_freq.zero_()
    frequencies[: _pairs(plan)] = 2 * math.pi * torch.arange(_pairs(plan)) / plan.positions
    return hf_model


def _config(plan: Plan, width: int, neurons: int) -> "LlamaConfig":
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(plan.words),
        hidden_size=width,
        intermediate_size=neurons,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.slots,
        num_key_value_heads=plan.slots,
        max_position_embeddings=plan.positions,
        hidden_act="relu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def _pairs(plan: Plan) -> int:
    """How many pairs of a head's numbers turn: one for each frequency up to half a turn a step."""
    return plan.positions // 2 + 1


def turned(plan: Plan) -> int:
    """How many of a head's numbers turn, two a pair."""
    return 2 * _pairs(plan)


def still(plan: Plan, size: int) -> list[int]:
    """Which of a head's numbers do not turn, and can hold codes."""
    pairs, half = _pairs(plan), size // 2
    return [*range(pairs, half), *range(half + pairs, size)]


def offset(plan: Plan, codes: "Codes", match: Match, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [d_model, size] that agree at one distance: 1 there, 0 elsewhere."""
    if (match.query, match.key) != ("pos", "pos"):
        raise ValueError("In a gated plan positions are turned: match them with one another, or not at all.")
    angle = 2 * math.pi * torch.arange(_pairs(plan)) / plan.positions * match.shift
    weight = torch.full((_pairs(plan),), 2 / plan.positions)
    weight[0] /= 2
    weight[-1] /= 2 - plan.positions % 2  # like the first it has no mirror image, where P is even
    one, query, key = codes.read(ONE)[:, 0], torch.zeros(size), torch.zeros(size)
    here, mate = slice(0, _pairs(plan)), slice(size // 2, size // 2 + _pairs(plan))
    query[here], query[mate], key[here] = weight * angle.cos(), weight * angle.sin(), 1.0
    return torch.outer(one, query), torch.outer(one, key)


def put_head(attention, slot: int, size: int, parts: "Parts") -> None:
    """Write a head's matrices where a Llama has them."""
    here = slice(slot * size, (slot + 1) * size)
    for name, matrix in zip("qkv", parts, strict=False):
        getattr(attention, f"{name}_proj").weight[here] = matrix.T
    attention.o_proj.weight[:, here] = parts[3].T


def put_table(codes: "Codes", mlp, table: Table) -> None:
    """Each rule a neuron: the gate lets one code through, `up` the other, and the product is both."""
    for n, rule in enumerate(table.rules):
        if len(rule.when) > 2:
            raise ValueError(f"A gated neuron multiplies two codes, and a rule of {table.name} has more.")
        (gate, code), *rest = rule.when.items()
        other, its = (rest or [(ONE, 0)])[0]
        mlp.gate_proj.weight[n] = SHARP * codes.read(gate)[:, code]
        mlp.up_proj.weight[n] = codes.read(other)[:, its]
        for name, (written, size) in rule.write.items():
            mlp.down_proj.weight[:, n] += size / SHARP * codes.write(name)[written]
