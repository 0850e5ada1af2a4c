"""What a learner who has just been asked for a prediction can read on the same screen, and whether it gives the answer."""

import ast
import builtins
import json
import math
import re
import textwrap

from mechlab_course.build import notebooks as build
from mechlab_course.questions import Form, declared

SCREEN, WIDTH = 30, 110  # lines of a small laptop, letters of a line
_NUMBER = re.compile(r"(?<![\w.,])[-−+]?\d+(?:\.\d+)?(?![\w.]*\d)")
_USUAL = {
    "each",
    "from",
    "have",
    "most",
    "only",
    "other",
    "same",
    "some",
    "than",
    "that",
    "them",
    "then",
    "they",
    "this",
    "what",
    "with",
}
_WORDS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def calls(code: str, name: str) -> list[ast.Call]:
    """Calls of a function by its bare name, wherever they stand."""
    nodes = ast.walk(ast.parse(code))
    return [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]


def asked(cells: list[dict], name: str) -> dict[str, int]:
    """The id in each `predict("12.p", ...)` or `reveal("12.p", ...)`, and the cell that it stands in."""
    code = [(n, text_of(cell)) for n, cell in enumerate(cells) if cell["cell_type"] == "code"]
    return {call.args[0].value: n for n, text in code if f"{name}(" in text for call in calls(text, name)}


def revealed(stem: str, id: str) -> str:
    """What the executed solution says was measured; "" where its cell shows nothing."""
    path = build.ROOT / "solutions" / f"{stem}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cell = cells[at] if (at := asked(cells, "reveal").get(id)) is not None else {}
    for output in cell.get("outputs", []):
        shown = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        if found := re.search(r"Measured: (.*)\.", shown):
            return found[1]
    return ""


def seen(cell: dict) -> list[tuple[str, str]]:
    """("text", "code" or "check", line) of what a cell shows before anything is run."""
    if cell["cell_type"] == "code":
        lines = text_of(cell).splitlines()
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            return [("code", lines[0])]
        return list(zip(_checking(text_of(cell), len(lines)), lines, strict=True))
    folded = re.sub(
        r"<details>\s*<summary>(.*?)</summary>.*?</details>", r"\1", text_of(cell), flags=re.DOTALL
    )
    paragraphs = re.split(r"\n\s*\n|\n(?=[-|#])", folded)
    lines = [line for each in paragraphs for line in [*textwrap.wrap(" ".join(each.split()), WIDTH), ""]]
    return [("code" if re.match("#|Difficulty|Hint", line) else "text", line) for line in lines]


def _checking(code: str, lines: int) -> list[str]:
    """ "check" for each line of a statement that asserts or claims something, else "code"."""
    kinds = ["code"] * lines
    for node in ast.parse(code).body:
        if any(isinstance(each, ast.Assert) for each in ast.walk(node)) or calls(ast.unparse(node), "claim"):
            kinds[node.lineno - 1 : node.end_lineno] = ["check"] * (node.end_lineno - node.lineno + 1)
    return kinds


def on_screen(cells: list[dict], asked_in: int, revealed_in: int) -> list[tuple[str, str]]:
    """What stands below a prediction: a screen, or as far as its reveal if that is within two."""
    lines = []
    for number, cell in enumerate(cells[asked_in + 1 :], asked_in + 1):
        room = len(seen(cell)) if number <= revealed_in else SCREEN - len(lines)
        lines += seen(cell)[: max(0, min(room, 2 * SCREEN - len(lines)))]
    return lines


def _is_rounded(written: str, answer: str) -> bool:
    """Whether a number in a text is the answer, perhaps rounded."""
    written = written.replace("−", "-")
    places = len(written.partition(".")[2])
    if places == 0 and "." in answer:
        return False
    return math.isclose(round(float(answer), places), float(written), abs_tol=1e-9)


def gives_away(kind: str, line: str, answer: str) -> bool:
    """Whether a line says what was measured: numbers, perhaps rounded or in words, or tokens, or a name."""
    if kind == "code":
        return False
    if (
        len(answer) == 1 and answer.isalpha()
    ):  # a letter that no text has; what is checked tells it all the same
        return kind == "check"
    if answer.startswith("["):
        return answer.strip("[]") in line
    line = re.sub(r"\b[Ll]ayers? \d+( to \d+)?|\b[Nn]otebooks? \d\d", "", line)
    numbers = re.findall(r"[-−]?\d+(?:\.\d+)?", re.sub(r"\[.*?\]", "", answer))
    if not numbers:
        return any(word in line for word in re.findall(r"' ?(\w+)'", answer) or [answer])
    whole = int(answer) if answer.isdigit() else len(_WORDS)
    in_words = _WORDS[whole] if kind == "text" and whole < len(_WORDS) else ""
    if in_words and re.search(rf"\b{in_words}\b(?! of\b)", line, re.IGNORECASE):
        return True
    return any(_is_rounded(written, number) for written in _NUMBER.findall(line) for number in numbers)


def _stems(text: str) -> set[str]:
    return {word[:5] for word in re.findall("[a-z]{4,}", text.lower()) if word not in _USUAL}


def told_below(cells: list[dict], id: str, right: str) -> list[str]:
    """Words that only the right choice has, if half of them stand in three lines of the screen below its question."""
    place = asked(cells, "quiz")[id]
    above = next(text for cell in cells[place::-1] if "- **a**" in (text := text_of(cell)))
    choices = dict(
        re.findall(r"- \*\*(\w)\*\*(.*?)(?=\n- \*\*|\n\n|\Z)", above[above.index("- **a**") :], re.DOTALL)
    )
    own = _stems(choices.pop(right)) - _stems(" ".join(choices.values()))
    lines = [each for cell in cells[place + 1 :] for each in seen(cell)][:SCREEN]
    text = [line if kind == "text" else "" for kind, line in lines]
    near = [own & _stems(" ".join(text[n : n + 3])) for n in range(len(text))]
    return next((sorted(found) for found in near if len(found) >= max(2, len(own) / 2)), [])


def spoilers(stem: str, cells: list[dict]) -> list[str]:
    """One line for each prediction whose answer can be read on its screen, or is written in its reveal."""
    found, at = [], asked(cells, "reveal")
    for id, place in asked(cells, "predict").items():
        (call,) = (c for c in calls(text_of(cells[at[id]]), "reveal") if c.args[0].value == id)
        computes = any(
            isinstance(node, ast.Name) and not hasattr(builtins, node.id) for node in ast.walk(call.args[1])
        )
        if not computes:
            found.append(f"{id}: the reveal does not compute: {ast.unparse(call)}")
        if not (answer := revealed(stem, id)):
            found.append(f"{id}: the stored solution does not show what was measured")
            continue
        if answer.split(".")[0] in declared(id[:2], Form)[id].choices:
            answer = answer.split(".")[0]
        lines = on_screen(cells, place, at[id])
        found += [f"{id} is {answer}: {line}" for kind, line in lines if gives_away(kind, line, answer)]
    return found
