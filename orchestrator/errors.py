"""Everything the product raises on purpose: one root, one subclass per cause.

The command line turns a ``CslError`` into its message and ``exit_code``; any other exception is a bug and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class CslError(Exception):
    """Root of all errors a user can cause or meet."""

    exit_code = 1


class ConfigError(CslError):
    """The configuration, or the data it names, cannot be run. Carries *every* mistake found.

    Attributes:
        problems: one sentence per mistake, each ``"field: rule (got value)"``.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[str], source: str = "the configuration") -> None:
        self.problems = tuple(problems)
        count = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        super().__init__("\n".join([f"{count} in {source}:", *(f"  - {p}" for p in self.problems)]))


class NothingKeptError(CslError):
    """The consistency filters of a round rejected every sample."""


class TeacherError(CslError):
    """A weak teacher cannot be trained or cannot answer."""


class StorageError(CslError):
    """A stored file is missing, unreadable or does not belong to what asks for it."""


class RunFailedError(CslError):
    """An experiment stopped; its finished rounds are stored and a second call resumes from them."""


class Interrupted(CslError):
    """Ctrl-C or SIGTERM: everything was stopped in order, and finished rounds are stored."""

    exit_code = 130


class DeviceError(CslError):
    """The device that was asked for is not there."""


class TrackingError(CslError):
    """Records could not be delivered to the MLflow server; they wait in the run's journal."""
