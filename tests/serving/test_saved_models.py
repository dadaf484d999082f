"""SavedModels of the kinds that the pipeline and Keras make, run as they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from serving.model_server.predict import run_signature
from serving.model_server.saved_model import SavedModel
from serving.model_server.status import ServingError


def test_vocabulary_from_an_asset_file(tmp_path):
    """What Transform exports: a table that is filled from a file next to the graph."""
    vocabulary = tmp_path / "tags.txt"
    vocabulary.write_text("drama\nnews\n")

    class Lookup(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(
                    str(vocabulary),
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                ),
                -1,
            )

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="tag")])
        def rows(self, tag):
            return {"row": self.table.lookup(tag)}

    module = Lookup()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.rows})
    vocabulary.unlink()  # the copy in the SavedModel is the one that counts
    model = SavedModel(tmp_path / "1")
    signature = model.signatures["serving_default"]
    tags = np.array([b"news", b"drama", b"other"], object)
    assert run_signature(model, signature, {"tag": tags})["row"].tolist() == [1, 0, -1]
    model.close()


def test_serialized_examples_are_parsed_in_the_graph(tmp_path):
    """G22: the signature that takes tf.train.Examples."""

    class Parse(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def parse(self, examples):
            parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})
            return {"sum": tf.reduce_sum(parsed["x"], 1)}

    module = Parse()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_examples": module.parse})
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.extend([1.5, 2])
    model = SavedModel(tmp_path / "1")
    signature = model.signatures["serving_examples"]
    given = np.array([example.SerializeToString()], object)
    assert run_signature(model, signature, {"examples": given})["sum"].tolist() == [3.5]
    with pytest.raises(ServingError) as caught:
        run_signature(model, signature, {"examples": np.array([b"nonsense"], object)})
    assert caught.value.code == "INVALID_ARGUMENT"
    model.close()


def test_keras_export(tmp_path):
    """A Keras 3 export: the output's alias is ``output_0``, the numbers are the model's."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("model.export writes a SavedModel with the TensorFlow backend")
    inputs = keras.Input((3,), name="features")
    network = keras.Model(inputs, keras.layers.Dense(2, activation="tanh")(inputs))
    network.export(str(tmp_path / "1"))
    model = SavedModel(tmp_path / "1")
    signature = model.signatures["serving_default"]
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    outputs = run_signature(model, signature, {"features": rows})
    assert list(outputs) == ["output_0"]
    np.testing.assert_allclose(outputs["output_0"], network.predict(rows, verbose=0), atol=1e-6)
    model.close()
