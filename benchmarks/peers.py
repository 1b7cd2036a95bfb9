"""Which peers can take part here, built from the same float32 weights; the others are left out by name."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.contenders import (
    LEAST_COSINE,
    LEAST_COSINE_INT8,
    Contender,
    Left,
    Runs,
    onnxruntime_run,
    openvino_run,
    peer,
    torch_runs,
)
from benchmarks.models import GRAPHS, Model, missing

TORCH = ("torch", "transformers")
EXPORT = (*TORCH, "onnx")
PACKAGES = {
    "torch float32": TORCH,
    "ONNX Runtime float32": ("onnxruntime",),
    "ONNX Runtime int8": ("onnxruntime",),
    "OpenVINO float32": ("openvino",),
    "OpenVINO default": ("openvino",),
}
NEEDS = {  # graph files, "kind-precision"
    "torch float32": (),
    "ONNX Runtime float32": tuple(f"{kind}-float32" for kind in GRAPHS),
    "ONNX Runtime int8": tuple(f"{kind}-int8" for kind in GRAPHS),
    "OpenVINO float32": ("plain-float32",),
    "OpenVINO default": ("plain-float32",),
}


def obstacle(name: str, model: Model) -> str | None:
    """Why a peer cannot take part, or None if it can."""
    if absent := missing(PACKAGES[name]):
        return f"{', '.join(absent)} not installed"
    if all((model.home / f"{graph}.onnx").is_file() for graph in NEEDS[name]):
        return None
    if absent := missing(EXPORT):
        return f"making its graph needs {', '.join(absent)}: not installed"
    return None


def build_peers(model: Model, threads: int) -> tuple[list[Contender], list[Left]]:
    """The peers that can take part, and those that cannot."""
    builders: dict[str, Callable[[Model, int], Contender]] = {
        "ONNX Runtime int8": _onnxruntime_int8,
        "ONNX Runtime float32": _onnxruntime_float32,
        "OpenVINO default": _openvino_default,
        "OpenVINO float32": _openvino_float32,
        "torch float32": _torch,
    }
    obstacles = {name: obstacle(name, model) for name in builders}
    peers = [build(model, threads) for name, build in builders.items() if obstacles[name] is None]
    return peers, [Left(name, reason) for name, reason in obstacles.items() if reason is not None]


def _torch(model: Model, threads: int) -> Contender:
    runs = Runs(*torch_runs(model.float32, threads, 1))
    return peer("torch float32", "float32", LEAST_COSINE["float32"], model.float32, threads, {"sdpa": runs})


def _onnxruntime_float32(model: Model, threads: int) -> Contender:
    return _onnxruntime(model, threads, "float32", LEAST_COSINE["float32"])


def _onnxruntime_int8(model: Model, threads: int) -> Contender:
    return _onnxruntime(model, threads, "int8", LEAST_COSINE_INT8["theirs"])


def _onnxruntime(model: Model, threads: int, precision: str, least: float) -> Contender:
    runs = {}
    for kind in GRAPHS:
        file = model.graph(kind, precision)
        runs[kind] = Runs(onnxruntime_run(file, threads), onnxruntime_run(file, 1))
    return peer(f"ONNX Runtime {precision}", precision, least, model.float32, threads, runs)


def _openvino_float32(model: Model, threads: int) -> Contender:
    return _openvino(model, threads, "float32", "f32")


def _openvino_default(model: Model, threads: int) -> Contender:
    return _openvino(model, threads, "default", None)


def _openvino(model: Model, threads: int, name: str, hint: str | None) -> Contender:
    file = model.graph("plain", "float32")
    whole, precision = openvino_run(file, threads, 1, hint)
    runs = Runs(whole, openvino_run(file, threads, threads, hint)[0])
    precision = {"f32": "float32"}.get(precision, precision)
    least = LEAST_COSINE.get(precision, LEAST_COSINE["bf16"])
    return peer(f"OpenVINO {name}", precision, least, model.float32, threads, {"plain": runs})
