"""What the commands say: long lines are not broken, and no word is taken for markup."""

from rich.console import Console
from rich.markup import escape

console = Console(soft_wrap=True, highlight=False)


def say(text: str) -> None:
    console.print(escape(text))
