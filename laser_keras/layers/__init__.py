"""The layers that encoders and models are made of."""
