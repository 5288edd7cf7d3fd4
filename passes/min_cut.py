"""Minimum cuts of flow networks, by Dinic's algorithm (1970): shortest augmenting paths, a layered graph at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

# More than any sum of capacities that is one.
UNLIMITED = 1 << 62


def minimum_cut(count: int, edges: Iterable[tuple[int, int, int]], source: int, sink: int) -> set[int]:
    """The side of the source of a minimum cut: what it still reaches once all flow that fits goes to the sink.

    Nodes are 0 to count - 1, edges (from, to, capacity). Of several minimum cuts the one nearest to the source.
    """
    flow = _Flow(count, edges)
    while True:
        levels = flow.levels(source)
        if sink not in levels:
            return set(levels)
        flow.block(source, sink, levels)


class _Flow:
    """Edges beside their opposites: edge k is undone by edge k ^ 1."""

    def __init__(self, count: int, edges: Iterable[tuple[int, int, int]]) -> None:
        self.target: list[int] = []
        self.left: list[int] = []
        self.out: list[list[int]] = [[] for _ in range(count)]
        for start, end, capacity in edges:
            for a, b, room in ((start, end, capacity), (end, start, 0)):
                self.out[a].append(len(self.target))
                self.target.append(b)
                self.left.append(room)

    def levels(self, source: int) -> dict[int, int]:
        """How many edges with room lie between the source and each node that it reaches."""
        found, queue = {source: 0}, deque([source])
        while queue:
            node = queue.popleft()
            for edge in self.out[node]:
                if self.left[edge] and self.target[edge] not in found:
                    found[self.target[edge]] = found[node] + 1
                    queue.append(self.target[edge])
        return found

    def block(self, source: int, sink: int, levels: dict[int, int]) -> None:
        """Send flow along shortest paths until each has an edge without room."""
        following = [0] * len(self.out)
        path: list[int] = []
        node = source
        while True:
            if node == sink:
                room = min(self.left[edge] for edge in path)
                for edge in path:
                    self.left[edge] -= room
                    self.left[edge ^ 1] += room
                first = next(k for k, edge in enumerate(path) if not self.left[edge])
                node = self.target[path[first] ^ 1]
                del path[first:]
                continue
            while following[node] < len(self.out[node]):
                edge = self.out[node][following[node]]
                if self.left[edge] and levels.get(self.target[edge]) == levels[node] + 1:
                    break
                following[node] += 1
            else:
                if not path:
                    return
                node = self.target[path.pop() ^ 1]
                following[node] += 1
                continue
            path.append(edge)
            node = self.target[edge]
