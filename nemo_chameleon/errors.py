"""The one error that a user can cause."""


class UserError(ValueError):
    """Something the user gave is wrong; the message names it and the next step, in one line."""
