"""An audit in words, as JSON, and as a picture."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsdl_data.audit import findings
from wsdl_data.audit.auc import Estimate
from wsdl_data.audit.findings import Audit, Counted, Found
from wsdl_jax.runtime.errors import printable

_ROW, _MARGIN, _WIDE, _FONT, _MASK = 30, 16, 440, 14, 256  # pixels
_COLOURS = {
    findings.LEAK: (200, 60, 10),
    findings.NONE: (0, 114, 178),
    findings.TOO_FEW: (130, 130, 130),
}


def text(audit: Audit, title: str) -> str:
    """Returns the audit as Markdown, which is as readable as plain text.

    title: the first words.
    """
    kinds = [
        f"{audit.audited[kind]} {kind} images of {audit.groups[kind]} groups"
        for kind in audit.audited
    ]
    lines = [f"{title}: {' and '.join(kinds)}", ""]
    head = ("probe", "AUC", "99% interval", "verdict", "what differs most")
    rows = [
        (found.name, _figure(found.auc), _interval(found.auc), found.verdict, found.saw)
        for found in audit.probes
    ]
    rows += [
        (found.name, _count(found), "", found.verdict, ", ".join(found.examples))
        for found in audit.faults
    ]
    rows = [tuple(_cell(text) for text in row) for row in rows]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, tuple("-" * width for width in widths), *rows):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"| {' | '.join(padded)} |")
    lines.append("")
    lines += [f"leak: {found.name}: {found.advice}" for found in audit.leaks]
    lines += [f"note: {note}" for note in audit.notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def _cell(text: str) -> str:
    """Returns a text, such as a tag of a file, so that a cell of a table can have it."""
    line = text if text.isprintable() else repr(text)[1:-1]
    return line.replace("|", r"\|")


def _count(fault: Counted) -> str:
    told = f"{fault.found} of {fault.of}"
    if fault.estimated == fault.found:
        return told
    return f"{told}, about {fault.estimated:.0f} by the sample"


def _figure(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.2f}"


def _interval(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.lower:.2f} to {estimate.upper:.2f}"


def as_json(audit: Audit, title: str) -> str:
    """Returns the audit as JSON: the fields of `findings.Audit`, and the rule that was applied.

    title: what was audited.
    """
    fields = {
        "audited": title,
        "rule": {
            "level": findings.LEVEL,
            "place_level": findings.PLACE_LEVEL,
            "failing": findings.FAILING,
            "probes": len(findings.PROBE_NAMES),
            "needed_groups": findings.NEEDED,
            "share": findings.SHARE,
        },
        "images": audit.counts,
        "images_looked_at": audit.audited,
        "groups": audit.groups,
        "probes": [dataclasses.asdict(found) for found in audit.probes],
        "faults": [dataclasses.asdict(found) for found in audit.faults],
        "notes": audit.notes,
        "leaks": [found.name for found in audit.leaks],
    }
    text = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
    # Halves of pairs, which a tag of a file may have, are JSON as what escapes them.
    return printable(text)


def picture(audit: Audit, title: str) -> bytes:
    """Returns a PNG: each probe's AUC with its interval, what was counted, and the mean mask.

    title: what was audited.
    """
    font, bold = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT + 3)
    names = [found.name for found in (*audit.probes, *audit.faults)]
    left = 2 * _MARGIN + max(int(font.getlength(name)) for name in names)
    top, said = 3 * _MARGIN + 2 * _FONT, int(font.getlength(findings.TOO_FEW)) + 2 * _MARGIN
    bottom = top + _ROW * len(audit.probes)
    height = bottom + 2 * _ROW + _ROW * len(audit.faults) + _MARGIN
    width = left + _WIDE + said
    if audit.mean_mask is not None:
        height = max(height, top + _MASK + 3 * _ROW)
        width += _MASK + 2 * _MARGIN
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), title, fill="black", font=bold)
    where = "AUC of telling fake from real by each trace alone, with its interval"
    draw.text((_MARGIN, _MARGIN + _FONT + 8), where, fill=(90, 90, 90), font=font)

    def at(value: float) -> float:
        return left + _WIDE * value

    for tenth in range(0, 11, 2):
        x = at(tenth / 10)
        draw.line((x, top, x, bottom), fill=(221, 224, 228))
        draw.text((x, bottom + 4), f"{tenth / 10:.1f}", fill="black", font=font, anchor="ma")
    for row, found in enumerate(audit.probes):
        y = top + _ROW * row + _ROW // 2
        colour = _COLOURS[found.verdict]
        limit = at(found.level)
        draw.line((limit, y - _ROW // 2, limit, y + _ROW // 2), fill=(200, 60, 10), width=2)
        draw.text((left - _MARGIN, y), found.name, fill="black", font=font, anchor="rm")
        draw.text((at(1.0) + _MARGIN, y), found.verdict, fill=colour, font=font, anchor="lm")
        if found.auc is not None:
            draw.line((at(found.auc.lower), y, at(found.auc.upper), y), fill=colour, width=3)
            x = at(found.auc.value)
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
    for row, fault in enumerate(audit.faults):
        _draw_fault(draw, fault, (left, bottom + 2 * _ROW + _ROW * row), font)
    if audit.mean_mask is not None:
        x = left + _WIDE + said + _MARGIN
        grey = Image.fromarray(np.rint(audit.mean_mask * 255).astype(np.uint8))
        image.paste(grey.resize((_MASK, _MASK), Image.Resampling.NEAREST), (x, top))
        draw.rectangle((x - 1, top - 1, x + _MASK, top + _MASK), outline=(150, 150, 150))
        peak = 100 * float(audit.mean_mask.max())
        caption = f"mean mask, white: in all; at most {peak:.0f}%"
        draw.text((x, top + _MASK + 6), caption, fill="black", font=font)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _draw_fault(
    draw: ImageDraw.ImageDraw, fault: Counted, at: tuple[int, int], font: ImageFont.FreeTypeFont
) -> None:
    """Draws a bar of the share of the images that have a fault, and their number."""
    left, y = at
    colour = _COLOURS[fault.verdict]
    draw.text((left - _MARGIN, y), fault.name, fill="black", font=font, anchor="rm")
    end = left + _WIDE * (fault.found / fault.of if fault.of else 0)
    draw.rectangle((left, y - 6, end, y + 6), fill=colour)
    told = _count(fault)
    inside = end + 8 + font.getlength(told) > left + _WIDE
    place = (left + 8, y) if inside else (end + 8, y)
    draw.text(place, told, fill="white" if inside else "black", font=font, anchor="lm")
    verdict = fault.verdict
    draw.text((left + _WIDE + _MARGIN, y), verdict, fill=colour, font=font, anchor="lm")


def verdict(audit: Audit) -> str:
    """Returns the outcome of an audit in one line."""
    if audit.leaks:
        return f"leak: {', '.join(found.name for found in audit.leaks)}"
    undecided: list[Found] = [f for f in audit.probes if f.verdict == findings.TOO_FEW]
    if undecided:
        return (
            f"{findings.TOO_FEW}: {findings.NEEDED} groups of each kind are needed, and there are"
            f" {' and '.join(f'{count} {kind}' for kind, count in audit.groups.items())}"
        )
    if unknown := [fault.name for fault in audit.faults if fault.verdict == findings.TOO_FEW]:
        return (
            f"{findings.TOO_FEW}: {', '.join(unknown)}: a sample may lack what they are like;"
            " --limit 0 looks at all"
        )
    return findings.NONE
