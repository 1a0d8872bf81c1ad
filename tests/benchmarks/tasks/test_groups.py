"""Groups: products against matrices, the smallest (signed) permutations against the table of the law."""

from itertools import permutations

import pytest
import torch

from benchmarks.tasks import GroupComposition, make_generator
from benchmarks.tasks.groups import find_group

# order, smallest permutation and signed-permutation degree; enumerated by an independent script, and by hand
DEGREES = {
    "s2": (2, 2, 1), "z3": (3, 3, 3), "s3": (6, 3, 3), "z4": (4, 4, 2), "d4": (8, 4, 2), "z5": (5, 5, 5), "z6": (6, 5, 3),
    "z8": (8, 8, 4), "q8": (8, 8, 4), "a4": (12, 4, 3), "s4": (24, 4, 3), "a5": (60, 5, 5), "s5": (120, 5, 5),
    "z60": (60, 12, 10), "z2xz2": (4, 4, 2), "z2xz4": (8, 6, 3), "s3xz2": (12, 5, 3),
}  # fmt: skip


@pytest.mark.parametrize("n, even", [(2, False), (3, False), (4, False), (5, False), (3, True), (4, True), (5, True)])
def test_permutation_targets_are_products_of_matrices(n, even):
    task = GroupComposition(f"{'a' if even else 's'}{n}")
    matrices = {}  # permutation matrices: column i holds its one in row p[i]
    for p in permutations(range(n)):
        matrix = torch.eye(n)[list(p)].T
        if not even or torch.linalg.det(matrix) > 0:
            matrices[len(matrices)] = matrix
    assert task.vocab_size == len(matrices)
    inputs, targets = task.sample(make_generator("check", n), 8, 20)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        product = torch.eye(n)
        for token, target in zip(x, y):
            product = matrices[token] @ product
            assert torch.equal(matrices[target], product)


def test_permutation_order_matters_and_is_the_documented_one():
    task = GroupComposition("s3")
    elements = list(permutations(range(3)))
    swap, cycle = elements.index((1, 0, 2)), elements.index((1, 2, 0))
    # first swap, then cycle: 0 -> 1 -> 2, 1 -> 0 -> 1, 2 -> 2 -> 0
    assert elements[task.group.table[cycle, swap]] == (2, 1, 0)
    assert task.group.table[cycle, swap] != task.group.table[swap, cycle]


def test_a5_is_simple():
    # the normal closure of any element but the identity is the whole group; S5 and A4 have smaller normal subgroups
    def closures(n, even):
        table = GroupComposition(f"{'a' if even else 's'}{n}").group.table.tolist()
        inverse = [row.index(0) for row in table]  # token 0 is the identity
        sizes = set()
        for x in range(1, len(table)):
            group, new = {0}, {table[table[g][x]][inverse[g]] for g in range(len(table))}
            generators = list(new)
            while new:
                group |= new
                new = {table[a][b] for a in new for b in generators} - group
            sizes.add(len(group))
        return sizes

    assert closures(5, even=True) == {60}
    assert closures(5, even=False) == {60, 120}
    assert closures(4, even=True) == {4, 12}


def test_permutation_inputs_are_uniform():
    inputs, _ = GroupComposition("s3").sample(make_generator("uniform"), 1000, 60)
    counts = torch.bincount(inputs.flatten(), minlength=6) / inputs.numel()
    assert (counts - 1 / 6).abs().max() < 0.01


@pytest.mark.parametrize("name", ["z6", "d4", "q8", "a4", "z2xz4"])
def test_tables_are_groups(name):
    table = find_group(name).table
    everything = torch.arange(len(table))
    assert torch.equal(table[0], everything)
    assert torch.equal(table[:, 0], everything)
    assert torch.equal(table[table], table[:, table])  # (x o y) o z = x o (y o z)
    assert torch.equal(table.sort(1).values, everything.expand_as(table))


def test_q8_has_one_element_of_order_two():
    table = find_group("q8").table
    assert table.diagonal().tolist() == [0, 4, 4, 4, 0, 4, 4, 4]  # i, j, k square to -1
    assert table[1, 2] == 3
    assert table[2, 1] == 7


@pytest.mark.parametrize("name, expected", DEGREES.items())
def test_smallest_degrees(name, expected):
    group = find_group(name)
    assert (group.order, group.permutation_degree, group.signed_degree) == expected


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["z6", "q8", "s4", "a5"])
def test_orbits_represent_the_group_faithfully(name, signed):
    group = find_group(name)
    orbits = group.orbits(signed)
    whole = torch.stack([torch.block_diag(*(matrix(orbit, x) for orbit in orbits)) for x in range(group.order)])
    assert torch.equal(whole[:, None] @ whole[None], whole[group.table])
    assert len(whole.flatten(1).unique(dim=0)) == group.order
    assert signed or all((orbit.sign == 1).all() for orbit in orbits)


def matrix(orbit, x):
    """Column i holds its sign in the row of its image."""
    return torch.zeros(orbit.size, orbit.size).index_put((orbit.image[x], torch.arange(orbit.size)), orbit.sign[x].float())


@pytest.mark.parametrize(
    "name, message",
    [
        ("s6", "group='s6' is not known; expected z<n>"),
        ("a2", "group='a2'"),
        ("z0", "group='z0'"),
        ("z07", "group='z07'"),
        ("q9", "group='q9'"),
        ("", "group=''"),
        ("z2xz2xz2", "group='z2xz2xz2' is not known; .* products of two"),
        ("s5xs3", "group='s5xs3' has 720 elements; expected at most 400"),
    ],
)
def test_wrong_groups_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        find_group(name)
