"""Saving: killed at any moment, by several at once, to odd places, without room."""

import hashlib
import json
import os
import re
import signal
import stat
import sys
import threading
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fitted_policies import random_fitted
from hash_encoder import LABELS, TEXTS, HashEncoder
from safetensors.numpy import save

from minitrans import files as resources
from minitrans.contents import JSON_LIMIT
from minitrans.encoder import policy_files
from minitrans.encoder.policy import PruningPolicy
from minitrans.errors import ClassifierError, InputError, InputTypeError, MinitransError, PolicyError, WriteError
from minitrans.evaluation.journal import Journal
from minitrans.evaluation.tables import save_text
from minitrans.fewshot import saved
from minitrans.fewshot.classifier import FewShotClassifier
from minitrans.files import atomic_file, atomic_folder, recover_folder, write_file
from minitrans.models.export import quantize_folder
from minitrans.sentences.vectors import save_vectors

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
MODEL = "ab" * 32


class Pruned(HashEncoder):
    """With a policy that has arrays, so that a classifier has all kinds of files."""

    pruning = PruningPolicy(layer=0, score="learned", reduce="restore", fitted=random_fitted(MODEL, 4, layers=(0,)))


def fitted(labels, encoder=None):
    return FewShotClassifier(HashEncoder() if encoder is None else encoder, label_names=False).fit(TEXTS, labels)


ONE, TWO = fitted(LABELS, Pruned()), fitted([label.upper() for label in LABELS[3:] + LABELS[:3]])


def which(folder):
    """The number of the classifier in a folder, which has to be all of one or all of the other; 0 for none."""
    if not (folder / "classifier.json").exists():
        return 0
    found = FewShotClassifier.load(folder, HashEncoder())
    number, whole = (1, ONE) if found.classes_.tolist() == ONE.classes_.tolist() else (2, TWO)
    for name in ("classes_", "coef_", "intercept_", "embeddings_", "labels_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    return number


def policy(seed):
    return PruningPolicy(
        layer=0, score="learned", reduce="restore", fitted=random_fitted(MODEL, 4, seed=seed, layers=(0,))
    )


def which_policy(path):
    return 0 if not path.exists() else [policy(seed) for seed in (1, 2)].index(PruningPolicy.load(path)) + 1


def killed(action, at):
    """Run an action in a process that dies before its file operation number `at`; whether it died."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a child beside threads: it does no more than to save
        child = os.fork()
    if child == 0:
        signal.alarm(60)
        seen = 0

        def kill(event, _):
            nonlocal seen
            if event.partition(".")[0] in ("open", "os", "shutil", "fcntl"):
                seen += 1
                if seen > at:
                    os._exit(9)

        try:
            sys.addaudithook(kill)
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def kill_everywhere(action, check):
    """Kill an action before each of its file operations in turn, and check what each kill leaves."""
    at = 0
    while killed(action, at):
        check()
        at += 1
        assert at < 500
    assert at > 5


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_a_killed_save_leaves_the_old_or_the_new(tmp_path, exists):
    folder = tmp_path / "saved"
    if exists:
        TWO.save(folder)
    seen = set()
    kill_everywhere(lambda: ONE.save(folder), lambda: seen.add(which(folder)))
    assert seen == {2 if exists else 0, 1}
    for classifier, files in ((ONE, 3), (TWO, 2)):
        classifier.save(folder)
        assert len(names(folder)) == files
    assert names(tmp_path) == ["saved"]


@posix
def test_a_killed_save_of_a_policy_leaves_one_of_both(tmp_path):
    path = tmp_path / "policy.json"
    policy(2).save(path)
    seen = set()
    kill_everywhere(lambda: policy(1).save(path), lambda: seen.add(which_policy(path)))
    assert seen == {2, 1}
    policy(1).save(path)
    assert len(names(tmp_path)) == 2
    PruningPolicy().save(path)
    assert names(tmp_path) == ["policy.json"]


@posix
def test_a_killed_folder_is_gone_or_whole(tmp_path):
    path = tmp_path / "folder"

    def write(text):
        with atomic_folder(path, replace=True) as folder:
            (folder / "a").write_text(text)
            (folder / "b").write_text(text)

    write("old")
    seen = set()

    def check():
        recover_folder(path)
        seen.add((path / "a").read_text() + (path / "b").read_text())

    kill_everywhere(lambda: write("new"), check)
    assert seen == {"oldold", "newnew"}
    write("new")
    assert names(tmp_path) == ["folder"]


def test_what_is_being_written_is_no_leftover(tmp_path):
    with atomic_file(tmp_path / "a") as first, atomic_folder(tmp_path / "b") as second:
        first.write_text("1")
        (second / "c").write_text("2")
        write_file(tmp_path / "a", b"3")
        with atomic_folder(tmp_path / "b", replace=True):
            pass
        assert (first.exists(), (second / "c").exists()) == (True, True)
        (tmp_path / "b").rmdir()
    assert (tmp_path / "a").read_text() == "1"
    assert names(tmp_path) == ["a", "b"]


def test_only_leftovers_are_removed(tmp_path):
    left = [".a.123-0123abcd.tmp", ".a.99-ffffffff.old.tmp"]
    others = [".a.tmp", ".a.123.tmp", ".b.123-0123abcd.tmp", "a.123-0123abcd.tmp", ".a.12-0123abcd.tmp.txt"]
    for name in [*left, *others]:
        (tmp_path / name).write_text("")
    (tmp_path / ".a.5-0123abcd.tmp").symlink_to(tmp_path / "a.123-0123abcd.tmp")
    write_file(tmp_path / "a", b"")
    assert names(tmp_path) == sorted([*others, "a", ".a.5-0123abcd.tmp"])


# ---------------------------------------------------------------- several at once


def at_once(*actions):
    """Run actions in threads, each as often as it says; their errors."""
    errors = []

    def repeat(times, action):
        try:
            for _ in range(times):
                action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=each) for each in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("locks", [True, False])
def test_two_writers_and_a_reader(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(resources, "_flock", lambda *_: None)
    folder = tmp_path / "saved"
    ONE.save(folder)
    errors = at_once((12, lambda: ONE.save(folder)), (12, lambda: TWO.save(folder)), (30, lambda: which(folder)))
    assert errors == []
    assert which(folder) in (1, 2)
    if locks:
        assert len(names(folder)) == (3 if which(folder) == 1 else 2)


def test_policies_of_one_folder(tmp_path):
    one, two = tmp_path / "p.json", tmp_path / "p-2.json"
    saves = [(10, lambda: policy(1).save(one)), (10, lambda: policy(2).save(one)), (10, lambda: policy(2).save(two))]
    assert at_once(*saves, (20, lambda: which_policy(one))) == []
    assert (which_policy(two), len(names(tmp_path))) == (2, 4)


def test_policies_that_share_a_stem(tmp_path):
    policy(1).save(tmp_path / "p.json")
    policy(2).save(tmp_path / "p.old")
    PruningPolicy().save(tmp_path / "p.json")
    assert which_policy(tmp_path / "p.old") == 2
    assert len(names(tmp_path)) == 3


def test_weights_beside_a_policy_stay(tmp_path):
    weights = ["model.safetensors", f"model-{'0' * 16}.safetensors"]
    for name in weights:
        (tmp_path / name).write_bytes(b"weights")
    policy(1).save(tmp_path / "model.json")
    PruningPolicy().save(tmp_path / "model.json")
    assert names(tmp_path) == sorted([*weights, "model.json"])


def test_arrays_of_the_older_layout_are_read_and_replaced(tmp_path):
    path = tmp_path / "p.json"
    policy(1).save(path)
    policy_files.arrays_of(path).rename(tmp_path / "p.safetensors")
    assert which_policy(path) == 1
    policy(2).save(path)
    assert which_policy(path) == 2
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("saves", [1, 2])
def test_saves_between_the_two_files(tmp_path, monkeypatch, saves):
    """After two of them classifier.json is what the reader has seen, though its arrays were gone."""
    folder, read = tmp_path / "saved", saved.read_description
    ONE.save(folder)
    left = [TWO, ONE][:saves]

    def meanwhile(file):
        values = read(file)
        if left and threading.current_thread() is threading.main_thread():
            monkeypatch.setattr(saved, "read_description", read)  # `save` reads it too
            left.pop(0).save(folder)
            monkeypatch.setattr(saved, "read_description", meanwhile)
        return values

    monkeypatch.setattr(saved, "read_description", meanwhile)
    assert which(folder) == (2 if saves % 2 else 1)
    assert left == []


def test_arrays_in_use_are_not_removed_without_locks(tmp_path, monkeypatch):
    ONE.save(tmp_path)
    strange = tmp_path / f"classifier-{'0' * 16}.safetensors"
    strange.write_bytes(b"about to be named by another process")
    monkeypatch.setattr(resources, "_flock", lambda *_: None)
    TWO.save(tmp_path)
    assert strange.exists()
    monkeypatch.setattr(resources, "STALE_SECONDS", -1)
    TWO.save(tmp_path)
    assert not strange.exists()
    assert which(tmp_path) == 2


def test_a_lock_that_is_never_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "LOCK_SECONDS", 0)
    with resources.locked(tmp_path) as held:
        assert held
        ONE.save(tmp_path)
        assert which(tmp_path) == 1
        policy(1).save(tmp_path.parent / "policy.json")


# ---------------------------------------------------------------- places


def test_saving_where_the_process_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for classifier, number in ((ONE, 1), (TWO, 2)):
        classifier.save(".")
        assert which(Path()) == number
    assert Path().stat().st_ino == tmp_path.stat().st_ino


@posix
def test_a_folder_keeps_its_inode(tmp_path):
    """A mount point cannot be replaced by another folder."""
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    before = (tmp_path / "volume").stat().st_ino
    for classifier in (ONE, TWO):
        classifier.save(tmp_path / "volume")
    assert (tmp_path / "volume").stat().st_ino == before


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_to_a_folder_is_written_through(tmp_path, dangling):
    target, link = tmp_path / "there", tmp_path / "link"
    if not dangling:
        target.mkdir()
    link.symlink_to(target)
    ONE.save(link)
    assert link.is_symlink()
    assert which(target) == which(link) == 1


ODD = {
    "NUL": (lambda tmp_path: tmp_path / "a\0b", InputError, "without NUL"),
    "empty": (lambda _: "", InputError, "not empty"),
    "surrogate": (lambda tmp_path: f"{tmp_path}/\ud800", InputError, "cannot be a path"),
    "number": (lambda _: 5, InputTypeError, "the path is a int"),
    "file": (lambda tmp_path: tmp_path / "file", InputError, "holds a file"),
    "below a file": (lambda tmp_path: tmp_path / "file" / "c", WriteError, "name another place"),
    "circle": (lambda tmp_path: tmp_path / "circle", MinitransError, "name another"),
    "long": (lambda tmp_path: tmp_path / ("a" * 300), WriteError, "file name too long"),
}


@pytest.mark.parametrize("make", [ONE.save, PruningPolicy().save], ids=["classifier", "policy"])
@pytest.mark.parametrize("case", ODD)
def test_odd_places(tmp_path, case, make):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to("circle")
    path, error, message = ODD[case]
    if make == ONE.save or case not in ("file", "circle"):
        with pytest.raises(error, match=message):
            make(path(tmp_path))
        assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("load", [FewShotClassifier.load, PruningPolicy.load])
@pytest.mark.parametrize("case", ["NUL", "empty", "surrogate", "number", "below a file", "circle", "long"])
def test_odd_places_to_load_from(tmp_path, case, load):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(MinitransError):
        load(ODD[case][0](tmp_path))


@posix
@pytest.mark.parametrize("make", [ONE.save, PruningPolicy().save, lambda path: save_text(path, "a")])
def test_a_deleted_working_folder(tmp_path, monkeypatch, make):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(WriteError, match=r"cannot write .*: no such file or directory"):
        make("new.csv")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="for users with limits")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="permission denied"):
        ONE.save(tmp_path / "saved")


@pytest.mark.parametrize("path", ["folder", "device"])
def test_a_file_in_place_of_what_is_no_file(tmp_path, path):
    place = tmp_path if path == "folder" else Path(os.devnull)
    with pytest.raises(InputError, match=f"is a {path}[;,] wanted a file"):
        write_file(place, b"")


# ---------------------------------------------------------------- permissions


def modes(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_permissions_of_what_is_replaced_are_kept(tmp_path, mode):
    folder = tmp_path / "saved"
    TWO.save(folder)
    for path in folder.iterdir():
        path.chmod(mode)
    ONE.save(folder)
    assert modes(folder) == {mode}
    path = tmp_path / "policies" / "p.json"
    policy(1).save(path)
    path.chmod(mode)
    policy(2).save(path)
    assert modes(path.parent) == {mode}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="who may give files away")
@pytest.mark.parametrize("mine", [True, False])
def test_owner_and_group_are_kept_as_far_as_they_can_be(tmp_path, monkeypatch, mine):
    TWO.save(tmp_path)
    path = tmp_path / "classifier.json"
    path.chmod(0o664)
    os.chown(path, 12345, 23456)
    if not mine:
        monkeypatch.setattr(os, "chown", lambda *_: Path("no such file").stat())
    ONE.save(tmp_path)
    for path in tmp_path.iterdir():
        state = path.stat()
        wanted = (0o664, 12345, 23456) if mine else (0o644, os.geteuid(), tmp_path.stat().st_gid)
        assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) == wanted


@posix
def test_new_files_follow_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        ONE.save(tmp_path / "saved")
    finally:
        os.umask(before)
    assert modes(tmp_path / "saved") == {0o600}


@posix
def test_what_replaces_a_private_file_is_never_open_to_others(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    with atomic_file(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@posix
def test_a_folder_that_is_replaced_keeps_its_permissions(tmp_path):
    (tmp_path / "folder").mkdir(0o700)
    with atomic_folder(tmp_path / "folder", replace=True):
        pass
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700


# ---------------------------------------------------------------- no room


@contextmanager
def little_room():
    """No file of this process can get beyond 64 bytes: as on a disk that is full, writing stops part-way."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "classifier": lambda folder, _: ONE.save(folder / "saved"),
    "policy": lambda folder, _: policy(1).save(folder / "p.json"),
    "int8 model": lambda folder, plain: quantize_folder(plain, folder / "int8"),
    "npy": lambda folder, _: save_vectors(folder / "a.npy", ["a"] * 9, np.ones((9, 99), np.float32)),
    "jsonl": lambda folder, _: save_vectors(folder / "a.jsonl", ["a"] * 9, np.ones((9, 99), np.float32)),
    "table": lambda folder, _: save_text(folder / "a.md", "a" * 99),
    "journal": lambda folder, _: Journal(folder / "j.jsonl").put({"a": "a" * 99}, {"b": 1}),
}


@posix
@pytest.mark.parametrize("writer", WRITERS)
def test_no_room(tmp_path, plain, writer):
    with pytest.raises(WriteError) as caught, little_room():
        WRITERS[writer](tmp_path, plain)
    message = str(caught.value)
    assert message.startswith(f"cannot write {tmp_path}")
    assert re.search(
        r"(file too large|only a part of a line); .*\d+ bytes are free there; make room, or name another place", message
    )
    assert re.search(r"wanted room for \d+ bytes", message) or writer == "jsonl"
    assert isinstance(caught.value, OSError)
    assert caught.value.errno
    assert sum(path.is_file() and path.stat().st_size for path in tmp_path.rglob("*")) == 0


@pytest.mark.parametrize("error", [PolicyError("a"), OSError("without a number"), FileNotFoundError(2, "no", "data")])
def test_what_the_block_raises_of_its_own_is_left_alone(tmp_path, error):
    def failing():
        with atomic_file(tmp_path / "file"):
            raise error

    with pytest.raises(type(error)) as caught:
        failing()
    assert caught.value is error
    assert names(tmp_path) == []


# ---------------------------------------------------------------- older folders, and hostile ones


@pytest.mark.parametrize("rejects", [True, False])
def test_folders_of_the_versions_before_are_read_and_replaced(tmp_path, rejects):
    encoder = HashEncoder()
    classifier = fitted(LABELS, encoder)
    if rejects:
        classifier.calibrate_rejection()
    classifier.save(tmp_path)
    values = json.loads((tmp_path / "classifier.json").read_text())
    arrays = next(tmp_path.glob("classifier-*"))
    arrays.rename(tmp_path / "classifier.safetensors")
    del values["tensors"]
    values["version"] = 2 if rejects else 1
    values["encoder"]["model_sha256"] = values["encoder"].pop("identity")
    (tmp_path / "classifier.json").write_text(json.dumps(values))
    again = FewShotClassifier.load(tmp_path, encoder)
    np.testing.assert_array_equal(again.coef_, classifier.coef_)
    assert again.rejection_ == classifier.rejection_
    other = HashEncoder()
    other.identity = "cd" * 32
    with pytest.raises(ClassifierError, match="of fit"):
        FewShotClassifier.load(tmp_path, other)
    TWO.save(tmp_path)
    assert len(names(tmp_path)) == 2
    assert which(tmp_path) == 2


@pytest.mark.parametrize("K", [2, 20_000])
def test_loading_takes_the_memory_of_the_files(tmp_path, K):
    """A label of 1000 characters gives all others its room in an array; many examples of it did so again."""
    ONE.save(tmp_path)
    values = json.loads((tmp_path / "classifier.json").read_text())
    next(tmp_path.glob("classifier-*")).unlink()
    codes = np.arange(100_000) % K
    rows = {"coef": np.ones((K, 1), np.float32), "embeddings": np.ones((len(codes), 1), np.float32)}
    data = save({**rows, "intercept": np.ones(K, np.float32), "codes": codes})
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / f"classifier-{digest[:16]}.safetensors").write_bytes(data)
    labels = [f"{i:06}" for i in range(K - 1)] + ["z" * 1000]
    values |= {"classes": labels, "tensors": digest, "texts": None}
    (tmp_path / "classifier.json").write_text(json.dumps(values))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    tracemalloc.start()
    try:
        if K == 2:
            assert FewShotClassifier.load(tmp_path, HashEncoder()).codes_.tolist() == codes.tolist()
        else:
            with pytest.raises(ClassifierError, match=f"take {4000 * K} bytes, wanted at most"):
                FewShotClassifier.load(tmp_path, HashEncoder())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * size + 2 * JSON_LIMIT  # a file is read into a buffer of the limit


def test_classes_that_could_not_be_loaded_are_not_learned():
    labels = [str(i) for i in range(9000)]
    rows = np.ones((len(labels), 1), np.float32)
    with pytest.raises(InputError, match="9000 classes at the length of the longest take 36000000 bytes"):
        FewShotClassifier(label_names=False).fit_embeddings(rows, [*labels[:-1], "z" * 1000])
