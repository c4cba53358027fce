"""Flags, YAML and types are one thing; how a command ends is its exit status and at most one line."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from time import perf_counter
from typing import Literal

import pytest
from pydantic import Field

import segcore.command
from segcore.command import Progress, Settings, parse_settings, print_result, run_command
from segcore.errors import GateError, InputError, need

ROOT = Path(__file__).parents[1]


class Example(Settings):
    """Does nothing, as an example."""

    data: str
    """folder of images"""
    seed: int = 0
    """of everything random"""
    batch_size: int = Field(8, gt=0)
    """cases a step"""
    precision: Literal["fp32", "int8"] = "fp32"
    """of the weights"""
    limit: int | None = None
    """at most so many cases"""
    overwrite: bool = False
    """replace OUT"""
    bundle: list[Path] = Field(default_factory=list)
    """folders"""


def parse(*words: str) -> Example:
    return parse_settings(Example, "python -m example", words)


def message(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(*words)
    return str(caught.value)


def test_flags_over_yaml_over_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("data: from-yaml\nseed: 3\nbatch-size: 2\n")
    settings = parse("--config", str(tmp_path / "a.yaml"), "--seed", "5")
    assert settings == Example(data="from-yaml", seed=5, batch_size=2)
    assert parse(f"--config={tmp_path / 'a.yaml'}") == Example(data="from-yaml", seed=3, batch_size=2)


def test_every_kind_of_field():
    words = [
        "--data",
        "d",
        "--precision",
        "int8",
        "--limit=4",
        "--overwrite",
        "--bundle",
        "a",
        "--bundle",
        "b",
    ]
    expected = {
        "data": "d",
        "precision": "int8",
        "limit": 4,
        "overwrite": True,
        "bundle": [Path("a"), Path("b")],
    }
    assert parse(*words) == Example(**expected)


def test_saved_settings_repeat_the_run(tmp_path):
    settings = Example(data="d", seed=7, bundle=[Path("a")])
    (tmp_path / "s.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    assert parse("--config", str(tmp_path / "s.yaml")) == settings


def test_environment_does_not_leak_in(monkeypatch):
    monkeypatch.setenv("SEED", "9")
    monkeypatch.setenv("DATA", "leaked")
    assert message() == "--data: must be given"
    assert parse("--data", "d").seed == 0


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse("--data", "d").seed = 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "--data: must be given"),
        (
            ("--data", "d", "--seed", "x"),
            "--seed: must be a valid integer, unable to parse string as an integer, got 'x'",
        ),
        (("--data", "d", "--batch-size", "0"), "--batch-size: must be greater than 0, got '0'"),
        (("--data", "d", "--precision", "int4"), "--precision: must be 'fp32' or 'int8', got 'int4'"),
        (
            ("--seed", "x", "--batch-size", "0"),
            "--data: must be given; --seed: must be a valid integer, unable to parse string as an integer, got 'x'; "
            "--batch-size: must be greater than 0, got '0'",
        ),
    ],
)
def test_wrong_values(words, expected):
    assert message(*words) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "--config F: must be a YAML file, no such file"),
        ("- a\n- b\n", "--config F: must hold `name: value` lines, got list"),
        ("", "--config F: must hold `name: value` lines, got NoneType"),
        ("a: [", "--config F: must be YAML, is damaged (while parsing a flow node, line 1); mend that line"),
        ("data: d\nspeed: 3\n", "--speed: no such setting; see --help"),
        (
            "data: d\nseed: x\n",
            "--seed: must be a valid integer, unable to parse string as an integer, got 'x'",
        ),
    ],
)
def test_wrong_yaml(tmp_path, text, expected):
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    assert message("--config", str(path)).replace(str(path), "F") == expected


def ended(main, *words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run_command(main, Example, "python -m example", words)
    return caught.value.code


def raiser(error: BaseException):
    def main(_settings):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("--x: must be y"), 2, "error: --x: must be y"),
        (GateError("Dice fell"), 3, "gate failed: Dice fell"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
        (
            OSError(errno.ENOSPC, "No space left on device", "O/model.bin"),
            2,
            "error: O/model.bin: cannot be written, No space left on device; nothing was kept that looks finished: "
            "free some space or choose another --out",
        ),
        (
            OSError("4096 requested and 12 written"),  # what numpy's tofile says
            2,
            "error: output: cannot be written, the disk is full; nothing was kept that looks finished: "
            "free some space or choose another --out",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "O"),
            2,
            "error: O: must be readable and writable, permission denied; change its permissions",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "O"),
            2,
            "error: O: must be writable, the file system is read-only; choose another --out",
        ),
    ],
)
def test_exit_status_and_line(capsys, error, status, line):
    assert ended(raiser(error), "--data", "d") == status
    assert capsys.readouterr().err == line + "\n"


def test_our_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(raiser(ZeroDivisionError()), Example, "p", ["--data", "d"])
    with pytest.raises(IsADirectoryError):
        run_command(raiser(IsADirectoryError(errno.EISDIR, "x")), Example, "p", ["--data", "d"])


def test_done_is_0():
    assert ended(lambda _settings: None, "--data", "d") == 0


def test_unknown_flag(capsys):
    assert ended(raiser(AssertionError()), "--data", "d", "--sped", "3") == 2
    assert "--sped" in capsys.readouterr().err


def test_help_lists_every_field_and_says_what_it_is(capsys):
    assert ended(raiser(AssertionError()), "--help") == 0
    text = capsys.readouterr().out
    for name, field in Example.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description in text
    assert "Does nothing, as an example." in text


def test_help_of_a_real_command_is_fast_and_needs_no_torch():
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "segcore.dataset", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert perf_counter() - start < 5
    assert "--data" in done.stdout
    assert " torch\n" not in done.stderr


def test_result_is_one_json_line(capsys):
    print_result(dice=0.5, out=Path("a"))
    assert json.loads(capsys.readouterr().out) == {"dice": 0.5, "out": "a"}


def test_need_names_the_extra():
    assert str(need("openvino", "openvino")) == (
        "openvino: must be installed, is not; run: pip install 'sam2edge[openvino]'"
    )


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    from segcore.command import Settings, run_command
    from segcore.outfolder import out_folder

    class S(Settings):
        "Fills the disk."
        how: str
        out: Path

    def main(s):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        array = np.zeros(100_000)
        with out_folder(s.out, {}, resumes=False) as folder:
            if s.how == "bytes":
                (folder / "a").write_bytes(array.tobytes())
            elif s.how == "npy":
                np.save(folder / "a.npy", array)
            else:
                np.savez(folder / "a.npz", array)

    run_command(main, S, "python -m full")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
@pytest.mark.parametrize("how", ["bytes", "npy", "npz"])
def test_full_disk_for_real(tmp_path, how):
    """The kernel refuses the write (a size limit stands in for a full disk): one line, exit 2, nothing kept."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), "--how", how, "--out", str(tmp_path / "O")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


SURROUNDINGS = """
    import json, shutil, sys
    from pathlib import Path
    from segcore.command import Settings, log, print_result, run_command
    from segcore.outfolder import out_folder, write_bytes

    class S(Settings):
        "Writes a file of a mebibyte and prints its result."
        out: Path
        remove: bool = False

    def main(s):
        with out_folder(s.out, {}) as folder:
            log("at work")
            write_bytes(folder / "a", bytes(1 << 20))
            if s.remove:
                shutil.rmtree(folder)
                write_bytes(folder / "b", b"b")
            held = bytearray(HELD << 20)
        print_result(done=True, bytes=len(held))

    run_command(main, S, "python -m surroundings")
"""


def surrounded(tmp_path, before, after="", *, flags="", held_mib=1):
    """Ends as (exit status, stdout, stderr), what a shell lets a command run in."""
    script = tmp_path / "command.py"
    script.write_text(textwrap.dedent(SURROUNDINGS).replace("HELD", str(held_mib)))
    line = (
        f"{before} {sys.executable} {script} --out {tmp_path / 'O'} {flags} {after}; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr.replace(str(tmp_path), "T")


RESULT = '{"done": true, "bytes": 1048576}\n'
posix = pytest.mark.skipif(sys.platform != "linux", reason="a shell, /dev/full and limits of Linux")


@posix
@pytest.mark.parametrize(
    ("after", "status", "out", "err"),
    [
        ("", 0, RESULT, "at work\n"),
        ("2>&-", 0, RESULT, ""),
        ("2>/dev/full", 0, RESULT, ""),
        ("<&-", 0, RESULT, "at work\n"),
        (">&-", 0, "", "stdout is closed: the results are written to files alone\nat work\n"),
        (">&- 2>&-", 0, "", ""),
        ("2>&1 | true", 2, "", ""),
        (
            "| true",
            2,
            "",
            "at work\nerror: stdout: must take the results, could not (Broken pipe); the files that were written stay: "
            "send it to a file, or to a program that reads it to the end\n",
        ),
        (
            ">/dev/full",
            2,
            "",
            "at work\nerror: stdout: must take the results, could not (No space left on device); the files that were "
            "written stay: send it to a file, or to a program that reads it to the end\n",
        ),
    ],
)
def test_standard_streams_that_take_nothing(tmp_path, after, status, out, err):
    """Closed, one's number went to the next file that was opened, which then got what libraries print."""
    assert surrounded(tmp_path, "", after) == (status, out, err)
    assert [path.name for path in tmp_path.glob("O*")] == ["O"]
    assert (tmp_path / "O" / "a").read_bytes() == bytes(1 << 20)


@posix
def test_a_folder_that_is_removed_meanwhile(tmp_path):
    assert surrounded(tmp_path, "", flags="--remove") == (
        2,
        "",
        "at work\nerror: --out T/O: T/O.partial must stay there until it is complete, was removed while it was written; "
        "run the same command again\n",
    )
    assert list(tmp_path.glob("O*")) == []


@posix
def test_limits_of_files_and_memory(tmp_path):
    status, out, err = surrounded(tmp_path, "ulimit -f 100;")
    assert (status, out) == (2, "")
    assert err == (
        "at work\nerror: output: cannot be written, File too large; nothing was kept that looks finished: "
        "free some space or choose another --out\n"
    )
    status, out, err = surrounded(tmp_path, "ulimit -v 1000000;", held_mib=2000)
    assert (status, out) == (2, "")
    assert err == (
        "at work\nerror: memory: must be enough for this run, ran out (MemoryError); close other programs, raise the "
        "limit (ulimit -v, ulimit -u), or ask for less at once: smaller batches or pictures, fewer workers or threads\n"
    )
    assert not (tmp_path / "O").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_what_libraries_say_when_memory_runs_out(capsys, error):
    assert ended(raiser(error), "--data", "d") == 2
    assert capsys.readouterr().err.startswith("error: memory: must be enough for this run, ran out (")


@pytest.mark.parametrize("kind", [InputError, GateError])
def test_a_message_is_one_line_whatever_the_input_held(capsys, kind):
    ended(raiser(kind("image a\nb\x1b[2J\u202e\udcff.png: must be ü")), "--data", "d")
    assert capsys.readouterr().err.endswith("image a\\nb\\x1b[2J\\u202e\\udcff.png: must be ü\n")
    ended(raiser(kind("n" * 5000 + ": must be shorter; rename it")), "--data", "d")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert len(str(kind("n" * 5000))) == 500
    assert line.endswith("nnn: must be shorter; rename it\n")


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(segcore.command, "time", clock)
    return clock


def test_a_log_gets_a_line_after_30_s_and_a_tenth(clock, capsys):
    for _ in Progress(range(40), "labelling", unit="image"):
        clock.now += 10  # a tenth of the work takes 40 s
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "labelling: 10 % (4 of 40 images) after 40 s, 6 min left",
        "labelling: 20 % (8 of 40 images) after 80 s, 5 min left",
    ]
    assert lines[-1] == "labelling: 100 % (40 of 40 images) after 7 min"
    assert len(lines) == 10


def test_a_log_stays_silent_about_what_is_quick_and_never_for_long(clock, capsys):
    for _ in Progress(range(100), "quick", unit="image"):
        clock.now += 0.25
    assert capsys.readouterr() == ("", "")
    with Progress[None](label="slow", total=1000, unit="batch", leave=False) as bar:
        for _ in range(20):
            clock.now += 300
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "slow: 0 % (2 of 1000 batches) after 10 min, 83 h 10 min left"


def test_a_resumed_work_counts_what_was_done_and_expects_by_its_own_pace(clock, capsys):
    with Progress[None](label="predicting", total=100, done=90, unit="image") as bar:
        clock.now += 60
        bar.note("3 failed")
        bar.update(10)
    assert capsys.readouterr().err == "predicting: 100 % (100 of 100 images) after 60 s, 3 failed\n"
    with Progress[None](label="measured", unit="design", done=5) as bar:  # nobody knows how many
        clock.now += 45
        bar.update()
    assert capsys.readouterr().err == "measured: 6 designs after 45 s\n"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(Progress([1, 2, 3], "reading", unit="image")) == [1, 2, 3]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reading: 100%" in shown.err
    assert "3/3" in shown.err


def test_progress_ends_with_what_it_goes_round(capsys):
    bar = Progress(iter("abcd"), "letters", unit="letter", total=4)
    for letter in bar:
        if letter == "b":
            break
    assert bar.n == 1  # what was broken off does not count as done
    assert capsys.readouterr().out == ""


def test_help_does_not_import_the_bar():
    code = "import sys, segcore.command; print('tqdm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
