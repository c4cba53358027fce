"""Real files that travel in the wheels of pydicom and nibabel: what becomes of each is written down in real_files.json.

"read" holds slices, height, width, type and a hash of the values, which were compared once with pydicom's and nibabel's
own (pixel_array through the modality's rescale, MONOCHROME1 turned over; get_fdata on the scan's grid): all were equal.
"refused" holds the words. A change of either shows here; `python tests/test_real_files.py` writes the list anew.
"""

import hashlib
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from segcore.errors import InputError

LIST = Path(__file__).with_name("real_files.json")


def files() -> dict[str, Path]:
    """Name → path of every file beside the libraries' own tests that is no text or code."""
    import nibabel
    import pydicom

    folders = {
        "pydicom": Path(pydicom.__file__).parent / "data",
        "nibabel": Path(nibabel.__file__).parent / "tests" / "data",
    }
    return {
        f"{library}/{path.relative_to(folder).as_posix()}": path
        for library, folder in folders.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc", ".txt", ".json", ".rst", ".md")
    }


def outcome(path: Path) -> dict[str, object]:
    """What `read_scan` makes of a file, its every slice decoded and shown."""
    from segcore.medical.read import read_scan

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scan = read_scan(path)
            values = np.ascontiguousarray(np.stack([scan.values(i) for i in range(scan.slices)]))
            shown = [scan.display(i) for i in range(scan.slices)]
    except InputError as error:
        return {"refused": str(error).replace(str(path), "FILE")}
    assert {(one.dtype.name, one.shape) for one in shown} == {("uint8", values.shape[1:])}
    digest = hashlib.sha256(values.tobytes()).hexdigest()[:16]
    return {"read": [*values.shape, values.dtype.name, digest]}


def test_every_real_file_is_read_as_it_was_or_refused_in_the_same_words():
    pytest.importorskip("pydicom")
    pytest.importorskip("nibabel")
    known = json.loads(LIST.read_text())
    found = {name: outcome(path) for name, path in files().items()}
    assert len(known) > 200
    changed = {name: (known[name], now) for name, now in found.items() if known.get(name, now) != now}
    assert not changed
    assert sum("read" in one for one in known.values()) > 85


if __name__ == "__main__":
    table = {name: outcome(path) for name, path in files().items()}
    rows = (f"{json.dumps(name)}: {json.dumps(one, ensure_ascii=False)}" for name, one in table.items())
    LIST.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    read = sum("read" in one for one in table.values())
    print(f"{len(table)} files, {read} read, {len(table) - read} refused", file=sys.stderr)
