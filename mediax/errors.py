"""The errors that a user can act on."""


class InputError(Exception):
    """Bad input: names the file, line or field, what was found, what was expected and what to do.

    `mediax.main` prints the message alone, without a traceback, and exits with status 2.
    """


class CorruptImageError(InputError):
    """An image file that exists and cannot be decoded completely."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line of a message; its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
