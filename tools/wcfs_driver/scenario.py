"""Names of scenarios."""

STORAGES = ("fs", "zeo")
_ALL = []


def scenario(function, storages=STORAGES):
    """Makes a function, which takes a `Stage`, a scenario that can be asked for by its name, for these storages."""
    _ALL.append((function, storages))
    return function


def scenario_of(storage):
    """A scenario for one storage alone."""
    return lambda function: scenario(function, (storage,))


def scenarios(storage):
    """Those of a storage by name, in the order in which they were written."""
    return {function.__name__: function for function, storages in _ALL if storage in storages}
