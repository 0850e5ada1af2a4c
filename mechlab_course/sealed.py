"""A seal against reading by accident: checks and explanations that are packed, and run as they did.

`mechlab release --no-answers` puts it on. Whoever wants opens it, with the function below: what a machine can
run, its owner can read. `mechlab release --exam` keeps back what must not be known.
"""

import base64
import textwrap
import zlib
from pathlib import Path

_MARK = "#| "
_RUN = """\
from pathlib import Path

from mechlab_course import sealed

exec(compile(sealed.read(Path(__file__)), __file__, "exec"))
"""


def seal(text: str, *, runs: bool = False) -> str:
    """The text, packed into lines of comment. runs: it is a module, and is still one."""
    packed = base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    lines = [_MARK + line for line in textwrap.wrap(packed, 100)]
    about = "# Sealed by `mechlab release --no-answers`: what stands here would give answers away."
    return "\n".join([about, _RUN * runs, *lines, ""])


def read(path: Path) -> str:
    """The text of a file, whether it is sealed or not."""
    text = path.read_text(encoding="utf-8")
    packed = "".join(line.removeprefix(_MARK) for line in text.splitlines() if line.startswith(_MARK))
    return zlib.decompress(base64.b85decode(packed)).decode() if packed else text
