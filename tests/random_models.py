"""Small BERT models with random weights, written as the folders that sentence-transformers publishes.

Needs NumPy and tokenizers only. The same spec gives the same weight file, byte for byte, on every machine: values are
uniform draws of PCG64, which NumPy keeps stable, and the safetensors file is written by hand.
"""

import hashlib
import json
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PUNCTUATION = ".,?!'-:;()/&$%"
SUFFIXES = ("##ing", "##ed", "##er", "##ly", "##tion")
_WORDS = """
the to my is of and in what it for on you me do can how with not this have that card please are was be from will why
when where your an at get need want bank account money transfer payment pay new time day long there did does still
been has but or if so no yes they we he she as by about after before more much many some set alarm play music
weather today tomorrow call send message email show tell find book flight hotel order cancel change lost stolen
phone number address pin rate exchange fee charge cash machine work help app open close turn light off up
"""
WORDS = _WORDS.split()

FLOAT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class ModelSpec:
    """All that decides a random model: its shapes, how its folder is laid out, how its weights are stored."""

    name: str
    vocab_size: int = 200
    hidden_size: int = 32
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 64
    max_position_embeddings: int = 64
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    pooling: str = "mean"  # mean, cls, max, mean_sqrt_len_tokens, weightedmean, lasttoken
    pooling_style: str = "legacy"  # legacy: pooling_mode_* booleans; string: one `pooling_mode` key
    normalize: bool = True
    prefix: str = ""  # "bert.": a checkpoint saved with a head on top
    dtype: str = "float32"  # of the stored weights: float32, float16, bfloat16
    shards: int = 1
    max_seq_length: int | None = None
    with_pooler: bool = False
    with_position_ids: bool = False  # the int64 buffer found in files of older versions of transformers
    seed: int = 0


SPECS = (
    ModelSpec("plain", seed=1),  # head_dim 8
    ModelSpec("odd_sizes", hidden_size=24, num_attention_heads=3, intermediate_size=40, layer_norm_eps=1e-5, seed=2),
    ModelSpec(
        "head_dim_16", hidden_size=48, num_attention_heads=3, intermediate_size=80, hidden_act="gelu_new", seed=3
    ),
    ModelSpec("head_dim_64", hidden_size=128, num_attention_heads=2, intermediate_size=96, num_hidden_layers=2, seed=4),
    ModelSpec("one_layer", num_hidden_layers=1, hidden_act="relu", type_vocab_size=1, normalize=False, seed=5),
    ModelSpec("twelve_layers", num_hidden_layers=12, max_seq_length=48, with_pooler=True, seed=6),
    ModelSpec("bert_prefix", prefix="bert.", with_pooler=True, with_position_ids=True, seed=7),
    ModelSpec("float16", dtype="float16", hidden_act="relu", seed=8),
    ModelSpec("bfloat16", dtype="bfloat16", pooling_style="string", seed=9),
    ModelSpec("sharded", shards=3, num_hidden_layers=4, hidden_act="gelu_new", seed=10),
    ModelSpec("cls_pooling", pooling="cls", pooling_style="string", num_attention_heads=2, seed=11),  # head_dim 16
)

# The shapes of families of the hub, with a reduced vocabulary. Up to 90 MB each: built when a test needs one.
_SMALL = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "max_position_embeddings": 512}
FAMILY_SPECS = (
    ModelSpec("paraphrase-MiniLM-L3", num_hidden_layers=3, max_seq_length=128, normalize=False, seed=21, **_SMALL),
    ModelSpec("MiniLM-L6", num_hidden_layers=6, max_seq_length=256, with_position_ids=True, seed=22, **_SMALL),
    ModelSpec("MiniLM-L12", num_hidden_layers=12, max_seq_length=128, with_position_ids=True, seed=23, **_SMALL),
    ModelSpec("bge-small-en", num_hidden_layers=12, max_seq_length=512, pooling="cls", seed=24, **_SMALL),
    ModelSpec("e5-small", num_hidden_layers=12, max_seq_length=512, with_pooler=True, seed=25, **_SMALL),
    ModelSpec("gte-small", num_hidden_layers=12, max_seq_length=512, dtype="float16", seed=26, **_SMALL),
)


def find_spec(name: str) -> ModelSpec:
    """The spec of that name in SPECS or FAMILY_SPECS."""
    return next(spec for spec in (*SPECS, *FAMILY_SPECS) if spec.name == name)


def texts() -> list[str]:
    """Twelve texts of 4 to 34 tokens with a vocabulary of 200, [CLS] and [SEP] included."""
    return [
        "help",
        "Why is my card not here yet?",
        "set an alarm for 7:30 tomorrow",
        "I lost my phone and I need to close my account today, what can you do about it?",
        "play music",
        "What is the exchange rate for cash, and is there a fee or a charge on my payment?",
        "café 東京 ☂ naïve",
        "do not cancel the flight (order 4821) but change the hotel",
        "Tell me how much money was on my account before the transfer to the bank, and send a message with the number "
        "of the card that was stolen, please.",
        "turn off the light",
        "zyx!",
        "Can they still call me when my new phone is not working?",
    ]


def vocabulary(spec: ModelSpec) -> list[str]:
    """The WordPiece vocabulary, token i at index i."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL_TOKENS, *characters, *("##" + c for c in characters), *PUNCTUATION, *SUFFIXES, *WORDS]
    pieces += [f"[unused{i}]" for i in range(spec.vocab_size - len(pieces))]
    if spec.vocab_size < len(pieces) - len(WORDS):
        raise ValueError(f"vocab_size={spec.vocab_size}: at least {len(pieces) - len(WORDS)} for the single characters")
    return pieces[: spec.vocab_size]


def write_tensors(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Name -> float32 values as the stored dtype holds them, named as in the file (`spec.prefix` included)."""
    random = np.random.Generator(np.random.PCG64(spec.seed))
    H, F, V = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
        values = mean + (2.0 * random.random(shape) - 1.0) * np.sqrt(3.0) * std
        tensors[name] = _through(values.astype(np.float32), spec.dtype)

    def add_linear(name: str, out_features: int, in_features: int, gain: float = 1.0) -> None:
        add(f"{name}.weight", (out_features, in_features), gain / np.sqrt(in_features))
        add(f"{name}.bias", (out_features,), 0.1)

    def add_layer_norm(name: str) -> None:
        add(f"{name}.weight", (H,), 0.2, mean=1.0)
        add(f"{name}.bias", (H,), 0.1)

    embeddings = f"{spec.prefix}embeddings"
    add(f"{embeddings}.word_embeddings.weight", (V, H), 1.0)
    add(f"{embeddings}.position_embeddings.weight", (spec.max_position_embeddings, H), 0.5)
    add(f"{embeddings}.token_type_embeddings.weight", (spec.type_vocab_size, H), 0.2)
    add_layer_norm(f"{embeddings}.LayerNorm")
    for layer in range(spec.num_hidden_layers):
        block = f"{spec.prefix}encoder.layer.{layer}"
        add_linear(f"{block}.attention.self.query", H, H, gain=1.4)  # attention logits of std 2: far from uniform
        add_linear(f"{block}.attention.self.key", H, H, gain=1.4)
        add_linear(f"{block}.attention.self.value", H, H)
        add_linear(f"{block}.attention.output.dense", H, H)
        add_layer_norm(f"{block}.attention.output.LayerNorm")
        add_linear(f"{block}.intermediate.dense", F, H)
        add_linear(f"{block}.output.dense", H, F)
        add_layer_norm(f"{block}.output.LayerNorm")
    if spec.with_pooler:
        add_linear(f"{spec.prefix}pooler.dense", H, H)
    if spec.prefix:
        add("cls.predictions.bias", (V,), 0.1)  # what is left of the head; a reader has to pass over it
    if spec.with_position_ids:
        tensors[f"{embeddings}.position_ids"] = np.arange(spec.max_position_embeddings, dtype=np.int64)[None]
    return tensors


def write_safetensors(
    path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None, dtype: str = "float32"
) -> None:
    """Write a safetensors file; float32 arrays are stored as `dtype`. Equal input gives equal bytes."""
    header: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    chunks, start = [], 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):  # wide types first: aligned
        values, kind = _stored(tensors[name], dtype)
        chunks.append(np.ascontiguousarray(values).tobytes())
        end = start + len(chunks[-1])
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def write_weights(folder: Path, tensors: dict[str, np.ndarray], dtype: str = "float32", shards: int = 1) -> None:
    """Write model.safetensors, or `shards` files and their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype=dtype)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = {name: tensors[name] for name in names[shard::shards]}
        file_name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file_name, part, dtype=dtype)
        weight_map.update(dict.fromkeys(part, file_name))
    total = sum(_stored(values, dtype)[0].nbytes for values in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def weights_sha256(folder: Path) -> str:
    """The sha256 of the bytes of the weight files, shards in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_model(folder: Path, spec: ModelSpec, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """Write the model folder of `spec` (with `tensors` in place of its own, if given) and return the folder."""
    folder = Path(folder)
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    write_weights(folder, write_tensors(spec) if tensors is None else tensors, spec.dtype, spec.shards)
    _write_json(folder / "config.json", _config(spec))
    tokens = vocabulary(spec)
    _tokenizer(tokens).save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(spec))
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": spec.max_seq_length, "do_lower_case": False})
    names = ["Transformer", "Pooling"] + ["Normalize"] * spec.normalize
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "1_Pooling" / "config.json", _pooling_config(spec))
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Replace some keys of the JSON object that a file holds."""
    _write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def _config(spec: ModelSpec) -> dict[str, object]:
    return {
        "architectures": ["BertForMaskedLM" if spec.prefix else "BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "hidden_act": spec.hidden_act,
        "hidden_dropout_prob": 0.1,
        "hidden_size": spec.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": spec.intermediate_size,
        "layer_norm_eps": spec.layer_norm_eps,
        "max_position_embeddings": spec.max_position_embeddings,
        "model_type": "bert",
        "num_attention_heads": spec.num_attention_heads,
        "num_hidden_layers": spec.num_hidden_layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": spec.dtype,
        "transformers_version": "4.57.0",
        "type_vocab_size": spec.type_vocab_size,
        "use_cache": True,
        "vocab_size": spec.vocab_size,
    }


def _tokenizer(tokens: list[str]) -> Tokenizer:
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _tokenizer_config(spec: ModelSpec) -> dict[str, object]:
    return {
        "cls_token": "[CLS]",
        "do_lower_case": True,
        "mask_token": "[MASK]",
        "model_max_length": spec.max_position_embeddings,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
    }


def _pooling_config(spec: ModelSpec) -> dict[str, object]:
    if spec.pooling_style == "string":
        return {"embedding_dimension": spec.hidden_size, "pooling_mode": spec.pooling, "include_prompt": True}
    keys = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "max": "pooling_mode_max_tokens",
        "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
        "weightedmean": "pooling_mode_weightedmean_tokens",
        "lasttoken": "pooling_mode_lasttoken",
    }
    modes = {key: mode == spec.pooling for mode, key in keys.items()}
    return {"word_embedding_dimension": spec.hidden_size, **modes}


def _bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Float32 -> the 16 upper bits, rounded to nearest, ties to even (finite values only)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _through(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values after a round trip through `dtype`."""
    if dtype == "bfloat16":
        return (_bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
    return values.astype(dtype).astype(np.float32)


def _stored(values: np.ndarray, dtype: str) -> tuple[np.ndarray, str]:
    """The array whose bytes go to the file, and its safetensors dtype."""
    if values.dtype != np.float32:
        return values, {"i": "I", "u": "U", "f": "F"}[values.dtype.kind] + str(8 * values.dtype.itemsize)
    if dtype == "bfloat16":
        return _bfloat16_bits(values), FLOAT_NAMES[dtype]
    return values.astype(dtype), FLOAT_NAMES[dtype]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
