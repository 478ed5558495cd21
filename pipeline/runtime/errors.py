"""The one exception that means "the user's mistake", and how it reaches the terminal."""


class UserError(Exception):
    """A mistake in the user's input: a flag, a file, a row, a model name.

    The message is one line that says what is wrong, where (file, row, field) and what to do. Stages print it as
    ``error: <message>`` on rank 0 and exit with code 2, without a traceback.
    """
