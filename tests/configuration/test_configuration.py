"""Every variant of the shipped configs, and what is refused."""

import functools
import itertools
import json
import pathlib
import re
import runpy
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from wsdl_jax import configuration, methods
from wsdl_jax.runtime.errors import ConfigError

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
METHODS = ("patches", "grad_cam", "attention", "declip", "dino")
SETUPS = ("a", "b", "c")
GET_CONFIG = {name: runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"] for name in METHODS}

# Fakes that may be trained on, by source and setup: a has fully generated images, b and c masks.
MASKED_CELEBAHQ = {"repaint_p2", "repaint_p2_9k", "ldm", "lama", "pluralistic"}
GENERATORS = {
    ("portraits", "a"): {"regrain", "upsample", "ddpm", "ddpm_reconstructed"},
    ("portraits", "b"): {
        *("regrain", "upsample", "ddpm_repaint", "latent_ddpm", "telea", "navier_stokes")
    },
    ("celebahq", "a"): {"p2"},
    ("celebahq", "b"): MASKED_CELEBAHQ,
    ("ffhq", "a"): {"p2"},
    ("ffhq", "b"): {"repaint_p2"},
}
GENERATORS |= {(source, "c"): names for (source, s), names in GENERATORS.items() if s == "b"}
SOURCES = ("portraits", "celebahq", "ffhq")
ALL_GENERATORS = set.union(*GENERATORS.values())


def dolos(name: str) -> str:
    return f"dolos/{name}"


# (real, fake, test real, test fake) of the paper's experiments, without generator=.
CELEBAHQ_TEST = (dolos("celebahq_real"), dolos("celebahq_repaint_p2"))
PUBLISHED = {
    ("celebahq", "a"): ((dolos("celebahq_real"),), dolos("celebahq_p2"), *CELEBAHQ_TEST),
    ("celebahq", "b"): ((dolos("celebahq_real"),), dolos("celebahq_repaint_p2_9k"), *CELEBAHQ_TEST),
    ("celebahq", "c"): ((), dolos("celebahq_repaint_p2"), *CELEBAHQ_TEST),
    ("ffhq", "a"): ((dolos("ffhq_real"),), dolos("ffhq_p2"), *CELEBAHQ_TEST),
    ("ffhq", "b"): ((dolos("ffhq_real"),), dolos("ffhq_repaint_p2"), *CELEBAHQ_TEST),
    ("ffhq", "c"): ((), dolos("ffhq_repaint_p2"), *CELEBAHQ_TEST),
}


def data(config) -> tuple:
    assert len(config.data.fake) == 1
    tested = config.data.test_real, config.data.test_fake
    return tuple(config.data.real), config.data.fake[0], *tested


# ----- Variants of the shipped configs ---------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_variant_is_valid_or_refused(method):
    for source, setup in itertools.product(SOURCES, SETUPS):
        for generator in (None, *sorted(ALL_GENERATORS)):
            arg = f"setup={setup},source={source}"
            arg += f",generator={generator}" if generator else ""
            valid = GENERATORS[source, setup]
            if generator is None or generator in valid:
                config = GET_CONFIG[method](arg)
                configuration.validate(config)
                assert (config.method, config.setup) == (method, setup)
                assert config.supervision == ("full" if setup == "c" else "weak")
                if generator:
                    assert generator in config.data.fake[0]
            else:
                with pytest.raises(ConfigError) as raised:
                    GET_CONFIG[method](arg)
                message = str(raised.value)
                assert f"generator={generator}" in message
                choices = message.rpartition("choose from ")[2].split(", ")
                assert set(choices) == valid


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("variant", "expected"), PUBLISHED.items(), ids=str)
def test_published_data(method, variant, expected):
    source, setup = variant
    config = GET_CONFIG[method](f"setup={setup},source={source}")
    assert data(config) == expected


@pytest.mark.parametrize("method", METHODS)
def test_portraits_are_the_default(method):
    default = GET_CONFIG[method]()
    full, partial = "portraits/ddpm_reconstructed", "portraits/ddpm_repaint"
    assert data(default) == (("portraits/real",), full, "portraits/real", partial)
    usual = "setup=a,source=portraits,generator=ddpm_reconstructed"
    assert GET_CONFIG[method](usual) == default
    drawn = GET_CONFIG[method]("setup=a,generator=ddpm")
    assert data(drawn) == (("portraits/real",), "portraits/ddpm_full", "portraits/real", partial)
    for setup, real in (("b", ("portraits/real",)), ("c", ())):
        config = GET_CONFIG[method](f"setup={setup}")
        assert data(config) == (real, partial, "portraits/real", partial)
    masks = GET_CONFIG[method]("setup=c,generator=upsample")
    partial = "portraits/upsample"
    assert data(masks) == ((), partial, "portraits/real", partial)
    full = GET_CONFIG[method]("setup=a,generator=upsample")
    assert data(full) == (("portraits/real",), f"{partial}_full", "portraits/real", partial)
    assert default.data.image_size == 96  # as the portraits are


def test_no_two_variants_have_one_run_directory():
    from wsdl_jax.main import default_workdir

    runs = {}
    choices = (SETUPS, SOURCES, (None, *sorted(ALL_GENERATORS)), (None, *sorted(ALL_GENERATORS)))
    for setup, source, generator, left_out in itertools.product(*choices):
        arg = f"setup={setup},source={source}"
        arg += f",generator={generator}" if generator else ""
        arg += f",leave_out={left_out}" if left_out else ""
        try:
            config = GET_CONFIG["patches"](arg)
        except ConfigError:
            continue
        other = runs.setdefault(default_workdir(config), config)
        assert configuration.differences(other, config) == [], arg
    assert "runs/patches-b-dolos-celebahq_repaint_p2_9k" in runs
    assert "runs/patches-a-portraits-ddpm_reconstructed" in runs


def test_a_generator_is_tested_on_its_own_images():
    config = GET_CONFIG["patches"]("setup=c,source=celebahq,generator=lama")
    assert data(config) == ((), "dolos/celebahq_lama", "dolos/celebahq_real", "dolos/celebahq_lama")


@pytest.mark.parametrize("method", METHODS)
def test_what_is_spliced(method):
    def share(arg: str) -> float:
        config = GET_CONFIG[method](arg)
        configuration.validate(config)
        return config.train.splice

    assert share("") == 0.7 and share("splice=0.25") == 0.25 and share("splice=0") == 0
    assert share("setup=b") == share("setup=c") == share("source=celebahq") == 0
    assert share("source=celebahq,splice=0.5") == 0.5
    for refused in ("splice=1", "splice=-0.1", "splice=half", "splice=nan"):
        with pytest.raises(ConfigError, match=f"'{refused}' is not one of .*; splice=0…1; "):
            GET_CONFIG[method](refused)
    with pytest.raises(ConfigError, match=r"splice = 0\.5 with config\.setup = 'c'"):
        share("setup=c,splice=0.5")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["image_folder/mine", "celebahq"])
def test_small_networks_for_other_data(method, source):
    """recipe=small differs from the portraits' recipes in the data alone."""
    for setup, splice in (("a", 0.7), ("a", 0), ("c", 0)):
        variant = f"setup={setup},splice={splice}" if setup == "a" else f"setup={setup}"
        here = GET_CONFIG[method](f"{variant},recipe=small,source={source}")
        configuration.validate(here)
        changed = configuration.differences(GET_CONFIG[method](variant), here)
        subsets = ("real", "fake", "test_real", "test_fake", "spliced_fake")
        assert {line.partition(": ")[0] for line in changed} <= {f"data.{name}" for name in subsets}
        assert "recipe=small" in here.variant
    assert GET_CONFIG[method](f"recipe=small,source={source}").train.splice == 0  # not asked for
    same = GET_CONFIG[method]("recipe=small")
    assert not configuration.differences(same, GET_CONFIG[method]())


def test_a_robust_recipe():
    config = GET_CONFIG["patches"]
    robust, usual = config("augment=robust"), config("")
    assert robust.train.self_blend == 0.4 and usual.train.self_blend == 0
    assert robust.train.epochs > usual.train.epochs and robust.eval.perturbed
    long = config("augment=robust,recipe=long")
    assert long.train.epochs == config("recipe=long").train.epochs
    assert config("augment=robust,splice=0").train.epochs == config("splice=0").train.epochs


def test_where_images_are_self_blended():
    for variant in ("", "setup=b", "setup=c", "source=celebahq,splice=0.5"):
        config = GET_CONFIG["patches"](variant)
        config.train.self_blend = 0.5
        configuration.validate(config)
        for share in (-0.1, 1.1, float("nan")):
            config.train.self_blend = share
            with pytest.raises(ConfigError, match=f"self_blend = {share}: a share, from 0 to 1"):
                configuration.validate(config)
    for variant in ("splice=0", "source=celebahq"):
        config = GET_CONFIG["patches"](variant)
        config.train.self_blend = 0.5
        with pytest.raises(ConfigError, match=r"self_blend = 0\.5: goes with train\.splice in"):
            configuration.validate(config)
    for method in ("grad_cam", "attention"):
        config = GET_CONFIG[method]("setup=b")
        config.train.self_blend = 0.5
        with pytest.raises(ConfigError, match=r"self_blend = 0\.5 in setup b: only for patches, d"):
            configuration.validate(config)


@pytest.mark.parametrize(
    ("variant", "share", "targets"),
    [
        ("", 0.0, "spliced"),
        ("splice=0", 0.0, None),
        ("setup=b", 0.0, None),
        ("setup=b", 0.5, "spliced"),
        ("setup=c", 0.0, "mask"),
        ("setup=c", 0.5, "mask"),
    ],
)
def test_targets_of_locations(variant, share, targets):
    config = GET_CONFIG["patches"](variant)
    config.train.self_blend = share
    assert methods.targets(config) == targets


@pytest.mark.parametrize("method", METHODS)
def test_a_long_recipe(method):
    usual, long = GET_CONFIG[method](), GET_CONFIG[method]("recipe=long")
    configuration.validate(long)
    changed = [line.partition(": ")[0] for line in configuration.differences(usual, long)]
    sooner = ["train.self_blend"] if method == "grad_cam" else []
    assert changed == ["train.epochs", *sooner] and not long.train.self_blend
    assert long.train.epochs > 3 * usual.train.epochs and long.variant == "recipe=long"
    for elsewhere in ("setup=b", "splice=0", "source=celebahq,splice=0.5"):
        with pytest.raises(ConfigError, match="recipe=long: only what is trained on spliced"):
            GET_CONFIG[method](f"recipe=long,{elsewhere}")


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_of_augmentation(method):
    config = GET_CONFIG[method]("augment=robust,setup=c")
    assert config.augment.jpeg > 0 and config.variant == "augment=robust"
    assert GET_CONFIG[method]("setup=c").augment.jpeg == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("name", ["image_folder/mine", "manifest/mine"])
def test_a_dataset_of_ones_own_is_a_source(method, setup, name):
    config = GET_CONFIG[method](f"setup={setup},source={name}")
    configuration.validate(config)
    real, fake = f"{name}_real", f"{name}_fake"
    assert data(config) == (() if setup == "c" else (real,), fake, real, fake)
    paper = GET_CONFIG[method](f"setup={setup},source=celebahq")
    assert config.train == paper.train and config.model == paper.model
    for other in ("generator=p2", "leave_out=ldm"):
        with pytest.raises(ConfigError, match=f"{other} .*source={name}"):
            GET_CONFIG[method](f"setup={setup},source={name},{other}")
    with pytest.raises(ConfigError, match=r"celebahq\|ffhq\|image_folder/NAME\|manifest/NAME; "):
        GET_CONFIG[method](f"setup={setup},source=mine")


def recipes() -> dict[tuple[str, str], dict[str, str]]:
    """The table of recipes in the README of the configs, by method and setup."""
    lines = (CONFIGS / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| recipe |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    head, _, *body = itertools.takewhile(lambda row: len(row) > 1, rows)
    out = {}
    for name, *cells in body:
        method, setups = name.split(" ", 1)
        for setup in setups.split(", "):
            key = method.lower().replace("-", "_"), setup.lower()
            out[key] = dict(zip(head[1:], cells, strict=True))
    return out


def test_the_recipes_are_those_of_the_paper():
    """The README's table, against the facts that it states."""
    columns = "learning rate", "batch", "epochs", "image resize", "flip", "mask target"
    stated = {key: tuple(row[c] for c in columns) for key, row in recipes().items()}
    weak = {"a": "–", "b": "–"}
    assert stated == {
        **{("patches", s): ("1e-3", "64", "100", "Lanczos", "yes", m) for s, m in weak.items()},
        ("patches", "c"): ("1e-3", "16", "50; `leave_out`: 150", "bilinear", "no", "nearest 37"),
        **{("grad_cam", s): ("1e-3", "32", "100", "Lanczos", "yes", m) for s, m in weak.items()},
        ("grad_cam", "c"): ("1e-3", "16", "50", "bilinear", "no", "nearest 19"),
        **{("attention", s): ("1e-4", "16", "15", "bilinear", "no", m) for s, m in weak.items()},
        ("attention", "c"): ("3e-4", "16", "15; `ffhq`: 30", "bilinear", "no", "bilinear 19"),
    }
    assert [row["starting weights"] for row in recipes().values()] == [
        *["`xavier`"] * 2,
        "`torch`",
        *["`timm-xception`, else `torch`"] * 3,
        *["`ffd-attention`, else `normal`"] * 3,
    ]


@pytest.mark.parametrize(
    ("method", "setup", "source"),
    [
        (*variant, source)
        for variant in recipes()
        for source in ("celebahq", "ffhq", "leave_out")
        if (variant[1], source) != ("a", "leave_out")  # P2 alone generates whole images
    ],
)
def test_configs_are_the_recipes(method, setup, source):
    arg = "source=celebahq,leave_out=ldm" if source == "leave_out" else f"source={source}"
    config, recipe = GET_CONFIG[method](f"setup={setup},{arg}"), recipes()[method, setup]
    configuration.validate(config)
    epochs, _, exception = recipe["epochs"].partition("; ")
    if exception.startswith(f"`{source}`: "):
        epochs = exception.split(" ")[1]
    *layout, scheme = re.findall("`(.*?)`", recipe["starting weights"])
    assert [config.init.layout] == (layout or [None])
    assert config.init.scheme == scheme
    assert config.init.path is None
    train, data = config.train, config.data
    assert (train.learning_rate, train.batch, train.epochs) == (
        float(recipe["learning rate"]),
        int(recipe["batch"]),
        int(epochs),
    )
    assert data.resize == recipe["image resize"].lower()
    assert data.flip == (recipe["flip"] == "yes")
    assert (config.supervision == "full") == (recipe["mask target"] != "–")
    if config.supervision == "full":
        resize, size = recipe["mask target"].split(" ")
        assert data.mask_resize == resize
        assert methods.map_size(config) == int(size)
    assert (data.image_size, config.model.width, config.model.depth) == (299, 1, 2)
    assert (train.steps_per_epoch, train.keep_best) == (500, 5)
    assert (train.schedule, train.clip_norm) == ("constant", 0)
    assert config.loss.mask_weight == 1
    assert config.loss.location == "every"


@pytest.mark.parametrize("setup", ["b", "c"])
def test_one_generator_left_out(setup):
    compared = ("repaint_p2_9k", "ldm", "lama", "pluralistic")
    for left in compared:
        config = GET_CONFIG["patches"](f"setup={setup},source=celebahq,leave_out={left}")
        configuration.validate(config)
        assert config.data.fake == tuple(dolos(f"celebahq_{g}") for g in compared if g != left)
        assert config.data.test_fake == dolos(f"celebahq_{left}")
        assert config.data.test_real == dolos("celebahq_real")
        assert config.data.real == ((dolos("celebahq_real"),) if setup == "b" else ())
    config = GET_CONFIG["patches"](f"setup={setup},leave_out=regrain")
    others = ("ddpm_repaint", "latent_ddpm", "telea", "navier_stokes", "upsample")
    assert config.data.fake == tuple(f"portraits/{g}" for g in others)
    assert config.data.test_fake == "portraits/regrain"


@pytest.mark.parametrize(
    "arg",
    [
        "setup=a,source=celebahq,leave_out=ldm",
        "setup=c,source=celebahq,leave_out=regrain",
        "setup=c,source=ffhq,leave_out=ldm",
        "setup=c,source=celebahq,generator=ldm,leave_out=lama",
    ],
)
def test_what_cannot_be_left_out(arg):
    with pytest.raises(ConfigError, match=r"leave_out=\w+ .*source=celebahq: repaint_p2_9k, ldm,"):
        GET_CONFIG["patches"](arg)


@pytest.mark.parametrize(
    "arg", ["setup=d", "source=imagenet", "generator=gan", "setups=a", "setup", "b", "setup=a,,x=1"]
)
def test_variants_that_do_not_exist(arg):
    with pytest.raises(ConfigError) as raised:
        GET_CONFIG["patches"](arg)
    message = str(raised.value)
    assert repr(arg.rpartition(",")[2]) in message
    assert "setup=a|b|c" in message
    assert "source=portraits|celebahq|ffhq" in message
    assert all(generator in message for generator in ALL_GENERATORS)


# ml_collections reads a config file by a method that Python has deprecated.
reads_a_file = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def override(monkeypatch):
    """(config file, flags) → the config that the command gets."""

    def get(path: str, *args: str):
        argv = ["main", f"--config={CONFIGS / path}", *args]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        values(argv)
        return holder.value

    return get


@reads_a_file
@pytest.mark.parametrize("method", METHODS)
def test_overrides(override, method):
    config = override(f"{method}.py:setup=b", "--config.train.batch=8", "--config.data.dir=/data")
    assert (config.setup, config.train.batch, config.data.dir) == ("b", 8, "/data")
    configuration.validate(config)


@reads_a_file
@pytest.mark.parametrize(
    ("flag", "named"),
    [("train.bacth=8", "bacth"), ("model.heads=2", "heads"), ("trane.batch=8", "trane")],
)
def test_misspelt_overrides_fail(override, flag, named):
    with pytest.raises((AttributeError, KeyError), match=named):
        override("patches.py", f"--config.{flag}")


# ----- Validation --------------------------------------------------------------------------------


def invalid(path: str, value, method: str = "patches", arg: str | None = None):
    config = GET_CONFIG[method](arg)
    with config.ignore_type():
        config.update_from_flattened_dict({path: value})
    return config


@pytest.mark.parametrize("path", configuration.CHOICES)
def test_refusals_list_the_choices(path):
    with pytest.raises(ConfigError, match=rf"^config\.{path} = 'wrong': choose from ") as raised:
        configuration.validate(invalid(path, "wrong"))
    listed = str(raised.value).rpartition("choose from ")[2].split(", ")
    assert set(listed) == set(configuration.CHOICES[path])
    assert "wrong" not in listed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.batch", 0),
        ("train.batch", -4),
        ("train.epochs", 0),
        ("train.steps_per_epoch", 0),
        ("train.log_every", 0),
        ("train.keep_best", 0),
        ("train.microbatches", 0),
        ("train.per_device_batch", -1),
        ("train.warmup", -1),
        ("train.learning_rate", 0.0),
        ("train.learning_rate", float("nan")),
        ("train.clip_norm", -1.0),
        ("eval.batch", 0),
        ("model.width", 0.0),
        ("model.depth", 0),
        ("model.depth", 13),
        ("loss.mask_weight", -0.1),
        ("loss.fake_weight", 0.0),
        ("loss.sharpness", 0.0),
        ("loss.topk", 0.0),
        ("loss.topk", 1.1),
        ("loss.power", 0.9),
        ("score.topk", 0.0),
        ("score.power", 0.5),
        ("score.sigma", -1.0),
        ("train.splice", -0.1),
        ("train.splice", 1.0),
        ("train.splice", float("nan")),
        ("data.workers", -1),
        ("data.image_size", 63),
    ],
)
def test_refusals_name_field_and_value(path, value):
    with pytest.raises(ConfigError, match=rf"^config\.{path} = {value}: ") as raised:
        configuration.validate(invalid(path, value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "value", "method", "arg", "named"),
    [
        ("data.real", (), "patches", "setup=a", "data.real is empty"),
        ("data.real", ("portraits/real",), "patches", "setup=c", "data.real is set"),
        ("data.fake", (), "patches", None, "config.data: fake"),
        ("data.test_fake", None, "patches", None, "test_fake"),
        ("data.test_real", None, "patches", None, "test_real"),
        ("loss.location", "max", "patches", "setup=c", "loss.location"),
        ("init.layout", "xception", "grad_cam", None, "choose from dolos-patches, timm-xception"),
        ("loss.location", "average", "attention", None, "loss.location"),
        ("method", None, "patches", None, "config.method"),
        ("train.splice", 0.5, "patches", "setup=b", "0.5 with config.setup = 'b': only fully"),
        ("train.splice", 0.5, "grad_cam", "setup=c", "those of setup c have masks"),
        ("loss.fake_weight", 2.0, "attention", "splice=0", "2.0: goes with train.splice"),
        ("loss.sharpness", 1.0, "patches", "setup=b", "1.0: goes with loss.location=lse"),
        (
            "loss.topk",
            0.2,
            "patches",
            "setup=b,source=celebahq",
            "0.2: goes with loss.location=topk",
        ),
        ("data.sampling", "even", "patches", None, "choose from size, balanced, weights"),
        ("data.weights", (1.0, 2.0), "patches", None, "goes with data.sampling=weights"),
        ("train.weight_decay", 0.1, "patches", None, "0.1: goes with train.optimizer=adamw"),
        ("train.patience", 3, "patches", None, "3: goes with train.schedule=plateau"),
        ("data.sampling", "weights", "patches", None, r"\(\): 2 numbers, one for each"),
        ("loss.power", 2.0, "patches", "setup=b", "2.0: goes with loss.location=gem"),
        ("loss.location", "gem", "patches", "setup=c", "only for weak supervision"),
        ("explanation.kind", "hires_cam", "patches", None, "patches in setup a has no expl"),
        ("explanation.block", 2, "attention", "setup=b", "reads the stage that model.attended s"),
        ("explanation.block", 13, "grad_cam", None, "13: xception has stages 1 to 12"),
        ("model.attended", 0, "attention", None, "0: xception has stages 1 to 12"),
        ("model.backbone", "vgg16", "patches", None, "'vgg16': choose from xception"),
        ("model.backbone_path", "x.pth", "patches", None, "xception takes no file of its own"),
        ("model.frozen", True, "patches", None, "random features that stay as they are detect n"),
        ("model.lora_rank", 4, "patches", None, "4: xception has it not, so it is 0"),
        ("explanation.kind", "cam", "grad_cam", None, "choose from grad_cam, hires_cam, layer"),
        ("score.pooling", "median", "patches", None, "choose from mean, gem, topk, max"),
        ("score.pooling", "gem", "attention", None, "'gem': goes with score.from_map"),
        ("score.from_map", True, "attention", "setup=c", "has no image logit that is its"),
        ("score.from_map", True, "patches", None, "has no image logit that is its score"),
        ("score.from_map", True, "grad_cam", "splice=0", "goes with train.splice for grad_cam"),
        ("score.power", 2.0, "patches", None, "2.0: goes with score.pooling=gem"),
        ("score.topk", 0.2, "patches", None, "0.2: goes with score.pooling=topk"),
        ("score.sigma", 2.0, "patches", None, "2.0: goes with score.pooling=topk"),
    ],
)
def test_impossible_combinations(path, value, method, arg, named):
    with pytest.raises(ConfigError, match=named) as raised:
        configuration.validate(invalid(path, value, method, arg))
    assert "\n" not in str(raised.value)


def test_pmap_keeps_whole_arrays_on_every_device():
    config = invalid("parallel.backend", "pmap", "patches", None)
    configuration.validate(config)
    config.parallel.fsdp = True
    with pytest.raises(ConfigError, match=r"^config\.parallel\.fsdp with .*'pmap': goes with "):
        configuration.validate(config)


@pytest.mark.parametrize(
    ("method", "arg", "fields"),
    [
        ("patches", "setup=b", {"loss.location": "lse", "loss.sharpness": 1.0}),
        ("patches", "setup=b", {"loss.location": "topk", "loss.topk": 0.2}),
        ("patches", "splice=0", {"loss.location": "gem", "loss.power": 2.0}),
        ("patches", None, {"train.splice": 0.7, "loss.fake_weight": 2.0}),
        ("patches", "setup=c", {"score.pooling": "topk", "score.topk": 0.2, "score.sigma": 0.0}),
        ("attention", "setup=b", {"score.from_map": True, "score.pooling": "max"}),
        ("attention", None, {"train.splice": 0.7, "score.from_map": True}),
        ("grad_cam", None, {"explanation.kind": "layer_cam", "explanation.block": 2}),
        ("grad_cam", None, {"train.splice": 0.7, "explanation.kind": "hires_cam"}),
        (
            "grad_cam",
            None,
            {"train.splice": 0.7, "score.from_map": True, "score.pooling": "gem"},
        ),
        ("grad_cam", "setup=c", {"score.pooling": "gem", "score.power": 2.0}),
    ],
)
def test_what_goes_together(method, arg, fields):
    config = GET_CONFIG[method](arg)
    config.update_from_flattened_dict(fields)
    configuration.validate(config)
    assert configuration.load(configuration.save(config)) == config


def test_a_config_without_a_method_is_refused():
    with pytest.raises(ConfigError, match=r"config\.method = None: choose from patches, "):
        configuration.validate(configuration.base())


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("gan", "choose from patches, grad_cam, attention, declip, dino, MODULE:NAME"),
        ("no_such_module:METHOD", "no method no_such_module:METHOD: No module named"),
        ("wsdl_jax.methods.patches:NONE", "has no attribute 'NONE'"),
        ("math:pi", "is of float, where a wsdl_jax.methods.Definition is needed"),
    ],
)
def test_methods_that_do_not_exist(method, reason):
    with pytest.raises(ConfigError, match=rf"^config\.method = '{method}': .*{reason}") as raised:
        configuration.validate(invalid("method", method))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "5", "a:b", "0:3", "3:3", "5:2", "1:2:3"])
def test_steps_that_cannot_be_traced(text):
    with pytest.raises(ConfigError, match=rf"^config\.profile = '{text}': not two steps"):
        configuration.check_circumstances(invalid("profile", text))


def test_steps_to_trace():
    assert list(configuration.profiled_steps(invalid("profile", "3:5"))) == [3, 4]
    assert not configuration.profiled_steps(GET_CONFIG["patches"]())


# ----- Carried to other devices -------------------------------------------------------------------


@pytest.mark.parametrize(("scaling", "rate"), [("none", 1e-3), ("linear", 1e-3 * 32 * 256 / 64)])
def test_a_batch_per_device(scaling, rate):
    config = GET_CONFIG["patches"]("source=celebahq")
    config.train.per_device_batch, config.train.scaling = 32, scaling
    configuration.validate(config)
    pod = configuration.for_devices(config, 256)
    assert (pod.train.batch, pod.train.learning_rate) == (32 * 256, pytest.approx(rate))
    assert (config.train.batch, config.train.learning_rate) == (64, 1e-3)
    assert configuration.for_devices(pod, 256) == pod
    assert "train.batch: 8192 → 4096" in configuration.differences(
        pod, configuration.for_devices(config, 128)
    )


def test_recipes_do_not_change_by_themselves():
    config = GET_CONFIG["patches"]("source=celebahq")
    assert configuration.for_devices(config, 256) == config


def test_a_plateau_below_its_lowest_rate():
    config = invalid("train.learning_rate", 5e-7)
    configuration.validate(config)
    config.train.schedule = "plateau"
    with pytest.raises(ConfigError, match=r"learning_rate = 5e-07: train\.schedule=plateau ends"):
        configuration.validate(config)


def test_scaling_without_a_batch_per_device():
    with pytest.raises(ConfigError, match=r"'linear': goes with train\.per_device_batch"):
        configuration.validate(invalid("train.scaling", "linear"))


# ----- On disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("method", METHODS)
def test_save_and_load(method, setup):
    config = GET_CONFIG[method](f"setup={setup},source=celebahq")
    config.train.learning_rate, config.seed = 3.7e-5, 11
    text = configuration.save(config)
    loaded = configuration.load(text)
    assert loaded.to_dict() == config.to_dict()
    assert configuration.differences(config, loaded) == []
    assert configuration.save(loaded) == text
    assert json.loads(text)["train"]["learning_rate"] == 3.7e-5


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "{}", '{"colour": 1}'])
def test_what_is_not_a_config_is_refused(text):
    with pytest.raises(ConfigError) as raised:
        configuration.load(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]"])
def test_no_version_is_named_for_what_is_damaged(text):
    with pytest.raises(ConfigError, match="not a config of this version") as raised:
        configuration.load(text)
    assert "which has written it" not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.bacth", 3),
        ("train.batch", "many"),
        ("train.batch", None),
        ("data.fake", 3),
        ("data.flip", "yes"),
        ("train", 5),
        ("seed", {"a": 1}),
    ],
)
def test_stored_fields_of_another_kind_are_refused(path, value):
    stored = json.loads(configuration.save(GET_CONFIG["patches"]()))
    *parents, key = path.split(".")
    functools.reduce(dict.__getitem__, parents, stored)[key] = value
    with pytest.raises(ConfigError, match="not a config of this version") as raised:
        configuration.load(json.dumps(stored))
    assert "\n" not in str(raised.value)


def test_a_stored_config_is_validated():
    stored = json.loads(configuration.save(GET_CONFIG["patches"]()))
    stored["model"]["depth"] = 99
    with pytest.raises(ConfigError, match=r"config\.model\.depth = 99"):
        configuration.load(json.dumps(stored))


def test_differences_name_field_and_values():
    old, new = GET_CONFIG["patches"](), GET_CONFIG["patches"]()
    assert configuration.differences(old, new) == []
    new.train.batch, new.model.dtype, new.seed = 99, "bfloat16", 5
    assert configuration.differences(old, new) == [
        "model.dtype: float32 → bfloat16",
        "seed: 0 → 5",
        f"train.batch: {old.train.batch} → 99",
    ]


def test_where_and_how_fast_data_is_read_is_no_difference():
    old, new = GET_CONFIG["patches"](), GET_CONFIG["patches"]()
    new.data.dir, new.data.manual_dir, new.data.workers = "/elsewhere", "/download", 3
    new.data.cache, new.parallel.fsdp = True, True
    assert configuration.differences(old, new) == []
    old.data.real = ("portraits/real", "portraits/real-96px")
    assert len(configuration.differences(old, new)) == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"data.cache": True, "data.workers": 2}, r"data\.cache with .*workers = 2: each worker"),
        ({"profile": "3:22", "train.epochs": 2, "train.steps_per_epoch": 10}, "STOP is at most 21"),
    ],
)
def test_what_would_do_harm_or_nothing_is_refused(fields, told):
    config = configuration.base()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=told):
        configuration.check_circumstances(config)
    # A run that was trained so before stays readable.
    config.method, config.data.fake, config.data.test_fake = "patches", ("a/b",), "a/c"
    assert configuration.load(configuration.save(config)) == config
