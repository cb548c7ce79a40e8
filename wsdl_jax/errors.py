"""Errors that are the user's to mend."""


class UserError(Exception):
    """Something the user can mend. The message is one line that says what and where."""
