"""recbole-cafe: CaFe and its companions for RecBole.

Importing this package repairs what current Python, NumPy, pandas, PyTorch and setuptools break in RecBole 1.2
(recbole_cafe.host.compat; RECBOLE_CAFE_COMPAT=0 switches that off) and makes RecBole know our models
(recbole_cafe.host.registry).
"""

import os
import sys

__version__ = "0.1.0"

if "torch" not in sys.modules:
    # Threads of PyTorch wait for each other by spinning. On a machine that does something else as well they spin in
    # each other's way (load 5 on 2 cores: minutes for an epoch that takes 3 s); a short spin costs nothing where they
    # are alone (2.9 s either way) and lets go otherwise. OpenMP reads this once, when PyTorch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from recbole_cafe.host import compat

compat.apply()  # before anything else imports RecBole

from recbole_cafe.host import registry  # noqa: E402

registry.register()

from recbole_cafe.config.config import Config  # noqa: E402
from recbole_cafe.errors import ConfigError  # noqa: E402
from recbole_cafe.experiment import run  # noqa: E402
from recbole_cafe.files.result import Result  # noqa: E402
from recbole_cafe.host.workers import objective_function  # noqa: E402
from recbole_cafe.model.cafe import CaFe  # noqa: E402

__all__ = ["CaFe", "Config", "ConfigError", "Result", "__version__", "objective_function", "run"]
