"""How many processors this process may use, on made-up cgroup folders."""

import os
from pathlib import Path

import pytest

from minitrans.errors import InputError
from minitrans.threads import available_cpus, resolve_threads


@pytest.fixture
def sixteen_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def cgroup(folder: Path, membership: str, files: dict[str, str]) -> dict[str, Path]:
    """The arguments of available_cpus."""
    root = folder / "cgroup"
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (folder / "self").write_text(membership)
    return {"cgroup_root": root, "self_cgroup": folder / "self"}


V2, V2_DEEP = "0::/\n", "0::/a.slice/b.service\n"
V1 = "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("membership", "files", "wanted"),
    [
        pytest.param(V2, {}, 16, id="no files"),
        pytest.param("", {"cpu.max": "100000 100000"}, 16, id="no membership"),
        pytest.param("nonsense", {}, 16, id="nonsense membership"),
        pytest.param(V2, {"cpu.max": "max 100000\n"}, 16, id="v2 unlimited"),
        pytest.param(V2, {"cpu.max": "400000 100000\n"}, 4, id="v2"),
        pytest.param(V2, {"cpu.max": "250000 100000\n"}, 3, id="v2, a part of a processor counts"),
        pytest.param(V2, {"cpu.max": "10000 100000\n"}, 1, id="v2, at least one"),
        pytest.param(V2, {"cpu.max": "0 100000\n"}, 1, id="v2, zero"),
        pytest.param(V2, {"cpu.max": "9900000 100000\n"}, 16, id="v2, more than there are"),
        pytest.param(V2, {"cpu.max": "100000"}, 16, id="v2, one field"),
        pytest.param(V2, {"cpu.max": "100000 0"}, 16, id="v2, no period"),
        pytest.param(V2, {"cpu.max": "-5 100000"}, 16, id="v2, negative"),
        pytest.param(V2_DEEP, {"a.slice/b.service/cpu.max": "200000 100000"}, 2, id="v2, own folder"),
        pytest.param(V2_DEEP, {"a.slice/cpu.max": "300000 100000"}, 3, id="v2, parent"),
        pytest.param(V2_DEEP, {"cpu.max": "500000 100000"}, 5, id="v2, root"),
        pytest.param(
            V2_DEEP,
            {"a.slice/b.service/cpu.max": "max 100000", "a.slice/cpu.max": "700000 100000", "cpu.max": "600000 100000"},
            6,
            id="v2, the least",
        ),
        pytest.param(V1, {}, 16, id="v1, no files"),
        pytest.param(
            V1,
            {"cpu/docker/x/cpu.cfs_quota_us": "200000\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"},
            2,
            id="v1",
        ),
        pytest.param(
            V1, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 3, id="v1, the root's"
        ),
        pytest.param(
            V1,
            {"cpu/docker/x/cpu.cfs_quota_us": "-1\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"},
            16,
            id="v1, unlimited",
        ),
        pytest.param(V1, {"cpu/docker/x/cpu.cfs_quota_us": "200000\n"}, 16, id="v1, no period"),
        pytest.param(
            V1,
            {"cpu/docker/x/cpu.cfs_quota_us": "200000\n", "cpu/docker/x/cpu.cfs_period_us": "0\n"},
            16,
            id="v1, zero period",
        ),
    ],
)
def test_cgroup_quota(sixteen_cpus, tmp_path, membership, files, wanted):
    assert available_cpus(**cgroup(tmp_path, membership, files)) == wanted


def test_affinity(monkeypatch, tmp_path):
    nowhere = {"cgroup_root": tmp_path / "none", "self_cgroup": tmp_path / "none"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert available_cpus(**nowhere) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert available_cpus(**nowhere) == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus(**nowhere) == 1


def test_resolve_threads():
    assert resolve_threads(None) == available_cpus() >= 1
    assert resolve_threads(1) == 1
    assert resolve_threads(64) == 64


@pytest.mark.parametrize("threads", [0, -1, True, 2.0, "2"])
def test_resolve_threads_refuses(threads):
    with pytest.raises(InputError, match=r"threads is .*, wanted a positive integer"):
        resolve_threads(threads)
