"""How much memory is free. Without torch, so that `mechlab doctor` can ask where torch is broken."""

import os
from pathlib import Path


def free_ram() -> int | None:
    """Main memory that can still be used, in bytes, with what Linux could free; None where nothing says."""
    try:
        rows = Path("/proc/meminfo").read_text().splitlines()
        return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
