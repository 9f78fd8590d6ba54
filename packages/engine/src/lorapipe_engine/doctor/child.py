"""What is asked of torch, in a process of its own: an import that crashes or hangs ends that one alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LONGEST = 180.0  # seconds of an import on a slow disk

_QUESTIONS = """
import json, sys
answer = {}
try:
    import torch
    answer["version"] = torch.__version__
    answer["cuda"] = torch.version.cuda
    answer["hip"] = getattr(torch.version, "hip", None)
    answer["cards"] = []
    if torch.cuda.is_available():
        answer["architectures"] = torch.cuda.get_arch_list()
        for number in range(torch.cuda.device_count()):
            row = torch.cuda.get_device_properties(number)
            free = torch.cuda.mem_get_info(number)[0]
            answer["cards"].append([row.name, row.major, row.minor, row.total_memory, free])
    answer["mps"] = torch.backends.mps.is_available()
    answer["triton"] = True
    try:
        import triton
    except Exception:
        answer["triton"] = False
except BaseException as error:
    lines = str(error).strip().splitlines() or [""]
    answer["error"] = f"{type(error).__name__}: {lines[0]}"[:300]
sys.stdout.write("\\nANSWER " + json.dumps(answer))
"""


def ask_torch() -> dict[str, Any]:
    """What torch says of itself and the cards; ``error`` where it cannot be imported."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _QUESTIONS], capture_output=True, timeout=LONGEST, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return {"error": f"its import did not end in {LONGEST:.0f} s"}
    except OSError as error:
        return {"error": f"no second Python could be started: {error.strerror}"}
    text = ended.stdout.decode("utf-8", "replace")
    _, mark, answer = text.rpartition("\nANSWER ")
    if not mark:
        return {"error": f"Python itself ended with {ended.returncode} at its import"}
    told: dict[str, Any] = json.loads(answer)
    return told
