"""Figures of merit by IMDL-BenCo's evaluators, on arrays that anybody can make again.

It needs an older NumPy than this project. In an environment of its own:

python3.11 -m venv imdlbenco && imdlbenco/bin/pip install imdlbenco==0.1.45
imdlbenco/bin/python tests/golden/imdlbenco_figures.py

writes `imdlbenco.json` beside this file. The tests take `maps`, `masks`, `scores` and `labels` from
here.
"""

import json
import pathlib
from typing import Any

import numpy as np

IMAGES, HEIGHT, WIDTH = 6, 48, 64
MODES = ("origin", "reverse", "double")
FIXTURE = pathlib.Path(__file__).with_name("imdlbenco.json")


def masks() -> np.ndarray:
    """[n, h, w] uint8 of rectangles of many sizes; the last but one is empty, the last one full."""
    found = np.zeros((IMAGES, HEIGHT, WIDTH), np.uint8)
    for number in range(IMAGES - 2):
        found[number, 4 : 12 + 9 * number, 6 : 20 + 12 * number] = 1
    found[-1] = 1
    return found


def maps() -> np.ndarray:
    """[n, h, w] float32 in (0, 1), all values distinct, that agree with the masks by degrees."""
    rng = np.random.default_rng(20260101)
    count = HEIGHT * WIDTH
    order = np.stack([rng.permutation(count) for _ in range(IMAGES)]).reshape(masks().shape)
    agreement = np.linspace(-0.2, 0.5, IMAGES)[:, None, None]
    raised = order + np.trunc(agreement * count) * masks() + 0.25 * masks()
    return ((raised + 1.125 + count / 4) / (2 * count)).astype(np.float32)


def scores() -> np.ndarray:
    """[40] float32 in (0, 1), all distinct."""
    rng = np.random.default_rng(20260102)
    return ((rng.permutation(40) + 0.5 + 0.25 * labels()) / 41).astype(np.float32)


def labels() -> np.ndarray:
    """[40] uint8 of 25 real images and 15 fake ones."""
    return np.repeat([0, 1], [25, 15]).astype(np.uint8)


def computed() -> dict[str, Any]:
    """Returns what the evaluators give: by name and mode a figure an image (None
    for NaN), or one of all images.

    The evaluators of images gather over processes what comes in whole batches, and take what
    remains as it is, which needs a single process.
    """
    import torch
    from IMDLBenCo import evaluation

    found: dict[str, Any] = {}
    predict, mask = (torch.from_numpy(a[:, None].astype(np.float32)) for a in (maps(), masks()))
    for name in ("PixelF1", "PixelIOU", "PixelAUC", "PixelAccuracy"):
        for mode in MODES:
            evaluator = getattr(evaluation, name)(threshold=0.5, mode=mode)
            values = evaluator.batch_update(predict, mask)
            found[f"{name}/{mode}"] = [None if np.isnan(v) else v for v in values.tolist()]
    for name in ("ImageF1", "ImageAUC", "ImageAccuracy"):
        evaluator = getattr(evaluation, name)(threshold=0.5)
        label = torch.from_numpy(labels().astype(np.float32))
        evaluator.remain_update(torch.from_numpy(scores()), label)
        found[name] = float(evaluator.epoch_update())
    return found


if __name__ == "__main__":
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in computed().items())
    FIXTURE.write_text(f"{{\n{lines}\n}}\n")
