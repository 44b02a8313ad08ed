"""python -m recbole_cafe ...; the same as the command recbole-cafe."""

import sys

from recbole_cafe.cli.main import main

sys.exit(main())
