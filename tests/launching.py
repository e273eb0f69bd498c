"""Starting entry points under Paddle's launcher, as users do."""
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what a launcher would take for its own settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")} | extra


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(log_dir: Path, script: str, *args: str, ranks: int = 2, nodes: int = 1, node: int = 0, port: int | None = None,
          **environment: str) -> subprocess.Popen:
    """A launcher of `ranks` CPU ranks on this node for a script of the repository; nodes share the first one's port."""
    place = ["--rank", str(node)] if nodes > 1 else []
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", str(log_dir),
               "--master", f"127.0.0.1:{port or free_port()}", "--nnodes", str(nodes), *place, str(ROOT / script), *args]
    return subprocess.Popen(command, env=clean_environment(MKL_NUM_THREADS="1", PYTHONPATH=str(ROOT), **environment), cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(launcher: subprocess.Popen, log_dir: Path, timeout: float = 180) -> tuple[int, str]:
    """(exit code, all ranks' output) of a launcher once it has ended; it is ended when the time is over."""
    try:
        error = launcher.communicate(timeout=timeout)[1]
    except subprocess.TimeoutExpired:
        launcher.terminate()
        launcher.communicate(timeout=60)
        raise
    return launcher.returncode, said(log_dir) + error


def said(log_dir: Path) -> str:
    """What the ranks have written so far."""
    return "".join(p.read_text() for p in sorted(log_dir.glob("workerlog.*")))


def said_within(log_dir: Path, words: str, seconds: float = 20) -> bool:
    """Whether a rank, or the witness that outlives it for a moment, writes `words` in that time."""
    end = time.monotonic() + seconds
    while words not in said(log_dir) and time.monotonic() < end:
        time.sleep(0.1)
    return words in said(log_dir)


def launch(log_dir: Path, script: str, *args: str, timeout: float = 180, **more) -> tuple[int, str]:
    """`start` and `finish`."""
    return finish(start(log_dir, script, *args, **more), log_dir, timeout)
