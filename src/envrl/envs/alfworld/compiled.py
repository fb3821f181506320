"""A game ready to be played, and the state of one episode of it.

Nothing is enumerated beforehand: what is admissible, what an action does and what it answers is
worked out when a state first asks for it, and kept by the part of the state it depends on.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from envrl.envs.alfworld.facts import AGENT_AT, NEGATED, FactBase, Memo, View
from envrl.envs.alfworld.grammar import Call, Symbol
from envrl.envs.alfworld.names import player_names
from envrl.envs.alfworld.pddl import Fact, Literal, Problem
from envrl.envs.alfworld.places import Change, Command, ConditionalChange, Options, Outcome, Place
from envrl.envs.alfworld.rules import ActionRules, Rules, goal_plans
from envrl.envs.alfworld.texts import Mapped
from envrl.errors import DataFault

NOTHING_HAPPENS = "Nothing happens."
"""Answer to any command that is not admissible."""
TASK = "\x00task\x00"
"""Stands for the task sentence in a grammar shared by many games."""
_TEXTS_PER_COMMAND = 8
_GOAL_STATES = 64


class CompiledGame:
    """One game, to be shared by any number of episodes and threads.

    Playing never changes what it means; what has been worked out is kept, within bounds.
    """

    def __init__(self, problem: Problem, rules: Rules, task: str) -> None:
        self.rules = rules
        self.task = task
        self.facts = FactBase(problem, rules.domain)
        self._names = player_names(a for fact in problem.facts for a in fact[1:])
        start = self.facts.initial(AGENT_AT)
        if len(start) != 1:
            raise DataFault(f"PDDL problem has {len(start)} ({AGENT_AT} ...) facts; exactly one is supported")
        self.agent, self.start_location = start[0]
        self._goal = goal_plans(problem.goal, rules)
        self._goals: Memo[bool] = Memo(_GOAL_STATES)
        self._lock = threading.RLock()
        self._places: dict[str, Place] = {}
        self._texts: dict[tuple[str, str, tuple[tuple[str, str], ...]], Memo[str]] = {}
        self._arrivals: dict[str, Outcome] = {}
        self._everywhere = self._common_commands()
        self._sorted = tuple(self._everywhere[text] for text in sorted(self._everywhere))
        self._intro: str | None = None

    def new_state(self) -> GameState:
        """A fresh episode's state, with ``feedback`` holding the initial text."""
        return GameState(self)

    def intro(self) -> str:
        """The text a game begins with."""
        if self._intro is None:
            with self._lock:
                view = self._view(self.facts.initial_bits, self.start_location)
                self._intro = self._write((Call("intro"),), {}, view)
        return self._intro

    def won(self, bits: int, place: Place) -> bool:
        """Whether the PDDL goal holds."""
        known = self._goals.get(bits)
        if known is None:
            with self._lock:
                view = View(self.facts, bits, (self.agent, place.location), notes_place=True)
                known = any(p.answers((), view) for p in self._goal)
                self._goals.put(bits, view.touched, known)
        return known

    def place(self, location: str) -> Place:
        """The place of a location."""
        place = self._places.get(location)
        if place is None:
            with self._lock:
                place = self._places.setdefault(location, Place(location, self._sorted))
        return place

    def options(self, bits: int, place: Place) -> Options:
        """What can be done at the place in the state ``bits``."""
        known = place.options.get(bits)
        if known is None:
            with self._lock:
                view = self._view(bits, place.location)
                commands: dict[str, Command] = {}
                for number, args in self.rules.here.answers(view):
                    command = place.commands.get((number, args)) or self._command(number, args, view, place)
                    # Like the reference, the first of equally worded actions is meant.
                    commands.setdefault(command.text, command)
                texts = tuple(sorted([*place.everywhere, *commands]))
                known = Options(texts, commands)
                place.options.put(bits, view.touched, known)
        return known

    def common_command(self, text: str, place: Place) -> Command | None:
        """The everywhere-command of this text at the place, None if it isn't admissible there."""
        command = place.by_text.get(text)
        if command is None and text in self._everywhere and text in place.everywhere:
            with self._lock:
                common = self._everywhere[text]
                command = place.by_text.setdefault(text, Command(text, common.action, common.args))
        return command

    def perform(self, command: Command, bits: int, place: Place) -> tuple[int, Place, str]:
        """Carries out an admissible command: the state, the place and the answer after it."""
        outcome = command.outcome
        if outcome is None:
            with self._lock:
                outcome = command.outcome = self._outcome(command, place)
        after = outcome.change.apply(bits)
        text = outcome.texts.get(after)
        if text is None:
            with self._lock:
                view = self._view(after, outcome.place.location)
                text = self._write(command.action.feedback, outcome.mapped, view)
                outcome.texts.put(after, view.touched, text)
        return after, outcome.place, text

    def _common_commands(self) -> dict[str, Command]:
        """Commands whose conditions never change, by text.

        Raises:
            DataFault: Two different actions would have the same text.
        """
        found: dict[str, Command] = {}
        view = self._view(self.facts.initial_bits, self.start_location)
        for action in self.rules.actions:
            if action.everywhere:
                for args in self._arguments(action, view):
                    text = self._command_text(action, args, view)
                    if text in found:
                        raise DataFault(
                            f"command {text!r} could mean two actions; give each receptacle one place"
                        )
                    found[text] = Command(text, action, args)
        return found

    def _arguments(self, action: ActionRules, view: View) -> dict[tuple[str, ...], None]:
        found: dict[tuple[str, ...], None] = {}
        for disjunct in action.disjuncts:
            for row in disjunct.plan.answers((), view):
                found[tuple([row[i] for i in disjunct.params])] = None
        return found

    def _command(self, number: int, args: tuple[str, ...], view: View, place: Place) -> Command:
        action = self.rules.actions[number]
        text = self._command_text(action, args, view)
        if text in self._everywhere:
            raise DataFault(f"command {text!r} could mean two actions: not supported")
        command = place.commands[number, args] = Command(text, action, args)
        return command

    def _command_text(self, action: ActionRules, args: tuple[str, ...], view: View) -> str:
        if action.wording is not None:
            names = self._names
            return "".join([p if isinstance(p, str) else names[args[p]] for p in action.wording])
        return self._write(action.template, dict(zip(action.placeholders, args, strict=True)), view)

    def _outcome(self, command: Command, place: Place) -> Outcome:
        action = command.action
        arrival = self._arrivals.get(command.text)
        if arrival is not None:
            left = self.facts.bit((AGENT_AT, self.agent, place.location))
            change = Change(left, arrival.change.set_, ())
            return Outcome(change, arrival.place, arrival.mapped, arrival.texts)
        args = list(command.args)
        for i in action.place_params:
            # An everywhere-command was worked out for the start.
            args[i] = place.location
        binding = dict(zip(action.schema.params, args, strict=True))
        change, location = self._change(action, binding, place.location)
        mapped = dict(zip(action.placeholders, args, strict=True))
        key = (location, action.schema.name, action.feedback_scope.visible(mapped))
        texts = self._texts.setdefault(key, Memo(_TEXTS_PER_COMMAND))
        outcome = Outcome(change, self.place(location), mapped, texts)
        if action.arrives_alike:
            self._arrivals[command.text] = outcome
        return outcome

    def _change(self, action: ActionRules, binding: Mapping[str, str], location: str) -> tuple[Change, str]:
        """Bit operations of an action, and the agent's location after it."""
        plain: dict[Fact, bool] = {}
        conditional: list[ConditionalChange] = []
        for effect in action.effects:
            literal = effect.literal
            fact = _ground(literal, binding)
            if effect.condition:
                needs = forbids = 0
                for lit in effect.condition:
                    bit = self.facts.bit(_ground(lit, binding))
                    needs, forbids = (needs | bit, forbids) if lit.positive else (needs, forbids | bit)
                conditional.append(ConditionalChange(needs, forbids, *self._bits_of(fact, literal.positive)))
            else:
                # What an action both deletes and adds is true afterwards.
                plain[fact] = plain.get(fact, False) or literal.positive
            if literal.predicate == AGENT_AT and literal.positive:
                location = fact[2]
        clear = set_ = 0
        for fact, positive in plain.items():
            clear_one, set_one = self._bits_of(fact, positive)
            clear, set_ = clear | clear_one, set_ | set_one
        return Change(clear, set_, tuple(conditional)), location

    def _bits_of(self, fact: Fact, positive: bool) -> tuple[int, int]:
        """Bits to clear and to set when the fact becomes true (or false)."""
        true = self.facts.bit(fact)
        negated = NEGATED + fact[0]
        false = self.facts.bit((negated, *fact[1:])) if negated in self.rules.relevant else 0
        return (false, true) if positive else (true, false)

    def _view(self, bits: int, location: str) -> View:
        return View(self.facts, bits, (self.agent, location))

    def _write(self, symbols: Sequence[Symbol], mapped: Mapped, view: View) -> str:
        text = self.rules.writer.write(symbols, mapped, view, self._names)
        return text.replace(TASK, self.task) if TASK in text else text


class GameState:
    """One episode of a game.

    Attributes:
        feedback: Text of the last answer, at first the initial text.
        won: Whether the goal holds now.
    """

    __slots__ = ("_bits", "_game", "_options", "_place", "feedback", "won")

    def __init__(self, game: CompiledGame) -> None:
        self._game = game
        self._bits = game.facts.initial_bits
        self._place = game.place(game.start_location)
        self._options = game.options(self._bits, self._place)
        self.feedback = game.intro()
        self.won = game.won(self._bits, self._place)

    def admissible(self) -> tuple[str, ...]:
        """Admissible commands in the reference's order: sorted, each once."""
        return self._options.texts

    def step(self, command: str) -> str:
        """Carries out a command and returns the answer; what isn't admissible changes nothing."""
        text = command.strip()
        game = self._game
        found = self._options.commands.get(text) or game.common_command(text, self._place)
        if found is None:
            self.feedback = NOTHING_HAPPENS
            return NOTHING_HAPPENS
        bits, place, self.feedback = game.perform(found, self._bits, self._place)
        if bits != self._bits:
            self._bits, self._place = bits, place
            self._options = game.options(bits, place)
            self.won = game.won(bits, place)
        return self.feedback


def _ground(literal: Literal, binding: Mapping[str, str]) -> Fact:
    return (literal.predicate, *[binding.get(a, a) for a in literal.args])
