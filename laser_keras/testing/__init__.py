"""What the tests of your own encoders can use."""

from laser_keras.testing.encoder_contract import check_encoder

__all__ = ["check_encoder"]
