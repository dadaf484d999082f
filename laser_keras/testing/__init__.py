"""Test helpers for encoders of your own."""

from laser_keras.testing.encoder_contract import check_encoder

__all__ = ["check_encoder"]
