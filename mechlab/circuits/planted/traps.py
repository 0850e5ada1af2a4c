"""Traps: changes of a plan that leave what the model does as it is, and fool some way to look for its parts.

Each takes a plan and gives another. A part that does not matter has truth False; one that sleeps, None.
"""

from collections.abc import Callable
from dataclasses import replace

from mechlab.circuits.planted.plan import ONE, Head, Match, Move, Plan, reads_of, writes_of

AGAIN = " again"  # of a second head that does the same


def plain(plan: Plan) -> Plan:
    """No trap."""
    return plan


def either(plan: Plan) -> Plan:
    """OR: two first heads do the same, and each of them is enough."""
    first = _first(plan)
    return replace(plan, heads=(*plan.heads, replace(first, name=first.name + AGAIN)))


def both(plan: Plan) -> Plan:
    """AND: two first heads of half the strength, and one of them is not enough for who reads them."""
    first = _first(plan)
    half = replace(first, move=_turned(first, 0.5))
    heads = [_firmer(head, {*writes_of(first)}) for head in plan.heads if head is not first]
    return replace(plan, heads=(half, replace(half, name=first.name + AGAIN), *heads))


def backup(plan: Plan) -> Plan:
    """A second last head, a layer later, that wakes up when the first one did not say that it was there."""
    last = _last(plan)
    loud = replace(last, move=(*last.move, Move(ONE, "done")))
    waits = (*last.match, Match("done", "begin", 15.0))
    sleeps = Head("backup", last.layer + 1, waits, last.move, truth=None)
    heads = [loud if head is last else head for head in plan.heads]
    layers = max(plan.layers, last.layer + 2)
    return replace(plan, heads=(*heads, sleeps), channels={**plan.channels, "done": 1}, layers=layers)


def saturated(plan: Plan) -> Plan:
    """All attention four times as sharp: nothing changes but slopes, which are next to nothing."""
    sharp = lambda head: replace(head, match=[replace(m, gain=4 * m.gain) for m in head.match])
    return replace(plan, heads=[sharp(head) for head in plan.heads])


def dialled(plan: Plan, gain: float) -> Plan:
    """All attention scores times a gain: the dial of which `saturated` is one setting."""
    turn = lambda head: replace(head, match=[replace(m, gain=gain * m.gain) for m in head.match])
    return replace(plan, heads=[turn(head) for head in plan.heads])


def superposed(plan: Plan) -> Plan:
    """The codes of the words share fewer dimensions than there are words: none has one of its own."""
    room = len(plan.words) - max(1, len(plan.words) // 4)
    names = [name for name, size in plan.sizes.items() if size == len(plan.words)]
    return replace(plan, room=dict.fromkeys(names, room))


def negative(plan: Plan) -> Plan:
    """A head that writes half of the answer away again, as part of the algorithm."""
    last = _last(plan)
    if plan.answer not in writes_of(last):
        raise ValueError("This trap needs a head that writes the answer, and in this plan an MLP does.")
    return replace(plan, heads=(*plan.heads, replace(last, name="negative", move=_turned(last, -0.5))))


def constant(plan: Plan) -> Plan:
    """A head whose constant the last head needs in order not to look at the beginning. It says nothing."""
    last = _last(plan)
    if not last.layer:
        raise ValueError("This trap needs a head behind layer 0, and this plan has none.")
    says = Head("constant", 0, (Match(ONE, "begin"),), (Move("begin", "needed"),), truth=False)
    sinks = [*(m for m in last.match if m.key != "begin"), Match(ONE, "begin", 7.5)]
    needs = replace(last, match=[*sinks, Match("needed", "begin", -5.0)])
    heads = [needs if head is last else head for head in plan.heads]
    return replace(plan, heads=(says, *heads), channels={**plan.channels, "needed": 1})


def decoy(plan: Plan) -> Plan:
    """Beside each true head one that looks at the same, and writes where nobody reads."""
    channels, copies = {**plan.channels}, []
    for head in plan.heads:
        unread = {move.write: f"{move.write} unread by {head.name}" for move in head.move}
        channels |= {new: plan.sizes[old] for old, new in unread.items()}
        move = [replace(move, write=unread[move.write]) for move in head.move]
        copies.append(replace(head, name=f"decoy of {head.name}", move=move, truth=False))
    return replace(plan, heads=(*plan.heads, *copies), channels=channels)


def cancelling(plan: Plan) -> Plan:
    """Two more last heads, one for the answer and one against it: together nothing."""
    last = _last(plan)
    pair = [
        replace(last, name=name, move=_turned(last, gain), truth=False)
        for name, gain in (("for", 1.0), ("against", -1.0))
    ]
    return replace(plan, heads=(*plan.heads, *pair))


def position(plan: Plan) -> Plan:
    """A head that says a little of what stands at one place, whatever is asked: for and against in turn."""
    looks = Match(ONE, "fixed place", 10.0)
    layer = plan.layers - 1
    says = Head("position", layer, (looks,), (Move("token", plan.answer, 0.2),))
    return replace(plan, heads=(*plan.heads, says), places={**plan.places, "fixed place": (1,)})


def gated_mlp(plan: Plan) -> Plan:
    """The table's rules as products of two codes, act(gate) · up: either factor alone gives nothing."""
    if not plan.tables:
        raise ValueError("This trap needs an MLP that does something, and this plan has none.")
    return replace(plan, gated=True)


TRAPS: dict[str, Callable[[Plan], Plan]] = {
    "plain": plain,
    "or": either,
    "and": both,
    "backup": backup,
    "saturated": saturated,
    "superposed": superposed,
    "negative": negative,
    "constant": constant,
    "decoy": decoy,
    "cancel": cancelling,
    "position": position,
    "gated": gated_mlp,
}


def _first(plan: Plan) -> Head:
    return min(plan.heads, key=lambda head: head.layer)


def _last(plan: Plan) -> Head:
    """The head that writes the answer, or else the last one."""
    says = [head for head in plan.heads if plan.answer in writes_of(head)]
    return says[0] if says else max(plan.heads, key=lambda head: head.layer)


def _turned(head: Head, gain: float) -> list[Move]:
    return [replace(move, gain=gain * move.gain) for move in head.move]


def _firmer(head: Head, channels: set[str]) -> Head:
    """A head that no longer looks for half of a code: its sink is nearly as strong as a whole one."""
    if not channels & {*reads_of(head)}:
        return head
    return replace(head, match=[replace(m, gain=3.75) if m.key == "begin" else m for m in head.match])
