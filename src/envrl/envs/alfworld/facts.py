"""The facts of one game and its states: who is where, and what an answer was looked up in.

A state is an integer with one bit for each changing fact that was ever true; unchanging facts are
looked up in plain indexes. Everything computed from a state (a list of commands, a text, whether the
goal holds) is kept in a :class:`Memo` together with the *cells* it was read from. A cell is a group of
changing facts that share some arguments, such as all objects in one receptacle. Two states that agree
on those cells have the same answer, however much else differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from envrl.envs.alfworld.pddl import Domain, Fact, Problem

AGENT_AT = "atlocation"
"""The predicate that says where the agent is; exactly one such fact is true."""
NEGATED = "not_"
"""Prefix of grammar predicates that ask whether an action has made a fact false."""

Args = tuple[str, ...]
Positions = tuple[int, ...]
Shape = tuple[str, Positions]
"""A predicate, and which of its arguments are given."""
T = TypeVar("T")


class Cell:
    """Changing facts of one predicate that agree in some arguments, each with its bit."""

    __slots__ = ("facts", "mask", "readers")

    def __init__(self) -> None:
        self.facts: list[tuple[int, Args]] = []
        self.mask = 0
        self.readers: list[Memo[object]] = []

    def add(self, bit: int, args: Args) -> None:
        """Takes in a fact that has become possible; whoever has read the cell now depends on it too."""
        self.facts.append((bit, args))
        self.mask |= bit
        for memo in self.readers:
            memo.widen(bit)


class Memo(Generic[T]):
    """Answers by the part of the state they depend on, at most ``limit`` of them.

    Reading needs no lock: mask and table are replaced together, so a reader never uses the table of
    one mask with the key of another.
    """

    __slots__ = ("_cells", "_entry", "_limit")

    def __init__(self, limit: int) -> None:
        self._cells: set[Cell] = set()
        self._entry: tuple[int, dict[int, T]] = (0, {})
        self._limit = limit

    def get(self, bits: int) -> T | None:
        """Answer for the state, None if it has not been worked out (or was dropped)."""
        mask, table = self._entry
        return table.get(bits & mask)

    def put(self, bits: int, cells: set[Cell], answer: T) -> None:
        """Keeps an answer that was read from ``cells``; the caller holds the game's lock."""
        mask, table = self._entry
        for cell in cells - self._cells:
            self._cells.add(cell)
            cell.readers.append(self)  # type: ignore[arg-type]
            mask |= cell.mask
        if mask != self._entry[0] or len(table) >= self._limit:
            table = {} if len(table) >= self._limit else dict(table)
            self._entry = (mask, table)
        table[bits & mask] = answer

    def widen(self, bit: int) -> None:
        """Makes the answers depend on one more fact, false in all states answered so far."""
        mask, table = self._entry
        self._entry = (mask | bit, dict(table))


class FactBase:
    """Facts of one problem. Play only adds to it (bits and cells), under the game's lock."""

    def __init__(self, problem: Problem, domain: Domain) -> None:
        self.changing = domain.changing
        self._facts: dict[str, list[Args]] = {}
        for fact in problem.facts:
            self._facts.setdefault(fact[0], []).append(fact[1:])
        self._by_type: dict[str, list[str]] = {}
        for name, kind in problem.objects.items():
            self._by_type.setdefault(kind, []).append(name)
        self.indexes: dict[Shape, dict[Args, list[Args]]] = {}
        self.cells: dict[Shape, dict[Args, Cell]] = {}
        self._bits: dict[Fact, int] = {}
        self.initial_bits = 0
        for predicate in sorted(self.changing):
            for args in self._facts.get(predicate, ()):
                self.initial_bits |= self.bit((predicate, *args))

    def bit(self, fact: Fact) -> int:
        """The bit of a changing fact, allotted when first asked for (until then the fact was false)."""
        bit = self._bits.get(fact)
        if bit is None:
            bit = self._bits[fact] = 1 << len(self._bits)
            args = fact[1:]
            for (predicate, positions), cells in self.cells.items():
                if predicate == fact[0]:
                    self._cell(cells, tuple([args[i] for i in positions])).add(bit, args)
        return bit

    def cell(self, shape: Shape, key: Args) -> Cell:
        """The changing facts of a predicate with the arguments ``key`` at the shape's positions."""
        cells = self.cells.get(shape)
        if cells is None:
            predicate, positions = shape
            cells = {}
            for fact, bit in self._bits.items():
                if fact[0] == predicate:
                    args = fact[1:]
                    self._cell(cells, tuple([args[i] for i in positions])).add(bit, args)
            self.cells[shape] = cells
        return self._cell(cells, key)

    @staticmethod
    def _cell(cells: dict[Args, Cell], key: Args) -> Cell:
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = Cell()
        return cell

    def index(self, shape: Shape) -> dict[Args, list[Args]]:
        """Unchanging facts of a predicate by their arguments at the shape's positions."""
        predicate, positions = shape
        index: dict[Args, list[Args]] = {}
        for args in self._facts.get(predicate, ()):
            index.setdefault(tuple([args[i] for i in positions]), []).append(args)
        self.indexes[shape] = index
        return index

    def initial(self, predicate: str) -> Sequence[Args]:
        """Arguments of the predicate's facts at the start."""
        return self._facts.get(predicate, ())

    def objects(self, kind: str) -> Sequence[str]:
        """Objects of a type; ``object`` is the root of all types, as in fast-downward."""
        if kind == "object":
            return [name for names in self._by_type.values() for name in names]
        return self._by_type.get(kind, ())


class View:
    """One state, as seen by queries; remembers in ``touched`` what they read.

    Attributes:
        facts: The game's facts.
        bits: The changing facts that are true.
        agent_at: Agent and location.
        notes_place: Whether reading the agent's location counts as reading (not needed where answers
            are kept per location anyway).
    """

    __slots__ = ("_notes_place", "agent_at", "bits", "facts", "touched")

    def __init__(self, facts: FactBase, bits: int, agent_at: Args, notes_place: bool = False) -> None:
        self.facts = facts
        self.bits = bits
        self.agent_at = agent_at
        self.touched: set[Cell] = set()
        self._notes_place = notes_place

    def place_rows(self, key: Args, positions: Positions) -> Sequence[Args]:
        """The agent's location, if ``key`` fits it."""
        here = self.agent_at
        if self._notes_place:
            self.touched.add(self.facts.cell((AGENT_AT, (0,)), here[:1]))
        for i, value in zip(positions, key, strict=True):
            if here[i] != value:
                return ()
        return (here,)

    def fixed_rows(self, key: Args, shape: Shape) -> Sequence[Args]:
        """Arguments of unchanging facts."""
        index = self.facts.indexes.get(shape)
        if index is None:
            index = self.facts.index(shape)
        return index.get(key, ())

    def changing_rows(self, key: Args, shape: Shape) -> Sequence[Args]:
        """Arguments of the changing facts that are true."""
        cells = self.facts.cells.get(shape)
        cell = None if cells is None else cells.get(key)
        if cell is None:
            cell = self.facts.cell(shape, key)
        self.touched.add(cell)
        bits = self.bits
        return [args for bit, args in cell.facts if bits & bit]
