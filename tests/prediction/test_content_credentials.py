"""Content Credentials, of files that the reference implementation has signed."""

import datetime
import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest
from etils import epath
from made_images import smooth

from wsdl_jax.prediction import content_credentials, fingerprint

PAINTED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def certificates() -> tuple[bytes, bytes]:
    """A chain of a signer and an authority, and the signer's key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("Signer", "Authority")}
    chain = b""
    for name, key in keys.items():
        is_authority = name == "Authority"
        usage = dict.fromkeys(
            (
                *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
                *("encipher_only", "decipher_only"),
            ),
            False,
        )
        named = [
            x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, of)])
            for of in (f"A {name}", "A Authority")
        ]
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder(*reversed(named), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=9))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_authority,
                    key_cert_sign=is_authority,
                    crl_sign=is_authority,
                    **usage,
                ),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )
        if not is_authority:
            of_authority = keys["Authority"].public_key()
            made = made.add_extension(
                x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
            ).add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(of_authority), critical=False
            )
        signed = made.sign(keys["Authority"], hashes.SHA256())
        chain += signed.public_bytes(serialization.Encoding.PEM)
    key = keys["Signer"].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return chain, key


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG and a JPEG file that say to have been made by a generative model.

    And edited.png, which says to have been made of the first.
    """
    c2pa = pytest.importorskip("c2pa")
    folder = tmp_path_factory.mktemp("signed")
    manifest = {
        "claim_generator_info": [{"name": "A <painter>", "version": "1"}],
        "assertions": [
            {
                "label": "c2pa.actions",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": PAINTED}]},
            }
        ],
    }
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", *certificates(), None))
    for kind, name in (("PNG", "made.png"), ("JPEG", "made.jpg")):
        plain, out = io.BytesIO(), io.BytesIO()
        smooth(64, 80).save(plain, kind)
        plain.seek(0)
        with c2pa.Builder(manifest) as builder:
            builder.sign(signer, f"image/{kind.lower()}", plain, out)
        (folder / name).write_bytes(out.getvalue())
    action = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["parent"]}}
    edited = {
        "claim_generator_info": [{"name": "An editor", "version": "1"}],
        "ingredients": [{"title": "made.png", "relationship": "parentOf", "label": "parent"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
    }
    ingredient = edited.pop("ingredients")[0]
    made = (folder / "made.png").read_bytes()
    out = io.BytesIO()
    with c2pa.Builder(edited) as builder:
        builder.add_ingredient(ingredient, "image/png", io.BytesIO(made))
        builder.sign(signer, "image/png", io.BytesIO(made), out)
    (folder / "edited.png").write_bytes(out.getvalue())
    return folder


@pytest.mark.parametrize("name", ["made.png", "made.jpg"])
def test_what_a_file_says_of_itself(signed, name):
    path = epath.Path(signed / name)
    assert fingerprint.of(path).has_credentials
    found = content_credentials.read(path)
    assert found == {
        "state": "Valid",
        "generator": "A <painter>",
        "issuer": "A Signer",
        "actions": ["c2pa.created"],
        "digital_source_types": ["trainedAlgorithmicMedia"],
        "made_of": [],
    }
    assert content_credentials.in_words(found) == (
        "Content Credentials, Valid: by A <painter>, signed by A Signer, trainedAlgorithmicMedia"
    )


def test_what_an_image_was_made_of(signed):
    found = content_credentials.read(epath.Path(signed / "edited.png"))
    assert (found["generator"], found["digital_source_types"]) == ("An editor", [])
    (made_of,) = found["made_of"]
    assert made_of["generator"] == "A <painter>"
    assert made_of["digital_source_types"] == ["trainedAlgorithmicMedia"]
    assert content_credentials.in_words(found).endswith(
        "by An editor, signed by A Signer; made of an image by A <painter>, signed by A Signer, "
        "trainedAlgorithmicMedia"
    )


def test_what_was_changed_is_not_valid(signed, tmp_path):
    content = bytearray((signed / "made.jpg").read_bytes())
    content[-20] ^= 1
    path = epath.Path(tmp_path / "changed.jpg")
    path.write_bytes(bytes(content))
    assert content_credentials.read(path)["state"] == "Invalid"


def test_what_only_looks_like_credentials(tmp_path):
    pytest.importorskip("c2pa")
    stream = io.BytesIO()
    smooth(20, 20).save(stream, "PNG")
    path = epath.Path(tmp_path / "odd.png")
    path.write_bytes(stream.getvalue() + b"jumb c2pa")
    assert fingerprint.of(path).has_credentials
    assert re.match(r"cannot be read: .*", content_credentials.read(path)["state"])
    path.write_bytes(b"jumb c2pa, and no image")
    assert content_credentials.read(path)["state"].startswith("cannot be read: ")


def test_without_the_library_it_is_said_what_shows_them(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = content_credentials.read(epath.Path(tmp_path / "any.png"))
    assert content_credentials.in_words(found) == (
        "Content Credentials, not read: pip install 'wsdl-jax[c2pa]' shows them"
    )
