"""What the commands say: long lines are not broken, and no word is taken for markup."""

import sys

from rich.console import Console
from rich.markup import escape

from mechlab_course.folders import CHECKOUT

console = Console(soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """Print a line; a letter that this terminal has no code for becomes a question mark, never an error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    console.print(escape(text.encode(encoding, "replace").decode(encoding)))


def need_checkout(command: str) -> None:
    """Stop a command that works on the course's sources, where there are none."""
    if not CHECKOUT:
        say(f"`{command}` works in a clone of the course's repository, with `pip install -e .` there.")
        raise SystemExit(1)
