"""The exception for mistakes that a user can correct."""


class UserError(ValueError):
    """Something that the user gave is wrong.

    The message is one line that names the culprit and the next step.
    """
