"""Content Credentials (C2PA): what a file itself says, and signs, of how it was made."""

import importlib.util
import json
from typing import Any

from etils import epath
from PIL import Image

_MARKS = (b"jumb", b"c2pa")  # of the box that holds a manifest, in files of all formats
_ASK = (  # the library's: that nothing is fetched from anywhere
    '{"verify": {"remote_manifest_fetch": false, "ocsp_fetch": false}}'
)
_EXTRA = "pip install 'wsdl-jax[c2pa]' shows them"


class Search:
    """Looks for credentials in a file that is read piece by piece."""

    def __init__(self):
        self._missing = set(_MARKS)
        self._end = b""

    def add(self, piece: bytes) -> None:
        """Looks at the next piece of the file."""
        if self._missing:
            seen = self._end + piece
            self._missing = {mark for mark in self._missing if mark not in seen}
            self._end = seen[-max(map(len, _MARKS)) :]

    @property
    def found(self) -> bool:
        """Returns whether the file has something that looks like credentials."""
        return not self._missing


def read(path: epath.Path) -> dict[str, Any]:
    """Returns what the credentials of an image file say, in which `Search` has found some.

    Nothing is fetched: neither manifests that lie elsewhere, nor lists of signers that are trusted.

    Returns:
      `state`: "Valid" (signed, and unchanged since), "Trusted" (by a signer that the library knows,
      too), "Invalid", or in words why it is not known; and where there is a manifest `generator`,
      `issuer` of the signer's certificate, `actions`, `digital_source_types` by their last words,
      such as "trainedAlgorithmicMedia" for what a generative model has made, and `made_of`, the
      same of each image that it was made of, if that had credentials, too.
    """
    if importlib.util.find_spec("c2pa") is None:
        return {"state": f"not read: {_EXTRA}"}
    import c2pa

    try:
        with path.open("rb") as file:
            with Image.open(file) as image:
                kind = Image.MIME.get(image.format or "", "")
            file.seek(0)
            settings = c2pa.Settings.from_json(_ASK)
            with c2pa.Reader(kind, file, context=c2pa.Context(settings)) as reader:
                store = json.loads(reader.json())
    except (c2pa.C2paError, OSError, ValueError) as error:
        return {"state": f"cannot be read: {' '.join(str(error).split())}"}
    manifests = store.get("manifests", {})
    active = store.get("active_manifest")
    earlier = [_said(one) for name, one in sorted(manifests.items()) if name != active]
    return {
        "state": store.get("validation_state", "unknown"),
        **_said(manifests.get(active, {})),
        "made_of": earlier,
    }


def _said(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns what one manifest says."""
    infos = manifest.get("claim_generator_info") or [{}]
    actions = [
        action
        for assertion in manifest.get("assertions", ())
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", ())
    ]
    types = {
        str(action["digitalSourceType"]) for action in actions if "digitalSourceType" in action
    }
    return {
        "generator": infos[0].get("name") or manifest.get("claim_generator"),
        "issuer": manifest.get("signature_info", {}).get("issuer"),
        "actions": [str(action.get("action")) for action in actions],
        "digital_source_types": sorted(of.rpartition("/")[2] for of in types),
    }


def in_words(credentials: dict[str, Any]) -> str:
    """Returns what `read` has found as a line of text."""
    said = [_one_in_words(credentials)]
    said += [f"made of an image {_one_in_words(one)}" for one in credentials.get("made_of", ())]
    text = "; ".join(filter(None, said))
    return f"Content Credentials, {credentials['state']}{f': {text}' if text else ''}"


def _one_in_words(said: dict[str, Any]) -> str:
    parts = [
        f"by {said['generator']}" if said.get("generator") else "",
        f"signed by {said['issuer']}" if said.get("issuer") else "",
        " and ".join(said.get("digital_source_types", ())),
    ]
    return ", ".join(filter(None, parts))
