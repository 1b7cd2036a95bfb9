"""The build backend's hook: compiles the kernels into the package, and lets the build go on without them if it cannot.

A wheel gets the library and the tag of its platform; an editable installation gets it in the source tree. Where the
kernels cannot be built the package still works (reference backend, or Numba with the extra `jit`), and the build says
why. MINITRANS_KERNELS=require turns that into an error, MINITRANS_KERNELS=skip builds without them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Numba compiles, llvmlite emits the objects; the upper bound is the newest release that the kernels were built with.
COMPILERS = ["numba>=0.68,<0.69", "llvmlite>=0.50,<0.51"]
MACHINES = {"x86_64", "amd64", "aarch64", "arm64"}


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Builds minitrans/kernels/library/kernels.so."""

    PLUGIN_NAME = "custom"

    def _wanted(self) -> bool:
        if os.environ.get("MINITRANS_KERNELS") == "skip" or sys.implementation.name != "cpython":
            return False
        return platform.machine().lower() in MACHINES and sys.maxsize > 2**32

    def dependencies(self) -> list[str]:
        """What a build needs on this machine; `ziglang` brings a linker where there is no C compiler."""
        if not self._wanted():
            return []
        has_compiler = shutil.which(os.environ.get("CC", "cc").split()[0])
        return COMPILERS if has_compiler else [*COMPILERS, "ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what the wheel holds."""
        if not self._wanted():
            return
        editable = version == "editable"
        folder = (
            Path(self.root, "minitrans", "kernels", "library")
            if editable
            else Path(tempfile.mkdtemp(prefix="minitrans-"))
        )
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "minitrans.kernels", "--output", str(folder)],
            cwd=self.root,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no reason was given"]
            if os.environ.get("MINITRANS_KERNELS") == "require":
                raise RuntimeError(f"the kernels could not be built:\n{done.stderr}")
            self.app.display_warning(
                f"minitrans: no compiled kernels ({reason[-1]}); the reference backend will be used"
            )
            return
        if editable:
            return
        self._temporary = folder
        for name in ("kernels.so", "kernels.json"):
            build_data["force_include"][str(folder / name)] = f"minitrans/kernels/library/{name}"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was in between."""
        if temporary := getattr(self, "_temporary", None):
            shutil.rmtree(temporary)
