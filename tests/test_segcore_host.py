import getpass
import platform

import pytest

from segcore.host import Made, made_now, processor_name


def test_record_is_complete_and_names_neither_user_nor_machine():
    made = made_now("python -m example --seed 0")
    assert made.command == "python -m example --seed 0"
    assert made.time.endswith("+00:00")
    assert "numpy" in made.versions
    assert Made.model_validate_json(made.model_dump_json()) == made
    names = {platform.node(), getpass.getuser()}
    words = set(made.host.replace(",", " ").split())
    assert not names & words


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("model name\t: AMD EPYC\n\nprocessor: 1\nmodel name\t: AMD EPYC", "AMD EPYC"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n", "ARM Cortex-A78AE"),
        (
            "model name\t: ARMv8 Processor rev 1 (v8l)\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n",
            "ARM Neoverse-N1",
        ),
        # A Raspberry Pi's last lines are about the board.
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd08\n\nModel\t\t: Raspberry Pi 4 Model B", "ARM Cortex-A72"),
        ("CPU implementer\t: 0x99\nCPU part\t: 0x123\n", "ARM, implementer 0x99, part 0x123"),
    ],
)
def test_processors_are_named_on_arm_too(tmp_path, lines, name):
    (tmp_path / "cpuinfo").write_text(lines)
    assert processor_name(tmp_path / "cpuinfo") == name


def test_a_processor_that_says_nothing_has_a_name(tmp_path):
    assert processor_name(tmp_path / "none")
