"""Updates that are left out because their loss or gradient is not finite."""

from __future__ import annotations

from envrl.errors import PolicyFault
from envrl.training.notices import warn


class SkippedUpdates:
    """Counts updates that were left out, and ends the run when there are too many.

    Args:
        most: Most of them one after the other with which the run goes on.
        aloud: Whether to say of each that it was left out; of several processes one does.
    """

    def __init__(self, most: int, *, aloud: bool = True) -> None:
        self._most = most
        self._aloud = aloud
        self.in_a_row = 0
        self.in_iteration = 0

    def made(self) -> None:
        """An update was made."""
        self.in_a_row = 0

    def skip(self, iteration: int) -> None:
        """An update was left out.

        Raises:
            PolicyFault: It is one too many.
        """
        self.in_a_row += 1
        self.in_iteration += 1
        if self.in_a_row > self._most:
            updates = "update" if self.in_a_row == 1 else f"{self.in_a_row} updates one after the other"
            raise PolicyFault(
                f"iteration {iteration}: the loss or the gradient of {updates} was not finite, more than "
                f"optim.max_skipped_updates={self._most} allows; lower optim.lr, set optim.gradient_clip, or "
                "use a wider policy.dtype or train.precision, and run it anew under another name"
            )
        if self._aloud:
            warn(
                f"iteration {iteration}: an update was left out, because its loss or gradient is not finite "
                f"({self.in_a_row} in a row, {self._most} at most)",
            )
