"""The retina's vessels: trunks that leave the disc and arch around the macula, and branches that fill the space.

Points are (x, y) in mm on the retina's map of `fundus_view`: the origin is the fovea, x grows to the nasal side.
"""

from dataclasses import dataclass

import numpy as np

from mediax.phantoms.canvas import smooth

KINDS = ("vein", "artery")
LARGEST = {"vein": 0.17, "artery": 0.128}  # mm at the disc: a ratio of about 3 to 2
NARROWEST, TIP = 0.017, 0.011  # mm: the thinnest vessel that branches off, and the end of any
ORDERS = 3  # a trunk's branches have order 1

STEP = 0.15  # mm
CELL = 0.2  # mm: two branches of one tree stay about this far apart
LONGEST = 7.5  # mm, of a branch
REACH = 15.0  # mm from the fovea that is mapped

# Right eye, relative to the disc's centre; the temporal arcades arch around the macula.
TRUNKS = {
    "superior temporal": [(0.16, 0.12), (0.0, -0.85), (-0.6, -1.95), (-1.8, -3.0), (-3.7, -3.6), (-5.9, -3.6),
                          (-8.2, -3.0), (-10.4, -2.1), (-12.6, -1.6)],
    "inferior temporal": [(0.16, -0.02), (0.02, 0.9), (-0.45, 2.1), (-1.5, 3.4), (-3.3, 4.4), (-5.6, 4.6),
                          (-8.0, 4.0), (-10.2, 3.1), (-12.4, 2.6)],
    "superior nasal": [(0.18, 0.1), (0.5, -0.8), (1.3, -1.8), (2.5, -3.0), (3.6, -4.6), (4.3, -6.6)],
    "inferior nasal": [(0.18, 0.0), (0.55, 0.85), (1.5, 1.8), (2.8, 2.9), (4.0, 4.3), (4.9, 6.2)],
}  # fmt: skip


@dataclass(frozen=True)
class Vessel:
    """One branch: points f64[N,2] in mm from its parent outwards, widths f64[N] in mm; order 0 is a trunk."""

    kind: str  # "artery" or "vein"
    points: np.ndarray
    widths: np.ndarray
    order: int


def grow_vessels(disc: np.ndarray, rng: np.random.Generator) -> list[Vessel]:
    """All arteries and veins of an eye with its disc at (x, y) in mm; none enters the fovea's avascular zone."""
    parents = [_trunk(kind, name, disc, rng) for kind in KINDS for name in TRUNKS]
    plot = Plot(disc, avascular=rng.uniform(0.32, 0.5))
    plot.settle(parents)
    vessels = list(parents)
    for order in range(1, ORDERS + 1):
        sprouts = _sprouts(parents, disc, order, rng)
        if order == 1:
            sprouts = np.concatenate([sprouts, _from_the_disc(disc, rng)])
        parents = _grow(sprouts, order, plot, rng)
        vessels += parents
    return vessels


def _trunk(kind: str, name: str, disc: np.ndarray, rng: np.random.Generator) -> Vessel:
    knots = np.array(TRUNKS[name], float)
    free = np.linspace(0, 1, len(knots))[:, None]
    # Artery and vein of a quadrant start side by side, take their own ways, and cross now and then.
    knots[0, 0] += rng.normal(-0.05 if kind == "vein" else 0.07, 0.04)
    knots[1:] *= rng.normal(1, 0.09, 2)
    knots[1:] += rng.normal(0, 0.14, 2)
    knots += rng.normal(0, 0.2, knots.shape) * np.minimum(5 * free, 1) * (0.5 + free)
    points = smooth(disc + knots, samples=100)
    wobble = rng.normal(0, 0.045, (14, 2)) * np.minimum(np.arange(14) / 3, 1)[:, None]
    points += smooth(wobble, samples=100)
    width = LARGEST[kind] * rng.uniform(0.85, 1.1) * (0.72 if "nasal" in name else 1)
    return Vessel(kind, points, width * np.linspace(1, 0.4, 100), 0)


def _sprouts(parents: list[Vessel], disc: np.ndarray, order: int, rng: np.random.Generator) -> np.ndarray:
    """Branches that leave vessels, on alternate sides: f64[N,6] of x, y, heading, width, length (mm), kind."""
    if not parents:
        return np.zeros((0, 6))
    points, widths = (np.concatenate([getattr(vessel, name) for vessel in parents]) for name in ("points", "widths"))
    sizes = [len(vessel.points) for vessel in parents]
    parent = np.repeat(np.arange(len(parents)), sizes)
    ahead = np.roll(points, -1, axis=0) - points
    # A clock that runs unevenly along each vessel; a branch leaves whenever it strikes.
    ticks = np.hypot(*ahead.T) * rng.uniform(0.2, 1.8, len(points)) / (0.75 if order == 1 else 0.6)
    starts = np.cumsum([0, *sizes[:-1]])
    elapsed = np.cumsum(ticks)
    late = rng.uniform(0.0, 0.9, len(parents)) + (0.9 if order == 1 else 0.2)
    clock = np.floor(elapsed - (elapsed - ticks)[starts][parent] - late[parent])
    strikes = np.flatnonzero((clock[1:] > clock[:-1]) & (parent[1:] == parent[:-1]) & (clock[1:] >= 0))
    number, owner = clock[strikes + 1], parent[strikes]
    fork = number < (2 if order == 1 else 1)  # the first branches share the blood more evenly
    count = len(strikes)
    width = widths[strikes] * np.where(fork, rng.uniform(0.6, 0.88, count), rng.uniform(0.2, 0.62, count))
    side = np.where(number % 2 == 0, 1, -1) * rng.choice([-1, 1], len(parents))[owner]
    side = np.where(rng.random(count) < 0.2, -side, side)
    angle = np.where(fork, rng.uniform(0.4, 0.8, count), rng.uniform(0.7, 1.3, count))
    heading = np.arctan2(ahead[strikes, 1], ahead[strikes, 0]) + side * angle
    length = width * rng.uniform(35, 80, count) * np.where(fork, 1.7, 1)
    kind = np.array([KINDS.index(vessel.kind) for vessel in parents])[owner]
    # What goes to the macula is thinner and ends there.
    to_fovea = np.hypot(*points[strikes].T)
    inner = heading_inwards(points[strikes], heading) & (to_fovea < 5)
    width = np.where(inner, np.minimum(0.8 * width, 0.06), width)
    length = np.where(inner, np.minimum(2.4 * length, 0.95 * to_fovea), np.minimum(length, LONGEST))
    sprouts = np.column_stack([points[strikes], heading, width, length, kind])
    from_disc = np.hypot(*(points[strikes] - disc).T)
    crowded = ~fork & (rng.random(count) > from_disc / 3.2)  # the vessels around the disc have few branches
    return sprouts[(width > NARROWEST) & (from_disc > 0.95) & ~crowded]


def _from_the_disc(disc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sprouts of the small vessels that leave the disc straight to the macula and to the nasal side."""
    sprouts = []
    for kind in range(len(KINDS)):
        for side, count in ((np.pi, rng.integers(1, 4)), (0.0, rng.integers(2, 4))):
            for heading in side + rng.normal(0, 0.5, count):
                start = disc + rng.uniform(0.25, 0.6) * np.array([np.cos(heading), 1.1 * np.sin(heading)])
                width = rng.uniform(0.028, 0.052)
                sprouts.append((*start, heading, width, 75 * width, kind))
    return np.array(sprouts)


class Plot:
    """Where vessels may grow: not into another one of their tree, the avascular zone, or the disc."""

    def __init__(self, disc: np.ndarray, avascular: float):
        cells = int(2 * REACH / CELL)
        self.disc, self.avascular = disc, avascular
        self.owners, self.count = np.zeros((len(KINDS), cells, cells), np.int32), 0

    def enter(self, vessels: int) -> np.ndarray:
        """New numbers i64[vessels], never 0."""
        self.count += vessels
        return np.arange(self.count - vessels, self.count) + 1

    def settle(self, vessels: list[Vessel]) -> None:
        for vessel, owner in zip(vessels, self.enter(len(vessels))):
            self.take(vessel.points, KINDS.index(vessel.kind), owner)

    def take(self, points: np.ndarray, kind, owner) -> None:
        self.owners[kind, *self._cells(points)] = owner

    def is_free(self, points: np.ndarray, kind: np.ndarray, owner: np.ndarray) -> np.ndarray:
        found = self.owners[kind, *self._cells(points)]
        return ((found == 0) | (found == owner)) & (((points - self.disc) ** 2).sum(axis=1) > 1.0)

    def is_open(self, points: np.ndarray) -> np.ndarray:
        return ((points**2).sum(axis=1) > self.avascular**2) & (np.abs(points).max(axis=1) < REACH - 1)

    def _cells(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cells = np.minimum(np.maximum((points + REACH) * (1 / CELL), 0), self.owners.shape[1] - 1).astype(np.intp)
        return cells[:, 1], cells[:, 0]


def _grow(sprouts: np.ndarray, order: int, plot: Plot, rng: np.random.Generator) -> list[Vessel]:
    """Grows sprouts f64[N,6] step by step, all together, until their length is spent or their way is taken."""
    points, heading, kind = sprouts[:, :2].copy(), sprouts[:, 2].copy(), sprouts[:, 5].astype(int)
    inward, owner = heading_inwards(points, heading), plot.enter(len(sprouts))
    most = (sprouts[:, 4] / STEP).astype(int)
    path = np.empty((len(sprouts), most.max(initial=0) + 1, 2))
    path[:, 0] = points
    grown, alive, swerve = np.zeros(len(sprouts), int), np.arange(len(sprouts)), np.zeros(len(sprouts))
    swerves = rng.normal(0, 0.1, (path.shape[1], len(sprouts)))
    for step in range(1, path.shape[1]):
        place = path[alive, step - 1]
        swerve = 0.75 * swerve + swerves[step, alive]
        heading = heading + 0.13 * np.sin(_wanted_heading(place, inward[alive]) - heading) + swerve
        forward = STEP * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        path[alive, step] = place + forward
        ahead = place + 2.5 * forward
        going = plot.is_open(ahead) & (step <= most[alive])
        if step > 3:  # until then the parent is near
            going &= plot.is_free(ahead, kind[alive], owner[alive])
        alive, heading, swerve = alive[going], heading[going], swerve[going]
        if not len(alive):
            break
        grown[alive] = step
        plot.take(path[alive, step], kind[alive], owner[alive])
    return [
        Vessel(KINDS[kind[i]], path[i, : n + 1], _tapered(sprouts[i, 3], n + 1), order)
        for i, n in enumerate(grown.tolist())
        if n >= 4
    ]


def _tapered(width: float, samples: int) -> np.ndarray:
    return TIP + (width - TIP) * (1 - np.arange(samples) / samples) ** 0.7


def heading_inwards(points: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """bool[N]: which vessels start towards the fovea."""
    x, y = points.T
    return -(x * np.cos(heading) + y * np.sin(heading)) > 0.1 * np.hypot(x, y)


def _wanted_heading(points: np.ndarray, inward: np.ndarray) -> np.ndarray:
    """Inside the arcades towards the fovea, temporal of it towards the horizontal raphe; else to the periphery."""
    x, y = points.T
    temporal = x < -0.8
    inner_x, inner_y = np.where(temporal, -0.5, -x), np.where(temporal, -np.sign(y), -y)
    return np.arctan2(np.where(inward, inner_y, y), np.where(inward, inner_x, x - 2.0))
