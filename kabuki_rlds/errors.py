"""The one error that is meant for the person who runs the tool."""


class KabukiError(Exception):
    """Something that the user can act on.

    The message is one line: what is wrong, where, and what to do about it. The
    command line prints it as it is and exits with 1; a library user may catch it.
    """
