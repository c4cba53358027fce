"""A signed bundle is trusted by the owner's public key alone, offline, and by the form's own tool as well."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="model-signing is not installed (extra sign)")
pytest.importorskip("onnx")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from export.__main__ import ExportSettings
from export.__main__ import main as export
from runtime.verify import VerifySettings, main
from segcore.bundle.folder import MANIFEST, open_bundle
from segcore.bundle.signature import SIGNATURE, check_signature, check_signing_key, sign_bundle
from segcore.errors import InputError


def write_pair(folder: Path, name: str, key=None, password: str = "") -> tuple[Path, Path]:
    """A private and a public key as PEM files."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    lock = (
        serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    )
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def keys(tmp_path) -> tuple[Path, Path]:
    return write_pair(tmp_path, "maker")


@pytest.fixture
def signed(prompted_discs, tmp_path, keys, monkeypatch) -> Path:
    def refuse(*_args):
        raise AssertionError("signing must be offline")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = prompted_discs.write_bundle(tmp_path / "partial")
    before = (folder / MANIFEST).read_bytes()
    assert sign_bundle(folder, keys[0]) == folder / SIGNATURE
    assert (folder / MANIFEST).read_bytes() == before
    return folder.rename(tmp_path / "B")


def refusal(folder: Path, public: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_signature(open_bundle(folder), public)
    text = str(caught.value)
    assert text.isprintable()
    return text.replace(str(public), "PUBLIC").replace(str(folder), "B")


def test_a_signed_bundle_is_trusted(signed, keys, tmp_path):
    check_signature(open_bundle(signed), keys[1])
    copied = shutil.copytree(signed, tmp_path / "elsewhere" / "renamed")
    check_signature(open_bundle(copied), keys[1])


def test_the_forms_own_tool_verifies_it(signed, keys):
    words = [
        "verify",
        "key",
        str(signed),
        "--signature",
        str(signed / SIGNATURE),
        "--public_key",
        str(keys[1]),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_that_was_changed_or_added_is_refused(signed, keys):
    fields = json.loads((signed / MANIFEST).read_text())
    (signed / MANIFEST).write_text(json.dumps(fields | {"name": "another"}))  # a bundle that opens
    text = refusal(signed, keys[1])
    assert text.startswith("bundle B: must be as the owner of PUBLIC signed it, is not (Signature mismatch: ")
    assert "Hash mismatch for" in text
    assert "manifest.json" in text
    assert "Digest" not in text
    (signed / MANIFEST).write_text(json.dumps(fields, indent=2) + "\n")
    (signed / "more\n.txt").write_text("")
    assert "Extra files found" in refusal(signed, keys[1])


def test_another_key_is_refused(signed, tmp_path):
    _, stranger = write_pair(tmp_path, "stranger")
    assert "Key mismatch" in refusal(signed, stranger)


def test_an_unsigned_bundle_is_refused(signed, keys):
    (signed / SIGNATURE).unlink()
    assert refusal(signed, keys[1]) == (
        "bundle B: must be signed for --trust, has no model.sig; do not use this bundle, or omit --trust"
    )


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: b"",
        lambda text: b"\xff\xfe",
        lambda text: text[: len(text) // 2],
        lambda text: b"{}",
        lambda text: b"[" * 100_000,
        lambda text: json.dumps(json.loads(text) | {"dsseEnvelope": None}).encode(),
        lambda text: json.dumps(json.loads(text) | {"verificationMaterial": {}}).encode(),
        lambda text: text.replace(b'"sig":"', b'"sig":"AAAA') if b'"sig":"' in text else text[:-9],
    ],
)
def test_a_damaged_signature_is_one_line(signed, keys, edit, capsys):
    (signed / SIGNATURE).write_bytes(edit((signed / SIGNATURE).read_bytes()))
    text = refusal(signed, keys[1])
    assert text.startswith("bundle B: must be as the owner of PUBLIC signed it, is not (")
    assert text.endswith("); do not use this bundle")
    assert len(text) < 500
    assert capsys.readouterr().out == ""  # which is for results


def test_keys_that_cannot_sign_are_refused(tmp_path):
    def told(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            check_signing_key(path)
        return str(caught.value).replace(str(path), "KEY").partition(";")[0]

    must = "--sign KEY: must be a PEM file with an elliptic-curve private key (P-256, P-384, P-521)"
    private, public = write_pair(tmp_path, "ours", ec.generate_private_key(ec.SECP384R1()))
    check_signing_key(private)
    assert told(tmp_path / "none.pem") == f"{must}, no such file"
    assert told(public) == f"{must}, is not"
    locked, _ = write_pair(tmp_path, "locked", password="secret")
    assert told(locked) == f"{must} without a password, has one"
    other, _ = write_pair(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    assert told(other) == f"{must}, holds another kind"
    bitcoin, _ = write_pair(tmp_path, "k1", ec.generate_private_key(ec.SECP256K1()))
    assert told(bitcoin) == f"{must}, holds another kind"


def test_verify_refuses_before_it_opens_a_graph(signed, keys, tmp_path, capsys):
    (signed / "model.onnx").write_bytes(b"")
    fields = json.loads((signed / MANIFEST).read_text())
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    fields["files"]["model.onnx"] = {"sha256": empty, "bytes": 0}
    (signed / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(InputError, match="must be as the owner of"):
        main(VerifySettings(bundle=signed, trust=keys[1]))
    assert capsys.readouterr().out == ""


def test_export_signs_and_verify_trusts(torch_bundle, keys, tmp_path, capsys):
    out, made = tmp_path / "out", {"bundle": torch_bundle, "to": "onnx"}
    with pytest.raises(InputError, match=r"--sign .*: must be a PEM file"):  # before minutes are spent
        export(ExportSettings(**made, out=out, sign=keys[1]))
    assert not out.exists()
    export(ExportSettings(**made, out=out, sign=keys[0]))
    assert SIGNATURE not in open_bundle(out).manifest.files
    main(VerifySettings(bundle=out, trust=keys[1], threads=1))
    told = capsys.readouterr().out
    assert f"signature                     of {keys[1]}\n" in told
    assert json.loads(told.splitlines()[-1])["signed"] is True
