"""The errors that a user can act on."""


class InputError(Exception):
    """Bad input: names the file, line or field, what was found, what was expected and what to do.

    `mediax.main` prints the message alone, without a traceback, and exits with status 2.
    """


class CorruptImageError(InputError):
    """An image file that exists and cannot be decoded completely."""
