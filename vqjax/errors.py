"""The one exception that stands for a mistake in what the caller asked for."""


class UserError(ValueError):
    """What was asked for cannot be done, and the message says what to change.

    The command lines print the message alone and exit with status 2; every other exception is a defect of the
    library and keeps its stack trace.
    """
