"""Draws the dataset's contact sheet.

python -m wsdl_data.portraits.contact_sheet OUT.png
"""

import argparse
import io
import itertools

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from wsdl_data import image_files
from wsdl_data.inpainters import INPAINTERS
from wsdl_data.portraits import camera, forged, samples
from wsdl_data.portraits.generators import GENERATORS, Generator
from wsdl_data.portraits.portraits_dataset_builder import DEFAULT_SEED, DEFAULT_SIZE
from wsdl_data.portraits.scene import draw_scene, render

COLUMNS = 8
CAPTION = 14  # height of a row's caption, pixels
SPECTRUM_IMAGES = 64


def _by_model(name: str, split: str) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Returns the first images of a split that a diffusion model makes."""
    images = itertools.islice(forged.encoded_split(DEFAULT_SEED, split, name), COLUMNS)
    return [np.asarray(Image.open(io.BytesIO(encoded))) for encoded, _ in images]


def _partial_rows() -> list[tuple[str, list[UInt8[np.ndarray, "h w 3"]]]]:
    """Returns camera images, masks and each generator's fakes of the same test scenes."""
    names = (*GENERATORS, *INPAINTERS)
    rows = {"camera image before manipulation": [], "mask": []}
    rows |= {f"{name}: partial fakes of the same": [] for name in names}
    for index in range(COLUMNS):
        where = DEFAULT_SEED, "test", index, DEFAULT_SIZE
        source, edit, *_ = samples.make_source(*where)
        mask = np.repeat(np.uint8(255) * edit.mask[..., None], 3, axis=-1)
        fakes = [samples.make_partial(*where, name).image for name in names]
        for row, image in zip(rows.values(), [source, mask, *fakes], strict=True):
            row.append(image)
    for name, model in forged.MODELS.items():
        if not model.whole:
            rows[f"{name}: partial fakes of the same"] = _by_model(name, "test")
    return list(rows.items())


def _spectrum(make_image: Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the mean noise spectrum of images: 20 dB from black to white, zero centred."""
    power = np.zeros((DEFAULT_SIZE, DEFAULT_SIZE))
    for index in range(SPECTRUM_IMAGES):
        rng = np.random.default_rng(index)
        light, _ = render(draw_scene(rng), DEFAULT_SIZE)
        settings = camera.draw_settings(rng)
        clean = camera.develop(light * np.float32(settings.exposure)).astype(float)
        noise = make_image(light, settings, rng) - clean
        spectra = np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2
        power += np.fft.fftshift(spectra.sum(axis=-1))
    decibels = 10 * np.log10(power / np.quantile(power, 0.99))
    gray = np.clip(255 * (1 + decibels / 20), 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def _rows() -> list[tuple[str, list[UInt8[np.ndarray, "h w 3"]]]]:
    size, columns = DEFAULT_SIZE, range(COLUMNS)
    rows = [("real", [samples.make_real(DEFAULT_SEED, "test", i, size).image for i in columns])]
    for name in GENERATORS:
        full = [samples.make_full(DEFAULT_SEED, "train", i, size, name).image for i in columns]
        rows.append((f"{name}_full: full fakes", full))
    for name, model in forged.MODELS.items():
        if model.whole:
            is_drawn = model.strength is None
            caption = f"{name}_full: full fakes" if is_drawn else f"{name}: real ones, brought back"
            rows.append((caption, _by_model(name, "train")))
    rows += _partial_rows()
    makers = {"camera": camera.capture, **GENERATORS}
    spectra = [_spectrum(make) for make in makers.values()]
    rows.append((f"noise spectra: {', '.join(makers)}", spectra))
    return rows


def contact_sheet() -> Image.Image:
    """Draws all rows with their captions, in 256 colours to keep the file small."""
    rows = _rows()
    height = DEFAULT_SIZE + CAPTION
    sheet = Image.new("RGB", (COLUMNS * DEFAULT_SIZE, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=CAPTION - 3)
    for row, (caption, images) in enumerate(rows):
        draw.text((3, row * height), caption, fill="black", font=font)
        for column, image in enumerate(images):
            at = column * DEFAULT_SIZE, row * height + CAPTION
            sheet.paste(Image.fromarray(image), at)
    return sheet.quantize(
        256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
    )


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=epath.Path, help="the PNG file to write")
    out = parser.parse_args().out
    made_by = "wsdl_data.portraits.contact_sheet"
    try:
        image_files.check_replaceable(out, made_by)  # before a minute of work
        image_files.save_sheet(contact_sheet(), out, made_by, optimize=True)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
