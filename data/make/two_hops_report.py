"""Write docs/two_hops.md from its text (two_hops_report.txt) and data/tracing/two_hops.json.

    python data/make/two_hops_report.py

What stands in braces in the text is filled in as in ioi_report.py, here from `figures` below: means over ordered pairs of
languages with 95 % intervals, for which old and new languages are drawn separately (a pair is not independent of another one
with the same language), and tables.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from math import log
from pathlib import Path

import torch
from ioi_report import ROOT, filled, shown, table

TEXT = Path(__file__).with_name("two_hops_report.txt")
FIGURES = ROOT / "data" / "tracing" / "two_hops.json"
CITIES = ROOT / "data" / "tracing" / "cities.csv"
REPORT = ROOT / "docs" / "two_hops.md"
HEAD = 23 * 9 + 4
FIRST_HELD = 22 * 9  # the first of the heads that were held

Answers = list[list[float]]  # [city][old answer, new answer]


def mean(values: Iterable[float]) -> float:
    values = [*values]
    return sum(values) / len(values)


def crossed(
    rows: Mapping[tuple[str, ...], float], over: Mapping[tuple[str, ...], float] | None = None
) -> list[float]:
    """The mean over pairs, or its ratio to that of `over`, low and high: both sides of the pairs are drawn anew."""
    sides = [sorted({pair[n] for pair in rows}) for n in (0, 1)]
    at = torch.tensor([[side.index(pair[n]) for n, side in enumerate(sides)] for pair in rows])
    above = torch.tensor([*rows.values()], dtype=torch.float64)
    below = torch.ones_like(above) if over is None else torch.tensor([over[pair] for pair in rows]).double()
    chance, weights = torch.Generator().manual_seed(0), torch.ones(4000, len(above), dtype=torch.float64)
    for n, side in enumerate(sides):
        drawn = torch.randint(len(side), (4000, len(side)), generator=chance)
        counts = torch.zeros(4000, len(side)).scatter_add_(1, drawn, torch.ones(4000, len(side)))
        weights *= counts[:, at[:, n]]
    weights = weights[weights.sum(1) > 0]
    ends = ((weights @ above) / (weights @ below)).quantile(torch.tensor([0.025, 0.975]).double())
    return [float(above.sum() / below.sum()), *ends.tolist()]


def each(pairs: dict, measure: Callable[[dict], float]) -> dict[tuple[str, ...], float]:
    """One number for each pair, by its two languages."""
    return {tuple(name.split(" → ")): measure(record) for name, record in pairs.items()}


def answer(setting: str, column: int) -> Callable[[dict], float]:
    return lambda record: mean(row[column] for row in record[setting])


def by_chance(setting: str, column: int) -> Callable[[dict], float]:
    """The mean over matched groups drawn by chance, and cities."""
    return lambda record: mean(mean(row[column] for row in draw) for draw in record[setting])


def odds(rows: Answers) -> float:
    """The logit difference, new answer minus old, in the mean over cities."""
    return mean(log(row[1] / row[0]) for row in rows)


def moved(setting: str) -> Callable[[dict], float]:
    """How far a setting moves the logit difference."""
    return lambda record: odds(record[setting]) - odds(record["clean/A"])


def wins(pairs: dict, setting: str) -> str:
    """In how many pairs the new answer is the likelier one in all held-out cities."""
    count = sum(all(row[1] > row[0] for row in record[setting]) for record in pairs.values())
    return f"{count} of {len(pairs)}"


def beaten(pairs: dict, setting: str, chance: str) -> str:
    """In how many pairs the group says more of the new answer than each of the twenty groups by chance."""
    above = lambda record: (
        answer(setting, 1)(record) > max(mean(row[1] for row in draw) for draw in record[chance])
    )
    return f"{sum(map(above, pairs.values()))} of {len(pairs)}"


def both(pairs: dict, setting: str, take: Callable = answer) -> dict:
    return {name: crossed(each(pairs, take(setting, n))) for n, name in enumerate(("old", "new"))}


def said(pairs: dict) -> dict:
    """setting -> old, new, wins; for chance also in how many pairs it is beaten."""
    found, some = {}, next(iter(pairs.values()))
    for setting, rows in some.items():
        kinds = ("clean", "chosen", "own", "end", "size", "country", "capital", "by country", "late", "held/")
        if setting.startswith(kinds) and "random" not in setting and isinstance(rows, list):
            found[setting] = both(pairs, setting) | {"wins": wins(pairs, setting)}
        elif "random" in setting and not setting.startswith("name"):
            found[setting] = both(pairs, setting, by_chance)
    for setting in ("25/1.5", "60/2"):
        found[f"random/{setting}"]["beaten"] = beaten(pairs, f"chosen/A/{setting}", f"random/{setting}")
    found["country/random/60/2"]["beaten"] = beaten(pairs, "country/60/2", "country/random/60/2")
    return found


def continents(pairs: dict) -> dict:
    some = {name: record for name, record in pairs.items() if "clean/continent" in record}
    settings = ("clean/continent", "continent/60/2", "continent/150/2")
    found = {setting: both(some, setting) | {"wins": wins(some, setting)} for setting in settings}
    return found | {"pairs": len(some)}


def names(pairs: dict) -> dict:
    """Its own name, the new country, and all names of the new language's training cities together."""
    found = {}
    for setting in ("clean/name", "name/25/1.5", "name/60/2", "name/150/2"):
        other = lambda record, s=setting: mean(sum(row[3:]) for row in record[s])
        first = lambda record, s=setting: mean(float(row[0] == max(row)) for row in record[s])
        found[setting] = {
            "own": crossed(each(pairs, answer(setting, 0))),
            "country": crossed(each(pairs, answer(setting, 1))),
            "other": crossed(each(pairs, other)),
            "first": crossed(each(pairs, first)),
        }
    return found | {"random": crossed(each(pairs, by_chance("name/random/60/2", 0)))}


def mediation(pairs: dict) -> dict:
    """What share of the moved logit difference is lost when something is held at the end."""
    found = {}
    for setting in ("25/1.5", "60/2"):
        whole = each(pairs, moved(f"chosen/A/{setting}"))
        lost = lambda held, whole=whole: crossed({pair: whole[pair] - held[pair] for pair in whole}, whole)
        chance = lambda r, s=setting: (
            mean(odds(draw) for draw in r[f"held at random/{s}"]) - odds(r["clean/A"])
        )
        head = lambda n, s=setting: each(pairs, lambda r: odds(r[f"held heads/{s}"][n]) - odds(r["clean/A"]))
        heads = [lost(head(n)) for n in range(len(next(iter(pairs.values()))[f"held heads/{setting}"]))]
        first = HEAD - FIRST_HELD
        others = sorted(((h[0], n) for n, h in enumerate(heads) if n != first), reverse=True)
        found[setting] = {
            "gone": crossed(each(pairs, lambda r, s=setting: mean(r[f"gone/{s}"]))),
            "late": lost(each(pairs, moved(f"held/{setting}"))),
            "by chance": lost(each(pairs, chance)),
            "23.4": heads[first],
            "next": named(FIRST_HELD + others[0][1]),
            "next lost": others[0][0],
        }
    found["alone"] = crossed(each(pairs, moved("late/1.5")), each(pairs, moved("chosen/A/60/2")))
    return found


def named(head: int) -> str:
    return f"{head // 9}.{head % 9}"


def pairs_of(record: dict) -> list[tuple[str, str]]:
    """The two words of each row; a sentence about names has one."""
    return [tuple(pair) if isinstance(pair, list) else (str(pair), "") for pair in record["pairs"]]


def by_row(record: dict, values: Iterable[float]) -> dict[tuple[str, ...], float]:
    return {
        (*pair, str(n)): value for n, (pair, value) in enumerate(zip(pairs_of(record), values, strict=True))
    }


def heads(parts: dict) -> dict:
    """question -> the share of 23.4 over all rows, and in each half its rank, who is first, and with what share."""
    found = {}
    for question in dict.fromkeys(name.partition("/")[0] for name in parts):
        halves = [record for name, record in parts.items() if name.partition("/")[0] == question]
        rows = {}
        for n, record in enumerate(halves):
            rows |= {
                (*k, str(n)): v for k, v in by_row(record, [row[HEAD] for row in record["shares"]]).items()
            }
        means = [torch.tensor(record["shares"]).mean(0) for record in halves]
        orders = [each.argsort(descending=True).tolist() for each in means]
        found[question] = {
            "share": crossed(rows),
            "rank": ", ".join(str(order.index(HEAD) + 1) for order in orders),
            "largest other": ", ".join(
                f"{named(other)} {each[other]:.2f}"
                for each, order in zip(means, orders, strict=True)
                for other in [next(head for head in order if head != HEAD)]
            ),
            "rows": len(rows),
        }
    return found


def taught(parts: dict) -> dict:
    """What cities say of the new answers, when nothing, the country, or the language was written in."""
    found = {}
    for fact in ("clean", "country", "language"):
        for asked in ("country", "A", "B", "C"):
            rows = [record[fact][asked] for record in parts.values()]
            new = torch.tensor([row[1] for row in rows], dtype=torch.float64)
            drawn = new[torch.randint(len(new), (4000, len(new)), generator=torch.Generator().manual_seed(0))]
            ends = drawn.mean(1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
            found[f"{fact}/{asked}"] = {
                "new": [float(new.mean()), *ends],
                "wins": f"{sum(row[1] > row[0] for row in rows)} of {len(rows)}",
            }
    return found


def untrained(parts: dict, pairs: dict) -> dict:
    """How far the logit difference is moved in a model without training, beside how far it is to the new cities."""
    found = {}
    for which, some in [
        ("trained", {name: pairs[name] for name in parts["0"] if name in pairs}),
        *parts.items(),
    ]:
        way = mean(each(some, lambda r: odds(r["new"]) - odds(r["clean/A"])).values())
        moves = each(some, moved("chosen/A/60/2")).values()
        chance = each(some, lambda r: mean(map(odds, r["random/60/2"])) - odds(r["clean/A"])).values()
        found[which] = {
            name: f"{x:.4f}".replace("-", "−")
            for name, x in (("way", way), ("group", mean(moves)), ("chance", mean(chance)))
        }
    return found


def figures(found: dict) -> dict:
    """Everything that the text and the tables say."""
    pairs = found["pairs"]
    return {
        "said": said(pairs),
        "continent": continents(pairs),
        "name": names(pairs),
        "held": mediation(pairs),
        "heads": heads(found["heads"]),
        "carried": {name: crossed(by_row(part, part["shares"])) for name, part in found["carried"].items()},
        "taught": taught(found["taught"]),
        "untrained": untrained(found["random weights"], pairs),
        "shared": {
            str(k): f"{mean(record[f'by country/shared/{k}'] for record in pairs.values()):.0f}"
            for k in (25, 60, 150)
        },
        "pairs": len(pairs),
        "turns": sum(len(record["held"]) for record in pairs.values()),
    }


# Tables


def turned(made: dict) -> str:
    """Held-out cities: each size and strength in the three templates."""
    said, rows = made["said"], []
    line = lambda label, keys: [label, *(text for key in keys for text in cells(said.get(key)))]
    rows.append(line("clean", [f"clean/{name}" for name in "ABC"]))
    for k in (10, 25, 60, 150):
        for x in ("1", "1.5", "2"):
            rows.append(line(f"{k}, ×{x}", [f"chosen/{name}/{k}/{x}" for name in "ABC"]))
    return table(["neurons", *(f"{name}: {what}" for name in "ABC" for what in ("old → new", "works"))], rows)


def cells(entry: dict | None) -> list[str]:
    """Two probabilities, and in how many pairs the new answer wins."""
    return (
        ["", ""]
        if entry is None
        else [f"{entry['old'][0]:.2f} → {entry['new'][0]:.2f}", entry["wins"].split()[0]]
    )


def controls(made: dict) -> str:
    said = made["said"]
    names = {
        "the group": "chosen/A/{}", "twenty matched groups": "random/{}", "the same neurons at the end": "end/{}",
        "the largest changes": "size/{}",
    }  # fmt: skip
    rows = [
        [label, *(shown(said[key.format(at)][what]) for at in ("25/1.5", "60/2") for what in ("old", "new"))]
        for label, key in names.items()
    ]
    return table(
        [
            "what is turned (template A)",
            *(f"{at}: p({w})" for at in ("25, ×1.5", "60, ×2") for w in ("old", "new")),
        ],
        rows,
    )


def questions(made: dict) -> str:
    said, rows = made["said"], []
    for label, clean, key in (
        ("language, template A", "clean/A", "chosen/A/{}"),
        ("country", "clean/country", "country/{}"),
        ("capital, at the country's name", "clean/capital", "capital/{}"),
    ):
        entries = [said[clean], *(said[key.format(at)] for at in ("60/2", "150/2"))]
        rows.append([label, *(text for n, e in enumerate(entries) for text in cells(e)[: 1 + (n > 0)])])
    c = made["continent"]
    entries = [c["clean/continent"], c["continent/60/2"], c["continent/150/2"]]
    rows.append(
        [
            f"continent ({c['pairs']} pairs)",
            *(t for n, e in enumerate(entries) for t in cells(e)[: 1 + (n > 0)]),
        ]
    )
    return table(["question", "clean", "60, ×2", "works", "150, ×2", "works"], rows)


def matrix(found: dict) -> str:
    """p(new language) by pair."""
    pairs = found["pairs"]
    languages = list(dict.fromkeys(name.split(" → ")[0] for name in pairs))
    value = lambda a, b: (
        f"{answer('chosen/A/60/2', 1)(pairs[f'{a} → {b}']):.2f}" if f"{a} → {b}" in pairs else "–"
    )
    return table(["from ↓ to →", *languages], [[a, *(value(a, b) for b in languages)] for a in languages])


def parts(found: dict) -> str:
    """Country apart from language, and language apart from country, at 150 neurons and twice the way."""
    rows = []
    for name, record in found["apart"].items():
        differs = "language" if len(record["clean/language"][0]) == 2 else "country"
        other = "country" if differs == "language" else "language"
        pair = lambda key, r=record: " / ".join(f"{mean(row[n] for row in r[key]):.2f}" for n in (0, 1))
        same = lambda key, r=record: f"{mean(row[0] for row in r[key]):.2f}"
        rows.append([name, ", ".join(record["held"]), differs, pair(f"clean/{differs}"), pair(f"{differs}/60/2"), pair(f"{differs}/150/2"),
                     f"{same(f'clean/{other}')} → {same(f'{other}/60/2')} → {same(f'{other}/150/2')}"])  # fmt: skip
    return table(
        ["from → to", "tried on", "differs", "clean old / new", "60, ×2", "150, ×2", "what both share: clean → 60 → 150"], rows
    )  # fmt: skip


def head_rows(made: dict) -> str:
    return table(
        ["question", "prompts", "share of the way", "rank of 270, in each half", "largest other head"],
        [
            [question, str(e["rows"]), *(e[key] for key in ("share", "rank", "largest other"))]
            for question, e in made["heads"].items()
        ],
    )


def carried(made: dict) -> str:
    names = ("language", "country", "name")
    return table(
        ["23.4 put into ↓, as in →", *names],
        [[into, *(made["carried"][f"{into} from {other}"] for other in names)] for into in names],
    )


def lessons(made: dict) -> str:
    labels = {"clean": "nothing", "country": "the new country", "language": "the new language"}
    return table(
        ["what was written in", "p(new country)", "p(new language), A", "B", "C"],
        [
            [label, *(made["taught"][f"{fact}/{asked}"]["new"] for asked in ("country", "A", "B", "C"))]
            for fact, label in labels.items()
        ],
    )


def held(made: dict) -> str:
    rows = []
    for setting in ("25/1.5", "60/2"):
        m = made["held"][setting]
        rows.append(
            [
                setting.replace("/", ", ×"),
                *(shown(m[key]) for key in ("gone", "late", "by chance", "23.4")),
                f"{m['next']}: {m['next lost']:.2f}",
            ]
        )
    return table(["neurons", "the late ten have gone", "lost: late ten held", "ten by chance held", "23.4 held", "next head of layers 22 to 24"], rows)  # fmt: skip


def city_rows() -> str:
    with CITIES.open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    homes = dict.fromkeys((row["language"], row["country"]) for row in rows)
    of = lambda home, part: ", ".join(
        row["city"] for row in rows if (row["language"], row["country"], row["part"]) == (*home, part)
    )
    return table(["language", "country", "training cities", "held out"], [[*home, of(home, "train"), of(home, "test") or "–"] for home in homes])  # fmt: skip


def spaced(made):
    """Keys without the slash, which parts them in the text."""
    return (
        {key.replace("/", " "): spaced(value) for key, value in made.items()}
        if isinstance(made, dict)
        else made
    )


def report() -> str:
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    made = figures(found)
    drawn = {
        "cities": city_rows(), "turned": turned(made), "controls": controls(made), "questions": questions(made),
        "matrix": matrix(found), "apart": parts(found), "heads": head_rows(made), "held": held(made),
        "carried": carried(made), "taught": lessons(made),
    }  # fmt: skip
    return filled(TEXT.read_text(encoding="utf-8"), spaced(made), drawn)


if __name__ == "__main__":
    REPORT.write_text(report(), encoding="utf-8")
    print(REPORT.relative_to(ROOT))
