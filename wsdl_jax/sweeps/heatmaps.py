"""Matrices of a sweep as coloured cells."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsdl_jax.evaluation import rendering
from wsdl_jax.sweeps.findings import COMPARED, SHOWN, Matrix, cell_text

_CELL, _MARGIN, _FONT = 64, 12, 13  # pixels


def save(matrices: Sequence[Matrix], path: Path) -> None:
    """Writes a PNG with the matrices side by side; a cell without a figure is grey and empty."""
    font, bold = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT + 2)
    line = _FONT + 8

    def panel(matrix: Matrix) -> Image.Image:
        def width(text: str) -> int:
            return int(font.getlength(text)) + _MARGIN

        left = max(map(width, matrix.rows))
        cell = max(_CELL, *map(width, matrix.columns))
        over = int(bold.getlength(matrix.title)) + _MARGIN
        size = (max(left + cell * len(matrix.columns), over), 2 * line + _CELL * len(matrix.rows))
        image = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(image)
        draw.text((0, 0), matrix.title, fill="black", font=bold)
        for column, label in enumerate(matrix.columns):
            place = (left + column * cell + cell // 2, line + _FONT // 2)
            draw.text(place, label, fill="black", font=font, anchor="mm")
        for row, label in enumerate(matrix.rows):
            top = 2 * line + row * _CELL
            draw.text((0, top + _CELL // 2), label, fill="black", font=font, anchor="lm")
            for column, value in enumerate(matrix.mean[row]):
                at = left + column * cell
                box = (at, top, at + cell - 2, top + _CELL - 2)
                if math.isnan(value):
                    draw.rectangle(box, fill=(225, 225, 225))
                    continue
                shade = tuple(rendering.colour(np.array([[value / 100]]))[0, 0].tolist())
                draw.rectangle(box, fill=shade)
                dark = np.dot(shade, (0.299, 0.587, 0.114)) < 140
                text = cell_text(value, matrix.std[row, column]).replace(" ", "\n", 1)
                place = (at + cell // 2, top + _CELL // 2)
                fill = "white" if dark else "black"
                draw.multiline_text(place, text, fill=fill, font=font, anchor="mm", align="center")
        return image

    panels = [panel(matrix) for matrix in matrices]
    head = f"{SHOWN[COMPARED]}, %; rows: tested on, columns: trained on"
    width = _MARGIN + sum(image.width + 2 * _MARGIN for image in panels)
    width = max(width, int(bold.getlength(head)) + 2 * _MARGIN)
    height = max(image.height for image in panels) + line + 2 * _MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), head, fill="black", font=bold)
    at = _MARGIN
    for image in panels:
        sheet.paste(image, (at, _MARGIN + line))
        at += image.width + 2 * _MARGIN
    sheet.save(path, "PNG", optimize=True)
