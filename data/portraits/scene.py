"""Procedural aligned portraits: a scene is drawn from a prior, then rendered in linear light.

A scene is one group of attributes per part. The groups are independent in the prior, which is
what keeps the dataset honest: redrawing one part of a scene gives a scene of the same
distribution, so that no semantic cue separates a manipulated portrait from an untouched one.

Coordinates: x to the right, y down; the frame spans [-1, 1] on both axes. Parts live in the
*head's* coordinates (the pose's shift, roll and scale undone), so a size of 0.5 is a quarter of
the frame's width at scale 1.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Collection

import numpy as np
from jaxtyping import Bool, Float32

# The exponent between linear light and stored values: camera and palettes share it.
GAMMA = 2.2

Plane = Float32[np.ndarray, "h w"]
Color = Float32[np.ndarray, "3"]


def _linear(colors_8bit: list[tuple[int, int, int]]) -> Float32[np.ndarray, "n 3"]:
    """Display colours in 0..255 as linear light in 0..1."""
    return ((np.asarray(colors_8bit) / 255.0) ** GAMMA).astype(np.float32)


# From light to dark; a scene's tone is interpolated between neighbours.
_SKIN = _linear(
    [(246, 214, 192), (233, 188, 158), (214, 161, 124), (181, 126, 89), (135, 89, 62), (92, 59, 43)]
)
_HAIR = _linear(
    [
        (34, 27, 26),
        (58, 41, 33),
        (88, 60, 43),
        (120, 84, 56),
        (134, 68, 42),
        (176, 136, 88),
        (214, 182, 128),
        (158, 153, 150),
        (206, 202, 198),
    ]
)
_BROW = _linear([(40, 31, 29), (66, 48, 38), (98, 70, 50)])
_IRIS = _linear([(66, 42, 28), (104, 70, 42), (92, 108, 72), (84, 122, 150), (112, 128, 136)])


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where the head is and how it is turned."""

    shift: tuple[float, float]  # of the head's centre, in frame units
    scale: float
    roll: float  # radians
    yaw: float  # sideways displacement of the features, in head units


@dataclasses.dataclass(frozen=True)
class Light:
    """Where the light comes from."""

    direction: tuple[float, float, float]  # unit vector towards the light
    ambient: float  # share of the light that comes from everywhere, 0..1


@dataclasses.dataclass(frozen=True)
class Background:
    """What is behind the head."""

    field: Float32[np.ndarray, "3 5 5"]  # linear colours of a coarse grid


@dataclasses.dataclass(frozen=True)
class Clothes:
    """The attributes of the clothes."""

    color: Color
    second: Color
    neckline: float  # its depth beyond the smallest
    vee: float  # 0 = round, 1 = pointed
    shoulder: float  # height of the shoulders
    stripes: float  # contrast, 0 = plain
    stripe_angle: float
    texture: Float32[np.ndarray, "12 12"]


@dataclasses.dataclass(frozen=True)
class Hair:
    """The attributes of the hair, in head units."""

    color: Color
    volume: tuple[float, float]  # beside and above the head
    length: float  # y where it ends
    hairline: float  # y of the top of the face's opening
    opening: float  # half width of the face's opening
    parting: float  # x of the parting
    fringe: float  # how far the hair falls to the sides of the parting
    wave: tuple[float, float]  # amplitude and phase of the outline
    gloss: float
    strands: Float32[np.ndarray, "3 7"]  # frequency, phase and bend of each harmonic
    tufts: Float32[np.ndarray, "8 8"]


@dataclasses.dataclass(frozen=True)
class Skin:
    """The attributes of the head's and the neck's skin, in head units."""

    color: Color
    width: float
    chin: float  # y of the chin
    jaw: float  # 0 = round, 1 = pointed
    neck: float  # half width
    blush: float
    shine: float
    mottle: Float32[np.ndarray, "8 8"]
    pores: Float32[np.ndarray, "30 30"]


@dataclasses.dataclass(frozen=True)
class Brows:
    """The attributes of both brows, in head units."""

    color: Color
    y: float
    spread: float  # x of a brow's middle
    width: float
    thickness: float
    arch: float
    tilt: float


@dataclasses.dataclass(frozen=True)
class Eyes:
    """The attributes of both eyes, in head units."""

    iris: Color
    y: float
    spread: float
    width: float
    opening: float
    tilt: float
    gaze: tuple[float, float]
    lash: float  # strength of the upper lid's line
    shadow: float  # strength of the eye socket's shade


@dataclasses.dataclass(frozen=True)
class Nose:
    """The attributes of the nose, in head units."""

    tip: float  # y of the tip
    width: float
    bridge: float  # half width of the bridge
    depth: float  # strength of its shades
    nostril: float  # size of the nostrils


@dataclasses.dataclass(frozen=True)
class Mouth:
    """The attributes of the mouth, in head units."""

    tint: Color  # multiplies the skin's colour
    y: float
    width: float
    upper: float  # heights of the lips
    lower: float
    smile: float
    gap: float  # how far it is open
    gloss: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """All attributes of one portrait; `redraw` replaces those of some parts."""

    pose: Pose
    light: Light
    background: Background
    clothes: Clothes
    hair: Hair
    skin: Skin
    brows: Brows
    eyes: Eyes
    nose: Nose
    mouth: Mouth


# The parts that `render` gives masks of.
PARTS = ("background", "clothes", "hair", "skin", "brows", "eyes", "nose", "mouth")


# --- the prior: one function per group of attributes, each independent of the others ---


def _mix(rng: np.random.Generator, palette: Float32[np.ndarray, "n 3"], spread: float) -> Color:
    """A colour between two neighbours of a palette, varied by `spread` (relative)."""
    at = rng.uniform(0, len(palette) - 1)
    i = min(int(at), len(palette) - 2)
    color = palette[i] + (at - i) * (palette[i + 1] - palette[i])
    return (color * np.exp(rng.normal(0, spread, 3))).astype(np.float32)


def _any_color(rng: np.random.Generator, low: float, high: float) -> Color:
    """A moderately saturated colour of display brightness within low..high."""
    value = rng.uniform(low, high)
    saturation = rng.uniform(0.05, 0.6)
    hue = rng.uniform(0, 1)
    ramp = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1.0 * 6 - 3) - 1, 0, 1)
    return ((value * (1 - saturation * (1 - ramp))) ** GAMMA).astype(np.float32)


def _draw_pose(rng: np.random.Generator) -> Pose:
    x, y = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.1)
    return Pose(
        shift=(x, y),
        scale=rng.uniform(1.16, 1.32),
        roll=rng.uniform(-0.12, 0.12),
        yaw=rng.uniform(-0.1, 0.1),
    )


def _draw_light(rng: np.random.Generator) -> Light:
    direction = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.7, 0.05), 1.0])
    direction /= np.linalg.norm(direction)
    x, y, z = (float(v) for v in direction)
    return Light(direction=(x, y, z), ambient=rng.uniform(0.3, 0.55))


def _draw_background(rng: np.random.Generator) -> Background:
    base = _any_color(rng, 0.3, 0.9)
    other = _any_color(rng, 0.25, 0.95)
    blend = rng.uniform(0, 1, (1, 5, 5)).astype(np.float32)
    return Background(field=base[:, None, None] * (1 - blend) + other[:, None, None] * blend)


def _draw_clothes(rng: np.random.Generator) -> Clothes:
    return Clothes(
        color=_any_color(rng, 0.2, 0.9),
        second=_any_color(rng, 0.2, 0.9),
        neckline=rng.uniform(0.0, 0.16),
        vee=rng.uniform(0, 1),
        shoulder=rng.uniform(0.68, 0.76),
        stripes=max(0.0, rng.uniform(-0.5, 0.7)),
        stripe_angle=rng.uniform(0, np.pi),
        texture=rng.normal(0, 1, (12, 12)).astype(np.float32),
    )


def _draw_hair(rng: np.random.Generator) -> Hair:
    harmonics = rng.uniform([[12, 0, -5]], [[90, 2 * np.pi, 5]], (7, 3)).T
    harmonics[0] = np.round(harmonics[0])  # whole periods around the crown: no jump at +-pi
    short = rng.uniform() < 0.5
    return Hair(
        color=_mix(rng, _HAIR, 0.1),
        volume=(
            rng.uniform(0.02, 0.1) if short else rng.uniform(0.04, 0.16),
            rng.uniform(0.06, 0.2),
        ),
        length=rng.uniform(0.1, 0.4) if short else rng.uniform(0.6, 1.5),
        hairline=rng.uniform(-0.54, -0.36),
        opening=rng.uniform(0.45, 0.52),
        parting=rng.uniform(-0.3, 0.3),
        fringe=rng.uniform(0.0, 0.5),
        wave=(rng.uniform(0.0, 0.035), rng.uniform(0, 2 * np.pi)),
        gloss=rng.uniform(0.1, 0.6),
        strands=harmonics.astype(np.float32),
        tufts=rng.normal(0, 1, (8, 8)).astype(np.float32),
    )


def _draw_skin(rng: np.random.Generator) -> Skin:
    return Skin(
        color=_mix(rng, _SKIN, 0.04),
        width=rng.uniform(0.5, 0.57),
        chin=rng.uniform(0.7, 0.8),
        jaw=rng.uniform(0.1, 0.8),
        neck=rng.uniform(0.24, 0.32),
        blush=rng.uniform(0.0, 0.35),
        shine=rng.uniform(0.0, 0.25),
        mottle=rng.normal(0, 1, (8, 8)).astype(np.float32),
        pores=rng.normal(0, 1, (30, 30)).astype(np.float32),
    )


def _draw_brows(rng: np.random.Generator) -> Brows:
    return Brows(
        color=_mix(rng, _BROW, 0.1),
        y=rng.uniform(-0.2, -0.15),
        spread=rng.uniform(0.21, 0.25),
        width=rng.uniform(0.14, 0.18),
        thickness=rng.uniform(0.018, 0.045),
        arch=rng.uniform(0.02, 0.07),
        tilt=rng.uniform(-0.12, 0.12),
    )


def _draw_eyes(rng: np.random.Generator) -> Eyes:
    return Eyes(
        iris=_mix(rng, _IRIS, 0.15),
        y=rng.uniform(0.0, 0.05),
        spread=rng.uniform(0.21, 0.25),
        width=rng.uniform(0.125, 0.155),
        opening=rng.uniform(0.055, 0.085),
        tilt=rng.uniform(-0.1, 0.1),
        gaze=(rng.uniform(-0.02, 0.02), rng.uniform(-0.01, 0.01)),
        lash=rng.uniform(0.4, 1.0),
        shadow=rng.uniform(0.05, 0.35),
    )


def _draw_nose(rng: np.random.Generator) -> Nose:
    return Nose(
        tip=rng.uniform(0.24, 0.31),
        width=rng.uniform(0.11, 0.155),
        bridge=rng.uniform(0.05, 0.08),
        depth=rng.uniform(0.4, 1.0),
        nostril=rng.uniform(0.7, 1.2),
    )


def _draw_mouth(rng: np.random.Generator) -> Mouth:
    vivid = rng.uniform(0.0, 1.0) ** 2
    low = np.array([0.82, 0.52, 0.5])
    tint = low + vivid * (np.array([0.75, 0.14, 0.18]) - low)
    return Mouth(
        tint=(tint * np.exp(rng.normal(0, 0.06, 3))).astype(np.float32),
        y=rng.uniform(0.47, 0.53),
        width=rng.uniform(0.18, 0.26),
        upper=rng.uniform(0.03, 0.055),
        lower=rng.uniform(0.045, 0.08),
        smile=rng.uniform(-0.01, 0.05),
        gap=max(0.0, rng.uniform(-0.05, 0.035)),
        gloss=rng.uniform(0.0, 0.4),
    )


PRIOR: dict[str, Callable[[np.random.Generator], object]] = {
    "pose": _draw_pose,
    "light": _draw_light,
    "background": _draw_background,
    "clothes": _draw_clothes,
    "hair": _draw_hair,
    "skin": _draw_skin,
    "brows": _draw_brows,
    "eyes": _draw_eyes,
    "nose": _draw_nose,
    "mouth": _draw_mouth,
}


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draws a scene from the prior."""
    return Scene(**{name: draw(rng) for name, draw in PRIOR.items()})


def redraw(scene: Scene, parts: Collection[str], rng: np.random.Generator) -> Scene:
    """Returns the scene with the attributes of `parts` (of PARTS) drawn anew from the prior."""
    return dataclasses.replace(scene, **{part: PRIOR[part](rng) for part in parts})


# --- rendering ---


@functools.lru_cache(maxsize=32)
def _pixel_centers(size: int) -> Float32[np.ndarray, size]:
    """Frame coordinates of the pixels' centres, along one axis."""
    return ((np.arange(size) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _spline(size: int, knots: int) -> Float32[np.ndarray, "size knots"]:
    """Cubic B-spline weights that bring `knots` coarse values up to `size` pixels."""
    at = (np.arange(size) + 0.5) / size * (knots - 3) + 1
    d = np.abs(at[:, None] - np.arange(knots))
    weights = np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6)
    return weights.astype(np.float32)


def _bump(d2: Plane) -> Plane:
    """A soft spot of squared radius d2: 1 at its centre, exactly 0 from radius 1 on."""
    spot = np.maximum(1.0 - d2, 0.0)
    spot *= spot
    return spot


def _spot(x: Plane, y: Plane, cx: float, cy: float, rx: float, ry: float) -> Plane:
    return _bump(((x - cx) * (1 / rx)) ** 2 + ((y - cy) * (1 / ry)) ** 2)


def _rgb(*values: float) -> Float32[np.ndarray, "3 1 1"]:
    return np.array(values, np.float32)[:, None, None]


# Multiplies skin in shade: what light there is has passed through skin.
_WARM = _rgb(0.8, 0.68, 0.64)


class _Canvas:
    """The image in the making, in head coordinates; `window` gives a part of it to paint on."""

    def __init__(self, pose: Pose, light: Light, size: int):
        along = _pixel_centers(size)
        cos, sin = np.cos(pose.roll) / pose.scale, np.sin(pose.roll) / pose.scale
        dx, dy = along[None, :] - pose.shift[0], along[:, None] - pose.shift[1]
        self.size = size
        self.x = (cos * dx + sin * dy).astype(np.float32)
        self.y = (cos * dy - sin * dx).astype(np.float32)
        self.pixel = 2.0 / size / pose.scale
        self.yaw = pose.yaw
        self.light = light
        # Lambert's law on an ellipsoid as large as the head, which hair and skin share.
        lx, ly, lz = light.direction
        nx, ny = self.x * (1 / 0.85), (self.y - 0.05) * (1 / 1.05)
        nz = np.sqrt(np.maximum(1.0 - nx * nx - ny * ny, 0.04))
        self.lit = light.ambient + (1.0 - light.ambient) * np.maximum(
            nx * lx + ny * ly + nz * lz, 0
        )
        self.image = np.zeros((3, size, size), np.float32)
        self.owner = np.full((size, size), PARTS.index("background"), np.uint8)
        self.at: tuple[slice, slice] = np.s_[:, :]

    def window(self, x0: float, x1: float, y0: float, y1: float) -> _Canvas:
        """Returns the rectangle of pixels that holds x0..x1, y0..y1 of head coordinates."""
        held = (self.x >= x0) & (self.x <= x1) & (self.y >= y0) & (self.y <= y1)
        rows, columns = np.flatnonzero(held.any(axis=1)), np.flatnonzero(held.any(axis=0))
        at = np.s_[0:0, 0:0]
        if rows.size:  # else the rectangle lies outside the frame
            at = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        view = copy.copy(self)
        view.at = at
        view.x, view.y, view.lit = self.x[at], self.y[at], self.lit[at]
        view.image, view.owner = self.image[:, *at], self.owner[at]
        return view

    def smooth(self, field: Float32[np.ndarray, "*c k k"]) -> Float32[np.ndarray, "*c h w"]:
        """Returns this window's part of a coarse field over the frame, brought up smoothly."""
        rows, columns = self.at
        weights = _spline(self.size, field.shape[-1])
        return weights[rows] @ field @ weights[columns].T

    def cover(self, depth: Plane) -> Plane:
        """Returns a shape's coverage 0..1 from the depth in it (head units), over 1.6 pixels.

        That is about what a lens leaves of an edge; exactly 0 and 1 farther away.
        """
        return np.clip(depth * np.float32(1 / (1.6 * self.pixel)) + np.float32(0.5), 0.0, 1.0)

    def paint(self, alpha: Plane, color: np.ndarray | float) -> None:
        """Lays a colour over the image. Exact at alpha 0 and 1: what is hidden leaves no trace."""
        self.image *= 1.0 - alpha
        self.image += alpha * color

    def shade(self, alpha: Plane, factor: np.ndarray | float) -> None:
        """Multiplies the image by `factor` where alpha is 1."""
        self.image *= 1.0 + alpha * (factor - 1.0)

    def show(self, part: str, alpha: Plane) -> None:
        """Counts what has just been painted as `part`'s, where it hides what was there."""
        self.owner[alpha > 0.5] = PARTS.index(part)

    def features(self, depth: float = 1.0) -> Plane:
        """Returns x without the yaw, which moves the middle of the face most, its edge not."""
        turn = np.float32(depth * self.yaw)
        return self.x - turn * np.maximum(1.0 - (self.x * (1 / 0.6)) ** 2, 0.0)


def _hair_shape(canvas: _Canvas, hair: Hair) -> tuple[Plane, Plane, Plane]:
    """Coverage of the hair as a whole, of what is before the face, and the shadow of that."""
    x, y = canvas.x, canvas.y
    side, top = hair.volume
    amplitude, phase = hair.wave
    x = x + np.float32(amplitude) * np.sin(9.0 * y + np.float32(phase))
    half = 0.53 + side
    above = np.minimum(y + 0.02, 0.0) * (1 / (0.62 + top))
    below = np.maximum(y - (hair.length - 0.3), 0.0) * (1 / 0.32)
    outline = canvas.cover((1.0 - np.sqrt((x / half) ** 2 + above * above + below * below)) * half)
    fall = hair.hairline + hair.fringe * (canvas.x - hair.parting) ** 2
    fall += np.float32(0.5 * amplitude + 0.006) * np.sin(24.0 * canvas.x + np.float32(phase))
    lift = np.minimum(y - fall - 0.34, 0.0) * (1 / 0.34)
    radius = np.sqrt((x / hair.opening) ** 2 + lift * lift)
    front = outline * canvas.cover((radius - 1.0) * 0.5) * canvas.cover(hair.length - 0.06 - y)
    shadow = _bump(np.clip((1.04 - radius) * (1 / 0.34), 0.0, 1.0) ** 2)
    shadow *= outline * canvas.cover(hair.length - 0.06 - y)
    return outline, front, shadow


def _hair_color(canvas: _Canvas, hair: Hair) -> Float32[np.ndarray, "3 h w"]:
    """Strands that run down from the parting, with a band of gloss across them."""
    x, y = canvas.x - np.float32(0.7 * hair.parting), canvas.y + 0.72
    far = np.sqrt(x * x + y * y)
    ray = np.arctan2(x, y)
    strands = 0.22 * canvas.smooth(hair.tufts)
    for frequency, phase, bend in hair.strands.T:
        # Strands closer together than the lens resolves melt into one tone.
        resolved = np.clip(far * (2 * np.pi / frequency / canvas.pixel / 3.0) - 1.0, 0.0, 1.0)
        strands += np.float32(0.11) * resolved * np.sin(frequency * ray + (phase + bend * far))
    band = _bump(((far - 0.42) * (1 / 0.28)) ** 2) * np.float32(0.4 - canvas.light.direction[1])
    tone = canvas.lit * np.maximum(1.0 + strands, 0.2) * (1.0 + np.float32(1.6 * hair.gloss) * band)
    return hair.color[:, None, None] * tone + np.float32(0.02 * hair.gloss) * band


def _paint_clothes(canvas: _Canvas, clothes: Clothes) -> None:
    x, y = canvas.x, canvas.y
    across = np.abs(x) * (1 / 0.36)
    cut = (1 - clothes.vee) * np.sqrt(np.maximum(1 - across * across, 0.0)) + (
        clothes.vee * np.maximum(1 - across, 0.0)
    )
    slope = 0.12 * x * x + 0.06 * np.abs(x)
    cloth = canvas.cover(y - clothes.shoulder - slope - cut * (0.1 + clothes.neckline))
    folds = 1.0 + 0.1 * canvas.smooth(clothes.texture)
    folds += np.float32(0.25 * canvas.light.direction[0]) * x
    color = clothes.color[:, None, None]
    if clothes.stripes > 0:
        turn = clothes.stripe_angle
        stripes = np.sin(np.float32(26 * np.cos(turn)) * x + np.float32(26 * np.sin(turn)) * y)
        stripes = clothes.stripes * np.clip(0.5 + 1.5 * stripes, 0.0, 1.0)
        color = color + stripes * (clothes.second[:, None, None] - color)
    canvas.paint(cloth, color * folds)
    canvas.show("clothes", cloth)


def _skin_color(canvas: _Canvas, skin: Skin) -> Float32[np.ndarray, "3 h w"]:
    """Skin without shading: the tone, blotchy and fine variations."""
    tone = 1.0 + 0.05 * canvas.smooth(skin.mottle) + 0.03 * canvas.smooth(skin.pores)
    return skin.color[:, None, None] * tone


def _paint_neck(canvas: _Canvas, skin: Skin, color: Float32[np.ndarray, "3 h w"]) -> None:
    x, y = canvas.x, canvas.y
    wide = skin.neck + 0.5 * np.maximum(y - 0.8, 0.0)
    neck = canvas.cover(wide - np.abs(x)) * canvas.cover(y - 0.35)
    below_chin = _spot(x, y, -0.1 * canvas.light.direction[0], skin.chin + 0.02, 0.55, 0.3)
    canvas.paint(neck, color * (canvas.lit * (0.85 - 0.5 * below_chin)))
    canvas.show("skin", neck)


def _paint_face(canvas: _Canvas, skin: Skin, color: Float32[np.ndarray, "3 h w"]) -> None:
    """Ears, then an ellipse that narrows to the chin."""
    x, y = canvas.x, canvas.y
    lx, ly, _ = canvas.light.direction
    lobe = ((np.abs(x) - skin.width) * (1 / 0.07)) ** 2 + ((y - 0.12) * (1 / 0.14)) ** 2
    ears = canvas.cover((1.0 - np.sqrt(lobe)) * 0.07)
    canvas.paint(ears, color * _rgb(0.8, 0.69, 0.66) * canvas.lit)
    canvas.show("skin", ears)

    middle = 0.1
    down = (y - middle) * np.where(y < middle, np.float32(1 / 0.72), 1 / (skin.chin - middle))
    jaw = skin.width * (1.0 - 0.28 * skin.jaw * np.maximum(down, 0.0) ** 2)
    face = canvas.cover((1.0 - np.sqrt((x / jaw) ** 2 + down * down)) * 0.55)
    rim = np.maximum(1.0 - (x * (1 / 0.62)) ** 2 - ((y - 0.06) * (1 / 0.8)) ** 2, 0.0)
    cheek = ((np.abs(canvas.features()) - 0.3) * (1 / 0.2)) ** 2 + ((y - 0.27) * (1 / 0.17)) ** 2
    tint = 1.0 + _bump(cheek) * (skin.blush * _rgb(0.1, -0.45, -0.35))
    shine = 1.0 + skin.shine * _spot(x, y, 0.28 * lx, -0.2 + 0.2 * ly, 0.4, 0.25)
    canvas.paint(face, color * tint * (canvas.lit * (0.72 + 0.34 * rim) * shine))
    canvas.show("skin", face)


def _paint_nose(canvas: _Canvas, nose: Nose) -> None:
    """Shades of whatever skin is there: the far flank, the wings, the nostrils and lights."""
    x, y = canvas.features(depth=1.35), canvas.y
    lx = canvas.light.direction[0]
    far = -1.0 if lx > 0 else 1.0  # the flank that is turned away from the light
    ax = np.abs(x)
    width, tip, dark = nose.width, nose.tip, nose.depth
    flank = _spot(x, y, far * nose.bridge * 1.3, tip - 0.17, nose.bridge * 1.1, 0.24)
    canvas.shade(0.85 * dark * (0.25 + abs(lx)) * flank, _WARM)
    wings = ((ax - width * 0.86) * (1 / (width * 0.42))) ** 2 + ((y - tip) * (1 / 0.07)) ** 2
    canvas.shade(0.8 * dark * _bump(wings), _WARM)
    canvas.shade(0.9 * dark * _spot(x, y, 0.0, tip + 0.066, width * 0.95, 0.038), 0.9 * _WARM)
    holes = ((ax - width * 0.42) * (1 / (0.05 * nose.nostril))) ** 2
    holes += ((y - tip - 0.038) * (1 / (0.026 * nose.nostril))) ** 2
    canvas.shade(np.minimum(1.3 * _bump(holes), 1.0), 0.35 * _WARM)
    lights = _spot(x, y, -far * 0.02, tip - 0.038, width * 0.5, 0.065)
    lights += 0.5 * _spot(x, y, -far * 0.015, tip - 0.21, nose.bridge * 0.6, 0.22)
    canvas.shade(lights, 1.0 + 0.3 * dark)
    widening = np.clip((y - tip + 0.3) * (1 / 0.3), 0.0, 1.0)
    body = nose.bridge + (width * 1.05 - nose.bridge) * widening
    height = np.minimum(y - tip + 0.36, tip + 0.1 - y)
    canvas.show("nose", canvas.cover(np.minimum(body - ax, height)))


def _paint_eyes(canvas: _Canvas, eyes: Eyes) -> None:
    """Socket, almond, iris, pupil, glint, lashes and folds of both eyes."""
    x, y = canvas.features(), canvas.y
    lx = canvas.light.direction[0]
    lit = canvas.lit
    out = np.abs(x) - eyes.spread
    u = out * (1 / eyes.width)
    v = y - eyes.y + eyes.tilt * out
    arc = 1.0 - u * u
    canvas.shade(eyes.shadow * _bump((u * 0.62) ** 2 + ((v + 0.02) * (1 / 0.17)) ** 2), _WARM)
    upper, lower = -eyes.opening * arc, 0.62 * eyes.opening * arc
    almond = canvas.cover(np.minimum(v - upper, lower - v))
    canvas.paint(almond, _rgb(0.72, 0.7, 0.68) * (0.35 + 0.6 * lit))
    # Both eyes look the same way: from here on x is signed on each side.
    x = np.where(x > 0, x - eyes.spread, x + eyes.spread) - eyes.gaze[0]
    radius = 0.9 * eyes.opening
    r = np.sqrt(x * x + (v + (0.15 * eyes.opening - eyes.gaze[1])) ** 2)
    ring = 0.55 + 0.9 * np.minimum(r * (1 / radius), 1.0)
    canvas.paint(almond * canvas.cover(radius - r), eyes.iris[:, None, None] * ring)
    canvas.paint(almond * canvas.cover(0.45 * radius - r), 0.008)
    glint = np.sqrt((x - math.copysign(0.35 * radius, lx)) ** 2 + (v + 0.5 * eyes.opening) ** 2)
    canvas.paint(almond * canvas.cover(0.22 * radius - glint), 0.85)
    canvas.shade(almond * _bump(((v - upper) * 20.0) ** 2), 0.55)
    inside = np.abs(u) < 1.0
    lash = canvas.cover(0.016 - np.abs(v - upper + 0.004)) * inside
    canvas.paint(0.9 * eyes.lash * lash, _rgb(0.02, 0.012, 0.01))
    fold = canvas.cover(0.008 - np.abs(v - 1.35 * upper + 0.035)) * inside
    canvas.shade(0.45 * fold, _WARM)
    lid = canvas.cover(0.008 - np.abs(v - lower - 0.004)) * inside
    canvas.shade(0.5 * lid, _WARM)
    canvas.show("eyes", np.maximum(np.maximum(almond, lash), np.maximum(fold, lid)))


def _paint_brows(canvas: _Canvas, brows: Brows) -> None:
    out = np.abs(canvas.features()) - brows.spread
    u = out * (1 / brows.width)
    arc = np.maximum(1.0 - u * u, 0.0)
    v = canvas.y - brows.y + brows.arch * (1.0 - u * u) + brows.tilt * out
    brow = canvas.cover(brows.thickness * arc * (1.15 - 0.35 * u) - np.abs(v)) * (arc > 0)
    canvas.paint(0.85 * brow, brows.color[:, None, None] * (0.5 + 0.5 * canvas.lit))
    canvas.show("brows", brow)


def _paint_mouth(canvas: _Canvas, mouth: Mouth) -> None:
    """Two lips and the line between them, or teeth; lips tint whatever skin is there."""
    x, y = canvas.features(), canvas.y
    u = x * (1 / mouth.width)
    arc = np.maximum(1.0 - u * u, 0.0)
    inside = arc > 0
    round_arc = np.sqrt(arc)
    v = y - mouth.y + mouth.smile * (u * u - 0.5)
    split = mouth.gap * arc
    cupid = 1.0 - 0.3 * _bump((u * 3.0) ** 2)
    top = -split - mouth.upper * round_arc * cupid * (1.0 - 0.4 * np.abs(u))
    low = split + mouth.lower * round_arc * (1.0 - 0.15 * np.abs(u))
    lips = canvas.cover(np.minimum(v - top, low - v)) * inside
    canvas.shade(lips, mouth.tint[:, None, None] * np.where(v < 0, np.float32(0.85), 1.08))
    shine = _spot(u, v, 0.3 * canvas.light.direction[0], 0.5 * mouth.lower + mouth.gap, 0.5, 0.022)
    canvas.shade(mouth.gloss * shine, 1.9)
    if mouth.gap > 0:
        canvas.paint(canvas.cover(split - np.abs(v)) * inside, _rgb(0.06, 0.02, 0.02))
        teeth = canvas.cover(np.minimum(v + split, 0.6 * split - v)) * (np.abs(u) < 0.85)
        canvas.paint(teeth, _rgb(0.7, 0.66, 0.6) * (0.4 + 0.5 * canvas.lit))
    else:
        canvas.shade(0.75 * canvas.cover(0.008 - np.abs(v)) * inside, 0.4 * _WARM)
    canvas.shade(0.5 * _spot(u, v, 0.0, mouth.lower + mouth.gap + 0.05, 0.6, 0.045), _WARM)
    canvas.show("mouth", lips)


def render(
    scene: Scene, size: int
) -> tuple[Float32[np.ndarray, "size size 3"], dict[str, Bool[np.ndarray, "size size"]]]:
    """Renders a scene's linear light (0..1, anti-aliased) and the mask of each of PARTS.

    The masks share out the image: every pixel belongs to one part, the last to cover it by half.
    Attributes of a part act on its own pixels and close by (shades); see `samples.draw_edit`.
    """
    canvas = _Canvas(scene.pose, scene.light, size)
    canvas.image[:] = canvas.smooth(scene.background.field)
    hair, front, shadow = _hair_shape(canvas, scene.hair)
    hair_color = _hair_color(canvas, scene.hair)
    skin_color = _skin_color(canvas, scene.skin)
    # From back to front; the hair behind the head is in its shadow.
    canvas.paint(hair, hair_color * 0.55)
    canvas.show("hair", hair)
    _paint_neck(canvas, scene.skin, skin_color)
    _paint_clothes(canvas.window(-2.0, 2.0, 0.62, 2.0), scene.clothes)
    _paint_face(canvas, scene.skin, skin_color)
    _paint_nose(canvas.window(-0.4, 0.4, -0.3, 0.45), scene.nose)
    _paint_eyes(canvas.window(-0.62, 0.62, -0.24, 0.26), scene.eyes)
    _paint_brows(canvas.window(-0.62, 0.62, -0.4, -0.05), scene.brows)
    _paint_mouth(canvas.window(-0.45, 0.45, 0.3, 0.78), scene.mouth)
    canvas.shade(0.35 * shadow, 0.6)
    canvas.paint(front, hair_color)
    canvas.show("hair", front)
    light = np.clip(np.moveaxis(canvas.image, 0, -1), 0.0, 1.0, dtype=np.float32)
    return light, {part: canvas.owner == index for index, part in enumerate(PARTS)}
