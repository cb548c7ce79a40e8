"""Heatmaps by their pixels."""

import numpy as np
from findings_of_generators import grid
from PIL import Image

from wsdl_jax.evaluation import rendering
from wsdl_jax.sweeps import heatmaps
from wsdl_jax.sweeps.findings import matrices, summarize


def test_heatmap_has_the_colours_of_its_cells(tmp_path):
    findings, iou = grid(seeds=1)
    findings[4] = findings[4]._replace(results=None)
    heatmaps.save(matrices(summarize(findings)), tmp_path / "heatmaps.png")
    with Image.open(tmp_path / "heatmaps.png") as image:
        colours = {colour for _, colour in image.getcolors(1 << 24)}
    values = np.delete(iou[0].T.ravel(), 4)
    for colour in rendering.colour(values[None] / 100)[0]:
        assert tuple(colour.tolist()) in colours
    assert tuple(rendering.colour(np.zeros((1, 1)))[0, 0].tolist()) not in colours
    assert (225, 225, 225) in colours
