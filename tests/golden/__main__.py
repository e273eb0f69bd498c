"""`python -m tests.golden [DIR...]`: run the golden cases in these folders (default: all that the repository holds)."""
import sys
from pathlib import Path

import ppssl  # noqa: F401 - prepares the process before Paddle is imported
from tests.golden.runner import main

sys.exit(main([Path(p) for p in sys.argv[1:]] or [Path(__file__).parent]))
