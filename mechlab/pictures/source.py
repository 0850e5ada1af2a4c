"""Show a function's source in a notebook, so that a lesson and the library can never differ."""

import inspect
import textwrap
from collections.abc import Callable


class Source:
    """Python source that draws itself with colours in a notebook and as plain text elsewhere."""

    def __init__(self, code: str, where: str):
        self.code, self.where = code, where

    def __repr__(self) -> str:
        return self.code

    def _repr_markdown_(self) -> str:
        return f"`{self.where}`\n\n```python\n{self.code}\n```"


def show_source(function: Callable) -> Source:
    """The source of a function or class of mechlab (or of any other library)."""
    function = inspect.unwrap(function)
    code = textwrap.dedent(inspect.getsource(function)).rstrip()
    return Source(code, f"{function.__module__}.{function.__qualname__}")
