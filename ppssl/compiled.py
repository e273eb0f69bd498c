"""Loops that numba compiles. Import this, and what uses it, where it is first needed: numba alone takes half a second."""
import numba as nb

FAST = {"fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}          # NaN and infinity stay what they are


def compiled(signature, **options):
    """Compile now for one signature, without the interpreter lock, cached on disk where a cache can be written.

    options: of `numba.njit`.
    """
    def compile_function(function):
        try:
            return nb.njit(signature, nogil=True, cache=True, **options)(function)
        except (RuntimeError, OSError):                   # no writable cache folder, or no room in it
            return nb.njit(signature, nogil=True, **options)(function)
    return compile_function
