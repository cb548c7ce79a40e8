"""The catalogue: what each source of images has to train and test on, by setup and generator.

A source is one object, with everything that depends on it. A new one is an entry of `_SOURCES`, and
a TFDS builder beside the others.
"""

import dataclasses
from collections.abc import Mapping

from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.variants import Variant

OWN = ("image_folder/", "manifest/")  # and the name of a dataset of one's own: a source, too


@dataclasses.dataclass(frozen=True)
class Subsets:
    """Prepared subsets to train and test on, by their names.

    Attributes:
      real: real images to train on.
      fake: fake images to train on.
      test_real: the real images whose test split is scored.
      test_fake: the fake ones.
      spliced_fake: whole fakes that validation images are spliced from where `fake` has none.
    """

    real: tuple[str, ...]
    fake: tuple[str, ...]
    test_real: str
    test_fake: str
    spliced_fake: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """What a source has.

    Subsets of fake images are named by their generator. A generator makes whole images, for setup
    "a", or parts of real ones with masks, for "b" and "c".

    Attributes:
      name: as users write it, source=NAME.
      real: the subset of real images that is trained on.
      full: the subsets of fully generated images, by generator.
      partial: the subsets of images with a generated part, by generator.
      usual: the generator of each setup where none is asked for.
      test_real: the subset of real images that is tested on.
      tested: the subsets of fakes that can be tested on, by generator.
      usually_tested: the generator that is tested on where none is asked for, or one that is not
        among them.
      compared: generators whose subsets have one size, for comparisons across generators.
      is_small: whether it is made for small networks, which train in minutes on a processor.
    """

    name: str
    real: str
    full: Mapping[str, str]
    partial: Mapping[str, str]
    usual: Mapping[str, str]
    test_real: str
    tested: Mapping[str, str]
    usually_tested: str
    compared: tuple[str, ...] = ()
    is_small: bool = False

    @property
    def is_cross_dataset(self) -> bool:
        """Returns whether other real images are tested on than are trained on."""
        return self.real != self.test_real

    @property
    def comparison(self) -> dict[str, str]:
        """Returns the subsets that are compared across generators, by generator."""
        return {generator: self.partial[generator] for generator in self.compared}

    def subsets(
        self, setup: str, generator: str | None = None, leave_out: str | None = None
    ) -> Subsets:
        """Returns what is trained and tested on.

        Args:
          setup: "a": fully generated fakes; "b" and "c": fakes with a generated part.
          generator: the one that is trained on and, where it can be, tested on; by default the
            setup's usual one.
          leave_out: the one of those compared that is tested on, while all others are trained on.

        Raises:
          ConfigError: the source has no such images.
        """
        whole = (self.full[self.usual["a"]],) if setup == "b" else ()
        if leave_out is not None:
            if setup == "a" or generator is not None or leave_out not in self.compared:
                raise ConfigError(
                    f"leave_out={leave_out} (setup={setup}, source={self.name}): goes with "
                    f"setup=b|c and without generator=; {_comparisons()}"
                )
            others = (name for name in self.compared if name != leave_out)
            fake = tuple(self.partial[name] for name in others)
            tested = self.partial[leave_out]
            return Subsets((self.real,), fake, self.test_real, tested, whole)
        kind = self.full if setup == "a" else self.partial
        if generator is not None and generator not in kind:
            raise ConfigError(
                f"generator={generator} has no {'fully generated' if setup == 'a' else 'masked'} "
                f"images in source={self.name} (setup={setup}): choose from {', '.join(kind)}"
            )
        tested = generator if generator in self.tested else self.usually_tested
        fake = kind[generator or self.usual[setup]]
        return Subsets((self.real,), (fake,), self.test_real, self.tested[tested], whole)


@dataclasses.dataclass(frozen=True)
class OwnSource:
    """A dataset of one's own: one set of real and one of fake images, in every setup.

    Attributes:
      name: "image_folder/NAME" or "manifest/NAME".
    """

    name: str
    is_small = False
    is_cross_dataset = False

    def subsets(
        self, setup: str, generator: str | None = None, leave_out: str | None = None
    ) -> Subsets:
        """Returns what is trained and tested on, which is the same in every setup.

        Raises ConfigError where a generator is given, to choose or to leave out.
        """
        if leave_out is not None:
            raise ConfigError(
                f"leave_out={leave_out} (setup={setup}, source={self.name}): a dataset of one's "
                f"own has no generators to compare; {_comparisons()}"
            )
        if generator is not None:
            raise ConfigError(
                f"generator={generator} (source={self.name}): a dataset of one's own has no "
                "generators to choose from"
            )
        real, fake = f"{self.name}_real", f"{self.name}_fake"
        return Subsets((real,), (fake,), real, fake)


def _subsets(prefix: str, generators: tuple[str, ...], suffix: str = "") -> dict[str, str]:
    return {generator: f"{prefix}{generator}{suffix}" for generator in generators}


_PORTRAITS = _subsets(
    "portraits/",
    ("ddpm_repaint", "latent_ddpm", "telea", "navier_stokes", "regrain", "upsample"),
)
# All masked subsets of Dolos are tested on CelebA-HQ, the only part with test images.
_CELEBAHQ = _subsets(
    "dolos/celebahq_", ("repaint_p2", "repaint_p2_9k", "ldm", "lama", "pluralistic")
)
_SOURCES = {
    source.name: source
    for source in (
        Source(
            name="portraits",
            real="portraits/real",
            full={
                **_subsets("portraits/", ("ddpm_reconstructed",)),
                **_subsets("portraits/", ("ddpm", "regrain", "upsample"), "_full"),
            },
            partial=_PORTRAITS,
            usual={"a": "ddpm_reconstructed", "b": "ddpm_repaint", "c": "ddpm_repaint"},
            test_real="portraits/real",
            tested=_PORTRAITS,
            usually_tested="ddpm_repaint",
            compared=tuple(_PORTRAITS),
            is_small=True,
        ),
        # The paper's: setup b has as many fakes as real images.
        Source(
            name="celebahq",
            real="dolos/celebahq_real",
            full=_subsets("dolos/celebahq_", ("p2",)),
            partial=_CELEBAHQ,
            usual={"a": "p2", "b": "repaint_p2_9k", "c": "repaint_p2"},
            test_real="dolos/celebahq_real",
            tested=_CELEBAHQ,
            usually_tested="repaint_p2",
            compared=("repaint_p2_9k", "ldm", "lama", "pluralistic"),
        ),
        Source(
            name="ffhq",
            real="dolos/ffhq_real",
            full=_subsets("dolos/ffhq_", ("p2",)),
            partial=_subsets("dolos/ffhq_", ("repaint_p2",)),
            usual={"a": "p2", "b": "repaint_p2", "c": "repaint_p2"},
            test_real="dolos/celebahq_real",
            tested=_CELEBAHQ,
            usually_tested="repaint_p2",
        ),
    )
}


def _comparisons() -> str:
    lines = [f"source={n}: {', '.join(s.compared)}" for n, s in _SOURCES.items() if s.compared]
    return f"generators are compared in {'; '.join(lines)}"


def names() -> tuple[str, ...]:
    """Returns the names of the sources that the package has."""
    return tuple(_SOURCES)


def source(name: str) -> Source | OwnSource:
    """Returns a source of the catalogue, or a dataset of one's own.

    Raises ConfigError for any other name.
    """
    if name in _SOURCES:
        return _SOURCES[name]
    if name.startswith(OWN):
        return OwnSource(name)
    own = [f"{prefix}NAME" for prefix in OWN]
    raise ConfigError(f"source={name}: choose from {', '.join([*_SOURCES, *own])}")


def compared_sources() -> tuple[str, ...]:
    """Returns the names of the sources that have generators to compare."""
    return tuple(name for name, source in _SOURCES.items() if source.compared)


def variants() -> tuple[Variant, ...]:
    """Returns the variants of a config that say which data it takes."""
    sources = _SOURCES.values()
    generators = {g for s in sources for kind in (s.full, s.partial) for g in kind}
    compared = {generator for source in sources for generator in source.compared}
    return (
        Variant("source", names(), "portraits", prefixes=OWN),
        Variant("generator", tuple(sorted(generators))),
        Variant("leave_out", tuple(sorted(compared))),
    )
