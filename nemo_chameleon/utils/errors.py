"""The exception for mistakes that a user can correct, and the reasons of the system's errors."""


class UserError(ValueError):
    """Something that the user gave is wrong.

    The message is one line that names the culprit and the next step.
    """


def reason_of(error: Exception) -> str:
    """Say why a file cannot be read or written, without its path, which the message has.

    Args:
        error: what was raised.

    Returns:
        One line, for instance "there is no such file; correct the path".
    """
    if isinstance(error, FileNotFoundError):
        return "there is no such file; correct the path"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; name a file in it"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8; save the file as UTF-8"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
