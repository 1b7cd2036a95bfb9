"""The peers' model: transformers' BertModel with mean pooling and unit length, run by torch or exported to ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from numpy.typing import NDArray
from transformers import BertModel

from minitrans.files import atomic_file


class PooledBert(torch.nn.Module):
    """Token ids [B, n] and attention mask [B, n] -> embeddings [B, H]."""

    def __init__(self, folder: Path, attention: str) -> None:
        super().__init__()
        transformers.logging.set_verbosity_error()  # it reports that the unused pooler was not loaded
        transformers.logging.disable_progress_bar()
        self.bert = BertModel.from_pretrained(
            folder, add_pooling_layer=False, attn_implementation=attention, dtype=torch.float32, local_files_only=True
        ).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, n, H]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # [B, n, 1]
        return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1))  # [B, H]


class TorchRun:
    """One padded batch through torch with so many threads."""

    def __init__(self, model: PooledBert, threads: int) -> None:
        self.model, self.threads = model, threads

    def __call__(self, ids: NDArray, mask: NDArray) -> NDArray:
        torch.set_num_threads(self.threads)  # belongs to the thread that calls, and so do its workers
        with torch.inference_mode():
            return self.model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()


def export(folder: Path, file: Path) -> None:
    """Write the ONNX graph, with any number of texts and tokens.

    Eager attention through TorchScript gives the graph whose attention, embedding and layer norm the optimizer of ONNX
    Runtime recognises; the newer exporter and sdpa give ones of which it fuses next to nothing.
    """
    model = PooledBert(folder, "eager")
    ids = torch.ones(2, 16, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    axes = {0: "texts", 1: "tokens"}
    with atomic_file(file) as temporary, torch.no_grad():
        torch.onnx.export(
            model,
            (ids, mask),
            str(temporary),
            input_names=["input_ids", "attention_mask"],
            output_names=["embeddings"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "embeddings": {0: "texts"}},
            opset_version=17,
            dynamo=False,
        )
