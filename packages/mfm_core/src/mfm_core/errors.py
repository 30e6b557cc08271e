"""The one exception that is meant for the person at the keyboard, and how its line names many things."""

MOST_NAMED = 6


class UserError(Exception):
    """Something the user can put right: a key, a file, a folder, a shape.

    The message is one line that names it and says what to do; the command line prints it without a traceback
    and exits with code 2.
    """


def named(differences: list[str]) -> str:
    """The first few of them in one line, and how many more there are."""
    more = [f"and {len(differences) - MOST_NAMED} more"] if len(differences) > MOST_NAMED else []
    return "; ".join(differences[:MOST_NAMED] + more)
