"""A sweep as an Optuna study: its trials as a table, and the figures that tell which settings mattered.

Nothing is searched here; `python -m envrl.experiments.sweep` does that.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from sqlalchemy.exc import SQLAlchemyError

from envrl.errors import DataFault
from envrl.untrusted import parse_json, read_text

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes

DATABASE = "optuna.db"
_LABELS = {"success": "success on the panel", "seconds": "seconds a run"}
_LONGEST_LABEL = 24
_COMPLETE = "COMPLETE"


@dataclass(frozen=True, slots=True)
class Sweep:
    """An opened sweep.

    Attributes:
        name: Its name, also the Optuna study's.
        objectives: ``success``, ``seconds`` or both.
        study: The Optuna study.
    """

    name: str
    objectives: tuple[str, ...]
    study: optuna.Study


def _import_optuna() -> Any:
    """Imports Optuna without the note of its progress bars in a notebook that lacks ipywidgets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import optuna

    return optuna


def open_sweep(folder: Path, storage: str | None = None) -> Sweep:
    """Opens the sweep of a folder to be read.

    Args:
        folder: ``<root>/studies/<name>``.
        storage: Optuna storage URL, if it is not the folder's own database.

    Raises:
        DataFault: The folder holds no sweep, or the storage has none of that name.
    """
    path = folder / "sweep.json"
    try:
        settings = parse_json(read_text(path))["sweep"]
        name, objectives = str(settings["name"]), tuple(map(str, settings["objectives"]))
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataFault(
            f"{path} can't be read ({fault}); name a folder that `python -m envrl.experiments.sweep` wrote"
        ) from fault
    database = folder / DATABASE
    if storage is None and not database.is_file():
        raise DataFault(f"{database} is missing; give the --storage that the sweep was run with")
    with _quiet():
        try:
            study = _import_optuna().load_study(
                study_name=name, storage=_opened(storage or f"sqlite:///{database.resolve()}")
            )
        except KeyError as fault:
            raise DataFault(f"the storage has no sweep '{name}'; give the one it was run with") from fault
        except (SQLAlchemyError, OSError, ImportError) as fault:
            # Without the address, which may hold a password.
            raise DataFault(
                f"the storage of the sweep '{name}' can't be opened ({type(fault).__name__}); start its "
                "server, install its driver, or correct the address"
            ) from fault
    return Sweep(name, objectives, study)


def _opened(storage: str) -> Any:
    """What Optuna takes: ``journal:PATH`` is a file, everything else a database."""
    from optuna.storages.journal import JournalFileBackend

    kind, colon, path = storage.partition(":")
    if kind != "journal" or not colon:
        return storage
    if not Path(path).is_file():
        raise DataFault(f"the journal {path} is missing; give the one the sweep was run with")
    return _import_optuna().storages.JournalStorage(JournalFileBackend(path))


def latest_sweep_folder(root: Path, name: str | None = None) -> Path:
    """Folder of the sweep of that name, or of the one that was begun last.

    Raises:
        DataFault: There is none.
    """
    found = sorted((root / "studies").glob("*/sweep.json"), key=lambda path: path.stat().st_mtime)
    chosen = [path.parent for path in found if name in (None, path.parent.name)]
    if not chosen:
        wanted = f"no sweep '{name}'" if name is not None else "no sweep"
        raise DataFault(
            f"there is {wanted} under {root / 'studies'}; run "
            "`python -m envrl.experiments.sweep --study experiments/sweep_aux_weights.yaml` first"
        )
    return chosen[-1]


def trials_frame(sweep: Sweep) -> pd.DataFrame:
    """One row for each trial: state, objectives, settings and time; the best of the first objective first.

    Success is a share in [0, 1], times are seconds.
    """
    rows = []
    for trial in sweep.study.get_trials(deepcopy=False):
        complete = trial.state.name == _COMPLETE
        values = trial.values if complete else [None] * len(sweep.objectives)
        row: dict[str, Any] = {"trial": trial.number, "state": trial.state.name.lower()}
        row |= dict(zip(sweep.objectives, values, strict=True)) | dict(trial.params)
        row["trial_seconds"] = trial.duration.total_seconds() if trial.duration else None
        rows.append(row)
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    first = sweep.objectives[0]
    return frame.sort_values([first, "trial"], ascending=[first != "success", True], ignore_index=True)


def sweep_figures(study: optuna.Study, objectives: Sequence[str]) -> dict[str, Figure]:
    """The figures that what is known is enough for, by name.

    One objective: ``history``, ``slice``, ``parallel_coordinate``, and ``importances`` where two finished
    trials differ; two: ``pareto_front``. ``timeline`` always. Without a finished trial there is only that.

    Args:
        study: The Optuna study.
        objectives: Names of its objectives.
    """
    draw = _import_optuna().visualization.matplotlib
    done = [t for t in study.get_trials(deepcopy=False) if t.state.name == _COMPLETE]
    makers: dict[str, Callable[[], Any]] = {}
    names = [_LABELS.get(objective, objective) for objective in objectives]
    if done and len(objectives) > 1:
        makers["pareto_front"] = lambda: draw.plot_pareto_front(study, target_names=names)
    elif done:
        makers["history"] = lambda: draw.plot_optimization_history(study, target_name=names[0])
        makers["slice"] = lambda: draw.plot_slice(study, target_name=names[0])
        makers["parallel_coordinate"] = lambda: draw.plot_parallel_coordinate(study, target_name=names[0])
        if len({trial.value for trial in done}) > 1:
            makers["importances"] = lambda: draw.plot_param_importances(study, target_name=names[0])
    makers["timeline"] = lambda: draw.plot_timeline(study)
    with _quiet():
        return {name: _tidied(name, make()) for name, make in makers.items()}


def _tidied(name: str, made: Axes | Any) -> Figure:
    """Optuna's figure, out of pyplot's hands, wide enough for its labels and without a grey background."""
    import matplotlib.pyplot as plt

    every = list(made.flat) if hasattr(made, "flat") else [made]
    figure = every[0].figure
    assert isinstance(figure, Figure)
    plt.close(figure)
    for axes in figure.axes:
        axes.set_facecolor("white")
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        for axis in (axes.xaxis, axes.yaxis):
            # Between powers of ten there is no room for more numbers.
            if axis.get_scale() == "log":
                axis.set_minor_formatter(NullFormatter())
    if name == "slice":
        figure.set_size_inches(max(6.4, 2.4 * len(every)), 3.6)
        for axes in every:
            axes.set_xlabel(_wrapped(axes.get_xlabel()), fontsize="small")
            axes.tick_params(axis="x", labelsize="small", rotation=30)
    if name == "parallel_coordinate":
        axes = figure.axes[0]
        axes.set_xticks(axes.get_xticks(), [_wrapped(t.get_text()) for t in axes.get_xticklabels()])
        axes.tick_params(axis="x", labelsize="small", rotation=0)
        figure.set_size_inches(max(6.4, 1.9 * len(axes.get_xticks())), 4.2)
    if name == "importances" and (legend := every[0].get_legend()) is not None:
        legend.remove()  # a single entry, which would lie on the shortest bars
    return figure


def _wrapped(label: str) -> str:
    """A setting's dotted name on several lines, so that neighbours do not overlap."""
    return label.replace(".", ".\n") if "." in label and len(label) > _LONGEST_LABEL // 2 else label


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's notes: figures are marked experimental, short sweeps have settings without spread."""
    optuna = _import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
