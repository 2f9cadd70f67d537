"""No kernel is compiled in the middle of a stream: what a job calls, its rehearsal has called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_is_compiled_once_a_job_is_ready_not_even_when_it_resumes(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("late_compiles.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "home")], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["ready", "ready", ""]
