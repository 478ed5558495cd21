"""The exceptions that reach the terminal as one ``error:`` line."""


class UserError(Exception):
    """A mistake in the user's input: a flag, a file, a row, a model name.

    The message is one line that says what is wrong, where (file, row, field) and what to do. Stages print it as
    ``error: <message>`` on rank 0 and exit with code 2, without a traceback.
    """


class PushError(RuntimeError):
    """The upload to the Hub failed; the run on disk is complete. The message says how to push again; exit code 1."""


class DivergedError(RuntimeError):
    """Training met a number that is not finite. The message says at which step, what to try and what was kept; exit
    code 1, and the run's status is ``failed``.
    """
