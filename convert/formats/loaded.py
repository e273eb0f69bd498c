"""What a weight file holds, whatever its format."""

import mmap
from dataclasses import dataclass, field
from typing import Any, Literal

Format = Literal["torch-zip", "torch-legacy", "safetensors", "paddle", "ppssl"]


@dataclass(frozen=True)
class Loaded:
    """`tree` nests dict (in file order), list, tuple, argparse.Namespace, str, int, float, bool and None around arrays.

    Arrays are views of the mapped file, read only as they are used: read-only, perhaps strided, perhaps not aligned to
    their element (`np.array(a)` is neither). bfloat16 is `ml_dtypes.bfloat16`.
    """

    format: Format
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)  # what the writer of a safetensors or ppssl file added
    parameter_names: dict[str, str] = field(default_factory=dict)  # Paddle only: {structured name: tensor name}
    mapped: mmap.mmap | None = field(default=None, repr=False, compare=False)

    def forget(self) -> None:
        """Give the memory of what was read so far back; arrays stay valid and are read from the file again."""
        if self.mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)
