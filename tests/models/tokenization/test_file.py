"""The files of a tokenizer: tokens that are added beside the vocabulary, classes, and programs without bound.

What a text becomes was compared with transformers 4.57 and 5.24, which agree on every line here.
"""

import base64
import json

import pytest
import tokenizers
from random_models import edit_json, find_spec, vocabulary, write_model

from minitrans.errors import ConfigError, ModelNotFoundError, TokenizerError, UnsupportedModelError
from minitrans.models.config import EncoderConfig
from minitrans.models.tokenization.tokenizer import Tokenizer

SPEC = find_spec("plain")
V = SPEC.vocab_size
PLAY = vocabulary(SPEC).index("play")
BERT = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}


def token(content, **flags):
    """An added token as files write it."""
    return (
        dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
        | flags
        | {"content": content}
    )


@pytest.fixture(params=["tokenizer.json", "vocab.txt"])
def folder(request, tmp_path):
    """A model whose embedding has two rows more than its vocabulary has tokens."""
    folder = write_model(tmp_path / "model", SPEC)
    edit_json(folder / "config.json", vocab_size=V + 2)
    if request.param == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    write(folder, "tokenizer_config.json", BERT)
    return folder


@pytest.fixture
def whole(tmp_path):
    """A model with a tokenizer.json, taken as it stands."""
    folder = write_model(tmp_path / "model", SPEC)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def load(folder):
    return Tokenizer.from_folder(folder, EncoderConfig.from_folder(folder))


def tokens(folder, text):
    """What a text becomes, without the special tokens around it."""
    tokenizer = load(folder)
    return tokenizer.tokens(tokenizer.encode([text]).ids[0][1:-1])


def refusal(error, folder):
    with pytest.raises(error) as caught:
        load(folder)
    assert type(caught.value) is error
    return str(caught.value)


# --- added tokens

PLACES = {
    "added_tokens.json": {"added_tokens.json": {"<User>": V}},
    "added_tokens_decoder": {"tokenizer_config.json": BERT | {"added_tokens_decoder": {str(V): token("<User>")}}},
    "additional": {"tokenizer_config.json": BERT | {"additional_special_tokens": ["<User>"]}},
    "additional, typed": {
        "tokenizer_config.json": BERT | {"additional_special_tokens": [token("<User>") | {"__type": "AddedToken"}]}
    },
    "extra": {"tokenizer_config.json": BERT | {"extra_special_tokens": ["<User>"]}},
    "extra, named": {"tokenizer_config.json": BERT | {"extra_special_tokens": {"user_token": "<User>"}}},
    "a name of its own": {"tokenizer_config.json": BERT | {"user_token": "<User>"}},
    "bos_token": {"tokenizer_config.json": BERT | {"bos_token": "<User>"}},
    "special_tokens_map.json": {"special_tokens_map.json": {"additional_special_tokens": ["<User>"]}},
    "special_tokens_map.json, flags": {"special_tokens_map.json": {"additional_special_tokens": [token("<User>")]}},
    "pad_token": {"special_tokens_map.json": {"pad_token": "<User>"}},
    "a name, added_tokens.json": {
        "tokenizer_config.json": BERT | {"user_token": "<User>"},
        "added_tokens.json": {"<User>": V},
    },
}


@pytest.mark.parametrize("files", PLACES.values(), ids=PLACES)
def test_a_token_that_is_added(folder, files):
    for name, value in files.items():
        write(folder, name, value)
    assert [each.casefold() for each in tokens(folder, "play<User>music")] == ["play", "<user>", "music"]
    assert load(folder).encode(["<User>"]).ids[0][1] == V


UNLIKE = "special_tokens_map.json, flags"  # transformers 4 takes flags there, transformers 5 fails


@pytest.mark.transformers
@pytest.mark.parametrize("files", [files for name, files in PLACES.items() if name != UNLIKE])
def test_ids_are_those_of_transformers(folder, files):
    transformers = pytest.importorskip("transformers")
    for name, value in files.items():
        write(folder, name, value)
    texts = ["play<User>music", "x <user> y", " <USER> [MASK]play [SEP]", "Caf\u00e9 \u6771\u4eac", ""]
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    assert load(folder).encode(texts).ids == [theirs(text)["input_ids"] for text in texts]


FLAGS = [
    ({}, "x<user> <User> y", ["x", "[UNK]", "u", "##s", "##er", "[UNK]", "<User>", "y"]),
    ({"normalized": True}, "x<user>y", ["x", "<user>", "y"]),
    ({"special": True}, "<User>", ["<User>"]),
    ({"single_word": True}, "x<User>y", ["x", "[UNK]", "u", "##s", "##er", "[UNK]", "y"]),
    ({"lstrip": True, "rstrip": True}, "play  <User>  music", ["play", "<User>", "music"]),
]


@pytest.mark.parametrize(("flags", "text", "wanted"), FLAGS)
def test_the_flags_of_an_added_token(folder, flags, text, wanted):
    write(folder, "tokenizer_config.json", BERT | {"added_tokens_decoder": {str(V): token("<User>", **flags)}})
    assert tokens(folder, text) == wanted


def test_the_ids_decide_the_order(folder):
    write(folder, "added_tokens.json", {"New Word": V + 1, "<User>": V})
    assert load(folder).encode(["<User>new word"]).ids[0][1:-1] == [V, V + 1]


def test_a_word_of_the_vocabulary_that_is_special(folder):
    write(folder, "tokenizer_config.json", BERT | {"additional_special_tokens": ["##ing", "play"]})
    assert tokens(folder, "playmusic ##ing PLAY") == ["play", "music", "##ing", "play"]


def test_older_files_do_not_count_beside_the_decoder(folder):
    write(folder, "tokenizer_config.json", BERT | {"added_tokens_decoder": {}})
    write(folder, "added_tokens.json", {"<User>": V})
    write(folder, "special_tokens_map.json", {"additional_special_tokens": ["<User>"]})
    assert "<User>" not in tokens(folder, "<User>")


@pytest.mark.parametrize(("place", "seen"), [(V + 1, V), (7, V)])
def test_an_id_that_is_another(folder, place, seen):
    write(folder, "added_tokens.json", {"<User>": place})
    assert f"'<User>' has the id {place} in added_tokens.json and {seen} in" in refusal(TokenizerError, folder)


def test_more_tokens_than_rows(folder):
    write(folder, "added_tokens.json", {"<a>": V, "<b>": V + 1, "<c>": V + 2})
    message = refusal(TokenizerError, folder)
    assert f"has id {V + 2}, but the model's vocabulary ends at {V + 1}: the token '<c>' was added" in message
    assert "resize_token_embeddings" in message
    assert message.endswith("or remove the token from added_tokens.json")


ONE, OTHER = "additional_special_tokens", "extra_special_tokens"


@pytest.mark.parametrize(
    ("config", "older"),
    [
        ({ONE: ["<a>"]}, {ONE: ["<b>"]}),
        ({ONE: ["<a>", "<b>"]}, {ONE: ["<b>", "<a>"]}),
        ({ONE: []}, {ONE: ["<a>"]}),
        ({ONE: ["<a>"]}, {ONE: None}),
        ({ONE: ["<a>"]}, {OTHER: ["<b>"]}),
        ({OTHER: ["<a>"]}, {OTHER: ["<b>", "<a>"]}),
    ],
)
def test_lists_that_contradict_each_other(folder, config, older):
    write(folder, "tokenizer_config.json", BERT | config)
    write(folder, "special_tokens_map.json", older)
    assert "make them the same" in refusal(ConfigError, folder)


@pytest.mark.parametrize(
    ("config", "older"), [({OTHER: {}}, {ONE: ["<User>"]}), ({ONE: ["<User>"]}, {ONE: [token("<User>")]})]
)
def test_lists_that_agree(folder, config, older):
    write(folder, "tokenizer_config.json", BERT | config)
    write(folder, "special_tokens_map.json", older)
    assert tokens(folder, "play<User>") == ["play", "<User>"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("added_tokens.json", {"<a>": "200"}),
        ("added_tokens.json", {"<a>": True}),
        ("added_tokens.json", {"": V}),
        ("tokenizer_config.json", {"added_tokens_decoder": []}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": token("<a>")}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(V): token("<a>", lstrip=1)}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(V): token("<a>", new=True)}}),
        ("tokenizer_config.json", {"additional_special_tokens": "<a>"}),
        ("tokenizer_config.json", {"additional_special_tokens": [3]}),
        ("tokenizer_config.json", {"mask_token": 3}),
    ],
)
def test_tokens_that_are_none(folder, name, value):
    write(folder, name, value)
    if value == {"added_tokens_decoder": []}:
        load(folder)
    else:
        assert "wanted" in refusal(ConfigError, folder)


def test_a_token_of_the_file_that_its_settings_leave_out(tmp_path):
    folder = write_model(tmp_path / "model", SPEC)
    edit_json(folder / "config.json", vocab_size=V + 2)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(token("<a>") | {"id": V})
    write(folder, "tokenizer.json", content)
    assert tokens(folder, "<a>") == ["<a>"]
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={str(V + 1): token("<b>")})
    assert "added_tokens not as a BertTokenizer has it" in refusal(UnsupportedModelError, folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert tokens(folder, "<a><b>") == ["<a>", "<b>"]  # the remedy


# --- special tokens of another name


def test_special_tokens_of_a_vocabulary(folder):
    write(folder, "tokenizer_config.json", BERT | {"cls_token": "play"})
    if (folder / "tokenizer.json").exists():
        assert "tokenizer_config.json says 'play' and '[SEP]'" in refusal(TokenizerError, folder)
    else:
        assert load(folder).encode(["music"]).ids[0][0] == PLAY


def test_an_unknown_token_of_another_name(folder):
    write(folder, "special_tokens_map.json", {"unk_token": "play"})
    if (folder / "tokenizer.json").exists():
        assert "unk_token of the model" in refusal(UnsupportedModelError, folder)
    else:
        assert tokens(folder, "東") == ["play"]


# --- classes


@pytest.mark.parametrize("name", ["BertJapaneseTokenizer", "BertweetTokenizer", "MyTokenizer", "RobertaTokenizer", 3])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_of_another_class(folder, name, file):
    write(folder, "tokenizer_config.json", {})
    edit_json(folder / file, tokenizer_class=name)
    message = refusal(UnsupportedModelError, folder)
    assert message.startswith(f"{folder / file}: tokenizer_class is {name!r}, wanted one of BertTokenizer")


@pytest.mark.parametrize("name", ["BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizerFast", None])
def test_classes_that_are_berts(folder, name):
    write(folder, "tokenizer_config.json", {"tokenizer_class": name})
    assert tokens(folder, "PLAY") == ["play"]


def test_a_file_that_the_class_needs(folder):
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    if (folder / "tokenizer.json").exists():
        assert tokens(folder, "PLAY") == ["play"]
    else:
        assert str(folder / "tokenizer.json") in refusal(ModelNotFoundError, folder)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": False,
                "handle_chinese_chars": True,
                "lowercase": True,
            }
        },
    ],
)
def test_a_bert_tokenizer_is_berts(whole, change):
    edit_json(whole / "tokenizer.json", **change)
    load(whole)
    edit_json(whole / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    assert "not as a BertTokenizer has it" in refusal(UnsupportedModelError, whole)


# --- programs


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


DOUBLE = replace({"String": "a"}, "aa")
CHARSMAP = base64.b64encode((0).to_bytes(4, "little") + b"x" * 1000 + b"\0").decode()
NORMALIZERS = {
    "doubled often": sequence(*[DOUBLE] * 40),
    "doubled five times": sequence(*[DOUBLE] * 5),
    "doubled in sequences of sequences": sequence(*[sequence(DOUBLE, DOUBLE)] * 4),
    "many in many": sequence(*[sequence(*[sequence(*[{"type": "NFC"}] * 20)] * 20)] * 20),
    "one that is long": replace({"String": "a"}, "b" * 17),
    "a pattern that matches everywhere": replace({"Regex": "a*"}, "b"),
    "nothing": replace({"String": ""}, "b"),
    "repeated repetitions": replace({"Regex": "(a+)+$"}, "b"),
    "one repetition behind another": replace({"Regex": "a+a+b"}, "b"),
    "a reference back": replace({"Regex": r"(a)\1"}, "b"),
    "a step that is not known": {"type": "Sorcery"},
    "no step": 3,
    "a long beginning": {"type": "Prepend", "prepend": "a" * 100},
    "an anchor": replace({"Regex": r"\B"}, "a"),
    "ends of lines": sequence(*[replace({"Regex": "^"}, "\n")] * 12),
    "nothing taken": replace({"Regex": r"a\K"}, "a"),
    "forms again and again": sequence(*[replace({"String": "l"}, "\ufb03"), {"type": "NFKD"}] * 4),
    "a long replacement of a character": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
}


@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS)
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "BertTokenizer"])
def test_normalisers_without_bound(whole, normalizer, kind):
    edit_json(whole / "tokenizer_config.json", tokenizer_class=kind)
    edit_json(whole / "tokenizer.json", normalizer=normalizer)
    assert str(whole / "tokenizer.json") in refusal(UnsupportedModelError, whole)


@pytest.mark.parametrize(
    "step",
    [
        DOUBLE,
        replace({"Regex": " {2,}"}, " "),
        replace({"Regex": r"\s+"}, " "),
        replace({"Regex": r"^\s"}, ""),
        replace({"Regex": r"[^\p{L}0-9]"}, " "),
        replace({"String": "``"}, '"'),
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Prepend", "prepend": "play "},
    ],
)
def test_normalisers_that_are_bounded(whole, step):
    edit_json(whole / "tokenizer.json", normalizer=sequence({"type": "NFKC"}, step, {"type": "Lowercase"}))
    assert tokens(whole, "music")[-1] == "music"


def template(*pieces, ids=(2,)):
    single = [{"Sequence": {"id": "A", "type_id": 0}} if piece == "A" else special(piece) for piece in pieces]
    tokens = {"[CLS]": {"id": "[CLS]", "ids": list(ids), "tokens": ["[CLS]"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}


def special(name):
    return {"SpecialToken": {"id": name, "type_id": 0}}


OTHERS = {
    "many special tokens": {"post_processor": template(*["[CLS]"] * 64, "A")},
    "a special token of many": {"post_processor": template("[CLS]", "A", ids=[2] * 5000)},
    "the text twice": {"post_processor": template("[CLS]", "A", "A")},
    "no text": {"post_processor": template("[CLS]")},
    "many splits": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 6}},
    "a split that goes back": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Removed", "invert": False}
    },
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_steps_without_bound(whole, change):
    edit_json(whole / "tokenizer.json", **change)
    assert str(whole / "tokenizer.json") in refusal(UnsupportedModelError, whole)


@pytest.mark.parametrize(
    ("key", "value", "seen"),
    [
        ("max_input_chars_per_word", 10**6, "max_input_chars_per_word is 1000000, wanted at most 1000"),
        ("continuing_subword_prefix", "#" * 65, "the length of continuing_subword_prefix is 65, wanted at most 64"),
    ],
)
def test_words_are_not_searched_without_bound(whole, key, value, seen):
    content = json.loads((whole / "tokenizer.json").read_text())
    content["model"][key] = value
    write(whole, "tokenizer.json", content)
    assert seen in refusal(UnsupportedModelError, whole)


def test_pieces_that_are_long(whole):
    pieces = [["[UNK]", 0.0], *([f"{i}" + "a" * 10**6, -1.0] for i in range(4))]
    edit_json(whole / "tokenizer.json", model={"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False})
    assert "the size of its pieces in bytes is 4000009, wanted at most 4000000" in refusal(UnsupportedModelError, whole)


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
def test_added_tokens_that_are_long(whole, place):
    long = [token(f"{i}" + "a" * 10**5) for i in range(10)]
    if place == "tokenizer.json":
        edit_json(whole / place, added_tokens=long)
    else:
        edit_json(whole / place, added_tokens_decoder={str(V + i): each for i, each in enumerate(long)})
    assert "the added tokens have 10000" in refusal(TokenizerError, whole)


def test_many_added_tokens(whole, monkeypatch):
    monkeypatch.setattr("minitrans.models.tokenization.program.MOST_ADDED_TOKENS", 10)
    edit_json(whole / "tokenizer.json", added_tokens=[token("x")] * 11)
    assert "wanted a list of at most 10" in refusal(TokenizerError, whole)


def test_token_types_of_a_template(whole):
    content = json.loads((whole / "tokenizer.json").read_text())
    content["post_processor"]["single"][1]["Sequence"]["type_id"] = 1
    write(whole, "tokenizer.json", content)
    assert "token types [0, 1], wanted 0 throughout" in refusal(TokenizerError, whole)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordPiece", "vocab": [["a", 0]]}},
        {"model": {"type": "Later", "vocab": {}}},
        {"normalizer": {"type": "Later"}},
        {"post_processor": {"type": "Later"}},
    ],
)
def test_a_tokenizer_of_a_newer_library(whole, change):
    edit_json(whole / "tokenizer.json", **change)
    with pytest.raises((TokenizerError, UnsupportedModelError), match="pip install --upgrade tokenizers") as caught:
        load(whole)
    assert f"installed here ({tokenizers.__version__})" in str(caught.value)
