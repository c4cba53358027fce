import getpass
import platform

from segcore.host import Made, made_now


def test_record_is_complete_and_names_neither_user_nor_machine():
    made = made_now("python -m example --seed 0")
    assert made.command == "python -m example --seed 0"
    assert made.time.endswith("+00:00")
    assert "numpy" in made.versions
    assert Made.model_validate_json(made.model_dump_json()) == made
    names = {platform.node(), getpass.getuser()}
    words = set(made.host.replace(",", " ").split())
    assert not names & words
