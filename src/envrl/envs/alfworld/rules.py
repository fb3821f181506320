"""Domain and grammar of a game format, prepared once for all games that share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from envrl.envs.alfworld.facts import AGENT_AT, NEGATED
from envrl.envs.alfworld.grammar import ActionText, Call, Each, Expression, Grammar, Placeholder, Symbol, Text
from envrl.envs.alfworld.joins import Plan, Question, Questionnaire, combine, plan
from envrl.envs.alfworld.pddl import Condition, Conjunction, Domain, Effect, Literal, Schema
from envrl.envs.alfworld.texts import Scope, Writer
from envrl.errors import DataFault


@dataclass(frozen=True, slots=True)
class Disjunct:
    """One way an action can be possible: a plan, and the slots of the action's parameters."""

    plan: Plan
    params: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ActionRules:
    """An action, planned.

    Attributes:
        schema: The action.
        disjuncts: Ways it can be possible.
        everywhere: It is possible whatever the state, apart from where the agent is (``go to``,
            ``look``), so its commands are worked out once per game.
        moves_to: Parameter with the agent's new location if moving is all the action does: it is then
            not possible when already there, because fast-downward drops actions without an effect.
        arrives_alike: It only moves the agent, and its answer doesn't depend on where from.
        effects: What it changes that anything can depend on.
        placeholders: Its parameters as the grammar names them.
        template, feedback: Texts of the command and of the answer.
        wording: The template as text and numbers of parameters, if it is no more than that.
        place_params: Numbers of the parameters that stand for the place the command is given at.
        feedback_scope: What of the parameters the answer depends on.
    """

    schema: Schema
    disjuncts: tuple[Disjunct, ...]
    everywhere: bool
    moves_to: int | None
    effects: tuple[Effect, ...]
    arrives_alike: bool
    placeholders: tuple[Placeholder, ...]
    template: tuple[Symbol, ...]
    feedback: tuple[Symbol, ...]
    wording: tuple[str | int, ...] | None
    place_params: tuple[int, ...]
    feedback_scope: Scope


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything games of one format share.

    Attributes:
        domain: The PDDL domain.
        writer: Writes the grammar's texts.
        version: Version of the game format, ``2.1.2`` or ``2.1.1``.
        actions: The domain's actions, planned.
        here: What can be done in a state, as (number of the action, arguments), but for actions that can
            be done everywhere.
        relevant: Changing predicates something can depend on; the rest (``checked``) isn't tracked.
    """

    domain: Domain
    writer: Writer
    version: str
    actions: tuple[ActionRules, ...]
    here: Questionnaire
    relevant: frozenset[str]


def prepare(domain: Domain, grammar: Grammar, version: str) -> Rules:
    """Plans every action of a domain.

    Raises:
        DataFault: Domain and grammar don't fit, or ask for something that isn't supported.
    """
    relevant = _relevant(domain, grammar)
    _check_negations(domain, relevant)
    writer = Writer(grammar, domain)
    actions = tuple(_action(schema, domain, writer, relevant) for schema in domain.schemas)
    questions = [
        Question(disjunct.plan, number, disjunct.params)
        for number, action in enumerate(actions)
        if not action.everywhere
        for disjunct in action.disjuncts
    ]
    return Rules(domain, writer, version, actions, combine(questions, domain.changing), relevant)


def goal_plans(goal: Condition, rules: Rules) -> tuple[Plan, ...]:
    """Plans of a goal, one per disjunct.

    Raises:
        DataFault: The goal asks for something the engine doesn't keep track of.
    """
    asked = {lit.predicate for conjunction in goal.disjuncts for lit in conjunction}
    if untracked := sorted((asked & rules.domain.changing) - rules.relevant):
        raise DataFault(f"PDDL goal depends on {untracked[0]!r}, which isn't supported in a goal")
    return tuple(plan(c, _types_of(c, goal.types, ()), (), rules.domain.changing) for c in goal.disjuncts)


def _action(schema: Schema, domain: Domain, writer: Writer, relevant: frozenset[str]) -> ActionRules:
    texts = writer.grammar.actions.get(schema.name)
    if texts is None:
        raise DataFault(f"grammar has no text for the action {schema.name!r}; fetch the file again")
    types = {**schema.condition.types, **schema.types}
    disjuncts = []
    for conjunction in schema.condition.disjuncts:
        planned = plan(conjunction, _types_of(conjunction, types, schema.params), (), domain.changing)
        slots = {v: i for i, v in enumerate(planned.variables)}
        disjuncts.append(Disjunct(planned, tuple(slots[p] for p in schema.params)))
    _check_supported(schema, texts, domain)
    effects = tuple(e for e in schema.effects if e.literal.predicate in relevant)
    placeholders = tuple(Placeholder(p.strip("?"), schema.types[p]) for p in schema.params)
    template = writer.scope(texts.template)
    feedback = writer.scope(texts.feedback)
    origins = [placeholders[i] for i in _place_params(schema)]
    return ActionRules(
        schema=schema,
        disjuncts=tuple(disjuncts),
        everywhere=_everywhere(schema, placeholders, template, domain),
        moves_to=_moves_to(schema),
        effects=effects,
        arrives_alike=(
            _moves_to(schema) is not None
            and NEGATED + AGENT_AT not in relevant
            and not any(p.name in feedback.names or p.kind in feedback.kinds for p in origins)
        ),
        placeholders=placeholders,
        template=texts.template,
        feedback=texts.feedback,
        wording=_wording(texts.template, placeholders),
        place_params=_place_params(schema),
        feedback_scope=feedback,
    )


def _check_supported(schema: Schema, texts: ActionText, domain: Domain) -> None:
    for effect in schema.effects:
        if any(lit.predicate not in domain.changing for lit in effect.condition):
            raise DataFault(
                f"action {schema.name!r} has an effect with an unchanging condition: not supported"
            )
    for symbol in texts.template:
        queries = symbol.query or () if isinstance(symbol, Each) else ()
        if isinstance(symbol, Call) or any(a.predicate in domain.changing for a in queries):
            raise DataFault(f"command template of {schema.name!r} depends on changing facts: not supported")


def _types_of(conjunction: Conjunction, types: Mapping[str, str], params: Iterable[str]) -> dict[str, str]:
    used = {a for lit in conjunction for a in lit.args} | set(params)
    return {v: kind for v, kind in types.items() if v in used}


def _everywhere(
    schema: Schema, placeholders: tuple[Placeholder, ...], template: Scope, domain: Domain
) -> bool:
    """Whether nothing but the agent's place, which neither text nor condition uses, can matter."""
    for conjunction in schema.condition.disjuncts:
        here = [lit for lit in conjunction if lit.predicate == AGENT_AT]
        rest = [lit for lit in conjunction if lit.predicate != AGENT_AT]
        if any(lit.predicate in domain.changing for lit in rest) or any(not lit.positive for lit in here):
            return False
        place = {lit.args[1] for lit in here}
        if place & {a for lit in rest for a in lit.args}:
            return False
        named = {
            p for p, holder in zip(schema.params, placeholders, strict=True) if holder.name in template.names
        }
        if place & named:
            return False
    return True


def _wording(template: Sequence[Symbol], placeholders: Sequence[Placeholder]) -> tuple[str | int, ...] | None:
    numbers = {p.name: i for i, p in enumerate(placeholders)}
    parts: list[str | int] = []
    for symbol in template:
        if isinstance(symbol, Text):
            parts.append(symbol.text)
        elif isinstance(symbol, Expression) and len(symbol.alternatives) == 1:
            for summand in symbol.alternatives[0]:
                if isinstance(summand, str):
                    parts.append(summand)
                elif summand[1] == "name" and summand[0] in numbers:
                    parts.append(numbers[summand[0]])
                else:
                    return None
        else:
            return None
    return tuple(parts)


def _place_params(schema: Schema) -> tuple[int, ...]:
    literals = [lit for conjunction in schema.condition.disjuncts for lit in conjunction]
    places = {lit.args[1] for lit in literals if lit.predicate == AGENT_AT}
    return tuple(i for i, param in enumerate(schema.params) if param in places)


def _moves_to(schema: Schema) -> int | None:
    if any(e.literal.predicate != AGENT_AT or e.condition for e in schema.effects):
        return None
    targets = [e.literal.args[1] for e in schema.effects if e.literal.positive]
    return schema.params.index(targets[0]) if len(targets) == 1 and targets[0] in schema.params else None


def _relevant(domain: Domain, grammar: Grammar) -> frozenset[str]:
    asked = {AGENT_AT}
    for schema in domain.schemas:
        conjunctions = [*schema.condition.disjuncts, *(e.condition for e in schema.effects)]
        asked |= {lit.predicate for conjunction in conjunctions for lit in conjunction}
    rules = [rule for alternatives in grammar.rules.values() for rule in alternatives]
    asked |= {atom.predicate for rule in rules for atom in rule.condition or ()}
    symbols = [s for rule in rules for s in rule.symbols]
    symbols += [s for text in grammar.actions.values() for s in (*text.template, *text.feedback)]
    asked |= {a.predicate for s in symbols if isinstance(s, Each) for a in s.query or ()}
    return frozenset(p for p in asked if p.removeprefix(NEGATED) in domain.changing)


def _check_negations(domain: Domain, relevant: frozenset[str]) -> None:
    """``not_p`` must mean the same here as in the reference.

    There it becomes true when an action makes p false. Deleting what was false already also counts,
    but only for facts the planner finds reachable; so it is required that p is a precondition.
    """
    for negated in (p for p in relevant if p.startswith(NEGATED)):
        for schema in domain.schemas:
            for effect in schema.effects:
                literal = effect.literal
                if literal.positive or literal.predicate != negated.removeprefix(NEGATED):
                    continue
                needed = Literal(True, literal.predicate, literal.args)
                if effect.condition or any(needed not in c for c in schema.condition.disjuncts):
                    raise DataFault(
                        f"grammar asks for {negated!r}, and action {schema.name!r} may delete that fact when "
                        "it isn't true: not supported; play this game with backend textworld"
                    )
