"""A joblib file → stand-ins for its objects and its arrays, without running any code in it.

joblib's pickle has a small description of each array before its raw bytes (joblib/numpy_pickle.py).
Its own reader hands arrays of objects to plain `pickle.load`, so restricting its classes is not
enough: here the unpickler knows stand-ins only and takes the bytes itself.
"""

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

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.foreign.checkpoints import Stub, file_kind, stub_class

PACKAGES = "numpy sklearn joblib collections copyreg copy_reg _codecs scipy".split()
INFLATED, SMALL = 20, 1 << 24  # what a file may hold: so many times its bytes, and so many more
OPENERS = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ\x00": lzma, b"]\x00\x00": lzma}


def load_joblib(path: Path | str) -> Any:
    """The object in a file that `joblib.dump` wrote: `Stub`s with attributes, values, and arrays.

    Raises UserError for no such file, one that is not of joblib or cut off, arrays of objects, or a
    name that such a file has no business with.
    """
    path = Path(path).expanduser()
    if (kind := file_kind(path)) != "pickle":
        raise UserError(f"{path} is a file of kind {kind}, expected one of joblib")
    most = INFLATED * path.stat().st_size + SMALL
    try:
        with reading(path, what="is no whole joblib file"), open(path, "rb") as raw:
            return _ArrayUnpickler(io.BytesIO(_decompressed(raw, most))).load()
    except UserError as error:  # it says what is wrong, not always where
        where = "" if str(error).startswith(str(path)) else f"{path} "
        raise UserError(f"{where}{error}") from None


class _ArrayUnpickler(pickle._Unpickler):
    """Python's unpickler, with stand-ins for all classes, and arrays behind their descriptions."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.file = file

    def find_class(self, module: str, name: str) -> type[Stub]:
        if module.split(".")[0] not in PACKAGES:
            reason = f"it asks to run {module}.{name}, which no k-means file does"
            raise UserError(f"was not read: {reason}; don't trust it")
        return stub_class(f"{module}.{name}")

    def load_build(self) -> None:
        super().load_build()
        made = self.stack[-1]
        kind = made.name.rpartition(".")[2] if isinstance(made, Stub) else ""
        if kind == "NumpyArrayWrapper":
            self.stack[-1] = self._read_array(made)
        elif kind in ("NDArrayWrapper", "ZNDArrayWrapper"):
            raise UserError("is of a joblib before 2016, with arrays in other files: save it again")

    dispatch[pickle.BUILD[0]] = load_build

    def _read_array(self, wrapper: Stub) -> np.ndarray:
        described, shape = wrapper.dtype, tuple(int(n) for n in wrapper.shape)
        # numpy pickles a dtype as a call with its code, and a state that holds the order of bytes.
        called = isinstance(described, Stub) and described.arguments
        code = called[0] if called else described
        if not (isinstance(code, str) and re.fullmatch(r"[biufc]\d{1,2}", code)):
            raise UserError(f"was not read: it has an array of {code!r}, expected numbers")
        order = vars(described).get("state", (3, "="))[1]
        dtype = np.dtype(code).newbyteorder(order if order in "<>=" else "=")
        if vars(wrapper).get("numpy_array_alignment_bytes") is not None:
            self._exactly(self._exactly(1)[0])  # padding, after one byte that says how much
        size = math.prod(shape) * dtype.itemsize
        values = np.frombuffer(self._exactly(size), dtype)
        return values.reshape(shape, order="F" if wrapper.order == "F" else "C")

    def _exactly(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise UserError(f"is cut off: {len(data)} bytes of {count} of an array; get it again")
        return data


def _decompressed(raw: IO[bytes], most: int) -> bytes:
    """What the file holds, at most `most` bytes: more can be no k-means file."""
    head = raw.read(6)
    raw.seek(0)
    if head.startswith(b"\x04\x22\x4d\x18"):
        raise UserError("is compressed with LZ4: save it with another compression")
    if head.startswith(b"x"):  # of zlib, which tells by its end that it is whole
        inflater = zlib.decompressobj()
        data = inflater.decompress(raw.read(), most)
        if not (inflater.eof or inflater.unconsumed_tail):
            raise UserError("is cut off: its compressed data has no end; get it again")
    else:
        module = next((OPENERS[start] for start in OPENERS if head.startswith(start)), None)
        data = (module.open(raw) if module else raw).read(most)
    if len(data) == most:
        raise UserError(f"inflates to more than {most >> 20} MB: this is no k-means file")
    return data
