"""Who has signed a package: signatures as `minisign` and `cosign sign-blob` make them.

minisign: https://jedisct1.github.io/minisign/ (Ed25519, of the file or of its BLAKE2b-512). cosign: ECDSA over P-256 of
the file's SHA-256, DER in base64, which is what `openssl dgst -sha256 -sign` makes, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from grape.errors import Forbidden, UsageError

ENDINGS: Final = (".minisig", ".sig")
"""What the signature of a file is called: its name, and one of these."""
MAX_BYTES: Final = 8 << 10
_NEEDS: Final = "signatures need cryptography: pip install 'grape-engine[signatures]'"


class Key(Struct, frozen=True):
    """A public key. ``name``: for people. ``id``: of one of minisign, else empty. ``key``: as `cryptography` has it."""

    name: str
    id: bytes
    key: Any


def read_key(path: Path) -> Key:
    """
    Raises:
        UsageError: it is no public key.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise UsageError(_NEEDS) from None
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {getattr(e, 'strerror', None) or 'it is no text'}") from None
    wrong = UsageError(f"{path}: it is neither a public key of minisign nor one of cosign (ECDSA P-256, PEM)")
    try:
        if "-----BEGIN PUBLIC KEY-----" in text:
            found = load_pem_public_key(text.encode())
            if not isinstance(found, EllipticCurvePublicKey) or not isinstance(found.curve, SECP256R1):
                raise wrong
            return Key(path.name, b"", found)
        packed = base64.b64decode(text.strip().splitlines()[-1], validate=True)
        if len(packed) != 42 or packed[:2] != b"Ed":
            raise wrong
        return Key(path.name, packed[2:10], Ed25519PublicKey.from_public_bytes(packed[10:]))
    except (ValueError, binascii.Error, IndexError):
        raise wrong from None


def signature_of(file: Path) -> bytes:
    """What lies beside a file; empty: nothing.

    Raises:
        UsageError: it cannot be one.
    """
    for ending in ENDINGS:
        path = file.with_name(file.name + ending)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise UsageError(f"{path}: a signature has at most {MAX_BYTES} bytes")
            return path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as e:
            raise UsageError(f"{path}: {e.strerror}") from None
    return b""


def check_signature(file: Path, signature: bytes, keys: Sequence[Key]) -> str:
    """Who has signed it: the name of a key.

    Raises:
        Forbidden: none of these has.
    """
    who = ", ".join(key.name for key in keys)
    if not signature:
        raise Forbidden(
            f"{file.name}: this server takes what is signed by {who}, and this is not signed; pack it, sign the file "
            f"(minisign -Sm FILE, or cosign sign-blob), and hand in the file with its signature beside it"
        )
    for key in keys:
        if (_holds_minisign if key.id else _holds_ecdsa)(file, signature, key):
            return key.name
    raise Forbidden(f"{file.name}: its signature is not one by {who} of these very bytes")


def _holds_minisign(file: Path, signature: bytes, key: Key) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        _, packed, trusted, second = signature.decode().splitlines()[:4]
        own, of_all = base64.b64decode(packed, validate=True), base64.b64decode(second, validate=True)
    except (ValueError, binascii.Error):
        return False
    kind, number, sealed = own[:2], own[2:10], own[10:]
    if len(sealed) != 64 or number != key.id or not trusted.startswith("trusted comment: "):
        return False
    with open(file, "rb") as content:
        if kind == b"ED":
            message = hashlib.file_digest(content, "blake2b").digest()
        elif kind == b"Ed":
            message = content.read()
        else:
            return False
    try:
        key.key.verify(sealed, message)
        key.key.verify(of_all, sealed + trusted.removeprefix("trusted comment: ").encode())
    except InvalidSignature:
        return False
    return True


def _holds_ecdsa(file: Path, signature: bytes, key: Key) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        sealed = base64.b64decode(signature.strip(), validate=True)
    except (ValueError, binascii.Error):
        return False
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").digest()
    try:
        key.key.verify(sealed, digest, ECDSA(Prehashed(SHA256())))
    except InvalidSignature:
        return False
    return True
