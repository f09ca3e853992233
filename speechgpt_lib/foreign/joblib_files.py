"""A joblib file → its objects as stand-ins and its arrays as arrays, without running any code that stands in it.

joblib writes a pickle in which every array is a small description followed by its raw bytes.  Its own reader hands arrays of objects to
plain `pickle.load`, so restricting its classes is not enough: here the stream is read by an unpickler that knows stand-ins only and takes
the bytes itself.  Format: joblib/numpy_pickle.py.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import re
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from speechgpt_lib.errors import UserError
from speechgpt_lib.foreign.checkpoints import check_is_no_text
from speechgpt_lib.foreign.stubs import Stub, stub_class

KNOWN_PACKAGES = (
    "numpy",
    "sklearn",
    "joblib",
    "collections",
    "copyreg",
    "copy_reg",
    "_codecs",
    "scipy",
)
LARGEST = 1 << 33  # bytes of one array


def load_joblib(path: Path | str) -> Any:
    """The object in a file that `joblib.dump` wrote, compressed or not: stand-ins (`Stub`) with attributes, plain values, and arrays.

    Raises:
        UserError: no such file, not of joblib, cut off, arrays of objects, or it names something that such a file has no business with.
    """
    path = Path(path).expanduser()
    check_is_no_text(path)
    try:
        with open(path, "rb") as raw, _decompressed(raw, path) as file:
            return _ArrayUnpickler(file, path).load()
    except UserError:
        raise
    except Exception as error:  # whatever a damaged stream makes the unpickler raise
        what = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"{path} is no whole joblib file ({what}): get it again and compare its size"
        ) from None


class _ArrayUnpickler(pickle._Unpickler):
    """Python's unpickler, with stand-ins for all classes, and arrays read from behind their description."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], path: Path):
        super().__init__(file)
        self.file, self.path = file, path

    def find_class(self, module: str, name: str) -> type[Stub]:
        if module.split(".")[0] not in KNOWN_PACKAGES:
            raise UserError(
                f"{self.path} was not read: it asks to run {module}.{name}, which no k-means file does; don't trust it"
            )
        return stub_class(f"{module}.{name}")

    def load_build(self) -> None:
        super().load_build()
        made = self.stack[-1]
        if isinstance(made, Stub) and made.name.endswith(".NumpyArrayWrapper"):
            self.stack[-1] = self._read_array(made)
        elif isinstance(made, Stub) and made.name.endswith((".NDArrayWrapper", ".ZNDArrayWrapper")):
            raise UserError(
                f"{self.path} was written by a joblib from before 2016, with arrays in files of their own: save it again"
            )

    dispatch[pickle.BUILD[0]] = load_build

    def _read_array(self, wrapper: Stub) -> np.ndarray:
        dtype, shape = self._dtype(wrapper.dtype), tuple(int(n) for n in wrapper.shape)
        if vars(wrapper).get("numpy_array_alignment_bytes") is not None:
            self._exactly(self._exactly(1)[0])  # padding, after one byte that says how much
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= LARGEST:
            raise UserError(
                f"{self.path} has an array of {size} bytes: this can't be a k-means file"
            )
        values = np.frombuffer(self._exactly(size), dtype)
        return values.reshape(shape[::-1]).T if wrapper.order == "F" else values.reshape(shape)

    def _dtype(self, described: Any) -> np.dtype:
        """numpy's dtype is pickled as a call with its code and a state that holds the order of bytes."""
        code = (
            described.arguments[0]
            if isinstance(described, Stub) and described.arguments
            else described
        )
        if not (isinstance(code, str) and re.fullmatch(r"[biufc]\d{1,2}", code)):
            raise UserError(
                f"{self.path} was not read: it has an array of {code!r}, and only arrays of numbers are read here"
            )
        order = vars(described).get("state", (3, "="))[1]
        return np.dtype(code).newbyteorder(order if order in "<>=" else "=")

    def _exactly(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise UserError(
                f"{self.path} is cut off: {count} bytes of an array expected, {len(data)} found; get it again"
            )
        return data


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    head = raw.read(6)
    raw.seek(0)
    if head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw)
    if head[:3] == b"BZh":
        return bz2.BZ2File(raw)
    if head[:6] == b"\xfd7zXZ\x00" or head[:3] == b"]\x00\x00":
        return lzma.LZMAFile(raw)
    if head[:4] == b"\x04\x22\x4d\x18":
        raise UserError(f"{path} is compressed with LZ4: save it with another compression")
    if head[:1] == b"x":
        return io.BytesIO(_inflate(raw.read(), path))
    return raw


def _inflate(data: bytes, path: Path) -> bytes:
    inflater = zlib.decompressobj()
    whole = inflater.decompress(data, LARGEST)
    if not inflater.eof:
        raise UserError(f"{path} is cut off: its compressed data has no end; get it again")
    return whole
