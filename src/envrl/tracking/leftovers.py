"""Delivers the journals that ended processes have left, each to a store that whoever delivers it named."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from envrl.errors import DataFault
from envrl.tracking.artifact_places import check_kept
from envrl.tracking.delivery import KINDS, is_away, is_failing, limit_http_waits, send
from envrl.tracking.journal import Entry, Journal, NothingKept, journals_below
from envrl.tracking.store import quiet_mlflow
from envrl.untrusted import printable, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TRIES = 3
_SHOWN = 160


def deliver_below(folder: Path, uri: str, *, foreign: bool = False) -> int:
    """Delivers what ended runs in a folder could not; returns the number of log calls.

    Args:
        folder: The folder.
        uri: Store to deliver to.
        foreign: Also what was meant for another store.

    Raises:
        DataFault: The store can't be reached, or a file is meant for another one, broken or in use; all
            others were delivered.
    """
    delivered, faults = 0, []
    for path in journals_below(folder):
        try:
            delivered += deliver(path, uri, foreign=foreign)
        except DataFault as fault:
            faults.append(fault)
    if faults:
        more = f" ({len(faults) - 1} more files could not be delivered)" if len(faults) > 1 else ""
        raise DataFault(f"{faults[0]}{more}") from faults[0]
    return delivered


def deliver(path: Path, uri: str, *, foreign: bool = False) -> int:
    """Delivers a journal that an ended process has left; returns the number of entries that MLflow took.

    Args:
        path: The journal.
        uri: Store to deliver to. What the file says is not followed: it may come from a stranger.
        foreign: Whether it may have been meant for another store.

    Raises:
        DataFault: The store can't be reached or does not know the run, or the file is meant for another
            store, broken or in use.
    """
    mlflow = quiet_mlflow()
    limit_http_waits()
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    try:
        journal = Journal(path)
    except NothingKept:
        return 0
    try:
        if not foreign and journal.owner.uri != uri:
            raise DataFault(
                f"{path} is meant for the MLflow store {shown(journal.owner.uri, _SHOWN)} and not for {uri}, "
                "so it is left alone; name a store that you trust with it: "
                f"`{command(path.parent)} --uri ADDRESS`"
            )
        mlflow_client = mlflow.MlflowClient(uri)
        mlflow_client.get_run(journal.owner.run_id)
        return empty(journal, mlflow_client)
    except Exception as fault:
        if is_away(fault):
            raise DataFault(
                f"the MLflow store {uri} can't be reached ({reason(fault)}); {values(len(journal))} stay "
                f"in {path}. Start it, then run the command again"
            ) from fault
        if not isinstance(fault, mlflow.exceptions.MlflowException):
            raise
        raise DataFault(
            f"the MLflow store {uri} does not have the run of {path} ({reason(fault)}); name the store it "
            "was started in with --uri"
        ) from fault
    finally:
        journal.close()


def empty(journal: Journal, mlflow_client: MlflowClient) -> int:
    """Hands over every entry of a journal; returns the number of those that MLflow took.

    Raises:
        Exception: The store is away.
    """
    taken = 0
    while len(journal):
        number, entry = journal.first()
        taken += hand_over(mlflow_client, journal, entry)
        journal.done(number)
    return taken


def hand_over(mlflow_client: MlflowClient, journal: Journal, entry: Entry) -> bool:
    """Sends an entry of a journal; one that will never be taken is put aside. True if MLflow took it.

    The first one that is put aside is told of, later ones are only kept.

    Raises:
        Exception: The store is away.
    """
    refusal = _refusal(mlflow_client, journal, entry)
    if refusal is None:
        return True
    aside = journal.refuse(entry, reason(refusal))
    if journal.refused == 1:
        kind = entry["kind"] if entry["kind"] in KINDS else "a log call"
        what = f"{kind} is not delivered" if isinstance(refusal, DataFault) else f"MLflow refused {kind}"
        say(
            f"{journal.owner.name[:_SHOWN]}: {what} ({reason(refusal)}); it and what else is refused is kept "
            f"in {aside}"
        )
    return False


def _refusal(mlflow_client: MlflowClient, journal: Journal, entry: Entry) -> Exception | None:
    """Why an entry will never be taken; None if it was.

    A server answers a value that it stumbles over as it answers while its database is away. If it is fine
    otherwise and fails at this value again and again, it is the value.
    """
    refusal: Exception | None = None
    for _ in range(_TRIES):
        try:
            check_kept(entry, journal.path.parent)
            send(mlflow_client, journal.owner.run_id, entry)
            return None
        except Exception as fault:
            if is_away(fault) and not is_failing(fault):
                raise
            refusal = fault
        if not is_failing(refusal):
            break
        _ask(mlflow_client, journal.owner.run_id, entry)
    return refusal


def _ask(mlflow_client: MlflowClient, run_id: str, entry: Entry) -> None:
    """Asks for what is there already, of the part of the store that would keep the entry.

    Raises:
        Exception: The store is away.
    """
    try:
        mlflow_client.get_run(run_id)
        if entry["kind"] in ("artifact", "text"):
            mlflow_client.list_artifacts(run_id)
    except Exception as fault:
        if is_away(fault):
            raise


def command(folder: Path) -> str:
    """What to type to deliver what is kept in a folder."""
    return f"python -m envrl.experiments.deliver {shlex.quote(str(folder))}"


def values(count: int) -> str:
    """A number of log calls in words."""
    return f"{count} log call" if count == 1 else f"{count} log calls"


def reason(fault: BaseException) -> str:
    """The innermost cause in one line: the outer ones repeat it at length."""
    text = " ".join(str(fault).split())
    if "Connection refused" in text:
        return "connection refused"
    if "timed out" in text.lower():
        return "it does not answer in time"
    return printable(text if len(text) <= _SHOWN or isinstance(fault, DataFault) else f"{text[:_SHOWN]}…")


def say(text: str) -> None:
    """Prints a warning; control characters of what it quotes are written out."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)
