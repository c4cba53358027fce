"""The web server's own folder: uploads until they are taken, and files that readers take along."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Collection
from pathlib import Path


def new_folder(web: Path) -> Path:
    """A folder whose files the web server gives to whoever knows its name, which nobody can guess."""
    folder = web / f"made-{secrets.token_hex(16)}"
    folder.mkdir(parents=True)
    return folder


def sweep(web: Path, kept: Collection[Path], age_s: float) -> None:
    """Removes what nobody changed for `age_s` seconds: uploads that were cut off or not used, answers to programs.

    Args:
        web: the folder.
        kept: entries of it that stay.
        age_s: from which age the others go.
    """
    for entry in web.iterdir():
        if entry in kept:
            continue
        try:
            changed = max(path.stat().st_mtime for path in (entry, *entry.rglob("*")))
        except FileNotFoundError:  # taken this moment
            continue
        if time.time() - changed > age_s:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
