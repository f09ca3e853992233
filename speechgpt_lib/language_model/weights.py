"""The weights of a language model on disk, read and written a tensor at a time.

Seven billion weights take 13.5 GB in half precision: whoever holds them twice needs another
machine.  So a file is never in memory whole, and a tensor comes to the device and the precision in
which it is used before the next one is read.

    model.safetensors                      small models
    model-00001-of-00054.safetensors, …    larger ones, in parts, with model.safetensors.index.json
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from speechgpt_lib.errors import UserError, reading
from speechgpt_lib.foreign.checkpoints import file_kind, is_mappable, load_torch_checkpoint
from speechgpt_lib.foreign.tensors import check_finite, check_tensor_bytes
from speechgpt_lib.language_model.families import model_class
from speechgpt_lib.runs.artefacts import read_json, write_json

PART_BYTES = 1 << 28  # of a part; while one is written it is in memory twice
PAGE = 4096
KINDS = ("model.safetensors", "pytorch_model.bin")
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Place = Callable[[str], torch.device | str]  # name of a tensor → where it belongs


def empty_model(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """A model without weights, which takes no memory."""
    with init_empty_weights(include_buffers=False):
        return model_class(config)(config)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: safetensors or PyTorch's, one or in shards.

    Raises UserError where there are none, or some of those that an index names are missing.
    """
    for whole in KINDS:
        index = folder / f"{whole}.index.json"
        if index.is_file():
            with reading(index):
                names = sorted({*read_json(index, "get it again")["weight_map"].values()})
                if strange := [name for name in names if Path(name).name != name]:
                    raise UserError(f"{index} names {strange[0]!r}, which is no file beside it")
            if missing := [name for name in names if not (folder / name).is_file()]:
                some = f"lacks {missing[0]}, one of {len(names)} files that {index.name} names"
                raise UserError(f"{folder} {some}: the weights were not read, get it again")
            return [folder / name for name in names]
        if (folder / whole).is_file():
            return [folder / whole]
    expected = f"expected {' or '.join(KINDS)}, or their shards with an index"
    raise UserError(f"the weights in {folder} were not read, there are none: {expected}")


def tensors_in(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, which is to be copied before the next one is asked for.

    Nothing in a file is run.  Raises UserError for a file that is damaged or something else.
    """
    with reading(path, "get it again", "was not read"):
        if file_kind(path) == "safetensors":
            for name in names_in(path):
                with safe_open(path, "pt") as file:  # anew, so that nothing stays mapped
                    tensor = file.get_tensor(name)
                yield name, tensor
                del tensor
            return
        found, mapped = load_torch_checkpoint(path, mapped=True), is_mappable(path)
        for name in list(found):
            if isinstance(tensor := found.pop(name), Tensor):
                check_tensor_bytes(tensor, f"{path}: {name}")
                yield str(name), tensor
                if mapped:  # elsewhere they are the memory itself, which tensors may share
                    _forget(tensor)


def names_in(path: Path) -> list[str]:
    """The names of the tensors in a file."""
    with reading(path, "get it again", "was not read"):
        if file_kind(path) == "safetensors":
            with safe_open(path, "pt") as file:
                return list(file.keys())
        return list(map(str, load_torch_checkpoint(path, mapped=True)))


def _forget(tensor: Tensor) -> None:
    """Give back the pages of a mapped file that `tensor` was read from (`madvise`, Linux); whoever
    looks at them again reads them again."""
    storage = tensor.untyped_storage()
    first = -(-storage.data_ptr() // PAGE) * PAGE
    size = (storage.data_ptr() + storage.nbytes() - first) // PAGE * PAGE
    if size > 0 and storage.device.type == "cpu":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), 4)


def read_weights(
    folder: Path, model: transformers.PreTrainedModel, look: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder under the names that `model` (perhaps empty) gives them.

    Raises UserError where one is missing, strange, of another shape, or (`look`) not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    left, same = dict(expected), {}
    if model.config.tie_word_embeddings:  # one table serves input and output
        left.pop(HEAD)
        names = [name for path in weight_files(folder) for name in names_in(path)]
        same = (
            {} if {EMBEDDINGS, EMBEDDINGS.removeprefix("model.")} & {*names} else {HEAD: EMBEDDINGS}
        )
    for path in weight_files(folder):
        for name, tensor in tensors_in(path):
            name = same.get(name, name if name in expected else f"model.{name}")
            if name.endswith("rotary_emb.inv_freq") or (name in expected and name not in left):
                continue  # computed from the configuration; tied
            if name not in left:
                ask = "are all files of the same model?"
                found = name.removeprefix("model.")
                raise UserError(f"{path} holds {found}, for which there is no place: {ask}")
            if (found := tuple(tensor.shape)) != left[name]:
                raise UserError(f"{path}: {name} has shape {found}, expected {left[name]}")
            if look:
                check_finite({name: tensor}, path)
            del left[name]
            yield name, tensor
    if left:
        first, *others = sorted(left)
        more = f" and {len(others)} more" * bool(others)
        raise UserError(f"the weights in {folder} are not whole: {first}{more} are missing")


def load_weights(
    config: transformers.PretrainedConfig,
    folder: Path,
    dtype: torch.dtype,
    place: Place = lambda name: "cpu",
) -> transformers.PreTrainedModel:
    """The model of `config` with the weights of `folder` in `dtype`, each at its place."""
    model = empty_model(config)
    for name, tensor in read_weights(folder, model):
        module, _, own = name.rpartition(".")
        value = tensor.to(place(name), dtype, copy=True)
        model.get_submodule(module).register_parameter(own, nn.Parameter(value))
    model.tie_weights()
    return model.eval()


def copy_weights(
    model: transformers.PreTrainedModel,
    source: Path,
    out: Path,
    changed: Mapping[str, Tensor] | None = None,
) -> None:
    """The weights of `source`, checked against the (empty) `model`, into `out` as safetensors in
    parts, in the precision they have; those `changed` instead of the ones with their names."""
    parts: list[dict[str, int]] = []
    held: dict[str, Tensor] = {}

    def write() -> None:
        save_file(held, out / f"part-{len(parts)}")
        parts.append({name: tensor.nbytes for name, tensor in held.items()})
        held.clear()

    for name, tensor in read_weights(source, model):
        tensor = (changed or {}).get(name, tensor)
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > PART_BYTES:
            write()
        held[name] = tensor.clone(memory_format=torch.contiguous_format)
    write()
    names = [f"model-{k + 1:05d}-of-{len(parts):05d}.safetensors" for k in range(len(parts))]
    if len(parts) == 1:
        names = [KINDS[0]]
    else:
        where = {name: file for part, file in zip(parts, names, strict=True) for name in part}
        size = {"total_size": sum(sum(part.values()) for part in parts)}
        write_json(out / f"{KINDS[0]}.index.json", {"metadata": size, "weight_map": where})
    for k, name in enumerate(names):
        (out / f"part-{k}").rename(out / name)
