"""What the package finds around itself: versions, what it repairs in RecBole, devices, and the engines of `prepare`."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.multiprocessing

from recbole_cafe.host import compat


def lines() -> list[str]:
    """For people."""
    found = versions()
    said = ["environment", *(f"  {name:<16} {version}" for name, version in found.items())]
    devices = [device_name(torch.device("cuda", number)) for number in range(torch.cuda.device_count())]
    said.append(f"  {'device':<16} {', '.join(devices) if torch.cuda.is_available() else 'CPU only'}")
    for name, module, extra in (("DuckDB engine", "duckdb", "prepare"), ("Spark engine", "pyspark", "spark")):
        there = importlib.util.find_spec(module) is not None and importlib.util.find_spec("ibis") is not None
        how = "installed" if there else f"not installed (pip install 'recbole-cafe[{extra}]')"
        if there and module == "pyspark" and shutil.which("java") is None:
            how = "installed, but there is no Java (it needs 17)"
        said.append(f"  {name:<16} {how}")
    said.append("defects of RecBole, repaired where they apply here (RECBOLE_CAFE_COMPAT=0 switches that off)")
    for entry in compat.DEFECTS:
        said.append(f"  {'repaired' if entry.applied else 'not needed or off':<18} {entry.name}: {entry.what}")
    return said


PACKAGES = ("recbole-cafe", "recbole", "torch", "numpy", "pandas", "scipy")


def versions() -> dict[str, str]:
    """Versions of what decides about numbers."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    import recbole_cafe

    found["recbole-cafe"] = recbole_cafe.__version__
    found["threads"] = str(torch.get_num_threads())
    return found


def device_name(device: torch.device) -> str:
    """What a device is: the name of the GPU, or its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
