"""Write docs/ioi_report.md from its text (data/make/ioi_report.txt) and data/reference/ioi_smollm2.json.

    python data/make/ioi_report.py

In the text, {faithfulness/names/circuit/share} stands for a figure: three numbers become "0.98 [0.87, 1.10]", and
{.../share.mean} is the first alone. {table:...} stands for a table below. So no figure of the report is typed by hand.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = Path(__file__).with_name("ioi_report.txt")
FIGURES = ROOT / "data" / "reference" / "ioi_smollm2.json"
REPORT = ROOT / "docs" / "ioi_report.md"


def shown(value, mean: bool = False) -> str:
    """A figure as text: a number, or a mean with its interval."""
    if isinstance(value, list) and len(value) == 3 and all(isinstance(each, (int, float)) for each in value):
        return (
            shown(value[0]) if mean else f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]".replace("-", "−")
        )
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    return f"{value:.2f}".replace("-", "−") if isinstance(value, float) else str(value)


def table(head: list[str], rows: list[list]) -> str:
    lines = [
        head,
        ["---"] * len(head),
        *([each if isinstance(each, str) else shown(each) for each in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


WAYS = ("paths, joint", "paths, by template")


def finer(value: list[float]) -> str:
    """A path, to three places: many are small."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*value).replace("-", "−")


def heads_of(role: str, evidence: dict) -> list[str]:
    """The heads with a role, and those of which only the path's interval is missing."""
    word = lambda row: row["role"].removeprefix("ambiguous: ").removesuffix("? path not told from zero")
    mine = {head: row["role"] for head, row in evidence.items() if role in word(row).split(", ")}
    sure = [
        head + " (ambiguous)" * how.startswith("amb")
        for head, how in mine.items()
        if not how.endswith("zero")
    ]
    return [
        ", ".join(sure) or "none",
        ", ".join(h for h, how in mine.items() if how.endswith("zero")) or "none",
    ]


def path_of(head: str, row: dict, rules: dict, roles: dict) -> str:
    """The path that a head's role rests on; the one to the logits where there is no role."""
    first = row["role"].removeprefix("ambiguous: ").partition("?")[0].split(", ")[0]
    into = rules[first]["serves"] if first in rules else "logits"
    asked = [name for name, paths in roles["paths"].items() if name != "logits" and head in paths]
    return into if first in rules else (asked or ["logits"])[0]


def verdict(row: dict) -> str:
    """How the interval of a gap lies to the line that was drawn before."""
    if row["95 % low"] > 0.5 or row["95 % high"] < -0.5:
        return "beyond"
    return "within" if row["95 % low"] > -0.5 and row["95 % high"] < 0.5 else "open"


def tables(found: dict) -> dict[str, str]:
    """Every table of the report."""
    sets = {"search": "search", "names": "other names", "templates": "other names and templates"}
    path = {"logits": "the logits", "q": "queries of", "k": "keys of", "v": "values of"}
    name = lambda head: f"{head[0]}.{head[1]}"
    role_of = {head: role for role, heads in found["circuit"].items() for head in heads}
    evidence, rules = found["roles"]["table"], found["roles"]["rules"]
    labels = list(found["faithfulness"]["search"])
    return {
        "ability": table(
            ["prompts", "how many", "logit difference", "right", "probability of IO"],
            [[label, str(found["ability"][key]["prompts"]), *(found["ability"][key][q] for q in ("logit difference", "accuracy", "probability of IO"))]
             for key, label in sets.items()],
        ),
        "circuit": table(
            ["role", "heads", "acts at"],
            [[role, ", ".join(heads), ", ".join(found["positions"][role])] for role, heads in found["circuit"].items()],
        ),
        "questions": table(
            ["role", "looks", "copies", "serves", "passes", "path not told from zero"],
            [[role, rule["looks"] + (f", more than {rule['over']}" if rule["over"] else ""), rule["copies"] or "not asked",
              ("+ " if rule["sign"] > 0 else "− ") + rule["serves"], *heads_of(role, evidence)] for role, rule in rules.items()],
        ),
        "evidence": table(
            ["head", "role in the circuit", "by the rules", "looks", "copies for / against", "path into", "joint interval", "by template"],
            [[head, role_of.get(head, "not in it"), row["role"] or "none",
              max(((k, v) for k, v in row.items() if "→" in k), key=lambda pair: pair[1])[0] + f" {max(v for k, v in row.items() if '→' in k):.2f}",
              f"{row['copies']:.2f} / {row['copies against']:.2f}", into, *(finer(found["roles"][way][into][head]) for way in WAYS)]
             for head, row in evidence.items() if head in role_of or row["role"]
             for into in [path_of(head, row, rules, found["roles"])]],
        ),
        "edges": table(
            ["from", "into", "share of the way to ABC"],
            [[name(a), path[into] + (f" {name(b)}" if b else ""), effect] for a, b, into, *effect in
             sorted(found["edges"], key=lambda edge: -abs(edge[3]))[:24]],
        ),
        "faithfulness": table(
            ["what is left", "heads", *sets.values()],
            [[label, str(found["faithfulness"]["search"][label]["heads"]), *(found["faithfulness"][key][label]["share"] for key in sets)]
             for label in labels],
        ),
        "by template": table(
            ["what is left, intervals by template", *list(sets.values())[1:]],
            [[label, *(found["faithfulness by template"][key][label] for key in ("names", "templates"))]
             for label in ("circuit", "subject suppressor alone")]
            + [["circuit, sentence form by sentence form", *(", ".join(map(shown, found["faithfulness by template"][key]["each form"])) for key in ("names", "templates"))]],
        ),
        "completeness": table(
            ["K", "heads", "model without K", "circuit without K", "gap", "beside ±0.5"],
            [[key, str(row["heads"]), row["model without K"], row["circuit without K"], [row["gap"], row["95 % low"], row["95 % high"]], verdict(row)]
             for key, row in found["completeness"].items()],
        ),
        "minimality": table(
            ["head", "role", "K (chosen on search)", "change", "share of F(M)"],
            [[head, row["role"], ", ".join(row["K"]) or "nothing", [row["change"], row["95 % low"], row["95 % high"]], float(row["share"])]
             for head, row in found["minimality"].items()],
        ),
        "signal": table(
            ["19.2 and 20.0 at the end are those of a prompt with", "logit difference"],
            [[label, value] for label, value in found["what S-inhibition carries"].items()],
        ),
        "route": table(
            ["into", "all six together", "sum of each alone"],
            [[key.removeprefix("abc: "), row["together"], sum(v[0] for k, v in row.items() if k != "together")]
             for key, row in found["route of the duplicate-token heads"].items() if key.startswith("abc")],
        ),
        "backup": table(
            ["head", "change of its direct contribution"],
            [[head, change] for head, change in found["backup"]["name mover"]["changes"].items()],
        ),
    }  # fmt: skip


def filled(text: str, found: dict, drawn: dict[str, str]) -> str:
    """A text with its figures and tables."""

    def fill(match: re.Match) -> str:
        key = match[1]
        if key.startswith("table:"):
            return drawn[key.removeprefix("table:")]
        mean = key.endswith(".mean")
        value = found
        for part in key.removesuffix(".mean").split("/"):
            value = value[int(part)] if isinstance(value, list) else value[part]
        return shown(value, mean)

    return re.sub(r"\{([^{}]+)\}", fill, text)


def report() -> str:
    """The whole text, figures filled in."""
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    return filled(TEXT.read_text(encoding="utf-8"), found, tables(found))


if __name__ == "__main__":
    REPORT.write_text(report(), encoding="utf-8")
    print(REPORT.relative_to(ROOT))
