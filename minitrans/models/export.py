"""A model folder written anew: `quantize_folder`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from minitrans.contents import INDEX_FILE, WEIGHTS_FILE
from minitrans.errors import InputError
from minitrans.files import atomic_folder, sha256_of, target_of
from minitrans.models.config import INT8_FORMAT
from minitrans.models.folder import ModelFolder
from minitrans.models.identity import PROVENANCE
from minitrans.models.manifest import known_models
from minitrans.models.parameters import named_arrays
from minitrans.models.quantization import with_precision
from minitrans.models.weights import load_parameters, weight_files


def quantize_folder(source: str | Path, destination: str | Path) -> Path:
    """Write the int8 form of a model folder: the same input gives the same bytes.

    The result holds the int8 weights and their scales, the configuration, the tokenizer and the sentence-transformers
    files of the source, the licence files, and ``provenance.json`` with the digests of what it was made from.

    Args:
        source: a float model folder.
        destination: a folder that does not exist yet.

    Returns:
        The destination.

    Raises:
        InputError: the destination exists, or the source is int8 already.
        ModelError: the source is not a usable model folder.
        WriteError: the destination cannot be written.
    """
    from safetensors.numpy import save

    source, destination = Path(source), target_of(destination)
    if os.path.lexists(destination):
        raise InputError(f"{destination} exists already; name a new folder, or remove it first")
    there = ModelFolder.open(source)
    parameters = load_parameters(there)
    if parameters.precision == "int8":
        raise InputError(f"{source} is an int8 model already; quantise the float model it came from")
    quantized = with_precision(parameters, "int8")
    arrays = {name: np.ascontiguousarray(array) for name, array in named_arrays(quantized).items()}
    with atomic_folder(destination, size=sum(array.nbytes for array in arrays.values())) as folder:
        for name in _to_copy(there):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there.inside(name), folder / name)
        quantization = {
            "quant_method": INT8_FORMAT,
            "version": 1,
            "weights": "int8, symmetric, per output channel",
            "embeddings": "int8, symmetric, per row",
            "activations": "uint8, asymmetric, per token, at run time",
        }
        _write_json(folder / there.name("config.json"), {**there.config, "quantization_config": quantization})
        (folder / there.name(WEIGHTS_FILE)).write_bytes(save(arrays, metadata={"format": INT8_FORMAT}))
        made_from = {file.name: sha256_of(file) for file in weight_files(there)}
        origin: dict[str, Any] = {"weights": parameters.sha256, "weights_sha256": made_from}
        for known in known_models():
            if known.revision and made_from.items() <= known.files.items():
                origin |= {"model": known.name, "revision": known.revision, "licence": known.licence}
        _write_json(
            folder / PROVENANCE,
            {
                "made_by": "minitrans quantize",
                "weights": quantized.sha256,
                "from": origin,
                "what": "int8 per output channel and per embedding row; layer norms, biases and scales float32",
            },
        )
    return destination


def _to_copy(there: ModelFolder) -> list[str]:
    """All that an encoder reads but the weights, and the licences."""
    names = {name for name in there.files() if not name.endswith((".safetensors", INDEX_FILE))}
    if there.has("tokenizer.json"):
        names.discard(there.name("vocab.txt"))  # not read then
    licences = [*there.path.glob("LICENSE*"), *there.path.glob("NOTICE*")]
    return sorted(names | {file.name for file in licences if file.is_file()})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
