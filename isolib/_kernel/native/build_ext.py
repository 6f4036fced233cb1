"""Writes the C source of ``isolib._kernel._ext`` from ``cdef.h``; run by the build: ``build_ext.py CDEF OUTPUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import cffi

# What the declarations' types need; cdef.h itself holds no preprocessor lines, for cffi reads it as it is.
PREAMBLE = """
#include <stddef.h>
#include <stdint.h>
#include "cdef.h"
"""


def main(cdef: str, output: str) -> None:
    """Generate the module's source."""
    ffi = cffi.FFI()
    ffi.cdef(Path(cdef).read_text(encoding="utf-8"))
    ffi.set_source("isolib._kernel._ext", PREAMBLE, py_limited_api=True)
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
