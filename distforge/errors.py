"""The one error a user can cause."""


class InputError(ValueError):
    """Bad input from outside: configuration, files, models, names.

    The message is one sentence with the offending value, what was expected and what to do.
    Command-line entry points print it without a traceback and exit with status 2.
    """
