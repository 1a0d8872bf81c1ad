"""State tracking in a finite group: its word problem, and the smallest permutations, plain and signed, that hold it.

Source: Barrington's word problems as used for sequence models by Merrill, Petty and Sabharwal, "The Illusion of State
in State-Space Models", arXiv 2404.08819; S2 to S5 are the groups that arXiv 2602.12021 reports. A5 is the smallest group
that is not solvable.
"""

from __future__ import annotations

import heapq
import re
from functools import cached_property, reduce
from itertools import combinations, permutations, product
from typing import NamedTuple

import torch

from benchmarks.tasks.base import Batch, Task

KINDS = "z<n> (cyclic, any n), s2 to s5, a3 to a5 (symmetric, alternating), d4, q8, and products of two such as z2xz4"
MAX_ORDER = 400  # of a product; A5 x S3 has 360


class Orbit(NamedTuple):
    """How a group moves `size` places: element x takes place i to `image[x, i]`, with the sign `sign[x, i]`."""

    image: torch.LongTensor
    sign: torch.LongTensor

    @property
    def size(self) -> int:
        return self.image.shape[1]


class Group:
    r"""A finite group: elements are numbers, 0 is the identity.

    Its `name` is as on the command line, `"s3"` or `"z2xz4"`; `table[x, y]`, `[order, order]`, is x o y, y applied first.

    Example:
        >>> from benchmarks.tasks.groups import find_group
        >>> group = find_group("s3")
        >>> assert group.order == 6 and group.permutation_degree == group.signed_degree == 3
        >>> assert find_group("q8").permutation_degree == 8 and find_group("q8").signed_degree == 4
    """

    def __init__(self, name: str, elements: list, compose) -> None:
        self.name = name
        index = {x: k for k, x in enumerate(elements)}
        self.table = torch.tensor([[index[compose(x, y)] for y in elements] for x in elements])

    @property
    def order(self) -> int:
        return len(self.table)

    @cached_property
    def _products(self) -> list[list[int]]:
        return self.table.tolist()

    def _generate(self, subgroup: frozenset[int], x: int) -> frozenset[int]:
        """The subgroup that a subgroup and one element generate."""
        generators = (*subgroup, x)
        found, todo = {0}, [0]
        for y in todo:
            new = {self._products[y][g] for g in generators} - found
            found |= new
            todo += new
        return frozenset(found)

    @cached_property
    def subgroups(self) -> set[frozenset[int]]:
        """All subgroups."""
        cyclic = {self._generate(frozenset([0]), x): x for x in range(self.order)}
        found = {frozenset([0])}
        todo = list(found)
        for subgroup in todo:
            new = {self._generate(subgroup, x) for x in cyclic.values() if x not in subgroup} - found
            found |= new
            todo += new
        return found

    def _core(self, subgroup: frozenset[int]) -> frozenset[int]:
        """The elements that every conjugate of a subgroup holds: they move no coset."""
        inverse = [row.index(0) for row in self._products]
        conjugate = lambda x: frozenset(self._products[self._products[x][y]][inverse[x]] for y in subgroup)  # noqa: E731
        return reduce(frozenset.__and__, map(conjugate, range(self.order)))

    def _smallest(self, signed: bool) -> list[tuple[frozenset[int], frozenset[int]]]:
        """Pairs (H, K) of subgroups, K of index 1 or (signed) 2 in H: cosets of H are places, those of K places with signs."""
        costs: dict[frozenset[int], tuple[int, tuple]] = {}
        for K in self.subgroups:
            doubled = next((H for H in self.subgroups if len(H) == 2 * len(K) and H >= K), None) if signed else None
            H = doubled or K
            core, places = self._core(K), self.order // len(H)
            if core not in costs or places < costs[core][0]:
                costs[core] = places, (H, K)
        # the cheapest family whose cores meet in the identity alone: Dijkstra over intersections
        start = frozenset(range(self.order))
        best, queue = {start: 0}, [(0, 0, start, ())]
        while len(queue[0][2]) > 1:
            cost, _, kernel, family = heapq.heappop(queue)
            for core, (places, pair) in costs.items():
                smaller = kernel & core
                if smaller != kernel and cost + places < best.get(smaller, self.order + 1):
                    best[smaller] = cost + places
                    heapq.heappush(queue, (cost + places, len(best), smaller, (*family, pair)))
        return list(queue[0][3])

    def orbits(self, signed: bool = False) -> list[Orbit]:
        r"""The smallest faithful representation by permutations, or by signed permutations, orbit by orbit.

        A block of BD-LRU per orbit holds the group.

        Example:
            >>> from benchmarks.tasks.groups import find_group
            >>> assert sorted(orbit.size for orbit in find_group("z6").orbits()) == [2, 3]
            >>> assert [orbit.size for orbit in find_group("q8").orbits(signed=True)] == [4]
        """
        orbits = []
        for H, K in self._smallest(signed):
            places = {frozenset(self._products[x][h] for h in H): x for x in range(self.order)}
            where = {x: (i, x0) for i, (place, x0) in enumerate(places.items()) for x in place}
            up = {x0: {self._products[x0][k] for k in K} for x0 in places.values()}
            moved = [[self._products[x][x0] for x0 in places.values()] for x in range(self.order)]
            image = torch.tensor([[where[y][0] for y in row] for row in moved])
            sign = torch.tensor([[1 if y in up[where[y][1]] else -1 for y in row] for row in moved])
            orbits.append(Orbit(image, sign))
        return orbits

    @cached_property
    def permutation_degree(self) -> int:
        """The smallest number of places whose permutations hold the group: enough for one block with softmax gates."""
        return sum(orbit.size for orbit in self.orbits())

    @cached_property
    def signed_degree(self) -> int:
        """The smallest number of places whose signed permutations hold the group: enough for one with signed gates."""
        return sum(orbit.size for orbit in self.orbits(signed=True))


def _is_even(p: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in combinations(p, 2)) % 2 == 0


def _after(x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x[i] for i in y)


def _quaternion(x: tuple[int, int], y: tuple[int, int]) -> tuple[int, int]:
    # (s, u) is (-1)^s times 1, i, j or k
    (s, u), (t, v) = x, y
    minus = u != 0 and v != 0 and (u == v or (v - u) % 3 == 2)
    return (s + t + minus) % 2, u ^ v


def find_group(name: str) -> Group:
    r"""The group called `name`: `z<n>`, `s2` to `s5`, `a3` to `a5`, `d4`, `q8`, or two of them joined by `x`.

    Elements of S_n are in the order of `itertools.permutations(range(n))`, as maps p with p[i] the image of i (A_n: the even
    ones); of D4 they are the symmetries of a square with corners 0 to 3 in that order; of Z_n the numbers; of Q8 1, i, j, k,
    -1, -i, -j, -k; of a product the pairs, the second part fastest. ValueError, if there is no such group, or a product has
    more than `MAX_ORDER` elements.

    Example:
        >>> from benchmarks.tasks.groups import find_group
        >>> assert find_group("z2xz4").order == 8 and find_group("a4").signed_degree == 3
    """
    parts = name.split("x")
    if len(parts) == 2:
        one, two = map(find_group, parts)
        if one.order * two.order > MAX_ORDER:
            raise ValueError(f"group={name!r} has {one.order * two.order} elements; expected at most {MAX_ORDER}.")
        pairs = list(product(range(one.order), range(two.order)))
        return Group(name, pairs, lambda x, y: (one._products[x[0]][y[0]], two._products[x[1]][y[1]]))
    kind, n = name[:1], int(name[1:]) if re.fullmatch("[a-z][1-9][0-9]*", name) else 0
    if kind == "z" and n:
        return Group(name, list(range(n)), lambda x, y: (x + y) % n)
    if kind in "sa" and n in range(2 if kind == "s" else 3, 6):
        return Group(name, [p for p in permutations(range(n)) if kind == "s" or _is_even(p)], _after)
    if name == "d4":  # what keeps opposite corners opposite
        return Group(name, [p for p in permutations(range(4)) if (p[0] - p[2]) % 4 == 2], _after)
    if name == "q8":
        return Group(name, list(product(range(2), range(4))), _quaternion)
    raise ValueError(f"group={name!r} is not known; expected {KINDS}.")


class GroupComposition(Task):
    r"""Running products in a group.

    A token names an element (`find_group` says in which order). Inputs x_1, x_2, ... are independent and uniform over all
    tokens. The target at every position is the product of everything so far, later elements being applied after earlier
    ones; all positions are scored:

        y_1 = x_1,    y_t = x_t o y_{t-1},    in S_n that is  y_t[i] = x_t[y_{t-1}[i]]

    Example:
        >>> from benchmarks.tasks import GroupComposition, make_generator
        >>> inputs, targets = GroupComposition("s3").sample(make_generator("demo"), 2, 5)
        >>> assert inputs.shape == targets.shape == (2, 5) and (inputs[:, 0] == targets[:, 0]).all()
        >>> assert GroupComposition("a5").vocab_size == 60
    """

    def __init__(self, name: str):
        self.group = find_group(name)
        self.name, self.title = name, _title(name)
        self.vocab_size = self.group.order
        self.chance = 1 / self.vocab_size

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        inputs = torch.randint(self.vocab_size, (batch_size, length), generator=generator)
        products, reach = inputs.clone(), 1  # products of the last `reach` elements
        while reach < length:
            products[:, reach:] = self.group.table[products[:, reach:], products[:, :-reach]]
            reach *= 2
        return inputs, products


def _title(name: str) -> str:
    # "s3" and "a5" permute things; other groups are known by their names
    words = {"s": "permutations", "a": "even permutations"}
    if name[0] in words and name[1:].isdigit():
        return f"Composing {words[name[0]]} of {('two', 'three', 'four', 'five')[int(name[1:]) - 2]} things ({name.upper()})"
    known = {"d4": "symmetries of a square (D4)", "q8": "quaternions (Q8)"}
    return f"Composing {known.get(name) or 'elements of ' + ' x '.join(part.upper() for part in name.split('x'))}"
