"""The processor: its name, since the last bits of a result depend on it, and its cores."""

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux alone has it


def name(cpuinfo: Path = CPUINFO) -> str:
    """As the system tells it; of other systems than Linux, the kind of processor at least."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def num_cores() -> int:
    """That this process may use: a batch system may have given it a part of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
