"""Audits a dataset: can the label be told without looking at the content?

    python -m wsdl_data.audit image_folder/mine
    python -m wsdl_data.audit --real portraits/real --fake portraits/ddpm_repaint --out audit
    python -m wsdl_data.audit image_folder/mine --images SOURCE --manipulated white

The first two audit prepared subsets. The third audits a source before it is built, as which it has
the files that were given: other formats than PNG and JPEG are kept as PNG.

Exit status: 3 for a leak, 0 for none, 1 for an error, and where there are too few images to tell,
as in a sample (--limit) for the images that are there twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from wsdl_data.audit import findings, report
from wsdl_data.audit.images import Images, Prepared, Source
from wsdl_data.catalogue import OWN
from wsdl_data.own.groups import Grouping
from wsdl_data.own.masks import Manipulated
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import ConfigError, UserError, reason

LEAK = 3  # exit status
_MADE_BY = "audit"  # folders of which may be replaced by the next one
_LIMIT = 5000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit status, see the module."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        images = _images(parser, arguments)
        title = arguments.name or f"{arguments.real} and {arguments.fake}"
        if arguments.out is not None:
            storage.check_folder(arguments.out, replaces=_MADE_BY)  # before minutes of work
        audit = findings.audit(images, arguments.limit)
        table = report.text(audit, title)
        print(table)
        if arguments.out is not None:
            with storage.whole_folder(arguments.out, replaces=_MADE_BY) as made:
                (made / "audit.md").write_text(table, encoding="utf-8")
                text = report.as_json(audit, title)
                (made / "audit.json").write_text(text, encoding="utf-8")
                (made / "audit.png").write_bytes(report.picture(audit, title))
    except ConfigError as error:
        parser.error(str(error))
    except UserError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(reason(error))
    except KeyboardInterrupt:
        return 130
    if audit.is_undecided and not audit.leaks:
        return _failed(report.verdict(audit))
    print(report.verdict(audit))
    return LEAK if audit.leaks else 0


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wsdl_data.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="of images of your own, image_folder/NAME"
    )
    parser.add_argument("--real", metavar="SUBSET", help="in place of NAME: real images")
    parser.add_argument("--fake", metavar="SUBSET", help="in place of NAME: fake images")
    parser.add_argument(
        "--data_dir", metavar="DIR", help="of prepared datasets (default: ~/tensorflow_datasets)"
    )
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="images in whose paths it finds the same are of one origin; by default as the dataset"
        " was built, or else those with the same name, without folders and ending",
    )
    parser.add_argument(
        "--limit",
        type=_count,
        default=_LIMIT,
        metavar="N",
        help=f"about how many images of each kind are looked at, in whole groups (default: {_LIMIT}"
        "); 0 for all",
    )
    parser.add_argument(
        "--out", type=epath.Path, metavar="DIR", help="folder for audit.md, audit.json, audit.png"
    )
    source = parser.add_argument_group("a source that is not built yet, as for wsdl_data.build")
    source.add_argument("--images", metavar="SOURCE", help="a folder, a list, or a manifest")
    source.add_argument(
        *("--manipulated", "--masks"),
        dest="masks",
        metavar="white|black|green|above:N|none",
        help="what is manipulated in the masks",
    )
    source.add_argument("--layout", metavar="NAME", help="of a public dataset, of manifest/NAME")
    source.add_argument("--root", metavar="DIR", help="that paths of manifest/NAME are relative to")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images")
    return int(text)


def _images(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Images:
    """Returns what the flags ask for. Raises UserError where it is not in order."""
    name, pair = arguments.name, (arguments.real, arguments.fake)
    if (name is None) != all(pair) or any(pair) != all(pair):
        parser.error("name a dataset, or two subsets by --real and --fake")
    if name is not None and not (name.startswith(OWN) and name.partition("/")[2]):
        parser.error(f"{name!r} is not {' or '.join(f'{own}NAME' for own in OWN)}; see --help")
    if arguments.images is None:
        for flag in ("masks", "layout", "root"):
            if getattr(arguments, flag) is not None:
                parser.error("--manipulated, --layout and --root go with --images")
        real, fake = pair if name is None else (f"{name}_real", f"{name}_fake")
        return Prepared(real, fake, arguments.data_dir, _grouping(arguments.group))
    if name is None:
        parser.error("--images goes with image_folder/NAME and manifest/NAME")
    return Source.of(
        name, arguments.images, arguments.masks, arguments.group, **_options(arguments)
    )


def _grouping(pattern: str | None) -> Grouping:
    try:
        return Grouping(pattern)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _options(arguments: argparse.Namespace) -> dict[str, Path | str]:
    """Returns what only manifests take. Raises ConfigError for a value that is not valid."""
    options: dict[str, Path | str] = {}
    if arguments.masks not in (None, "none"):
        try:
            Manipulated(arguments.masks)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if not arguments.name.startswith("manifest/") and (arguments.root or arguments.layout):
        raise ConfigError("--root and --layout go with manifest/NAME")
    if arguments.root:
        options["root"] = Path(arguments.root)
    if arguments.layout:
        from wsdl_data.manifest.layouts import LAYOUTS

        if arguments.layout not in LAYOUTS:
            raise ConfigError(f"no layout {arguments.layout!r}; choose from {', '.join(LAYOUTS)}")
        options["layout"] = arguments.layout
    return options


if __name__ == "__main__":
    sys.exit(main())
