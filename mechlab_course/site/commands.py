"""The command `mechlab site`."""

from pathlib import Path
from typing import Annotated

import typer

from mechlab_course.console import say


def site(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("site"),
    check: Annotated[bool, typer.Option(help="Also check links, ids, alternative texts and sizes.")] = False,
) -> None:
    """Make a static web site of the executed course (for authors). No model is run."""
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
