"""Names of scenarios."""

_ALL = {}


def scenario(function):
    """Makes a function, which takes a `Stage`, one that can be asked for by its name."""
    _ALL[function.__name__] = function
    return function


def scenarios():
    """All of them by name, in the order in which they were written."""
    return dict(_ALL)
