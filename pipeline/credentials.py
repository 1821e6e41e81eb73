"""C2PA manifests in the outputs: what was done, from which input, signed by the user. Needs the extra `c2pa`.

A tamper-evident record of what this software did, in the form other programs read (Coalition for Content Provenance and
Authenticity, technical specification 2). It proves neither that the input is genuine nor that the output is right.
"""

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.config import ConfigError, SigningConfig
from pipeline.images import encode_png, sha256
from pipeline.provenance import SOFTWARE, notice, source_type

RECORD_LABEL = "org.revisage.record"
_PNG_HEAD, _MANIFEST_CHUNK = b"\x89PNG\r\n\x1a\n", b"caBX"
# The pictures lie beside the output anyway; a thumbnail of each in the manifest would make a 28 kB file one of 150 kB.
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}


def _library() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise ConfigError([f'signing: needs the extra "c2pa": pip install "revisage[c2pa]" ({error})']) from error
    return c2pa


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and whole bytes of each chunk of a PNG. Raises `ValueError` where it is none."""
    if not png.startswith(_PNG_HEAD):
        raise ValueError("not a PNG")
    place = len(_PNG_HEAD)
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if end > len(png):
            raise ValueError("a PNG that is cut short")
        yield png[place + 4 : place + 8], png[place:end]
        place = end


def unsigned(png: bytes) -> bytes:
    """A PNG without its manifest: byte for byte what was there before it was signed. Raises `ValueError`."""
    return _PNG_HEAD + b"".join(chunk for kind, chunk in _chunks(png) if kind != _MANIFEST_CHUNK)


def read_manifest(png: bytes) -> tuple[dict[str, Any], list[str]]:
    """The active manifest of a signed PNG, and the codes of everything that is wrong with it.

    `signingCredential.untrusted` is not counted: whom to trust is for the reader to say, with a list of their own.

    Raises:
        ValueError: there is no readable manifest.
    """
    c2pa = _library()
    try:
        with c2pa.Reader("image/png", io.BytesIO(png)) as reader:
            store = json.loads(reader.json())
    except c2pa.C2paError as error:
        raise ValueError(f"no readable manifest: {error}") from error
    wrong = [status["code"] for status in store.get("validation_status", [])]
    return store["manifests"][store["active_manifest"]], [code for code in wrong if "untrusted" not in code]


class Signer:
    """Signs outputs with one certificate. From several threads; made anew in each process.

    Raises:
        ConfigError: the package is missing, a file cannot be read, or certificate and key cannot sign together.
    """

    def __init__(self, config: SigningConfig) -> None:
        self._c2pa = c2pa = _library()
        try:
            certificate, key = Path(config.certificate).read_bytes(), Path(config.key).read_bytes()
        except OSError as error:
            raise ConfigError([f"signing: {error.filename}: cannot be read: {error.strerror}"]) from error
        self.certificate_sha256 = sha256(certificate)
        self._lock = threading.Lock()
        try:
            info = c2pa.C2paSignerInfo(config.algorithm.encode(), certificate, key, config.timestamp_url)
            self._signer = c2pa.Signer.from_info(info)
            self._context = c2pa.Context(settings=c2pa.Settings.from_dict(_SETTINGS))
        except c2pa.C2paError as error:
            raise ConfigError([f"signing: certificate and key cannot be used: {error}"]) from error

    def check(self) -> None:
        """Sign a made-up picture. Raises `ConfigError` where that does not work, for instance as the certificate has
        expired or is not meant for signing."""
        import numpy as np

        png = encode_png(np.zeros((8, 8), np.uint8))
        try:
            _, wrong = read_manifest(self.sign(png, png, "test.png", "image/png", {}, generative=False))
        except (ValueError, OSError) as error:
            raise ConfigError([f"signing: certificate and key cannot be used: {error}"]) from error
        if wrong:
            raise ConfigError([f"signing: the certificate does not sign as it should: {', '.join(wrong)}"])

    def sign(
        self, png: bytes, parent: bytes, parent_name: str, parent_type: str, record: dict[str, Any], generative: bool
    ) -> bytes:
        """The PNG with a signed manifest: opened from `parent`, edited by this software.

        Args:
            png: the output.
            parent: content of the input; its media type is `parent_type`, what to call it `parent_name`.
            record: the short record, as in the PNG's text.
            generative: whether a learned stage had a part in it.

        Raises:
            OSError: it cannot be signed.
        """
        agent = {"name": SOFTWARE, "version": __version__}
        edited = {
            "action": "c2pa.edited", "softwareAgent": agent, "digitalSourceType": source_type(generative),
            "parameters": {"description": notice(generative)},
        }  # fmt: skip
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["parent"]}}
        manifest = {
            "claim_generator_info": [agent],
            "format": "image/png",
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [opened, edited]}},
                {"label": RECORD_LABEL, "data": record},
            ],
        }
        ingredient = {"title": parent_name, "relationship": "parentOf", "label": "parent"}
        signed = io.BytesIO()
        try:
            with self._lock, self._c2pa.Builder.from_json(manifest, context=self._context) as builder:
                builder.add_ingredient(json.dumps(ingredient), parent_type, io.BytesIO(parent))
                builder.sign(self._signer, "image/png", io.BytesIO(png), signed)
        except self._c2pa.C2paError as error:
            raise OSError(f"the output cannot be signed: {error}") from error
        return signed.getvalue()
