"""Text from elsewhere, made safe to print: names and reasons may hold what a terminal would obey."""

import json


def printable(text: str) -> str:
    """Return the text with every character that is not printable escaped, as in JSON: ESC, C1, bidi overrides.

    A backslash stays as it is: this is to be looked at, not to be read back.
    """
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() else json.dumps(each)[1:-1] for each in text])
