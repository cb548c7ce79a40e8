"""What is kept of each image that is audited, so that none is read twice or stays in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

from wsdl_data import decoding
from wsdl_data.audit import likeness, masks
from wsdl_data.audit.images import Listed, Named
from wsdl_data.audit.likeness import Thumbnail
from wsdl_data.audit.masks import SeenMask
from wsdl_data.audit.traces import PROBES, File, Traces
from wsdl_jax.runtime import threads
from wsdl_jax.runtime.errors import in_one_line


@dataclasses.dataclass(frozen=True, eq=False)
class Seen(Named):
    """What is kept of an image that was read.

    Attributes:
        traces: what each probe of `PROBES` sees.
        hash: see `likeness.perceptual_hash`.
        thumbnail: of the image.
        digest: of its size and pixels.
        mask: None where it has none, or is whole.
    """

    traces: tuple[Traces, ...]
    hash: int
    thumbnail: Thumbnail
    digest: bytes
    mask: SeenMask | None


def all_seen(images: Iterable[Listed]) -> Iterator[Seen]:
    """Yields what is kept of each image, which threads read ahead.

    Raises UserError, naming it, for one that cannot be read or decoded to its end, and for a mask
    of another size.
    """
    with contextlib.closing(threads.map_ahead(_see, images)) as results, in_one_line():
        yield from results


def _see(listed: Listed) -> Seen:
    stored = listed.read()
    try:
        image = decoding.load(stored.encoded)
        pixels = decoding.to_rgb(image)
    except ValueError as error:
        raise ValueError(f"{listed.name}: {error}") from error
    mask = None
    if stored.mask is not None and not listed.is_whole:
        height, width = stored.mask.shape
        if (width, height) != pixels.size:
            raise ValueError(
                f"{listed.name}: its mask is {width}x{height}, the image"
                f" {pixels.width}x{pixels.height}"
            )
        mask = masks.seen(stored.mask)
    file = File(stored.encoded, image, pixels)
    small = likeness.thumbnail(pixels)
    content = repr(pixels.size).encode() + pixels.tobytes()
    return Seen(
        listed.name,
        listed.label,
        listed.split,
        listed.group,
        listed.is_whole,
        tuple(probe.look(file) for probe in PROBES),
        likeness.perceptual_hash(small),
        small,
        hashlib.sha256(content).digest(),
        mask,
    )
