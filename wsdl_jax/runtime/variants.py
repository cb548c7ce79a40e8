"""Variants: the keys and values behind the colon of a config file or a sweep file."""

import dataclasses
from collections.abc import Iterable

from wsdl_jax.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Variant:
    """A key that a file takes behind its colon, as in "file.py:KEY=VALUE,KEY=VALUE".

    Attributes:
      key: its name.
      choices: the valid values; empty where any text is, or any count.
      default: the value where the key is not given.
      prefixes: what a value may begin with instead of being one of `choices`, such as
        "image_folder/".
      is_count: whether the values are the whole numbers from 1 on.
      is_share: whether the values are the numbers from 0 up to, and without, 1.
    """

    key: str
    choices: tuple[str, ...]
    default: str | None = None
    prefixes: tuple[str, ...] = ()
    is_count: bool = False
    is_share: bool = False

    def accepts(self, value: str) -> bool:
        """Returns whether a value is valid."""
        if self.is_count:
            return value.isdecimal() and int(value) > 0
        if self.is_share:
            try:
                return 0 <= float(value) < 1
            except ValueError:
                return False
        if not self.choices:
            return bool(value)
        return value in self.choices or (
            value.startswith(self.prefixes) and value not in self.prefixes
        )

    def __str__(self) -> str:
        if self.is_count:
            return f"{self.key}=1|2|…"
        if self.is_share:
            return f"{self.key}=0…1"
        forms = [*self.choices, *(f"{prefix}NAME" for prefix in self.prefixes)]
        return f"{self.key}={'|'.join(forms) or '…'}"


def parse(
    text: str | None, variants: Iterable[Variant], kind: str = "config"
) -> dict[str, str | None]:
    """Returns the value of every variant, as a text gives them, or their defaults.

    Args:
      text: "KEY=VALUE,KEY=VALUE", in any order; None and "" give nothing.
      variants: those that there are.
      kind: of the file, for the message of an error.

    Raises:
      ConfigError: another key, or a value that is not valid; it lists what is.
    """
    known = {variant.key: variant for variant in variants}
    values = {key: variant.default for key, variant in known.items()}
    for part in filter(None, (text or "").split(",")):
        key, _, value = part.partition("=")
        if key not in known or not known[key].accepts(value):
            forms = "; ".join(map(str, known.values()))
            raise ConfigError(f"{kind} variant {part!r} is not one of {forms}")
        values[key] = value
    return values
