"""Keys and values behind the colon of a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.variants import Variant, parse

VARIANTS = (
    Variant("setup", ("a", "b"), "a"),
    Variant("source", ("faces",), "faces", prefixes=("own/",)),
    Variant("weights", ()),
    Variant("seeds", (), "1", is_count=True),
)
DEFAULTS = {"setup": "a", "source": "faces", "weights": None, "seeds": "1"}


@pytest.mark.parametrize("text", [None, "", ","])
def test_nothing_gives_the_defaults(text):
    assert parse(text, VARIANTS) == DEFAULTS


@given(
    given_values=st.fixed_dictionaries(
        {},
        optional={
            "setup": st.sampled_from(["a", "b"]),
            "source": st.sampled_from(["faces", "own/mine", "own/a/b"]),
            "weights": st.from_regex(r"[\w./=-]+", fullmatch=True),
            "seeds": st.integers(1, 999).map(str),
        },
    ),
    order=st.randoms(use_true_random=False),
)
def test_what_is_given_in_any_order_is_read(given_values, order):
    parts = [f"{key}={value}" for key, value in given_values.items()]
    order.shuffle(parts)
    assert parse(",".join(parts), VARIANTS) == {**DEFAULTS, **given_values}


@pytest.mark.parametrize(
    "part",
    [
        *("setup=c", "setup", "setup=", "seeds=0", "seeds=-1", "seeds=x"),
        *("weights=", "own/x", "x=1", "source=own/", "source=mine"),
    ],
)
def test_what_is_not_valid_is_named_beside_what_is(part):
    with pytest.raises(ConfigError) as raised:
        parse(f"setup=b,{part}", VARIANTS, "sweep")
    assert str(raised.value) == (
        f"sweep variant {part!r} is not one of setup=a|b; source=faces|own/NAME; weights=…; "
        "seeds=1|2|…"
    )
