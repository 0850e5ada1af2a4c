"""What the checks say of every answer there is, one line each, so that two versions of a check can be compared.

    python -m tests.judgements before.jsonl --only 34        # at the old commit
    python -m tests.judgements after.jsonl --only 34 --answers before.jsonl
    python -m tests.judgements --compare before.jsonl after.jsonl

Answers: solutions, stubs, wrong variants, declared mistakes, `tried.txt`, and junk. With --answers those of an earlier
file are judged, so that an answer which is no longer written down is not forgotten.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def collected() -> Iterator[tuple[str, str, str, str]]:
    """(exercise, name, code of the answer, code of the check)."""
    from mechlab_course import folders
    from mechlab_course.build.sources import exercises, read
    from tests.test_exercises import tried_answers

    for path in folders.sources().values():
        for id, cell, asks, wrong in exercises(read(path)):
            yield id, "solution", cell.solved(), asks.source
            yield id, "stub", cell.stub(), asks.source
            yield from ((id, f"wrong{n}", each.source, asks.source) for n, each in enumerate(wrong, 1))
    for id, name, code, _ in tried_answers():
        yield id, name, code, "check(f)"


def judged(answers: list[tuple[str, str, str, str]]) -> Iterator[dict]:
    """What the check says of each; junk for each exercise comes last."""
    from mechlab_course import check, exercise
    from tests.cells import shown
    from tests.test_exercises import JUNK, setup_names

    setup = setup_names()
    for id, name, code, asks in answers:
        names = dict(setup)
        exec(compile(code, "<answer>", "exec"), names)
        if asks == "check(f)":
            names["f"] = exercise(id)(names["f"])
        yield {"id": id, "name": name, "code": code, "asks": asks} | _said(shown(asks, names))
    for id in sorted({id for id, *_ in answers}):
        for kind, junk in JUNK.items():
            given = exercise(id)(lambda *args, junk=junk, **named: junk(*args, **named))
            yield {"id": id, "name": f"junk {kind}", "code": "", "asks": ""} | _said(
                check(given, setup["model"])
            )


def _said(outcome) -> dict:
    return {"status": outcome.status, "message": outcome.message}


def compare(before: Path, after: Path, only: str) -> int:
    """Print every difference; returns how many there are."""
    tables = []
    for path in (before, after):
        rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        tables.append(
            {
                (row["id"], row["name"]): (row["status"], row["message"])
                for row in rows
                if row["id"].startswith(only)
            }
        )
    different = [key for key in sorted({*tables[0], *tables[1]}) if tables[0].get(key) != tables[1].get(key)]
    for key in different:
        print(*key, *(f"\n    {table.get(key, 'not there')}" for table in tables))
    print(f"{len(tables[0])} judgements before, {len(tables[1])} after, {len(different)} differ.")
    return len(different)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--only", default="", help="exercises whose number starts so")
    parser.add_argument("--answers", type=Path, help="judge the answers of this earlier file")
    parser.add_argument("--compare", nargs=2, type=Path)
    given = parser.parse_args()
    if given.compare:
        return min(1, compare(*given.compare, given.only))
    os.environ["MECHLAB_HOME"] = tempfile.mkdtemp()
    os.environ.pop("MECHLAB_STRICT", None)
    if given.answers:
        rows = [json.loads(line) for line in given.answers.read_text(encoding="utf-8").splitlines()]
        answers = [
            (r["id"], r["name"], r["code"], r["asks"])
            for r in rows
            if r["code"] and r["id"].startswith(given.only)
        ]
    else:
        answers = [answer for answer in collected() if answer[0].startswith(given.only)]
    with given.file.open("w", encoding="utf-8") as file:
        for row in judged(answers):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
