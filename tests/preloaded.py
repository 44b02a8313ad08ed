"""Many short runs of one Python: PyTorch and RecBole are loaded once, and each run is a fork that starts from there.

`python preloaded.py serve SOCKET` waits; `python preloaded.py ask SOCKET ARGUMENT ...` is `recbole-cafe ARGUMENT ...`,
`ask SOCKET -c CODE` is `python -c CODE`, and `ask SOCKET X.py ...` is `python X.py ...`; each in the caller's folder,
with its outputs in $PRELOADED_OUT.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from multiprocessing.connection import Client, Listener


def serve(address: str) -> None:
    """Answer until killed."""
    import recbole.quick_start  # noqa: F401  after recbole_cafe's repairs, which the import below arranges
    import torch

    import recbole_cafe.benchmark.runner
    import recbole_cafe.cli.main
    import recbole_cafe.experiment
    import recbole_cafe.export  # noqa: F401

    torch.set_num_threads(1)
    with Listener(address, "AF_UNIX") as listener:
        while True:
            with listener.accept() as asked:
                folder, out, arguments = asked.recv()
                child = os.fork()
                if child == 0:
                    _run(folder, out, arguments)
                asked.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _run(folder: str, out: str, arguments: list[str]) -> None:
    """What the fork does instead of coming back."""
    from recbole_cafe.cli.main import main

    file = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    status: object = 1
    try:
        if arguments[0] == "-c":
            sys.argv, sys.path[0] = ["-c"], folder
            exec(compile(arguments[1], "block", "exec"), {"__name__": "__main__"})
            status = 0
        elif arguments[0].endswith(".py"):
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            status = 0
        else:
            sys.argv = ["recbole-cafe", *arguments]
            status = main(arguments)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def ask(address: str, out: str, arguments: list[str]) -> int:
    """The exit status of one run, whose outputs go to the end of a file."""
    with Client(address, "AF_UNIX") as server:
        server.send((os.getcwd(), out, arguments))
        return int(server.recv())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        import recbole_cafe  # noqa: F401  first: repairs what RecBole does on import

        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], os.environ["PRELOADED_OUT"], sys.argv[3:]))
