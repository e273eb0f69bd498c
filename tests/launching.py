"""Starting entry points under Paddle's launcher, as users do."""
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what a launcher would take for its own settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")} | extra


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(log_dir: Path, script: str, *args: str, ranks: int = 2, timeout: float = 180, **environment: str) -> tuple[int, str]:
    """(exit code, all ranks' output) of a script of the repository on `ranks` CPU ranks."""
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", str(log_dir),
               "--master", f"127.0.0.1:{free_port()}", "--nnodes", "1", str(ROOT / script), *args]
    done = subprocess.run(command, env=clean_environment(MKL_NUM_THREADS="1", PYTHONPATH=str(ROOT), **environment), cwd=ROOT, capture_output=True,
                          text=True, timeout=timeout)
    return done.returncode, "".join(p.read_text() for p in sorted(log_dir.glob("workerlog.*"))) + done.stderr
