"""The processor: its name, since the last bits of a result depend on it, and its cores."""

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # of Linux


def name(cpuinfo: Path = CPUINFO) -> str:
    """Return the name of the processor; on other systems than Linux, its kind."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def num_cores() -> int:
    """Return the number of cores that this process may use; a batch system may give it a part of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
