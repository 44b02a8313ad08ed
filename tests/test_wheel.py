"""The built wheel, installed away from the checkout, carries what it needs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("recbole_cafe", "props", "setup.py", "serving.txt", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment that holds the wheel, and our dependencies through a .pth file."""
    folder = tmp_path_factory.mktemp("wheel")
    source, dist, env = folder / "source", folder / "dist", folder / "env"
    for name in SHIPPED:  # a copy: building writes build/ and *.egg-info beside setup.py
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", dist, source], check=True)
    venv.create(env, with_pip=False, symlinks=True)
    programs = env / ("Scripts" if os.name == "nt" else "bin")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(env), "platbase": str(env)}))
    (wheel,) = dist.glob("*.whl")
    subprocess.run([*pip, "--python", programs / "python", "install", "--no-deps", wheel], check=True)
    # A line of a .pth file joins sys.path; .pth files inside that folder (an editable install of ours) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def output(command: list[object], cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_package_is_the_installed_one_and_finds_its_yaml(installed: Path, tmp_path: Path) -> None:
    code = (
        "import recbole_cafe.config.props as c; print(c.__file__); print(c.props_dir());"
        "print(len(list(c.props_dir().rglob('*.yaml'))))"
    )
    module, props, n_files = output([installed / "python", "-c", code], tmp_path).split("\n")[:3]
    assert Path(module).is_relative_to(installed.parent)
    assert Path(props) == Path(module).parents[1] / "props"
    assert int(n_files) == len(list((ROOT / "props").rglob("*.yaml")))


def test_the_command_lists_the_model_and_makes_amazon_where_there_is_no_checkout(
    installed: Path, tmp_path: Path
) -> None:
    assert "CaFe" in output([installed / "recbole-cafe", "list"], tmp_path)
    arguments = ["--epochs=1", "--user_inter_num_interval=[60,inf)", "--eval_mode=full", "--show_progress=False"]
    output([installed / "recbole-cafe", "run", *arguments, "--hidden_size=8", "--result_file=result.json"], tmp_path)
    assert (tmp_path / "result.json").is_file()
    folder = tmp_path / "dataset_atomic" / "amazon"
    for name in ("amazon.inter", "amazon.item", "simulation.json"):
        assert (folder / name).read_bytes() == (ROOT / "dataset_atomic" / "amazon" / name).read_bytes()
