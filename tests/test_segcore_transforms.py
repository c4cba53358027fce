"""Presets and YAML lists are the same checked data; what is wrong with a list is said in one line."""

import subprocess
import sys

import pytest

from segcore.command import parse_settings
from segcore.errors import InputError
from segcore.learn.settings import TrainSettings
from segcore.learn.transforms import (
    PRESETS,
    TRANSFORMS,
    Flip,
    Hue,
    Saturation,
    as_entries,
    parse_transforms,
    read_augment,
    transforms_of,
    was_mirrored,
)

NAMES = "affine, rotate, scale, shift, shear, flip, elastic, brightness, contrast, saturation, hue, gamma, noise, blur"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_list_that_yaml_can_hold(name):
    entries = as_entries(PRESETS[name])
    assert parse_transforms(entries, "--augment") == PRESETS[name]
    assert transforms_of(entries, channels=3, flip=True) == transforms_of(name, channels=3, flip=True)


def test_auto_goes_by_the_channels():
    assert transforms_of("auto", channels=3, flip=True) == PRESETS["colour"]
    assert transforms_of("auto", channels=1, flip=True) == PRESETS["film"]


def test_grey_pictures_have_no_hue():
    grey = transforms_of("colour", channels=1, flip=True)
    assert [t for t in PRESETS["colour"] if t not in grey] == [Saturation(by=0.3, probability=0.5),
                                                               Hue(degrees=12, probability=0.5)]  # fmt: skip
    with pytest.raises(InputError) as caught:
        transforms_of([{"flip": {}}, {"hue": {"degrees": 5}}], channels=1, flip=True)
    assert str(caught.value) == (
        "--augment: entry 2 (hue): must be for colour pictures, got grey ones; take it out"
    )


@pytest.mark.parametrize("name", ["film", "colour", "scan"])
def test_no_flip_takes_every_mirror_out_and_nothing_else(name):
    without = transforms_of(name, channels=3, flip=False)
    assert without == tuple(t for t in PRESETS[name] if not isinstance(t, Flip))
    assert len(without) == len(PRESETS[name]) - 1


def test_a_name_alone_takes_the_defaults():
    assert parse_transforms(["flip", {"flip": None}, {"flip": {}}], "x") == (Flip(), Flip(), Flip())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rotate": 4}, "must be a list of transforms, got dict; "
                        "write lines such as `- rotate: {degrees: 45, probability: 0.8}`"),
        (["flip", {"rotat": {"degrees": 4}}], f"entry 2: must be one of {NAMES}, got 'rotat'"),
        ([7], f"entry 1: must be one of {NAMES}, got 7"),
        (["rotate"], "entry 1 (rotate): degrees must be given"),
        ([{"rotate": {"degrees": 400}}], "entry 1 (rotate): degrees must be less than or equal to 180, got 400"),
        ([{"noise": {"up_to": 0.1, "by": 2}}], "entry 1 (noise): must have probability, up_to only, got by"),
        ([{"flip": {"axes": ["sideways"]}}],
         "entry 1 (flip): axes.0 must be 'left-right' or 'up-down', got 'sideways'"),
        ([{"flip": {"probability": 0}}], "entry 1 (flip): probability must be greater than 0, got 0"),
        ([{"blur": {"low": 2, "high": 1}}], "entry 1 (blur): low must be at most high, got 2 and 1"),
        ([{"scale": 0.2}], "entry 1 (scale): must be a valid dictionary or instance of Scale, got 0.2"),
        ([{"elastic": {"by": 0.2}}], "entry 1 (elastic): by must be at most 0.4/cells = 0.08, got 0.2; "
                                     "more would fold the picture over itself"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_is_said_in_one_line(entries, message):
    with pytest.raises(InputError) as caught:
        parse_transforms(entries, "--augment")
    assert str(caught.value) == f"--augment: {message}"


def test_a_file_is_the_list_in_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("- flip\n- rotate: {degrees: 45, probability: 0.8}\n")
    full = [
        {"flip": {"probability": 0.5, "axes": ["left-right"]}},
        {"rotate": {"probability": 0.8, "degrees": 45.0}},
    ]
    assert read_augment(str(file)) == full
    file.write_text("- rotate: {degrees: x}\n")
    with pytest.raises(InputError) as caught:
        read_augment(str(file))
    assert str(caught.value) == (
        f"--augment {file}: entry 1 (rotate): degrees must be a valid number, "
        "unable to parse string as a number, got 'x'"
    )
    file.write_text("- {")
    with pytest.raises(InputError, match=r"mine\.yaml: must be YAML, is damaged \(while parsing"):
        read_augment(str(file))
    with pytest.raises(InputError) as caught:
        read_augment("fil")
    assert str(caught.value) == (
        "--augment: must be auto, film, colour, scan, none or a YAML file, got 'fil'; no such file"
    )


def settings(*words):
    return parse_settings(TrainSettings, "train", ["--data=d", "--out=o", *words])


def test_flag_file_and_config_are_one_setting(tmp_path):
    file, config = tmp_path / "mine.yaml", tmp_path / "train.yaml"
    file.write_text("- gamma: {low: 0.5, high: 2}\n")
    config.write_text("augment:\n- gamma: {low: 0.5, high: 2}\n")
    by_file, by_config = settings(f"--augment={file}"), settings(f"--config={config}")
    assert by_file == by_config
    assert by_file.recipe() == by_config.recipe()
    file.write_text("- gamma: {low: 0.5, high: 3}\n")
    assert settings(f"--augment={file}").recipe() != by_file.recipe()
    assert settings(f"--config={config}", "--augment", "film").augment == "film"


def test_what_a_bundle_holds_is_the_list_in_full(tmp_path):
    held = settings("--augment", "colour", "--no-flip").for_channels(3)
    assert held.augment == as_entries(PRESETS["colour"])
    assert held.transforms(3) == transforms_of("colour", channels=3, flip=False)
    assert settings().for_channels(1).augment == as_entries(PRESETS["film"])
    assert settings().recipe()["augment_means"] == [
        as_entries(PRESETS["film"]),
        as_entries(PRESETS["colour"]),
    ]


def test_who_was_mirrored():
    assert was_mirrored(settings().for_channels(1).model_dump())
    assert was_mirrored({"flip": True})  # of a bundle from before there was a choice
    assert not was_mirrored({})
    assert not was_mirrored(settings("--no-flip").for_channels(3).model_dump())
    assert not was_mirrored(settings("--augment", "none").for_channels(1).model_dump())
    assert not was_mirrored({"flip": True, "augment": as_entries([Flip(axes=("up-down",))])})


def test_help_names_the_presets(capsys):
    with pytest.raises(SystemExit):
        settings("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--augment" in text
    assert all(name in text for name in PRESETS)


def test_settings_and_presets_need_no_torch():
    code = "import sys; import segcore.learn.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_transform_says_what_it_does():
    assert all(kind.__doc__ for kind in TRANSFORMS.values())
