"""What ends a run without being a bug: bad input, and being told to stop."""


class InputError(ValueError):
    """Bad input from outside: configuration, files, models, names.

    The message is one sentence with the offending value, what was expected and what to do.
    Command-line entry points print it without a traceback and exit with status 2.
    """


class RunStopped(BaseException):
    """The run was told to stop and can be resumed; command-line entry points exit with status 75.

    Not an `Exception`, as KeyboardInterrupt is not: it can be raised anywhere by a signal, and no
    ``except Exception`` on its way may take it for a failure of its own.
    """
