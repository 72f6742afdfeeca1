"""The one exception for mistakes a user can mend, and how its message shows a value."""

import reprlib


class SettingError(ValueError):
    """A wrong setting, file or row: one line that names it, the legal values and the fix.

    Command lines print the message behind ``error:`` and exit with 2; everything else that is raised is a defect of
    this code and keeps its traceback.
    """


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 6


def shown(value: object) -> str:
    """Return ``repr(value)`` for a message: cut where it is long, so that no value of a file can flood it."""
    return _SHORT.repr(value)
