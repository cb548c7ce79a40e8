"""Every subset that the catalogue names is one of a builder's, with masks where it needs them."""

import itertools

import pytest

from wsdl_data import build, catalogue
from wsdl_jax.runtime.errors import ConfigError

SETUPS = ("a", "b", "c")


def sources() -> list[catalogue.Source]:
    return [catalogue.source(name) for name in catalogue.names()]


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_its_subsets_are_those_of_a_builder(source, tmp_path):
    for setup in SETUPS:
        kind = source.full if setup == "a" else source.partial
        for generator in (None, *kind):
            subsets = source.subsets(setup, generator)
            assert subsets.real == (source.real,)
            masked = (*subsets.fake, subsets.test_fake) if setup != "a" else (subsets.test_fake,)
            for name in {*subsets.real, *subsets.fake, subsets.test_real, *masked}:
                builder = build.make_builder(name, str(tmp_path))
                assert f"{builder.name}/{builder.builder_config_name}" == name
                if name in masked:
                    assert "mask" in builder.info.features


@pytest.mark.parametrize("name", catalogue.compared_sources())
def test_each_generator_can_be_left_out(name):
    source = catalogue.source(name)
    for left in source.compared:
        subsets = source.subsets("c", leave_out=left)
        assert subsets.test_fake == source.comparison[left]
        assert {subsets.test_fake, *subsets.fake} == {*source.comparison.values()}
        assert subsets.test_fake not in subsets.fake


def test_a_dataset_of_ones_own_is_the_same_in_every_setup():
    source = catalogue.source("image_folder/mine")
    assert len({source.subsets(setup) for setup in SETUPS}) == 1
    assert not source.is_small and not source.is_cross_dataset


def test_who_is_tested_on_other_faces():
    crossed = {source.name for source in sources() if source.is_cross_dataset}
    assert crossed == {"ffhq"}


def test_sources_that_do_not_exist():
    with pytest.raises(ConfigError, match="source=imagenet: choose from portraits, celebahq, ffhq"):
        catalogue.source("imagenet")


def test_variants_accept_what_some_source_has():
    accepted = {variant.key: variant for variant in catalogue.variants()}
    for source, kind in itertools.product(sources(), ("full", "partial")):
        assert accepted["source"].accepts(source.name)
        assert all(map(accepted["generator"].accepts, getattr(source, kind)))
        assert all(map(accepted["leave_out"].accepts, source.compared))
