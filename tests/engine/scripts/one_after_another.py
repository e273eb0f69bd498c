"""One rank's part of several runs: `one_after_another.py FILE`, a JSON list of [task, *flags] (tests/engine/every_method.py)."""
import json
import sys
from pathlib import Path

from ppssl import cli

for task, *flags in json.loads(Path(sys.argv[1]).read_text()):
    if cli.main(task, flags):
        sys.exit(f"failed: {task} {' '.join(flags)}")
