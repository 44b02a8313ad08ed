"""The command recbole-cafe: what it writes, what it prints, and how it fails."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import runpy
import select
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preloaded import Preloaded

import recbole_cafe
from recbole_cafe import Config, environment, errors
from recbole_cafe.cli import run
from recbole_cafe.cli.arguments import parse_arguments
from recbole_cafe.cli.main import PACK, VERBS, main, make_parser
from recbole_cafe.files import places
from recbole_cafe.files.result import Result
from recbole_cafe.prepare.command import TASKS
from recbole_cafe.prepare.simulate import is_simulated, verify, write_simulated
from recbole_cafe.train import checkpoint

ROOT = Path(recbole_cafe.__file__).parent.parent
METRICS = [*(f"{metric}@{k}" for metric in ("ndcg", "hit", "mrr") for k in (1, 10)), "mrr"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the simulated data set `small`: 30 users, 200 items, 6 intents, 400 interactions."""
    folder = tmp_path_factory.mktemp("simulated")
    write_simulated(folder / "small", "small", n_users=30, n_items=200, n_intents=6, n_interactions=400)
    return folder


def tiny(folder: Path, dataset: str = "small", **more: object) -> list[str]:
    keys = {
        "model": "CaFe", "dataset": dataset, "data_path": folder, "epochs": 2, "hidden_size": 8, "inner_size": 8,
        "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 6, "topk": "[1,10]", "eval_mode": "[full, pop20]", "gpu_id": "",
        "show_progress": False,
    }  # fmt: skip
    return ["run", *(f"--{key}={value}" for key, value in (keys | more).items())]


# run ------------------------------------------------------------------------------------------------------------------


def test_run_writes_everything_about_it(simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tiny(simulated, result_file="results/one.json", seed=7)) == 0
    result = json.loads(Path("results/one.json").read_text())
    assert [p.name for p in Path("results").iterdir()] == ["one.json"]
    assert set(result) == set(Result.__dataclass_fields__)
    assert (result["model"], result["dataset"], result["seed"], result["simulated"]) == ("CaFe", "small", 7, True)
    assert {p: list(values) for p, values in result["test_result"].items()} == {
        "full": METRICS,
        "pop20": METRICS,
        "full_later": METRICS,
    }
    assert all(0 <= v <= 1 for values in result["test_result"].values() for v in values.values())
    assert list(result["best_valid_result"]) == [
        *METRICS,
        *(f"full_later/{m}" for m in METRICS),
    ]  # of the first protocol
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"]
    assert result["epochs"] == 2
    assert set(result["seconds"]) == {"data", "train", "evaluation"}
    assert all(0 < seconds < 60 for seconds in result["seconds"].values())
    assert 100 < result["peak_memory_mb"] < 20_000
    facts = {"users": 30, "items": 200, "interactions": 400, "intents": 6}
    assert {key: result["data"][key] for key in facts} == facts
    assert result["data"]["interactions_per_item"] == 2.0
    assert set(result["versions"]) >= {"python", "recbole-cafe", "recbole", "torch", "numpy", "pandas", "scipy"}
    assert result["versions"]["recbole-cafe"] == recbole_cafe.__version__
    assert torch.cuda.is_available() or result["versions"]["device"] == "cpu"
    assert (result["config"]["seed"], result["config"]["hidden_size"]) == (7, 8)
    assert result["config"]["eval_mode"] == ["full", "pop20"]

    weights = checkpoint.load(result["checkpoint"])["state_dict"]
    assert result["parameters"] == sum(value.numel() for value in weights.values())
    (candidates,) = Path("saved/candidates").iterdir()
    with np.load(candidates) as file:
        assert result["candidates"] == {"pop20": str(file["digest"])}
    table = capsys.readouterr().out
    assert "| test | full | pop20 |" in table
    assert f"| ndcg@10 | {result['test_result']['full']['ndcg@10']:.4f} |" in table


def test_a_seed_decides_about_the_numbers(simulated: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        assert main(tiny(simulated, result_file=f"{number}.json", seed=seed)) == 0
        result = json.loads(Path(f"{number}.json").read_text())
        found.append((result["test_result"], result["best_valid_result"], result["candidates"]))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][2] == found[2][2]  # the candidates have a seed of their own


@pytest.mark.parametrize("model", ["SASRec", "BPR", "Pop"])
def test_recboles_models_run_under_the_same_protocol(model: str, simulated: Path) -> None:
    keys = {"hidden_size": None, "inner_size": None, "n_layers": None} if model != "SASRec" else {}
    arguments = [a for a in tiny(simulated, model=model, result_file="r.json") if a[2:].split("=")[0] not in keys]
    assert main(arguments) == 0
    result = json.loads(Path("r.json").read_text())
    assert {p: list(values) for p, values in result["test_result"].items()} == {
        "full": METRICS,
        "pop20": METRICS,
        "full_later": METRICS,
    }
    assert result["config"]["train_layout"] == "last"


def test_a_value_may_hold_equal_signs(simulated: Path) -> None:
    assert main(tiny(simulated, candidates_dir="a=b", checkpoint_dir="x==y")) == 0
    assert len(list(Path("a=b").glob("small-pop20-*.npz"))) == 1
    assert len(list(Path("x==y").glob("CaFe-small-*.pth"))) == 1


def test_files_preset_and_command_line_in_that_order(simulated: Path) -> None:
    Path("one.yaml").write_text("epochs: 1\njoint: sum\nseed: 3\n")
    Path("two.yaml").write_text("seed: 4\n")
    given = [a for a in tiny(simulated) if not a.startswith("--epochs=")]
    more = ["--config_files=one.yaml two.yaml", "--preset=table3/+1+2", "--n_local_heads=1", "--result_file=r.json"]
    assert main([*given, *more]) == 0
    found = json.loads(Path("r.json").read_text())["config"]
    wanted = {"epochs": 1, "seed": 4, "joint": "item", "intent_tower": True, "intent_loss": True, "n_local_heads": 1}
    assert {key: found[key] for key in wanted} == wanted


def test_amazon_is_made_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "data_folders", lambda: [Path("dataset_atomic"), Path("dataset")])
    short = {"user_inter_num_interval": "[5,9]", "epochs": 1, "eval_mode": "full", "result_file": "r.json"}
    assert main([a for a in tiny(Path("unused"), "amazon", **short) if not a.startswith("--data_path")]) == 0
    result = json.loads(Path("r.json").read_text())
    assert result["simulated"] is True
    counts = {"users": 2000, "items": 29100, "intents": 160, "interactions": 81800}
    assert is_simulated("dataset_atomic/amazon")["counts"] == counts
    assert verify("dataset_atomic/amazon")
    assert 0 < result["data"]["users"] < 2000
    shipped = ROOT / "dataset_atomic" / "amazon" / "amazon.inter"
    if shipped.is_file():
        assert Path("dataset_atomic/amazon/amazon.inter").read_bytes() == shipped.read_bytes()


TWICE = """
import sys
from recbole_cafe.cli.main import main
arguments = sys.argv[1:]
sys.argv[1:] = []
sys.exit(main([*arguments, "--seed=1"]) or main([*arguments, "--seed=2"]))
"""


@pytest.mark.slow
def test_each_run_has_a_log_of_its_own_that_says_simulated_first(simulated: Path, fresh_python: Preloaded) -> None:
    done = fresh_python("-c", TWICE, *tiny(simulated))
    assert done.returncode == 0, done.stderr
    logs = [path.read_text() for path in Path("log/CaFe").glob("*.log")]
    assert len(logs) == 2
    for text in logs:
        assert "dataset 'small' is SIMULATED" in text.splitlines()[0]
        assert text.count("test result") == 1
        assert "| test | full | pop20 |" in text
    assert {re.search(r"^seed = (\d)", text, re.MULTILINE)[1] for text in logs} == {"1", "2"}
    assert "is SIMULATED" in done.stderr.splitlines()[0]


def test_real_data_are_not_called_simulated(toy_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(tiny(toy_path, "toy", eval_mode="full", result_file="r.json")) == 0
    assert json.loads(Path("r.json").read_text())["simulated"] is False
    assert "SIMULATED" not in caplog.text


@pytest.mark.slow
def test_several_processes_write_one_result(simulated: Path, fresh_python: Preloaded) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    done = fresh_python("-m", "recbole_cafe", *tiny(simulated, nproc=2, port=port, result_file="r.json", epochs=1))
    assert done.returncode == 0, done.stderr
    result = json.loads(Path("r.json").read_text())
    assert {p: list(values) for p, values in result["test_result"].items()} == {
        "full": METRICS,
        "pop20": METRICS,
        "full_later": METRICS,
    }
    assert len(list(Path("saved").glob("*.pth"))) == 1
    assert len(list(Path("saved/candidates").iterdir())) == 1
    # all thirty users are tested, each once
    hits = result["test_result"]["pop20"]["hit@10"] * 30
    assert hits == pytest.approx(round(hits), abs=1e-9)


# Failures -------------------------------------------------------------------------------------------------------------


def damaged_candidates(folder: Path) -> dict[str, object]:
    assert main(tiny(folder, candidates_dir="kept", epochs=1)) == 0
    (path,) = Path("kept").iterdir()
    path.write_bytes(b"nothing")
    return {"candidates_dir": "kept", "epochs": 1}


def file_in_the_way(_folder: Path) -> dict[str, object]:
    Path("a").write_text("")
    return {"result_file": "a/r.json", "epochs": 1}


def file_of(text: str) -> Callable[[Path], dict[str, object]]:
    def write(_folder: Path) -> dict[str, object]:
        Path("a.yaml").write_text(text)
        return {"config_files": "a.yaml"}

    return write


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"learning_rat": 0.1}, "ConfigError", "unknown key 'learning_rat' (value 0.1) for CaFe; did you mean learn"),
        ({"tie_order": "time"}, "ConfigError", "tie_order='time' is not one of file, random"),
        ({"joint": "maybe"}, "ConfigError", "joint='maybe' is not one of product, sum, item"),
        ({"loss_type": "BPR"}, "ConfigError", "loss_type='BPR' is not one of BCE, gBCE, SSM, CE"),
        ({"n_heads": 3}, "ConfigError", "hidden_size=8 is not a multiple of n_heads=3"),
        ({"epochs": "x"}, "ConfigError", "epochs='x' should be a number (default "),
        ({"intent_loss": "maybe"}, "ConfigError", "intent_loss='maybe' should be True or False (default True)"),
        ({"dataset": "nothere"}, "DataError", "no data set 'nothere': looked for"),
        ({"model": "NoSuchModel"}, "ConfigError", "no model 'NoSuchModel'; `recbole-cafe list` names the models"),
        ({"model": "FM"}, "ConfigError", "FM is a context model; sequential, general and traditional models run"),
        ({"save_dataset": True}, "ConfigError", "save_dataset: RecBole caches data by pickling"),
        ({"eval_mode": "authors20"}, "DataError", "authors20 gives each negative another intent"),
        ({"INTENT_FIELD": "brand"}, "DataError", "has no column 'brand' to read intents from; its columns are item_id"),
        ({"preset": "table3/none"}, "ConfigError", "no preset 'table3/none'; there are: "),
        ({"config_files": "nowhere.yaml"}, "ConfigError", "config file nowhere.yaml cannot be read: No such file"),
        (file_of("a: [1,\n"), "ConfigError", "config file a.yaml is not YAML: while parsing a flow"),
        (file_of("epoch: 3\n"), "ConfigError", "unknown key 'epoch' (value 3) for CaFe; did you mean epochs?"),
        (damaged_candidates, "DataError", "not a readable candidates file"),
        (file_in_the_way, "ConfigError", "result_file=a/r.json cannot be written"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else getattr(value, "__name__", None),
)  # fmt: skip
def test_a_failure_is_one_line(
    given: Any, kind: str, message: str, simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = given(simulated) if callable(given) else given
    capsys.readouterr()
    assert main(tiny(simulated, **given)) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith(f"recbole-cafe: {kind}")
    assert message in err
    assert "| test |" not in out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("run --epochs", "argument '--epochs' is not of the form --key=value"),
        ("run epochs=3", "argument 'epochs=3' is not of the form --key=value"),
        ("run -x=1", "argument '-x=1' is not of the form --key=value"),
        ("run 3", "argument '3' is not of the form --key=value"),
        ("run --seed=1 --seed=2", "--seed is given twice, with the values '1' and '2'"),
        ("run --model=CaFe --model=NOVA", "run: --model is given twice, with the values 'CaFe' and 'NOVA'; see"),
        ("run --nproc=two", "run: argument --nproc: two is not a whole number; see recbole-cafe run --help"),
        ("run --model=", "argument --model: it is empty"),
        ("run --dataset=", "argument --dataset: it is empty"),
        ("run --nproc=0", "run: argument --nproc: 0: expected at least 1; see recbole-cafe run --help"),
        ("benchmark", "benchmark: the following arguments are required: NAME|FILE.yaml; see"),
        ("benchmark quick --jobs=-1", "benchmark: argument --jobs: -1: expected at least 0; see"),
        (
            "benchmark quick --keep_checkpoints=yes",
            "benchmark: argument --keep_checkpoints: 'yes' is none of True, False; see",
        ),
        ("benchmark pack", "benchmark pack: the following arguments are required: folder; see"),
        ("report", "report: the following arguments are required: folder; see recbole-cafe report --help"),
        ("report x --tests=t", "report: it takes no --tests=t; see recbole-cafe report --help"),
        ("list models", "list: it takes no models; see recbole-cafe list --help"),
        ("simulate --users=x", "simulate: argument --users: invalid int value: 'x'; see"),
        ("prepare tabel", "did you mean table?; see recbole-cafe prepare --help"),
        ("run --model=", "run: argument --model: it is empty; see recbole-cafe run --help"),
        ("report x --test=bogus", "report: argument --test: 'bogus' is none of t, wilcoxon; see"),
        ("benchmark quick --search=bogus", "argument --search: 'bogus' is none of none, grid, tpe; see"),
        ("simulate --items=0", "simulate: --items=0: expected at least 1"),
        ("simulate --intents=9 --items=5", "simulate: --intents=9: expected at most --items=5"),
        ("help trian", "no command 'trian'"),
        ("prepare", "prepare: the following arguments are required: amazon | tmall | atomic | table | sequences; see"),
        ("trian --epochs=3", "no command 'trian'; there are run, show-config, exec, export, "),
        ("benchmrk quick", "did you mean benchmark?"),
        ("--nothing", "unknown option --nothing"),
        ("--epochs=3 run", "unknown option --epochs=3"),
        ("--replace simulate --users=5", "unknown option --replace"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(typed: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("recbole-cafe: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RECBOLE_CAFE_TRACEBACK", "1")
    assert main(["run", "--epoch=3"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.rstrip().splitlines()[-1].startswith("recbole-cafe: ConfigError: unknown key 'epoch'")


def test_an_interruption_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_command", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "recbole-cafe: interrupted\n"


@pytest.mark.skipif(not hasattr(select, "poll"), reason="a closed pipe cannot be told from other errors")
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_has_seen_enough_is_no_error(buffered: bool) -> None:
    read, write = os.pipe()
    os.close(read)
    flags = [] if buffered else ["-u"]
    done = subprocess.run(
        [sys.executable, *flags, "-m", "recbole_cafe", "help"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_elsewhere_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> int:
        raise BrokenPipeError("a worker has gone")

    monkeypatch.setattr(run, "run_command", broken)
    assert main(["run"]) == 1
    assert "BrokenPipeError: a worker has gone\nrecbole-cafe: this is a bug" in capfd.readouterr().err


def raised(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and what is said of an exception that ends the command."""

    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(run, "run_command", fail)
    return main(["run"]), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.DataError("a.inter: no rows"), "DataError: a.inter: no rows"),
        (errors.OutputError("a.json cannot be written: the disk is full"), "OutputError: a.json cannot be written: the "
         "disk is full"),
        (OSError(errno.ENOSPC, "No space left on device", "a.npz"), "OutputError: a.npz cannot be written: the disk is "
         "full"),
        (PermissionError(errno.EACCES, "Permission denied", "a.log"), "PermissionError: a.log: Permission denied"),
        (MemoryError("32 GiB"), "MachineError: there is not enough memory (32 GiB); smaller batches need less"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raised(error, monkeypatch, capsys) == (1, f"recbole-cafe: {line}\n")


@pytest.mark.parametrize("error", [ValueError("odd"), TypeError("odd"), KeyError("odd"), AssertionError("odd")])
def test_anything_else_is_a_bug_and_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = raised(error, monkeypatch, capsys)
    lines = said.splitlines()
    assert status == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert "odd" in lines[-3]
    assert lines[-2].startswith("recbole-cafe: this is a bug of recbole-cafe, not a fault of what you typed")
    assert "Please report it" in lines[-2]
    assert lines[-1].startswith(f"recbole-cafe {recbole_cafe.__version__}, recbole 1.2.")
    assert f"torch {torch.__version__}" in lines[-1]
    assert f"python {platform.python_version()}" in lines[-1]


def test_a_bug_is_reported_where_the_metadata_say(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Message()
    page["Project-URL"] = "Source, https://example.org/code"
    page["Project-URL"] = "Issues, https://example.org/issues"
    monkeypatch.setattr(environment, "metadata", lambda _: page)
    assert environment.report_to() == "at https://example.org/issues"
    monkeypatch.setattr(environment, "metadata", lambda _: Message())
    assert environment.report_to() == "to those you have recbole-cafe from"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_called_so_by_file() -> None:
    """Nothing fits on /dev/full; torch ends its archive there with "unexpected pos"."""
    for write in (lambda file: file.write(b"x" * 100_000), lambda file: torch.save({"a": torch.zeros(9999)}, file)):
        with pytest.raises((OSError, RuntimeError)) as caught, open("/dev/full", "wb", buffering=0) as full:
            write(full)
        told = errors.output_error("best.pth", caught.value)
        assert str(told) == "best.pth cannot be written: the disk is full"
    cut_off = RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")
    told = errors.output_error("best.pth", cut_off)
    assert str(told).startswith("best.pth cannot be written, probably because the disk is full (")
    assert errors.output_error("best.pth", ValueError("odd")) is None


def test_the_nearest_name_is_offered() -> None:
    assert errors.did_you_mean("cafe", ["NOVA", "CaFe"]) == "; did you mean CaFe?"
    assert errors.did_you_mean("benchmrk", VERBS) == "; did you mean benchmark?"
    assert errors.did_you_mean("zzz", ["NOVA", "CaFe"]) == ""


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("show-config --model=cafe", "CaFe"),
        ("show-config --model=SASRecc", "SASRec"),
        ("show-config --preset=table3/bse", "table3/base"),
        ("benchmark quik", "quick"),
        ("benchmark quick --systems=CaFee", "CaFe"),
    ],
)
def test_a_misspelt_name_gets_a_hint(typed: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 1
    assert f"; did you mean {near}?" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_in_several_processes_is_told_as_in_one(simulated: Path, fresh_python: Preloaded) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    done = fresh_python("-m", "recbole_cafe", *tiny(simulated, nproc=2, port=port, n_heads=3))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "recbole-cafe: ConfigError: hidden_size=8 is not a multiple of n_heads=3"
    assert "Traceback" not in done.stderr


def test_a_result_that_cannot_be_written_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result("m", "d", 1, False, {}, 0.0, {}, 1, 0, {}, 1.0, 1, {}, {}, {}, {}, {}, "")
    result.save("r.json")
    before = Path("r.json").read_text()

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        result.save("r.json")
    assert [p.name for p in Path().iterdir()] == ["r.json"]
    assert Path("r.json").read_text() == before


# The other commands ---------------------------------------------------------------------------------------------------


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        for name in VERBS:
            assert re.search(rf"^ +{name}\b", text, re.MULTILINE), name
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{recbole_cafe.__version__}\n"


def test_help_of_a_command_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["run"], PACK.split(), ["prepare", "table"]):
        assert main([*words, "--help"]) == 0
        help_of_it = capsys.readouterr().out
        assert main(["help", *words]) == 0
        assert capsys.readouterr().out == help_of_it


@pytest.mark.parametrize("verb", [*VERBS, *(f"prepare {source}" for source in TASKS)])
def test_every_command_has_help_with_examples_that_parse(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    _, examples = capsys.readouterr().out.split("examples:\n")
    lines = [shlex.split(line) for line in examples.strip().splitlines()]
    assert lines
    for name, *words in lines:
        assert name == "recbole-cafe"
        assert " ".join(words).startswith(verb)
        if "--help" not in words:
            joined = [PACK, *words[2:]] if " ".join(words[:2]) == PACK else words
            given, rest = make_parser(words[0]).parse_known_args(joined)
            assert given.takes_keys or not rest
            parse_arguments(rest)


def test_show_config_prints_every_key_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("seed: 3\nepochs: 4\n")
    settings = ["--dataset=toy", "--config_files=a.yaml", "--epochs=5", "--preset=table3/base", "--candidates_dir=a=b"]
    assert main(["show-config", *settings]) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        key, value, source = re.fullmatch(r"(\S+) += (.*)  # (.*)", line).groups()
        rows[key] = (value, source)
    assert set(rows) == set(Config("CaFe", "toy").final_config_dict)
    assert rows["epochs"] == ("5", "command line")
    assert rows["candidates_dir"] == ("'a=b'", "command line")
    assert rows["seed"] == ("3", "config file a.yaml")
    assert rows["joint"] == ("'item'", "config_dict")
    assert rows["hidden_size"] == (repr(Config("CaFe", "toy")["hidden_size"]), "props/model/CaFe.yaml")
    assert rows["valid_metric"] == ("'NDCG@10'", "props/overall.yaml")
    assert rows["worker"] == ("0", "RecBole overall.yaml")
    assert rows["model"] == ("'CaFe'", "derived")


def test_list_names_models_data_sets_and_presets(simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dataset").symlink_to(simulated)
    assert main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["CaFe", "recbole_cafe.model.cafe.CaFeNet", "props/model/CaFe.yaml"] in lines
    assert ["ml-100k", "inside", "RecBole"] in lines
    assert ["small", "dataset/small"] in lines
    assert "amazon" in [line[0] for line in lines]
    assert ["table3/", "base,", "+1,", "+1+2,", "+1+2+3,", "+1+2+4,", "+1+2+3+4"] in lines
    assert ["quick", "A", "quick", "look", "at", "every", "part", "props/benchmark/quick.yaml"] in lines
    names = [name.rstrip(",") for line in lines for name in line]
    assert {"SASRec", "FDSA", "GRU4Rec", "Pop", "Random", "BPR", "LightGCN"} <= set(names)  # RecBole's own
    assert not {"FM", "DeepFM", "KGAT"} & set(names)  # which do not run under this protocol
    assert {"FEARec", "CORE"} <= set(names)
    assert not {"GRU4RecKG", "KSR", "DIEN", "S3Rec"} & set(names)


def test_simulate_makes_a_data_set_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--users=20", "--items=60", "--intents=5", "--interactions=200"]
    assert main(["simulate", "--name=mine", "--out=made", *shape, "--seed=3"]) == 0
    assert verify("made/mine")["counts"] == {"users": 20, "items": 60, "intents": 5, "interactions": 200}
    assert main(["simulate", "--name=mine", "--out=made", *shape]) == 1
    assert "exists already; nothing was written, pass replace" in capsys.readouterr().err
    assert main(tiny(Path("made"), "mine", eval_mode="full", epochs=1)) == 0


@pytest.mark.slow
def test_the_script_at_the_top_is_the_command_run(
    simulated: Path, monkeypatch: pytest.MonkeyPatch, fresh_python: Preloaded
) -> None:
    script = str(ROOT / "run_recbole_cafe.py")
    command = [script, *tiny(simulated, result_file="r.json", epochs=1)[1:]]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(script, run_name="__main__")
    assert left.value.code == 0
    assert json.loads(Path("r.json").read_text())["command"] == command
    failed = fresh_python(script, "--epoch=1")
    assert failed.returncode == 1
    assert failed.stderr.startswith("recbole-cafe: ConfigError: unknown key 'epoch'")
    assert failed.stderr.count("\n") == 1


def test_a_run_goes_on_from_a_checkpoint(simulated: Path) -> None:
    """One epoch, then up to three from its file: two more are trained, from its weights."""
    assert main(tiny(simulated, epochs=1, result_file="one.json")) == 0
    file = json.loads(Path("one.json").read_text())["checkpoint"]
    before = checkpoint.load(file)["optimizer"]["parts"][1]["state"][0]["step"]
    assert main(tiny(simulated, epochs=3, result_file="three.json", resume_from=file)) == 0
    three = json.loads(Path("three.json").read_text())
    assert three["epochs"] == 3
    assert three["checkpoint"] != file  # its own; the other stays as it is
    assert checkpoint.load(file)["optimizer"]["parts"][1]["state"][0]["step"] == before
    steps = checkpoint.load(three["checkpoint"])["optimizer"]["parts"][1]["state"][0]["step"]
    assert steps in (before, 2 * before, 3 * before)
    assert main(tiny(simulated, resume_from=file, model="SASRec")) == 1
