"""The errors a user can cause, each with one clear line and an exit code.

A message names the value, the cause and the remedy. Programs print it and exit with
``exit_code``; the traceback goes to the log.
"""


class DfdetError(Exception):
    """Base of all errors that a program reports as one line."""

    exit_code = 1


class InputError(DfdetError):
    """Bad input or configuration: nothing was started."""

    exit_code = 2


class ConfigError(InputError):
    """A field that is unknown, out of range, or in conflict with another."""


class ShardSetError(InputError):
    """A shard set that is missing, unfinished, damaged, or not what the run was made for."""


class WeightsError(InputError):
    """A pretrained file or checkpoint that does not fit the model."""


class RunFolderError(InputError):
    """A run folder that cannot be written, is owned by a live run, or holds another config."""


class DamagedSampleError(DfdetError):
    """A sample whose bytes fail their checksum or do not decode."""


class TrainingError(DfdetError):
    """Training that cannot go on: too many non-finite steps or damaged samples."""
