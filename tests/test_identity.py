"""What the project says of itself: the papers it stands on, licences of data, how to cite it, where to write."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from IPython.core.formatters import DisplayFormatter

from mechlab import reference
from mechlab_course.build import execute, links
from mechlab_course.folders import sources
from mechlab_course.site.cite import bibtex
from mechlab_course.site.prose import Links

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
CITED = re.compile(r"\b[A-Z][\w-]+(?: [A-Z]\w+)?(?: et al\.| and [A-Z]\w+)?,? \(?(?:19|20)\d\d\b")
FORMS = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
TWO_PAPERS = "Yu and Ananiadou (2024"  # of that year, so the words around it tell which


def bibliography() -> pd.DataFrame:
    return pd.read_csv(DATA / "reference" / "bibliography.csv", dtype=str).fillna("")


# Papers ---------------------------------------------------------------------------------------------------------------


def test_every_paper_has_a_title_and_where_to_read_it():
    papers = bibliography()
    assert papers.citation.is_unique and (papers.title.str.len() > 10).all()
    read = papers[papers.address != ""]
    assert read.address.is_unique and read.address.str.match(r"https://[\w.-]+/\S+$").all()
    assert list(papers[papers.address == ""].citation) == ["Westfall and Young 1993"]  # a book
    assert "arxiv.org/pdf" not in " ".join(read.address)  # its page, where one sees later versions


def test_every_source_of_a_published_figure_leads_to_its_paper():
    known = tuple(reference.addresses())
    rows = pd.read_csv(DATA / "reference" / "paper.csv", dtype=str)
    assert [source for source in rows.source if not source.startswith(known)] == []


@pytest.mark.parametrize("stem", sources())
def test_whatever_a_notebook_cites_is_in_the_bibliography(stem):
    text = sources()[stem].read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"\n# ?", " ", text))
    cited = Links({}, papers=dict.fromkeys(bibliography().citation, "")).cited
    rest = cited.sub("", text)
    assert set(CITED.findall(rest)) <= {TWO_PAPERS}


def test_a_table_leads_to_papers_as_html_and_is_plain_as_text():
    table = reference.table("00")
    shown, _ = DisplayFormatter().format(table)
    link = '<td><a href="https://arxiv.org/abs/2211.00593">Wang et al. 2022, section 2</a></td>'
    assert shown["text/html"].count(link) == 3 and "arxiv" not in shown["text/plain"]
    assert set(table.source) == {"Wang et al. 2022, section 2"} and "arxiv" not in table.to_string()


def test_the_longest_citation_counts_and_what_is_unknown_stays(monkeypatch, tmp_path):
    sources = ["Yu and Ananiadou 2024, arithmetic, table 1", "Yu and Ananiadou 2024, table 2", "a < b"]
    page = "".join(f"<td>{each.replace('<', '&lt;')}</td>" for each in sources)
    found = re.findall(r'<td>(?:<a href="(.*?)">)?', reference.linked(page, sources))
    assert found == ["https://arxiv.org/abs/2409.14144", "https://arxiv.org/abs/2312.12141", ""]
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "paper.csv").touch()
    monkeypatch.setenv("MECHLAB_DATA", str(tmp_path))  # of an earlier version
    assert reference.addresses() == {} and reference.linked(page, sources) == page


# Licences of the data ------------------------------------------------------------------------------------------------


def rows() -> dict[str, tuple[str, str]]:
    """Files and folders of data/ -> where they come from, and their licence, as data/README.md says."""
    text = (DATA / "README.md").read_text(encoding="utf-8")
    found = {}
    for row in re.findall(r"^\| (`.*) \|$", text, re.MULTILINE):
        cells = row.split(" | ")
        assert len(cells) == 5, row
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), (cells[3], cells[4]))
    return found


def test_every_file_of_the_data_has_a_row_with_source_and_licence():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    files = {name.removeprefix("data/") for name in listed if (ROOT / name).exists()} - {"README.md"}
    known = rows()
    covers = lambda row, file: file == row or (row.endswith("/") and file.startswith(row))
    assert sorted(file for file in files if sum(covers(row, file) for row in known) != 1) == []
    assert sorted(row for row in known if not any(covers(row, file) for file in files)) == []
    assert {licence for _, licence in known.values()} == {"MIT", "Apache-2.0", "CC-BY-4.0"}


def test_what_comes_from_the_model_has_its_licence_and_facts_of_geonames_theirs():
    known = rows()
    for file in (path for path in DATA.rglob("*.safetensors")):
        name = file.relative_to(DATA).as_posix()
        row = next(row for row in known if name == row or (row.endswith("/") and name.startswith(row)))
        trained_here = name.startswith("planted/")  # from nothing, on prompts of our own
        own = ("this course", "MIT")
        assert known[row] == (own if trained_here else ("SmolLM2-135M-Instruct", "Apache-2.0")), name
    assert known["text/smollm2.jsonl"][1] == "Apache-2.0"
    assert known["probing/cities.csv"] == ("GeoNames", "CC-BY-4.0")


def test_the_package_takes_the_licences_with_its_data():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "/data" in wheel["include"] and wheel["sources"]["data"] == "mechlab/data"
    assert not [each for each in wheel["exclude"] if "README" in each]


# How to cite it, where it lies, where to write -----------------------------------------------------------------------


def test_the_citation_file_as_bibtex():
    made = bibtex((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert made.startswith("@software{mechlab,\n  title = {mechlab: ") and made.endswith("}")
    assert "  author = {{The mechlab authors}},\n" in made and ("url" in made) == bool(links.published())
    given = {
        "title": "T",
        "version": "1.2",
        "date-released": "2027-03-01",
        "repository-code": "https://a.b/c",
    }
    people = [{"family-names": "Doe", "given-names": "Jo"}, {"name": "The Others"}]
    assert bibtex(yaml.safe_dump(given | {"authors": people})) == (
        "@software{mechlab,\n  title = {T},\n  author = {Doe, Jo and {The Others}},\n  year = {2027},\n"
        "  version = {1.2},\n  url = {https://a.b/c},\n}"
    )


@pytest.mark.parametrize(
    ("address", "published", "colab", "pages"),
    [
        ("https://github.com/OWNER/mechlab", "", "", ""),
        (
            "https://github.com/Some/thing",
            "https://github.com/Some/thing",
            "https://colab.research.google.com/github/Some/thing/blob/main/notebooks/12_x.ipynb",
            "https://some.github.io/thing/",
        ),
        ("https://git.school.example/mechlab", "https://git.school.example/mechlab", "", ""),
    ],
)
def test_no_address_leads_to_nobody(monkeypatch, address, published, colab, pages):
    monkeypatch.setattr(links, "address", lambda: address)
    assert (links.published(), links.colab("12_x"), links.pages()) == (published, colab, pages)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_for_issues_is_one_that_github_can_read(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert (
            field["type"] in ("textarea", "input", "dropdown", "checkboxes") and field["attributes"]["label"]
        )
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_forms_ask_what_helps_and_name_nobody():
    said = {path.stem: path.read_text(encoding="utf-8") for path in FORMS}
    assert "`mechlab doctor`" in said["bug"] and "Which sentence?" in said["claim"]
    assert {"bug", "claim", "notebook"} == said.keys()
    pages = ["SECURITY.md", "CODE_OF_CONDUCT.md", ".github/PULL_REQUEST_TEMPLATE.md"]
    for text in [*said.values(), *((ROOT / page).read_text(encoding="utf-8") for page in pages)]:
        assert not re.search(r"\S@\S+\.\w|OWNER", text)


# Explorers in stored solutions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "solutions").glob("*.ipynb")), ids=lambda path: path.name[:2])
def test_no_output_can_only_be_read_by_who_has_its_kernel(path):
    """Where widgets are not drawn, as on GitHub, an explorer is a picture and a sentence."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            assert execute.WIDGET not in data
            assert not re.match(
                r"\w*(Box|Output|Slider|Tab|HTML|Widget)\(", "".join(data.get("text/plain", ""))
            )
            assert 'class="mechlab-explorer"' not in "".join(data.get("text/html", ""))
            if execute.EXPLORER in data:
                assert data["image/png"].startswith("iVBORw0KGgo") and "text/html" not in data
                assert len(data["text/plain"]) > 70 and "<style" not in data[execute.EXPLORER]


def test_an_explorer_is_stored_as_a_picture_a_sentence_and_a_copy_without_controls(monkeypatch):
    copy = (
        '<div class="mechlab-explorer"><style>p {}</style><p>layer: 23</p><img hidden onerror="f()">'
        "<table><caption>logits</caption><tr><td>first</td><td><div></div></td><td><code>+5.58</code></td></tr></table>"
        '<div>4 of 5 are kept.</div><p class="mechlab-awake">Run it again.</p></div>'
    )
    monkeypatch.setattr(execute, "png_of_explorer", lambda page, copy: "iVBOR")
    data = {execute.WIDGET: {"model_id": "1"}, "text/html": [copy], "text/plain": "An explorer."}
    execute._shrink({"data": data, "metadata": {}}, page=None)
    assert data["text/plain"] == (
        "An explorer, as it stood when the cell was run. layer: 23; logits; first +5.58; 4 of 5 are kept."
    )
    assert set(data) == {execute.EXPLORER, "image/png", "text/plain"}
    assert not re.search("style|awake|onerror", data[execute.EXPLORER]) and "5.58" in data[execute.EXPLORER]
