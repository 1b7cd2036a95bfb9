"""Live comparison with transformers: every layer, the kept rows and the pooled vectors, on real texts."""

import csv
import importlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import random_models
from tokenizers import Tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
oracle = importlib.import_module("golden.oracle")

pytestmark = pytest.mark.transformers

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 256
NUM_TEXTS = 200

HIDDEN_BAR = 1e-4  # largest difference of any value of a hidden state
UNIT_BAR = 2e-6  # largest difference of any value of a pooled vector of length 1
NEAR_TIE_SHARE = 0.02  # of the texts may have scores at a cut that only rounding tells apart

POLICIES = {
    "attention": {"min_tokens": 8, "quantile": 0.3, "layer": 2},
    "attention, early and hard": {"min_tokens": 3, "quantile": 0.7, "layer": 0},
    "attention value": {"min_tokens": 6, "quantile": 0.5, "layer": 1, "score": "attention_value"},
    "merge": {"min_tokens": 6, "quantile": 0.5, "layer": 1, "reduce": "merge"},
    "protect special": {"min_tokens": 4, "quantile": 0.5, "layer": 5, "protect_special": True},
    "two stages": {"min_tokens": 6, "stages": [[0, 0.2], [3, 0.4]]},
    "two stages of merging": {"min_tokens": 6, "stages": [[1, 0.3], [2, 0.3]], "reduce": "merge"},
    "first": {"min_tokens": 8, "quantile": 0.4, "layer": 1, "score": "first"},
}


@dataclass(frozen=True)
class Forward:
    """What the package computed for a batch."""

    states: list[np.ndarray]  # L+1 arrays [T_l, H]: the embeddings, then each layer
    rows: np.ndarray  # [T'] the rows of the batch that are left
    offsets: np.ndarray  # [B+1]


def make_encoder(folder: Path):
    """The package's encoder on its readable backend."""
    from minitrans import SentenceEncoder

    return SentenceEncoder(folder, backend="reference", threads=1)


def make_policy(policy: dict | None):
    """The package's policy from the oracle's dict."""
    from minitrans import PruningPolicy

    return None if policy is None else PruningPolicy(**policy)


def run_layers(encoder, batch_ids: list[list[int]], policy: dict | None) -> Forward:
    """The package's layer loop, observed after the embeddings and after every layer."""
    from minitrans.encoder.forward import forward
    from minitrans.encoder.packing import pack

    states: list[np.ndarray] = []

    def observe(layer: int, state, selection) -> None:
        assert layer == len(states) - 1
        states.append(state.hidden.copy())  # the backend may reuse its memory

    with encoder.blocks.session():
        result = forward(encoder.blocks, pack(batch_ids), make_policy(policy), observer=observe)
    np.testing.assert_array_equal(result.hidden, states[-1])
    return Forward(states, np.asarray(result.rows), np.asarray(result.offsets))


def long_texts() -> list[str]:
    """Raw material: the intent data sets if they are there, else sentences put together by hand."""
    folder = Path(os.environ.get("MINITRANS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    texts: list[str] = []
    for name, step in (("banking77", 30), ("bbc", 4)):
        path = folder / name / "test.csv"
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                texts += [row["text"] for row in csv.DictReader(file)][::step]
    if texts:
        return texts
    random = np.random.Generator(np.random.PCG64(0))
    sentences = [*random_models.texts(), "Déjà vu: the naïve crème brûlée costs 12.50 €!", "O'Neill re-sent it."]
    counts = [1] * 40 + [2, 3, 4] * 30 + [40] * NUM_TEXTS
    return [" ".join(sentences[i] for i in random.integers(len(sentences), size=count)) for count in counts]


def cut_texts(tokenizer: Tokenizer) -> list[str]:
    """NUM_TEXTS texts; half as they come, half cut so that lengths spread up to MAX_TOKENS."""
    texts = long_texts()
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    short = [text for text, length in zip(texts, lengths, strict=True) if length <= 64][: NUM_TEXTS // 2]
    chosen = list(short)
    by_length = sorted(range(len(texts)), key=lambda i: -lengths[i])
    for i, wanted in enumerate(np.linspace(1, MAX_TOKENS - 2, NUM_TEXTS - len(short)).astype(int)):
        text = texts[by_length[i % (len(texts) // 2)]]
        encoding = tokenizer.encode(text)
        last = min(wanted, len(encoding.ids) - 2)  # [CLS] is token 0
        cut = text[: encoding.offsets[last][1]]
        while len(tokenizer.encode(cut).ids) > MAX_TOKENS:  # half a word may take more tokens than in the whole word
            cut = cut[: cut.rstrip().rfind(" ")]
        chosen.append(cut)
    return chosen


def load_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def compare(encoder, folder: Path, batch_ids: list[list[int]], policy: dict | None) -> tuple[list[dict], list[int]]:
    """Compare all layers and the kept rows; return the oracle's runs and the texts that were comparable."""
    ours = run_layers(encoder, batch_ids, policy)
    theirs = [oracle.run(folder, ids, policy) for ids in batch_ids]
    clear = [b for b, run in enumerate(theirs) if not run["near_tie"]]
    starts = np.cumsum([0, *map(len, batch_ids)])

    assert len(ours.states) == len(theirs[0]["hidden"])
    assert ours.offsets.tolist() == np.cumsum([0, *(len(run["rows"]) for run in theirs)]).tolist()
    for b in clear:
        rows = ours.rows[ours.offsets[b] : ours.offsets[b + 1]] - starts[b]
        np.testing.assert_array_equal(rows, theirs[b]["rows"], err_msg=f"kept rows of text {b}")
    for layer, state in enumerate(ours.states):  # [T_l, H]
        bounds = np.cumsum([0, *(len(run["hidden"][layer]) for run in theirs)])  # [B+1] rows left at this layer
        assert state.shape == (bounds[-1], theirs[0]["hidden"][layer].shape[1])
        for b in clear:
            difference = np.abs(state[bounds[b] : bounds[b + 1]] - theirs[b]["hidden"][layer]).max()
            assert difference <= HIDDEN_BAR, f"text {b} after layer {layer - 1}: {difference:.1e}"
    return theirs, clear


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """On texts this short torch's threads mostly wait for each other, on a busy machine for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def minilm(float32_folder: Path) -> Path:
    return float32_folder


@pytest.fixture(scope="module")
def minilm_encoder(minilm: Path):
    return make_encoder(minilm)


@pytest.fixture(scope="module")
def real_texts(minilm: Path) -> tuple[list[str], list[list[int]]]:
    tokenizer = load_tokenizer(minilm)
    texts = cut_texts(tokenizer)
    return texts, [tokenizer.encode(text).ids for text in texts]


@pytest.mark.float32
def test_real_texts_spread_over_lengths(real_texts):
    lengths = [len(ids) for ids in real_texts[1]]
    assert len(lengths) == NUM_TEXTS
    assert min(lengths) <= 4
    assert MAX_TOKENS - 16 <= max(lengths) <= MAX_TOKENS
    assert len(set(lengths)) >= 80


@pytest.mark.float32
@pytest.mark.parametrize("policy", [None, *POLICIES.values()], ids=["unpruned", *POLICIES])
def test_real_texts(minilm, minilm_encoder, real_texts, policy):
    texts, batch_ids = real_texts
    theirs, clear = compare(minilm_encoder, minilm, batch_ids, policy)
    assert len(clear) >= (1 - NEAR_TIE_SHARE) * len(texts)
    units = minilm_encoder.encode(texts, pruning=make_policy(policy), normalize_embeddings=True)  # [B, H]
    for b in clear:
        difference = np.abs(units[b] - theirs[b]["unit"]).max()
        assert difference <= UNIT_BAR, f"text {b}: {difference:.1e}"


@pytest.mark.float32
@pytest.mark.parametrize("policy", [None, POLICIES["attention, early and hard"]], ids=["unpruned", "pruned"])
def test_one_and_two_tokens(minilm, minilm_encoder, policy):
    compare(minilm_encoder, minilm, [[101], [101, 102], [7592], [101, 7592, 102]], policy)


@pytest.fixture
def model_folder():
    with tempfile.TemporaryDirectory() as folder:  # up to 90 MB, so not among the folders that pytest keeps
        yield Path(folder)


@pytest.mark.parametrize("spec", [*random_models.SPECS, *random_models.FAMILY_SPECS], ids=lambda spec: spec.name)
def test_random_models(model_folder, spec):
    random_models.write_model(model_folder, spec)
    tokenizer = load_tokenizer(model_folder)
    texts = random_models.texts()
    encoder = make_encoder(model_folder)
    theirs, _ = compare(encoder, model_folder, [tokenizer.encode(text).ids for text in texts], None)
    units = encoder.encode(texts, normalize_embeddings=True)  # [B, H]
    np.testing.assert_allclose(units, [run["unit"] for run in theirs], rtol=0, atol=UNIT_BAR)
    wanted = [run["unit" if spec.normalize else "pooled"] for run in theirs]
    np.testing.assert_allclose(encoder.encode(texts), wanted, rtol=0, atol=HIDDEN_BAR)
