"""How far a large file is, on stderr, and the memory of what is done given back on the way."""
import sys

from convert.formats import Loaded

LARGE = 100 << 20                                         # bytes from which it is worth telling
PIECE = 32 << 20                                          # bytes read before their pages are given back


class Progress:
    """Called with the bytes written since the last call; `source` is the file that they are read from."""

    def __init__(self, total: int, source: Loaded):
        self.total, self.source, self.done, self.forgotten, self.told = total, source, 0, 0, 0

    def __call__(self, size: int) -> None:
        self.done += size
        if self.done - self.forgotten >= PIECE:
            self.source.forget()
            self.forgotten = self.done
        if self.total >= LARGE:
            self._tell()

    def _tell(self) -> None:
        """Every percent on a terminal, every quarter elsewhere."""
        terminal = sys.stderr.isatty()
        step = 1 if terminal else 25
        percent = min(100, 100 * self.done // self.total) // step * step
        if percent > self.told:
            self.told = percent
            end = "\r" if terminal and percent < 100 else "\n"
            print(f"{percent:3d} % of {self.total / 1e6:,.0f} MB", end=end, file=sys.stderr, flush=True)
