"""The page of a user's images, read back."""

import html.parser
import os
import urllib.parse
from pathlib import Path

from etils import epath
from made_images import files_in, smooth, table

from wsdl_jax.prediction import folder


class Page(html.parser.HTMLParser):
    """Elements, links and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_page_escapes_names_and_links_what_is_there(trained, tmp_path, cut_amid):
    images = tmp_path / "images"
    names = ['<script>alert("x")<', "per%20cent?#.png", "it's & ü.png", "line\nbreak, comma.png"]
    images.mkdir()
    cut_amid(smooth(30, 40), "resize")
    for name in names:
        smooth(30, 40).save(images / name, "PNG")
    smooth(30, 40).save(os.fsencode(images) + b"/\xff.png", "PNG")  # not UTF-8
    (images / "<img src=x>").touch()
    out = tmp_path / "out"
    rows = folder.predict(trained, [str(images)], epath.Path(out))
    page = Page(out / "index.html")
    assert not page.tags & {"script", "link", "iframe"}
    for name in [*names, "<img src=x>"]:
        assert str(images / name) in page.cells
    linked = {urllib.parse.unquote_to_bytes(link) for link in page.links}
    written = {os.fsencode(path) for path in files_in(out)}
    assert linked == written - {b"index.html", b"predictions.csv", b"evidence.jsonl"}
    assert len(written) == 3 + 5 * 5
    stored = {row["file"] for row in table(out)}
    assert stored == {row.file.replace("\udcff", "\\udcff") for row in rows}
