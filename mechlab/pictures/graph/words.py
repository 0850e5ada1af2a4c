"""What the pictures of a circuit say in words: names, the text twin, and what a trial has shown."""

import html

from mechlab.circuits.circuits import Circuit, Edge, Head
from mechlab.pictures import drawing
from mechlab.pictures.graph.trials import Trials
from mechlab.results import named

READS = {"q": "the queries of", "k": "the keys of", "v": "the values of"}


def in_words(circuit: Circuit, title: str = "Circuit", most: int = 8) -> str:
    """The picture in sentences: the heads and positions of each role, and the strongest edges."""
    layers = [layer for layer, _ in circuit.heads]
    where = f"layers {min(layers)} to {max(layers)}" if len({*layers}) > 1 else f"layer {layers[0]}"
    said = f"{title}: {len(layers)} head{'s' if len(layers) > 1 else ''} in {where}."
    for role, heads in circuit.roles.items():
        if heads:
            said += f" {role[:1].upper()}{role[1:]}: {named(sorted(heads))}, {acts(circuit, role)}."
    if circuit.mlps is not None:
        said += f" MLPs of layers {', '.join(map(str, circuit.mlps))}." if circuit.mlps else " No MLPs."
    edges = sorted(circuit.edges, key=lambda edge: -abs(edge.effect))
    if edges:
        listed = "; ".join(f"{named([e.sender])} into {reader(e)} ({e.effect:+.2f})" for e in edges[:most])
        said += f" {'The strongest of ' if len(edges) > most else ''}{len(edges)} edges: {listed}."
    return said


def reader(edge: Edge) -> str:
    """Who reads along an edge: "the queries of 23.0", "the logits"."""
    return "the logits" if edge.receiver is None else f"{READS[edge.into]} {named([edge.receiver])}"


def acts(circuit: Circuit, role: str) -> str:
    """Where a role acts, in words."""
    return f"at {' and '.join(circuit.at[role])}" if circuit.at.get(role) else "everywhere"


def described(circuit: Circuit, head: Head) -> str:
    """A head with its role and place: "23.3: copy suppression, at end"."""
    role = circuit.role(head)
    return f"{named([head])}: {role}, {acts(circuit, role)}"


def head_told(trials: Trials, head: Head | None) -> str:
    """A head in words: role and place, where it looks, who it reads and who reads it."""
    if head is None:
        return "<p><b>Choose a head</b>: click it, or go to it with Tab and press Enter.</p>"
    circuit = trials.circuit
    said = [f"<h3 style='margin:0 0 4px'>{html.escape(described(circuit, head))}</h3>"]
    for name, shares in trials.looks(head).items():
        listed = ", ".join(f"{other} {share:.2f}" for other, share in shares.items())
        said.append(f"From {name} it looks at: {listed}, elsewhere {max(0.0, 1 - sum(shares.values())):.2f}.")
    edges = sorted(circuit.edges, key=lambda edge: -abs(edge.effect))
    for into, kind in (("q", "queries"), ("k", "keys"), ("v", "values")):
        read = [
            f"{named([e.sender])} ({e.effect:+.2f})" for e in edges if (e.receiver, e.into) == (head, into)
        ]
        said += [f"Its {kind} read {', '.join(read)}."] if read else []
    by = [f"{reader(e)} ({e.effect:+.2f})" for e in edges if e.sender == head]
    said += [f"It is read by {', '.join(by)}."] if by else []
    if not any(head in (edge.sender, edge.receiver) for edge in edges):
        said.append("No edge of this circuit touches it.")
    return said[0] + "".join(f"<p>{html.escape(line)}</p>" for line in said[1:])


def removal_told(trials: Trials, head: Head) -> str:
    """The metric without a head, beside what would be left if no other part reacted."""
    name, before = named([head]), trials.before.mean().item()
    change = trials.without([head]).mean().item() - before
    rows, said = [("all in place", before), (f"without {name}", before + change)], []
    if trials.reads is None:
        said.append(
            "This metric is no sum over parts of the model, so no head has a direct contribution to it."
        )
    else:
        own, held = (part.mean().item() for part in trials.direct(head))
        rows.insert(1, (f"without {name}, all else held", before + held))
        said.append(f"Direct contribution: {_signed(own)} (the last norm held).")
        said.append(_compared(change, held))
    return _bars(trials, rows, f"{name} removed alone") + "".join(f"<p>{line}</p>" for line in said)


def together_told(trials: Trials, heads: set[Head]) -> str:
    """The metric without several heads, and what each does alone."""
    if not heads:
        return "<p>Nothing is removed.</p>"
    before, after = trials.before.mean().item(), trials.without(heads).mean().item()
    alone = {head: trials.without([head]).mean().item() - before for head in sorted(heads)}
    listed = ", ".join(f"{named([head])} ({_signed(change)})" for head, change in alone.items())
    said = f"Removed, with what each does alone: {listed}."
    if len(heads) > 1:
        said += (
            f" These add up to {_signed(sum(alone.values()))}; together they do {_signed(after - before)}."
        )
    label = f"without these {len(heads)}" if len(heads) > 1 else f"without {named([next(iter(heads))])}"
    rows = [("all in place", before), (label, after)]
    return _bars(trials, rows, "crossed-out heads removed") + f"<p>{said}</p>"


def _compared(change: float, held: float) -> str:
    """What the rest of the model makes of a removal: `change` with it, `held` without."""
    rest = change - held
    if abs(rest) < max(0.05, 0.15 * abs(change)):
        return f"Removing it changes the metric by {_signed(change)}, about what it wrote itself."
    said = (
        f"Removing it changes the metric by {_signed(change)}; if nothing else reacted, by {_signed(held)}. "
    )
    if rest * held < 0 and abs(held) > 0.05:
        return said + f"The rest makes up for it with {_signed(rest)}: self-repair."
    return said + f"The rest adds {_signed(rest)}: later parts read something else now."


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no "-0.00"


def _bars(trials: Trials, rows: list[tuple[str, float]], what: str) -> str:
    return drawing.bars(rows, f"metric, mean over {len(trials.before)} prompts; {what}")
