"""The one exception for mistakes a user can mend."""


class SettingError(ValueError):
    """A wrong setting, file or row: one line that names it, the legal values and the fix.

    Command lines print the message behind ``error:`` and exit with 2; everything else that is raised is a defect of
    this code and keeps its traceback.
    """
