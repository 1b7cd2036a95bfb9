"""Model folders and the graphs made from them: one set of float32 weights for everybody.

A cache folder keeps what takes long to make, under the sha256 of the weights it was made from.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.timing import BenchmarkError
from minitrans import quantize_folder
from minitrans.files import atomic_file, atomic_folder, sha256_of
from minitrans.hub.resolve import find_local
from minitrans.models.config import EncoderConfig
from minitrans.models.parameters import tensor_shapes

GRAPHS = ("plain", "optimised")
LAYERS_12 = 12


@dataclass(frozen=True)
class Model:
    """Where the forms of one model lie."""

    name: str
    float32: Path
    int8: Path
    home: Path  # of the graphs
    sha256: str  # of the float32 weights

    def graph(self, kind: str, precision: str) -> Path:
        """The ONNX file of a graph, "plain" or "optimised", in "float32" or "int8"; made if it is not there."""
        file = self.home / f"{kind}-{precision}.onnx"
        if file.is_file():
            return file
        source = self.graph(kind, "float32") if precision == "int8" else self.float32
        with _quiet():
            if precision == "int8":
                _quantize(source, file)
            elif kind == "plain":
                _export(source, file)
            else:
                _optimise(self.graph("plain", "float32"), file, EncoderConfig.from_folder(source))
        return file


def missing(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [package for package in packages if find_spec(package.replace("-", "_")) is None]


def float32_folder() -> Path:
    """The float32 all-MiniLM-L6-v2: the environment's MINITRANS_FLOAT32, or what the cache of the hub holds."""
    named = os.environ.get("MINITRANS_FLOAT32")
    folder = Path(named) if named else find_local("sentence-transformers/all-MiniLM-L6-v2")
    if folder is None:
        raise BenchmarkError("the float32 all-MiniLM-L6-v2 is not here: run `minitrans pull all-MiniLM-L6-v2`")
    if not (folder / "model.safetensors").is_file():
        raise BenchmarkError(
            f"MINITRANS_FLOAT32 is {named!r}, wanted a folder with model.safetensors; unset it and run "
            "`minitrans pull all-MiniLM-L6-v2`"
        )
    return folder


def prepare(name: str, folder: Path, cache: Path) -> Model:
    """Quantise a float32 folder, unless the cache has its int8 form already."""
    digest = sha256_of(folder / "model.safetensors")
    home = cache / digest[:16]
    home.mkdir(parents=True, exist_ok=True)
    int8 = home / "minitrans-int8"
    if not int8.is_dir():
        quantize_folder(folder, int8)
    return Model(name, folder, int8, home, digest)


def random_model(like: Path, cache: Path, layers: int = LAYERS_12) -> Path:
    """A folder with random weights and so many layers; the other sizes and the tokenizer are those of ``like``.

    The weights are drawn as BERT's are before training: normal, standard deviation 0.02, layer norms at one.
    """
    from safetensors.numpy import save_file

    folder = cache / f"random-L{layers}"
    if folder.is_dir():
        return folder
    values = json.loads((like / "config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": layers}
    random = np.random.default_rng(layers)
    tensors = {}
    for name, _, shape in tensor_shapes(EncoderConfig.from_dict(values), "float32"):
        if "LayerNorm" in name or name.endswith(".bias"):
            tensors[name] = np.full(shape, float(name.endswith("LayerNorm.weight")), np.float32)
        else:
            tensors[name] = 0.02 * random.standard_normal(shape, np.float32)
    with atomic_folder(folder) as temporary:
        for file in ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json", "modules.json"):
            if (like / file).is_file():
                shutil.copyfile(like / file, temporary / file)
        for file in like.glob("*/config.json"):
            (temporary / file.parent.name).mkdir()
            shutil.copyfile(file, temporary / file.parent.name / file.name)
        (temporary / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of tracing and of its age, the quantiser of a step that the optimised graph has had."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _export(folder: Path, file: Path) -> None:
    from benchmarks.torch_model import export

    export(folder, file)


def _optimise(plain: Path, file: Path, config: EncoderConfig) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(
        str(plain), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    with atomic_file(file) as temporary:
        model.save_model_to_file(str(temporary))


def _quantize(graph: Path, file: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with atomic_file(file) as temporary:
        quantize_dynamic(
            graph,
            temporary,
            weight_type=QuantType.QInt8,
            per_channel=True,  # one scale for a whole matrix is no faster, and falls to a cosine of 0.92
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of the optimizer's own operators
        )
