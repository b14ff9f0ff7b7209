"""Synthetic aerial image pairs with a known truth, drawn with numpy alone.

A place is laid out once (parcels, roads, buildings, trees, and what becomes of them) and
photographed twice: each flight has its own sun, season, crops, haze and camera. Painting fills a
canvas of albedo, height and slope; light turns heights into shading and cast shadows.

    lay_ground ─► build ─► plant ──► Place ──┬─ paint ─ light ─ expose ──► from_pixels
                                             ├─ paint ─ light ─ expose ──► to_pixels
                                             └─ label ───────────────────► truth

A pixel is about 0.7 m. Lengths and heights are in pixels, angles in radians, north is up; maps are
(y, x) float32, and a distance map is negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

CLASS_NAMES = ("No change", "New building", "Building removed", "New road", "Woods cleared")
NO_CHANGE, NEW_BUILDING, BUILDING_REMOVED, NEW_ROAD, WOODS_CLEARED = range(5)

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int32]
Rgb = tuple[float, float, float]
Shape = tuple[int, int]

ARABLE, MEADOW, WOOD, VILLAGE, ESTATE = range(5)
ROAD, TRACK, HEDGE, MARGIN = range(4)
FAR_PX = 999.0
SHORTEST_SIDE_PX = 64
STREET_SPACING_PX = 96.0
STAYS, NEW, REMOVED, NEVER = (True, True), (False, True), (True, False), (False, False)
PAVING_HEIGHT = 0.6

# sRGB. A crop also says how strongly its rows show.
CROPS = (
    (0.47, 0.38, 0.29, 0.15),  # ploughed
    (0.57, 0.48, 0.37, 0.10),  # harrowed
    (0.33, 0.45, 0.22, 0.10),  # young cereals
    (0.40, 0.52, 0.25, 0.08),  # roots
    (0.73, 0.65, 0.42, 0.06),  # ripe cereals
    (0.68, 0.61, 0.46, 0.10),  # stubble
)
TILES = ((0.60, 0.37, 0.29), (0.53, 0.33, 0.27), (0.43, 0.34, 0.30), (0.37, 0.38, 0.41))
SHEETS = ((0.76, 0.77, 0.78), (0.62, 0.64, 0.66), (0.53, 0.37, 0.32), (0.46, 0.53, 0.57))
CARS = ((0.85, 0.85, 0.86), (0.15, 0.15, 0.17), (0.55, 0.12, 0.10), (0.20, 0.28, 0.45))
GRASS = {"spring": (0.42, 0.52, 0.27), "summer": (0.42, 0.48, 0.29), "autumn": (0.53, 0.51, 0.34)}
LEAVES = {"spring": (0.36, 0.47, 0.21), "summer": (0.26, 0.37, 0.19), "autumn": (0.47, 0.40, 0.19)}
NEEDLES, FOREST_FLOOR, DRY_GRASS = (0.18, 0.28, 0.19), (0.30, 0.32, 0.20), (0.56, 0.52, 0.33)
ASPHALT, FRESH_ASPHALT, PAINT = (0.47, 0.47, 0.48), (0.42, 0.42, 0.42), (0.80, 0.80, 0.80)
GRAVEL, CONCRETE, EARTH, SHORE = (
    (0.66, 0.61, 0.53), (0.60, 0.57, 0.51), (0.55, 0.48, 0.38), (0.46, 0.42, 0.30),
)  # fmt: skip
WATER = ((0.20, 0.30, 0.27), (0.17, 0.26, 0.26))


@dataclass(frozen=True)
class ScenePair:
    """Two dates of one place."""

    from_pixels: NDArray[np.uint8]
    """(3, y, x) RGB, the earlier date."""
    to_pixels: NDArray[np.uint8]
    """(3, y, x) RGB, the later date."""
    truth: NDArray[np.uint8]
    """(y, x) class values: positions in ``CLASS_NAMES``."""


@dataclass(frozen=True)
class Flight:
    """What differs from one date to the next over unchanged ground."""

    sun_azimuth: float
    """Clockwise from north; the sun stands in the south at both dates."""
    sun_slope: float
    """Tangent of the sun's elevation."""
    season: str
    gain: Array
    """(3,) exposure and colour cast."""
    haze: float
    """0 to 1, the share of the light that never reached the ground."""
    blur_px: float
    shift_px: tuple[float, float]
    """Misregistration (y, x)."""


@dataclass(frozen=True)
class Parcels:
    """Land cut in two again and again by straight lines. One entry per node; leaves are parcels."""

    cut: Array
    """(node, 3): unit normal (v, u) of the cut, and its offset."""
    child: Indices
    """(node, 2); a leaf is its own child."""
    half_px: Array
    """(line kind, node) half width of the line along the cut; -FAR_PX where there is none."""
    center: Array
    """(node, 2) in (v, u)."""
    angle: Array
    """Direction of the longer side."""
    half_across: Array
    """Half the extent across that direction."""


@dataclass(frozen=True)
class Ground:
    """Land, roads and water."""

    uv: Array
    """(2, y, x) bent coordinates (v, u), in which parcels are straight."""
    parcels: Parcels
    kind: Indices
    """Per node, ARABLE to ESTATE (arable at the from date, village at the to date)."""
    node: Indices
    """(y, x) parcel of each pixel."""
    lines: Array
    """(line kind, y, x) distance from roads, tracks, hedges and margins."""
    street: Array
    """Distance from village streets."""
    new_road: Array
    """Distance from what is built between the dates."""
    water: Array
    relief: Array
    """Height of the hills."""


@dataclass(frozen=True)
class Wing:
    """A rectangular part of a building under a gable or flat roof; or paving, if it is low."""

    y: float
    x: float
    angle: float
    half_length: float
    half_width: float
    eaves: float
    pitch: float
    """Slope of the roof, 0 where flat."""
    color: Rgb
    stands: tuple[bool, bool]
    """Whether it is there at the from and the to date."""


@dataclass(frozen=True)
class Place:
    """Everything that does not depend on the flight."""

    ground: Ground
    wings: list[Wing]
    yard: Array
    """0 to 1, concrete around halls."""
    trees: Array
    """(tree, 6): y, x, radius, tone, conifer, and the date at which it is missing, or -1."""
    clearing: Array
    """0 to 1, where woods are gone at the later date."""


@dataclass(frozen=True)
class Canvas:
    """What light falls on; painted in place."""

    albedo: Array
    """(3, y, x), linear."""
    height: Array
    slope: Array
    """(2, y, x) rise per pixel southward and eastward."""


def render_pair(seed: int, shape_yx: Shape) -> ScenePair:
    """Draw two dates of one place, and what changed between them.

    The same seed and shape give the same pair; another shape gives another place. A scene of
    1000 x 1000 pixels has nearly always every class. Raises ValueError for sides under 64 pixels.
    """
    if min(shape_yx) < SHORTEST_SIDE_PX:
        raise ValueError(f"shape_yx is {shape_yx}; sides of at least {SHORTEST_SIDE_PX} pixels are needed.")
    rng = _generator(seed, 0)
    ground = _lay_ground(rng, shape_yx)
    place = _plant(rng, ground, *_build(rng, ground))
    from_flight, to_flight = _schedule(_generator(seed, 1))
    return ScenePair(
        _photograph(_generator(seed, 2), place, from_flight, 0),
        _photograph(_generator(seed, 3), place, to_flight, 1),
        _label(place),
    )


def _generator(seed: int, part: int) -> Generator:
    return Generator(PCG64([seed, part]))


def _schedule(rng: Generator) -> list[Flight]:
    """Plan two flights, one before and one after noon, in different seasons."""
    seasons = rng.permutation(["spring", "summer", "autumn"])[:2]
    azimuths = rng.permutation([rng.uniform(115, 160), rng.uniform(190, 245)])
    return [
        Flight(
            sun_azimuth=float(np.radians(azimuth)),
            sun_slope=float(np.tan(np.radians(rng.uniform(36, 56)))),
            season=str(season),
            gain=(rng.uniform(1.0, 1.5) * (1 + rng.normal(0, 0.05, 3))).astype(np.float32),
            haze=float(rng.uniform(0.0, 0.13)),
            blur_px=float(rng.uniform(0.45, 0.7)),
            shift_px=(float(rng.uniform(-0.4, 0.4)), float(rng.uniform(-0.4, 0.4))),
        )
        for season, azimuth in zip(seasons, azimuths, strict=True)
    ]


# Arrays: noise, blur, distances.


def _noise(rng: Generator, shape: Shape, scale_px: float, octaves: int = 1) -> Array:
    """Give smooth noise of unit variance; each further octave is half as wide and as strong."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        spacing = max(scale_px / 2**octave, 1.0)
        knots = rng.standard_normal([int(n / spacing) + 3 for n in shape]).astype(np.float32)
        for axis, length in enumerate(shape):
            at = np.arange(length, dtype=np.float32) / np.float32(spacing)
            low = at.astype(np.int32)
            part = np.expand_dims(at - low, 1 - axis)
            part = part * part * (3 - 2 * part)
            knots = knots.take(low, axis) * (1 - part) + knots.take(low + 1, axis) * part
        total += knots * np.float32(0.5**octave)
    return total / np.float32(total.std() + 1e-6)


def _blur(image: Array, sigma_px: float) -> Array:
    """Blur the last two axes with a Gaussian, edges repeated."""
    reach = int(np.ceil(2.5 * sigma_px))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (image.ndim - 2, image.ndim - 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(image.ndim)]
        wide = np.pad(image, pad, mode="edge")
        blurred = np.zeros_like(image)
        for k, weight in enumerate(weights):
            blurred += weight * wide.take(range(k, k + image.shape[axis]), axis)
        image = blurred
    return image


def _coverage(distance: Array, beyond_px: float = 0.0) -> Array:
    """Give the share of each pixel (0 to 1) within an edge that is moved out by some pixels."""
    return np.clip(0.5 + beyond_px - distance, 0, 1)


def _linear(color: Rgb) -> Array:
    """Give (3, 1, 1) linear light for an sRGB colour."""
    return (np.asarray(color, np.float32) ** np.float32(2.2))[:, None, None]


def _window(shape: Shape, y: float, x: float, reach_px: float) -> tuple[tuple[slice, slice], Array, Array]:
    """Give the square around a point, cut at the edges: its slices, its rows' y, its columns' x."""
    ends = [
        (max(0, int(at - reach_px)), max(0, min(length, int(at + reach_px) + 2)))
        for at, length in zip((y, x), shape, strict=True)
    ]
    rows, cols = (np.arange(*end, dtype=np.float32) for end in ends)
    return (slice(*ends[0]), slice(*ends[1])), rows[:, None], cols[None, :]


def _along_across(wing: Wing, y: Array, x: Array) -> tuple[Array, Array]:
    """Give pixels' coordinates in a wing's own frame."""
    dy, dx = y - np.float32(wing.y), x - np.float32(wing.x)
    sin, cos = np.float32(np.sin(wing.angle)), np.float32(np.cos(wing.angle))
    return dy * sin + dx * cos, dy * cos - dx * sin


def _offset(y: float, x: float, angle: float, along: float, across: float) -> tuple[float, float]:
    """Walk from a point along and across a direction."""
    sin, cos = float(np.sin(angle)), float(np.cos(angle))
    return y + along * sin + across * cos, x + along * cos - across * sin


def _fill(image: Array, wing: Wing, value: float, grow_px: float = 0.0) -> None:
    """Write a value wherever a pixel's centre lies in the (grown) rectangle."""
    reach = wing.half_length + wing.half_width + grow_px * 1.5
    window, y, x = _window(image.shape, wing.y, wing.x, reach)
    along, across = _along_across(wing, y, x)
    inside = np.abs(along) <= wing.half_length + grow_px
    image[window][inside & (np.abs(across) <= wing.half_width + grow_px)] = value


# Ground: parcels, roads, water.


def _lay_ground(rng: Generator, shape: Shape) -> Ground:
    yx = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    uv = yx + 16 * np.stack([_noise(rng, shape, 330), _noise(rng, shape, 330)])
    parcels = _cut_land(rng, shape)
    node, lines = _locate(parcels, uv)
    kind = _choose_kinds(rng, parcels, shape)
    kinds = kind[node]
    water = _lay_water(rng, yx, lines[:2].min(0))
    across = _parcel_frame(parcels, node, uv)[1]
    nearest = np.round(across / STREET_SPACING_PX) * STREET_SPACING_PX
    street = np.abs(across - nearest) - 3.4
    # A street at a parcel's very edge would run into the road there.
    street[(np.abs(nearest) > parcels.half_across[node] - 36) | (water < 4)] = FAR_PX
    new_road = np.where(kinds == ESTATE, street, FAR_PX).astype(np.float32)
    street = np.where(kinds == VILLAGE, street, FAR_PX).astype(np.float32)
    cost = 3.0 * (kinds >= WOOD) + 3.0 * (water < 14) + 0.6 * (lines[:2].min(0) < 8)
    for _ in range(max(1, round(node.size / 800_000))):
        path = _choose_path(rng, cost, lines[ROAD])
        np.minimum(new_road, _distance_from(path, shape) - rng.uniform(3.6, 4.6), out=new_road)
    relief = 9 * _noise(rng, shape, 260, 2)
    return Ground(uv, parcels, kind, node, lines, street, new_road, water, relief)


def _cut_land(rng: Generator, shape: Shape) -> Parcels:
    heading = rng.uniform(0, np.pi)
    far_v, far_u = shape[0] + 120.0, shape[1] + 120.0
    todo = [(np.array([(-120, -120), (-120, far_u), (far_v, far_u), (far_v, -120)]), 0, 0)]
    rows: list[list[float]] = []
    child: list[list[int]] = []
    while todo:
        corners, parent, side = todo.pop()
        me = len(rows)
        child.append([me, me])
        child[parent][side] = me
        angle, center, spans = _frame_polygon(corners, heading)
        area = _measure(corners)
        cut, half_px = np.zeros(3), [-FAR_PX] * 4
        if area > rng.uniform(45_000, 95_000):
            tilt = angle + rng.normal(0, 0.12)
            normal = np.array([np.sin(tilt), np.cos(tilt)])
            reach = corners @ normal
            offset = reach.min() + np.ptp(reach) * rng.uniform(0.38, 0.62)
            todo.append((_clip_polygon(corners, normal, offset), me, 1))
            todo.append((_clip_polygon(corners, -normal, -offset), me, 0))
            cut, half_px = np.array([*normal, offset]), _draw_line(rng, area)
        rows.append([*cut, *half_px, *center, angle, spans[1] / 2])
    table = np.array(rows, np.float32)
    return Parcels(
        cut=table[:, :3],
        child=np.array(child, np.int32),
        half_px=np.ascontiguousarray(table[:, 3:7].T),
        center=table[:, 7:9],
        angle=table[:, 9],
        half_across=table[:, 10],
    )


def _frame_polygon(corners: Array, heading: float) -> tuple[float, Array, tuple[float, float]]:
    """Give the direction of the longer side, the box's centre (v, u), and both extents."""
    axes = np.array([(np.sin(a), np.cos(a)) for a in (heading, heading + np.pi / 2)])
    reach = corners @ axes.T
    spans = np.ptp(reach, axis=0)
    longer = int(spans[1] > spans[0])
    center = (reach.min(0) + spans / 2) @ axes
    return heading + longer * np.pi / 2, center, (spans[longer], spans[1 - longer])


def _measure(corners: Array) -> float:
    v, u = corners.T
    return 0.5 * abs(float(v @ np.roll(u, 1) - u @ np.roll(v, 1)))


def _clip_polygon(corners: Array, normal: Array, offset: float) -> Array:
    """Keep the part of a convex polygon beyond a line."""
    side = corners @ normal - offset
    kept = []
    for here, before in enumerate(range(-1, len(corners) - 1)):
        if (side[before] < 0) != (side[here] < 0):
            part = side[before] / (side[before] - side[here])
            kept.append(corners[before] + part * (corners[here] - corners[before]))
        if side[here] >= 0:
            kept.append(corners[here])
    return np.array(kept)


def _draw_line(rng: Generator, area: float) -> list[float]:
    """Choose what runs along a cut: the larger the land it divides, the larger the road."""
    kind, half_px = MARGIN, 1.0
    if area > 420_000:
        kind, half_px = ROAD, rng.uniform(4.5, 5.5)
    elif rng.random() < 0.3:
        kind, half_px = ROAD, rng.uniform(3.2, 4.0)
    elif rng.random() < 0.4:
        kind, half_px = TRACK, 2.4
    elif rng.random() < 0.5:
        kind = HEDGE
    return [half_px if line == kind else -FAR_PX for line in range(4)]


def _locate(parcels: Parcels, uv: Array) -> tuple[Indices, Array]:
    """Find each pixel's parcel, and its distance from the lines passed on the way down."""
    node = np.zeros(uv.shape[1:], np.int32)
    lines = np.full((4, *node.shape), FAR_PX, np.float32)
    while True:
        cut = parcels.cut[node]
        away = cut[..., 0] * uv[0] + cut[..., 1] * uv[1] - cut[..., 2]
        for kind, half_px in enumerate(parcels.half_px):
            lines[kind] = np.minimum(lines[kind], np.abs(away) - half_px[node])
        below = parcels.child[node, (away >= 0).astype(np.int8)]
        if (below == node).all():
            return node, lines
        node = below


def _parcel_frame(parcels: Parcels, node: Array, uv: Array) -> tuple[Array, Array]:
    """Give coordinates along and across each pixel's parcel, from its centre."""
    center, angle = parcels.center[node], parcels.angle[node]
    dv, du = uv[0] - center[..., 0], uv[1] - center[..., 1]
    sin, cos = np.sin(angle), np.cos(angle)
    return dv * sin + du * cos, dv * cos - du * sin


def _choose_kinds(rng: Generator, parcels: Parcels, shape: Shape) -> Indices:
    """Put a village around a heart, estates at its rim, and at least one wood not too far out."""
    kind = np.full(len(parcels.child), -1, np.int32)
    leaves = np.flatnonzero(parcels.child[:, 0] == np.arange(len(kind)))
    kind[leaves] = rng.choice([ARABLE, MEADOW, WOOD], leaves.size, p=[0.62, 0.22, 0.16])
    heart = rng.uniform(0.3, 0.7, 2) * shape
    leaves = leaves[np.argsort(np.linalg.norm(parcels.center[leaves] - heart, axis=1))]
    village = max(1, round(0.14 * leaves.size))
    estate = village + max(1, round(0.07 * leaves.size))
    kind[leaves[:village]] = VILLAGE
    kind[leaves[village:estate]] = ESTATE
    outer = estate + int(rng.integers(max(1, (leaves.size - estate) // 2)))
    kind[leaves[min(outer, leaves.size - 1)]] = WOOD
    return kind


def _lay_water(rng: Generator, yx: Array, roads: Array) -> Array:
    """Lay a river across the scene, or a pond away from the roads."""
    shape = roads.shape
    if rng.random() < 0.6:
        turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 6, 2)
        y, x = (a - rng.uniform(0.1, 0.9) * n for a, n in zip(yx, shape, strict=True))
        along, across = y * np.sin(turn) + x * np.cos(turn), y * np.cos(turn) - x * np.sin(turn)
        bend = 38 * np.sin(along / 95 + phase[0]) + 60 * np.sin(along / 270 + phase[1])
        lean = 0.4 * np.cos(along / 95 + phase[0]) + 0.22 * np.cos(along / 270 + phase[1])
        half_px = rng.uniform(9, 14) + 2 * np.sin(along / 60)
        return np.asarray(np.abs(across - bend) / np.sqrt(1 + lean**2) - half_px, np.float32)
    spots = (rng.uniform(0.1, 0.9, (60, 2)) * shape).astype(int)
    y, x = spots[np.argmax(roads[spots[:, 0], spots[:, 1]])]
    rim = min(rng.uniform(30, 60), roads[y, x] * 0.6) + 5 * _noise(rng, shape, 40)
    return np.asarray(np.hypot(yx[0] - y, 0.8 * (yx[1] - x)) - rim, np.float32)


def _choose_path(rng: Generator, cost: Array, road: Array) -> Array:
    """Lead a curve from one road to another over the cheapest ground. Returns (point, 2) y, x."""
    shape = np.array(cost.shape)
    t = np.linspace(0, 1, 48)[:, None]
    best = shape * (0.2 + 0.4 * t)
    price = np.inf
    ends = np.argwhere(road < 0)
    for _ in range(150 if len(ends) else 0):
        a, d = ends[rng.integers(len(ends), size=2)]
        length = np.linalg.norm(d - a)
        if not 0.3 * shape.min() < length < 0.7 * shape.min():
            continue
        b, c = a + (d - a) * np.array([[1], [2]]) / 3 + rng.normal(0, 0.16 * length, (2, 2))
        path = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
        if (path < 0).any() or (path >= shape).any():
            continue
        y, x = path.astype(int).T
        if cost[y, x].mean() < price:
            best, price = path, cost[y, x].mean()
    return best


def _distance_from(path: Array, shape: Shape) -> Array:
    """Give the distance from a polyline, exact to 30 pixels away."""
    distance = np.full(shape, FAR_PX, np.float32)
    for a, b in pairwise(path):
        stretch, (mid_y, mid_x) = b - a, (a + b) / 2
        window, y, x = _window(shape, mid_y, mid_x, float(np.linalg.norm(stretch)) + 30)
        part = ((y - a[0]) * stretch[0] + (x - a[1]) * stretch[1]) / (stretch @ stretch)
        part = np.clip(part, 0, 1)
        away = np.hypot(y - a[0] - part * stretch[0], x - a[1] - part * stretch[1])
        distance[window] = np.minimum(distance[window], away)
    return distance


# Buildings and trees.


def _build(rng: Generator, ground: Ground) -> tuple[list[Wing], Array]:
    """Choose the buildings and their fates. Returns wings, and the yards around halls."""
    shape = ground.node.shape
    paved = np.minimum(np.minimum(ground.lines[:2].min(0), ground.street), ground.new_road)
    taken = (paved < 2) | (ground.water < 6) | (ground.kind[ground.node] == WOOD)
    halls = _build_halls(rng, ground, taken)
    yard = np.zeros(shape, np.float32)
    for hall in halls:
        _fill(yard, hall, 1.0, grow_px=8)
    return halls + _build_houses(rng, ground, taken), _blur(yard, 1.5)


def _fits(taken: Mask, site: Wing) -> bool:
    """Whether a building and a margin fit on free ground; takes the ground if so."""
    along, across = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 7))
    along, across = along * (site.half_length + 4), across * (site.half_width + 4)
    sin, cos = np.sin(site.angle), np.cos(site.angle)
    y = np.round(site.y + along * sin + across * cos).astype(int)
    x = np.round(site.x + along * cos - across * sin).astype(int)
    if min(y.min(), x.min()) < 0 or y.max() >= taken.shape[0] or x.max() >= taken.shape[1]:
        return False
    if taken[y, x].any():
        return False
    _fill(taken, site, True, grow_px=7)
    return True


def _build_halls(rng: Generator, ground: Ground, taken: Mask) -> list[Wing]:
    """Put farms and works beside roads, in open country."""
    near = ground.lines[:2].min(0)
    open_land = ground.kind[ground.node] <= MEADOW
    spots = np.argwhere((near > 24) & (near < 46) & open_land & ~taken)
    wings = []
    for _ in range(max(2, round(taken.size / 260_000)) if len(spots) else 0):
        y, x = spots[rng.integers(len(spots))]
        angle = float(ground.parcels.angle[ground.node[y, x]])
        for hall in range(rng.integers(2, 6)):
            wing = Wing(
                *_offset(y, x, angle, 56 * (hall % 2), 36 * (hall // 2)),
                angle,
                half_length=rng.uniform(17, 32),
                half_width=rng.uniform(9, 14),
                eaves=rng.uniform(8, 12),
                pitch=rng.choice([0.0, 0.25, 0.4]),
                color=(SHEETS if rng.random() < 0.7 else TILES)[rng.integers(4)],
                stands=(STAYS, NEW, REMOVED)[rng.choice(3, p=[0.45, 0.33, 0.22])],
            )
            if _fits(taken, wing):
                wings += [wing, *_leave_rubble(rng, wing)]
    return wings


def _build_houses(rng: Generator, ground: Ground, taken: Mask) -> list[Wing]:
    """Fill the lots on both sides of each street."""
    wings = []
    for parcel in np.flatnonzero(ground.kind >= VILLAGE).tolist():
        center, angle = ground.parcels.center[parcel], float(ground.parcels.angle[parcel])
        grown = ground.kind[parcel] == ESTATE
        odds = (0, 0.85, 0, 0.15) if grown else (0.62, 0.15, 0.15, 0.08)
        for street in np.arange(-5, 6) * STREET_SPACING_PX:
            for side in (-1, 1):
                along = -450 + np.cumsum(rng.uniform(30, 44, 25))
                across = street + side * rng.uniform(21, 27, 25)
                for s, t in zip(along, across, strict=True):
                    v, u = _offset(center[0], center[1], angle, s, t)
                    y, x = _unbend(ground.uv, v, u)
                    fate = (STAYS, NEW, REMOVED, NEVER)[rng.choice(4, p=odds)]
                    house = _draw_house(rng, y, x, angle, side, fate)
                    site = Wing(y, x, angle, 11, 11, 0, 0, EARTH, fate)
                    if _is_lot(ground, parcel, y, x) and _fits(taken, site) and fate != NEVER:
                        wings += house
    return wings


def _is_lot(ground: Ground, parcel: int, y: float, x: float) -> bool:
    """Whether a point lies well inside its parcel and on a street that was built."""
    at = int(y), int(x)
    if min(at) < 0 or at[0] >= ground.node.shape[0] or at[1] >= ground.node.shape[1]:
        return False
    street = min(ground.street[at], ground.new_road[at])
    lines = ground.lines[(slice(None), *at)]
    return bool(ground.node[at] == parcel and street < 26 and lines.min() > 12)


def _unbend(uv: Array, v: float, u: float) -> tuple[float, float]:
    """Find the pixel position (y, x) of a bent coordinate."""
    y, x = v, u
    for _ in range(3):
        row, col = (int(np.clip(a, 0, n - 1)) for a, n in zip((y, x), uv.shape[1:], strict=True))
        y, x = v - float(uv[0, row, col] - row), u - float(uv[1, row, col] - col)
    return y, x


def _draw_house(rng: Generator, y: float, x: float, angle: float, side: int, stands: tuple[bool, bool]) -> list[Wing]:
    """Design a house, often L-shaped, with a drive to the street on that side."""
    turn = angle + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.03)
    length, width = rng.uniform(8, 11.5), rng.uniform(5.5, 7)
    tile = np.array(TILES[rng.choice(4, p=[0.36, 0.24, 0.2, 0.2])]) * rng.uniform(0.88, 1.12)
    color: Rgb = tuple(tile.clip(0, 1))
    eaves, pitch = rng.uniform(6, 8), rng.uniform(0.55, 0.95)
    wings = [Wing(y, x, turn, length, width, eaves, pitch, color, stands)]
    if rng.random() < 0.45:
        end, flank = rng.choice([-1, 1], 2)
        at = _offset(y, x, turn, end * (length - 0.8 * width), flank * width * 0.95)
        right = turn + np.pi / 2
        wings.append(Wing(*at, right, width, 0.8 * width, eaves, pitch, color, stands))
    drive = _offset(y, x, angle, rng.uniform(-5, 5), -side * 11)
    gray = (CONCRETE, GRAVEL, ASPHALT)[rng.integers(3)]
    wings.append(Wing(*drive, angle + np.pi / 2, 9, 1.9, PAVING_HEIGHT, 0, gray, stands))
    return wings + _leave_rubble(rng, wings[0])


def _leave_rubble(rng: Generator, wing: Wing) -> list[Wing]:
    """Leave bare ground where a building was removed, and often around a new one."""
    if wing.stands == STAYS or rng.random() < 0.4:
        return []
    length, width = wing.half_length + rng.uniform(0, 5), wing.half_width + rng.uniform(0, 5)
    ground: Rgb = tuple(np.array(EARTH) * rng.uniform(0.85, 1.15))
    return [Wing(wing.y, wing.x, wing.angle, length, width, PAVING_HEIGHT, 0, ground, NEW)]


def _plant(rng: Generator, ground: Ground, wings: list[Wing], yard: Array) -> Place:
    shape = ground.node.shape
    built = np.zeros(shape, bool)
    for wing in wings:
        _fill(built, wing, True, grow_px=4)
    bare = built | (yard > 0.2) | (np.minimum(ground.street, ground.new_road) < 5)
    at, kinds = _sow(rng, ground, bare)
    wood = kinds == WOOD
    loose = rng.uniform(2.6, 6.0, wood.size)
    radius = np.where(wood, rng.uniform(3.8, 6.2, wood.size), loose)
    conifer = _noise(rng, shape, 90)[at] + 0.6 * rng.standard_normal(wood.size) > 0.9
    missing = np.where(kinds == ESTATE, 0, -1)
    missing[_fell(rng, ground, at)] = 1
    tone = rng.normal(1, 0.1, wood.size)
    trees = np.stack([*at, radius, tone, conifer & wood, missing], 1).astype(np.float32)
    stumps = np.zeros(shape, np.float32)
    stumps[at[0][missing == 1], at[1][missing == 1]] = 1
    # A dense stand has one tree per 42 square pixels; its edge is where a quarter of that is left.
    clearing = np.clip(_blur(stumps, 6) * 42 * 3 - 0.75, 0, 1)
    return Place(ground, wings, yard, trees, clearing)


def _sow(rng: Generator, ground: Ground, bare: Mask) -> tuple[tuple[Array, Array], Array]:
    """Choose where trees stand: woods, hedges, banks, gardens. Returns (y, x) and parcel kinds."""
    shape, spacing = bare.shape, 6.5
    grid = np.mgrid[0 : shape[0] / spacing, 0 : shape[1] / spacing].reshape(2, -1) * spacing
    grid = np.clip(grid + rng.uniform(-2.8, 2.8, grid.shape), 0, np.array(shape)[:, None] - 1)
    y, x = grid.astype(int)
    kinds = ground.kind[ground.node[y, x]]
    odds = np.array([0.001, 0.008, 0.97, 0.065, 0.05])[kinds]
    odds[(_noise(rng, shape, 130, 2)[y, x] < -1.1) & (kinds == WOOD)] = 0.05
    odds[ground.lines[HEDGE, y, x] < 3] = 0.8
    water = ground.water[y, x]
    odds = np.where((water > 2) & (water < 10), np.maximum(odds, 0.3), odds)
    odds[bare[y, x] | (ground.lines[:2, y, x].min(0) < 6) | (water < 2)] = 0
    keep = rng.random(y.size) < odds
    return (y[keep], x[keep]), kinds[keep]


def _fell(rng: Generator, ground: Ground, at: tuple[Array, Array]) -> Mask:
    """Choose the trees that go: a side of every other wood, at least of one."""
    node = ground.node[at]
    trees = np.bincount(node, minlength=len(ground.kind)) * (ground.kind == WOOD)
    woods = np.argsort(-trees)[: max(1, np.count_nonzero(trees > 100))]
    woods = woods[trees[woods] > 0]
    felled = np.zeros(node.shape, bool)
    along, across = _parcel_frame(ground.parcels, node, ground.uv[:, at[0], at[1]])
    for wood in rng.permutation(woods)[: (len(woods) + 1) // 2]:
        turn, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.75)
        here = node == wood
        reach = along * np.cos(turn) + across * np.sin(turn)
        felled |= here & (reach > np.quantile(reach[here], 1 - share))
    return felled


def _label(place: Place) -> NDArray[np.uint8]:
    ground = place.ground
    old = np.minimum(ground.lines[:2].min(0), ground.street) < 0
    truth = np.full(old.shape, NO_CHANGE, np.uint8)
    truth[(place.clearing > 0.5) & (ground.water > 0) & ~old] = WOODS_CLEARED
    truth[(ground.new_road < 0) & ~old] = NEW_ROAD
    for wing in place.wings:
        if wing.eaves > PAVING_HEIGHT and wing.stands != STAYS:
            _fill(truth, wing, NEW_BUILDING if wing.stands == NEW else BUILDING_REMOVED)
    return truth


# Painting, light and camera.


def _photograph(rng: Generator, place: Place, flight: Flight, date: int) -> NDArray[np.uint8]:
    canvas = _paint_ground(rng, place, flight, date)
    grain = _noise(rng, canvas.height.shape, 2.2)
    for wing in place.wings:
        if wing.stands[date]:
            _paint_wing(canvas, wing, grain)
    _paint_trees(rng, canvas, place.trees, flight.season, date)
    for car in _park(rng, place.ground, date):
        _paint_wing(canvas, car, grain)
    return _expose(rng, _light(canvas, flight), flight)


def _cover(albedo: Array, alpha: Array, color: Array) -> None:
    albedo += alpha * (color - albedo)


def _paint_ground(rng: Generator, place: Place, flight: Flight, date: int) -> Canvas:
    ground = place.ground
    shape, node = ground.node.shape, ground.node
    broad, fine = _noise(rng, shape, 120, 4), _noise(rng, shape, 5, 2)
    kind = np.where(ground.kind == ESTATE, (ARABLE, VILLAGE)[date], ground.kind)
    tone, rows = _tint_parcels(rng, kind, flight.season)
    albedo = np.ascontiguousarray(np.moveaxis(tone[node], -1, 0))
    along, across = _parcel_frame(ground.parcels, node, ground.uv)
    width = rng.uniform(3.2, 7.0, kind.size).astype(np.float32)[node]
    furrow = np.sin(across * (2 * np.pi / width)) * (1 + 0.3 * fine)
    tramline = np.clip(1.3 - np.abs(np.abs(across % 36 - 18) - 2.5), 0, 1)
    texture = 1 + 0.09 * broad + 0.07 * fine + rows[node] * (furrow - 1.6 * tramline)
    # Gardens: neighbouring lots get unrelated entries of a short table.
    lot = (along // 37).astype(int) * 7 + (across // (STREET_SPACING_PX / 2)).astype(int) * 61
    gardens = rng.normal(1, 0.16, 512).astype(np.float32)[lot % 512]
    albedo *= np.clip(np.where(kind[node] == VILLAGE, gardens, 1) * texture, 0.3, 2.0)
    _cover(albedo, np.clip(0.3 * broad, 0, 0.5) * (kind[node] == MEADOW), _linear(DRY_GRASS))
    rough = 1 + 0.16 * fine
    if date:
        brash = 0.85 * rough * (1 + 0.1 * np.sin(across / 1.6))
        _cover(albedo, place.clearing, _linear(EARTH) * brash)
    grass = _linear(GRASS[flight.season]) * 0.85 * rough
    for line, verge_px in zip(ground.lines, (6, 2.5, 2, 1.5), strict=True):
        _cover(albedo, _coverage(line, verge_px), grass)
    _cover(albedo, _coverage(ground.water, 3), _linear(SHORE) * rough)
    _cover(albedo, _coverage(ground.water), _linear(WATER[date]) * (1 + 0.08 * broad))
    _cover(albedo, place.yard * 0.9, _linear(CONCRETE) * (0.5 + 0.5 * rough))
    _pave(albedo, ground, date, 1 + 0.05 * broad + 0.35 * (rough - 1), grass)
    slope = np.stack([np.gradient(ground.relief, axis=axis) for axis in (0, 1)])
    return Canvas(albedo, np.zeros(shape, np.float32), slope)


def _tint_parcels(rng: Generator, kind: Array, season: str) -> tuple[Array, Array]:
    """Choose this date's crops. Returns (node, 3) linear colours, and how strongly rows show."""
    crop = np.array(CROPS)[rng.integers(len(CROPS), size=kind.size)]
    tone = np.where((kind == ARABLE)[:, None], crop[:, :3], GRASS[season])
    tone = np.where((kind == WOOD)[:, None], FOREST_FLOOR, tone) ** 2.2
    tone *= rng.normal(1, 0.1, (kind.size, 1)) * rng.normal(1, 0.03, (kind.size, 3))
    rows = np.where(kind == ARABLE, crop[:, 3], np.where(kind == MEADOW, 0.02, 0.0))
    return tone.astype(np.float32), rows.astype(np.float32)


def _pave(albedo: Array, ground: Ground, date: int, worn: Array, grass: Array) -> None:
    if date:
        _cover(albedo, _coverage(ground.new_road, 2.5), _linear(EARTH) * worn)
        _cover(albedo, _coverage(ground.new_road), _linear(FRESH_ASPHALT) * worn)
    road, track = ground.lines[ROAD], ground.lines[TRACK]
    _cover(albedo, _coverage(track), _linear(GRAVEL) * worn)
    _cover(albedo, 0.6 * _coverage(np.abs(track + 2.4), -0.1), grass)
    _cover(albedo, _coverage(np.minimum(ground.street, road)), _linear(ASPHALT) * worn)
    _cover(albedo, 0.35 * _coverage(np.abs(road + 0.9), -0.1), _linear(PAINT))


def _stack(
    canvas: Canvas,
    window: tuple[slice, slice],
    alpha: Array,
    *,
    z: Array,
    slope: tuple[Array, Array],
    albedo: Array,
) -> None:
    """Put a surface on the canvas wherever it is higher than what is there."""
    alpha = alpha * np.clip(z - canvas.height[window] + 0.5, 0, 1)
    layers = (canvas.height, *canvas.slope, *canvas.albedo)
    for layer, surface in zip(layers, (z, *slope, *albedo), strict=True):
        here = layer[window]
        here += alpha * (surface - here)


def _paint_wing(canvas: Canvas, wing: Wing, grain: Array) -> None:
    reach = wing.half_length + wing.half_width + 2
    window, y, x = _window(canvas.height.shape, wing.y, wing.x, reach)
    along, across = _along_across(wing, y, x)
    off_ridge = np.abs(across)
    alpha = _coverage(np.abs(along) - wing.half_length) * _coverage(off_ridge - wing.half_width)
    z = wing.eaves + wing.pitch * np.clip(wing.half_width - off_ridge, 0, None)
    fall = -wing.pitch * np.clip(across, -1, 1)
    seams = 1 + 0.05 * np.sin(along * 2.1) + 0.05 * grain[window]
    albedo = _linear(wing.color) * seams
    if wing.half_length > 14 and wing.eaves > PAVING_HEIGHT and min(wing.color) < 0.7:
        middle = np.abs(off_ridge - 0.5 * wing.half_width) < 0.22 * wing.half_width
        skylight = (np.abs(along % 13 - 6.5) < 1.6) & middle
        albedo = np.where(skylight, np.float32(0.6), albedo)
    slope = (fall * np.cos(wing.angle), -fall * np.sin(wing.angle))
    _stack(canvas, window, alpha, z=z, slope=slope, albedo=albedo)


def _paint_trees(rng: Generator, canvas: Canvas, trees: Array, season: str, date: int) -> None:
    leafy = 1 + 0.28 * _noise(rng, canvas.height.shape, 2.4)
    turned = rng.normal(0.5, 0.22 if season == "autumn" else 0.06, len(trees)).clip(0, 1)
    leaf, summer_leaf = _linear(LEAVES[season]), _linear(LEAVES["summer"])
    for (y0, x0, radius, tone, conifer, missing), turn in zip(trees, turned, strict=True):
        if missing == date:
            continue
        window, y, x = _window(canvas.height.shape, y0, x0, radius + 1)
        dy, dx = y - y0, x - x0
        away = np.sqrt(dy * dy + dx * dx)
        rim = radius * (1 + 0.13 * np.sin(3 * np.arctan2(dy, dx) + 40 * tone))
        crown = np.sqrt(np.clip(1 - (away / rim) ** 2, 0, 1))
        tall = 2.2 * radius + 2
        steep = -0.5 * tall / radius / radius / (crown + 0.45)
        color = _linear(NEEDLES) if conifer else leaf + np.float32(turn) * (summer_leaf - leaf)
        _stack(
            canvas,
            window,
            _coverage(away - rim),
            z=tall * (0.55 + 0.45 * crown) * np.clip(leafy[window], 0.8, 1.2),
            slope=(steep * dy, steep * dx),
            albedo=color * tone * leafy[window],
        )


def _park(rng: Generator, ground: Ground, date: int) -> list[Wing]:
    """Put a few cars on the roads of this date, in their lanes."""
    roads = np.minimum(ground.lines[ROAD], ground.street)
    roads = np.minimum(roads, ground.new_road) if date else roads
    inner = roads[1:-1, 1:-1]
    spots = 1 + np.argwhere((inner < -1.4) & (inner > -2.6))
    cars = []
    for y, x in spots[rng.integers(len(spots), size=len(spots) // 900)]:
        dy, dx = roads[y + 1, x] - roads[y - 1, x], roads[y, x + 1] - roads[y, x - 1]
        color = CARS[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])]
        angle = float(np.arctan2(dx, -dy))
        cars.append(Wing(float(y), float(x), angle, 2.8, 1.3, 2.0, 0.0, color, STAYS))
    return cars


def _light(canvas: Canvas, flight: Flight) -> Array:
    """Give (3, y, x) radiance: the sun with its shadows, and the blue sky everywhere."""
    south, east = -np.cos(flight.sun_azimuth), np.sin(flight.sun_azimuth)
    height = canvas.height
    reach = int(height.max() / flight.sun_slope) + 1
    wide = np.pad(height, reach + 1, mode="edge")
    rows, cols = height.shape
    # Walk towards the sun; whatever rises above the ray to it blocks it.
    blocking = np.zeros_like(height)
    for walked in range(1, reach + 1):
        dy, dx = (round(reach + 1 + walked * part) for part in (south, east))
        ray = np.float32(walked * flight.sun_slope)
        np.maximum(blocking, wide[dy : dy + rows, dx : dx + cols] - ray, out=blocking)
    shadow = _blur(np.clip(blocking - height - 0.4, 0, 1), 0.5)
    rise = canvas.slope[0] * np.float32(south) + canvas.slope[1] * np.float32(east)
    facing = (1 - rise / np.float32(flight.sun_slope)) / np.sqrt(1 + (canvas.slope**2).sum(0))
    sky = np.array([0.17, 0.20, 0.26], np.float32)[:, None, None]
    sun = np.clip(facing, 0.05, 2.2) * (1 - shadow)
    return np.asarray(canvas.albedo * (sky + (1 - sky) * sun), np.float32)


def _expose(rng: Generator, radiance: Array, flight: Flight) -> NDArray[np.uint8]:
    """Give (3, y, x) counts: haze, optics, misregistration, gamma and sensor noise."""
    veil = flight.haze * np.clip(1 + 0.35 * _noise(rng, radiance.shape[1:], 350), 0, 2)
    image = radiance * flight.gain[:, None, None]
    _cover(image, veil, np.array([0.50, 0.56, 0.64], np.float32)[:, None, None])
    image = _blur(image, flight.blur_px)
    for axis, part in zip((1, 2), flight.shift_px, strict=True):
        image += np.float32(abs(part)) * (np.roll(image, 1 if part > 0 else -1, axis) - image)
    image = np.clip(image, 0, 1) ** np.float32(1 / 2.2)
    image += rng.standard_normal(image.shape, np.float32) * np.float32(0.011)
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)
