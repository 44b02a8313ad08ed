"""What the package finds around itself: versions, what it repairs in RecBole, devices, and the engines of `prepare`.

PyTorch and RecBole are loaded when a function needs them, not by importing this module.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import TYPE_CHECKING

import recbole_cafe

if TYPE_CHECKING:
    import torch

PACKAGES = ("recbole-cafe", "recbole", "torch", "numpy", "pandas", "scipy")


def lines() -> list[str]:
    """Describe the environment for people, a line each."""
    import torch

    from recbole_cafe.host import compat
    from recbole_cafe.host.registry import install

    install()  # so that what is repaired has been
    report = ["environment", *(f"  {name:<16} {number}" for name, number in versions().items())]
    devices = [device_name(torch.device("cuda", number)) for number in range(torch.cuda.device_count())]
    report.append(f"  {'device':<16} {', '.join(devices) if torch.cuda.is_available() else 'CPU only'}")
    for name, module, extra in (("DuckDB engine", "duckdb", "prepare"), ("Spark engine", "pyspark", "spark")):
        installed = all(importlib.util.find_spec(needed) is not None for needed in (module, "ibis"))
        how = "installed" if installed else f"not installed (pip install 'recbole-cafe[{extra}]')"
        if installed and module == "pyspark" and shutil.which("java") is None:
            how = "installed, but there is no Java (it needs 17)"
        report.append(f"  {name:<16} {how}")
    report.append("defects of RecBole, repaired where they apply here (RECBOLE_CAFE_COMPAT=0 switches that off)")
    for entry in compat.DEFECTS:
        report.append(f"  {'repaired' if entry.applied else 'not needed or off':<18} {entry.name}: {entry.what}")
    return report


def versions() -> dict[str, str]:
    """Return the versions of what decides about numbers, and PyTorch's number of threads."""
    import torch

    numbers = {"python": platform.python_version(), "platform": platform.platform()}
    return {**numbers, **_packages(), "threads": str(torch.get_num_threads())}


def version_line() -> str:
    """Return, in one line, the versions a report of a bug needs, without loading what may be broken."""
    numbers = _packages()
    shown = ("recbole-cafe", "recbole", "torch", "numpy", "pandas")
    python = f"python {platform.python_version()} on {platform.platform()}"
    return ", ".join([*(f"{name} {numbers[name]}" for name in shown), python])


def report_to() -> str:
    """Return where a bug is reported: the page that the package's metadata name, if they name one."""
    try:
        pages = metadata("recbole-cafe").get_all("Project-URL") or []
    except PackageNotFoundError:
        pages = []
    links = dict(page.split(", ", 1) for page in pages)
    return f"at {links['Issues']}" if "Issues" in links else "to those you have recbole-cafe from"


def _packages() -> dict[str, str]:
    numbers = {}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "not installed"
    return {**numbers, "recbole-cafe": recbole_cafe.__version__}


def device_name(device: torch.device) -> str:
    """Return what a device is: the name of the GPU, or its type."""
    if device.type != "cuda":
        return device.type
    import torch

    return torch.cuda.get_device_name(device)
