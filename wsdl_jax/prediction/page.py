"""index.html: the table of a user's images as a page, with small pictures."""

import html
import importlib.resources
import os
import urllib.parse

from wsdl_jax.prediction import table
from wsdl_jax.runtime.errors import printable


def render(rows: list[table.Row], mode: str, rule: str, *, has_trust: bool) -> str:
    """Returns the page: one table, without scripts, and without anything that is not beside it.

    Args:
      rows: of the images.
      mode: of the localizer, "resize" or "tile".
      rule: how verdicts are found, in words.
      has_trust: whether it is shown where maps can be trusted.
    """
    import jinja2  # which takes long, and is not needed by those who only import the localizer
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = lambda text: Markup(html.escape(printable(text)))
    source = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    return environment.from_string(source).render(
        summary=f"{table.verdict_counts(rows)}. Mode: {mode}; {rule}. Bright is manipulated.",
        has_trust=has_trust,
        rows=rows,
        link=_link,
    )


def _link(row: table.Row, folder: str, suffix: str) -> str:
    """Returns the address of an image's file in a folder beside the page."""
    return urllib.parse.quote(os.fsencode(f"{folder}/{row.name}.{suffix}"))
