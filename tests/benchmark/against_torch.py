"""Speed and memory of the networks here against PyTorch's, on this machine.

    python tests/benchmark/against_torch.py --out results
    python tests/benchmark/against_torch.py --out results --quick
    python tests/benchmark/against_torch.py --out results --tasks attention/train --batches 16

Writes OUT/results.json and OUT/table.md; what is in results.json already, of other tasks and
batches, is kept. Takes PyTorch (`pip install torch==2.13.0`, or a build for the GPU) and no data.

Every contender is a process of its own, all of them ready before the first measurement; then each
in turn takes one step, round after round, so that a change of the machine meets them all. On the
CPU there are two groups of contenders: PyTorch with the allocator as it comes, and with one that
keeps freed memory (`TUNED`). Before anything is timed, PyTorch has loaded our weights, and its
outputs are compared with ours.

The networks are of full width on 299×299 images. "train" is the whole step with Adam; "infer" is
scores and maps. "folder" is 32 PNG files, decoded, scored and localized: by `Localizer` in
batches of 16; in PyTorch one by one, for Grad-CAM with all gradients, as the published code does
it. On the CPU both compute in float32; on a GPU in bfloat16, PyTorch under autocast.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
import resource
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from PIL import Image

from wsdl_jax.runtime import command
from wsdl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # for torch_xception

LAYOUTS = {"patches": "dolos-patches", "attention": "ffd-attention", "grad_cam": "timm-xception"}
TASKS = (
    *("patches/train", "patches/infer", "patches/folder"),
    *("attention/train", "attention/infer", "attention/folder"),
    *("grad_cam/infer", "grad_cam/folder"),
)
FOLDER = 32  # images
OURS = "wsdl-jax"
DEFAULT, CHANNELS_LAST, COMPILED = "default layout", "channels_last", "torch.compile"
TORCH = (DEFAULT, CHANNELS_LAST, COMPILED)
# glibc: no memory by mmap, none given back, and the heap grown by 256 MiB at a time.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16 FLOP/s, dense, by the maker
TOLERANCE = 1e-3  # of outputs, relative to their range


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
      task: of `TASKS`.
      batch: images a step.
      size: pixels of a side.
      width: multiplier of the networks' channels.
      gpu: whether to compute on a GPU, in bfloat16.
      folder: where contenders find one another's weights and outputs.
    """

    task: str
    batch: int
    size: int
    width: float
    gpu: bool
    folder: str

    @property
    def network(self) -> str:
        return self.task.split("/")[0]

    @property
    def kind(self) -> str:
        """ "train", "infer" or "folder"."""
        return self.task.split("/")[1]

    def images(self, count: int) -> np.ndarray:
        """[count, size, size, 3] float32 in [-1, 1]."""
        shape = (count, self.size, self.size, 3)
        return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    def files(self) -> list[Path]:
        """As many PNG files as `batch` says, made if need be: smooth pictures with noise."""
        files = [Path(self.folder) / f"{number}.png" for number in range(self.batch)]
        for number, file in enumerate(files):
            if not file.exists():
                rng = np.random.default_rng(number)
                small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                smooth = np.asarray(small.resize((self.size, self.size), Image.Resampling.BICUBIC))
                noisy = smooth + rng.normal(0, 3, smooth.shape)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
        return files


# ----- The contenders ----------------------------------------------------------------------------


def make_ours(work: Work) -> Callable[[], None]:
    """Writes weights and outputs, for the others to compare with; then → one step."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from wsdl_jax import convert, evaluation, methods, runs, training
    from wsdl_jax.models.layers import BatchNorm
    from wsdl_jax.prediction.images import read
    from wsdl_jax.prediction.localizer import Localizer
    from wsdl_jax.runtime import parallel

    config = runpy.run_path(str(ROOT / f"configs/{work.network}.py"))["get_config"]("splice=0")
    config.data.image_size, config.model.width = work.size, work.width
    config.model.dtype = "bfloat16" if work.gpu else "float32"
    method, devices = methods.from_config(config), parallel.Parallel(config.parallel.backend)
    model = methods.build(config, parallel.AXIS)
    # Activations keep their size through the layers, so that outputs differ between images.
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.scale[...] = jnp.full(module.scale.shape, 3.0)
    np.savez(f"{work.folder}/weights.npz", **convert.to_torch(model, LAYOUTS[work.network]))

    model.eval()
    localize, state = evaluation.on_devices(method, model, devices)
    checked = devices.shard({"image": work.images(2 * devices.mesh.size)})
    found = devices.gather(localize(state, checked)[1])
    np.savez(f"{work.folder}/outputs.npz", scores=found.scores, maps=found.maps)

    if work.kind == "folder":
        localizer = Localizer(config, model, batch=16)
        files = work.files()

        def all_files() -> None:
            images = ((f.name, read(epath.Path(f), work.size**2)[0]) for f in files)
            views = ((name, localizer.view(image)) for name, image in images)
            for _, prediction in localizer.stream(views):
                assert prediction.raw.ndim == 2

        return all_files
    batch = {"image": work.images(work.batch), "label": np.arange(work.batch, dtype=np.int32) % 2}
    if work.kind == "infer":
        del batch["label"]
        batch = devices.shard(batch)
        return lambda: jax.block_until_ready(localize(state, batch)[1])
    model.train()
    optimizer = runs.make_optimizer(config.train)
    take = devices.map(training.make_train_step(method, model, optimizer, config.seed), donate=True)
    state, batch = devices.distribute(runs.initial_state(model, config.train)), devices.shard(batch)

    def step() -> None:
        nonlocal state
        (state, metrics), _ = take(state, batch)
        jax.block_until_ready((state, metrics))

    return step


def _torch_network(work: Work) -> Any:
    """PyTorch's class of the network that is measured."""
    import torch_xception

    return {
        "patches": torch_xception.Patches,
        "attention": torch_xception.Attention,
        "grad_cam": torch_xception.Classifier,
    }[work.network]


def make_torch(work: Work, contender: str) -> Callable[[], None]:
    """Compares outputs with ours; then → one step. Raises UserError where they differ."""
    if contender not in TORCH:
        raise UserError(f"{contender}: choose from {', '.join(TORCH)}")
    import torch

    device = torch.device("cuda" if work.gpu else "cpu")
    network = _torch_network(work)(width=work.width).to(device).eval()
    with np.load(f"{work.folder}/weights.npz") as weights:
        tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    network.load_state_dict(tensors, strict=True)

    def tensor(images: np.ndarray) -> Any:
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)

    cross_entropy = torch.nn.functional.cross_entropy

    def patches_loss(images: Any, labels: Any) -> Any:
        logits = network(images)
        return cross_entropy(logits, labels[:, None, None].expand(-1, *logits.shape[2:]))

    def attention_loss(images: Any, labels: Any) -> Any:
        logits, mask = network(images)
        largest = mask.float().amax((1, 2, 3))
        with torch.autocast(device.type, enabled=False):
            mask_loss = torch.nn.functional.binary_cross_entropy(largest, labels.float())
        return cross_entropy(logits, labels) + mask_loss

    def patches(images: Any) -> tuple[Any, Any]:
        maps = network(images).float().softmax(1)[:, 1]
        return maps.mean((1, 2)), maps

    def attention(images: Any) -> tuple[Any, Any]:
        logits, mask = network(images)
        return logits[:, 1], mask[:, 0]

    def grad_cam(images: Any) -> tuple[Any, Any]:
        everything = work.kind == "folder"  # gradients of all there is, as in the published code
        with contextlib.nullcontext() if everything else torch.no_grad():
            activations = network.blocks(network.stem(images), 1, 11)
        if everything:
            network.zero_grad()
            activations.retain_grad()
        else:
            activations.requires_grad_()
        logits = network.fc(network.pooled(network.blocks(activations, 12, 12)))
        if everything:
            logits[:, 1].sum().backward()
            gradients = activations.grad
        else:
            (gradients,) = torch.autograd.grad(logits[:, 1].sum(), activations)
        weights = gradients.float().mean((2, 3), keepdim=True)
        maps = (weights * activations.detach()).sum(1, keepdim=True).relu()
        maps -= maps.amin((2, 3), keepdim=True)
        maps /= 1e-7 + maps.amax((2, 3), keepdim=True)
        maps = torch.nn.functional.interpolate(maps, images.shape[2:], mode="bilinear")[:, 0]
        return logits[:, 1], maps / maps.amax((1, 2), keepdim=True)

    losses = {"patches": patches_loss, "attention": attention_loss}
    localize = {"patches": patches, "attention": attention, "grad_cam": grad_cam}[work.network]
    # The gradient of the map needs a graph, so it runs without inference mode.
    guard = contextlib.nullcontext if work.network == "grad_cam" else torch.inference_mode
    half = contextlib.nullcontext()
    if work.gpu:
        half = torch.autocast(device.type, torch.bfloat16)

    with np.load(f"{work.folder}/outputs.npz") as ours, guard(), half:
        theirs = localize(tensor(work.images(2)))
        for name, found in zip(("scores", "maps"), theirs, strict=True):
            expected, found = ours[name][:2], found.float().detach().cpu().numpy()
            error = np.abs(found - expected).max() / np.ptp(expected)
            if not error < (0.1 if work.gpu else TOLERANCE):
                raise UserError(f"{work.task}: PyTorch's {name} are {error:.2g} off ours")

    layout = torch.contiguous_format if contender == DEFAULT else torch.channels_last
    network = network.to(memory_format=layout)
    images = tensor(work.images(work.batch)).contiguous(memory_format=layout)
    if contender == COMPILED:
        localize = torch.compile(localize)
        losses = {name: torch.compile(loss) for name, loss in losses.items()}
    if work.kind == "folder":
        files = work.files()

        def one_by_one() -> None:
            for file in files:
                with Image.open(file) as image:
                    pixels = np.asarray(image.convert("RGB"), np.float32)[None] / 127.5 - 1
                with guard(), half:
                    _, maps = localize(tensor(pixels).contiguous(memory_format=layout))
                maps.float().detach().cpu().numpy()

        return one_by_one
    if work.kind == "infer":

        def infer() -> None:
            with guard(), half:
                localize(images)
            if work.gpu:
                torch.cuda.synchronize()

        return infer
    network.train()
    optimizer = torch.optim.Adam(network.parameters())
    labels = torch.arange(work.batch, device=device) % 2

    def step() -> None:
        optimizer.zero_grad()
        with half:
            loss = losses[work.network](images, labels)
        loss.backward()
        optimizer.step()
        if work.gpu:
            torch.cuda.synchronize()

    return step


def _memory(gpu: bool, ours: bool) -> int:
    """The largest amount of memory, in bytes, that this process has had."""
    if gpu and ours:
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if gpu:
        import torch

        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def contend(pipe: Connection, work: Work, contender: str) -> None:
    """A contender's process: says when it is ready; then one step for each message."""
    try:
        if contender == OURS:
            from wsdl_jax.runtime import settings

            settings.keep_freed_memory()  # as every command does
        step = make_ours(work) if contender == OURS else make_torch(work, contender)
        step()  # compiles
        step()
        while True:
            pipe.send(None)
            if not pipe.recv():
                return
            began = time.perf_counter()
            step()
            seconds = time.perf_counter() - began
            pipe.send((seconds, _memory(work.gpu, contender == OURS)))
    except Exception as error:
        pipe.send(" ".join(str(error).split())[:200] or type(error).__name__)


# ----- The contest -------------------------------------------------------------------------------


class Failed(Exception):  # noqa: N818 (it is an answer)
    """A contender could not take a step."""


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Contender:
    """The near end of a contender's process."""

    def __init__(self, name: str, work: Work, environment: dict[str, str]):
        self.name, self.seconds, self.memory = name, list[float](), 0
        spawn = multiprocessing.get_context("spawn")
        self._pipe, far = spawn.Pipe()
        self._process = spawn.Process(target=contend, args=(far, work, name), daemon=True)
        with _environment(environment):
            self._process.start()
        far.close()
        self._ready()

    def _ready(self) -> None:
        answer = self._receive()
        if answer is not None:
            raise Failed(f"{self.name}: {answer}")

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise Failed(f"{self.name}: its process ended") from None
        if isinstance(answer, str):
            raise Failed(f"{self.name}: {answer}")
        return answer

    def step(self) -> None:
        """One timed step."""
        self._pipe.send(True)
        seconds, self.memory = self._receive()
        self.seconds.append(seconds)
        self._ready()

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(False)
        self._process.join(10)
        self._process.kill()
        self._process.join()


def contest(
    work: Work, contenders: tuple[str, ...], environment: dict[str, str], rounds: int
) -> dict[str, dict[str, float] | str]:
    """Median seconds, images/s and peak bytes of each contender; or why it has none.

    Ours comes first, for the others to compare with, and always has the environment as it is.
    """
    results: dict[str, dict[str, float] | str] = {}
    running: list[Contender] = []
    try:
        for name in (OURS, *contenders):
            try:
                running.append(Contender(name, work, environment if name != OURS else {}))
            except Failed as reason:
                if name == OURS:
                    raise UserError(str(reason)) from reason
                results[name] = str(reason)
        for _ in range(rounds):
            for contender in running:
                contender.step()
    finally:
        for contender in running:
            contender.close()
    for contender in running:
        seconds = statistics.median(contender.seconds)
        results[contender.name] = {
            "seconds": seconds,
            "images_per_second": work.batch / seconds,
            "peak_bytes": contender.memory,
        }
    return results


def flops(work: Work) -> int:
    """Floating-point operations of a step by PyTorch's count, of products and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        _torch_network(work)()(torch.zeros(work.batch, 3, work.size, work.size))
    # By convention a backward pass is twice the forward one.
    return counter.get_total_flops() * (3 if work.kind == "train" else 1)


# ----- The table ---------------------------------------------------------------------------------


def machine(gpu: bool) -> str:
    """What the figures were taken on, in a line."""
    import jax
    import torch

    name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    cores = "" if gpu else f"{len(os.sched_getaffinity(0))} cores of "
    return f"{cores}{name}, jax {jax.__version__}, torch {torch.__version__}, {time.strftime('%F')}"


def _speed(result: dict[str, float] | str | None) -> str:
    return f"{result['images_per_second']:.1f}" if isinstance(result, dict) else "–"


def _best(results: dict[str, Any], names: tuple[str, ...]) -> dict[str, float] | None:
    found = [results[name] for name in names if isinstance(results.get(name), dict)]
    return min(found, key=lambda result: result["seconds"], default=None)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: images/s of the contenders that ran, how much faster ours is, and peak memory.

    rows: "task batch" → group ("as it comes", "tuned") → contender → result of `contest`; and
    "peak_share", where it is known.
    """

    def ran(group: str) -> list[str]:
        results = [groups.get(group, {}) for groups in rows.values()]
        return [name for name in TORCH if any(isinstance(r.get(name), dict) for r in results)]

    untuned_names, tuned_names = ran("as it comes"), ran("tuned")
    head = ["", "batch", "ours", *untuned_names, *(f"{name}, tuned" for name in tuned_names)]
    head += ["ours / default", "ours / best", "ours / best tuned", "memory ours / default / best"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for key, groups in rows.items():
        task, batch = key.split()
        plain, tuned = groups["as it comes"], groups.get("tuned", {})
        ours, default = plain[OURS], plain.get(DEFAULT)
        best = _best(plain, TORCH)

        def ratio(own: Any, other: Any) -> str:
            if not isinstance(own, dict) or not isinstance(other, dict):
                return "–"
            return f"{other['seconds'] / own['seconds']:.2f}"

        def memory(result: Any) -> str:
            return f"{result['peak_bytes'] / 2**30:.2f}" if isinstance(result, dict) else "–"

        share = f" ({groups['peak_share']:.0%} of peak)" if "peak_share" in groups else ""
        lines.append(
            [task.replace("/", ", "), batch, _speed(ours) + share]
            + [_speed(plain.get(name)) for name in untuned_names]
            + [_speed(tuned.get(name)) for name in tuned_names]
            + [ratio(ours, default), ratio(ours, best)]
            + [ratio(tuned.get(OURS), _best(tuned, TORCH))]
            + [" / ".join(memory(result) for result in (ours, default, best)) + " GiB"]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def reasons(rows: dict[str, dict[str, Any]]) -> str:
    """Why contenders have no figures, a line each."""
    found = {
        f"- {key}, {group}: {result}\n"
        for key, groups in rows.items()
        for group, results in groups.items()
        if isinstance(results, dict)
        for result in results.values()
        if isinstance(result, str)
    }
    return "".join(sorted(found))


def main(_: list[str]) -> None:
    """The command."""
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch is not installed: pip install 'wsdl-jax[torch]'") from None

    gpu = torch.cuda.is_available()
    if unknown := set(_TASKS.value) - set(TASKS):
        raise UserError(f"--tasks: no {', '.join(sorted(unknown))}; choose from {', '.join(TASKS)}")
    if unknown := set(_CONTENDERS.value) - set(TORCH):
        raise UserError(f"--contenders: no {', '.join(sorted(unknown))}; of {', '.join(TORCH)}")
    tasks, contenders = _TASKS.value, tuple(_CONTENDERS.value)
    batches = [int(n) for n in _BATCHES.value] or ([32, 128, 256] if gpu else [1, 8, 16])
    if _QUICK.value:
        tasks, batches, contenders = ["patches/infer"], [8], (DEFAULT, CHANNELS_LAST)
    if gpu:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the contenders share the memory
        groups: dict[str, dict[str, str]] = {"as it comes": {}}
    else:
        groups = {"as it comes": {}, "tuned": TUNED}

    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    record = out / "results.json"
    rows = json.loads(record.read_text()) if record.exists() else {}
    for task in tasks:
        for batch in [FOLDER] if task.endswith("/folder") else batches:
            row = rows.setdefault(f"{task} {batch}", {})
            for group, environment in groups.items():
                with tempfile.TemporaryDirectory() as folder:
                    work = Work(task, batch, _SIZE.value, _WIDTH.value, gpu, folder)
                    results = contest(work, contenders, environment, _ROUNDS.value)
                said = ", ".join(f"{name} {_speed(result)}" for name, result in results.items())
                print(f"{task}, batch {batch}, allocator {group}: {said} images/s", flush=True)
                row.setdefault(group, {}).update(results)
            peaks = [peak for name, peak in PEAKS.items() if gpu and name in machine(gpu)]
            if peaks:
                rate = flops(work) / row["as it comes"][OURS]["seconds"]
                row["peak_share"] = rate / peaks[0]
            rows = {key: rows[key] for key in sorted(rows, key=_order)}
            record.write_text(json.dumps(rows, indent=1) + "\n")
            text = f"{machine(gpu)}; images/s, median of {_ROUNDS.value}\n\n{table(rows)}"
            (out / "table.md").write_text(f"{text}\n{reasons(rows)}".rstrip() + "\n")
    print((out / "table.md").read_text(), end="")


def _order(key: str) -> tuple[int, int]:
    task, batch = key.split()
    return TASKS.index(task), int(batch)


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, "Folder for results.json and table.md.")
    _TASKS = flags.DEFINE_list("tasks", list(TASKS), "What to measure.")
    _BATCHES = flags.DEFINE_list("batches", [], "Images a step; 1,8,16, on a GPU 32,128,256.")
    _CONTENDERS = flags.DEFINE_list("contenders", list(TORCH), "Forms of PyTorch.")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured steps of each contender.", lower_bound=1)
    _SIZE = flags.DEFINE_integer("size", 299, "Pixels of a side.", lower_bound=64)
    _WIDTH = flags.DEFINE_float("width", 1.0, "Multiplier of the networks' channels.")
    _QUICK = flags.DEFINE_bool("quick", False, "Patches at batch 8, without torch.compile.")
    flags.mark_flag_as_required("out")
    command.run(main)
