"""From tensors to a model: networks, ONNX file, loop, optimizers, fast CNN, processes, checkpoint, history.

It may import `core` and `data`. Importing it chooses the instruction set of torch, so that all x86-64
processors with AVX2 give equal bytes. An AMD EPYC trains as fast with AVX2 as with its own set, AVX-512.
"""

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # of Linux
# torch reads them at its first operation. Whoever sets them chooses another set, and gets other bytes.
VARIABLES = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

if CPUINFO.is_file() and " avx2 " in CPUINFO.read_text(encoding="utf-8"):
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)

ONE_INSTRUCTION_SET = all(os.environ.get(name) == value for name, value in VARIABLES.items())
