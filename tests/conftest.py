"""What every test runs under: one thread, no network, and shape checks switched on.

The settings stand above all imports of libraries that read them.
Subprocesses started by a test inherit them.
"""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

if threading.current_thread() is threading.main_thread():
    # A shell's background job ignores Ctrl-C, and so would every command that a test starts and stops by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.update(
    # Tests run beside each other and beside other work: two processes with two threads each on two
    # cores are several times slower than one thread each. A result must not depend on the count.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    DO_NOT_TRACK="1",
    MPLBACKEND="Agg",
)

from jaxtyping import install_import_hook

# Shape annotations of these rooms are executed under pytest only: users pay nothing for them. The
# hook works on modules imported after it, hence here and for the whole session.
_shape_checks = install_import_hook(["envrl.losses", "envrl.training", "envrl.policy"], "beartype.beartype")


@pytest.fixture(scope="session")
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the caller's generated games and MLflow server out; commands started by a test inherit it."""
    from support import checkpoint  # imports what the hook above must come before

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        checkpoint()  # made here, so that what its making prints is in no test's output
        yield
