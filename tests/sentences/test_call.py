"""What a call is given: odd arguments are refused by name, settings are read once, and lengths are warned about."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from fitted_policies import fitted_to, random_fitted
from numpy.lib.stride_tricks import as_strided

from minitrans import PruningPolicy, SentenceEncoder, TruncationWarning
from minitrans.encoder.policy_files import shipped_policies
from minitrans.errors import InputError, InputTypeError, MinitransError, PolicyError, PruningWarning
from minitrans.sentences import sentence_encoder as model
from minitrans.sentences.vectors import similarity, similarity_pairwise

TEXTS = ["play music", "set an alarm for 7:30 tomorrow"]


class OddEquality:
    """Like an array, or a column of a table."""

    __hash__ = None

    def __eq__(self, other):
        raise ValueError("the truth value is ambiguous")


ODD = [
    *("", "false", "no such name", "a\0b", b"x", 1.5, float("nan"), 1j, -1, 2**70, ..., len),
    *([], [1], ["a"], (), {}, {"a": 1}, {1}, range(3), OddEquality()),
    *(np.array([1, 2]), np.array(["a", "b"]), np.array([]), np.array(3), np.zeros((2, 32))),
]
NAMES = ["prompt_name", "prompt", "batch_size", "show_progress_bar", "output_value", "precision", "truncate_dim"]
FLAGS = ["normalize_embeddings", "convert_to_numpy", "show_progress_bar"]
SETTINGS = ["max_seq_length", "threads", "on_truncation", "truncate_dim", "prompts", "default_prompt_name", "pruning"]


@pytest.fixture(scope="module")
def encoder(plain):
    return SentenceEncoder(plain, on_truncation="ignore", prompts={"query": "find: "})


@pytest.fixture
def changed(plain):
    return SentenceEncoder(plain, on_truncation="ignore", prompts={"query": "find: "})


def own_or_none(call):
    """Whatever comes of it, an exception is one of the package's own."""
    told = ""
    try:
        call()
    except MinitransError as error:
        told = str(error)
    assert len(told) < 400


@pytest.mark.parametrize("name", [*NAMES, *FLAGS, "pruning", "out"])
def test_odd_arguments_of_encode(encoder, name, capsys):
    for value in ODD:
        own_or_none(lambda: encoder.encode(TEXTS, **{name: value}))  # noqa: B023 - called at once
        own_or_none(lambda: encoder.encode_query(TEXTS, **{name: value}))  # noqa: B023


@pytest.mark.parametrize(
    "name", ["backend", "precision", "pruning", "prompts", "default_prompt_name", "local_files_only", *SETTINGS[1:4]]
)
def test_odd_arguments_of_the_constructor(plain, name):
    for value in ODD:
        own_or_none(lambda: SentenceEncoder(plain, **{name: value}))  # noqa: B023


@pytest.mark.parametrize("name", SETTINGS)
def test_odd_settings(changed, name):
    def use(value):
        setattr(changed, name, value)
        changed.encode(TEXTS, batch_size=1)
        changed.encode_document(TEXTS[0])
        changed.identity  # noqa: B018

    for value in ODD:
        own_or_none(lambda: use(value))  # noqa: B023


@pytest.mark.parametrize("value", ["false", "True", 0, 1, 1.0, [], np.array([True, False]), np.int64(1)], ids=repr)
@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_true_or_false(encoder, name, value):
    with pytest.raises(InputError, match=f"{name} is .*, wanted True or False"):
        encoder.encode(TEXTS, **{name: value})


def test_numpy_flags_are_flags(encoder):
    assert np.array_equal(
        encoder.encode(TEXTS, normalize_embeddings=np.bool_(True)), encoder.encode(TEXTS, normalize_embeddings=True)
    )


def test_other_kinds_of_array_are_not_made(encoder):
    with pytest.raises(InputError, match="convert_to_numpy is False, wanted True"):
        encoder.encode(TEXTS, convert_to_numpy=False)


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
@pytest.mark.parametrize("name", ["foo", "sentences", "self", "texts"])
def test_unknown_options_are_named(encoder, method, name):
    with pytest.raises((InputTypeError, TypeError), match=name):
        getattr(encoder, method)(TEXTS, **{name: 1})
    with pytest.raises(InputTypeError, match="there is no argument 'foo', wanted prompt_name, prompt, batch_size"):
        encoder.encode_query(TEXTS, foo=1)


@pytest.mark.parametrize("options", [{"normalize_embeddings": True}, {"truncate_dim": 3}], ids=str)
def test_token_embeddings_come_whole(encoder, options):
    with pytest.raises(InputError, match="token_embeddings come whole: leave out"):
        encoder.encode(TEXTS, output_value="token_embeddings", **options)


def test_a_default_prompt_of_a_folder_without_prompts():
    from minitrans.arguments import check_choice

    with pytest.raises(InputError, match="default_prompt_name is 'query', wanted None, as there is nothing to choose"):
        check_choice("default_prompt_name", "query", {})


# `out`


def spread(strides):
    return as_strided(np.zeros(400, np.float32), (2, 32), strides)


@pytest.mark.parametrize(
    "out",
    [
        pytest.param(spread((0, 4)), id="one row twice"),
        pytest.param(spread((4, 4)), id="rows that begin one number apart"),
        pytest.param(spread((124, 4)), id="rows that share a number"),
        pytest.param(spread((128, 0)), id="one number in each row"),
        pytest.param(spread((128, 2)), id="halves of numbers"),
        pytest.param(spread((4, 4)).T.T[::-1], id="backwards"),
    ],
)
def test_out_that_overlaps_itself(encoder, out):
    with pytest.raises(InputError, match="out has numbers that overlap in memory"):
        encoder.encode(TEXTS, out=out)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 32), np.float32, order="F"),
        np.zeros((4, 70), np.float32)[::2, 3:67:2],
        np.zeros((2, 32), np.float32)[::-1, ::-1],
        np.zeros((3, 2, 40), np.float32)[1, :, :32],
        spread((256, 8)),
    ],
    ids=["by columns", "every other", "backwards", "of three dimensions", "strides"],
)
def test_out_that_is_spread_in_memory(encoder, out):
    assert np.array_equal(encoder.encode(TEXTS, out=out), encoder.encode(TEXTS))


def test_out_of_one_row_may_have_any_stride(encoder):
    out = as_strided(np.zeros(32, np.float32), (1, 32), (0, 4))
    assert np.array_equal(encoder.encode(TEXTS[:1], out=out), encoder.encode(TEXTS[:1]))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("kind", [np.ma.masked_array, np.matrix])
def test_out_of_another_kind_of_array(encoder, kind):
    with pytest.raises(InputError, match=r"out is a .*, wanted a plain array"):
        encoder.encode(TEXTS, out=kind(np.zeros((2, 32), np.float32)))


# Similarities


@pytest.mark.parametrize("function", [similarity, similarity_pairwise])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [3.0]], "wanted rows of numbers, all as long"),
        ([["1", "2"]], r"embeddings are of type <U1, wanted numbers"),
        ("text", r"embeddings are of type <U4, wanted numbers"),
        ([[None, 1.0]], "embeddings are of type object, wanted numbers"),
        ([[True, False]], "embeddings are of type bool"),
        ([[1j, 2.0]], "embeddings are of type complex128"),
        ([{"a": 1}], "embeddings are of type object"),
        (3.0, r"embeddings have 0 dimensions, wanted one vector \[H\]"),
        ([[1.0, 2.0], [np.nan, 1.0]], "embedding 1 holds NaN, infinity or more than float32 can"),
        ([[np.inf, 2.0]], "embedding 0 holds NaN, infinity"),
        ([[1e300, 2.0]], "embedding 0 holds NaN, infinity or more than float32 can"),
        ([[10**400, 2]], "embeddings are of type object|embeddings are no array"),
    ],
    ids=lambda value: "" if isinstance(value, str) and "embedd" in value else repr(value)[:20],
)
def test_rows_that_are_no_embeddings(function, rows, message):
    for pair in ((rows, [[1.0, 2.0]]), ([[1.0, 2.0]], rows)):
        with pytest.raises(InputError, match=message):
            function(*pair)


# Settings


def test_a_call_has_one_max_seq_length(plain, monkeypatch):
    """Another thread may set it meanwhile."""
    encoder = SentenceEncoder(plain, on_truncation="ignore", threads=1)
    texts = ["play music " * 9] * 4
    wanted = encoder.encode(texts, batch_size=1)

    def setting(*arguments):
        encoder.max_seq_length, encoder.on_truncation, encoder.threads = 5, "error", 0
        return forward(*arguments)

    forward = model.forward
    monkeypatch.setattr(model, "forward", setting)
    assert np.array_equal(encoder.encode(texts, batch_size=1), wanted)
    with pytest.raises(InputError, match="threads is 0, wanted a positive integer"):
        encoder.encode(texts)


# Lengths that a policy was not fitted on


def policy_of(encoder, lengths, **fields):
    policy = fitted_to(encoder, score="learned", layer=1, min_tokens=4, quantile=0.5, **fields)
    return replace(policy, fitted=replace(policy.fitted, lengths=lengths))


def said(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(each.category is PruningWarning for each in caught)
    return [str(each.message) for each in caught]


def test_texts_beyond_the_fitted_lengths_are_counted_once(encoder):
    texts = ["play " * n for n in (2, 6, 10, 11, 20, 20)]  # two tokens more
    (message,) = said(lambda: encoder.encode(texts, batch_size=1, pruning=policy_of(encoder, (5, 12))))
    assert message.startswith(
        "the pruning policy was fitted on texts of 5 to 12 tokens, and here 3 of 6 have 13 to 22:"
    )
    (message,) = said(lambda: encoder.encode(texts[-1], pruning=policy_of(encoder, (8, 8))))
    assert message.startswith("the pruning policy was fitted on texts of 8 tokens, and here 1 of 1 has 22:")


def test_the_warning_points_at_the_caller(encoder):
    with pytest.warns(PruningWarning) as caught:
        encoder.encode("play " * 20, pruning=policy_of(encoder, (5, 12)))
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "remedy", ["(pruning=None, or no --pruning)", 'simplefilter("ignore", minitrans.errors.PruningWarning)']
)
def test_the_remedies_of_the_warning_work(encoder, remedy):
    policy = policy_of(encoder, (5, 12))
    (message,) = said(lambda: encoder.encode("play " * 20, pruning=policy))
    assert remedy in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if "pruning=None" in remedy:
            encoder.encode("play " * 20, pruning=None)
        else:
            warnings.simplefilter("ignore", PruningWarning)
            encoder.encode("play " * 20, pruning=policy)


def test_what_is_not_pruned_is_not_warned_about(encoder):
    short = ["play " * n for n in (0, 1, 2)]
    assert said(lambda: encoder.encode(short, pruning=policy_of(encoder, (9, 12)))) == []  # min_tokens is 4
    assert len(said(lambda: encoder.encode("play " * 5, pruning=policy_of(encoder, (9, 12))))) == 1
    mild = replace(policy_of(encoder, (5, 6)), quantile=0.01)
    assert said(lambda: encoder.encode("play " * 20, pruning=mild)) == []
    unfitted = PruningPolicy(min_tokens=3, quantile=0.5, layer=1)
    assert said(lambda: encoder.encode("play " * 20, pruning=unfitted)) == []
    assert said(lambda: encoder.encode("play " * 20, pruning=policy_of(encoder, None))) == []


def test_lengths_count_as_the_layers_get_them(plain):
    encoder = SentenceEncoder(plain, on_truncation="ignore")
    encoder.max_seq_length = 12
    assert said(lambda: encoder.encode("play " * 50, pruning=policy_of(encoder, (5, 12)))) == []
    assert len(said(lambda: encoder.encode("play " * 8, prompt="x " * 9, pruning=policy_of(encoder, (5, 11))))) == 1


def test_both_warnings_of_a_call(plain):
    encoder = SentenceEncoder(plain)
    with pytest.warns() as caught:
        encoder.encode("play " * 100, pruning=policy_of(encoder, (5, 12)))
    assert [each.category for each in caught] == [TruncationWarning, PruningWarning]


@pytest.mark.parametrize("name", shipped_policies())
def test_shipped_policies_say_their_lengths(name):
    assert PruningPolicy.named(name).fitted.lengths == (5, 256)


def test_lengths_are_saved(tmp_path, encoder):
    policy = policy_of(encoder, (5, 12))
    policy.save(tmp_path / "policy.json")
    assert PruningPolicy.load(tmp_path / "policy.json").fitted.lengths == (5, 12)
    whole = replace(policy, fitted=random_fitted(policy.fitted.model, 32)).fitted
    assert policy.needed(replace(whole, lengths=(3, 4))).lengths == (3, 4)


@pytest.mark.parametrize("lengths", [(), (5,), (6, 5), (0, 5), (1.5, 5), "ab", [1, 2, 3], {1: 2}, True], ids=repr)
def test_lengths_that_are_none(encoder, lengths):
    with pytest.raises(PolicyError, match=r"lengths is .*, wanted the least and the most tokens"):
        policy_of(encoder, lengths)
