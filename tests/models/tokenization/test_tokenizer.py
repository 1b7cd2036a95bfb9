"""Text to ids: whose limit holds, what truncation takes, and texts and files that nobody meant."""

import json
import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import WORDS, edit_json, find_spec, texts, vocabulary, write_model
from tokenizers import Tokenizer as FastTokenizer

from minitrans.errors import ConfigError, InputError, ModelNotFoundError, TokenizerError
from minitrans.models.config import EncoderConfig
from minitrans.models.tokenization.tokenizer import Tokenizer, check_max_seq_length

SPEC = find_spec("plain")
CLS, SEP, UNK = 2, 3, 1
LONG = "play music today " * 200  # 602 tokens, [CLS] and [SEP] included
CONFIG = EncoderConfig(SPEC.vocab_size, 32, 3, 4, 64, max_position_embeddings=64)


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", SPEC)


@pytest.fixture
def large(tmp_path):
    """A model of 512 positions, whose files say 128, 256 and 512."""
    folder = write_model(tmp_path / "large", replace(SPEC, max_position_embeddings=512, max_seq_length=256))
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.enable_truncation(128)
    fast.enable_padding(length=128)
    fast.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """The library's own tokenizer, without truncation."""
    folder = write_model(tmp_path_factory.mktemp("library") / "model", SPEC)
    return FastTokenizer.from_file(str(folder / "tokenizer.json"))


def load(folder):
    return Tokenizer.from_folder(folder, EncoderConfig.from_folder(folder))


def set_normalizer(folder, **changes):
    """Change settings of the BERT normaliser in tokenizer.json."""
    normalizer = json.loads((folder / "tokenizer.json").read_text())["normalizer"]
    edit_json(folder / "tokenizer.json", normalizer=normalizer | changes)


def follow_the_file(folder):
    """Take tokenizer.json as it stands; a BertTokenizer takes its vocabulary alone."""
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def refusal(error, folder):
    """The message of the error that loading raises."""
    with pytest.raises(error) as caught:
        load(folder)
    assert type(caught.value) is error
    return str(caught.value)


def cut(fast, limit):
    """A copy of the library's tokenizer that truncates by itself."""
    copy = FastTokenizer.from_str(fast.to_str())
    copy.enable_truncation(limit)
    return copy


# --- limits


def test_truncation_and_padding_of_the_file_are_off(large):
    edit_json(large / "sentence_bert_config.json", max_seq_length=512)
    tokenized = load(large).encode(["play", "play " * 300])
    assert [len(ids) for ids in tokenized.ids] == tokenized.lengths == [3, 302]


def test_the_middle_one_of_three_limits_is_right(large):
    tokenizer = load(large)
    tokenized = tokenizer.encode([LONG])
    assert tokenizer.max_seq_length == 256
    assert tokenized.lengths == [602]
    assert len(tokenized.ids[0]) == 256


@pytest.mark.parametrize(
    ("sentence", "model_max_length", "wanted"),
    [
        (256, 512, 256),
        (128, 512, 128),
        (512, 64, 512),
        (1000, 64, 512),  # there are no more positions
        (None, 512, 512),
        (None, 300, 300),
        (None, 10**30, 512),
        (None, 1e30, 512),
        (None, float("inf"), 512),
        (None, None, 512),
        (100.0, None, 100),
        (3, None, 3),
    ],
)
def test_which_limit_holds(large, sentence, model_max_length, wanted):
    edit_json(large / "sentence_bert_config.json", max_seq_length=sentence)
    edit_json(large / "tokenizer_config.json", model_max_length=model_max_length)
    assert load(large).max_seq_length == wanted


@pytest.mark.parametrize(
    ("gone", "wanted"),
    [
        (["sentence_bert_config.json"], 300),
        (["tokenizer_config.json"], 256),
        (["sentence_bert_config.json", "tokenizer_config.json"], 512),
    ],
)
def test_which_limit_holds_without_some_files(large, gone, wanted):
    edit_json(large / "tokenizer_config.json", model_max_length=300)
    for name in gone:
        (large / name).unlink()
    assert load(large).max_seq_length == wanted


@pytest.mark.parametrize("value", [0, -1, 0.5, 16.5, True, "256", [256], float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("file", "key"), [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
)
def test_limits_that_are_none(large, file, key, value):
    edit_json(large / "sentence_bert_config.json", max_seq_length=None)
    edit_json(large / file, **{key: value})
    message = refusal(ConfigError, large)
    assert message.startswith(f"{large / file}: ")
    assert f"{value!r}, wanted a positive number" in message


@pytest.mark.parametrize("value", [1, 2])
def test_a_limit_that_leaves_no_room(folder, value):
    edit_json(folder / "sentence_bert_config.json", max_seq_length=value)
    message = refusal(TokenizerError, folder)
    assert message.startswith(f"{folder}: max_seq_length is {value}, wanted at least 3")


def test_a_limit_that_is_set(folder):
    tokenizer = load(folder)
    tokenizer.max_seq_length = 3
    assert [len(ids) for ids in tokenizer.encode([LONG]).ids] == [3]
    with pytest.raises(TokenizerError, match="max_seq_length is 2, wanted at least 3"):
        tokenizer.max_seq_length = 2
    assert tokenizer.max_seq_length == 3


@pytest.mark.parametrize("value", [0, -1, 2, 65, 10**400, True, 32.0, "32", None])
def test_a_limit_of_the_user_that_is_none(value):
    with pytest.raises(InputError, match=r"wanted an integer from 3 \(.*\) to 64") as error:
        check_max_seq_length(value, 3, CONFIG)
    assert repr(value)[:100] in str(error.value)


@pytest.mark.parametrize("value", [3, 64])
def test_a_limit_of_the_user(value):
    assert check_max_seq_length(value, 3, CONFIG) == value


# --- ids

words = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=40).map(" ".join)


@settings(max_examples=60)
@given(st.lists(words | st.text(), max_size=4), st.integers(3, 64))
def test_truncation_is_that_of_the_library(fast, batch, limit):
    tokenized = Tokenizer(FastTokenizer.from_str(fast.to_str()), SPEC.vocab_size, limit).encode(batch)
    truncating = cut(fast, limit)
    assert tokenized.ids == [truncating.encode(text).ids for text in batch]
    assert tokenized.lengths == [len(fast.encode(text).ids) for text in batch]
    for ids in tokenized.ids:
        assert (ids[0], ids[-1]) == (CLS, SEP)
        assert len(ids) <= limit


def test_the_texts_of_these_tests(folder):
    tokenizer = load(folder)
    tokenized = tokenizer.encode(texts())
    assert (tokenizer.prefix, tokenizer.suffix) == (1, 1)
    assert min(tokenized.lengths) == 4
    assert max(tokenized.lengths) > 30
    tokens = vocabulary(SPEC)
    assert tokenized.ids[4] == [CLS, tokens.index("play"), tokens.index("music"), SEP]
    assert tokenizer.tokens(tokenized.ids[4]) == ["[CLS]", "play", "music", "[SEP]"]
    assert tokenizer.tokens([199, 200, 10**6]) == [tokens[199], "[200]", "[1000000]"]


def test_no_texts_and_a_text_of_nothing(folder):
    assert load(folder).encode([]).ids == []
    assert load(folder).encode(["", "  \n\t"]).ids == [[CLS, SEP]] * 2


def test_special_tokens_in_a_text_are_found(folder):
    assert load(folder).encode(["help [SEP]"]).ids[0].count(SEP) == 2


SURROGATES = {
    "high": "\ud83d",
    "between words": "help \ud800 me",
    "low": "\udfff\udfff",
    "wrong order": "\ude00\ud83d",
    "both halves": "\ud83d\ude00",
}


@pytest.mark.parametrize("clean_text", [True, False])  # True drops the replacement character again
@pytest.mark.parametrize("text", SURROGATES.values(), ids=SURROGATES)
def test_half_a_surrogate_pair_is_replaced(folder, text, clean_text):
    set_normalizer(folder, clean_text=clean_text)
    follow_the_file(folder)
    replaced = "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in text)
    tokenizer = load(folder)
    assert tokenizer.encode([text]) == tokenizer.encode([replaced])
    assert (UNK in tokenizer.encode([text]).ids[0]) != clean_text


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "help\0me",
        "👩‍👩‍👧‍👦 play 🎵",
        "مرحبا بالعالم",
        "שלום 123",
        "\u202eplay\u202c",
        "e\u0301" * 50,
        "\u2028\u0085\x0b",
        "東京",
        "x" * 5000,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_unusual_texts_are_those_of_the_library(folder, fast, text):
    tokenized = load(folder).encode([text, "help", text])
    assert tokenized.ids[0] == tokenized.ids[2] == cut(fast, 64).encode(text).ids
    assert tokenized.lengths == [len(fast.encode(t).ids) for t in (text, "help", text)]


def test_a_very_long_text(folder, fast):
    text = ("play music " * 20_000)[:200_000]
    tokenized = load(folder).encode([text])
    assert tokenized.ids[0] == cut(fast, 64).encode(text).ids
    assert tokenized.lengths[0] > 36_000


@pytest.mark.parametrize("lower", [True, False])
def test_lower_case_first(folder, lower):
    set_normalizer(folder, lowercase=False)  # so that only do_lower_case is left to do it
    edit_json(folder / "tokenizer_config.json", do_lower_case=False)
    edit_json(folder / "sentence_bert_config.json", do_lower_case=lower)
    upper, plain = load(folder).encode(["PLAY Music", "play music"]).ids
    assert (upper == plain) == lower


def test_a_template_without_special_tokens(folder):
    edit_json(folder / "tokenizer.json", post_processor=None)
    follow_the_file(folder)
    tokenizer = load(folder)
    tokenizer.max_seq_length = 2
    assert (tokenizer.prefix, tokenizer.suffix) == (0, 0)
    tokenized = tokenizer.encode(["", "play music", "play some music"])
    assert [len(ids) for ids in tokenized.ids] == [0, 2, 2]
    assert tokenized.lengths == [0, 2, 3]


def test_a_template_of_several_special_tokens(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    template = content["post_processor"]["single"]
    content["post_processor"]["single"] = [template[0], template[2], template[1], template[2], template[2], template[2]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    follow_the_file(folder)
    tokenizer = load(folder)
    tokenizer.max_seq_length = 7
    assert (tokenizer.prefix, tokenizer.suffix) == (2, 3)
    ids = tokenizer.encode([LONG]).ids[0]
    assert (ids[:2], ids[4:]) == ([CLS, SEP], [SEP] * 3)
    assert len(ids) == 7


@pytest.mark.parametrize("lower", [True, False])
def test_a_pickled_tokenizer(large, lower):
    set_normalizer(large, lowercase=False)
    edit_json(large / "sentence_bert_config.json", do_lower_case=lower)
    tokenizer = load(large)
    tokenizer.max_seq_length = 20
    copy = pickle.loads(pickle.dumps(tokenizer))
    sample = [*texts(), LONG, "PLAY MUSIC", "\ud800", ""]
    assert copy.encode(sample) == tokenizer.encode(sample)
    assert (copy.max_seq_length, copy.prefix, copy.suffix) == (20, 1, 1)


# --- files


def test_a_vocabulary_alone(folder):
    wanted = load(folder).encode(texts())
    (folder / "tokenizer.json").unlink()
    assert load(folder).encode(texts()) == wanted


@pytest.mark.parametrize(
    ("settings_", "same"), [({"do_lower_case": False}, False), ({"do_lower_case": True}, True), ({}, True)]
)
def test_the_case_of_a_vocabulary(folder, settings_, same):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    upper, plain = load(folder).encode(["PLAY music", "play music"]).ids
    assert (upper == plain) == same


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("odd", ["\u2028", "a\x0bb", "\u0085", "quux\u2029", "quux \t"], ids=ascii)
def test_only_ends_of_lines_end_a_token(folder, odd, newline):
    (folder / "tokenizer.json").unlink()
    tokens = vocabulary(SPEC)
    tokens[tokens.index("[MASK]")] = odd
    (folder / "vocab.txt").write_bytes("".join(token + newline for token in tokens).encode())
    tokenizer = load(folder)
    assert tokenizer.encode(["play"]).ids == [[CLS, tokens.index("play"), SEP]]
    assert tokenizer.tokens([tokens.index(odd)]) == [odd.rstrip() or f"[{tokens.index(odd)}]"]


BROKEN = {
    "empty": b"",
    "cut off": b'{"version": "1.0"',
    "a list": b"[]",
    "an empty object": b"{}",
    "not UTF-8": b'{"version": "\xff"}',
    "nested deep": b"[" * 100_000,
    "unknown model": b'{"version": "1.0", "model": {"type": "Sorcery"}}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_tokenizer_that_is_broken(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    assert refusal(TokenizerError, folder).startswith(
        f"{folder / 'tokenizer.json'} is not a tokenizer that can be read"
    )


@pytest.mark.parametrize(
    ("content", "seen"),
    [(b"", "not found"), (b"\xff\xfe\n", "decode"), ("\n".join(vocabulary(SPEC)[4:]).encode(), "not found")],
)
def test_a_vocabulary_that_is_broken(folder, content, seen):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_bytes(content)
    message = refusal(TokenizerError, folder)
    assert message.startswith(f"{folder / 'vocab.txt'} is not a WordPiece vocabulary")
    assert seen in message


def test_no_tokenizer_at_all(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    assert refusal(ModelNotFoundError, folder).startswith(f"{folder} holds neither tokenizer.json nor vocab.txt")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "sentence_bert_config.json"])
def test_a_file_that_is_a_link_out_of_the_folder(folder, name):
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to("../outside")
    assert repr(name) in refusal(ConfigError, folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "sentence_bert_config.json"])
def test_settings_that_are_broken(folder, name):
    (folder / name).write_text("[" * 100_000)
    assert str(folder / name) in refusal(ConfigError, folder)


def test_an_id_beyond_the_vocabulary_of_the_model(folder):
    edit_json(folder / "config.json", vocab_size=199)
    message = refusal(TokenizerError, folder)
    assert message.startswith(f"{folder}: the tokenizer has id 199, but the model's vocabulary ends at 198")


def test_an_added_token_beyond_the_vocabulary(folder):
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.add_tokens(["brand-new"])
    fast.save(str(folder / "tokenizer.json"))
    assert "the tokenizer has id 200, but" in refusal(TokenizerError, folder)


def test_a_template_with_an_id_beyond_the_vocabulary(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [200]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    follow_the_file(folder)
    assert "the tokenizer has id 200, but" in refusal(TokenizerError, folder)


def test_a_vocabulary_without_its_unknown_token(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["unk_token"] = "[NONE]"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    follow_the_file(folder)
    tokenizer = load(folder)
    assert len(tokenizer.encode(["play"]).ids[0]) == 3
    with pytest.raises(TokenizerError, match=r"cannot encode '東' \(.*\[UNK\].*fetch the model again"):
        tokenizer.encode(["play", "東"])


def test_a_larger_vocabulary_of_the_model_is_no_error(folder):
    edit_json(folder / "config.json", vocab_size=1000)  # some are padded to a multiple of 8
    assert load(folder).encode(["東"]).ids == [[CLS, UNK, SEP]]


CAFE = "CAF\u00c9 Play"  # with an accent
LOWER, CASED = ["c", "##a", "##f", "##e", "play"], ["[UNK]", "[UNK]"]
NORMALIZERS = [
    # of tokenizer.json, of tokenizer_config.json, and what becomes of the text
    ({"lowercase": False}, {}, LOWER),
    ({"lowercase": False, "strip_accents": True}, None, LOWER),
    ({"lowercase": False}, {"do_lower_case": True}, LOWER),
    ({}, {"do_lower_case": False}, CASED),
    ({"strip_accents": False}, {"strip_accents": None}, LOWER),
    ({"strip_accents": False}, {}, LOWER),
    ({"strip_accents": True}, {"strip_accents": False}, ["[UNK]", "play"]),
    ({}, {"strip_accents": True, "do_lower_case": False}, CASED),
]


@pytest.mark.parametrize("of_file", [True, False])
@pytest.mark.parametrize(("normalizer", "settings_", "wanted"), NORMALIZERS)
def test_the_settings_decide_how_bert_normalises(folder, normalizer, settings_, wanted, of_file):
    set_normalizer(folder, **normalizer)
    (folder / "tokenizer_config.json").unlink()
    if settings_ is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    if not of_file:
        (folder / "tokenizer.json").unlink()
    tokenizer = load(folder)
    assert tokenizer.tokens(tokenizer.encode([CAFE]).ids[0]) == ["[CLS]", *wanted, "[SEP]"]


@pytest.mark.parametrize("chinese", [None, False, True])
def test_signs_of_chinese_stand_alone(folder, chinese):
    set_normalizer(folder, handle_chinese_chars=chinese is False)
    if chinese is not None:
        edit_json(folder / "tokenizer_config.json", tokenize_chinese_chars=chinese)
    assert len(load(folder).encode(["\u6771\u4eac"]).ids[0]) == (3 if chinese is False else 4)


@pytest.mark.parametrize("key", ["do_lower_case", "tokenize_chinese_chars"])
@pytest.mark.parametrize("value", [None, 1, "true"])
def test_settings_of_the_normaliser_that_are_none(folder, key, value):
    edit_json(folder / "tokenizer_config.json", **{key: value})
    assert f"{key} is {value!r}, wanted true or false" in refusal(ConfigError, folder)


def test_a_file_that_is_followed_keeps_its_normaliser(folder):
    set_normalizer(folder, lowercase=False)
    follow_the_file(folder)
    assert load(folder).encode(["PLAY"]).ids == [[CLS, UNK, SEP]]


def test_truncation_on_the_left(folder):
    whole = load(folder).encode(["play some music now"]).ids[0]
    edit_json(folder / "tokenizer_config.json", truncation_side="left")
    tokenizer = load(folder)
    tokenizer.max_seq_length = 4
    assert tokenizer.encode(["play some music now"]).ids == [[whole[0], *whole[-3:]]]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(["play some music now"]).ids == [[whole[0], *whole[-3:]]]
    edit_json(folder / "tokenizer_config.json", truncation_side="middle")
    assert "truncation_side is 'middle', wanted 'right' or 'left'" in refusal(ConfigError, folder)


def test_a_panic_of_the_library_is_an_error_of_ours(folder):
    edit_json(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    follow_the_file(folder)
    assert "fetch the model again" in refusal(TokenizerError, folder)


def test_special_tokens_where_the_letter_a_is_no_token(folder):
    drop = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    edit_json(folder / "tokenizer.json", normalizer=drop)
    follow_the_file(folder)
    tokenizer = load(folder)
    assert (tokenizer.prefix, tokenizer.suffix) == (1, 1)
