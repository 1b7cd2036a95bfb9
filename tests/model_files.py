"""Files of a model folder, whatever is in them, and their digests."""

import hashlib
from pathlib import Path

DIGEST = "0" * 64  # of nothing


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files, named from the folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
