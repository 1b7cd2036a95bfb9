"""Numba source -> LLVM IR -> object code for every instruction-set level -> one shared library.

Numba compiles each kernel to IR as a C callback over integers. Nothing of Python is left in it: the IR declares no
function but LLVM's own. llvmlite links the kernels of a level, optimises them for its processor and emits an object;
that needs no processor of that kind. The system's C compiler, or the one in the PyPI package `ziglang`, links the
objects of a family into a library that depends on nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llvmlite import binding as llvm
from numba.core import sigutils
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock

from minitrans.files import write_file
from minitrans.kernels.attention import attention
from minitrans.kernels.library.record import HERE, LIBRARY, RECORD, source_digest
from minitrans.kernels.products import float32_product, int8_product
from minitrans.kernels.prune import prune
from minitrans.kernels.rows import embed, layer_norm, load_rows, quantize_activations
from minitrans.kernels.run import assist, lead, run
from minitrans.kernels.vector.emitter import nothing, word
from minitrans.kernels.vector.levels import ENTRY_POINTS, FAMILIES, Level, symbol, this_machine


class BuildError(Exception):
    """The kernels could not be built."""


_STEPS = embed, load_rows, quantize_activations, float32_product, int8_product, attention, prune, layer_norm
MAKERS: dict[str, Callable[[Level], Callable[..., None]]] = {
    maker.__name__: maker for maker in (*_STEPS, run, lead, assist)
}


def kernel_ir(function: Callable[..., None], symbol: str) -> str:
    """The IR of a Numba function over integers, as a C function of that name."""
    arity = function.__code__.co_argcount
    callback: Any = CFunc(
        function, sigutils.normalize_signature(nothing(*[word] * arity)), {}, {"error_model": "numpy"}
    )
    with global_compiler_lock:
        compiled = callback._compile_uncached()  # the wrapper is not turned into machine code of this processor
    wrapper = compiled.fndesc.llvm_cfunc_wrapper_name
    return str(compiled.library._final_module).replace(wrapper, symbol)


def target_machine(level: Level, triple: str) -> llvm.TargetMachine:
    """What LLVM generates code for; nothing of it is asked of the processor that builds."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    features = ",".join(filter(None, [level.features, "-prefer-256-bit" if level.lanes == 16 else ""]))
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(cpu=level.cpu, features=features, opt=3, reloc="pic", codemodel="default")


def level_module(level: Level, triple: str) -> llvm.ModuleRef:
    """All kernels of a level in one optimised module, of which the entry points alone can be seen."""
    machine = target_machine(level, triple)
    module = llvm.parse_assembly("")
    for name, maker in MAKERS.items():
        part = llvm.parse_assembly(_retargeted(kernel_ir(maker(level), name), triple, str(machine.target_data)))
        module.link_in(part)
    for function in module.functions:
        if function.name in ENTRY_POINTS:
            function.name = symbol(level, function.name)
        elif not function.is_declaration:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    undefined = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    if undefined:
        raise BuildError(f"the kernels of {level.name} call {undefined}, wanted code that depends on nothing")
    return module


def _retargeted(ir: str, triple: str, layout: str) -> str:
    """For another machine, and with loops that stay loops: no call of memset or memcpy is made of them."""
    ir = re.sub(r"^target datalayout = .*$", f'target datalayout = "{layout}"', ir, flags=re.MULTILINE)
    ir = re.sub(r"^target triple = .*$", f'target triple = "{triple}"', ir, flags=re.MULTILINE)
    return re.sub(r"^(define .*?)((?: #\d+)? \{)$", r'\1 "no-builtins"\2', ir, flags=re.MULTILINE)


def compile_now(level: Level) -> tuple[Callable[[str], int], object]:
    """Compile a level for this process: a function from an entry point to its address, and what it belongs to."""
    triple = triple_of(this_machine(), sys.platform)
    module = level_module(level, triple)
    engine = llvm.create_mcjit_compiler(module, target_machine(level, triple))
    engine.finalize_object()
    return lambda name: int(engine.get_function_address(symbol(level, name))), engine


def triple_of(machine: str, system: str) -> str:
    """LLVM's name of a kind of computer; ``system`` as in sys.platform."""
    ends = {"linux": "unknown-linux-gnu", "darwin": "apple-macosx11.0", "win32": "pc-windows-gnu"}
    if machine not in FAMILIES or system not in ends:
        raise BuildError(f"no kernels for {system} on {machine}, wanted {sorted(ends)} on {sorted(FAMILIES)}")
    return f"{machine}-{ends[system]}"


def linker() -> list[str] | None:
    """The command that links a shared library: $CC, cc, or the compiler of the package `ziglang`."""
    for command in (os.environ.get("CC"), "cc"):
        if command and shutil.which(command.split()[0]):
            return command.split()
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def build(folder: Path, machine: str, system: str, link: Sequence[str]) -> None:
    """Write the library of a family, and the record of what it was made from, into a folder; the same each time."""
    triple = triple_of(machine, system)
    with tempfile.TemporaryDirectory() as temporary:
        objects = []
        for level in FAMILIES[machine]:
            file = Path(temporary) / f"{level.name}.o"
            file.write_bytes(target_machine(level, triple).emit_object(level_module(level, triple)))
            objects.append(file.name)
        # Undefined symbols are refused; names of files and times of building are left out.
        strict = [] if system == "darwin" else ["-nostdlib", "-Wl,-z,defs", "-Wl,--build-id=none", "-s"]
        command = [*link, "-shared", "-fPIC", *strict, "-o", LIBRARY, *objects]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        library = (Path(temporary) / LIBRARY).read_bytes()
        record = {
            "machine": machine,
            "platform": system,
            "levels": [level.name for level in FAMILIES[machine]],
            "source": source_digest(),
            "numba": version("numba"),
            "llvmlite": version("llvmlite"),
            "sha256": hashlib.sha256(library).hexdigest(),
        }
        write_file(folder / LIBRARY, library)
        write_file(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def main() -> None:
    """python -m minitrans.kernels [--output FOLDER] [--machine M] [--platform P] [--linker COMMAND]"""
    parser = argparse.ArgumentParser(prog="python -m minitrans.kernels", description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE, help="folder for the library (the package's own)")
    parser.add_argument("--machine", default=this_machine(), choices=sorted(FAMILIES))
    parser.add_argument("--platform", default=sys.platform, help="linux, darwin or win32")
    parser.add_argument("--linker", help="the command that links (the default is $CC, cc or ziglang)")
    arguments = parser.parse_args()
    link = arguments.linker.split() if arguments.linker else linker()
    if link is None:
        raise SystemExit("no C compiler to link with: install one, or pip install ziglang")
    try:
        build(arguments.output, arguments.machine, arguments.platform, link)
    except BuildError as error:
        raise SystemExit(str(error)) from None
