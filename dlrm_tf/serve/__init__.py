"""The embedded model server (the API of TF Serving) and the client."""
