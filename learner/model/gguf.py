"""Converts a GGUF file (llama.cpp's format) into a directory that transformers, the learner and every engine can load.

transformers reads the architecture, the tokenizer and the quantised weights, which are dequantised and written as safetensors. Files
that are not a whole model are refused first: adapters, projectors, parts of a split model. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.errors import CheckpointError, RunFileError

MAGIC = b"GGUF"
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes that weights can be written as, with their size in bytes."""
ROOM = 1.02  # factor on the weights' size, for the tokenizer and other files
WHOLE_TOKENIZERS = (5, 19)
"""The version of transformers that reads tokenizers without some of the special tokens; older ones fail with an AttributeError."""
QUANTISED = ("quantization_config", "_pre_quantization_dtype")


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata of a file: ``architecture`` (such as ``llama``), ``name``, number of ``parameters``, head size (0 if not given), and the
    kind of position scaling (``stretched``, empty if not given)."""

    architecture: str
    name: str
    parameters: int
    head_dim: int
    stretched: str


def read_header(file: Path) -> Header:
    """Raises RunFileError if ``file`` is no GGUF, no complete model, or one that transformers cannot read."""
    reader = _reader(file)
    fields = {name: reader.fields[name].contents() for name in reader.fields if not name.startswith("tokenizer.")}
    kind, parts = fields.get("general.type", "model"), fields.get("split.count", 1)
    if kind != "model":
        raise RunFileError(f"{file} is a GGUF of type {kind!r}, not of a model; import the model that it belongs to")
    if parts > 1:
        raise RunFileError(f"{file} is one of {parts} parts; merge them first (llama-gguf-split --merge)")
    architecture = str(fields.get("general.architecture", ""))
    _check_known(architecture, file)
    if not reader.tensors:
        raise RunFileError(f"{file} holds no weights")
    if turned := [tensor.name for tensor in reader.tensors if tensor.name.startswith(POSITIONS)]:
        raise RunFileError(
            f"{file} has positions of its own ({', '.join(turned)}), which transformers does not read; take the model as safetensors"
        )
    return Header(
        architecture, str(fields.get("general.name", "")), sum(int(tensor.n_elements) for tensor in reader.tensors),
        int(fields.get(f"{architecture}.attention.key_length", 0)), str(fields.get(f"{architecture}.rope.scaling.type", "")),
    )  # fmt: skip


POSITIONS = "rope_"  # tensors that change the frequencies of rotary positions


def _reader(file: Path) -> Any:
    if not file.is_file():
        raise RunFileError(f"{file} does not exist" if not file.exists() else f"{file} is no file")
    with file.open("rb") as opened:
        begins = opened.read(len(MAGIC))
    if begins != MAGIC:
        raise RunFileError(f"{file} is no GGUF: it begins with {begins!r}, not with {MAGIC!r}")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise RunFileError("reading a GGUF needs the package gguf: pip install 'headrace[real]'") from None
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise RunFileError(f"{file} is damaged or cut off: {_said(error)}") from error


def _check_known(architecture: str, file: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as KNOWN

    models = sorted(set(KNOWN) - {"general", "tokenizer"})
    plain = architecture.replace("-", "_")
    if not plain:
        raise RunFileError(f"{file} names no architecture")
    alike = {plain, plain.replace("moe", "_moe")}
    if not alike & set(models) and not any(plain.startswith(family) for family in ("t5",)):
        raise RunFileError(
            f"{file} is of architecture {architecture!r}, which this transformers does not read from a GGUF; it reads {', '.join(models)}"
        )


def convert(
    file: Path, directory: Path, dtype: str = "float32", tell: Callable[[str], None] = lambda line: None
) -> Header:
    """Write ``directory`` from ``file``, all or nothing; ``tell`` is called with lines that report progress.

    Raises RunFileError if the file cannot be imported, CheckpointError if weights are missing.
    """
    check_target(directory)
    header = read_header(file)
    check_room(directory, header.parameters * DTYPES[dtype])
    tell(
        f"{file.name}: {header.name or 'a model without a name'}, {header.architecture}, {header.parameters:,} numbers"
    )
    beside = directory.with_name(f".{directory.name}.importing")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        _write(file, header, beside, dtype, tell)
        if directory.exists():
            directory.rmdir()  # it is empty
        beside.rename(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return header


def check_target(directory: Path) -> None:
    """Raises RunFileError unless ``directory`` is empty or does not exist."""
    if directory.is_dir() and any(directory.iterdir()):
        raise RunFileError(f"{directory} is not empty; name a new directory")
    if directory.exists() and not directory.is_dir():
        raise RunFileError(f"{directory} is a file; name a new directory")


def check_room(directory: Path, size: int) -> None:
    """Raises RunFileError if ``size`` bytes of weights do not fit on the disk."""
    there = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if size * ROOM > free:
        raise RunFileError(
            f"{directory}: the weights take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; free some, or take --dtype bfloat16"
        )


def _write(file: Path, header: Header, directory: Path, dtype: str, tell: Callable[[str], None]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with reading(file), alone(file) as (home, name):
        tell("reading its tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(home, gguf_file=name)
        config = AutoConfig.from_pretrained(home, gguf_file=name)
        _amend(config, header, file)
        tell("reading and dequantising its weights")
        model, found = AutoModelForCausalLM.from_pretrained(
            home, gguf_file=name, config=config, dtype=getattr(torch, dtype), output_loading_info=True
        )
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise CheckpointError(f"{file} lacks {len(found['missing_keys'])} tensors of its model, among them {some}")
    unmark(model)
    _check_shapes(model, file)
    tell(f"writing {directory.name.removeprefix('.').removesuffix('.importing')}")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _amend(config: Any, header: Header, file: Path) -> None:
    """Set what transformers ignores in the file. Raises RunFileError for position scaling, which cannot be set."""
    if header.head_dim and getattr(config, "head_dim", None) is not None:
        config.head_dim = header.head_dim
    rope = getattr(config, "rope_parameters", None) or {}
    if header.stretched not in ("", "none") and rope.get("rope_type", "default") == "default":
        raise RunFileError(
            f"{file} stretches its positions ({header.stretched}), which transformers does not read; take the model as safetensors"
        )


def _check_shapes(model: Any, file: Path) -> None:
    """Raises RunFileError if a weight does not have the shape that the configuration implies."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(model.config).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in expected or expected[name].shape != tensor.shape:
            wanted = tuple(expected[name].shape) if name in expected else "nothing"
            raise RunFileError(
                f"{file} cannot be read by transformers: its {name} is {tuple(tensor.shape)}, by its configuration {wanted}"
            )


def unmark(model: Any) -> None:
    """Remove the quantisation marks from a dequantised model: transformers does not save a model that has them."""
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if attribute in model.__dict__:
            delattr(model, attribute)
    for attribute in QUANTISED:
        if attribute in model.config.__dict__:
            delattr(model.config, attribute)
    model.config._name_or_path = ""


@contextlib.contextmanager
def alone(file: Path) -> Iterator[tuple[str, str]]:
    """A temporary directory with only ``file`` in it, and its name there: transformers would also read files next to it."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "model.gguf").symlink_to(file.absolute())
        yield home, "model.gguf"


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn transformers' errors into a RunFileError of one line."""
    try:
        yield
    except ImportError as error:
        raise RunFileError(f"{file} cannot be read here: {_said(error)}") from error
    except AttributeError as error:
        raise RunFileError(f"{file} cannot be read by transformers: {_said(error)}{_newer()}") from error
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        raise RunFileError(f"{file} cannot be read by transformers: {_said(error)}") from error


def _newer() -> str:
    """The cure where transformers is too old for a tokenizer whose file leaves out a special token, such as ``bos_token_id``."""
    import transformers

    installed = tuple(int(number) for number in re.findall(r"\d+", transformers.__version__)[:2])
    if installed >= WHOLE_TOKENIZERS:
        return ""
    needed = ".".join(map(str, WHOLE_TOKENIZERS))
    return f"; install transformers of at least {needed}, this is {transformers.__version__}"


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
