"""minitrans.audit: files, digests, weights and tokenizer of a model folder. Whatever is broken is found and named."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrans.audit.digests import (
    LONGEST_HEADER,
    Digests,
    WeightFile,
    digests_of,
    implausible,
    length_by_header,
    published,
)
from minitrans.audit.folder import Recognised, audit_folder, files_read, named_model, recognise
from minitrans.audit.signoff import sign_off
from minitrans.errors import InputError
from minitrans.files import bundled, sha256_of
from minitrans.models.export import quantize_folder
from minitrans.models.manifest import known_models, load_manifest
from minitrans.models.parameters import named_arrays, tensor_shapes
from minitrans.models.weights import StoredTensor, load_parameters

BUNDLED = "all-MiniLM-L6-v2-int8"
FLOAT32 = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS = "model.safetensors"
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I64": 8}


def by_name(found):
    """name -> check"""
    checks = {check.name: check for check in found.checks}
    assert len(checks) == len(found.checks)
    return checks


def failed(found):
    return {check.name for check in found.checks if check.verdict == "FAIL"}


def text_of(check):
    return "\n".join(check.detail)


def data_section(file):
    """Where the tensors begin, and name -> (begin, end, dtype, shape), positions in the file."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    begin = 8 + size
    return begin, {
        name: (begin + each["data_offsets"][0], begin + each["data_offsets"][1], each["dtype"], each["shape"])
        for name, each in header.items()
    }


def flip(file, byte, bit):
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def flip_element(file, tensor, element, bit):
    """Flip a bit of one element (counted in the order of the file); returns the index of the element."""
    begin, _, dtype, shape = data_section(file)[1][tensor]
    flip(file, begin + element * WIDTHS[dtype] + bit // 8, bit % 8)
    return [int(i) for i in np.unravel_index(element, shape)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory, random_folder):
    """Random models, float32, sharded, bfloat16 and int8; not to be changed."""
    int8 = quantize_folder(random_folder("plain"), tmp_path_factory.mktemp("quantised") / "int8")
    return {name: random_folder(name) for name in ("plain", "sharded", "bfloat16", "bert_prefix")} | {"int8": int8}


@pytest.fixture
def copy(folders, tmp_path):
    """A function: name -> a copy of that random model which may be changed, and its digests."""

    def make(name):
        folder = shutil.copytree(folders[name], tmp_path / name)
        return folder, audit_folder(folder).digests

    return make


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """A copy of the bundled model; whoever changes it changes it back."""
    return shutil.copytree(bundled(f"weights/{BUNDLED}"), tmp_path_factory.mktemp("bundled") / "copy")


@pytest.fixture
def damaged(minilm):
    """A function: tensor, element, bit -> that bit of the copy is flipped until the test ends; the element's index."""
    file = minilm / WEIGHTS
    before = []

    def damage(tensor, element, bit):
        before.append(file.read_bytes())
        return flip_element(file, tensor, element, bit)

    yield damage
    for data in before[:1]:
        file.write_bytes(data)


@pytest.fixture(scope="module")
def of_the_bundled_model():
    """What the audit of the bundled model's folder finds, asked for by its name."""
    return audit_folder(bundled(f"weights/{BUNDLED}"), BUNDLED)


# What is whole passes


@pytest.mark.parametrize("name", ["plain", "sharded", "bfloat16", "bert_prefix", "int8"])
def test_a_sound_folder_passes_and_is_as_it_was_sealed(copy, name):
    folder, digests = copy(name)
    found = audit_folder(folder, sealed=digests)
    assert failed(found) == set()
    checks = by_name(found)
    assert checks["sealed digests"].verdict == checks["tensor digests"].verdict == "PASS"
    assert found.known is None


def test_without_digests_the_files_are_listed(folders):
    found = audit_folder(folders["plain"])
    check = by_name(found)["digests"]
    assert check.verdict == "SKIP"
    assert "--write-digests" in check.wanted
    assert f"{sha256_of(folders['plain'] / WEIGHTS)}  {WEIGHTS}" in check.detail


def test_the_bundled_model_is_the_published_one(of_the_bundled_model):
    found = of_the_bundled_model
    checks = by_name(found)
    assert found.known.name == BUNDLED
    assert failed(found) == set()
    assert checks["published digests"].measured == "10 of 10 files"
    assert checks["tensor digests"].measured == "140 of 140 tensors"
    assert found.digests == published(load_manifest()[BUNDLED])


# Digests


@pytest.mark.parametrize("name", [BUNDLED, FLOAT32])
def test_the_shipped_digests_are_of_the_manifests_files(name):
    """What is looked up by tensor says of which file it speaks: the one that the manifest names."""
    shipped = Digests.load(bundled(f"weights/digests/{name.replace('/', '--')}.json"))
    known = load_manifest()[name]
    assert shipped.model == name
    assert shipped.files == dict(known.files)
    assert set(shipped.tensors) == {WEIGHTS}
    assert published(known) == shipped


def test_every_shipped_file_of_digests_belongs_to_a_known_model():
    names = {path.stem for path in bundled("weights/digests").iterdir()}
    assert names <= {known.name.replace("/", "--") for known in known_models()}


@pytest.mark.float32
def test_the_shipped_tensor_digests_are_those_of_the_original(float32_folder):
    found = audit_folder(float32_folder, FLOAT32)
    assert failed(found) == set()
    assert found.digests == published(load_manifest()[FLOAT32])


@pytest.mark.parametrize("name", ["plain", "sharded", "int8"])
def test_digests_read_back_as_they_were_written(copy, tmp_path, name):
    _, digests = copy(name)
    digests.save(tmp_path / "seal.json")
    assert Digests.load(tmp_path / "seal.json") == digests
    assert [path.name for path in tmp_path.glob("*seal*")] == ["seal.json"]


def test_names_that_look_like_the_format_read_back_too(tmp_path):
    tensor = StoredTensor("F32", (1,), bytes(4), tmp_path)
    names = ['{"dtype": "F32"}', '{\n "dtype"', "a\x1b[31mb", "}", ""]
    digests = digests_of(
        'a "model" {',
        {"a.safetensors": "0" * 64},
        [WeightFile("a.safetensors", dict.fromkeys(names, tensor), dict.fromkeys(names, 0))],
    )
    digests.save(tmp_path / "seal.json")
    assert Digests.load(tmp_path / "seal.json") == digests


def test_digests_are_written_whole_or_not_at_all(copy, tmp_path):
    _, digests = copy("plain")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there is a folder, wanted a file; name another"):
        digests.save(tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "there"]
    for _ in range(2):  # folders are made, an older file is replaced
        digests.save(tmp_path / "new" / "folder" / "seal.json")


GOOD = {
    "format": "minitrans-digests",
    "version": 1,
    "made_by": "a test",
    "model": "m",
    "files": {WEIGHTS: "0" * 64},
    "tensors": {WEIGHTS: {"a": {"dtype": "F32", "shape": [2, 3], "sha256": "1" * 64}}},
}


def with_tensor(**changes):
    return {"tensors": {WEIGHTS: {"a": GOOD["tensors"][WEIGHTS]["a"] | changes}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format is 'other', wanted 'minitrans-digests'"),
        ({"format": ["minitrans-digests"]}, "format is"),
        ({"version": 2}, "version is 2, wanted 1"),
        ({"version": True}, "version is True, wanted 1"),
        ({"version": 1.0}, r"version is 1\.0, wanted 1"),
        ({"version": None}, "version is None, wanted 1"),
        ({"extra": 1}, "the top level"),
        ({"model": ""}, "model is '', wanted a name"),
        ({"model": 5}, "model is 5"),
        ({"model": "x" * 5000}, "model is"),
        ({"files": []}, r"files is \[\], wanted a JSON object"),
        ({"files": {}, "tensors": {}}, "files is {}, wanted at least one entry: nothing would be compared"),
        ({"tensors": {}}, "tensors is {}, wanted at least one entry: nothing would be compared"),
        ({"files": {"../config.json": "0" * 64}}, "files is '../config.json', wanted a relative path"),
        ({"files": {"/etc/passwd": "0" * 64}}, "wanted a relative path"),
        ({"files": {"a\x1b": "0" * 64}}, "wanted a relative path"),
        ({"files": {WEIGHTS: "0" * 63}}, "wanted 64 lower-case hexadecimal digits"),
        ({"files": {WEIGHTS: "A" * 64}}, "wanted 64 lower-case hexadecimal digits"),
        ({"files": {WEIGHTS: None}}, "wanted 64 lower-case hexadecimal digits"),
        ({"tensors": {"other.safetensors": {}}}, "wanted a file that stands under files too"),
        ({"tensors": {WEIGHTS: []}}, "wanted a JSON object"),
        ({"tensors": {WEIGHTS: {"a": 1}}}, "wanted a JSON object"),
        ({"tensors": {WEIGHTS: {"a": {"dtype": "F32"}}}}, "wanted the keys dtype, shape and sha256"),
        (with_tensor(dtype="f32"), "dtype is 'f32'"),
        (with_tensor(dtype=32), "dtype is 32"),
        (with_tensor(shape=[-1]), "shape is"),
        (with_tensor(shape=[2.5]), "shape is"),
        (with_tensor(shape=[True]), "shape is"),
        (with_tensor(shape=[2**60]), "shape is"),
        (with_tensor(shape=[1] * 9), "shape is"),
        (with_tensor(shape="2, 3"), "shape is"),
        (with_tensor(sha256="zz"), "wanted 64 lower-case hexadecimal digits"),
    ],
)
def test_a_hostile_file_of_digests_is_refused_with_the_place(tmp_path, changes, message):
    (tmp_path / "seal.json").write_text(json.dumps(GOOD))
    assert Digests.load(tmp_path / "seal.json").model == "m"
    (tmp_path / "seal.json").write_text(json.dumps(GOOD | changes))
    with pytest.raises(InputError, match=message) as error:
        Digests.load(tmp_path / "seal.json")
    assert "seal.json" in str(error.value)
    assert len(str(error.value)) < 400
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": 1e999}'])
def test_what_is_no_file_of_digests_is_refused(tmp_path, data):
    (tmp_path / "seal.json").write_bytes(data)
    with pytest.raises(InputError, match="minitrans audit"):
        Digests.load(tmp_path / "seal.json")


def test_a_missing_file_of_digests_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: No such file"):
        Digests.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("path", "kind"), [("/dev/zero", "a device"), ("/dev/null", "a device"), ("pipe", "a pipe"), (".", "a folder")]
)
def test_what_is_no_regular_file_is_refused_unread(tmp_path, path, kind):
    os.mkfifo(tmp_path / "pipe")  # to open it would be to wait for a writer
    message = f"{path.removeprefix('.')} is {kind}, wanted a regular file; .* `minitrans audit --write-digests FILE`"
    with pytest.raises(InputError, match=message):
        Digests.load(tmp_path / path)


# One bit


@pytest.mark.parametrize("name", ["plain", "sharded", "bfloat16", "int8"])
def test_any_flipped_bit_is_found_and_its_tensor_named(folders, tmp_path_factory, name):
    folder = shutil.copytree(folders[name], tmp_path_factory.mktemp("flipped") / name)
    digests = audit_folder(folder).digests
    files = sorted(folder.glob("*.safetensors"))
    places = [(file, *data_section(file)) for file in files]

    @settings(max_examples=15)
    @given(data=st.data())
    def check(data):
        file, begin, tensors = data.draw(st.sampled_from(places))
        whole = file.read_bytes()
        byte = data.draw(st.integers(begin, len(whole) - 1))
        flip(file, byte, data.draw(st.integers(0, 7)))
        try:
            found = audit_folder(folder, sealed=digests)
        finally:
            file.write_bytes(whole)
        assert {"sealed digests", "tensor digests"} <= failed(found)
        (tensor,) = [each for each, (first, end, *_) in tensors.items() if first <= byte < end]
        first, end, *_ = tensors[tensor]
        named = [line for line in by_name(found)["tensor digests"].detail if not line.startswith(" ")]
        assert len(named) == 1
        assert f"{file.name}: {tensor}, " in named[0]
        assert named[0].endswith(f"bytes {first} to {end - 1}")

    check()


@pytest.mark.parametrize(
    ("tensor", "bit"),
    [
        ("encoder.layer.3.attention.self.query.weight_scale", 0),  # the lowest of the mantissa
        ("encoder.layer.5.output.dense.bias", 22),  # its highest
        ("encoder.layer.0.attention.output.LayerNorm.weight", 30),  # of the exponent
        ("embeddings.LayerNorm.bias", 31),  # the sign
    ],
)
def test_a_bit_of_the_bundled_models_floats_is_located(damaged, minilm, tensor, bit):
    index = damaged(tensor, 17, bit)
    found = audit_folder(minilm)
    assert found.known.name == BUNDLED
    assert {"published digests", "tensor digests"} <= failed(found)
    place, _, element, *more = by_name(found)["tensor digests"].detail
    assert f"{WEIGHTS}: {tensor}, F32 [384], bytes " in place
    assert f"element {index} is " in element
    assert not more


@pytest.mark.parametrize(
    ("tensor", "element", "bit"),
    [("encoder.layer.3.output.dense.weight", 12345, 0), ("embeddings.word_embeddings.weight", 384 * 30522 - 1, 7)],
)
def test_a_bit_of_the_bundled_models_int8_weights_is_located(damaged, minilm, tensor, element, bit):
    right = WeightFile.read(bundled(f"weights/{BUNDLED}/{WEIGHTS}"), WEIGHTS).tensors[tensor]
    wanted = np.frombuffer(right.data, np.int8)[element]
    index = damaged(tensor, element, bit)
    detail = by_name(audit_folder(minilm))["tensor digests"].detail
    seen = np.frombuffer(bytes([wanted.view(np.uint8) ^ (1 << bit)]), np.int8)[0]
    begin = data_section(minilm / WEIGHTS)[1][tensor][0]
    assert tensor in detail[0]
    assert detail[2] == f"  element {index} is {seen}, wanted {wanted} (byte {begin + element})"


@pytest.mark.float32
def test_the_original_tells_which_element_differs(damaged, minilm, float32_folder, monkeypatch):
    """Where no other copy of the int8 model is at hand, its original is quantised again."""
    monkeypatch.setattr("minitrans.audit.tensors.find_local", lambda name: None)
    index = damaged("encoder.layer.2.intermediate.dense.weight", 777, 6)
    checks = by_name(audit_folder(minilm))
    assert "can be told only beside another copy or the original" in text_of(checks["tensor digests"])
    assert f"minitrans pull {FLOAT32}" in text_of(checks["tensor digests"])
    assert checks["as quantised"].verdict == "SKIP"
    checks = by_name(audit_folder(minilm, original=float32_folder))
    assert f"element {index} is " in text_of(checks["tensor digests"])
    assert checks["as quantised"].verdict == "FAIL"
    assert checks["as quantised"].measured == "139 of 140 tensors"
    assert f"element {index} is " in text_of(checks["as quantised"])


@pytest.mark.parametrize("tensor", ["encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias"])
def test_an_int8_model_of_ones_own_and_its_original(copy, folders, tensor):
    folder, digests = copy("int8")
    index = flip_element(folder / WEIGHTS, tensor, 5, 3)
    found = audit_folder(folder, sealed=digests, original=folders["plain"])
    checks = by_name(found)
    assert failed(found) == {"sealed digests", "tensor digests", "as quantised"}
    for name in ("tensor digests", "as quantised"):
        assert f"{WEIGHTS}: {tensor}, " in checks[name].detail[0]
        assert f"element {index} is " in text_of(checks[name])


def test_many_wrong_elements_are_counted(copy, folders):
    folder, _ = copy("int8")
    for element in range(20):
        flip_element(folder / WEIGHTS, "encoder.layer.0.attention.self.key.weight", element, 1)
    check = by_name(audit_folder(folder, original=folders["plain"]))["as quantised"]
    assert check.detail[-1] == "  and 16 of its other 1020 elements"


def test_an_original_that_is_another_model_is_refused(copy, folders):
    folder, _ = copy("int8")
    with pytest.raises(InputError, match=r"the weights that .* was made from"):
        audit_folder(folder, original=folders["sharded"])
    with pytest.raises(InputError, match="is a float32 model, wanted an int8 one"):
        audit_folder(folders["plain"], original=folders["plain"])


# Without digests


@pytest.mark.parametrize("name", ["plain", "bfloat16", "int8"])
def test_a_gross_flip_is_located_without_digests(copy, name):
    folder, _ = copy(name)
    bits = {"F32": 30, "BF16": 14}
    tensor = "encoder.layer.1.output.dense.bias"
    dtype = data_section(folder / WEIGHTS)[1][tensor][2]
    index = flip_element(folder / WEIGHTS, tensor, 7, bits[dtype])
    found = audit_folder(folder)
    assert failed(found) == {"plausible values"}
    check = by_name(found)["plausible values"]
    assert f"{WEIGHTS}: {tensor}, " in check.detail[0]
    assert f"element {index} is " in check.detail[1]


def test_a_low_bit_is_not_found_without_digests(copy):
    folder, digests = copy("plain")
    flip_element(folder / WEIGHTS, "encoder.layer.1.output.dense.bias", 7, 0)
    found = audit_folder(folder)
    assert failed(found) == set()
    assert "finds gross damage only" in text_of(by_name(found)["plausible values"])
    assert failed(audit_folder(folder, sealed=digests)) == {"sealed digests", "tensor digests"}


def test_what_quantising_never_writes_is_implausible(tmp_path):
    def lines(values, name="x.weight"):
        values = np.array(values)
        dtype = {"int8": "I8", "float32": "F32", "int64": "I64"}[values.dtype.name]
        return list(implausible(name, StoredTensor(dtype, values.shape, values.tobytes(), tmp_path)))

    assert lines(np.array([[127, 3], [-127, 0], [0, 0]], np.int8)) == []
    assert lines(np.array([[127, 3], [-128, 0]], np.int8)) == ["element [1, 0] is -128, which int8 weights never are"]
    assert "row 1 is 63" in lines(np.array([[127, 3], [63, 0]], np.int8))[0]
    assert lines(np.array([0.1, 0.2, 99], np.float32)) == []
    assert "element [2] is 999" in lines(np.array([0.1, 0.2, 999], np.float32))[0]
    assert lines(np.array([1, 0.0002, 0.0003], np.float32), "x.weight_scale") == []  # the scale of a row of zeros
    assert lines(np.array([2, 0.0002, 0.0003], np.float32), "x.weight_scale") != []
    assert lines(np.array([], np.float32)) == lines(np.array([7], np.float32)) == lines(np.zeros(9, np.float32)) == []
    assert lines(np.arange(2000)) == []
    assert lines(np.array([1] * 90 + [1e6] * 9, np.float32)) == []  # not the hundredth part
    many = lines(np.array([1] * 990 + [1e6] * 9, np.float32))
    assert len(many) == 5
    assert many[-1] == "and 5 of its other elements"


# Every other check can fail


def test_a_missing_file_fails(copy):
    folder, digests = copy("plain")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    found = audit_folder(folder, sealed=digests)
    assert failed(found) == {"files", "sealed digests", "tokenizer"}
    assert by_name(found)["token ids"].verdict == "SKIP"
    assert by_name(found)["files"].measured.startswith("6 of 7 files")
    assert "tokenizer.json is missing" in text_of(by_name(found)["files"])


@pytest.mark.parametrize(("change", "why"), [(-100, "cut off"), (100, "something was added")])
@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_weights_that_are_cut_off_or_longer_fail(copy, name, change, why):
    folder, _ = copy(name)
    file = sorted(folder.glob("*.safetensors"))[0]
    data = file.read_bytes()
    file.write_bytes(data[:change] if change < 0 else data + bytes(change))
    found = audit_folder(folder)
    assert {"files", "tensors"} <= failed(found)
    check = by_name(found)["files"]
    assert check.measured.startswith(f"{len(files_read(folder)) - 1} of {len(files_read(folder))} files, ")
    assert check.detail[0] == (
        f"{file.name} has {len(data) + change:,} bytes, its header speaks of {len(data):,}: {why}; "
        "fetch the model again"
    )


def with_length(header):
    return len(header).to_bytes(8, "little") + header


HEADERS = {
    "nothing": b"",
    "too few bytes for the length": b"\1\0",
    "a header that is too long": (LONGEST_HEADER + 1).to_bytes(8, "little"),
    "no JSON": with_length(b"{"),
    "nested without end": with_length(b"[" * 100_000),
    "no object": with_length(b"[]"),
    "no tensors": with_length(b"{}"),
    "no offsets": with_length(b'{"a": {}}'),
    "one offset": with_length(b'{"a": {"data_offsets": [0]}}'),
    "offsets that are words": with_length(b'{"a": {"data_offsets": ["0", "1"]}}'),
    "infinite offsets": with_length(b'{"a": {"data_offsets": [0, 1e999]}}'),
    "one tensor of two": with_length(b'{"a": {"data_offsets": [0, 1]}, "b": {"data_offsets": [1, null]}}'),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_a_hostile_header_tells_no_length(tmp_path, data):
    (tmp_path / WEIGHTS).write_bytes(data)
    assert length_by_header(tmp_path / WEIGHTS) is None


def test_a_file_that_ends_within_its_header_is_too_short(tmp_path):
    (tmp_path / WEIGHTS).write_bytes((1000).to_bytes(8, "little") + b"{")
    assert length_by_header(tmp_path / WEIGHTS) == 1008


@pytest.mark.parametrize("names", [(), ("passwd", "hosts.json")])
def test_a_folder_that_is_no_model_is_an_error(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        InputError, match=f"^{re.escape(str(tmp_path))} is no model folder: it holds none of config.json"
    ):
        audit_folder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", WEIGHTS, "model-1.safetensors"])
def test_a_part_of_a_model_is_a_broken_model(tmp_path, name):
    (tmp_path / name).write_text("")
    assert {"files", "configuration"} <= failed(audit_folder(tmp_path))


@pytest.mark.parametrize("name", ["modules.json", "sentence_bert_config.json", "tokenizer.json"])
def test_a_file_whose_absence_changes_the_result_fails(copy, name):
    folder, digests = copy("plain")
    (folder / name).unlink()
    found = audit_folder(folder, sealed=digests)
    more = {"configuration", "tensor digests"} if name == "modules.json" else set()  # without it nothing is loaded
    assert failed(found) == {"sealed digests", *more}
    assert f"{name}: missing" in text_of(by_name(found)["sealed digests"])


def test_a_link_out_of_the_folder_fails(copy, tmp_path):
    folder, digests = copy("plain")
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    found = audit_folder(folder, sealed=digests)
    assert {"files", "sealed digests", "configuration"} <= failed(found)
    assert f"'config.json' leads to {tmp_path / 'config.json'}" in text_of(by_name(found)["files"])
    assert text_of(by_name(found)["files"]).splitlines()[0].endswith("; replace the link by the file")
    assert by_name(found)["tensors"].verdict == "SKIP"


def move_out(folder, name, place):
    """The file lies elsewhere from now on, and a link to it in the folder."""
    (folder / name).rename(place / name)
    (folder / name).symlink_to(place / name)


@pytest.mark.parametrize(("model", "part"), [("plain", WEIGHTS), ("sharded", "model-00002-of-00003.safetensors")])
def test_weights_that_are_links_out_fail_with_the_remedy(copy, tmp_path, model, part):
    folder, _ = copy(model)
    move_out(folder, part, tmp_path)
    checks = {check.name: check for check in sign_off(folder).failed}
    assert checks.keys() == {"files", "tensors", "loads"}
    for check in checks.values():
        assert f"{part!r} leads to {tmp_path / part}" in check.detail[0]
        assert check.detail[0].endswith("; replace the link by the file")
    assert checks["files"].measured.startswith(f"{len(files_read(folder)) - 1} of ")


def test_a_name_that_leads_out_without_a_link_has_no_remedy(copy, tmp_path):
    folder, _ = copy("sharded")
    weight_map = {"a": f"../{WEIGHTS}", "b": "model-00001-of-00003.safetensors", "c": "x" * 300 + ".safetensors"}
    random_models.edit_json(folder / "model.safetensors.index.json", weight_map=weight_map)
    checks = by_name(audit_folder(folder))
    assert f"'../{WEIGHTS}' leads to " in text_of(checks["files"])
    assert "cannot name a file" in text_of(checks["files"])
    assert f"'../{WEIGHTS}' leads to " in text_of(checks["tensors"])
    assert "replace the link" not in text_of(checks["files"]) + text_of(checks["tensors"])


def edited(name, **changes):
    return lambda folder: random_models.edit_json(folder / name, **changes)


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def negative_scale(folder):
    flip_element(folder / WEIGHTS, "encoder.layer.0.output.dense.weight_scale", 2, 31)


def same_shard_twice(folder):
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    shutil.copyfile(first, second)


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def another_vocabulary(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["surplus"] = 200
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def changed_words(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": "where"}, "content": "now"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [tokenizer["normalizer"], replace]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    random_models.edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


SCALE = "tensor 'encoder.layer.0.output.dense.weight_scale' holds -"
OTHER = {"quant_method": "other"}
DIMENSION = '{"truncate_dim": 0}'
ROBERTA = '{"model_type": "roberta"}'
GONE = {"content": "[GONE]", "lstrip": False}


@pytest.mark.parametrize(
    ("model", "change", "name", "message"),
    [
        ("plain", written("config.json", "{"), "configuration", "is not valid JSON"),
        ("plain", written("config.json", ROBERTA), "configuration", "model_type is 'roberta', wanted 'bert'"),
        ("plain", written("modules.json", "[]"), "configuration", "no Pooling module"),
        ("plain", written("config_sentence_transformers.json", DIMENSION), "configuration", "truncate_dim is 0"),
        ("int8", edited("config.json", quantization_config=OTHER), "configuration", "quant_method is 'other', wanted"),
        ("int8", negative_scale, "tensors", SCALE),
        ("sharded", same_shard_twice, "tensors", "is also in"),
        ("plain", no_weights, "files", f"{WEIGHTS} is missing"),
        ("plain", no_weights, "tensors", "holds neither"),
        ("plain", another_vocabulary, "tokenizer", "has id 200"),
        ("plain", edited("tokenizer_config.json", sep_token="[GONE]"), "tokenizer", "'[GONE]'"),
        ("plain", edited("tokenizer_config.json", sep_token=GONE), "tokenizer", "'[GONE]'"),
        ("plain", changed_words, "token ids", "'where is my parcel?' becomes ['no', '##w'"),
    ],
)
def test_each_fault_fails_its_check_and_is_sealed_out(copy, model, change, name, message):
    folder, digests = copy(model)
    change(folder)
    found = audit_folder(folder, sealed=digests)
    check = by_name(found)[name]
    assert check.verdict == "FAIL"
    assert message in text_of(check)
    assert "sealed digests" in failed(found)


def test_a_change_that_loads_is_found_by_the_seal_alone(copy):
    folder, digests = copy("plain")
    random_models.edit_json(folder / "config.json", layer_norm_eps=1e-5)
    found = audit_folder(folder, sealed=digests)
    assert failed(found) == {"sealed digests"}
    assert by_name(found)["sealed digests"].detail[0].startswith("config.json: sha256 ")


def unlisted(name):
    remedy = "remove it, or write the digests anew if it belongs there"
    return f"{name}: the encoder reads it, plain does not list it; {remedy}"


def test_a_file_that_was_added_after_sealing_fails(copy):
    folder, digests = copy("plain")
    settings = {"prompts": {"a": "query: "}, "default_prompt_name": "a", "truncate_dim": 3}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    found = audit_folder(folder, sealed=digests)
    assert failed(found) == {"sealed digests"}
    check = by_name(found)["sealed digests"]
    assert check.detail == (unlisted("config_sentence_transformers.json"),)
    equal = len(digests.files)
    assert check.measured == f"{equal} of {equal + 1} files"
    assert check.values == {"equal": equal, "compared": equal + 1}


def test_a_tokenizer_beside_a_sealed_vocabulary_fails(copy):
    folder, _ = copy("plain")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    digests = audit_folder(folder).digests
    assert "vocab.txt" in digests.files
    assert failed(audit_folder(folder, sealed=digests)) == set()
    vocab = tokenizer["model"]["vocab"]
    vocab["card"], vocab["bank"] = vocab["bank"], vocab["card"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = audit_folder(folder, sealed=digests)
    assert failed(found) == {"sealed digests"}
    assert by_name(found)["sealed digests"].detail == (unlisted("tokenizer.json"),)


def test_weights_that_were_added_beside_sealed_shards_fail(copy):
    folder, digests = copy("sharded")
    random_models.write_weights(folder, random_models.write_tensors(random_models.find_spec("sharded")))
    check = by_name(audit_folder(folder, sealed=digests))["sealed digests"]
    assert check.verdict == "FAIL"
    assert any(line.startswith(f"{WEIGHTS}: the encoder reads it") for line in check.detail)


@pytest.mark.parametrize("kind", [f"sentence_transformers.{where}.Pooling" for where in ("models", "some.module")])
@pytest.mark.parametrize("path", ["pool", "./pool/"])
def test_the_settings_of_the_pooling_module_are_sealed(copy, tmp_path, kind, path):
    folder, _ = copy("plain")
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}, {"type": kind, "path": path}]
    (folder / "modules.json").write_text(json.dumps(modules))
    file = folder / path / "config.json"
    (folder / "1_Pooling").rename(folder / path)
    name = file.relative_to(folder).as_posix()
    audit_folder(folder).digests.save(tmp_path / "seal.json")
    digests = Digests.load(tmp_path / "seal.json")
    assert name in digests.files
    assert failed(audit_folder(folder, sealed=digests)) == set()
    random_models.edit_json(file, pooling_mode="max")
    found = audit_folder(folder, sealed=digests)
    assert failed(found) == {"sealed digests"}
    assert by_name(found)["sealed digests"].detail[0].startswith(f"{name}: sha256 ")


def test_digests_that_list_nothing_vouch_for_nothing(folders):
    found = audit_folder(folders["plain"], sealed=NOTHING)
    check = by_name(found)["sealed digests"]
    assert (check.verdict, check.measured) == ("FAIL", f"0 of {len(files_read(folders['plain']))} files")


def test_what_the_published_digests_do_not_list_is_noted(minilm, monkeypatch):
    """Those of some models do not list every file; sealed digests list all that was read."""
    known = load_manifest()[BUNDLED]
    right = Digests(BUNDLED, {name: sha for name, sha in known.files.items() if name != "modules.json"}, {})
    monkeypatch.setattr("minitrans.audit.folder.published", lambda known: right)
    monkeypatch.setattr("minitrans.audit.folder.recognise", lambda *_, **__: Recognised(known))
    check = by_name(audit_folder(minilm))["published digests"]
    assert (check.verdict, check.measured) == ("PASS", "9 of 9 files")
    assert check.detail == ("without a digest to compare with: modules.json",)


def test_files_that_the_encoder_does_not_read_are_named(copy):
    folder, _ = copy("plain")
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "modeling.PY").write_text("import os")
    (folder / "code.pkl").mkdir()
    assert by_name(audit_folder(folder))["files"].detail == (
        "code or pickles, never opened by minitrans: modeling.PY, pytorch_model.bin",
        "not read by the encoder: vocab.txt",
    )


@pytest.mark.parametrize("name", ["plain", "sharded", "int8"])
def test_weights_go_by_the_names_and_shapes_of_a_checkpoint(folders, name):
    parameters = load_parameters(folders[name])
    wanted = [(each, shape) for each, _, shape in tensor_shapes(parameters.config, parameters.precision)]
    assert [(each, array.shape) for each, array in named_arrays(parameters).items()] == wanted


def test_every_broken_tensor_is_named_not_only_the_first(folders, tmp_path):
    spec = random_models.find_spec("plain")
    tensors = random_models.write_tensors(spec)
    tensors["embeddings.LayerNorm.bias"][3] = np.nan
    tensors["encoder.layer.0.output.dense.bias"] = np.zeros(7, np.float32)
    tensors["encoder.layer.1.output.dense.bias"] = np.zeros(32, np.int64)
    del tensors["encoder.layer.2.output.dense.bias"]
    tensors["encoder.surplus"] = np.zeros(1, np.float32)
    folder = random_models.write_model(tmp_path / "broken", spec, tensors)
    found = audit_folder(folder)
    check = by_name(found)["tensors"]
    assert check.verdict == "FAIL"
    assert check.measured == "49 of 53 tensors"
    for message in (
        "tensor 'encoder.layer.2.output.dense.bias' is missing, wanted [32]",
        "tensor 'embeddings.LayerNorm.bias' holds nan at [3], wanted finite values",
        "tensor 'encoder.layer.0.output.dense.bias' is F32 [7], wanted",
        "tensor 'encoder.layer.1.output.dense.bias' is I64 [32], wanted",
        "tensor 'encoder.surplus' is unexpected",
    ):
        assert message in text_of(check)
    assert len(check.detail) == 5


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_beside_a_broken_weight_file_others_are_checked(copy, name):
    folder, digests = copy(name)
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-1])
    found = audit_folder(folder, sealed=digests)
    assert {"tensors", "tensor digests", "sealed digests"} <= failed(found)
    checks = by_name(found)
    assert f"{file.name} is not a valid safetensors file" in text_of(checks["tensors"])
    assert f"{file.name}: not there, or not readable" in text_of(checks["tensor digests"])
    equal = int(checks["tensor digests"].measured.split()[0])
    assert (equal > 0) == (name == "sharded")


def test_tensors_that_were_added_or_taken_away_fail(copy, folders, tmp_path):
    spec = random_models.find_spec("plain")
    tensors = random_models.write_tensors(spec)
    tensors["pooler.dense.bias"] = np.zeros(32, np.float32)  # the encoder passes over it
    del tensors["embeddings.LayerNorm.bias"]
    folder = random_models.write_model(tmp_path / "other", spec, tensors)
    check = by_name(audit_folder(folder, sealed=copy("plain")[1]))["tensor digests"]
    assert "embeddings.LayerNorm.bias is missing, wanted F32 [32]" in text_of(check)
    assert any(line.startswith(f"{WEIGHTS}: pooler.dense.bias") and "not in plain" in line for line in check.detail)


def test_a_tensor_of_another_shape_than_sealed_is_named(copy, tmp_path):
    spec = random_models.find_spec("plain")
    tensors = random_models.write_tensors(spec)
    tensors["embeddings.LayerNorm.bias"] = tensors["embeddings.LayerNorm.bias"].reshape(2, 16)
    folder = random_models.write_model(tmp_path / "other", spec, tensors)
    check = by_name(audit_folder(folder, sealed=copy("plain")[1]))["tensor digests"]
    assert "embeddings.LayerNorm.bias, F32 [2, 16], bytes" in text_of(check)
    assert "wanted F32 [32]" in text_of(check)


# Which model it is


def test_a_copy_is_recognised_by_its_files(minilm):
    found = audit_folder(minilm)
    assert found.known.name == BUNDLED
    assert found.identity == "published digests"
    assert failed(found) == set()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_copy_with_one_changed_file_is_recognised(minilm, name):
    before = (minilm / name).read_bytes()
    (minilm / name).write_bytes(before + b" ")
    try:
        found = audit_folder(minilm)
    finally:
        (minilm / name).write_bytes(before)
    assert found.known.name == BUNDLED
    assert failed(found) == {"published digests"}


def test_a_model_that_shares_all_but_the_weights_is_another_one(minilm, tmp_path):
    """Trained further, and everything else left as it was."""
    file = minilm / WEIGHTS
    before = file.read_bytes()
    data = bytearray(before)
    for first, end, dtype, _ in data_section(file)[1].values():
        values = np.frombuffer(before[first:end], {"F32": "<f4", "I8": "i1"}[dtype])
        data[first:end] = (values[::-1] if dtype == "I8" else values * np.float32(1.01)).tobytes()
    file.write_bytes(data)
    try:
        other, named = audit_folder(minilm), audit_folder(minilm, BUNDLED)
    finally:
        file.write_bytes(before)
    assert (other.known, other.identity) == (None, None)
    check = by_name(other)["digests"]
    assert check.verdict == "SKIP"
    assert check.detail[0].startswith(f"9 of 10 files are those of {BUNDLED}, but the weights are others")
    # Asked for by its name, it has to be that.
    assert named.known.name == BUNDLED
    assert {"published digests", "tensor digests"} <= failed(named)
    assert "taken for" not in text_of(by_name(named)["published digests"])
    assert recognise(minilm, None, BUNDLED, other.digests).known.name == BUNDLED
    assert recognise(tmp_path / BUNDLED, None, None, other.digests).known.name == BUNDLED
    assert recognise(tmp_path / BUNDLED, None, "none", other.digests).known is None


@pytest.mark.parametrize("name", ["copy", "all-MiniLM-L6-v2"])  # the latter is another model's
def test_a_copy_with_two_changed_files_is_recognised(minilm, tmp_path, name):
    folder = shutil.copytree(minilm, tmp_path / name)
    tensor = "encoder.layer.3.output.dense.weight"
    index = flip_element(folder / WEIGHTS, tensor, 12345, 1)
    with (folder / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    found = audit_folder(folder)
    assert (found.known.name, found.identity) == (BUNDLED, "published digests")
    assert failed(found) == {"published digests", "tensor digests"}
    checks = by_name(found)
    assert checks["published digests"].measured == "8 of 10 files"
    assert checks["published digests"].detail[-1] == (
        f"taken for {BUNDLED}: 139 of 140 tensors are its; if it is another model: --as none"
    )
    assert f"element {index} is " in text_of(checks["tensor digests"])


def test_a_copy_with_cut_off_weights_is_recognised(minilm, tmp_path):
    folder = shutil.copytree(minilm, tmp_path / "copy")
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(10_000_000)
    (folder / "sentence_bert_config.json").unlink()
    found = audit_folder(folder)
    assert found.known.name == BUNDLED
    assert {"files", "tensors", "published digests"} <= failed(found)
    assert f"taken for {BUNDLED}: 8 of 10 files are its" in text_of(by_name(found)["published digests"])


def test_given_digests_are_called_by_their_file(damaged, minilm, tmp_path, of_the_bundled_model):
    """Also where the folder is said to be no known model: the digests ask for the weights of one, which is here."""
    of_the_bundled_model.digests.save(tmp_path / "d.json")
    index = damaged("encoder.layer.3.output.dense.weight", 12345, 1)
    found = audit_folder(minilm, sealed=Digests.load(tmp_path / "d.json"), known_as="none")
    assert (found.known, found.identity) == (None, "given digests")
    checks = by_name(found)
    assert failed(found) == {"sealed digests", "tensor digests"}
    assert checks["sealed digests"].wanted == checks["tensor digests"].wanted == "as in d.json"
    assert f"element {index} is " in text_of(checks["tensor digests"])
    found = audit_folder(minilm, sealed=Digests.load(tmp_path / "d.json"))
    assert found.identity == "published digests and given digests"
    assert {"tensors, d.json", f"tensors, {BUNDLED}"} <= failed(found)


PINNED = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
L12 = "sentence-transformers/all-MiniLM-L12-v2"
NOTHING = Digests("m", {}, {})


@pytest.mark.parametrize(
    ("path", "known"),
    [
        (BUNDLED, BUNDLED),
        ("all-minilm-l6-V2", FLOAT32),
        ("sentence-transformers/all-MiniLM-L12-v2", L12),
        ("sentence-transformers_all-MiniLM-L6-v2", FLOAT32),
        ("sentence-transformers--all-MiniLM-L12-v2", L12),
        (f"models--sentence-transformers--all-MiniLM-L6-v2/snapshots/{PINNED}", FLOAT32),
        ("models--sentence-transformers--all-MiniLM-L6-v2/snapshots/main", FLOAT32),
        (f"sentence-transformers--all-MiniLM-L6-v2/{PINNED}", FLOAT32),
        (f"models--sentence-transformers--all-MiniLM-L6-v2/snapshots/{'0' * 40}", None),  # another revision
        (f"models--somebody--all-MiniLM-L6-v2/snapshots/{PINNED}", None),
        ("all-MiniLM-L6-v2/other", None),
        ("all-MiniLM-L6-v2-mine", None),
        ("model", None),
    ],
)
def test_a_folder_is_recognised_by_its_name(tmp_path, path, known):
    folder = tmp_path / path
    folder.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    for each in (folder, link):
        found = recognise(each, None, None, NOTHING)
        assert (found.known.name if found.known else None) == known
        assert bool(found.why) == (known is not None)


@pytest.mark.parametrize(
    ("name", "known"),
    [("ALL-MiniLM-L6-v2", FLOAT32), (FLOAT32, FLOAT32), ("all-MiniLM-L12-v2", L12), (BUNDLED, BUNDLED), ("None", None)],
)
def test_the_users_word_decides(tmp_path, name, known):
    model = named_model(name)
    assert (model.name if model else None) == known
    assert recognise(tmp_path / BUNDLED, BUNDLED, name, published(load_manifest()[BUNDLED])).known == model


@pytest.mark.parametrize("name", ["", "bert-base-uncased", "all-MiniLM-L6", "../all-MiniLM-L6-v2"])
def test_an_unknown_name_is_refused_with_the_known_ones(folders, name):
    with pytest.raises(InputError, match="no known model is called") as error:
        audit_folder(folders["plain"], known_as=name)
    assert f"wanted one of {FLOAT32}, {L12}, {BUNDLED}, or none" in str(error.value)


def test_weights_decide_before_names_and_files():
    """The int8 model has most tensors of the float32 one, its biases and norms, and more of its own."""
    int8, full = (published(load_manifest()[name]) for name in (BUNDLED, FLOAT32))
    shared = sum(int8.tensors[WEIGHTS].get(name) == digest for name, digest in full.tensors[WEIGHTS].items())
    assert 2 * shared > len(full.tensors[WEIGHTS])
    for right, name in ((int8, FLOAT32), (full, BUNDLED)):
        tensors = {
            f"bert.{each}": replace(digest, sha256="0" * 64) if number < 5 else digest
            for number, (each, digest) in enumerate(right.tensors[WEIGHTS].items())
        }
        found = recognise(Path(name), None, None, Digests("m", {}, {"model-1.safetensors": tensors}))
        assert found.known.name == right.model
        assert found.why == f"{len(tensors) - 5} of {len(tensors)} tensors are its"


def test_half_of_the_tensors_are_not_most():
    right = published(load_manifest()[BUNDLED])
    for equal, known in ((70, None), (71, BUNDLED)):
        matrices_last = sorted(right.tensors[WEIGHTS].items(), key=lambda item: item[1].dtype == "F32")
        found = Digests("m", {}, {WEIGHTS: dict(matrices_last[:equal])})
        recognised = recognise(Path("model"), None, None, found).known
        assert (recognised.name if recognised else None) == known


def test_without_tensor_digests_whole_files_decide():
    files = dict(load_manifest()[L12].files)
    other = files | {WEIGHTS: "0" * 64}
    weights = {"config.json": "0" * 64, WEIGHTS: files[WEIGHTS]}
    found = recognise(Path("model"), None, None, Digests("m", weights, {}))
    assert (found.known.name, found.why) == (L12, f"{WEIGHTS} is its own")
    found = recognise(Path("model"), None, None, Digests("m", other, {}))
    assert found.known is None
    assert found.near.startswith(f"5 of 6 files are those of {L12}, but the weights are others")
    assert found.near.endswith(f"--as {L12}")
    assert recognise(Path("model"), None, None, Digests("m", other, {}), readable=False).known.name == L12
    few = {name: files[name] for name in ("config.json", "tokenizer.json", "vocab.txt")}
    assert recognise(Path("model"), None, None, Digests("m", few, {}), readable=False).known is None


READ = """
import json, sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from minitrans import SentenceEncoder
found = {}
for folder in sys.argv[1:]:
    encoder = SentenceEncoder(folder)
    encoder.encode("hello"), encoder.identity
    found[folder] = sorted({path.removeprefix(f"{folder}/") for path in opened if path.startswith(f"{folder}/")})
print(json.dumps(found))
"""


def test_the_checked_files_are_those_that_the_encoder_opens(run_python, folders, copy):
    older, _ = copy("plain")
    (older / "tokenizer.json").unlink()
    assert "vocab.txt" in files_read(older)
    every = [*(folders[name] for name in ("plain", "sharded", "int8")), older, bundled(f"weights/{BUNDLED}")]
    opened = json.loads(run_python(READ, *every).stdout)
    assert opened == {str(folder): sorted(files_read(folder)) for folder in every}
