"""Importing ppssl first prepares the process for Paddle, as every entry point does. The user's cache is left alone."""
import os

import pytest

import ppssl  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The cache of these tests and of the processes they start: the demo set, networks recognised."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
