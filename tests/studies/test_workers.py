import os
import signal
import subprocess
import sys

from helpers.commands import ROOT

_WORKER_THAT_WAITS = """
import os, sys, time
from studies.common.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    """Killed benchmarks and studies left trainings behind that slowed whatever came next."""
    script = tmp_path / "waits.py"
    script.write_text(_WORKER_THAT_WAITS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, script], env=environment, stdout=pipe, stderr=pipe) as process:
        worker = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        try:
            # Whoever is left holds the other end of the pipe.
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise
