"""SentenceEncoder as its users meet it: what goes in, what comes out, what is refused and with which words."""

import copy
import io
import json
import logging
import pickle
import shutil
import sys
import weakref

import numpy as np
import pytest
import random_models

from minitrans import PruningPolicy, SentenceEncoder, TruncationWarning
from minitrans.encoder.forward import forward
from minitrans.encoder.packing import pack
from minitrans.encoder.selection import kept_count
from minitrans.errors import BackendError, InputError, InputTypeError, PolicyError, TruncationError
from minitrans.sentences import batches
from minitrans.sentences import sentence_encoder as model
from minitrans.sentences.vectors import to_precision

TEXTS = ["play music", "what is the exchange rate?", "", "set an alarm for 7:30 tomorrow"]
LONG = "play music " * 40  # more than the 64 tokens of "plain"
POLICY = PruningPolicy(min_tokens=3, quantile=0.5, layer=1)


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain)


@pytest.fixture(scope="module")
def vectors(encoder):
    return encoder.encode(TEXTS)


@pytest.fixture(scope="module")
def unnormalized(random_folder):
    """A model whose vectors are not of length 1 by themselves."""
    return SentenceEncoder(random_folder("one_layer"))


def with_settings(folder, **settings):
    """A model folder with a config_sentence_transformers.json."""
    random_models.write_model(folder, random_models.find_spec("plain"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


# What goes in


def test_one_text_or_many(encoder, vectors):
    assert vectors.shape == (4, 32)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    for text, vector in zip(TEXTS, vectors, strict=True):
        one = encoder.encode(text)
        assert one.shape == (32,)
        assert np.array_equal(one, vector)
        assert np.array_equal(encoder.encode([text]), vector[None])


@pytest.mark.parametrize(
    "texts",
    [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        (text for text in TEXTS),
        dict.fromkeys(TEXTS).keys(),
    ],
    ids=["tuple", "array", "object array", "generator", "keys"],
)
def test_any_iterable_of_str(encoder, vectors, texts):
    assert np.array_equal(encoder.encode(texts), vectors)


def test_numpy_str(encoder, vectors):
    assert np.array_equal(encoder.encode(np.str_(TEXTS[1])), vectors[1])


@pytest.mark.parametrize(
    "empty", [[], (), iter([]), np.array([], dtype=str)], ids=["list", "tuple", "iterator", "array"]
)
def test_no_texts(encoder, empty):
    vectors = encoder.encode(empty)
    assert vectors.shape == (0, 32)
    assert vectors.dtype == np.float32


def test_no_texts_in_every_form(encoder):
    assert encoder.encode([], output_value="token_embeddings") == []
    assert encoder.encode([], precision="ubinary").shape == (0, 4)
    assert encoder.pruned_tokens([]) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\t\r",
        "\0",
        "\x7f",
        "🎉🎉",
        "👩‍👩‍👧‍👦 family",
        "東京",
        "e\u0301",
        "\ufeff",
        "[CLS] [PAD] [SEP]",
        "a" * 500,
    ],
    ids=ascii,
)
def test_unusual_texts(encoder, text):
    vector = encoder.encode(text)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(encoder.encode(["play music", text])[1], vector)


def test_blank_texts_are_the_empty_text(encoder):
    assert np.array_equal(encoder.encode(" \n\t "), encoder.encode(""))


@pytest.mark.parametrize("text", ["\ud800", "play \udfff music", "\udc80\ud800"])
def test_lone_surrogates_are_replacement_characters(encoder, text):
    clean = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    assert np.array_equal(encoder.encode(text), encoder.encode(clean))


def test_a_very_long_text(encoder):
    with pytest.warns(TruncationWarning, match="1 of 1 texts"):
        vector = encoder.encode("play music " * 20_000)
    with pytest.warns(TruncationWarning):
        assert np.array_equal(vector, encoder.encode(LONG))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", 3], r"text 1 is 3 of type int, wanted str; convert it with str\(\)"),
        ([None], "text 0 is None of type NoneType, wanted str; it is a missing value: drop it or fill it"),
        (["a", "b", b"c"], "text 2 is b'c' of type bytes, wanted str; decode it"),
        ([["a"]], r"text 0 is \['a'\] of type list"),
        (np.array([1.5]), "text 0 is .*1.5.* of type float64"),
        (bytearray(b"a"), "sentences is a bytearray, wanted a list of str; decode it"),
        (b"text", "sentences is a bytes, wanted a list of str; decode it"),
        ({"a": "b"}, "sentences is a dict"),
        (3, "sentences is a int"),
        (None, "sentences is a NoneType"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document", "pruned_tokens"])
def test_wrong_types_are_named(encoder, method, texts, message):
    with pytest.raises(InputTypeError, match=f"^{message}"):
        getattr(encoder, method)(texts)


def test_a_long_item_of_the_wrong_type_is_cut_in_the_message(encoder):
    with pytest.raises(InputTypeError) as caught:
        encoder.encode([list(range(10_000))])
    assert len(str(caught.value)) < 120


# Arguments


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_is_positive(encoder, batch_size):
    with pytest.raises(InputError, match=f"batch_size is {batch_size}, wanted a positive integer"):
        encoder.encode(TEXTS, batch_size=batch_size)


def test_unknown_keywords_raise(encoder):
    for method in (encoder.encode, encoder.encode_query, encoder.encode_document):
        with pytest.raises(TypeError, match="normalise"):
            method(TEXTS, normalise=True)
    with pytest.raises(TypeError, match="device"):
        SentenceEncoder(device="cuda")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": 0}, InputError, "threads is 0, wanted a positive integer"),
        ({"on_truncation": "raise"}, InputError, "on_truncation is 'raise', wanted 'warn', 'error' or 'ignore'"),
        ({"backend": "cuda"}, BackendError, "backend is 'cuda', wanted"),
        ({"precision": "int4"}, InputError, "precision is 'int4', wanted 'auto', 'float32' or 'int8'"),
        ({"truncate_dim": 0}, InputError, "truncate_dim is 0, wanted a positive integer"),
        ({"truncate_dim": 1.5}, InputError, "truncate_dim is 1.5"),
        ({"truncate_dim": True}, InputError, "truncate_dim is True"),
        ({"default_prompt_name": "query"}, InputError, "prompt_name is 'query', this model has no prompts"),
        ({"pruning": "attention"}, PolicyError, "there is no pruning policy 'attention'"),
        ({"pruning": 0.3}, PolicyError, "pruning is 0.3, wanted a PruningPolicy, the name of one, or None"),
        ({"pruning": PruningPolicy(layer=3)}, PolicyError, "layer 3 is out of range, the model has layers 0 to 2"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_constructor_refuses(plain, options, error, message):
    with pytest.raises(error, match=message):
        SentenceEncoder(plain, **options)


def test_positional_arguments_as_in_sentence_transformers(encoder):
    named = encoder.encode(TEXTS, prompt="set: ", batch_size=2, precision="int8")
    given = encoder.encode(TEXTS, None, "set: ", 2, False, "sentence_embedding", "int8")
    assert np.array_equal(named, given)
    with pytest.raises(TypeError, match="positional"):  # the next is convert_to_numpy there
        encoder.encode(TEXTS, None, "set: ", 2, False, "sentence_embedding", "int8", True)


def test_only_numpy_arrays_are_made(encoder, vectors):
    assert np.array_equal(encoder.encode(TEXTS, convert_to_numpy=True), vectors)
    with pytest.raises(InputError, match="convert_to_numpy is False, wanted True"):
        encoder.encode(TEXTS, convert_to_numpy=False)


# What comes out


@pytest.mark.parametrize("policy", [None, POLICY], ids=["unpruned", "pruned"])
def test_token_embeddings(encoder, policy):
    tokens = encoder.encode(TEXTS, output_value="token_embeddings", pruning=policy)
    assert isinstance(tokens, list)
    for text, rows in zip(TEXTS, tokens, strict=True):
        state = forward(encoder.blocks, pack(encoder.tokenizer.encode([text]).ids), policy)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, state.hidden)
        assert np.array_equal(encoder.encode(text, output_value="token_embeddings", pruning=policy), rows)


@pytest.mark.parametrize("output_value", [None, "tokens", ""])
def test_output_value_is_one_of_two(encoder, output_value):
    with pytest.raises(InputError, match=r"output_value is .*, wanted 'sentence_embedding' or 'token_embeddings'"):
        encoder.encode(TEXTS, output_value=output_value)


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"out": np.empty((4, 32), np.float32)}], ids=str)
def test_token_embeddings_are_float32_and_new(encoder, options):
    with pytest.raises(InputError, match="token_embeddings come as a list of float32 arrays: leave out"):
        encoder.encode(TEXTS, output_value="token_embeddings", **options)


FORMATS = [
    ("float32", np.float32, 32),
    ("int8", np.int8, 32),
    ("uint8", np.uint8, 32),
    ("binary", np.int8, 4),
    ("ubinary", np.uint8, 4),
]


@pytest.mark.parametrize(("precision", "dtype", "width"), FORMATS)
def test_precisions(encoder, vectors, precision, dtype, width):
    stored = encoder.encode(TEXTS, precision=precision)
    assert (stored.dtype, stored.shape) == (dtype, (4, width))
    assert np.array_equal(stored, to_precision(vectors, precision))
    assert np.array_equal(encoder.encode(TEXTS[1], precision=precision), stored[1])
    out = np.empty((4, width), dtype)
    assert encoder.encode(TEXTS, precision=precision, out=out) is out
    assert np.array_equal(out, stored)


def test_binary_of_a_width_that_is_no_multiple_of_eight(encoder, vectors):
    stored = encoder.encode(TEXTS, precision="ubinary", truncate_dim=19)
    assert np.array_equal(stored, np.packbits(vectors[:, :19] > 0, axis=1))


def test_precision_is_one_of_five(encoder):
    with pytest.raises(InputError, match=r"precision is 'int4', wanted 'float32', .* or 'ubinary'"):
        encoder.encode(TEXTS, precision="int4")


@pytest.mark.parametrize(("precision", "dtype", "width"), FORMATS)
def test_out_may_be_a_memmap(encoder, tmp_path, precision, dtype, width):
    out = np.lib.format.open_memmap(tmp_path / "vectors.npy", "w+", dtype, (4, width))
    assert encoder.encode(TEXTS, precision=precision, out=out, batch_size=1) is out
    out.flush()
    assert np.array_equal(np.load(tmp_path / "vectors.npy"), encoder.encode(TEXTS, precision=precision))


def test_out_may_be_a_part_of_an_array(encoder, vectors):
    whole = np.full((6, 40), 7, np.float32, order="F")
    encoder.encode(TEXTS, out=whole[1:5, 3:35])
    assert np.array_equal(whole[1:5, 3:35], vectors)
    whole[1:5, 3:35] = 7
    assert (whole == 7).all()


def test_out_of_one_text(encoder, vectors):
    out = np.empty((1, 32), np.float32)
    assert np.shares_memory(encoder.encode(TEXTS[0], out=out), out)
    assert np.array_equal(out[0], vectors[0])


READ_ONLY = np.empty((4, 32), np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((4, 31), np.float32), r"out is float32 \[4, 31\], wanted an array of float32 \[4, 32\]"),
        (np.empty((3, 32), np.float32), r"out is float32 \[3, 32\]"),
        (np.empty(128, np.float32), r"out is float32 \[128\]"),
        (np.empty((4, 32)), r"out is float64 \[4, 32\]"),
        (np.empty((4, 32), ">f4"), r"out is >f4 \[4, 32\]"),
        ([[0.0] * 32] * 4, "out is list"),
        (READ_ONLY, "out is read-only, wanted an array that can be written"),
    ],
    ids=["width", "texts", "flat", "dtype", "byte order", "list", "read-only"],
)
def test_out_that_does_not_fit(encoder, out, message):
    with pytest.raises(InputError, match=message):
        encoder.encode(TEXTS, out=out)


# Normalisation and shorter vectors


def test_normalize_embeddings(unnormalized):
    raw = unnormalized.encode(TEXTS)
    assert (np.abs(np.linalg.norm(raw, axis=1) - 1) > 0.01).all()
    unit = unnormalized.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 32, 33, 1000])
def test_truncate_dim(plain, encoder, vectors, width):
    short = SentenceEncoder(plain, truncate_dim=width)
    assert short.get_embedding_dimension() == short.get_sentence_embedding_dimension() == min(width, 32)
    assert np.array_equal(short.encode(TEXTS), vectors[:, :width])
    assert np.array_equal(encoder.encode(TEXTS, truncate_dim=width), vectors[:, :width])
    assert np.array_equal(encoder.encode(TEXTS[1], truncate_dim=width), vectors[1, :width])
    unit = encoder.encode(TEXTS, truncate_dim=width, normalize_embeddings=True)  # of length 1 after it was cut
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=0, atol=1e-6)


def test_truncate_dim_of_the_call_wins(plain, vectors):
    short = SentenceEncoder(plain, truncate_dim=4)
    assert np.array_equal(short.encode(TEXTS, truncate_dim=9), vectors[:, :9])


@pytest.mark.parametrize("width", [0, -3, 2.0, "8", True])
def test_truncate_dim_is_a_positive_integer(encoder, width):
    with pytest.raises(InputError, match=r"truncate_dim is .*, wanted a positive integer"):
        encoder.encode(TEXTS, truncate_dim=width)


# Prompts

PROMPTS = {"query": "what is ", "passage": "tell me ", "other": "play "}


@pytest.fixture(scope="module")
def prompted(plain):
    return SentenceEncoder(plain, prompts=PROMPTS)


def test_prompts(prompted, vectors):
    assert np.array_equal(prompted.encode(TEXTS), vectors)
    wanted = prompted.encode([PROMPTS["query"] + text for text in TEXTS])
    assert not np.array_equal(wanted, vectors)
    assert np.array_equal(prompted.encode(TEXTS, prompt_name="query"), wanted)
    assert np.array_equal(prompted.encode(TEXTS, prompt="what is "), wanted)
    assert np.array_equal(prompted.encode(TEXTS, prompt="what is ", prompt_name="other"), wanted)
    assert np.array_equal(prompted.encode(TEXTS[0], "query"), wanted[0])


def test_default_prompt(plain, vectors):
    encoder = SentenceEncoder(plain, prompts=PROMPTS, default_prompt_name="query")
    assert np.array_equal(encoder.encode("play music"), encoder.encode("what is play music", prompt=""))
    assert np.array_equal(encoder.encode("music", prompt_name="other"), encoder.encode("play music", prompt=""))
    assert np.array_equal(encoder.encode(TEXTS, prompt=""), vectors)


def test_unknown_prompt(prompted, encoder):
    with pytest.raises(InputError, match=r"prompt_name is 'qery', this model has \['other', 'passage', 'query'\]"):
        prompted.encode(TEXTS, prompt_name="qery")
    with pytest.raises(InputError, match="prompt_name is 'query', this model has no prompts"):
        encoder.encode(TEXTS, prompt_name="query")


def test_encode_query_and_document(prompted, encoder, vectors):
    assert np.array_equal(prompted.encode_query(TEXTS), prompted.encode(TEXTS, prompt_name="query"))
    assert np.array_equal(prompted.encode_document(TEXTS), prompted.encode(TEXTS, prompt_name="passage"))
    for method in (prompted.encode_query, prompted.encode_document):
        assert np.array_equal(method(TEXTS, prompt_name="other"), prompted.encode(TEXTS, prompt_name="other"))
        assert np.array_equal(method(TEXTS, prompt=""), vectors)
    for method in (encoder.encode_query, encoder.encode_document):  # no prompts: nothing to put before
        assert np.array_equal(method(TEXTS), vectors)
        assert method(TEXTS[0], normalize_embeddings=True, truncate_dim=5).shape == (5,)


def test_the_first_document_prompt_that_is_there_is_used(plain):
    prompts = {"corpus": "c ", "document": "d ", "passage": "p "}
    for name in ("document", "passage", "corpus"):
        encoder = SentenceEncoder(plain, prompts=prompts)
        assert np.array_equal(encoder.encode_document("music"), encoder.encode("music", prompt=prompts.pop(name)))


def test_settings_of_the_folder(tmp_path, encoder):
    settings = {
        "prompts": PROMPTS,
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": 6,
        "__version__": {"pytorch": "2.0"},
    }
    folder = with_settings(tmp_path, **settings)
    own = SentenceEncoder(folder)
    assert (own.prompts, own.default_prompt_name, own.similarity_fn_name) == (PROMPTS, "query", "dot")
    assert np.array_equal(own.encode("music"), encoder.encode("what is music")[:6])
    given = SentenceEncoder(
        folder, prompts={"q": "play "}, default_prompt_name="q", similarity_fn_name="manhattan", truncate_dim=9
    )
    assert given.similarity_fn_name == "manhattan"
    assert np.array_equal(given.encode("music"), encoder.encode("play music")[:9])


# Truncation


def test_truncation_warns_once_with_the_count(encoder):
    texts = [LONG, "short", LONG, *["short"] * 40, LONG]
    with pytest.warns(TruncationWarning) as caught:
        encoder.encode(texts, batch_size=2)
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "3 of 44 texts are longer than max_seq_length=64 tokens and were cut; shorten them, or accept it with "
        'SentenceEncoder(on_truncation="ignore")'
    )
    assert caught[0].filename == __file__


def test_truncation_counts_across_groups(encoder, monkeypatch):
    monkeypatch.setattr(batches, "CHARACTERS", 0.01)
    with pytest.warns(TruncationWarning, match="3 of 7 texts") as caught:
        encoder.encode([LONG, "short", "short", LONG, "short", "short", LONG])
    assert len(caught) == 1


@pytest.mark.parametrize("characters", [1000, 0.01])
def test_truncation_error_names_the_text(plain, monkeypatch, characters):
    monkeypatch.setattr(batches, "CHARACTERS", characters)
    encoder = SentenceEncoder(plain, on_truncation="error")
    with pytest.raises(
        TruncationError, match=r"^text 4 has \d{2,} tokens, max_seq_length is 64; shorten it, or accept it"
    ):
        encoder.encode(["short"] * 4 + [LONG, "short", LONG])
    assert encoder.encode(["short"] * 4).shape == (4, 32)


def test_truncation_may_be_ignored(plain, encoder):
    silent = SentenceEncoder(plain, on_truncation="ignore")
    with pytest.warns(TruncationWarning):
        wanted = encoder.encode([LONG, "short"])
    assert np.array_equal(silent.encode([LONG, "short"]), wanted)


def test_truncation_keeps_the_beginning_and_the_special_tokens(plain):
    silent = SentenceEncoder(plain, on_truncation="ignore")
    tokens = silent.pruned_tokens("the to " * 50)[0].tokens
    assert tokens == ["[CLS]", *["the", "to"] * 31, "[SEP]"]


def test_a_prompt_counts_towards_the_length(encoder):
    text = "the " * 60
    assert encoder.encode(text).shape == (32,)
    with pytest.warns(TruncationWarning):
        encoder.encode(text, prompt="to my is ")


def test_max_seq_length_may_be_set(plain):
    encoder = SentenceEncoder(plain, on_truncation="ignore")
    assert encoder.max_seq_length == 64
    encoder.max_seq_length = 5
    assert encoder.max_seq_length == 5
    assert np.array_equal(encoder.encode("the to my is of and"), encoder.encode("the to my"))
    for value in (0, 2, 65, 5.0, True, "5"):
        with pytest.raises(InputError, match=r"max_seq_length is .*, wanted an integer from 3 .* to 64"):
            encoder.max_seq_length = value
    assert encoder.max_seq_length == 5


# What is printed


def test_nothing_is_printed(encoder, capsys):
    encoder.encode(TEXTS)
    encoder.encode(TEXTS, show_progress_bar=False)
    encoder.encode(TEXTS, output_value="token_embeddings")
    encoder.pruned_tokens(TEXTS)
    assert capsys.readouterr() == ("", "")


def test_progress_bar(encoder, vectors, capsys):
    assert np.array_equal(encoder.encode(TEXTS, show_progress_bar=True, batch_size=1), vectors)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "4/4" in printed.err
    encoder.encode("play music", show_progress_bar=True, output_value="token_embeddings")
    assert "1/1" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("level", "stream", "wanted"),
    [
        (logging.INFO, Terminal, True),
        (logging.DEBUG, Terminal, True),
        (logging.WARNING, Terminal, False),
        (logging.INFO, io.StringIO, False),
    ],
)
def test_progress_bar_by_default(encoder, monkeypatch, caplog, level, stream, wanted):
    monkeypatch.setattr("sys.stderr", stream())
    with caplog.at_level(level, logger="minitrans"):
        encoder.encode(TEXTS)
        assert ("4/4" in sys.stderr.getvalue()) == wanted
        encoder.encode(TEXTS, show_progress_bar=False)
        assert sys.stderr.getvalue().count("4/4") == wanted


def test_progress_bar_of_no_texts(encoder, capsys):
    assert encoder.encode([], show_progress_bar=True).shape == (0, 32)
    assert capsys.readouterr().out == ""


# Pruning


def test_pruning_of_the_encoder_and_of_the_call(plain, encoder, vectors):
    own = SentenceEncoder(plain, pruning=POLICY)
    pruned = encoder.encode(TEXTS, pruning=POLICY)
    assert not np.array_equal(pruned, vectors)
    assert np.array_equal(own.encode(TEXTS), pruned)
    assert np.array_equal(own.encode(TEXTS, pruning="inherit"), pruned)
    assert np.array_equal(own.encode(TEXTS, pruning=None), vectors)
    assert own.pruning == POLICY
    other = PruningPolicy(min_tokens=3, quantile=0.5, layer=0)
    assert np.array_equal(own.encode(TEXTS, pruning=other), encoder.encode(TEXTS, pruning=other))
    assert encoder.pruning is None


@pytest.mark.parametrize("pruning", [True, 0.3, {"quantile": 0.3}, PruningPolicy], ids=repr)
def test_pruning_of_the_wrong_type(encoder, pruning):
    for method in (encoder.encode, encoder.pruned_tokens):
        with pytest.raises(PolicyError, match=r"pruning is .*, wanted a PruningPolicy, the name of one, or None"):
            method(TEXTS, pruning=pruning)


@pytest.mark.parametrize("name", ["attention", "", "Inherit", "../policy"])
def test_pruning_by_a_name_that_no_policy_has(encoder, name):
    for method in (encoder.encode, encoder.pruned_tokens):
        with pytest.raises(PolicyError, match=rf"there is no pruning policy {name!r}, .*PruningPolicy\.load"):
            method(TEXTS, pruning=name)


def test_pruning_of_a_layer_that_is_not_there(encoder):
    for policy in (PruningPolicy(layer=3), PruningPolicy(stages=((0, 0.1), (7, 0.1)))):
        with pytest.raises(PolicyError, match=r"layer [37] is out of range, the model has layers 0 to 2"):
            encoder.encode(TEXTS, pruning=policy)


def test_pruning_must_leave_the_token_that_is_pooled(random_folder):
    folder = random_folder("cls_pooling")
    with pytest.raises(PolicyError, match="pools the cls token, which the policy could drop; set protect_special=True"):
        SentenceEncoder(folder, pruning=POLICY)
    protected = PruningPolicy(min_tokens=3, quantile=0.5, layer=1, protect_special=True)
    assert SentenceEncoder(folder, pruning=protected).encode(TEXTS).shape == (4, 32)


def test_pruned_tokens(encoder):
    text = "is there a fee for the exchange of cash?"
    (whole,) = encoder.pruned_tokens(text)
    assert whole.tokens[0] == "[CLS]"
    assert whole.tokens[-2:] == ["?", "[SEP]"]
    assert all(whole.kept)
    for pruned, tokens in zip(
        encoder.pruned_tokens(iter([text, ""]), pruning=POLICY),
        encoder.encode([text, ""], pruning=POLICY, output_value="token_embeddings"),
        strict=True,
    ):
        n = len(pruned.tokens)
        assert len(pruned.kept) == n
        assert set(map(type, pruned.kept)) == {bool}
        assert sum(pruned.kept) == len(tokens) == kept_count(np.array([n]), 0.5, 3).item()


# The object itself

NAMES = ["cosine", "dot", "euclidean", "manhattan"]


def naive_similarity(a, b, name):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return {
        "cosine": a @ b / np.sqrt((a @ a) * (b @ b)),
        "dot": a @ b,
        "euclidean": -np.sqrt(((a - b) ** 2).sum()),
        "manhattan": -np.abs(a - b).sum(),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_similarity(random_folder, name):
    encoder = SentenceEncoder(random_folder("one_layer"), similarity_fn_name=name)
    a = encoder.encode(TEXTS)
    b = a[::-1][:3]
    wanted = [[naive_similarity(x, y, name) for y in b] for x in a]
    np.testing.assert_allclose(encoder.similarity(a, b), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        encoder.similarity_pairwise(a[:3], b), np.diagonal(np.array(wanted)), rtol=1e-5, atol=1e-5
    )
    assert encoder.similarity(a[0], b[0]).shape == (1, 1)


def test_similarity_is_cosine_by_default(encoder, vectors):
    assert encoder.similarity_fn_name == "cosine"
    np.testing.assert_allclose(np.diagonal(encoder.similarity(vectors, vectors)), 1, rtol=0, atol=1e-6)


def test_pickle(plain, vectors):
    encoder = SentenceEncoder(plain, pruning=POLICY, truncate_dim=20, prompts=PROMPTS, threads=2)
    encoder.max_seq_length = 40
    wanted = encoder.encode(TEXTS)
    other = pickle.loads(pickle.dumps(encoder))
    assert np.array_equal(other.encode(TEXTS), wanted)
    assert np.array_equal(other.encode(TEXTS, pruning=None), vectors[:, :20])
    assert (other.max_seq_length, other.threads, other.prompts) == (40, 2, PROMPTS)
    assert other.info() == encoder.info()
    assert repr(other) == repr(encoder)


def test_copies(encoder, vectors):
    assert np.array_equal(copy.copy(encoder).encode(TEXTS), vectors)
    assert np.array_equal(copy.deepcopy([encoder])[0].encode(TEXTS), vectors)
    other = copy.deepcopy(encoder)
    other.max_seq_length = 5
    assert encoder.max_seq_length == 64


def test_repr(plain, encoder):
    backend = encoder.backend
    assert repr(encoder) == f"SentenceEncoder({str(plain)!r}, backend={backend!r}, precision='float32')"
    assert repr(SentenceEncoder()) == f"SentenceEncoder('all-MiniLM-L6-v2-int8', backend={backend!r}, precision='int8')"


def test_info(plain, encoder):
    info = encoder.info()
    assert json.loads(json.dumps(info)) == info
    assert info == {
        "model": str(plain),
        "folder": str(plain),
        "identity": encoder.identity.to_dict(),
        "backend": encoder.backend,
        **encoder.blocks.info(),
        "precision": "float32",
        "threads": encoder.threads,
        "layers": 3,
        "heads": 4,
        "hidden_size": 32,
        "vocab_size": 200,
        "max_seq_length": 64,
        "embedding_dimension": 32,
        "pooling": "mean, normalized",
        "pruning": None,
    }
    assert list(info)[3:6] == ["backend", "kernels", "instruction_set"]
    pruned = SentenceEncoder(plain, pruning=POLICY, precision="int8", truncate_dim=4).info()
    assert json.loads(json.dumps(pruned)) == pruned
    assert PruningPolicy.from_dict(pruned["pruning"]) == POLICY
    assert (pruned["precision"], pruned["embedding_dimension"]) == ("int8", 4)


def test_weights_in_either_precision(plain, encoder, vectors):
    rough = SentenceEncoder(plain, precision="int8").encode(TEXTS)
    assert not np.array_equal(rough, vectors)
    assert (rough * vectors).sum(axis=1).min() > 0.98
    bundled = SentenceEncoder()
    widened = SentenceEncoder(precision="float32")
    assert (bundled.precision, widened.precision) == ("int8", "float32")
    assert (bundled.encode(TEXTS) * widened.encode(TEXTS)).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_pile_up(plain, monkeypatch, threads):
    """Memory does not grow with the number of texts: what was pooled is let go."""
    seen, alive = [], []

    def watched(*arguments):
        state = forward(*arguments)
        alive.append(sum(other() is not None for other in list(seen)))
        seen.append(weakref.ref(state))
        return state

    monkeypatch.setattr(model, "forward", watched)
    SentenceEncoder(plain, threads=threads).encode(["play music"] * 80, batch_size=1)
    assert len(alive) == 80
    assert max(alive) <= 4 * threads


# Nothing that is not needed


def test_local_models_open_no_connection(plain, no_network):
    assert SentenceEncoder().encode(TEXTS).shape == (4, 384)
    assert SentenceEncoder(plain).encode(TEXTS).shape == (4, 32)
    assert SentenceEncoder(str(plain), local_files_only=True).encode("a").shape == (32,)


BUNDLED = """
import socket, sys

def blocked(*arguments, **_):
    raise AssertionError(f"the network was asked for: {arguments}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = blocked
from minitrans import PruningPolicy, SentenceEncoder

encoder = SentenceEncoder(pruning=PruningPolicy())
assert encoder.encode(["where is my parcel?", "a" * 3000 + " b" * 100]).shape == (2, 384)
unwanted = {"huggingface_hub", "requests", "httpx", "tqdm", "click", "sklearn", "scipy", "torch", "transformers"}
print(sorted(unwanted & {name.partition(".")[0] for name in sys.modules}))
"""


def test_the_bundled_model_imports_what_it_needs(run_python):
    done = run_python(BUNDLED)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


IMPORT = """
import sys
before = set(sys.modules)
import minitrans
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
minitrans.PruningPolicy, minitrans.MinitransError, minitrans.SentenceEncoder
heavy = {"tokenizers", "huggingface_hub", "click", "tqdm", "safetensors", "sklearn", "threadpoolctl"}
print(sorted(heavy & set(sys.modules)))
"""


def test_import_costs_next_to_nothing(run_python):
    package, heavy = run_python(IMPORT).stdout.splitlines()
    assert package == "['minitrans']"
    assert heavy == "[]"


def test_prompts_are_added_to_the_models_own(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    own = {"prompts": {"passage": "set "}, "default_prompt_name": "passage"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    encoder = SentenceEncoder(folder, prompts={"extra": "play "})
    assert encoder.prompts == {"passage": "set ", "extra": "play "}
    # Without a prompt for queries there is none: not the default one, which is for passages.
    assert np.array_equal(encoder.encode_query("music"), encoder.encode("music", prompt=""))
    assert np.array_equal(encoder.encode_document("music"), encoder.encode("set music", prompt=""))


@pytest.mark.parametrize("prompts", [["a"], {"a": 3}, {3: "a"}])
def test_prompts_that_are_none(plain, prompts):
    with pytest.raises(InputError, match="wanted name -> text"):
        SentenceEncoder(plain, prompts=prompts)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_numbers_are_numbers(plain, vectors, kind):
    encoder = SentenceEncoder(plain, threads=kind(1), truncate_dim=kind(32))
    encoder.max_seq_length = kind(64)
    policy = PruningPolicy(min_tokens=kind(3), quantile=np.float32(0.5), layer=kind(1), stages=None)
    assert policy == PruningPolicy(min_tokens=3, quantile=0.5, layer=1)
    json.dumps(policy.to_dict())
    assert np.array_equal(encoder.encode(TEXTS, batch_size=kind(3)), vectors)


@pytest.mark.parametrize("value", ["x", None, 1.5, True, 0])
def test_batch_sizes_that_are_none(encoder, value):
    with pytest.raises(InputError, match=f"batch_size is {value!r}, wanted a positive integer"):
        encoder.encode(TEXTS, batch_size=value)
