"""How the stored solutions look: tables, numbers, warnings, folded sentences, and every figure drawn in a browser."""

import json
import re
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from mechlab.pictures.twins import WORDS
from mechlab_course.build.execute import PLOTLY, browser_page, chromium

SOLUTIONS = sorted((Path(__file__).parents[1] / "solutions").glob("*.ipynb"))
by_solution = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.name[:2])
COUNTS = re.compile(
    r"layer|head|heads|vectors|neurons\b.*|how many|texts|count|rank|feature|features|step|runs"
)


def outputs(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            yield output, {kind: text_of(value) for kind, value in output.get("data", {}).items()}


def text_of(value):
    return value if isinstance(value, (str, dict)) else "".join(value)


def tables(html):
    """Rows of each table that pandas wrote: lists of cells."""
    for table in re.findall(r'<table[^>]*class="dataframe".*?</table>', html, re.DOTALL):
        rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        yield [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]


def faults_of(rows):
    """What is wrong with a table: NaN, a count with a point, a column whose points do not stand below each other."""
    head, *body = rows
    columns = {
        name: [row[n] for row in body if len(row) == len(head) and row[n]] for n, name in enumerate(head)
    }
    of_numbers = re.compile(r"-?\d+\.\d+")
    faults = []
    for name, cells in columns.items():
        numbers = [cell for cell in cells if of_numbers.fullmatch(cell)]
        faults += [f"{name}: {cell}" for cell in cells if cell in ("NaN", "nan", "None", "inf", "NaT")]
        if COUNTS.fullmatch(name) and cells and all(re.fullmatch(r"-?\d+\.0", cell) for cell in cells):
            faults.append(f"{name}: {cells[0]} of a count")
        if len({len(number.partition(".")[2]) for number in numbers}) > 1 and "SmolLM2, stored" not in head:
            faults.append(f"{name}: not aligned at the point")
    return faults


@by_solution
def test_tables_hold_neither_nan_nor_counts_with_a_point(path):
    for _, data in outputs(path):
        for rows in tables(data.get("text/html", "")):
            assert not faults_of(rows)


def test_the_lint_for_tables_sees_the_faults_of_november_2026():
    assert faults_of([["", "head"], ["0", "7.0"], ["1", "3.0"]]) == ["head: 7.0 of a count"]
    assert faults_of([["", "gap"], ["0", "NaN"]]) == ["gap: NaN"]
    assert faults_of([["", "gap"], ["0", "4.70"], ["1", "4.7"]]) == ["gap: not aligned at the point"]
    assert not faults_of([["", "place", "gap"], ["0", "23.0", "4.70"], ["1", "20.0", "0.12"]])


@by_solution
def test_names_of_the_code_stand_in_no_figure_and_no_table(path):
    for _, data in outputs(path):
        shown = [cell for rows in tables(data.get("text/html", "")) for row in rows for cell in row]
        for trace in data.get(PLOTLY, {}).get("data", ()):
            lists = [trace[axis] for axis in ("x", "y", "text") if isinstance(trace.get(axis), list)]
            shown += [trace.get("name", ""), *(each for one in lists for each in one)]
        assert not [
            each
            for each in shown
            if re.fullmatch(r"(?!hook_)[a-z]+_[a-z_]+", each if isinstance(each, str) else "")
        ]


@by_solution
def test_nothing_printed_is_a_warning_or_has_ten_digits(path):
    for output, data in outputs(path):
        printed = text_of(output.get("text", "")) or data.get("text/plain", "")
        assert output.get("name") != "stderr", printed
        assert not re.search(r"\d\.\d{7}|\de[+-]\d\d\b|\btensor\(|np\.float", printed), printed


@by_solution
def test_the_sentence_of_a_picture_is_folded_under_it(path):
    *shown, _ = [*outputs(path), (None, {})]
    for (_, data), (_, below) in zip(shown, [*shown[1:], (None, {})], strict=True):
        if PLOTLY in data:
            assert WORDS in below.get("text/html", ""), "an old output: run the solution again"


# The numbers of short arrows that point the same way may touch: they are one letter long.
DRAWN = r"""figure => { document.body.innerHTML = '<div id="figure"></div>';
  return Plotly.newPlot('figure', figure.data, figure.layout, figure.config).then(() => {
    const box = e => e.getBoundingClientRect(), found = [], paper = box(document.querySelector('.main-svg'));
    const across = (a, b, by) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > by
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > by;
    const texts = [...document.querySelectorAll('svg text')].map(e => [e.textContent.trim(), box(e), e])
      .filter(([said, at, e]) => said && at.width && !e.closest('.modebar'));
    for (const [said, at] of texts)
      if (at.left < paper.left - 1 || at.right > paper.right + 1 || at.top < paper.top - 1 || at.bottom > paper.bottom + 1)
        found.push(said + ' is cut off');
    texts.forEach(([said, at], n) => texts.slice(n + 1).forEach(([other, place]) => {
      if (said.length + other.length > 2 && across(at, place, 4)) found.push(said + ' lies on ' + other); }));
    const solid = [...document.querySelectorAll('.modebar, .barlayer .point path')];
    for (const [said, at, e] of texts)
      if (!e.closest('.barlayer') && solid.some(one => across(at, box(one), 3))) found.push(said + ' lies on a bar');
    if (paper.width > 940) found.push('wider than the pane: ' + paper.width);
    return found; }); }"""


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="Chromium is not installed")
def test_in_no_figure_is_a_text_cut_off_or_lies_on_another():
    with browser_page(1366, 1400) as page:
        page.set_content("<body></body>")
        page.add_script_tag(content=get_plotlyjs())
        for path in SOLUTIONS:
            for _, data in outputs(path):
                if PLOTLY in data:
                    found = page.evaluate(DRAWN, data[PLOTLY])
                    title = data[PLOTLY]["layout"]["title"]["text"]
                    assert not found, (path.name, title, found)
        lying = {
            "data": [{"y": [1], "type": "bar"}],
            "layout": {"annotations": [{"text": "on it", "y": 0.5, "x": 0}], "width": 700, "height": 400},
        }
        assert page.evaluate(DRAWN, lying) == ["on it lies on a bar"]
