"""recbole-cafe: CaFe and its companions for RecBole.

Importing this package repairs what current Python, NumPy, pandas, PyTorch and setuptools break in RecBole 1.2
(recbole_cafe.compat; RECBOLE_CAFE_COMPAT=0 switches that off) and makes RecBole know our models
(recbole_cafe.registry).
"""

import os
import sys

__version__ = "0.1.0"

if "torch" not in sys.modules:
    # Threads of PyTorch spin while they wait. On a machine that does something else as well (here: load 5 on 2 cores)
    # an epoch then took 26 to 35 s instead of 11. OpenMP reads this once, when PyTorch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from recbole_cafe import compat

compat.apply()  # before anything else imports RecBole

from recbole_cafe import registry  # noqa: E402

registry.register()

from recbole_cafe.config import Config, ConfigError  # noqa: E402
from recbole_cafe.model.cafe import CaFe  # noqa: E402
from recbole_cafe.quick_start import Result, objective_function, run  # noqa: E402

__all__ = ["CaFe", "Config", "ConfigError", "Result", "__version__", "objective_function", "run"]
