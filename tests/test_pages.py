"""The pages of docs/ that lead beyond the course: their code prints what they show, their links are well-formed."""

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mechlab.loading import checkpoints

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("beyond", "tools", "reading")}
LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")
by_page = pytest.mark.parametrize("name", PAGES)


def blocks(name: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[name], re.DOTALL)


def printed(code: str) -> str:
    with contextlib.redirect_stdout(said := io.StringIO()), torch.random.fork_rng():
        exec(compile(code, "<page>", "exec"), {"__name__": "page"})
    return said.getvalue()


def moves_from_the_patch_to_where_it_is_read(table: str) -> bool:
    """What the toy shows, whatever the machine rounds: four layers, three shares each."""
    rows = [[float(number) for number in line.split()[1:]] for line in table.strip().splitlines()]
    (*_, early), (token, striped, _) = zip(*rows, strict=True), rows[-1]
    first = rows[0][1] > 0.99 and abs(rows[0][0]) < 0.02
    return len(rows) == 4 and first and max(map(abs, early)) < 0.05 and token > 0.4 > striped


def test_the_toy_of_patches_does_what_the_page_shows():
    (code,), (table,) = blocks("beyond"), blocks("beyond", "text")
    assert moves_from_the_patch_to_where_it_is_read(table)
    assert moves_from_the_patch_to_where_it_is_read(found := printed(code)), found


def promised(code: str) -> list[float]:
    return [float(number) for number in re.findall(r"tensor\(\[?([−-]?[\d.]+)\]?\)", code)]


def test_the_three_tools_are_said_to_print_the_same():
    assert [promised(code) for code in blocks("tools")] == [[5.5763, 0.0189]] * 3
    for code in blocks("tools"):
        compile(code, "<page>", "exec")
        assert len(code.split("\n\n", 1)[1].strip().splitlines()) <= 12


@pytest.mark.model
def test_our_ten_lines_print_it():
    assert promised(printed(blocks("tools")[0])) == pytest.approx([5.5763, 0.0189], abs=0.01)


@pytest.mark.model
@pytest.mark.parametrize(("tool", "place"), [("nnsight", 1), ("pyvene", 2)])
def test_the_other_tools_print_it_where_they_are_installed(tool, place, tmp_path):
    """They are no part of the course: `pip install` them into an environment of your own to run this."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    code = blocks("tools")[place].replace("cache/smollm2/raw", str(checkpoints.prepare("raw")))
    (path := tmp_path / "page.py").write_text(code, encoding="utf-8")  # nnsight reads the source of a `with`
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert promised(done.stdout) == pytest.approx([5.5763, 0.0189], abs=0.01), done.stderr


@by_page
def test_links_are_well_formed(name):
    """A title, an address without blanks, and none that leads to this machine or to nobody."""
    links = LINK.findall(PAGES[name])
    assert len(links) == PAGES[name].count("](") > 5
    for title, target in links:
        assert title.strip() and not re.search(r"\s", target), (title, target)
        if "://" in target:
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./-]*)?", target), target
        else:
            assert (DOCS / target).exists(), target


@by_page
def test_a_paper_has_the_year_of_its_address(name):
    """arXiv numbers begin with year and month; a paper may be dated by its journal, up to a year later."""
    for title, target in LINK.findall(PAGES[name]):
        if "arxiv.org" in target:
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", target), target
            for year in re.findall(r"\b20\d\d\b", title):
                assert int(year) - int(f"20{target[-10:-8]}") in (0, 1), (title, target)


def test_each_question_has_its_papers_its_warning_and_its_experiment():
    questions = PAGES["beyond"].split("\n## ")[1:]
    assert len(questions) == 6
    for text in questions:
        parts = ("**Question.**", "**Start with.**", "**Too quick.**", "experiment.**")
        places = [text.find(part) for part in parts]
        assert places == sorted(places) and places[0] > 0, text[:40]
        assert text.count("arxiv.org/abs/") and len(LINK.findall(text)) >= 2


@by_page
def test_a_page_is_short(name):
    assert len(re.sub(r"(?s)```.*?```", "", PAGES[name]).split()) <= 1200
