"""Model folders of every kind that was met: what is not honoured is refused by name, and the audit says so."""

import odd_folders
import pytest

from minitrans.audit.comparison import PROBES, probe_texts
from minitrans.audit.folder import audit_folder, declared_tokens
from minitrans.audit.signoff import sign_off
from minitrans.sentences.sentence_encoder import SentenceEncoder

HONOURED = [kind for kind, (_, words) in odd_folders.KINDS.items() if words is None]


def failures(checks):
    """Name of a failed check -> its lines."""
    return {check.name: "\n".join(check.detail) for check in checks if check.verdict == "FAIL"}


@pytest.mark.parametrize("kind", odd_folders.KINDS)
def test_every_kind_is_honoured_or_refused_by_name(tmp_path, kind):
    found = failures(audit_folder(odd_folders.make(tmp_path / "m", kind)).checks)
    words = odd_folders.KINDS[kind][1]
    if words is None:
        assert found == {}
    else:
        assert words in "\n".join(found.values())


@pytest.mark.transformers
@pytest.mark.parametrize("kind", HONOURED)
def test_what_is_honoured_agrees_with_sentence_transformers(tmp_path, kind):
    pytest.importorskip("sentence_transformers")
    audit = sign_off(odd_folders.make(tmp_path / "m", kind), against="sentence-transformers")
    assert failures(audit.checks) == {}
    assert [check.group for check in audit.checks].count("sentence-transformers") >= 5


def test_declared_tokens_are_those_of_every_file(tmp_path):
    folder = odd_folders.make(tmp_path / "m", "added_tokens_decoder")
    odd_folders.write(folder / "added_tokens.json", {"<more>": 7})
    odd_folders.write(folder / "special_tokens_map.json", {"pad_token": {"content": "[PAD]"}, "own_token": "<own>"})
    odd_folders.edit(folder, "tokenizer_config.json", extra_special_tokens={"user_token": "<extra>"})
    declared = declared_tokens(folder)
    assert declared["[CLS]"] == "tokenizer.json"
    assert declared["<user>"] == declared["<extra>"] == "tokenizer_config.json"
    assert declared["<more>"] == "added_tokens.json"
    assert declared["<own>"] == "special_tokens_map.json"


def test_a_declared_token_that_falls_to_pieces_fails(plain, monkeypatch):
    monkeypatch.setattr("minitrans.audit.folder.declared_tokens", lambda folder: {"[SEP]": "a", "<gone>": "b.json"})
    found = failures(audit_folder(plain).checks)
    assert found.keys() == {"added tokens"}
    assert "'<gone>' of b.json becomes [" in found["added tokens"]


def test_probes_reach_the_limit_and_hold_every_token(plain):
    tokenizer = SentenceEncoder(plain).tokenizer
    texts = probe_texts(["[SEP]", "<odd>"], tokenizer)
    assert {*PROBES, "[SEP]", "<odd>"} <= {*texts}
    assert any("<odd><odd>" in text and "<ODD>" in text for text in texts)
    lengths = {*tokenizer.encode(texts).lengths}
    limit = tokenizer.max_seq_length
    assert {2, limit - 1, limit, limit + 1} <= lengths
    assert len(probe_texts([f"<{i}>" for i in range(1000)], tokenizer)) < 200


def test_the_limits_of_the_files_are_shown(tmp_path):
    folder = odd_folders.make(tmp_path / "m", "a limit of 16 tokens")
    (check,) = [check for check in audit_folder(folder).checks if check.name == "limits"]
    assert check.measured == "up to 16 tokens a text"
    assert check.detail == ("64 positions, max_seq_length 16, model_max_length 64",)


def test_a_tokenizer_that_ignores_its_limit_fails(plain, monkeypatch):
    monkeypatch.setattr("minitrans.models.tokenization.tokenizer.Tokenizer._cut", lambda self, ids, *_: ids)
    found = failures(audit_folder(plain).checks)
    assert found.keys() == {"limits"}
    assert "a text of 63 words and 2 special tokens becomes 65 of 65 ids" in found["limits"]
