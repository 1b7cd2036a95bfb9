"""The machine and the software that the figures belong to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from minitrans import SentenceEncoder
from minitrans.sentences.threads import available_cpus

FLAGS = (
    *("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),  # ARM
)
PACKAGES = (
    *("minitrans", "numpy", "tokenizers", "safetensors", "onnxruntime", "onnx", "openvino", "torch", "transformers"),
    "sentence-transformers",
)
BACKEND = ("level", "isa", "built")  # by which a backend or its kernels may describe themselves


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, object]:
    """Processor, cores, memory, system and Python, in plain JSON values."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    present = (fields.get("flags") or fields.get("Features") or "").split()
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in present],
        "cores": os.cpu_count(),
        "available_cores": available_cpus(),
        "memory_gib": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str | None]:
    """Version of every package that matters; None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def describe_backend(encoder: SentenceEncoder) -> dict[str, str]:
    """The backend of an encoder, and what it says about itself."""
    found = {"name": encoder.backend}
    for part in (encoder.blocks, getattr(encoder.blocks, "kernels", None)):
        for name in BACKEND:
            if (value := getattr(part, name, None)) is not None:
                found[name] = str(getattr(value, "name", value))
    return found
