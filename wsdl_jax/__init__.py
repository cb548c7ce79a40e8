"""Weakly-supervised localization of image manipulations, in JAX.

    from wsdl_jax import Localizer
    localizer = Localizer.load("runs/patches-a-portraits-ddpm_reconstructed")

The package is imported in no time; what it offers is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsdl_jax.prediction.localizer import Localizer

__all__ = ["Localizer"]


def __getattr__(name: str) -> Any:
    if name == "Localizer":
        from wsdl_jax.prediction.localizer import Localizer

        return Localizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
