"""The curated schema, and the file that ImportSchemaGen reads."""

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from laser_features import FeatureSpec
from laser_features.testing import tiny_content
from tfx_pipeline.definition.example_schema import make_schema, write_schema

SPEC = tiny_content()


def test_the_file_holds_the_schema(tmp_path):
    spec = FeatureSpec.from_dict(SPEC)
    written = write_schema(spec, tmp_path)
    read = text_format.Parse(written.read_text(), schema_pb2.Schema())
    assert read == make_schema(spec)
    assert write_schema(spec, tmp_path) == written


def test_another_schema_has_another_path(tmp_path):
    """TFX caches ImportSchemaGen by path: a changed spec must not find the old schema."""
    one = write_schema(FeatureSpec.from_dict(SPEC), tmp_path)
    longer = {**SPEC, "history": {"max_length": 4}}
    other = write_schema(FeatureSpec.from_dict(longer), tmp_path)
    assert one != other
    assert one.exists() and one.read_text() != other.read_text()
