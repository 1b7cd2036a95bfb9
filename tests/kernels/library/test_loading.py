"""Which kernels are taken, why not others, and the build that makes them."""

import json
import shlex
import shutil
import struct
import sys
from types import SimpleNamespace

import pytest
from kernel_tools import LEVELS, kernels_of

import minitrans.kernels.library
from minitrans.backends import load_blocks
from minitrans.errors import BackendError
from minitrans.kernels.library import loading, processor
from minitrans.kernels.library import record as library
from minitrans.kernels.library.loading import AHEAD, IN_TIME, load_kernels
from minitrans.kernels.library.processor import choose_level, usable_levels
from minitrans.kernels.library.record import LIBRARY, RECORD, source_digest, why_not_ahead
from minitrans.kernels.steps import KERNELS
from minitrans.kernels.vector.levels import ENTRY_POINTS, FAMILIES, symbol, this_machine
from minitrans.models.weights import load_parameters

needs_levels = pytest.mark.skipif(not LEVELS, reason="there are no kernels for this machine")

load_now = load_kernels.__wrapped__  # past the cache, which stays as it is


@pytest.fixture
def no_level_named(monkeypatch):
    monkeypatch.delenv("MINITRANS_LEVEL", raising=False)


@pytest.fixture
def features(monkeypatch):
    """A function: say what processor this is."""

    def pretend(machine, *names):
        monkeypatch.setattr(processor, "this_machine", lambda: machine)
        monkeypatch.setattr(processor, "processor_features", lambda: frozenset(" ".join(names).split()))
        monkeypatch.setattr(processor, "_allow_amx", lambda: True)

    return pretend


# Levels

AVX2 = "sse2 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512bw avx512dq avx512vl"
PROCESSORS = {
    "x86_64": ["baseline"],
    "x86_64 avx2": ["baseline"],  # without fma
    f"x86_64 {AVX2}": ["avx2", "baseline"],
    f"x86_64 {AVX2} avx_vnni": ["avx_vnni", "avx2", "baseline"],
    f"x86_64 {AVX2} avx512f": ["avx2", "baseline"],
    f"x86_64 {AVX512}": ["avx512", "avx2", "baseline"],
    f"x86_64 {AVX512} avx512_vnni": ["avx512_vnni", "avx512", "avx2", "baseline"],
    f"x86_64 {AVX512} avx512_vnni amx_int8": ["avx512_amx", "avx512_vnni", "avx512", "avx2", "baseline"],
    "aarch64 neon": ["neon"],
    "aarch64 neon dotprod": ["neon_dotprod", "neon"],
    "riscv64": [],
}


@pytest.mark.parametrize(("machine_and_features", "names"), PROCESSORS.items())
def test_levels_by_what_the_processor_offers(features, machine_and_features, names, no_level_named):
    machine, *offered = machine_and_features.split()
    features(machine, *offered)
    assert [level.name for level in usable_levels()] == names
    if names:
        assert choose_level().name == names[0]
        assert [choose_level(name).name for name in names] == names
    else:
        with pytest.raises(BackendError, match="no compiled kernels for riscv64; use backend='reference'"):
            choose_level()


def test_no_tile_registers_without_the_system(features, monkeypatch):
    features("x86_64", AVX512, "avx512_vnni", "amx_int8")
    monkeypatch.setattr(processor, "_allow_amx", lambda: False)
    assert next(usable_levels()).name == "avx512_vnni"


@pytest.mark.parametrize("name", ["avx512", "sse9"])
def test_levels_that_do_not_run_here_are_refused(features, name):
    features("x86_64", AVX2)
    with pytest.raises(BackendError, match=f"level is '{name}', wanted one that this processor runs: avx2, baseline"):
        choose_level(name)


def test_the_level_named_in_the_environment(features, monkeypatch):
    features("x86_64", AVX512)
    monkeypatch.setenv("MINITRANS_LEVEL", "avx2")
    assert choose_level().name == "avx2"
    assert choose_level("baseline").name == "baseline"
    monkeypatch.setenv("MINITRANS_LEVEL", "avx513")
    with pytest.raises(
        BackendError, match="level is 'avx513', wanted one that this processor runs: avx512, avx2, baseline"
    ):
        choose_level()
    monkeypatch.setenv("MINITRANS_LEVEL", "")
    assert choose_level().name == "avx512"


@pytest.mark.parametrize(
    "level", [level for levels in FAMILIES.values() for level in levels], ids=lambda level: level.name
)
def test_every_level_has_symbols_of_its_own(level):
    assert [symbol(level, name) for name in ENTRY_POINTS] == [f"minitrans_{level.name}_{name}" for name in ENTRY_POINTS]


@needs_levels
def test_kernels_take_the_level_from_the_environment(run_python):
    source = (
        "from minitrans import SentenceEncoder; print(SentenceEncoder(backend='compiled').info()['instruction_set'])"
    )
    assert run_python(source, MINITRANS_LEVEL=LEVELS[-1]).stdout.strip() == LEVELS[-1]


# The library


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A folder with a library that could be used, as far as its record says."""
    monkeypatch.setattr(library, "source_digest", lambda: "the digest of the source")
    monkeypatch.setattr(library, "HERE", tmp_path)
    monkeypatch.setattr(loading, "HERE", tmp_path)
    record = {"machine": this_machine(), "platform": sys.platform, "source": "the digest of the source"}
    (tmp_path / LIBRARY).write_bytes(b"")
    (tmp_path / RECORD).write_text(json.dumps(record))
    assert why_not_ahead() is None
    return SimpleNamespace(folder=tmp_path, record=tmp_path / RECORD, content=record)


def test_no_library(installed):
    (installed.folder / LIBRARY).unlink()
    assert why_not_ahead() == "this installation was built without compiled kernels"


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"], ids=["none", "empty", "broken", "binary"])
def test_a_broken_record(installed, content):
    installed.record.unlink()
    if content is not None:
        installed.record.write_bytes(content)
    assert f"{installed.record} cannot be read (" in why_not_ahead()


@pytest.mark.parametrize("change", [{"machine": "vax"}, {"platform": "plan9"}], ids=["machine", "platform"])
def test_a_library_for_another_machine(installed, change):
    installed.record.write_text(json.dumps(installed.content | change))
    assert why_not_ahead().startswith("the kernels were built for (")
    assert str((this_machine(), sys.platform)) in why_not_ahead()
    assert next(iter(change.values())) in why_not_ahead()


@pytest.mark.parametrize("source", ["another digest", None])
def test_a_library_of_other_source(installed, source):
    installed.record.write_text(json.dumps(installed.content | {"source": source}))
    assert why_not_ahead() == "the kernels were built from other source files; install again to build them"


def test_the_digest_covers_every_file_that_is_compiled(monkeypatch, tmp_path):
    package, ignored = library.SOURCES.parent, shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("kernels", "encoder"):
        shutil.copytree(package / name, tmp_path / name, ignore=ignored)
    wanted = source_digest()
    monkeypatch.setattr(library, "SOURCES", tmp_path / "kernels")
    assert source_digest() == wanted
    for name in ("kernels/vector/emitter.py", "kernels/steps.py", "encoder/activations.py"):
        file = tmp_path / name
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert source_digest() != wanted
        file.write_bytes(content)
        assert source_digest() == wanted
    (tmp_path / "kernels" / "more.py").write_bytes(b"")
    assert source_digest() != wanted


# Loading


@needs_levels
def test_loaded_kernels_are_kept():
    try:
        kernels = load_kernels(LEVELS[-1])
    except BackendError as error:
        pytest.skip(str(error))
    assert load_kernels(LEVELS[-1]) is kernels
    assert kernels.level.name == LEVELS[-1]


@needs_levels
@pytest.mark.parametrize("built", [AHEAD, IN_TIME])
def test_kernels_say_how_they_were_built(built):
    assert kernels_of(built, LEVELS[0]).built == built


@pytest.fixture
def no_numba(monkeypatch):
    """The build, which needs Numba, cannot be imported."""
    monkeypatch.delattr(minitrans.kernels.library, "build", raising=False)
    monkeypatch.setitem(sys.modules, "minitrans.kernels.library.build", None)


@needs_levels
def test_the_library_is_preferred(no_numba, no_level_named):
    kernels_of(AHEAD, LEVELS[0])
    kernels = load_now()
    assert (kernels.built, kernels.level.name) == (AHEAD, LEVELS[0])
    with pytest.raises(BackendError, match=r"^Numba is not installed; pip install 'minitrans\[jit\]' .*'reference'$"):
        load_now(built=IN_TIME)


@needs_levels
def test_kernels_of_no_library(installed):
    (installed.folder / LIBRARY).unlink()
    wanted = "built without compiled kernels; install a C compiler and minitrans again, or use backend='reference'"
    with pytest.raises(BackendError, match=wanted):
        load_now(built=AHEAD)


@needs_levels
def test_without_a_library_kernels_are_compiled(installed, monkeypatch, no_level_named):
    build = pytest.importorskip("minitrans.kernels.library.build")
    (installed.folder / LIBRARY).unlink()
    asked = []

    def compile_now(level):
        asked.append(level.name)
        return lambda name: 4096, "the engine"

    monkeypatch.setattr(build, "compile_now", compile_now)
    kernels = load_now()
    assert (kernels.built, kernels.owner, asked) == (IN_TIME, "the engine", [LEVELS[0]])


def test_blocks_without_kernels(installed, no_numba, monkeypatch, plain):
    (installed.folder / LIBRARY).unlink()
    monkeypatch.setattr(loading, "load_kernels", load_now)
    parameters = load_parameters(plain)
    with pytest.raises(BackendError, match="backend='reference'"):
        load_blocks("compiled", parameters)
    blocks = load_blocks("auto", parameters)
    assert blocks.name == "reference"
    assert blocks.info()["instruction_set"] is None
    assert load_blocks("reference", parameters).info() == {"kernels": None, "instruction_set": None}


WITHOUT_KERNELS = """
import sys
from pathlib import Path
sys.modules["numba"] = sys.modules["llvmlite"] = None
from minitrans.kernels.library import loading, record
record.HERE = loading.HERE = Path(sys.argv[1])
from minitrans import SentenceEncoder
from minitrans.errors import BackendError

encoder = SentenceEncoder()
assert encoder.backend == "reference", encoder.backend
assert encoder.encode("play music").shape == (384,)
print(encoder.info()["kernels"])
try:
    SentenceEncoder(backend="compiled")
except BackendError as error:
    print(error)
"""


@needs_levels
def test_an_encoder_without_kernels_says_why(run_python, tmp_path):
    seen, error = run_python(WITHOUT_KERNELS, tmp_path).stdout.splitlines()
    why = (
        "this installation was built without compiled kernels; "
        "pip install 'minitrans[jit]' compiles them with Numba, or use backend='reference'"
    )
    assert (seen, error) == (f"none: {why}", why)


WITH_THE_LIBRARY = """
import sys
from minitrans import PruningPolicy, SentenceEncoder

for precision in ("int8", "float32"):
    encoder = SentenceEncoder(backend="compiled", precision=precision, pruning=PruningPolicy(layer=1))
    encoder.encode(["play music", "is there a fee on my payment, and what is the exchange rate?"])
    assert encoder.info()["kernels"] == "ahead of time", encoder.info()
print([name for name in ("numba", "llvmlite") if name in sys.modules])
"""


@needs_levels
def test_the_library_needs_no_compiler(run_python):
    kernels_of(AHEAD, LEVELS[0])
    assert run_python(WITH_THE_LIBRARY).stdout.strip() == "[]"


# Building


@pytest.fixture
def build():
    return pytest.importorskip("minitrans.kernels.library.build")


@pytest.fixture
def link(build):
    """The command that links, or the test is skipped."""
    command = build.linker()
    if command is None:
        pytest.skip("no C compiler to link with")
    return command


@pytest.fixture
def one_level(monkeypatch):
    """A family of one level only: compiling takes two seconds for each."""
    levels = FAMILIES.get(this_machine())
    if levels is None:
        pytest.skip("there are no kernels for this machine")
    monkeypatch.setitem(FAMILIES, this_machine(), levels[-1:])
    return levels[-1]


@pytest.fixture
def quick(build, monkeypatch, one_level):
    """Builds take no time: the level's module holds its entry points, which do nothing."""
    from llvmlite import binding as llvm

    functions = "".join(f"define void @{symbol(one_level, name)}() {{ ret void }}\n" for name in ENTRY_POINTS)

    def module(level, triple):
        return llvm.parse_assembly(f'target triple = "{triple}"\n{functions}')

    monkeypatch.setattr(build, "level_module", module)
    return one_level


def run_main(build, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["build", *map(str, arguments)])
    build.main()


BUILD_ONE_LEVEL = """
import sys
from minitrans.kernels.library import build
from minitrans.kernels.vector.levels import FAMILIES, this_machine

FAMILIES[this_machine()] = FAMILIES[this_machine()][-1:]
build.MAKERS = {name: build.MAKERS[name] for name in ("int8_product", "prune")}
build.main()
"""


def test_two_builds_give_the_same_bytes(build, link, one_level, run_python, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "MAKERS", {name: build.MAKERS[name] for name in ("int8_product", "prune")})
    build.build(tmp_path / "one", this_machine(), sys.platform, link)
    source = f"import sys; sys.argv[1:] = ['--output', {str(tmp_path / 'other')!r}]\n{BUILD_ONE_LEVEL}"
    run_python(source, PYTHONHASHSEED="7", CC=shlex.join(link))
    for name in (LIBRARY, RECORD):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [RECORD, LIBRARY]


# ELF: https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
SYMBOL_TABLE, NO_BYTES, LOADED, UNDEFINED, LOCAL, AARCH64 = 2, 8, 2, 0, 0, 183


def read_elf(data):
    """Machine, the symbols that are undefined and those seen from outside, and how many bytes are loaded."""
    assert data[:6] == b"\x7fELF\x02\x01"  # 64 bits, little-endian
    kind, machine = struct.unpack_from("<HH", data, 16)
    assert kind == 1  # an object
    (place,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [SECTION.unpack_from(data, place + size * i) for i in range(count)]
    ((_, _, _, _, start, length, names_section, _, _, _),) = [s for s in sections if s[1] == SYMBOL_TABLE]
    names = sections[names_section][4]
    undefined, seen = set(), set()
    for name, info, _, section, _, _ in SYMBOL.iter_unpack(data[start : start + length]):
        begin = names + name
        text = data[begin : data.index(b"\0", begin)].decode()
        if text and section == UNDEFINED:
            undefined.add(text)
        elif info >> 4 != LOCAL:
            seen.add(text)
    loaded = sum(size for _, kind, flags, _, _, size, *_ in sections if flags & LOADED and kind != NO_BYTES)
    return SimpleNamespace(machine=machine, undefined=undefined, seen=seen, loaded=loaded)


@pytest.mark.slow
@pytest.mark.parametrize("level", FAMILIES["aarch64"], ids=lambda level: level.name)
def test_objects_for_another_machine(build, level):
    triple = build.triple_of("aarch64", "linux")
    elf = read_elf(build.target_machine(level, triple).emit_object(build.level_module(level, triple)))
    assert elf.machine == AARCH64
    assert elf.undefined == set()
    assert elf.seen == {symbol(level, name) for name in ENTRY_POINTS}
    assert elf.loaded > 10_000


def test_kernels_that_call_something_outside_are_refused(build, monkeypatch):
    from minitrans.kernels.vector.emitter import VOID, vector_code

    def run(level):
        @vector_code(level)
        def missing(v):
            v.call("missing", VOID, [], [])

        def run(steps, count, job, member):
            missing()

        return run

    level = FAMILIES["x86_64"][-1]
    monkeypatch.setattr(build, "MAKERS", {"run": run})
    with pytest.raises(build.BuildError, match=r"kernels of baseline call \['missing'\], wanted code that depends on"):
        build.level_module(level, build.triple_of("x86_64", "linux"))


def test_a_failing_linker(build, quick, tmp_path):
    says = "import sys; print('what it printed'); sys.exit('what went wrong')"
    with pytest.raises(build.BuildError, match="failed:\nwhat it printed\nwhat went wrong"):
        build.build(tmp_path / "out", this_machine(), sys.platform, [sys.executable, "-c", says])
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the option that refuses undefined symbols is of this linker")
def test_the_linker_refuses_undefined_symbols(build, link, quick, monkeypatch, tmp_path):
    from llvmlite import binding as llvm

    def module(level, triple):
        function = "declare void @missing()\ndefine void @here() { call void @missing() ret void }"
        return llvm.parse_assembly(f'target triple = "{triple}"\n{function}')

    monkeypatch.setattr(build, "level_module", module)
    with pytest.raises(build.BuildError, match="missing"):
        build.build(tmp_path, this_machine(), sys.platform, link)


@pytest.mark.parametrize(("machine", "system"), [("vax", "linux"), ("x86_64", "plan9")])
def test_there_are_no_kernels_for_other_machines(build, tmp_path, machine, system):
    with pytest.raises(build.BuildError, match=f"no kernels for {system} on {machine}, wanted"):
        build.build(tmp_path, machine, system, ["cc"])


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("machine", FAMILIES)
def test_llvm_knows_every_kind_of_computer(build, machine, system):
    triple = build.triple_of(machine, system)
    for level in FAMILIES[machine]:
        assert build.target_machine(level, triple).triple.startswith(machine)


def test_main(build, link, quick, monkeypatch, tmp_path):
    run_main(build, monkeypatch, "--output", tmp_path, "--linker", shlex.join(link))
    record = json.loads((tmp_path / RECORD).read_text())
    digest = record.pop("sha256")
    assert digest == library.hashlib.sha256((tmp_path / LIBRARY).read_bytes()).hexdigest()
    assert record.pop("numba")
    assert record.pop("llvmlite")
    wanted = {"machine": this_machine(), "platform": sys.platform, "levels": [quick.name], "source": source_digest()}
    assert record == wanted
    monkeypatch.setattr(library, "HERE", tmp_path)
    monkeypatch.setattr(library, "source_digest", lambda: wanted["source"])
    assert why_not_ahead() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--linker", "false"], "^false -shared .* failed:"), (["--platform", "plan9"], "^no kernels for plan9")],
)
def test_main_fails_with_the_reason(build, quick, monkeypatch, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run_main(build, monkeypatch, "--output", tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_main_without_a_compiler(build, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "linker", lambda: None)
    with pytest.raises(SystemExit, match="no C compiler to link with: install one, or pip install ziglang"):
        run_main(build, monkeypatch, "--output", tmp_path)


def test_the_linker(build, monkeypatch):
    here = {"cc", "clang"}
    monkeypatch.setattr(build.shutil, "which", lambda name: name if name in here else None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: name if name in here else None)
    monkeypatch.setenv("CC", "clang -m64")
    assert build.linker() == ["clang", "-m64"]
    monkeypatch.setenv("CC", "icc")
    assert build.linker() == ["cc"]
    monkeypatch.delenv("CC")
    assert build.linker() == ["cc"]
    here = {"ziglang"}
    assert build.linker() == [sys.executable, "-m", "ziglang", "cc"]
    here = set()
    assert build.linker() is None


def test_every_kernel_of_a_step_is_compiled(build):
    assert sorted(build.MAKERS) == sorted((*KERNELS, *ENTRY_POINTS))
