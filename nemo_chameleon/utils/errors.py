"""The one error that a user can cause."""


class UserError(ValueError):
    """Something that the user gave is wrong.

    The message is one line: it names the culprit and the next step.
    """
