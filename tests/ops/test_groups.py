"""Gates made by hand that hold a group for ever: what blocks of a size can do, whether training finds it or not.

A group is held where the state after 100,000 random letters tells their product, without an error on the way. Softmax gates
permute a block's channels, signed gates permute them and change signs; the letters' gates are exact but for rounding.
"""

import math

import pytest
import torch

from benchmarks.tasks import make_generator
from benchmarks.tasks.groups import Group, Orbit, find_group
from fla_bdlru.ops import chunk_bdlru, chunk_hlru

LETTERS = 100_000
SHARP = 40.0  # a logit this far above the others leaks e^-40 a step
SIGNED = ("tanh", "linear", "square", "sinh")


def draw(group):
    """Random letters, and their products."""
    letters = torch.randint(group.order, (LETTERS,), generator=make_generator("hold", group.name))
    table, products = group.table.tolist(), [0]
    for x in letters.tolist():
        products.append(table[x][products[-1]])
    return letters, torch.tensor(products[1:])


def run(orbit, letters, gate_norm):
    """The states `[T, m]` of one block whose letters move its channels as an orbit says, from 1/4, 2/4, ..., m/4."""
    order, m = orbit.image.shape
    gates = torch.zeros(order, m, m + 1)
    gates[torch.arange(order)[:, None], orbit.image, torch.arange(m)] = SHARP * orbit.sign.float()
    o, _ = chunk_bdlru(
        torch.zeros(1, LETTERS, 1, m), gates[letters][None, :, None], start(m).view(1, 1, m), gate_norm=gate_norm
    )
    return o[0, :, 0]


def start(m):
    return torch.arange(1, m + 1) / 4


def moved(orbit, elements):
    """What the start becomes under each element."""
    h = start(orbit.size) * orbit.sign[elements]
    return torch.empty_like(h).scatter_(1, orbit.image[elements], h)


def signed_group(name, *generators):
    """The group that signed permutations `((images), (signs))` generate, and how it moves their places."""
    after = lambda x, y: (tuple(x[0][i] for i in y[0]), tuple(s * x[1][i] for i, s in zip(*y)))  # noqa: E731
    found = [(tuple(range(len(generators[0][0]))), (1,) * len(generators[0][0]))]
    for x in found:
        found += [y for y in dict.fromkeys(after(g, x) for g in generators) if y not in found]
    return Group(name, found, after), Orbit(*(torch.tensor(part) for part in zip(*found)))


@pytest.mark.parametrize("name, sizes", [("z5", [5]), ("s4", [4]), ("s5", [5]), ("a5", [5]), ("q8", [8]), ("z60", [3, 4, 5])])
def test_softmax_gates_hold_a_group(name, sizes):
    group = find_group(name)
    letters, products = draw(group)
    orbits = group.orbits()
    assert sorted(orbit.size for orbit in orbits) == sizes
    for orbit in orbits:
        assert (run(orbit, letters, "softmax") - moved(orbit, products)).abs().max() < 1e-6


@pytest.mark.parametrize("gate_norm", SIGNED)
@pytest.mark.parametrize("name, sizes", [("s4", [3]), ("z8", [4]), ("q8", [4]), ("z4", [2]), ("z2xz4", [1, 2])])
def test_signed_gates_hold_a_group_in_smaller_blocks(name, sizes, gate_norm):
    group = find_group(name)
    letters, products = draw(group)
    orbits = group.orbits(signed=True)
    assert sorted(orbit.size for orbit in orbits) == sizes
    for orbit in orbits:
        assert torch.equal(run(orbit, letters, gate_norm), moved(orbit, products))


def test_signed_gates_of_four_channels_hold_sl_2_3():
    # left multiplication of quaternions by i and j, and the rotation i -> j -> k
    group, orbit = signed_group(
        "sl(2,3)", ((1, 0, 3, 2), (1, -1, 1, -1)), ((2, 3, 0, 1), (1, -1, -1, 1)), ((0, 2, 3, 1), (1, 1, 1, 1))
    )
    assert group.order == 24
    assert sum(group.table[x, x] == 0 for x in range(24)) == 2  # one involution, which S4 and A4 x Z2 have not
    letters, products = draw(group)
    assert torch.equal(run(orbit, letters, "tanh"), moved(orbit, products))


@pytest.mark.parametrize("gate_norm, m", [("tanh", 2), ("softmax", 4)])
def test_a_layer_of_smaller_blocks_holds_q8_as_a_quotient(gate_norm, m):
    """Q8 is 1j^k times a product of X and Z: one block holds that product, the other k; no block alone tells the element."""
    swap, flip, turn = ((1, 0), (1, 1)), ((0, 1), (1, -1)), ((1, 0), (1, -1))
    pair = lambda a: ((*a[0], *(2 + i for i in turn[0])), (*a[1], *turn[1]))  # noqa: E731
    group, orbit = signed_group("lift", pair(swap), pair(flip))
    assert group.order == 16
    letters, products = draw(group)
    blocks = [Orbit(orbit.image[:, :2], orbit.sign[:, :2]), Orbit(orbit.image[:, 2:] - 2, orbit.sign[:, 2:])]
    if gate_norm == "softmax":
        blocks = [unsign(block) for block in blocks]
    states = torch.cat([run(block, letters, gate_norm) for block in blocks], 1).mul(4).round()
    # the element of Q8: (power of 1j, as the second block turns it) times (the first block's matrix)
    matrix = torch.zeros(16, 2, 2, dtype=torch.cfloat)
    matrix[torch.arange(16)[:, None], orbit.image[:, :2], torch.arange(2)] = orbit.sign[:, :2].to(torch.cfloat)
    power = torch.complex(*((orbit.sign[:, 2] * (orbit.image[:, 2] == 2 + k)).float() for k in (0, 1)))
    names = [tuple(x.flatten().tolist()) for x in matrix * power[:, None, None]]
    assert len(set(names)) == 8
    element = {}
    for state, x in zip(map(tuple, states.tolist()), products.tolist()):
        assert element.setdefault(state, names[x]) == names[x]
    assert len(set(element.values())) == 8
    assert all(block.size == m for block in blocks)


def unsign(orbit):
    """Signed permutations of m places as permutations of 2m: a place, and its negative."""
    m, minus = orbit.size, orbit.sign < 0
    image = torch.cat([orbit.image + m * minus, orbit.image + m * ~minus], 1)
    return Orbit(image, torch.ones_like(image))


@pytest.mark.parametrize("name, factors", [("z4", [2, 2]), ("z8", [2, 2, 2]), ("s4", [2, 3, 2, 2])])
def test_softmax_layers_of_blocks_of_two_and_three_hold_a_solvable_group(name, factors):
    """Cascades: a layer counts in one cyclic factor, by letters that depend on the layers below (Kaloujnine and Krasner)."""
    group = find_group(name)
    letters, products = draw(group)
    table = group.table.tolist()
    inverse = [row.index(0) for row in table]
    rest, told = letters.tolist(), [0] * LETTERS
    series = subnormal_series(group, factors)
    for above, below, size in zip(series, series[1:], factors):
        step = next(x for x in above if x not in below)
        powers = [0]
        while len(powers) < size:
            powers.append(table[step][powers[-1]])
        level = {table[r][x]: k for k, r in enumerate(powers) for x in below}  # x in r_k N
        image = (torch.arange(size) + torch.arange(size)[:, None]) % size
        states = run(Orbit(image, torch.ones_like(image)), torch.tensor([level[x] for x in rest]), "softmax")
        now = [powers[k] for k in (states - start(size)[0]).abs().argmin(1).tolist()]
        # g = r n: with r' after a letter x, n becomes (r'^-1 x r) n, a letter for the next layer
        rest = [table[inverse[new]][table[x][old]] for x, old, new in zip(rest, [0, *now], now)]
        told = [table[x][y] for x, y in zip(told, now)]
    assert told == products.tolist()


def subnormal_series(group, factors):
    """The group and subgroups of it, each normal in the one before, with these indices."""
    table = group.table.tolist()
    inverse = [row.index(0) for row in table]
    chains = [[frozenset(range(group.order))]]
    for size in factors:
        normal = lambda N, G: all(table[table[x][y]][inverse[x]] in N for x in G for y in N)  # noqa: E731
        chains = [
            [*chain, N]
            for chain in chains
            for N in group.subgroups
            if chain[-1] > N and len(N) * size == len(chain[-1]) and normal(N, chain[-1])
        ]
    return chains[0]


@pytest.mark.parametrize("m, d", [(2, 3.0), (5, 6.0), (5, 8.0)])
def test_softmax_gates_leak_by_the_formula(m, d):
    """What channels differ by shrinks by (1 - e^-d) / (1 + m e^-d) a step, whatever permutations the letters are."""
    images = torch.stack([torch.randperm(m, generator=make_generator("leak", t)) for t in range(500)])
    g = torch.zeros(500, m, m + 1, dtype=torch.float64)
    g[torch.arange(500)[:, None], images, torch.arange(m)] = d
    h = start(m).double() - start(m).mean()
    o, _ = chunk_bdlru(g.new_zeros(1, 500, 1, m), g[None, :, None], h.view(1, 1, m))
    kept = torch.tensor((1 - math.exp(-d)) / (1 + m * math.exp(-d)), dtype=torch.float64)
    for t, image in enumerate(images):
        h = torch.empty_like(h).scatter_(0, image, h)
        assert torch.allclose(o[0, t, 0], h * kept ** (t + 1), rtol=1e-9, atol=1e-15)


def test_hlru_counts_time_and_signs():
    """Order m with softmax gates goes round m values; signed gates also turn them over."""
    m = 4
    g = torch.zeros(1, 1000, 1, m + 1)
    g[..., m - 1] = SHARP
    o, _ = chunk_hlru(torch.zeros(1, 1000, 1), g, start(m).view(1, 1, m))
    assert (o[0, :, 0] - start(m).flip(0).repeat(250)).abs().max() < 1e-6
    bits = torch.randint(2, (LETTERS,), generator=make_generator("hold", "parity"))
    g = torch.stack([1.0 - 2 * bits, torch.zeros(LETTERS)], -1).view(1, LETTERS, 1, 2)
    o, _ = chunk_hlru(torch.zeros(1, LETTERS, 1), g, torch.ones(1, 1, 1), gate_norm="linear")
    assert torch.equal(o[0, :, 0], 1.0 - 2 * (bits.cumsum(0) % 2))
