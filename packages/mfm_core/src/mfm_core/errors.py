"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can put right: a key, a file, a folder, a shape.

    The message is one line that names it and says what to do; the command line prints it without a traceback
    and exits with code 2.
    """
