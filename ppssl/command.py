"""What the command-line tools share: how they refuse."""
import functools
import sys
from collections.abc import Callable

from convert.formats import Refused
from ppssl.errors import BadRequest


def refusing(*more: type[Exception]) -> Callable:
    """Decorator of a tool's `main`: BadRequest, Refused and `more` become one line on the error stream and exit code 2."""
    def wrap(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(*args) -> int:
            try:
                return main(*args)
            except (BadRequest, Refused, *more) as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
        return run
    return wrap
