"""Frames of rows: nothing is lost, and nothing damaged is taken for whole."""

import numpy as np
import pytest
import tensorflow as tf
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx_pipeline import cli
from tfx_pipeline.errors import PipelineError, SettingsError
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training import row_frames
from tfx_pipeline.training.row_frames import built_ops, load_if_built, load_ops
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer
from tfx_pipeline.training.transmission import DamagedFrameError

# All of float32's kinds: quiet and signalling NaN with payloads, infinities, zeros, denormals.
ODD = [0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x807FFFFF]


def pack(rows):
    return load_ops().laser_pack_rows(rows=rows).numpy()


def unpack(frame, count, width, kind=tf.float32):
    frame = np.frombuffer(bytes(frame), np.uint8)
    return load_ops().laser_unpack_rows(frame=frame, count=count, T=kind, width=width).numpy()


def bits(rows):
    return np.asarray(rows).tobytes()


@settings(deadline=None, max_examples=50)
@given(count=st.integers(0, 40), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_rows_come_back_with_every_bit(ops, count, width, seed):
    words = np.random.default_rng(seed).integers(0, 2**32, (count, width), np.uint32)
    words.flat[: len(ODD)] = ODD[: words.size]
    rows = words.view(np.float32)
    half = tf.bitcast(tf.constant((words >> 16).astype(np.uint16)), tf.bfloat16)
    for each in (tf.constant(rows), half):
        back = unpack(pack(each), count, width, each.dtype)
        assert back.shape == (count, width) and bits(back) == bits(each.numpy())


def test_a_frame_is_plain_zstandard_of_byte_planes(ops):
    rows = np.random.default_rng(1).normal(0, 0.05, (500, 32)).astype(np.float32)
    frame = pack(rows).tobytes()
    planes = np.frombuffer(zstandard.decompress(frame), np.uint8)
    assert bits(planes.reshape(4, -1).T) == bits(rows)
    assert zstandard.get_frame_parameters(frame).has_checksum
    assert len(frame) < 0.9 * rows.nbytes


def test_no_change_of_a_bit_passes_for_other_rows(ops):
    rows = np.tile(np.float32([0.5, -1.25, 3e-9, 0.0]), (9, 1))
    frame = pack(rows)
    refused = 0
    for position in range(8 * len(frame)):
        damaged = frame.copy()
        damaged[position // 8] ^= 1 << position % 8
        try:
            back = unpack(damaged, 9, 4)
        except tf.errors.DataLossError as error:
            assert "a frame of rows is damaged" in error.message
            refused += 1
        else:
            assert bits(back) == bits(rows)  # some bits of Zstandard's headers mean nothing
    assert refused > 0.95 * 8 * len(frame)


def test_frames_of_another_length_are_refused(ops):
    frame = pack(np.ones((6, 5), np.float32)).tobytes()
    for damaged in (b"", frame[:3], frame[:-1], frame + b"\0", bytes(40), b"\xff" * 40):
        with pytest.raises(tf.errors.DataLossError, match="a frame of rows is damaged"):
            unpack(damaged, 6, 5)
    for count, width in ((5, 5), (6, 4), (2**31 - 1, 2**20)):
        with pytest.raises(tf.errors.DataLossError, match="another number of bytes"):
            unpack(frame, count, width)
    with pytest.raises(tf.errors.InvalidArgumentError, match="count must be"):
        unpack(frame, -1, 5)


def test_training_that_receives_a_damaged_frame_says_so(
    ops, monkeypatch, plain_spec, model_settings, write_files, tmp_path
):
    def damaged(frame, **rest):
        return load_ops().laser_unpack_rows(frame=tf.bitwise.invert(frame), **rest)

    class Ops:
        laser_pack_rows = staticmethod(load_ops().laser_pack_rows)
        laser_unpack_rows = staticmethod(damaged)

    monkeypatch.setattr("tfx_pipeline.training.transmission.load_ops", lambda: Ops)
    files = write_files(tmp_path, plain_spec, files=1, requests=4)
    settings = TrainingSettings(transmission="zstd")
    trainer = Trainer(plain_spec, model_settings, settings, RowLookup(), report=lambda _: None)
    with pytest.raises(
        DamagedFrameError, match=r"damaged at step 1 \(it holds another number"
    ) as found:
        trainer.train(files)
    assert found.value.exit_code == 74 and "\n" not in str(found.value)


@pytest.fixture
def not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(row_frames, "library_path", lambda: tmp_path / "ops" / "row_frames.so")
    (tmp_path / "ops").mkdir()
    load_ops.cache_clear()
    yield
    load_ops.cache_clear()


def test_a_codec_without_its_ops_fails_before_any_work(not_built, plain_spec, model_settings):
    for codec in ("zstd", "bf16+zstd"):
        with pytest.raises(SettingsError, match="laser-pipeline build-ops"):
            Trainer(plain_spec, model_settings, TrainingSettings(transmission=codec), RowLookup())
    assert (load_if_built(), built_ops()) == ("", "")
    Trainer(plain_spec, model_settings, TrainingSettings(transmission="bf16"), RowLookup())


@pytest.mark.parametrize(
    "compiler, says", [("no-such", "no C++ compiler (no-such)"), ("false", "cannot build")]
)
def test_what_a_build_lacks_is_said(not_built, monkeypatch, capsys, tmp_path, compiler, says):
    monkeypatch.setenv("CXX", compiler)
    assert cli.main(["build-ops"]) == 1
    assert says in capsys.readouterr().err
    assert list((tmp_path / "ops").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(not_built, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "true")
    (tmp_path / "ops").rmdir()
    with pytest.raises(PipelineError, match=r"ops cannot be written .*as the user who installed"):
        row_frames.build_ops()
