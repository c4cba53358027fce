"""The sheet shows training cases as they are and as they are augmented, through the network's own input."""

import json

import numpy as np
import pytest

from segcore.command import parse_settings
from segcore.dataset.__main__ import CheckSettings, check
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.learn.augment_sheet import CASES, SIZE_PX, VERSIONS, augment_sheet

GAP = 4
LIST = [{"rotate": {"degrees": 20}}]


def tiles(picture):
    """CASES×(1+VERSIONS)×S×S×3, from below the heading."""
    pixels = np.asarray(picture)
    pixels = pixels[-(CASES * (SIZE_PX + GAP) - GAP) :]
    step = SIZE_PX + GAP
    return np.stack(
        [
            [
                pixels[r * step : r * step + SIZE_PX, c * step : c * step + SIZE_PX]
                for c in range(1 + VERSIONS)
            ]
            for r in range(CASES)
        ]
    )


@pytest.fixture(scope="module")
def films():
    return open_dataset("phantom:cxr:12")


def draw(dataset, augment, *, window=None):
    return augment_sheet(dataset, augment, label="x", flip=True, window=window)


def test_without_changes_all_columns_are_the_case_itself(films):
    shown = tiles(draw(films, "none"))
    assert (shown == shown[:, :1]).all()
    assert len({row[0].tobytes() for row in shown}) == CASES
    green = (shown == (0, 158, 115)).all(-1)
    assert green.any((2, 3)).all()  # an outline in each


def test_versions_differ_and_the_first_column_is_the_case_through_its_window(films):
    shown = tiles(draw(films, LIST, window="100,200"))
    assert all(len({tile.tobytes() for tile in row}) == 1 + VERSIONS for row in shown)
    assert not (shown[:, 0] == tiles(draw(films, "none"))[:, 0]).all()


def test_the_command_writes_it_beside_the_sheet_of_masks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("- rotate: {degrees: 20}\n")
    check(CheckSettings(data="phantom:cxr:12", augment="mine.yaml"))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["augment_sheet"] == result["sheet"].replace(".png", "-augment-mine.png")
    assert {path.name for path in (tmp_path / "runs/dataset").iterdir()} == {
        result[key].split("/")[-1] for key in ("sheet", "augment_sheet")
    }


def test_a_wrong_list_is_an_error_before_the_data_are_read(tmp_path, films):
    with pytest.raises(
        InputError, match=r"^--augment: must be auto, film, colour, scan, none or a YAML file, got 'fi'"
    ):
        check(CheckSettings(data=str(tmp_path / "nothing"), augment="fi"))
    with pytest.raises(InputError, match=r"^--augment: entry 1 \(hue\): must be for colour pictures"):
        draw(films, [{"hue": {"degrees": 9}}])


def test_help_names_the_flag(capsys):
    with pytest.raises(SystemExit):
        parse_settings(CheckSettings, "python -m segcore.dataset", ["--help"])
    assert "--augment" in capsys.readouterr().out
