"""An embedded model server that answers TensorFlow Serving's REST and gRPC predict API."""
