"""scripts/slurm_train.sh on a real Slurm (run.sh): submitted, near its time limit, preempted, continued, finished."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch")
MISSING = [tool for tool in TOOLS if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]


@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed (Debian, Ubuntu: slurm-wlm, munge)")
def test_a_job_continues_after_its_time_limit_and_after_preemption() -> None:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = Path(__file__).with_name("run.sh")
    done = subprocess.run(["sh", str(script)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NumNodes=2" in done.stdout
    assert "Restarts=2" in done.stdout
    assert done.stdout.endswith("COMPLETED\n")
