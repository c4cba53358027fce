"""Who made a bundle: a signature in OpenSSF's form for models, with a key pair on this machine, and offline.

The signature is of every file of the folder, the manifest among them, and lies beside them as model.sig: a file cannot
hold its own hash, so it is the one that the manifest does not list. Any tool for the form reads it:

    model_signing verify key BUNDLE --signature BUNDLE/model.sig --public_key PUBLIC.pem

Source: https://github.com/ossf/model-signing-spec; the library is model-signing, extra `sign`.
"""

from __future__ import annotations

import contextlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from segcore.bundle.folder import Bundle
from segcore.errors import InputError, need
from segcore.words import printable

SIGNATURE = "model.sig"
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""OpenSSL's names of the curves that the form has → NIST's."""
_LONGEST_REASON = 300


def check_signing_key(path: Path) -> None:
    """Refuses a key that cannot sign, before minutes are spent on a bundle.

    Args:
        path: PEM file of a private key on one of three curves, without a password.

    Raises:
        InputError: no such file, or another key; or the library is not installed.
    """
    _import_library()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    _check_key(f"--sign {path}", path, lambda content: load_pem_private_key(content, None), "private")


def sign_bundle(folder: Path, key: Path) -> Path:
    """Signs all files of a bundle's folder; gives the signature's path.

    Args:
        folder: of a sealed bundle; a signature that is there is replaced.
        key: as `check_signing_key` takes it.

    Raises:
        InputError: the key cannot sign.
    """
    check_signing_key(key)
    from model_signing import signing

    config: Any = signing.Config
    path = folder / SIGNATURE
    written = folder / f"{SIGNATURE}.tmp"
    signer = config().use_elliptic_key_signer(private_key=key)
    signer.set_hashing_config(_hashing(SIGNATURE, written.name)).sign(folder, written)
    written.replace(path)
    return path


def check_signature(bundle: Bundle, public_key: Path) -> None:
    """Refuses a bundle that the owner of a key has not signed, or that is not as it was then, files added included.

    Args:
        bundle: the opened bundle.
        public_key: PEM file of the public key that its maker gave out.

    Raises:
        InputError: no signature, one of another key, or other files; no such key; the library is not installed.
    """
    _import_library()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from model_signing import verifying

    config: Any = verifying.Config
    _check_key(f"--trust {public_key}", public_key, load_pem_public_key, "public")
    path = bundle.folder / SIGNATURE
    if not path.is_file():
        raise InputError(
            f"bundle {bundle.folder}: must be signed for --trust, has no {SIGNATURE}; do not use this bundle, or omit "
            "--trust"
        )
    verifier = config().use_elliptic_key_verifier(public_key=public_key)
    try:
        # It writes remarks to stdout, which is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            verifier.set_hashing_config(_hashing(SIGNATURE)).verify(bundle.folder, path)
    except InvalidSignature:
        reason = "the signature is not of its files"
    # model-signing 1.1.1 takes a stranger's JSON apart as if every part of it were there.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        said = str(error).partition(": Expected")[0].strip()  # the hashes after it say nothing to a reader
        reason = printable(said or type(error).__name__)[:_LONGEST_REASON]
    else:
        return
    raise InputError(
        f"bundle {bundle.folder}: must be as the owner of {public_key} signed it, is not ({reason}); do not use this "
        "bundle"
    )


def _import_library() -> None:
    # model-signing 1.1.1 imports OpenSSL, which it does not ask for.
    if any(find_spec(name) is None for name in ("model_signing", "OpenSSL")):
        raise need("model-signing", "sign")


def _hashing(*ignored: str) -> Any:
    """All files but these; what git keeps in a clone is left out, as by the form's own tool. No engine opens that."""
    from model_signing import hashing

    config: Any = hashing.Config
    return config().set_ignored_paths(paths=ignored)


def _check_key(name: str, path: Path, load: Any, kind: str) -> None:
    """Raises `InputError` where a PEM file holds no key of this kind on a curve that the form has."""
    must = f"{name}: must be a PEM file with an elliptic-curve {kind} key ({', '.join(_CURVES.values())})"
    remedy = "make a pair: openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem; openssl ec -in KEY.pem -pubout"
    if not path.is_file():
        raise InputError(f"{must}, no such file; {remedy}")
    try:
        key = load(path.read_bytes())
    except TypeError:
        raise InputError(f"{must} without a password, has one; take it off with openssl ec") from None
    except ValueError:
        raise InputError(f"{must}, is not; {remedy}") from None
    if getattr(getattr(key, "curve", None), "name", None) not in _CURVES:
        raise InputError(f"{must}, holds another kind; {remedy}")
