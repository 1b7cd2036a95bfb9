"""Makes encoder.safetensors: what transformers' BertModel gives in float64 for the bundled model's weights.

It shares no code with the package: int8 weights times their scales go into a BertModel, the tokenizer is that of
transformers, and the mean is taken here. Run it whenever the bundled weights change:

    pip install torch transformers safetensors && python examples/stored/make.py
"""

import hashlib
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "weights" / "all-MiniLM-L6-v2-int8"
TEXTS = ("where is the parcel that I ordered on Monday morning?", "my order has not arrived", "play some jazz")
COLUMNS = 8  # of the hidden states, to keep the file small


def load_bert() -> transformers.BertModel:
    """BertModel with the bundled weights: each int8 row times its scale, in float32, then all of it in float64."""
    stored = load_file(MODEL / "model.safetensors")
    weights = {
        name: tensor.float() * stored[f"{name}_scale"][:, None] if f"{name}_scale" in stored else tensor
        for name, tensor in stored.items()
        if not name.endswith("_scale")
    }
    settings = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    del settings["quantization_config"]  # the weights are plain numbers now
    config = transformers.BertConfig(**settings, attn_implementation="eager")
    bert = transformers.BertModel(config, add_pooling_layer=False)
    missing, unexpected = bert.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all("position_ids" in name or "token_type_ids" in name for name in missing), missing
    return bert.double().eval()


def main() -> None:
    """Run the texts, one at a time, and write the file."""
    bert = load_bert()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
    tensors = {}
    for number, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])  # [1, T]
        with torch.no_grad():
            states = bert(ids, output_hidden_states=True).hidden_states  # L + 1 of [1, T, H]
        tensors[f"ids.{number}"] = ids[0].int()
        tensors[f"hidden.{number}"] = torch.stack([state[0, :, :COLUMNS] for state in states]).float()  # [L + 1, T, 8]
        tensors[f"vector.{number}"] = torch.nn.functional.normalize(states[-1][0].mean(dim=0), dim=0).float()  # [H]
    record = {
        "texts": TEXTS,
        "weights_sha256": hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest(),
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float64",
    }
    metadata = {"record": json.dumps(record)}  # one entry: safetensors writes several in any order
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    new = HERE / "encoder.safetensors.new"
    new.write_bytes(save(tensors, metadata))
    new.replace(HERE / "encoder.safetensors")


if __name__ == "__main__":
    main()
