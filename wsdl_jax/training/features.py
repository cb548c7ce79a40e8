"""Features of a frozen backbone, computed once for all images that a training sees."""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from wsdl_data import provenance
from wsdl_jax import inputs, methods, runs
from wsdl_jax.models.backbone import give_features
from wsdl_jax.runs import State
from wsdl_jax.runtime import hosts, locks
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel, Step
from wsdl_jax.training.setup import Setup

log = logging.getLogger("wsdl_jax")
# Fields of config.model that features do not depend on, or that others stand for: the SHA-256 of a
# file for its path, and the last stage of the backbone for the field that a method reads.
_OTHER = {
    *("backbone_path", "beside_path", "depth", "attended", "decoder"),
    *("frozen", "lora_rank", "remat"),
}


def make_features_step(model: nnx.Module) -> Step:
    """Returns the step of one device: (state, its images) → (None, features [b, h, w, c] bfloat16).

    model: a network with a frozen backbone; its variables are taken from the step's state.
    """
    make_network = runs.network(model)

    def step(state: State, batch: methods.Batch):
        network = make_network(state)
        network.eval()
        features = network.features(methods.network_input(batch["image"]))
        return None, features.astype(jnp.bfloat16)

    return step


def facts(
    config: ml_collections.ConfigDict, stage: int, subset: str, split: str, made_of: Any
) -> dict[str, Any]:
    """Returns everything that the features of a split of a subset depend on.

    Args:
      config: with the SHA-256 of the backbone's file.
      stage: the one behind which features are.
      subset: its name.
      split: its name.
      made_of: the subset's provenance.
    """
    model = {name: value for name, value in config.model.items() if name not in _OTHER}
    return {
        "data": provenance.digests({subset: made_of}),
        "split": split,
        "image_size": config.data.image_size,
        "resize": config.data.resize,
        "stage": stage,
        "model": model,
    }


def once(config: ml_collections.ConfigDict, model: nnx.Module, setup: Setup) -> Setup:
    """Returns what a training runs on, with features in place of images.

    Those that are not there yet are computed: each host computes its share of the files; where
    hosts have disks of their own, each then computes what its own lacks. The network takes features
    from then on, and has no backbone any more.

    All hosts have to ask together.

    Args:
      config: a valid one, whose backbone is frozen, with the SHA-256 of its file.
      model: the network, in training mode, which `Decodes`; its backbone is replaced in place.
      setup: devices and data.

    Raises:
      UserError: features that cannot be written, for want of space or otherwise.
    """
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shape = nnx.eval_shape(lambda network, x: network.features(x), model, image).shape[1:]
    names = (*config.data.real, *config.data.fake)  # one that is there twice is read twice
    kept: dict[str, list[inputs.KeptFeatures]] = {}
    wanted: dict[tuple[str, str], inputs.KeptFeatures] = {}
    for split, examples in (("train", setup.training), ("valid", setup.valid)):
        for name, count in zip(names, examples.sizes, strict=True):
            made_of = examples.provenance[name]
            of_subset = inputs.KeptFeatures(
                config.data.dir,
                facts(config, model.trunk.stages, name, split, made_of),
                count,
                shape,
            )
            kept.setdefault(split, []).append(wanted.setdefault((name, split), of_subset))
    compute = _Compute(config, model)
    hosts.each(lambda: _complete(wanted, compute, jax.process_index(), jax.process_count()))
    hosts.each(lambda: _complete(wanted, compute, 0, 1))
    give_features(model)
    log.info(
        "features are read from %s: %s KiB an image",
        kept["train"][0].folder.parent,
        f"{kept['train'][0].image_bytes / 1024:,.0f}",
    )
    return dataclasses.replace(
        setup,
        training=setup.training.with_features(kept["train"]),
        valid=setup.valid.with_features(kept["valid"]),
    )


def _complete(
    wanted: dict[tuple[str, str], inputs.KeptFeatures], compute: "_Compute", share: int, shares: int
) -> None:
    """Computes a share of the files that are not there.

    Args:
      wanted: features by subset and split.
      compute: what computes files.
      share: every so manyth file is of it.
      shares: how many shares there are.
    """

    def lacks(kept: inputs.KeptFeatures) -> list[int]:
        return [number for number in kept.missing() if number % shares == share]

    for kept in wanted.values():
        kept.check()
    incomplete = {key: kept for key, kept in wanted.items() if lacks(kept)}
    for kept in incomplete.values():
        kept.begin()
    _check_space([(kept, lacks(kept)) for kept in incomplete.values()])
    for (name, split), kept in incomplete.items():
        with _alone(kept, f".{share}-of-{shares}.lock"):
            if numbers := lacks(kept):  # which another process may have computed meanwhile
                compute(name, split, kept, numbers)


def _check_space(lacking: list[tuple[inputs.KeptFeatures, list[int]]]) -> None:
    """Raises UserError if files of features that lack do not fit on the disk, before any is made.

    lacking: with the numbers of the files.
    """
    if not lacking:
        return
    root = lacking[0][0].folder.parent
    images = needed = 0
    for kept, numbers in lacking:
        count = sum(len(kept.places(number)) for number in numbers)
        images, needed = images + count, needed + count * kept.image_bytes
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"features of {images:,} images take {needed / 2**30:.2f} GiB, and {root} has "
            f"{free / 2**30:.2f} GiB left: make room, and the same command goes on; "
            "--config.data.features=none trains without"
        )


@contextlib.contextmanager
def _alone(kept: inputs.KeptFeatures, name: str) -> Iterator[None]:
    """Is held while a share of some features is computed, by one process at a time."""
    with contextlib.ExitStack() as held:
        with kept.writing():
            try:
                lock = locks.Lock(kept.folder, name)
            except UserError:
                log.info("%s: another process computes features, this one waits", kept.folder)
                lock = locks.Lock(kept.folder, name, wait=True)
            held.callback(lock.release)
        yield


class _Compute:
    """Computes files of features on the devices of this host."""

    def __init__(self, config: ml_collections.ConfigDict, model: nnx.Module):
        self._config, self._model = config, model
        self._parallel = Parallel("shard_map", jax.local_devices())
        self._batch = self._parallel.rounded_up(config.eval.batch)
        self._step: Step | None = None

    def __call__(
        self, name: str, split: str, kept: inputs.KeptFeatures, numbers: list[int]
    ) -> None:
        """Computes some files of the features of a split of a subset."""
        if self._step is None:
            self._step = self._parallel.map(make_features_step(self._model))
            self._state = self._parallel.distribute(runs.variables(self._model))
        kept.remove_abandoned()
        examples = inputs.Examples((name,), split, self._config.data.dir)
        places = [place for number in numbers for place in kept.places(number)]
        log.info(
            "features of %s images of %s are computed, %.2f GiB, into %s",
            f"{len(places):,}",
            name,
            len(places) * kept.image_bytes / 2**30,
            kept.folder,
        )
        rows = self._rows(examples, places)
        there = kept.files - len(kept.missing())
        try:
            with contextlib.closing(rows):
                for number in numbers:
                    of_file = kept.places(number)
                    features = np.stack([next(rows) for _ in of_file])
                    kept.write(number, [examples[place]["image"] for place in of_file], features)
                    there += 1
        except BaseException:  # Ctrl-C, too
            log.info(
                "%d of %d files of features of %s are kept: the same command goes on",
                *(there, kept.files, name),
            )
            raise

    def _rows(self, examples: inputs.Examples, places: list[int]) -> Iterable[np.ndarray]:
        reading = dataclasses.replace(inputs.Reading.of(self._config.data), flip=False)
        batches = inputs.eval_batches(examples, reading, batch=self._batch, places=places)
        sharding = NamedSharding(self._parallel.mesh, PartitionSpec(AXIS))
        total = -(-len(places) // self._batch)
        silent = None if hosts.is_first() else True  # None: unless there is a terminal
        with contextlib.closing(batches):
            for batch in tqdm(
                batches, "features", total, unit="batch", disable=silent, leave=False
            ):
                images = {"image": jax.device_put(batch["image"], sharding)}
                features = self._parallel.gather(self._step(self._state, images)[1])
                yield from features[batch["weight"] > 0]
