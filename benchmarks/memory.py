"""Memory of a process, as Linux counts it: what only it has, and what it shares with others."""

import re
from pathlib import Path


def memory(pid: int | str = "self") -> dict[str, float]:
    """GB: resident, proportional (shared pages divided by those who share them), shared and private."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    gb = {key: int(value) / 1e6 for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {
        "resident": gb["Rss"],
        "proportional": gb["Pss"],
        "shared": gb["Shared_Clean"] + gb["Shared_Dirty"],
        "private": gb["Private_Clean"] + gb["Private_Dirty"],
    }
