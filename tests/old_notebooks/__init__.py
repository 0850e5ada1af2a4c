"""Notebooks as learners have had them since before the package was split in two; they must go on working.

names.txt    what all of them ask of the package: imports, and names after `ml.`
00, 12, 41   the code cells of three of them

Made from a commit by `python -m tests.old_notebooks 8ec4bc7`, the last one before the split.
"""

import ast
import json
from pathlib import Path

FOLDER = Path(__file__).parent
KEPT = ("00_start_here", "12_direct_logit_attribution", "41_ioi_finding")


def names(code: str) -> set[str]:
    """What a cell asks of the package, as `import a.b`, `from a.b import c` and `ml.a.b`."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {f"import {each.name}" for each in node.names if each.name.startswith("mechlab")}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("mechlab"):
            found |= {f"from {node.module} import {each.name}" for each in node.names}
        elif isinstance(node, ast.Attribute) and (dotted := _dotted(node)).startswith("ml."):
            found.add(dotted)
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def _dotted(node: ast.expr) -> str:
    """`ml.a.b` as text; of anything else a text that does not begin with `ml.`."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def cells(stem: str) -> list[str]:
    """The code cells of a notebook that is kept, without lines that only IPython understands."""
    kept = json.loads((FOLDER / f"{stem}.json").read_text(encoding="utf-8"))
    plain = lambda code: "\n".join(
        line for line in code.split("\n") if not line.lstrip().startswith(("%", "!"))
    )
    return [plain(code) for code in kept]
