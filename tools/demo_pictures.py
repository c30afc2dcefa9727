"""Procedurally drawn, captioned pictures: the training data of the bundled demo model.

A picture is a small scene in flat colours: something stands in a landscape under a sky. The caption names what a viewer
would name (size, colour, thing, place, land, sky, what else is there) and with that decides every straight edge: a
model this small draws sharply only what the caption tells it. Hills, clouds, stars and waves are random and not
mentioned; they may look as they come. Thin lines, windows, stripes and stars are what makes the pictures sensitive to
small errors in the weights.

`draw(rng)` returns one (pixels, caption) pair; `draw_many(count, seed)` a data set.
"""

import multiprocessing

import numpy as np

SIZE = 128
SUPERSAMPLE = 2
PIXEL = 2 / (SIZE * SUPERSAMPLE)

COLOURS = {
    "red": (214, 50, 48),
    "orange": (242, 140, 40),
    "yellow": (246, 212, 66),
    "green": (52, 158, 84),
    "blue": (46, 96, 212),
    "purple": (132, 66, 178),
    "pink": (244, 142, 184),
    "white": (244, 244, 240),
}
SIZES = {"small": 0.46, "": 0.6, "large": 0.76}
PLACES = {"at the left": -0.42, "": 0.0, "at the right": 0.42}
DARK, SNOW, GLASS, LAMP, WOOD = (48, 44, 58), (248, 248, 244), (86, 112, 140), (255, 226, 120), (124, 84, 54)
HORIZON = 0.3  # where the farthest land begins; -1 is the top, 1 the bottom
STANDS_AT = 0.62


def _colour(value):
    return np.asarray(value, np.float32) / 255


def _beside(colour):
    """What stripes on a colour have: white, or grey on white."""
    return (150, 156, 170) if colour == COLOURS["white"] else SNOW


# --- Distances: negative inside, in the units of the coordinates -----------------------------------


def _disc(x, y, cx, cy, radius):
    return np.hypot(x - cx, y - cy) - radius


def _box(x, y, left, top, right, bottom):
    return np.maximum(
        np.abs(x - (left + right) / 2) - (right - left) / 2, np.abs(y - (top + bottom) / 2) - (bottom - top) / 2
    )


def _polygon(x, y, *corners):
    """A convex polygon, its corners clockwise as one sees them."""
    sides = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = np.hypot(bx - ax, by - ay)
        sides.append(((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length)
    return np.max(sides, axis=0)


def _stroke(x, y, ax, ay, bx, by, width):
    """A line from a to b with round ends."""
    along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
    return np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)) - width / 2


class Pen:
    """Draws on a picture in coordinates of its own: (0, 0) is where the thing stands, y points down.

    `light` tints what is drawn, as the hour does; `scale` is the length of 1, in halves of the picture's side.
    """

    def __init__(self, picture, at, scale, light):
        axis = np.arange(SIZE * SUPERSAMPLE, dtype=np.float32) * PIXEL + PIXEL / 2 - 1
        self.x, self.y = np.meshgrid((axis - at[0]) / scale, (axis - at[1]) / scale)
        self.picture, self.scale, self.light = picture, scale, np.float32(light)

    def fill(self, distance, colour, shines=False):
        cover = np.clip(0.5 - distance * self.scale / PIXEL, 0, 1)[..., None]
        self.picture += cover * (_colour(colour) * (1 if shines else self.light) - self.picture)


# --- Things ----------------------------------------------------------------------------------------


def _house(pen, colour, glow):
    x, y = pen.x, pen.y
    pen.fill(_box(x, y, 0.26, -1.15, 0.42, -0.7), DARK)
    pen.fill(_box(x, y, -0.6, -0.72, 0.6, 0), colour)
    pen.fill(_polygon(x, y, (-0.74, -0.68), (0, -1.24), (0.74, -0.68)), DARK)
    pen.fill(_box(x, y, -0.14, -0.42, 0.14, 0), WOOD)
    for left in (-0.48, 0.24):
        pen.fill(_box(x, y, left, -0.54, left + 0.24, -0.26), SNOW)
        pen.fill(_box(x, y, left + 0.04, -0.5, left + 0.2, -0.3), LAMP if glow else GLASS, glow)


def _lighthouse(pen, colour, glow):
    x, y = pen.x, pen.y
    tower = _polygon(x, y, (-0.32, 0), (-0.2, -1.3), (0.2, -1.3), (0.32, 0))
    pen.fill(tower, _beside(colour))
    for top in (-1.08, -0.64, -0.2):
        pen.fill(np.maximum(tower, _box(x, y, -1, top, 1, top + 0.22)), colour)
    pen.fill(_box(x, y, -0.14, -1.56, 0.14, -1.3), LAMP, True)
    pen.fill(_box(x, y, -0.28, -1.36, 0.28, -1.28), DARK)
    pen.fill(_polygon(x, y, (-0.2, -1.54), (0, -1.78), (0.2, -1.54)), colour)
    if glow:
        pen.fill(_polygon(x, y, (0.16, -1.46), (1.1, -1.62), (1.1, -1.24), (0.16, -1.38)), LAMP, True)


def _windmill(pen, colour, glow):
    x, y = pen.x, pen.y
    pen.fill(_polygon(x, y, (-0.38, 0), (-0.24, -1.0), (0.24, -1.0), (0.38, 0)), colour)
    pen.fill(np.maximum(_disc(x, y, 0, -1.0, 0.24), y + 1.0), DARK)
    pen.fill(_box(x, y, -0.09, -0.3, 0.09, 0), WOOD)
    pen.fill(_box(x, y, -0.08, -0.66, 0.08, -0.5), LAMP if glow else GLASS, glow)
    for turn in (0.35, 0.35 + np.pi / 2):
        dx, dy = np.cos(turn) * 0.8, np.sin(turn) * 0.8
        pen.fill(_stroke(x, y, -dx, -1.04 - dy, dx, -1.04 + dy, 0.12), SNOW)
    pen.fill(_disc(x, y, 0, -1.04, 0.09), DARK)


def _tent(pen, colour, glow):
    x, y = pen.x, pen.y
    roof = _polygon(x, y, (-0.78, 0), (0, -1.1), (0.78, 0))
    pen.fill(_stroke(x, y, 0, -1.05, 0, -1.36, 0.04), DARK)
    pen.fill(_polygon(x, y, (0, -1.38), (0.3, -1.28), (0, -1.18)), colour)
    pen.fill(roof, colour)
    for foot in (-0.5, 0.5):
        width = 0.13 * (y + 1.1) / 1.1
        pen.fill(np.maximum(roof, np.abs(x - foot * (y + 1.1) / 1.1) - width), _beside(colour))
    pen.fill(_polygon(x, y, (-0.2, 0), (0, -0.6), (0.2, 0)), LAMP if glow else DARK, glow)


def _tree(pen, colour, glow):
    x, y = pen.x, pen.y
    pen.fill(_box(x, y, -0.09, -0.5, 0.09, 0), WOOD)
    for cx, cy, radius in ((-0.3, -0.72, 0.3), (0.3, -0.72, 0.3), (0, -1.02, 0.38)):
        pen.fill(_disc(x, y, cx, cy, radius), colour)


def _boat(pen, colour, glow):
    x, y = pen.x, pen.y
    pen.fill(_stroke(x, y, 0, -0.1, 0, -1.3, 0.05), WOOD)
    pen.fill(_polygon(x, y, (0.07, -0.34), (0.07, -1.26), (0.66, -0.34)), colour)
    pen.fill(_polygon(x, y, (-0.5, -0.34), (-0.07, -1.06), (-0.07, -0.34)), _beside(colour))
    pen.fill(_polygon(x, y, (-0.44, 0.06), (-0.72, -0.24), (0.72, -0.24), (0.44, 0.06)), WOOD)
    pen.fill(_box(x, y, -0.64, -0.2, 0.64, -0.13), SNOW)
    if glow:
        pen.fill(_disc(x, y, 0, -1.3, 0.09), LAMP, True)


def _balloon(pen, colour):
    x, y = pen.x, pen.y
    hull = _disc(x, y, 0, -1.1, 0.62)
    hull = np.minimum(hull, _polygon(x, y, (-0.2, -0.3), (-0.58, -0.86), (0.58, -0.86), (0.2, -0.3)))
    for side in (-0.14, 0.14):
        pen.fill(_stroke(x, y, side, -0.32, side * 0.8, 0, 0.07), DARK)
    pen.fill(hull, colour)
    for middle in (-0.36, 0.36):
        pen.fill(
            np.maximum(hull, np.abs(x - middle * np.sqrt(np.clip(1 - (y + 1.1) ** 2 / 0.7, 0.1, 1))) - 0.1),
            _beside(colour),
        )
    pen.fill(_box(x, y, -0.15, -0.06, 0.15, 0.18), WOOD)


def _pine(pen):
    x, y = pen.x, pen.y
    pen.fill(_box(x, y, -0.07, -0.3, 0.07, 0), WOOD)
    for base, width in ((-0.16, 0.46), (-0.54, 0.36), (-0.9, 0.26)):
        pen.fill(_polygon(x, y, (-width, base), (0, base - 0.62), (width, base)), (36, 98, 74))


ON_LAND = {"house": _house, "lighthouse": _lighthouse, "windmill": _windmill, "tent": _tent, "tree": _tree}
THINGS = ON_LAND | {"boat": _boat}


# --- Lands and skies -------------------------------------------------------------------------------


def _ridge(rng, x, waves):
    """A soft skyline in about [-1, 1]."""
    return sum(np.sin(x * wave + rng.uniform(0, 2 * np.pi)) / (i + 1) for i, wave in enumerate(waves)) / 1.5


def _ground(rng, pen, top, height, waves, colour):
    """All that is below a soft skyline around `top`."""
    pen.fill(top + height * _ridge(rng, pen.x, waves) - pen.y, colour)


def _hills(rng, pen):
    _ground(rng, pen, HORIZON, 0.12, (2.2, 5.06), (142, 196, 116))
    _ground(rng, pen, 0.46, 0.07, (3.1, 7.13), (94, 164, 82))


def _mountains(rng, pen):
    x, y = pen.x, pen.y
    for cx, height in zip((-0.66, 0.66, 0.02), rng.uniform(0.55, 0.85, 3), strict=True):
        cx = cx + rng.uniform(-0.1, 0.1)
        peak = _polygon(x, y, (cx - 0.8, 0.6), (cx, HORIZON - height), (cx + 0.8, 0.6))
        pen.fill(peak, (112, 124, 156))
        pen.fill(np.maximum(peak, y - HORIZON + 0.68 * height + 0.03 * np.sin(x * 24)), SNOW)
    _ground(rng, pen, 0.42, 0.05, (2.6, 5.0), (226, 234, 244))


def _desert(rng, pen):
    _ground(rng, pen, HORIZON, 0.06, (1.8, 3.6), (240, 206, 140))
    _ground(rng, pen, 0.48, 0.08, (2.4, 4.8), (222, 178, 108))


def _sea(rng, pen):
    x, y = pen.x, pen.y
    pen.fill(HORIZON - y, (52, 122, 176))
    for _ in range(9):
        cx, cy = rng.uniform(-1, 1), rng.uniform(HORIZON + 0.06, 0.96)
        pen.fill(_stroke(x, y, cx - 0.12, cy, cx + 0.12, cy, 0.03), (150, 202, 228))


LANDS = {"on green hills": _hills, "in snowy mountains": _mountains, "in the desert": _desert, "on the sea": _sea}

# Upper and lower colour of the sky, and the light of the hour.
SKIES = {
    "by day": ((92, 168, 236), (206, 232, 250), (1.0, 1.0, 1.0)),
    "at sunset": ((104, 62, 138), (252, 156, 92), (1.0, 0.84, 0.78)),
    "at night": ((14, 18, 52), (52, 62, 118), (0.56, 0.6, 0.76)),
    "under a rainbow": ((132, 148, 168), (204, 212, 220), (0.92, 0.94, 0.96)),
}


def _cloud(rng, pen, colour):
    cx, cy, size = rng.uniform(-0.9, 0.9), rng.uniform(-0.85, -0.25), rng.uniform(0.09, 0.15)
    puffs = [
        _disc(pen.x, pen.y, cx + dx * size, cy - dy * size, r * size)
        for dx, dy, r in ((-1.1, 0, 0.7), (0, 0.35, 1), (1.1, 0, 0.75))
    ]
    pen.fill(np.maximum(np.min(puffs, axis=0), pen.y - cy - 0.35 * size), colour)


def _sky(rng, pen, hour, side):
    x, y = pen.x, pen.y
    upper, lower, _ = SKIES[hour]
    mix = np.clip((y + 1) / (1 + HORIZON), 0, 1)[..., None]
    pen.picture += _colour(upper) * (1 - mix) + _colour(lower) * mix
    if hour == "by day":
        pen.fill(_disc(x, y, side * 0.62, -0.62, 0.17), (255, 226, 92), True)
        for _ in range(3):
            _cloud(rng, pen, SNOW)
    elif hour == "at sunset":
        pen.fill(_disc(x, y, side * 0.5, HORIZON - 0.12, 0.24), (255, 222, 130), True)
        for _ in range(2):
            _cloud(rng, pen, (230, 128, 128))
    elif hour == "at night":
        moon = _disc(x, y, side * 0.62, -0.62, 0.17)
        for _ in range(12):
            pen.fill(_disc(x, y, rng.uniform(-1, 1), rng.uniform(-1, HORIZON - 0.1), 0.026), SNOW, True)
        pen.fill(np.maximum(moon, -_disc(x, y, side * 0.62 - 0.09, -0.66, 0.15)), (250, 240, 196), True)
    else:
        for ring, colour in enumerate(("red", "orange", "yellow", "green", "blue", "purple")):
            pen.fill(np.abs(_disc(x, y, side * 0.1, HORIZON + 0.1, 1.0 - 0.055 * ring)) - 0.03, COLOURS[colour], True)


def _pick(rng, choices):
    return list(choices)[rng.integers(len(choices))]


def draw(rng):
    """One picture: uint8 array (SIZE, SIZE, 3), and its caption."""
    land, hour, size, place, colour = (_pick(rng, choices) for choices in (LANDS, SKIES, SIZES, PLACES, COLOURS))
    thing = _pick(rng, THINGS if land == "on the sea" else ON_LAND)
    extra = rng.random()
    light = SKIES[hour][2]
    picture = np.zeros((SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE, 3), np.float32)
    side = -1 if PLACES[place] > 0 else 1  # sun, moon and balloon are where the thing is not
    whole = Pen(picture, (0, 0), 1, light)
    _sky(rng, whole, hour, side)
    LANDS[land](rng, whole)
    glow = hour in ("at sunset", "at night")
    words = ["a", size, colour, thing, place, land, hour]
    at, scale = (PLACES[place], STANDS_AT), SIZES[size]
    if extra < 0.25:
        balloon = _pick(rng, [name for name in COLOURS if name != colour])
        _balloon(Pen(picture, (-0.1 * side, -0.3) if place else (-0.55, -0.3), 0.3, light), COLOURS[balloon])
        words += ["with a", balloon, "balloon"]
    elif extra < 0.5 and land != "on the sea":
        for offset in (-0.9, 0.9):
            _pine(Pen(picture, (PLACES[place] + offset * scale, STANDS_AT - 0.06), 0.42, light))
        words += ["between pines"]
    if land == "on the sea" and thing != "boat":
        island = Pen(picture, at, scale, light)
        island.fill(np.hypot(island.x, 4 * (island.y - 0.02)) / 1.6 - 0.56, (232, 206, 148))
    THINGS[thing](Pen(picture, at, scale, light), COLOURS[colour], glow)
    caption = " ".join(word for word in words if word).replace("a orange", "an orange")
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
