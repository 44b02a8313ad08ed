"""python run_recbole_cafe.py --model=CaFe --dataset=amazon [--key=value ...]; the same as `recbole-cafe run ...`."""

import sys

from recbole_cafe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
