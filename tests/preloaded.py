"""Many short runs of one Python: what takes seconds to load is loaded once, and each run is a fork of that.

`python preloaded.py serve SOCKET libraries` waits with PyTorch, pandas and the like, and nothing of RecBole or of ours;
with `everything` in place of `libraries` those are loaded too. `python preloaded.py ask SOCKET ARGUMENT ...` is
`recbole-cafe ARGUMENT ...`, but `-c CODE`, `-m MODULE ...` and `X.py ...` are what they are to Python; each in the
caller's folder and environment, with its outputs in $PRELOADED_OUT. :class:`Preloaded` is both, for a test.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import types
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Preloaded:
    """A waiting process, for as long as the `with` lasts.

    Args:
        folder: an empty one.
        loaded: `libraries` or `everything`.
    """

    def __init__(self, folder: Path, loaded: str) -> None:
        self.address = folder / "s"
        command = [sys.executable, __file__, "serve", self.address, loaded]
        self._server = subprocess.Popen(command, env=os.environ | ENVIRONMENT, cwd=folder)
        while not self.address.exists():
            assert self._server.poll() is None
            time.sleep(0.1)

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.wait()

    def __call__(
        self, *arguments: object, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run([sys.executable, *arguments])` would give, with one thread and without warnings."""
        with tempfile.NamedTemporaryFile("r", newline="") as out, tempfile.NamedTemporaryFile("r", newline="") as err:
            given = os.environ | ENVIRONMENT | environment
            status = ask(self.address, [out.name, err.name], [*map(str, arguments)], given, cwd)
            return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


def serve(address: str) -> None:
    """Answer until killed, several at a time."""
    with Listener(address, "AF_UNIX", backlog=16) as listener:
        while True:
            with listener.accept() as asked:
                if os.fork() == 0:
                    _answer(asked)
            while _ended():
                pass


def _ended() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _answer(asked: Connection) -> None:
    """One run, in a process that waits for its end."""
    given = asked.recv()
    child = os.fork()
    if child == 0:
        _run(*given)
    asked.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def _run(outputs: list[str], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What the fork does instead of coming back."""
    for number, name in enumerate(outputs, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    status: object = 0
    try:
        status = _meant(arguments)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _meant(arguments: list[str]) -> object:
    """Run what the arguments say."""
    first, *others = arguments
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *others[1:]], ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(others[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.argv, sys.path[0] = [*others], os.getcwd()
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first.endswith(".py"):
        script = Path(first).resolve()
        sys.argv, sys.path[0] = arguments, str(script.parent)
        runpy.run_path(str(script), run_name="__main__")
    else:
        from recbole_cafe.cli.main import main as command

        sys.argv = ["recbole-cafe", *arguments]
        return command(arguments)
    return 0


def ask(
    address: Path | str, outputs: list[str], arguments: list[str], environment: dict[str, str], cwd: Path | None = None
) -> int:
    """The exit status of one run, whose two outputs go to the end of files."""
    with Client(str(address), "AF_UNIX") as server:
        server.send((outputs, arguments, environment, str(cwd or Path.cwd())))
        return int(server.recv())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        if sys.argv[3] == "everything":
            import recbole_cafe
        import pandas  # noqa: F401
        import scipy.stats  # noqa: F401
        import sklearn.metrics  # noqa: F401
        import torch
        import torch._dynamo  # an optimizer loads it

        torch.set_num_threads(1)
        if sys.argv[3] == "everything":
            import recbole.quick_start  # noqa: F401

            import recbole_cafe.benchmark.runner
            import recbole_cafe.cli.main
            import recbole_cafe.experiment
            import recbole_cafe.export  # noqa: F401
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], [os.environ["PRELOADED_OUT"]] * 2, sys.argv[3:], dict(os.environ)))
