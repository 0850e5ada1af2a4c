"""The search index: which sections hold which word. A script, since a page in a folder may fetch no file."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence

from mechlab_course.site.notebook import Page, shortened

WORD = re.compile(r"[a-z0-9_]+(?:[.+×-][a-z0-9_]+)*")
DULL = """a an and are as at be but by can do does for from has have how if in into is it its no not of on one
or so than that the their them then there they this to two was we what when which with you your"""
EXCERPT = 150


def words(text: str) -> set[str]:
    """The words of a text as typed: "ml.head_scores" is also "head_scores", "head" and "scores"."""
    found = set()
    for whole in WORD.findall(text.lower()):
        found |= {whole, *re.split(r"[.+×-]", whole), *re.split(r"[.+×_-]", whole)}
    return {word for word in found if len(word) > 1 and word not in DULL.split()}


def index(pages: Sequence[Page]) -> str:
    """The index of some pages as JavaScript."""
    sections, where = [], defaultdict(list)
    for number, page in enumerate(pages):
        for anchor, heading, said, more in page.sections:
            for word in words(f"{heading} {said} {more}"):
                where[word].append(len(sections))
            sections.append([number, anchor, heading, shortened(said, EXCERPT)])
    titles = [[page.file, f"{page.number} {page.title}".strip()] for page in pages]
    # Numbers of sections as differences in base 36: a third of the bytes.
    packed = {word: _packed(numbers) for word, numbers in sorted(where.items())}
    made = json.dumps(
        {"pages": titles, "sections": sections, "words": packed}, ensure_ascii=False, separators=(",", ":")
    )
    return f"window.mechlabIndex={made};\n"


def _packed(numbers: list[int]) -> str:
    steps = [after - before for before, after in zip([0, *numbers], numbers, strict=False)]
    return " ".join(_base36(step) for step in steps)


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return digits[number] if number < 36 else _base36(number // 36) + digits[number % 36]
