"""The commands `mechlab site` and `mechlab slides`."""

from pathlib import Path
from typing import Annotated

import typer

from mechlab_course.console import need_checkout, say


def site(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("site"),
    check: Annotated[bool, typer.Option(help="Also check links, ids, alternative texts and sizes.")] = False,
) -> None:
    """Make a static web site of the executed course (for authors). No model is run."""
    need_checkout("mechlab site")
    from mechlab_course.site.build import site, write
    from mechlab_course.site.check import problems, size_of

    files = site()
    write(files, out)
    pages = [name for name in files if name.endswith(".html")]
    largest = max(pages, key=lambda name: size_of(files, name))
    say(
        f"{len(pages)} pages in {out}, {sum(map(len, files.values())) / 1e6:.1f} MB in all; "
        f"the largest, {largest}, {size_of(files, largest) / 1e6:.2f} MB with its pictures."
    )
    found = problems(files) if check else []
    for line in found:
        say(line)
    raise SystemExit(min(len(found), 1))


def slides(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("slides"),
) -> None:
    """Make slides for a talk about each part, from the executed notebooks (for teachers). No model is run."""
    need_checkout("mechlab slides")
    from mechlab_course.site.slides import decks

    made = decks()
    if not made:
        say("There are no executed notebooks here, in solutions/. Make slides in a clone of the repository.")
        raise SystemExit(1)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (out / name).write_bytes(content)
        say(f"{out / name}: {content.count(b'<section')} slides, {len(content) / 1e6:.1f} MB")
    say("Open one in a browser: arrow keys turn, a picture comes with a key of its own, and it prints.")
