"""The exception for mistakes that a user can correct."""


class UserError(ValueError):
    """Something that the user gave is wrong.

    The message is one line that names the culprit and the next step.
    """


class BoundError(UserError):
    """A cap on epochs, a fixed share or a least share cannot be kept.

    The message begins with the name of the bound, so that the caller can name its setting.
    """
