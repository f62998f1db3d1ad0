"""The name of the processor, since the last bits of a result depend on it."""

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux alone has it


def name(cpuinfo: Path = CPUINFO) -> str:
    """As the system tells it; of other systems than Linux, the kind of processor at least."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
