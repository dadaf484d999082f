"""The feature spec, and the one function that turns a request and its history into model inputs.

Used by the training join and by the rank gateway, so that the two cannot differ.
"""

from laser_features.errors import FeatureSpecError, HistoryLeakError, RequestError, TimeUnitError
from laser_features.field import Field
from laser_features.model_input import ModelInput
from laser_features.outside_ids import OutsideIds
from laser_features.rank_request import parse_rank_request
from laser_features.request import RequestBatch, build_model_inputs, history_fields
from laser_features.spec import FeatureSpec
from laser_features.table import Table
from laser_features.time import check_milliseconds

__all__ = [
    "FeatureSpec",
    "FeatureSpecError",
    "Field",
    "HistoryLeakError",
    "ModelInput",
    "OutsideIds",
    "RequestBatch",
    "RequestError",
    "Table",
    "TimeUnitError",
    "build_model_inputs",
    "check_milliseconds",
    "history_fields",
    "parse_rank_request",
]
