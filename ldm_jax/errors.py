"""Errors that the user can mend. The scripts print them as one paragraph; anything else keeps its traceback.

All are ValueErrors. A message names the option, the value, and the remedy.
"""


class UsageError(ValueError):
    """Something that was asked for, or given, does not work."""


class ConfigError(UsageError):
    """Options of a recipe that do not fit together, or do not fit the run in the working directory."""


class DataError(UsageError):
    """Images or annotations that cannot be used."""


class RequestError(UsageError):
    """A request for samples that the model cannot answer."""


class Missing(UsageError):
    """Something that is needed is not there; the message says how to get it."""


class Damaged(UsageError):
    """Files of a run that are not as they were written; the message names them, and what can be used instead."""


class SaveFailed(UsageError):
    """A checkpoint that could not be written."""


class WriteFailed(UsageError):
    """Another file of a run that could not be written."""


class ReadFailed(UsageError):
    """A file in a bucket that did not come; it may be sound."""


class Outage(UsageError):
    """A connection or a service that failed: the same command may succeed later."""


class ReadOutage(ReadFailed, Outage):
    """A file in a bucket that did not come because of an outage."""


class WriteOutage(WriteFailed, Outage):
    """A file in a bucket that could not be written because of an outage."""


class SaveOutage(SaveFailed, Outage):
    """A checkpoint that could not be written into a bucket because of an outage."""
