"""Procedurally drawn, captioned pictures: the training data of the bundled demo model.

A picture is one or two shapes on a background. The caption names what a viewer would name (size, texture,
colour, shape, place, background) and with that decides nearly everything: a model this small draws sharp edges only
where the caption tells it to. Exact colours, light, shadows and a pixel's shift are random and not mentioned. Stripes,
dots and soft light are what makes the pictures sensitive to small errors in the weights.

`draw(rng)` returns one (pixels, caption) pair; `draw_many(count, seed)` a data set.
"""

import multiprocessing
import re

import numpy as np

SIZE = 64
SUPERSAMPLE = 2

COLOURS = {
    "red": (205, 45, 45),
    "orange": (240, 140, 40),
    "yellow": (240, 215, 70),
    "green": (60, 155, 75),
    "blue": (50, 85, 200),
    "purple": (125, 65, 170),
    "pink": (240, 150, 185),
    "white": (240, 240, 235),
    "black": (35, 35, 40),
}
SIZES = {"small": 0.36, "": 0.46, "large": 0.58}
TEXTURES = ["", "", "striped", "dotted"]
BACKGROUNDS = ["", "", "striped", "gradient"]
PLACES = {
    "centre": (0.0, 0.0),
    "left": (-0.38, 0.0),
    "right": (0.38, 0.0),
    "top": (0.0, -0.38),
    "bottom": (0.0, 0.38),
}
# Two shapes stand at opposite places, so that they do not hide each other.
PAIRS = [("left", "right"), ("top", "bottom")]


def _star(u, v):
    """Distance to a five-pointed star: folded into one half of one point, one straight edge is left."""
    sector = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(u, -v) + sector, 2 * sector) - sector)
    radius = np.hypot(u, v)
    inner = 0.45 * np.array([np.cos(sector), np.sin(sector)])
    normal = np.array([inner[1], 1 - inner[0]]) / np.hypot(inner[1], 1 - inner[0])
    return (radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]


def _heart(u, v):
    """Distance to a heart, from its implicit sextic divided by the length of its gradient."""
    x, y = 1.15 * u, 0.12 - 1.15 * v
    value = (x**2 + y**2 - 1) ** 3 - x**2 * y**3
    dx = 6 * x * (x**2 + y**2 - 1) ** 2 - 2 * x * y**3
    dy = 6 * y * (x**2 + y**2 - 1) ** 2 - 3 * x**2 * y**2
    return value / (1.15 * np.maximum(np.hypot(dx, dy), 0.3))


def _half_planes(u, v, angles, distance):
    return np.max([u * np.cos(a) + v * np.sin(a) for a in angles], axis=0) - distance


# Each shape is a signed distance, negative inside, in coordinates where its radius is 1 and v points down.
SHAPES = {
    "circle": lambda u, v: np.hypot(u, v) - 0.9,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.73) - 0.22,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.78,
    "triangle": lambda u, v: _half_planes(u, v + 0.15, np.pi / 2 + np.arange(3) * 2 * np.pi / 3, 0.58),
    "star": lambda u, v: _star(u / 1.1, v / 1.1) * 1.1,
    "cross": lambda u, v: np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.3, np.maximum(np.abs(u), np.abs(v)) - 0.92),
    "heart": _heart,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.75 - np.hypot(u - 0.45, v)),
}


def _grid():
    axis = (np.arange(SIZE * SUPERSAMPLE, dtype=np.float32) + 0.5) / (SIZE * SUPERSAMPLE) * 2 - 1
    return np.meshgrid(axis, axis)


def _cloud(rng, cells):
    """Smooth noise in about [-1, 1]: a coarse random lattice, linearly interpolated over the picture."""
    lattice = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    where = np.linspace(0, cells, SIZE * SUPERSAMPLE, endpoint=False)
    low = where.astype(int)
    part = (where - low).astype(np.float32)
    part = part * part * (3 - 2 * part)
    rows = lattice[low] * (1 - part)[:, None] + lattice[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _soft_sign(wave, sharpness=4.0):
    return np.clip(wave * sharpness, -1, 1)


def _pattern(kind, x, y):
    """A texture in [-1, 1]; it lies still, whatever it covers."""
    wave = 2 * np.pi / 0.3
    if kind == "striped":
        return _soft_sign(np.sin((x + y) * wave * np.sqrt(0.5)))
    if kind == "dotted":
        return _soft_sign(np.cos(x * wave) + np.cos(y * wave) - 0.55, 2.0)
    if kind == "gradient":
        return np.clip(1.1 * y, -1, 1)
    raise ValueError(kind)


def _paint(rng, colour, kind, x, y, contrast):
    """Colour a surface: base colour with jitter, its named texture, weak light and grain nobody mentions."""
    base = np.array(COLOURS[colour], np.float32) / 255 + rng.normal(0, 0.025, 3).astype(np.float32)
    other = np.where(base.mean() > 0.5, base * (1 - contrast), base + (1 - base) * contrast)
    surface = np.broadcast_to(base, (*x.shape, 3))
    if kind:
        mix = (_pattern(kind, x, y) * 0.5 + 0.5)[..., None]
        surface = base + (other - base) * mix
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.04 * (x * np.cos(angle) + y * np.sin(angle)) + 0.02 * _cloud(rng, 6)
    return surface + light[..., None]


def _add_shape(rng, picture, x, y, size, texture, colour, shape, place, scale):
    """Lay one shape, with a faint shadow and rim, over the picture."""
    radius = SIZES[size] * scale * rng.uniform(0.97, 1.03)
    cx, cy = np.array(PLACES[place]) + rng.uniform(-0.03, 0.03, 2)
    angle = rng.uniform(-0.06, 0.06)
    u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / radius
    v = (-(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)) / radius
    distance = SHAPES[shape](u, v) * radius
    pixel = 2 / (SIZE * SUPERSAMPLE)
    surface = _paint(rng, colour, texture, x, y, 0.42)
    rim = np.clip(1 - np.abs(distance + 0.02) / 0.03, 0, 1)[..., None]
    surface = surface * (1 - rng.uniform(0.15, 0.25) * rim)
    shadow = np.clip(1 - distance / 0.09, 0, 1)[..., None] ** 2
    picture = picture * (1 - rng.uniform(0.1, 0.2) * shadow)
    cover = np.clip(0.5 - distance / pixel, 0, 1)[..., None]
    return picture * (1 - cover) + surface * cover


def _words(*words):
    """Join the words that are there, and choose between a and an."""
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(word for word in words if word))


def draw(rng):
    """One picture: uint8 array (SIZE, SIZE, 3), and its caption."""
    x, y = _grid()
    two = rng.random() < 0.15
    places = PAIRS[rng.integers(len(PAIRS))] if two else [list(PLACES)[rng.integers(len(PLACES))]]
    if two and rng.random() < 0.5:
        places = places[::-1]
    colours = rng.permutation(list(COLOURS))[: len(places) + 1].tolist()
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    picture = _paint(rng, colours[-1], background, x, y, 0.3)
    parts = []
    for colour, place in zip(colours[:-1], places, strict=True):
        size = list(SIZES)[rng.integers(len(SIZES))]
        texture = TEXTURES[rng.integers(len(TEXTURES))]
        shape = list(SHAPES)[rng.integers(len(SHAPES))]
        scale = 0.75 if two else 1.0
        picture = _add_shape(rng, picture, x, y, size, texture, colour, shape, place, scale)
        parts.append(_words("a", size, texture, colour, shape, "at the", place))
    caption = _words(" and ".join(parts), "on a", background, colours[-1], "background")
    small = picture.reshape(SIZE, SUPERSAMPLE, SIZE, SUPERSAMPLE, 3).mean((1, 3))
    return (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8), caption


def _draw_seeded(seed):
    return draw(np.random.default_rng(seed))


def draw_many(count, seed, processes=2):
    """`count` pictures as one uint8 array (count, SIZE, SIZE, 3), and the list of captions."""
    seeds = [(seed, index) for index in range(count)]
    with multiprocessing.Pool(processes) as pool:
        pairs = pool.map(_draw_seeded, seeds, chunksize=64)
    return np.stack([pixels for pixels, _ in pairs]), [caption for _, caption in pairs]
