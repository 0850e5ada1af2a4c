"""The slides for a talk: what is on them, and how they turn."""

import re

import pytest
from bs4 import BeautifulSoup
from typer.testing import CliRunner

from mechlab_course.build.execute import browser_page
from mechlab_course.folders import ROOT
from mechlab_course.site.slides import Slide, decks, parts, slides_of

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SOLVED = sorted(
    path for path in (ROOT / "solutions").glob("*.ipynb") if (ROOT / "notebooks" / path.name).exists()
)


@pytest.fixture(scope="module")
def made():
    return decks()


def text(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(True)}


def picture(kind: str = "", words: str = "A line.") -> dict:
    output = {"output_type": "display_data", "data": {"image/png": f"{PIXEL}\n", "text/plain": [words]}}
    meta = {"mechlab": {"kind": kind}} if kind else {}
    return {"cell_type": "code", "metadata": meta, "source": ["f()"], "outputs": [output]}


def test_a_section_says_what_it_begins_with_and_a_picture_what_leads_to_it():
    cells = [
        text("# 12 Parts\n\n**Question:** which\nparts?\n\nTime: 5 minutes."),
        text("## One\n\nThe sum is exact.\n\n- a list\n\nIt has `L + 1` terms, one a layer. Add them up:"),
        picture(words="It rises."),
        text("So it rises. (Not at once.)\n\n<details><summary>Seen</summary>\n\nSecret.\n\n</details>"),
        picture("exercise"),
        picture(),
        text("## Two\n\nNo. Each term of it has an error of its own, which we measure next.\n\n$$x$$"),
        text(
            "### Exercise 12.1 Do it\n\nDifficulty 1 of 5 · 5 minutes\n\nYour turn.\n\n## Recap\n\nAll said."
        ),
        text("Previous: [11](11_x.ipynb) · Next: [13](13_y.ipynb)"),
    ]
    assert slides_of({"cells": cells}) == [
        Slide("12 Parts", "Which\nparts?", kind="notebook"),
        Slide("One", "It has `L + 1` terms, one a layer. Add them up:", PIXEL, "It rises."),
        Slide("One", "So it rises.", PIXEL, "A line."),
        Slide("Two", "No. Each term of it has an error of its own, which we measure next."),
    ]
    assert Slide("a", "`b` *c* [d](e.ipynb)").content == ("a", "<code>b</code> <em>c</em> d")


def test_each_part_has_a_deck_with_every_notebook_and_every_picture(made):
    course = list(parts((ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(made) == len(course) == 7 and sum(len(stems) for *_, stems in course) == len(SOLVED)
    pages = [BeautifulSoup(content, "html.parser") for content in made.values()]
    titles = [tag.get_text() for page in pages for tag in page.select(".notebook h1")]
    assert [title[:2] for title in titles] == [path.name[:2] for path in SOLVED]
    stored = sum(path.read_text(encoding="utf-8").count('"image/png"') for path in SOLVED)
    pictures = [tag for page in pages for tag in page.select("img")]
    assert 0.9 * stored < len(pictures) <= stored and all(len(tag["alt"]) > 20 for tag in pictures)
    said = [tag.get_text() for page in pages for tag in page.select("section p")]
    assert max(map(len, said)) < 420 and not [
        each for each in said if each.startswith(("(", "|", "Difficulty"))
    ]


def test_a_deck_asks_nobody_for_anything(made):
    for name, content in made.items():
        page = BeautifulSoup(content, "html.parser")
        asked = [
            tag.get("src") or tag.get("href")
            for tag in page.find_all(["img", "script", "link", "a", "iframe"])
        ]
        assert all(each is None or each.startswith("data:") for each in asked), name
        assert not re.search(
            r"url\(|@import|fetch\(|https?:", re.sub(r'(src|alt|xmlns)="[^"]*"', "", content.decode())
        ), name
        assert len(content) < 3_000_000


@pytest.mark.browser
def test_keys_turn_the_slides_and_everything_fits(made, tmp_path):
    name = next(name for name in made if "attribution" in name)
    (tmp_path / name).write_bytes(made[name])
    with browser_page(1366, 768) as page:
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / name).as_uri())
        at = lambda: page.locator("nav span").inner_text().split(" / ")[0]
        seen = lambda: page.locator(".now img").is_visible()
        page.keyboard.press("ArrowRight")
        page.keyboard.press(" ")
        assert at() == "3" and not seen()  # a picture waits for a key of its own
        page.keyboard.press("PageDown")
        assert at() == "3" and seen()
        page.keyboard.press("End")
        last = at()
        page.keyboard.press("ArrowRight")
        page.get_by_role("button", name="Back").click()
        assert int(at()) == int(last) - 1
        page.keyboard.press("Home")
        assert at() == "1" and page.url.endswith("#1")
        too_large = page.evaluate("""() => [...document.querySelectorAll("section")].filter(each => {
            document.querySelector(".now")?.classList.remove("now");
            each.classList.add("now", "open");
            const picture = each.querySelector("img");
            return each.scrollHeight > each.clientHeight || each.scrollWidth > each.clientWidth
                || (picture && picture.clientHeight < 300);
        }).map(each => each.textContent.trim())""")
        assert too_large == wrong == []
        printed = page.pdf(prefer_css_page_size=True)
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) == int(last)


def test_the_command_writes_them(tmp_path):
    import typer

    from mechlab_course.site.commands import slides

    app = typer.Typer()
    app.command()(slides)
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "slides")])
    assert done.exit_code == 0 and "arrow keys" in done.stdout
    assert len(list((tmp_path / "slides").glob("*.html"))) == done.stdout.count(" slides, ") == 7
