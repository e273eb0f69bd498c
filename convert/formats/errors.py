"""The one exception of the file door."""

MAX_LENGTH = 500


class Refused(ValueError):
    """A file that is not read or not written. The message is one printable line: what is wrong and the fix."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())  # names come from strangers' files: no line breaks, no terminal escapes
        super().__init__("".join(c if c.isprintable() else "?" for c in line)[:MAX_LENGTH])
