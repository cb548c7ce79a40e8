"""Features of a frozen backbone, computed once for all images that a training sees."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable
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
from wsdl_jax.runtime import hosts
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
      UserError: features that cannot be written, or are damaged.
    """
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shape = nnx.eval_shape(lambda network, x: network.features(x), model, image).shape[1:]
    kept: dict[str, list[inputs.KeptFeatures]] = {}
    for split, examples in (("train", setup.training), ("valid", setup.valid)):
        kept[split] = [
            inputs.KeptFeatures(
                config.data.dir,
                facts(config, model.trunk.stages, name, split, made_of),
                count,
                shape,
            )
            for (name, made_of), count in zip(
                examples.provenance.items(), examples.sizes, strict=True
            )
        ]
    compute = _Compute(config, model)

    def missing(numbers: slice | None) -> None:
        for split, examples in (("train", setup.training), ("valid", setup.valid)):
            for name, of_subset in zip(examples.provenance, kept[split], strict=True):
                of_subset.check()
                lacks = of_subset.missing()
                if numbers is not None:
                    mine = set(range(of_subset.files)[numbers])
                    lacks = [number for number in lacks if number in mine]
                if lacks:
                    compute(name, split, of_subset, lacks)

    share = slice(jax.process_index(), None, jax.process_count())
    hosts.each(lambda: missing(share))
    hosts.each(lambda: missing(None))
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
        with contextlib.closing(rows):
            for number in numbers:
                of_file = kept.places(number)
                features = np.stack([next(rows) for _ in of_file])
                kept.write(number, [examples[place]["image"] for place in of_file], features)

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
