"""Importing ppssl first prepares the process for Paddle, as every entry point does. The user's cache is left alone."""
import pytest

import ppssl  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The cache of these tests and of the processes they start: the demo set, networks recognised."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
