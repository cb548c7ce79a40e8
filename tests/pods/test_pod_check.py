"""The command compiles for TPU slices that are not here; the first tests need no libtpu."""

import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_main import FORKS, PYTHON, REPOSITORY

from wsdl_jax import configuration, pod_check
from wsdl_jax.pods import check, cost, report, topology
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.parallel import Parallel

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 1e3, "MB": 1e6, "GB": 1e9}
UNITS |= {"MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12}
GIB = 2**30

# Patches cut after block 1, all of eight channels, for 128 px.
NARROW = {"model.width": 0.05, "model.depth": 1, "data.image_size": 128}
# Its layers: locations of the output, weights.
LAYERS = {
    "conv1": (63 * 63, 3 * 3 * 3 * 8),
    "conv2": (61 * 61, 3 * 3 * 8 * 8),
    "block 1, first": (61 * 61, 3 * 3 * 8 + 8 * 8),
    "block 1, second": (61 * 61, 3 * 3 * 8 + 8 * 8),
    "block 1, shortcut": (31 * 31, 8 * 8),
    "head": (31 * 31, 8 * 2),
}
PRODUCTS = sum(locations * weights for locations, weights in LAYERS.values())
NORMALIZED = 5 * 8  # channels behind all layers but the head
PARAMETERS = sum(weights for _, weights in LAYERS.values()) + 2 * NORMALIZED + 2


def command(variant: str, *arguments: str, **overrides: Any) -> tuple[str, ...]:
    fields = {**NARROW, **{key.replace("__", "."): value for key, value in overrides.items()}}
    return (
        *("wsdl_jax.pod_check", "--config", f"{REPOSITORY}/configs/patches.py:{variant}"),
        *arguments,
        *(f"--config.{field}={value}" for field, value in fields.items()),
    )


def rows(out: str) -> dict[str, str]:
    return {line[:20].strip(): line[20:] for line in out.splitlines()}


def number(text: str) -> float:
    """The first figure of a row, in its unit."""
    value, unit = re.match(r"([\d.]+) (\w+)", text).groups()
    return float(value) * UNITS[unit]


# ----- Without libtpu ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:", "v5e:3x3", "v5e:32x32", "v5e:4x4x4", "v5p:4x4", "v7:2x2", "4x4", ""]
)
def test_unknown_slices_are_refused_with_what_is_valid(name):
    with pytest.raises(ConfigError, match=f"--topology {name}: choose v5e or v6e .*16x16.* v5p"):
        topology.make_devices(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"pip install 'wsdl-jax\[tpu\]'"):
        topology.make_devices("v5e:2x2")


@pytest.mark.parametrize(
    ("message", "needed", "chip"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (40.76G) exceeds available HBM (15.75G).",
            40.76 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 1.02T of 512.5M hbm. Exceeded hbm capacity by 1.02T.",
            1.02 * 1024 * GIB,
            512.5 * 2**20,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17M of 16M vmem.", 0, 0),
        ("INTERNAL: something else", 0, 0),
    ],
)
def test_refusals_are_read(message, needed, chip):
    said = cost.refusal(message)
    if needed:
        assert (said.needed, said.chip) == pytest.approx((needed, chip))
        text = report.cost_table(said, said.chip)
        assert text.startswith("memory per chip ") and text.endswith("does not fit")
        assert not report.fits(said, said.chip)
    else:
        assert said is None


def test_collectives_are_counted_by_their_results():
    program = """
  %psum.1 = f32[8]{0:T(128)S(1)} all-reduce(%a), channel_id=1, to_apply=%region_1.0
  %x = (f32[3,3,1,8]{3,2,1,0}, /*index=1*/bf16[16]{0}, s32[], pred[4]{0}) all-reduce-start(%b, %c)
  %y = (f32[3,3,1,8]{3,2,1,0}, bf16[16]{0}) all-reduce-done(%x)
  %g = f32[8]{0} get-tuple-element(%all-reduce.20), index=0
  ROOT %z = bf16[4,2]{1,0} all-gather(%d), metadata={op_name="jit(step)/all-reduce(x)"}
"""
    assert cost.collectives(program) == (3, 4 * 8 + (4 * 72 + 2 * 16 + 4 + 4) + 2 * 8)


@given(st.integers(0, 5000), st.integers(1, 500))
def test_largest_is_within_an_eighth(limit, start):
    tried = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    found = check.largest_that_fits(fits, start)
    assert min(tried) >= 1 and len(set(tried)) == len(tried)
    assert found == 0 if limit == 0 else found <= limit and found in tried
    # The number that does not fit next was tried too.
    above = min(number for number in tried if number > limit)
    assert above - found <= max(1, found / 8)


@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
@pytest.mark.parametrize("count", [8, 2])
def test_shapes_are_those_of_what_a_run_passes(backend, count):
    parallel = Parallel(backend, None if count == 8 else jax.devices()[:count])
    state = {"a": np.ones((3, 2), np.float32), "b": np.int32(1)}
    batch = {"image": np.ones((16, 4, 4, 3), np.float32), "label": np.arange(16, dtype=np.int32)}

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    found = parallel.shapes(shapes(state), shapes(batch))
    if count == 8:
        passed = parallel.distribute(state), parallel.shard(batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
            lambda x: (x.shape, x.dtype), passed
        )
        if backend == "shard_map":
            of = jax.tree.map(lambda x: x.sharding, (found, passed))
            assert of[0] == of[1]
    mapped = parallel.map(lambda state, batch: (state["b"], batch["label"] + state["b"]))
    compiled = mapped.lower(*found).compile()
    assert len(compiled.runtime_executable().local_devices()) == count


def test_a_step_on_features_takes_these_and_no_backbone():
    config = configuration.base()
    fields = {"method": "patches", "model.frozen": True, "model.width": 0.05, "model.depth": 1}
    config.update_from_flattened_dict({**fields, "data.image_size": 64, "train.batch": 2})
    parallel = Parallel("shard_map", jax.devices()[:1])

    def arguments(step: str) -> tuple[Any, Any]:
        (state, batch), _ = cost.lower(config, step, 2, parallel).in_avals
        return state, batch["image"]

    state, image = arguments("train")
    assert "backbone" in state and (image.shape, image.dtype) == ((2, 64, 64, 3), np.uint8)
    config.data.features = "cached"
    on_features, features = arguments("train")
    channels = state["params"]["classifier"]["kernel"].shape[-2]
    assert (features.shape, features.dtype) == ((2, 15, 15, channels), jnp.bfloat16)
    assert on_features.keys() == state.keys() - {"backbone"}
    for name in on_features:
        assert jax.tree.structure(on_features[name]) == jax.tree.structure(state[name])
    state, image = arguments("evaluate")  # which is always of images
    assert "backbone" in state and image.shape == (2, 64, 64, 3)


def test_a_run_does_not_know_of_the_check():
    """Neither a run nor the import of the check changes the environment; JAX alone does."""
    code = """
import jax, json, os, pkgutil, sys
before = dict(os.environ)
import wsdl_jax.main
assert not [name for name in sys.modules if name.startswith("wsdl_jax.pod")]
for module in pkgutil.walk_packages(wsdl_jax.__path__, "wsdl_jax."):
    __import__(module.name)
assert {"wsdl_jax.pod_check", "wsdl_jax.pods.topology"} <= set(sys.modules)
print(json.dumps(sorted(k for k, v in os.environ.items() if before.get(k) != v)))
"""
    done = subprocess.run(
        [*PYTHON, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    changed = json.loads(done.stdout)
    assert not [name for name in changed if "TPU" in name or "JAX" in name or "XLA" in name]


# ----- With libtpu -------------------------------------------------------------------------------

LINES = {
    "weak": command("source=celebahq", "--topology=v5e:16x16"),
    "full": command(
        "setup=c,source=celebahq", "--topology=v5e:4x4", "--per-chip-batch=8", data__image_size=64
    ),
    "evaluate": command("", "--topology=v6e:16x16", "--step=evaluate", model__dtype="bfloat16"),
    "pmap": command("", "--topology=v4:2x2x1", "--step=evaluate", parallel__backend="pmap"),
    "too large": command("", "--topology=v5e:1x1", "--per-chip-batch=1000000"),
    "never": command(
        *("", "--topology=v6e:2x4", "--find-batch", "--per-chip-batch=2"), data__image_size=30000
    ),
    "no slice": command("", "--topology=v5p:3x3x3"),
    "no batch": command("", "--topology=v5e:2x2", "--per-chip-batch=0"),
    "microbatches": command("", "--topology=v5e:2x2", train__microbatches=5),
    "no topology": command(""),
    "no config": ("wsdl_jax.pod_check", "--config=configs/none.py", "--topology=v5e:2x2"),
}
# Images that take much memory: few tries, and the compiler has no room for its smaller memories.
FIND = command(
    *("", "--topology=v5e:2x2", "--step=evaluate", "--find-batch"),
    model__width=1,
    data__image_size=800,
)


def environment(**extra: str) -> dict[str, str]:
    # Compiled in seconds rather than minutes, as nothing of it is run.
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0", **extra}


@pytest.fixture(scope="module")
def answers(libtpu, tmp_path_factory) -> dict[str, tuple[int, str, str]]:
    """Exit code, standard output and standard error of each of `LINES`."""
    folder = tmp_path_factory.mktemp("said")
    subprocess.run(
        [*PYTHON, "-W", "ignore:.*fork", "-c", FORKS],
        input=json.dumps(list(LINES.values())),
        cwd=folder,
        env=environment(),
        text=True,
        check=True,
        timeout=600,
    )
    answers = {}
    for index, name in enumerate(LINES):
        out, err, code = ((folder / f"{index}.{end}").read_text() for end in ("1", "2", "code"))
        answers[name] = int(code), out, err
    return answers


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "images"),
    [("weak", 256, 64, 32), ("full", 16, 4, 8), ("evaluate", 256, 64, 32), ("pmap", 4, 1, 32)],
)
def test_a_step_that_fits(answers, name, chips, hosts, images):
    code, out, err = answers[name]
    assert (code, err) == (0, "")
    said = rows(out)
    assert (said["chips"], said["hosts"]) == (str(chips), str(hosts))
    assert said["batch"] == f"{images} per chip, {images * chips} in all"
    parts = ("arguments", "outputs", "temporaries", "program", "next batch")
    total = sum(number(said[part]) for part in parts if part in said)
    assert total == pytest.approx(number(said["total"]), rel=1e-3)
    limit, _, fits = said["total"].partition(" of ")[2].partition(": ")
    # 16 and 32 GiB (v4: 32) less what libtpu keeps, in some versions a little more.
    chip = {"v5": 15.75, "v6": 31.25, "v4": 30.75}[said["topology"][:2]]
    assert (number(limit), fits) == (pytest.approx(chip * GIB, rel=0.01), "fits")
    assert re.fullmatch(r"[\d.]+ s", said["compile time"])


def test_arguments_are_the_state_and_the_batch(answers):
    said = rows(answers["weak"][1])
    batch = 32 * (128 * 128 * 3 + 4)  # pixels of 8 bits, labels of 32
    state = (3 * PARAMETERS + 2 * NORMALIZED + 3) * 4
    assert number(said["next batch"]) == pytest.approx(batch, rel=0.01)
    tiles = 300_000  # bytes, to which small arrays are rounded up
    assert batch + state < number(said["arguments"]) < batch + state + tiles
    assert number(said["outputs"]) < 4096  # loss and gradient norm: the state is overwritten
    # With masks, of as many locations as the map has; nothing is smaller than a tile.
    said = rows(answers["full"][1])
    images, masks = 8 * 64 * 64 * 3, 8 * 15 * 15 * 4
    assert images + masks < number(said["next batch"]) < 2 * images + 10 * masks
    # No optimizer and nothing to overwrite, but maps.
    said = rows(answers["evaluate"][1])
    assert "next batch" not in said
    assert number(said["arguments"]) < batch + tiles
    assert 32 * 31 * 31 * 4 < number(said["outputs"]) < 5 * 32 * 31 * 31 * 4


def test_arithmetic_is_that_of_the_convolutions(answers):
    # Twice as much for the gradients as forwards, but for those of the images; and a few operations
    # for each value of the layers between.
    forward = 2 * PRODUCTS
    first = 2 * math.prod(LAYERS["conv1"])
    assert number(rows(answers["evaluate"][1])["arithmetic"]) == pytest.approx(
        32 * forward, rel=0.2
    )
    assert number(rows(answers["weak"][1])["arithmetic"]) == pytest.approx(
        32 * (3 * forward - first), rel=0.2
    )


@pytest.mark.parametrize("name", ["weak", "full"])
def test_collectives_are_gradients_loss_and_statistics(answers, name):
    # Means and variances forwards, and the gradients of both backwards.
    expected = 4 * (PARAMETERS + 1 + 4 * NORMALIZED)
    assert number(rows(answers[name][1])["collectives"]) == pytest.approx(expected, rel=1e-3)
    for evaluated in ("evaluate", "pmap"):
        assert rows(answers[evaluated][1])["collectives"] == "0 B in 0 operations"


def test_a_step_that_does_not_fit(answers):
    code, out, err = answers["too large"]
    assert (code, err) == (pod_check.DOES_NOT_FIT, "")
    said = rows(out)
    assert (said["chips"], said["hosts"]) == ("1", "1")
    needed = number(said["memory per chip"])
    assert needed > 1e6 * 128 * 128 * 3 * 4
    assert said["memory per chip"].endswith(" GiB: does not fit")
    code, out, err = answers["never"]
    assert (code, err) == (pod_check.DOES_NOT_FIT, "")
    assert rows(out)["hosts"] == "1"
    assert re.findall(r"^batch (\d+) .* does not fit$", out, re.MULTILINE) == ["2", "1"]


def test_the_largest_batch(libtpu_log):
    out, used = libtpu_log
    tries = re.findall(r"^batch (\d+) +(.*) of .* GiB: (fits|does not fit)$", out, re.MULTILINE)
    fitting = {int(n): number(need) for n, need, fits in tries if fits == "fits"}
    others = [int(n) for n, _, fits in tries if fits != "fits"]
    found = max(fitting)
    assert rows(out)["batch"] == f"{found} per chip, {4 * found} in all"
    assert found < min(others) <= found + max(1, found // 8)
    assert min(number(need) for n, need, fits in tries if fits != "fits") > 15.7 * GIB
    # libtpu's own figures, of program and temporaries; arguments and outputs are small beside them.
    assert len(used) == len(fitting) >= 2
    for (images, memory), program in zip(fitting.items(), used, strict=True):
        inputs = images * 800 * 800 * 3
        assert program + inputs < memory * 1.005 < 1.02 * (program + 1.1 * inputs)


@pytest.fixture(scope="module")
def libtpu_log(libtpu, tmp_path_factory) -> tuple[str, list[float]]:
    """What FIND printed; and bytes of each program that fits, from libtpu's log."""
    folder = tmp_path_factory.mktemp("log")
    done = subprocess.run(
        [*PYTHON, "-m", *FIND],
        cwd=folder,
        env=environment(TPU_LOG_DIR=str(folder)),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (log,) = folder.glob("*.log.INFO.*")
    used = re.findall(r"program HBM usage: ([\d.]+)G / ", log.read_text())
    return done.stdout, [float(gib) * GIB for gib in used]


@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "no slice": ["v5p:3x3x3", "2x2x1"],
        "no batch": ["--per-chip-batch=0"],
        "microbatches": ["train.microbatches = 5", "32 images"],
        "no topology": ["--topology"],
        "no config": ["configs/none.py"],
    }.items(),
)
def test_wrong_flags(answers, name, parts):
    code, out, err = answers[name]
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts)


def test_the_program_has_the_operators_of_a_tpu(libtpu):
    """Lowered for the slice: native convolutions and pooling, not the forms that a CPU gets."""
    code = f"""
import runpy
from wsdl_jax.pods import cost, topology
from wsdl_jax.runtime.parallel import Parallel
config = runpy.run_path("{REPOSITORY}/configs/patches.py")["get_config"]("source=celebahq")
parallel = Parallel("shard_map", topology.make_devices("v5e:2x2"))
print(cost.lower(config, "train", 2, parallel).as_text())
"""
    done = subprocess.run(
        [*PYTHON, "-c", code],
        env=environment(**topology.ENVIRONMENT, TPU_LOG_DIR="disabled"),
        capture_output=True,
        text=True,
        check=True,
    )
    # Forwards and for the gradient of its input: of both blocks' two depthwise convolutions.
    widths = [int(n) for n in re.findall(r"feature_group_count = (\d+)", done.stdout)]
    assert sorted(n for n in widths if n > 1) == sorted(2 * [64, 128, 128, 256])
    assert done.stdout.count("stablehlo.reduce_window") == 2
    assert done.stdout.count("stablehlo.select_and_scatter") == 2
