"""How much of a run's localization is left after everyday perturbations of the images.

The map that calls everything manipulated needs no network and has an IoU of its own, which no
perturbation changes. So what a network adds is its IoU above that one, and what is retained of it
after a perturbation is (IoU − all-fake's) / (clean IoU − all-fake's): 1 where nothing is lost, 0
where the all-fake map would do as well, below 0 where it would do better.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from wsdl_jax.evaluation import summary
from wsdl_jax.inputs.perturbations import Chain

# Of a point, what is retained, and the IoU that it is of.
RETAINED = {"retained": "iou_lg", "retained_fitted": "iou_fitted"}
_ROW, _MARGIN, _BARS, _FONT = 34, 12, 360, 13  # pixels
_COLOURS = ((0, 114, 178), (200, 80, 10))


def retained(iou: float | None, clean: float | None, all_fake: float | None) -> float | None:
    """Returns the part of an IoU above the all-fake map's that is left after a perturbation.

    Args:
      iou: after the perturbation.
      clean: of the images as they are.
      all_fake: of the map that calls everything manipulated.

    Returns:
      A number, 1 for what is as good as before; None where one of the three is not known, and where
      the clean IoU is not above the all-fake map's, so that there is nothing to retain.
    """
    if iou is None or clean is None or all_fake is None or clean <= all_fake:
        return None
    return (iou - all_fake) / (clean - all_fake)


def results(
    clean: Mapping[str, Any], all_fake: float | None, perturbed: Sequence[tuple[Chain, Mapping]]
) -> dict[str, Any]:
    """Returns the figures of images as they are and of perturbed ones, with what is retained.

    Args:
      clean: figures × 100 of the images as they are.
      all_fake: `iou_lg` × 100 of the map that calls everything manipulated.
      perturbed: each perturbation with its figures.

    Returns:
      `clean`, `all_fake_iou` and `points`, the figures of each `perturbation`; `retained` of each
      point, and its mean over all, are of `iou_lg`, `retained_fitted` of `iou_fitted`: fractions,
      None where there is none.
    """
    points = []
    for chain, figures in perturbed:
        parts = {
            name: retained(figures[iou], clean[iou], all_fake) for name, iou in RETAINED.items()
        }
        points.append({"perturbation": str(chain), **parts, **figures})
    means = {name: _mean([point[name] for point in points]) for name in RETAINED}
    return {"clean": dict(clean), "all_fake_iou": all_fake, "points": points, **means}


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def table(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, list[str]]]]:
    """Returns the names of columns, and rows of a name and its cells, × 100.

    The first row is of the images as they are, the last the mean over all perturbations.

    found: what `results` returns.
    """
    columns = {"iou_lg": "iou_lg", "retained": "retained"}
    if found["clean"]["iou_fitted"] is not None:
        columns |= {"iou_fitted": "iou_fitted", "retained_fitted": "retained, fitted"}
    columns |= {"ap": "ap", "real_above": "real called fake"}

    def cells(figures: Mapping[str, Any]) -> list[str]:
        factors = {name: 100 if name in RETAINED else 1 for name in columns}
        values = {name: figures.get(name) for name in columns}
        return [
            summary.figure(v if v is None else float(factors[n] * v)) for n, v in values.items()
        ]

    points = found["points"]
    mean = {name: _mean([point.get(name) for point in points]) for name in columns}
    rows = [("clean", cells(found["clean"]))]
    rows += [(point["perturbation"], cells(point)) for point in points]
    return tuple(columns.values()), [*rows, ("mean of the perturbed", cells(mean))]


def markdown(found: Mapping[str, Any], title: str) -> str:
    """Returns the figures as a table in Markdown, which is as readable as plain text.

    Args:
      found: what `results` returns, with what it is of.
      title: the first words.
    """
    head, rows = table(found)
    first = max(len(name) for name, _ in rows)
    widths = [max(5, len(name)) for name in head]
    lines = [
        f"{title}: {found['fake_images']} images of {found['test_fake']} and "
        f"{found['real_images']} of {found['test_real']}, × 100",
        "",
    ]
    for name, cells in [("", head), *rows]:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"| {name:<{first}} | " + " | ".join(padded) + " |")
    rule = [":" + "-" * (first - 1), *("-" * (width - 1) + ":" for width in widths)]
    lines.insert(3, f"| {' | '.join(rule)} |")
    lines += [
        "",
        f"retained: of the IoU above the all-fake map's ({summary.figure(found['all_fake_iou'])})",
    ]
    if found["clean"]["threshold"] is not None:
        lines.append(f"called fake: score above {found['clean']['threshold']:.4g}")
    return "\n".join(lines) + "\n"


def save_picture(found: Mapping[str, Any], file: io.BufferedIOBase) -> None:
    """Writes a PNG with a bar for what each perturbation leaves, at each threshold of the map.

    A bar ends at 0 and at 100%; the number beside it says what lies beyond.
    """
    font, bold = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT + 2)
    rows = [*found["points"], {**found, "perturbation": "mean"}]
    shown = {"retained": "maps cut at 0.5"}
    if found["clean"]["iou_fitted"] is not None:
        shown["retained_fitted"] = f"at {found['clean']['map_threshold']:.3g}, as fitted"
    left = _MARGIN + max(int(font.getlength(row["perturbation"])) for row in rows) + _MARGIN
    top = 2 * _ROW
    size = (left + _BARS + 5 * _FONT, top + _ROW * len(rows) + 2 * _MARGIN)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    title = f"Retained IoU, %: {found['test_fake']}"
    draw.text((_MARGIN, _MARGIN), title, fill="black", font=bold)
    at = left
    for name, colour in zip(shown.values(), _COLOURS, strict=False):
        draw.rectangle((at, _ROW + 4, at + _FONT, _ROW + 4 + _FONT), fill=colour)
        draw.text((at + _FONT + 6, _ROW + 3), name, fill="black", font=font)
        at += int(font.getlength(name)) + 4 * _FONT
    for percent in range(0, 101, 25):
        x = left + _BARS * percent // 100
        bottom = top + _ROW * len(rows)
        draw.line((x, top, x, bottom), fill=(217, 221, 225))
        draw.text((x, bottom + 4), str(percent), fill="black", font=font, anchor="ma")
    thickness = (_ROW - 8) // len(shown)
    for row, values in enumerate(rows):
        y = top + row * _ROW + 4
        middle = y + (_ROW - 8) // 2
        label = values["perturbation"]
        draw.text((_MARGIN, middle), label, fill="black", font=font, anchor="lm")
        for place, (name, colour) in enumerate(zip(shown, _COLOURS, strict=False)):
            value, above = values[name], y + place * thickness
            end = left + round(_BARS * min(max(value or 0, 0), 1))
            if end > left:
                draw.rectangle((left, above, end, above + thickness - 1), fill=colour)
            text = summary.figure(None if value is None else 100 * value)
            centre = above + thickness // 2
            draw.text((end + 5, centre), text, fill="black", font=font, anchor="lm")
    picture.save(file, "PNG", optimize=True)
