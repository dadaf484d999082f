"""The errors of ``laser_features``: each message says what was found and what to do."""


class FeatureSpecError(ValueError):
    """A feature spec that cannot be used: names file, field, what was found and what to do."""


class RequestError(ValueError):
    """A rank request that does not fit the feature spec: the caller can correct it."""


class TimeUnitError(ValueError):
    """Times that are not milliseconds since 1970 (most often: seconds)."""


class HistoryLeakError(ValueError):
    """A history that holds an event at or after its request's time: a bug in what read it."""


class ColumnTypeError(ValueError):
    """A column of a log whose type or values do not fit the feature spec."""
