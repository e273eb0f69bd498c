"""The user's cache folder."""
import os
from pathlib import Path


def cache_folder() -> Path:
    """Where this project keeps what can be made again. Raises RuntimeError for a user without a home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppssl"
