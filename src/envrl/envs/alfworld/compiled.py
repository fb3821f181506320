"""A game ready to be played: what can be done at each place, worked out when first asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from envrl.envs.alfworld.facts import (
    AGENT_AT,
    NEGATED,
    Achievers,
    Answer,
    FactBase,
    Masks,
    achievers_of,
    ground,
)
from envrl.envs.alfworld.grammar import ActionText, Call, Grammar, Placeholder
from envrl.envs.alfworld.names import player_names
from envrl.envs.alfworld.pddl import Domain, Fact, Problem, Schema
from envrl.envs.alfworld.texts import ALWAYS, Program, TextCompiler, render
from envrl.errors import DataFault

NOTHING_HAPPENS = "Nothing happens."
"""Answer to any command that is not admissible."""
_REMEMBERED_COMMAND_LISTS = 32


@dataclass(frozen=True, slots=True)
class Rules:
    """Domain and grammar of a game format, shared by all games that have the same."""

    domain: Domain
    grammar: Grammar
    version: str
    achievers: Achievers
    relevant: frozenset[str]
    """Changing predicates something can depend on; the rest (``checked``) need not be tracked."""

    @classmethod
    def of(cls, domain: Domain, grammar: Grammar, version: str) -> Rules:
        """Prepares a domain and its grammar."""
        return cls(domain, grammar, version, achievers_of(domain), _relevant(domain, grammar))


@dataclass(frozen=True, slots=True)
class Change:
    """What an action does to the bits: clear, then set; ``conditional`` looks at the bits before."""

    clear: int
    set_: int
    conditional: tuple[tuple[Masks, int, int], ...]

    def apply(self, bits: int) -> int:
        """The state after the action."""
        after = bits & ~self.clear | self.set_
        for masks, clear, set_ in self.conditional:
            if masks.hold(bits):
                after = after & ~clear | set_
        return after


@dataclass(slots=True)
class Outcome:
    """Result of an action: the change, the place the agent is at then, and the answer."""

    change: Change
    place: Place
    feedback: Program


class Command:
    """An action that may be admissible at a place: its text and when it is."""

    __slots__ = ("args", "masks", "outcome", "schema", "text")

    def __init__(self, text: str, masks: tuple[Masks, ...], schema: Schema, args: tuple[str, ...]) -> None:
        self.text = text
        self.masks = masks
        self.schema = schema
        self.args = args
        self.outcome: Outcome | None = None

    def applies(self, bits: int) -> bool:
        """Whether the command is admissible in the state ``bits`` (at its place)."""
        return any(bits & m.needs == m.needs and not bits & m.forbids for m in self.masks)


class Place:
    """A location of the agent with every command that can ever be admissible there."""

    __slots__ = ("_lists", "_mask", "by_text", "commands", "location")

    def __init__(self, location: str, commands: list[Command]) -> None:
        self.location = location
        self.commands = tuple(sorted(commands, key=lambda c: c.text))
        self.by_text: dict[str, tuple[Command, ...]] = {}
        for command in self.commands:
            self.by_text[command.text] = (*self.by_text.get(command.text, ()), command)
        self._mask = 0
        for masks in (m for c in self.commands for m in c.masks):
            self._mask |= masks.needs | masks.forbids
        self._lists: dict[int, tuple[str, ...]] = {}

    def admissible(self, bits: int) -> tuple[str, ...]:
        """Admissible commands in the state ``bits``, sorted, each once."""
        key = bits & self._mask
        known = self._lists.get(key)
        if known is None:
            known = tuple(dict.fromkeys([c.text for c in self.commands if c.applies(key)]))
            if len(self._lists) >= _REMEMBERED_COMMAND_LISTS:
                self._lists.clear()
            self._lists[key] = known
        return known


class CompiledGame:
    """One game, shareable between any number of episodes and threads.

    Nothing an episode does changes it; places and answers are worked out when first visited and kept.
    """

    def __init__(self, problem: Problem, rules: Rules) -> None:
        self.rules = rules
        self.facts = FactBase(problem, rules.domain, rules.achievers)
        names = player_names(a for fact in problem.facts for a in fact[1:])
        self.texts = TextCompiler(rules.grammar, self.facts, names)
        self._lock = threading.RLock()
        self._intro: str | None = None
        self._places: dict[str, Place] = {}
        self._commands: dict[tuple[str, tuple[tuple[Placeholder, str], ...]], str] = {}
        start = self.facts.initial(AGENT_AT)
        if len(start) != 1:
            raise DataFault(f"PDDL problem has {len(start)} ({AGENT_AT} ...) facts; exactly one is supported")
        self.agent, self.start_location = start[0]
        self._goal = tuple(a.masks for a in self._goal_answers(problem))
        self._goal_mask = 0
        for masks in self._goal:
            self._goal_mask |= masks.needs | masks.forbids

    def new_state(self) -> GameState:
        """A fresh episode's state, with ``feedback`` holding the initial text."""
        return GameState(self)

    def goal_key(self, bits: int) -> int:
        """The part of the state the goal depends on."""
        return bits & self._goal_mask

    def goal_holds(self, bits: int) -> bool:
        """Whether the PDDL goal holds."""
        return any(masks.hold(bits) for masks in self._goal)

    def place(self, location: str) -> Place:
        """The place of a location, built at the first visit."""
        place = self._places.get(location)
        if place is None:
            with self._lock:
                place = self._places.get(location) or Place(location, list(self._build(location)))
                self._places[location] = place
        return place

    def outcome(self, command: Command, place: Place) -> Outcome:
        """What the command does at the place, worked out at its first use."""
        if command.outcome is None:
            with self._lock:
                binding = dict(zip(command.schema.params, command.args, strict=True))
                change, location = self._change(command.schema, binding, place.location)
                there = self.place(location)
                feedback = self.texts.compile(
                    self._action_text(command.schema).feedback,
                    _mapped(command.schema, command.args),
                    (self.agent, location),
                )
                command.outcome = Outcome(change, there, feedback)
        return command.outcome

    def intro(self) -> str:
        """The text a game begins with."""
        if self._intro is None:
            with self._lock:
                program = self.texts.compile((Call("intro"),), {}, (self.agent, self.start_location))
                self._intro = render(program, self.facts.initial_bits)
        return self._intro

    def _goal_answers(self, problem: Problem) -> Iterator[Answer]:
        types = problem.goal.types
        asked = {lit.predicate for conjunction in problem.goal.disjuncts for lit in conjunction}
        if untracked := (asked & self.rules.domain.changing) - self.rules.relevant:
            raise DataFault(f"PDDL goal depends on {sorted(untracked)[0]!r}, which isn't supported in a goal")
        for conjunction in problem.goal.disjuncts:
            yield from self.facts.solve(conjunction, types, self.facts.preset(types))

    def _build(self, location: str) -> Iterator[Command]:
        agent_at = (self.agent, location)
        for schema in self.rules.domain.schemas:
            types = {**schema.condition.types, **schema.types}
            found: dict[tuple[str, ...], dict[Masks, None]] = {}
            for conjunction in schema.condition.disjuncts:
                used = {v for lit in conjunction for v in lit.args}
                here = {v: k for v, k in types.items() if v in schema.types or v in used}
                for answer in self.facts.solve(conjunction, here, self.facts.preset(here), agent_at):
                    if not self._idle(schema, answer.binding, location):
                        args = tuple(answer.binding[p] for p in schema.params)
                        found.setdefault(args, {})[answer.masks] = None
            for args, masks in found.items():
                alternatives = (ALWAYS,) if ALWAYS in masks else tuple(masks)
                yield Command(self._command_text(schema, args), alternatives, schema, args)

    def _idle(self, schema: Schema, binding: Mapping[str, str], location: str) -> bool:
        """Whether the action only moves the agent to where it is; fast-downward drops such actions."""
        stay = (self.agent, location)
        for effect in schema.effects:
            literal = effect.literal
            if literal.predicate != AGENT_AT or ground(literal.args, binding) != stay:
                return False
        return True

    def _command_text(self, schema: Schema, args: tuple[str, ...]) -> str:
        symbols = self._action_text(schema).template
        mapped = _mapped(schema, args)
        key = (schema.name, self.texts.scope(symbols).visible(mapped))
        text = self._commands.get(key)
        if text is None:
            text = self._commands[key] = self.texts.fixed(symbols, mapped)
        return text

    def _action_text(self, schema: Schema) -> ActionText:
        return self.rules.grammar.actions[schema.name]

    def _change(self, schema: Schema, binding: Mapping[str, str], location: str) -> tuple[Change, str]:
        """Bit operations of an action, and where the agent is after it."""
        plain: dict[Fact, bool] = {}
        conditional: list[tuple[Masks, int, int]] = []
        there = location
        for effect in schema.effects:
            literal = effect.literal
            if literal.predicate not in self.rules.relevant:
                continue
            fact = (literal.predicate, *(str(a) for a in ground(literal.args, binding)))
            if effect.condition:
                answers = self.facts.solve(effect.condition, {}, binding, (self.agent, location))
                conditional += [(a.masks, *self._bits_of(fact, literal.positive)) for a in answers]
            else:
                # What an action both deletes and adds is true afterwards.
                plain[fact] = plain.get(fact, False) or literal.positive
            if literal.predicate == AGENT_AT and literal.positive:
                there = fact[2]
        clear = set_ = 0
        for fact, positive in plain.items():
            clear_one, set_one = self._bits_of(fact, positive)
            clear, set_ = clear | clear_one, set_ | set_one
        return Change(clear, set_, tuple(conditional)), there

    def _bits_of(self, fact: Fact, positive: bool) -> tuple[int, int]:
        """Masks to clear and to set when the fact becomes true (or false)."""
        true = self.facts.bit(fact)
        negated = NEGATED + fact[0]
        false = self.facts.bit((negated, *fact[1:])) if negated in self.rules.relevant else 0
        return (false, true) if positive else (true, false)


class GameState:
    """One episode of a game.

    Attributes:
        feedback: Text of the last answer, at first the initial text.
        won: Whether the goal holds now.
    """

    __slots__ = ("_bits", "_game", "_goal_key", "_place", "feedback", "won")

    def __init__(self, game: CompiledGame) -> None:
        self._game = game
        self._bits = game.facts.initial_bits
        self._place = game.place(game.start_location)
        self.feedback = game.intro()
        self._goal_key = game.goal_key(self._bits)
        self.won = game.goal_holds(self._bits)

    def admissible(self) -> tuple[str, ...]:
        """Admissible commands in the reference's order."""
        return self._place.admissible(self._bits)

    def step(self, command: str) -> str:
        """Carries out a command and returns the answer; what isn't admissible changes nothing."""
        for candidate in self._place.by_text.get(command.strip(), ()):
            if candidate.applies(self._bits):
                outcome = candidate.outcome or self._game.outcome(candidate, self._place)
                self._bits = outcome.change.apply(self._bits)
                self._place = outcome.place
                self.feedback = render(outcome.feedback, self._bits)
                key = self._game.goal_key(self._bits)
                if key != self._goal_key:
                    self._goal_key, self.won = key, self._game.goal_holds(self._bits)
                return self.feedback
        self.feedback = NOTHING_HAPPENS
        return self.feedback


def _mapped(schema: Schema, args: tuple[str, ...]) -> dict[Placeholder, str]:
    return {Placeholder(p.strip("?"), schema.types[p]): a for p, a in zip(schema.params, args, strict=True)}


def _relevant(domain: Domain, grammar: Grammar) -> frozenset[str]:
    asked = {AGENT_AT}
    for schema in domain.schemas:
        conjunctions = [*schema.condition.disjuncts, *(e.condition for e in schema.effects)]
        asked |= {lit.predicate for conj in conjunctions for lit in conj}
    asked |= {a.predicate for rules in grammar.rules.values() for r in rules for a in r.condition or ()}
    for symbols in (r.symbols for rules in grammar.rules.values() for r in rules):
        asked |= {a.predicate for s in symbols for a in getattr(s, "query", None) or ()}
    changing = domain.changing
    return frozenset(p for p in asked if p.removeprefix(NEGATED) in changing)
