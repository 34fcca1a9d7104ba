"""The name of this machine's processor: ratios hang on its kind."""

from __future__ import annotations

import platform
from pathlib import Path

_LINUX = Path("/proc/cpuinfo")


def processor_name(described: str | None = None) -> str:
    r"""Its name and, where Linux tells them, its family and model.

    Args:
        described: text of `/proc/cpuinfo`; by default, this machine's.

    Example:
        >>> processor_name("model name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: 17\n")
        'AMD EPYC (family 25, model 17)'
    """
    if described is None:
        described = _LINUX.read_text() if _LINUX.exists() else ""
    fields = dict(line.split(":", 1) for line in described.split("\n\n")[0].splitlines() if ":" in line)
    found = {name.strip(): value.strip() for name, value in fields.items()}
    if "model name" not in found:
        return platform.processor() or platform.machine()
    details = [f"{word} {found[name]}" for name, word in (("cpu family", "family"), ("model", "model")) if name in found]
    return f"{found['model name']} ({', '.join(details)})" if details else found["model name"]
