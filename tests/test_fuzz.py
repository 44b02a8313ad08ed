"""A few mutated inputs of each kind; `fuzz.py` runs as many as one likes."""

from __future__ import annotations

from pathlib import Path

import fuzz
import fuzz_requests
import pytest

N = {"data": 80, "tables": 16, "checkpoints": 32, "configs": 48, "bundles": 80}


@pytest.mark.slow
@pytest.mark.parametrize("kind", N)
def test_no_mutated_input_is_read_wrongly_or_fails_without_a_clear_error(kind: str, tmp_path: Path) -> None:
    records = fuzz.run(kind, N[kind], keep=tmp_path)
    assert len(records) == N[kind]
    if fuzz.failures(records):
        pytest.fail(f"inputs in {tmp_path}\n{fuzz.summary(records)}", pytrace=False)


@pytest.mark.slow
def test_no_mutated_request_gets_a_wrong_answer_or_harms_the_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = fuzz_requests.main(["--n=300", f"--out={tmp_path / 'result.json'}"])
    assert status == 0, capsys.readouterr().out
