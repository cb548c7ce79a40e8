"""What a run says while it runs: metrics.jsonl, TensorBoard events and a progress bar."""

import json
import logging
import sys
import time

from etils import epath
from tqdm import tqdm

from wsdl_jax.storage import Staged


class RunLog:
    """Writes scalars of a run to disk and its progress to the terminal."""

    def __init__(self, run: epath.Path, *, start_step: int, total_steps: int, writes: bool = True):
        """Entries of steps after `start_step`, left by a run that was killed, are dropped.

        writes: of several hosts, one writes; the others are silent.
        """
        self._writes = writes
        if not writes:
            return
        old, kept = run / "metrics.jsonl", []
        if old.exists():
            # A killed process can leave half a line at the end.
            whole = [line for line in old.read_text().split("\n")[:-1]]
            kept = [line for line in whole if json.loads(line)["step"] <= start_step]
        self._staged = Staged(run)
        path = self._staged.local / "metrics.jsonl"
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")
        # Here, since it takes half a second, or three where PyTorch is installed.
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(
            str(self._staged.local / "events"), purge_step=start_step + 1 if start_step else None
        )
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._plain = not sys.stderr.isatty()
        self._started, self._start_step, self._spoken = time.monotonic(), start_step, 0.0
        self._total = total_steps

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Records values of a step, number of steps done."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def progress(self, step: int, loss: float, images_per_second: float) -> None:
        """Shows where the run is: on a terminal as a bar, else as a line every ten seconds."""
        if not self._writes:
            return
        self._bar.set_postfix(loss=f"{loss:.3f}", images_s=f"{images_per_second:.0f}")
        self._bar.update(step - self._bar.n)
        now = time.monotonic()
        if self._plain and now - self._spoken >= 10:
            self._spoken = now
            left = (now - self._started) / (step - self._start_step) * (self._total - step)
            self.say(
                f"step {step}/{self._total}  loss {loss:.3f}  {images_per_second:.0f} images/s"
                f"  {left:.0f} s left"
            )

    def say(self, line: str) -> None:
        """One line to the terminal, above the bar."""
        if not self._writes:
            return
        if self._plain:
            logging.getLogger("wsdl_jax").info(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def publish(self) -> None:
        """Brings a run directory in a bucket up to date."""
        if not self._writes:
            return
        self._events.flush()
        self._staged.publish()

    def close(self) -> None:
        """Flushes everything."""
        if not self._writes:
            return
        self._bar.close()
        self._file.close()
        self._events.close()
        self._staged.close()
