"""Feeds the readers damaged bytes: what they raise, how long they take, and whether their process survives it.

`make test` gives each target a few dozen inputs, the same ones every time (tests/test_fuzz_readers.py). `make fuzz`
gives them thousands, in child processes, and prints a table:

    python tests/fuzz.py [--inputs 300000] [--only NAME] [--first 0]

An input follows from its target's name and its number alone, so that `--only NAME --first N --inputs 1` makes it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":  # as a script, beside its targets
    sys.path[:0] = [str(HERE.parent), str(HERE)]

from segcore.errors import GateError, InputError  # noqa: E402
from segcore.words import printable  # noqa: E402

LONGEST_MESSAGE = 500
LIMIT_S, WAIT_S = 20.0, 300.0
"""Processor time of one input, and time on the clock of a hundred, after which a child that waits is ended. The slowest that are read, pictures of 100 megapixels, take a second or two."""
MEMORY_BYTES = 12 << 30
"""Address space of a child: what asks for more gets a MemoryError, and the machine stays usable."""

_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63,
    2**64 - 1,
)
_TOKENS = (
    b"\0", b"\n", b"\r", b'"', b"'", b",", b";", b":", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"!!python/object:os.system ",
    b"2001-02-31", b"2001-01-01 00:00:00", b"!!timestamp x", b"!!binary =", b"? ", b"1e999", b".nan", b"-.inf", b"null",
    b"true", b"NaN", b"Infinity", b"-1", b"0x7f", b"1_0", b"\xed\xa0\x80", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b[31m",
    "ü\u2028\u202e".encode(), b"../../etc/passwd", b"/dev/zero", b"{" * 300, b"[" * 3000, b"9" * 5000, b"- " * 500,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2_000_000, 2**31, 2**63, 2**64, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "a" * 3000, "\0", "\ud800", "a\nb\x1b[2J", "../x", "/etc/passwd", [], {}, [[]], [None], {"": ""}, ["x"] * 3,
    [0] * 300, [1, "a", None], {"a": {"b": {}}},
)  # fmt: skip


def mutate(seeds: tuple[bytes, ...], random: Random) -> bytes:
    """One of the seeds with one to four things done to it; of JSON mostly to a value of it.

    Args:
        seeds: valid files, or what once was a fault.
        random: Python's, or hypothesis' own, which can then make a failing input simpler.
    """
    data = random.choice(seeds)
    if data[:1] in (b"{", b"[") and random.random() < 0.7:
        edited = _edit_json(data, random)
        if edited is not None and random.random() < 0.8:
            return edited
        data = edited or data
    for _ in range(random.randint(1, 4)):
        data = _EDITS[random.randint(0, len(_EDITS) - 1)](data, seeds, random)
    return data


def _place(data: bytes, random: Random) -> int:
    """Anywhere, but one time in two among the first bytes, where headers are."""
    last = max(0, len(data) - 1)
    return random.randint(0, min(last, 300) if random.random() < 0.5 else last)


def _flip_bits(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    found = bytearray(data)
    for _ in range(random.randint(1, 6)):
        if found:
            found[_place(data, random)] ^= 1 << random.randint(0, 7)
    return bytes(found)


def _set_byte(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    at = _place(data, random)
    return data[:at] + bytes([random.choice((0, 1, 0x20, 0x7F, 0x80, 0xFE, 0xFF))]) + data[at + 1 :]


def _set_number(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    at, size = _place(data, random), random.choice((1, 2, 4, 8))
    number = random.choice(_NUMBERS) % 256**size
    return data[:at] + number.to_bytes(size, random.choice(("little", "big"))) + data[at + size :]


def _set_digits(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    found = list(re.finditer(rb"\d+", data[:20000]))
    if not found:
        return _set_number(data, seeds, random)
    one = random.choice(found)
    new = random.choice(
        (b"0", b"-1", b"2000000", b"99999999999999999999", b"1e400", b"nan", b"", b"0.5", b"1" * 400)
    )
    return data[: one.start()] + new + data[one.end() :]


def _cut_end(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    return data[: _place(data, random)]


def _cut_out(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    at = _place(data, random)
    return data[:at] + data[at + random.randint(1, 64) :]


def _repeat(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    at = _place(data, random)
    part = data[at : at + random.randint(1, 64)]
    return data[:at] + part * random.randint(2, 40) + data[at:]


def _insert(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    at = _place(data, random)
    return data[:at] + random.choice(_TOKENS) + data[at:]


def _splice(data: bytes, seeds: tuple[bytes, ...], random: Random) -> bytes:
    return data[: _place(data, random)] + (other := random.choice(seeds))[_place(other, random) :]


_EDITS = (_flip_bits, _flip_bits, _set_byte, _set_number, _set_number, _set_digits, _cut_end, _cut_out, _repeat, _insert, _splice)  # fmt: skip


def _edit_json(data: bytes, random: Random) -> bytes | None:
    """JSON with one value, key or entry changed; None for what is no JSON."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return None
    places: list[tuple[Any, Any]] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            waiting.append(value)
    if not places:
        return json.dumps(random.choice(_VALUES)).encode()
    for _ in range(random.randint(1, 3)):
        node, key = random.choice(places)
        what = random.randint(0, 6)
        value: Any = random.choice(_VALUES)
        if what == 0 and key in (node if isinstance(node, dict) else range(len(node))):
            del node[key]
        elif what == 1 and isinstance(node, dict):
            node[random.choice(("x", "", "\0", "schema_version", "a" * 600, "\x1b[0m"))] = value
        elif what == 2 and isinstance(node, list):
            node.extend([value] * random.randint(1, 3))
        elif isinstance(node, dict) or key < len(node):
            node[key] = value
    return json.dumps(root).encode()


# --- one input ---


class Fault(Exception):
    """What a reader must not do with an input."""


class _TooSlow(BaseException):
    """No `Exception`, so that no reader takes it for damage."""


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    # Of processor time: on a machine with other work, a clock would ring for what is not slow.
    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attempt(read: Any, data: bytes, *, limit_s: float = LIMIT_S) -> str:
    """Gives a reader one input: "accepted", or "refused" with a message that is one line; "unfit" where it is none.

    Raises:
        Fault: another error than `InputError` and `GateError`, a message that is none, or too long a time.
    """
    try:
        with warnings.catch_warnings(), _deadline(limit_s):
            warnings.simplefilter("ignore")
            read(data)
    except (InputError, GateError) as error:
        message = str(error)
        if not message or len(message) > LONGEST_MESSAGE or printable(message) != message:
            raise Fault(
                f"the message must be one printable line of at most {LONGEST_MESSAGE} characters, got {len(message)}: "
                f"{message[:200]!r}"
            ) from None
        return "refused"
    except _TooSlow as error:
        raise Fault(f"took more than {limit_s:g} s, at {_where(error)}") from None
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "Unfit":
            return "unfit"
        raise Fault(f"{type(error).__name__} at {_where(error)}: {str(error)[:160]!r}") from error
    return "accepted"


def _where(error: BaseException) -> str:
    """The last of our own lines, and the last of all: a fault is known by them."""
    frames = traceback.extract_tb(error.__traceback__)
    root = str(HERE.parent) + os.sep
    ours = [f for f in frames if f.filename.startswith(root) and os.sep + "tests" + os.sep not in f.filename]
    shown = [*ours[-1:], *(frames[-1:] if frames and frames[-1] not in ours[-1:] else [])]
    return " < ".join(f"{f.filename.removeprefix(root)}:{f.lineno} {f.name}" for f in reversed(shown))


# --- the long run ---


def _work(name: str, first: int, count: int, progress: Path) -> None:
    """The child: writes what became of each input; its number goes before it, so that a crash can be told."""
    from fuzz_targets import TARGETS

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        target = TARGETS[name](Path(folder))
        faulthandler.enable(open(os.dup(2), "w"))  # noqa: SIM115, PTH123
        if name not in _NEEDS_ROOM:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)  # what libraries print of damage
        with progress.open("a") as told:
            told.write(f"{first}\t")  # before the input: after a crash it stands there without a result
            for number in range(first, first + count):
                told.flush()
                if (number - first) % 100 == 0:
                    faulthandler.dump_traceback_later(WAIT_S, exit=True)
                data = mutate(target.seeds, Random(f"{name}/{number}"))
                try:
                    result = attempt(target.read, data)
                except Fault as fault:
                    result = f"fault\t{fault}".replace("\n", " ")
                told.write(f"{result}\n{number + 1 if number + 1 < first + count else 'end'}\t")
        faulthandler.cancel_dump_traceback_later()


_NEEDS_ROOM: tuple[str, ...] = ()


def _run_target(name: str, first: int, count: int) -> tuple[Counter[str], dict[str, list[int]], float]:
    """What became of a target's inputs, and its faults with the numbers of their inputs."""
    counted, faults = Counter[str](), dict[str, list[int]]()
    started, at = time.perf_counter(), first
    with tempfile.TemporaryDirectory() as folder:
        while at < first + count:
            progress = Path(folder) / "progress"
            progress.unlink(missing_ok=True)
            words = [__file__, "--work", name, "--first", str(at), "--inputs", str(first + count - at)]
            child = subprocess.run(
                [sys.executable, *words, "--progress", str(progress)], stderr=subprocess.PIPE, check=False
            )
            lines = progress.read_text().split("\n") if progress.exists() else [""]
            for line in lines:
                number, _, result = line.partition("\t")
                if number in ("", "end"):
                    continue
                if not result:
                    result = f"fault\tended its process with status {child.returncode}"
                if result:
                    kind, _, what = result.partition("\t")
                    counted[kind] += 1
                    at = int(number) + 1
                    if what:
                        faults.setdefault(_kind_of(what), []).append(int(number))
            if not any(line.strip() for line in lines):
                said = child.stderr.decode(errors="replace").strip()
                raise SystemExit(f"{name}: the target cannot be made:\n{said}")
    return counted, faults, time.perf_counter() - started


def _kind_of(fault: str) -> str:
    """A fault without what differs from one input to the next: what was said, folders, lengths."""
    fault = fault.partition(": '")[0].partition(': "')[0].partition(", got ")[0]
    return re.sub(r"/\S*/(site-packages|python3\.\d+)/", "", fault)


def main() -> None:
    """Prints the table, and each kind of fault with the number of an input that makes it; status 1 where there is one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=0, help="of all targets together (FUZZ_INPUTS; 300000)")
    parser.add_argument("--only", default="", help="one target, or those whose names begin so")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return _work(asked.work, asked.first, asked.inputs, asked.progress)
    from fuzz_targets import SHARES, TARGETS, USUAL_SHARE

    total = asked.inputs or int(os.environ.get("FUZZ_INPUTS", "300000"))
    names = [name for name in TARGETS if name.startswith(asked.only)]
    whole = sum(SHARES.get(name, USUAL_SHARE) for name in names)
    found: dict[str, dict[str, list[int]]] = {}
    sums = Counter[str]()
    print("| target | inputs | refused | accepted | faults | s |\n|---|---|---|---|---|---|", flush=True)
    for name in names:
        count = max(1, round(total * SHARES.get(name, USUAL_SHARE) / whole))
        counted, faults, seconds = _run_target(name, asked.first, count)
        found |= {name: faults} if faults else {}
        counted.pop("unfit", None)
        sums += counted
        print(
            f"| {name} | {counted.total():,} | {counted['refused']:,} | {counted['accepted']:,} | {counted['fault']:,} | "
            f"{seconds:.0f} |",
            flush=True,
        )
    print(f"| all | {sums.total():,} | {sums['refused']:,} | {sums['accepted']:,} | {sums['fault']:,} | |")
    for name, faults in found.items():
        for what, numbers in sorted(faults.items(), key=lambda item: -len(item[1])):
            print(f"* {name}: {len(numbers)} × {what} (--only '{name}' --first {numbers[0]} --inputs 1)")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
