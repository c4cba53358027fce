"""A patient's pseudonym: the same for one patient's files, and slow to turn back."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

KEY_VARIABLE = "SAM2EDGE_PSEUDONYM_KEY"
_PUBLIC_KEY = "sam2edge pseudonym 1"
# 2^12 rounds in 4 MiB: about 10 ms a patient on one core. Source: RFC 7914, section 2 (N, r, p).
_SCRYPT_COST, _SCRYPT_BLOCK, _SCRYPT_PARALLEL = 2**12, 8, 1


def pseudonym(patient_id: str, birth_date: str = "", issuer: str = "") -> str:
    """A keyed, slow hash of who the patient is in one hospital's files: "p-" and 12 hexadecimal digits.

    The key is the environment variable SAM2EDGE_PSEUDONYM_KEY. Where it is set and kept secret, nobody without it
    can tell whose pseudonym it is. Where it is not set, the key is public: a reader of a report cannot see the
    number, but one who has a list of candidates (a hospital's numbers are short) can try them all, at some
    milliseconds each. So a pseudonym is no anonymity: set a key before results leave the house. Two keys give one
    patient two pseudonyms; use one for all the data that are split or compared together.

    Args:
        patient_id: PatientID; two spellings that differ in outer spaces only are one patient.
        birth_date: PatientBirthDate as DICOM writes it, "" where unknown.
        issuer: IssuerOfPatientID, "" where unknown.

    Source: RFC 7914 (scrypt).
    """
    return _hashed(patient_id.strip(), birth_date.strip(), issuer.strip(), os.environ.get(KEY_VARIABLE, ""))


@lru_cache(maxsize=4096)
def _hashed(patient_id: str, birth_date: str, issuer: str, key: str) -> str:
    # NUL cannot stand in a DICOM string, so no two patients run into one another.
    digest = hashlib.scrypt(
        "\0".join((patient_id, birth_date, issuer)).encode(),
        salt=(key or _PUBLIC_KEY).encode(),
        n=_SCRYPT_COST,
        r=_SCRYPT_BLOCK,
        p=_SCRYPT_PARALLEL,
        dklen=6,
    )
    return f"p-{digest.hex()}"
