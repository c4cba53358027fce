"""Where an engine keeps what it compiled: a folder for each model, precision, version, device and setting.

OpenVINO's own cache tells models apart, but not precisions and not thread counts (2026.4.1 loads what was compiled
for two threads when asked for one), so each of them gets a folder of its own. Any of it may be deleted any time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from segcore.bundle import hash_file
from segcore.errors import InputError


def cache_folder(
    cache: Path,
    model_path: Path,
    *,
    precision: str,
    engine: str,
    device: str,
    settings: dict[str, Any],
) -> Path:
    """Makes the folder for one model under exactly these conditions, or finds it.

    Args:
        cache: of all models.
        model_path: the model's file; the weights beside it (.bin) count too.
        precision: fp32, fp16 or int8.
        engine: its name and full version.
        device: what it compiles for.
        settings: that it compiles with.

    Raises:
        InputError: `cache` is a file.
    """
    files = [path for path in (model_path, model_path.with_suffix(".bin")) if path.is_file()]
    what = {
        "model": [hash_file(path).sha256 for path in files],
        "precision": precision,
        "engine": engine,
        "device": device,
        "settings": settings,
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
    try:
        (cache / key).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--cache {cache}: must be a folder, is a file; name another") from None
    return cache / key
