"""Metadata and dependencies; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "recbole_cafe/__init__.py").read_text(), re.MULTILINE)[1]
# What a bundle is read with, and what it is served with; `pip install -r serving.txt` is an environment without RecBole
LIBRARY, SERVICE = (
    [line for line in part.splitlines() if line and not line.startswith("#")]
    for part in (HERE / "serving.txt").read_text(encoding="utf-8").split("\n\n")
)

BENCHMARK = ["optuna>=3.6", "matplotlib>=3.7"]
# Ibis 12 calls what DuckDB 2 and SQLGlot 30 no longer have.
PREPARE = ["ibis-framework[duckdb]>=10", "duckdb<2", "sqlglot<29", "fsspec>=2023.1"]
SPARK = [*PREPARE, "pyspark>=3.5"]  # needs Java 17
# RecBole 1.2.1 pins Ray to 2.6.3, which today's setuptools, NumPy and Python leave behind; with this extra pip takes
# RecBole 1.2.0, which has no pin.
RAY = ["ray>=2.10"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"]
# Up to Python 3.12 RecTools needs NumPy 1 and pandas 2; PyArrow 26 refuses NumPy 1 on import, without saying so to pip.
PEERS = ["rectools[torch]>=0.19,<0.20", "pyarrow<26; python_version < '3.13'"]
# The site of docs/. textstat 0.7.8 is the last that brings its dictionary along.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
PROSE = ["textstat>=0.7.5,<0.7.9"]
NOTEBOOK = ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]
# setuptools and wheel: a test builds and installs the wheel. Playwright drives the browser of the tests of the page,
# Debian's chromium or its own.
TEST = [
    *BENCHMARK,
    *SPARK,
    *SERVICE,
    *ONNX,
    # on older ones the tests run with RecBole 1.2.1
    *[f"{line}; python_version >= '3.12'" for line in RAY],
    "httpx>=0.25",
    "playwright>=1.40",
    "pytest>=7",
    "pytest-xdist>=3.5",
    "setuptools>=64",
    "wheel",
    *DOCS,
    *PROSE,
    *NOTEBOOK,
]
DEV = [*TEST, "ruff>=0.6", "mypy>=1.10", "codespell>=2.2", "build>=1.2", "twine>=6"]

setup(
    name="recbole-cafe",
    version=VERSION,
    description="CaFe, coarse-to-fine sparse sequential recommendation, as a RecBole plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["recbole_cafe*"]), "recbole_cafe.props"],
    # The YAML files stay visible at the top of the repository and ship as recbole_cafe/props; an editable install
    # finds them beside the package (recbole_cafe.config.props_dir).
    package_dir={"recbole_cafe.props": "props"},
    package_data={
        "recbole_cafe.props": ["*.yaml", "*/*.yaml"],
        "recbole_cafe.benchmark": ["report.css", "report.js"],
        "recbole_cafe.recommend": ["page/*"],
    },
    python_requires=">=3.10",
    # RecBole 1.2.1 cannot be installed on Python 3.12+ (its ray), so 1.2.0 is supported too. 1.2.0 imports psutil
    # without declaring it. pandas 4 will drop arguments that RecBole passes.
    install_requires=["recbole>=1.2.0,<2", "pandas>=1.5,<4", *LIBRARY],
    extras_require={
        "benchmark": BENCHMARK,
        "serve": SERVICE,
        "onnx": ONNX,
        "prepare": PREPARE,
        "spark": SPARK,
        "ray": [*BENCHMARK, *RAY],
        "peers": PEERS,
        "docs": DOCS,
        "notebook": NOTEBOOK,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["recbole-cafe=recbole_cafe.cli.main:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
