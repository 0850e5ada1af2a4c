"""The report on two hops: made from its figures, and some of these found again, on what was not used to choose."""

import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mechlab as ml
from mechlab_course.folders import checks

ROOT = Path(__file__).parents[1]
MAKE = ROOT / "data" / "make"
FOUND = json.loads((ROOT / "data" / "tracing" / "two_hops.json").read_text(encoding="utf-8"))
JAPAN = FOUND["pairs"]["German → Japanese"]


@pytest.fixture(scope="module")
def made() -> Iterator[dict]:
    sys.path.insert(0, str(MAKE))  # the report shares code with its neighbour
    yield runpy.run_path(str(MAKE / "two_hops_report.py"))
    sys.path.remove(str(MAKE))


@pytest.fixture(scope="module")
def figures(made) -> dict:
    return made["figures"](FOUND)


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(MAKE / "two_hops.py"))


@pytest.fixture(scope="module")
def study(script):
    with torch.no_grad():
        yield script["Study"](ml.load(quiet=True))


def test_the_report_is_made_from_its_figures(made):
    assert made["REPORT"].read_text(encoding="utf-8") == made["report"](), "run: data/make/two_hops_report.py"


def test_intervals_draw_both_sides_of_a_pair(made):
    """What hangs on the old language alone varies as much as four languages do, not as twelve pairs."""
    rows = {(a, b): float(n) for n, a in enumerate("wxyz") for b in "wxyz" if a != b}
    middle, low, high = made["crossed"](rows)
    assert middle == 1.5 and low < 0.7 and high > 2.3
    same = made["crossed"](dict.fromkeys(rows, 2.0), dict.fromkeys(rows, 4.0))
    assert same == [0.5, 0.5, 0.5]


def test_what_the_report_says_in_short(figures):
    said, held, heads = figures["said"], figures["held"]["60/2"], figures["heads"]
    count = figures["pairs"]
    assert count == 56 and sum(1 for name in FOUND["pairs"] if name.startswith("German")) == 7
    assert said["chosen/A/60/2"]["new"][1] > 5 * said["random/60/2"]["new"][2]  # ends of the intervals
    for setting in ("random/60/2", "country/random/60/2"):
        assert int(said[setting]["beaten"].split()[0]) > 0.9 * count
    assert held["23.4"][1] > 0.5 > held["late"][2] > held["by chance"][2]
    assert all(heads[each]["rank"] == "1, 1" for each in ("language", "country", "capital"))
    assert all(abs(heads[each]["share"][2]) < 0.1 for each in ("opposite", "kind", "IOI"))
    carried = figures["carried"]
    assert carried["language from country"][1] > 0.9 * carried["language from language"][1]


def test_one_country_with_two_languages_is_turned_in_its_language_alone(made):
    alone = [record for record in FOUND["apart"].values() if len(record["clean/language"][0]) == 2]
    assert len(alone) == 3
    for record in alone:
        before, after = (record[key][0] for key in ("clean/language", "language/150/2"))
        assert after[1] > after[0] and before[0] > before[1]
        assert record["country/150/2"][0][0] > 0.8 * record["clean/country"][0][0]


@pytest.mark.model
def test_every_city_is_one_token_and_no_language_lacks_one_that_is_held_out(script, study):
    table = script["cities"]()
    assert len({row["city"] for row in table}) == len(table)
    assert {len(study.model.to_tokens(f" {row['city']}", prepend_bos=False)[0]) for row in table} == {1}
    for language, (country, *_) in script["HOME"].items():
        assert study.of(language, country) and study.of(language, country, "test")


@pytest.fixture(scope="module")
def pair(script, study):
    return script["Pair"](study, "German", "Japanese")


def near(found: list, stored: list) -> None:
    assert torch.allclose(torch.tensor(found), torch.tensor(stored), atol=0.02), (found, stored)


@pytest.mark.model
def test_a_held_out_city_template_and_question(script, study, pair):
    assert not {*pair.held} & {*pair.old, *pair.new} and pair.held == ("Frankfurt", "Hamburg")
    A, B = study.asked["A"], study.asked["B"]
    country = study.of_form(script["COUNTRY"])
    for key, asked, answers in (
        ("chosen/A/60/2", A, pair.said),
        ("chosen/B/60/2", B, pair.said),
        ("country/60/2", country, pair.places[0]),
    ):
        found = pair.ask(asked, {"it": (pair.group(60), 2)}, answers)["it"]
        near(found, JAPAN[key])
        assert all(new > 0.4 > 0.2 > old for old, new in found), key
    chance = pair.ask(A, dict(enumerate(pair.by_chance["60/2"][:3])), pair.said)
    assert max(row[1] for draw in chance.values() for row in draw) < 0.1
    near(pair.ask(A, {"it": (pair.group(60), 2)}, pair.said, end=True)["it"], JAPAN["end/60/2"])


@pytest.mark.model
def test_a_turn_is_the_same_by_hooks(script, study, pair):
    A, group = study.asked["A"], pair.group(25)
    layers, neurons = zip(*group, strict=True)
    places = [(layer, A.pos, neuron) for layer, neuron in group]
    text = script["TEMPLATES"]["A"].format("Frankfurt")
    own = ml.group_values(study.model, text, places)
    hooks = ml.group_hooks(study.model, places, around=own, to=own + pair.way[layers, neurons], times=1.5)
    with ml.intervene(study.model, hooks):
        by_hand = study.model(text)[0, -1].softmax(-1)[pair.said]
    assert by_hand.tolist() == pytest.approx(JAPAN["chosen/A/25/1.5"][0], abs=0.01)


@pytest.mark.model
def test_head_23_4_brings_the_same_whatever_was_asked(script, study):
    found = script["carried"](study, "language", "country")["shares"]
    assert found == pytest.approx(FOUND["carried"]["language from country"]["shares"], abs=0.03)


@pytest.mark.model
def test_random_weights_have_nothing_to_turn(script, study):
    untrained = script["Study"](ml.random_weights(study.model))
    pair = script["Pair"](untrained, "German", "Japanese")
    asked = untrained.asked["A"]
    clean = asked.clean(pair.held, pair.said)
    turned = pair.ask(asked, {"it": (pair.group(60), 2)}, pair.said)["it"]
    odds = lambda rows: torch.tensor(rows).log().diff(dim=1)
    assert (odds(turned) - odds(clean)).abs().max() < 0.1
    assert (odds(JAPAN["chosen/A/60/2"]) - odds(JAPAN["clean/A"])).min() > 6


def test_each_limit_that_the_report_states_is_one_of_its_figures(made):
    """Five languages have one held-out city; the third city with two languages ends in a tie."""
    held = {name.split(" → ")[0]: record["held"] for name, record in FOUND["pairs"].items()}
    one = {name for name, cities in held.items() if len(cities) == 1}
    assert one == {"Russian", "Chinese", "Spanish", "French", "Greek"}
    ends = [
        record["language/150/2"][0]
        for name, record in FOUND["apart"].items()
        if name == "French in Canada → English in Canada"
    ]
    assert len(ends) == 1 and abs(ends[0][1] - ends[0][0]) < 0.03


def shown_text(notebook: dict, hidden_check: str) -> str:
    """Sources and outputs of a notebook, but for what the check says once an answer is in."""
    cells = [cell for cell in notebook["cells"] if hidden_check not in "".join(cell["source"])]
    return json.dumps(cells, ensure_ascii=False)


def test_no_notebook_names_the_cities_on_which_a_knob_is_judged():
    judged = checks("57")
    assert judged
    hidden = {city for cities in judged.HIDDEN.values() for city in cities.split()}
    found = {}
    for path in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("solutions/*.ipynb")]:
        text = shown_text(json.loads(path.read_text(encoding="utf-8")), "check(my_knob")
        found[path.name] = {city for city in hidden if re.search(rf"\b{city}\b", text)}
    assert len(hidden) > 35 and not any(found.values()), found
