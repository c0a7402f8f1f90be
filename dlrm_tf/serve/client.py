"""`Client`: scores rows with a model server, ours or the real TensorFlow Serving."""

from typing import Optional

import grpc
import numpy as np
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from dlrm_tf.errors import ServingError
from dlrm_tf.serve.tensors import to_array, to_proto


class Client:
    """Talks gRPC to one model server.

    Args:
      target: `host:port` (or `unix:///path/of.sock`).
      model_name: the model asked for.
      version: a version number; None takes the latest the server has.
      label: a version label instead of a number.
      timeout: deadline of one call, in seconds.

    Example:
      with Client("127.0.0.1:8500", model_name="dlrm") as client:
          probability = client.score(dense, categorical)
    """

    def __init__(
        self,
        target: str,
        model_name: str = "dlrm",
        version: Optional[int] = None,
        label: Optional[str] = None,
        timeout: float = 10.0,
    ):
        if version is not None and label is not None:
            raise ValueError(f"version and label exclude each other. Received version={version}, label={label!r}")
        self.target, self.model_name, self.version, self.label, self.timeout = target, model_name, version, label, timeout
        self._channel = grpc.insecure_channel(
            target, options=(("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
        )
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def score(self, dense, categorical) -> np.ndarray:
        """Probability of a click for each row.

        Args:
          dense: float32 `[rows, 13]`, already log(max(x, 0) + 1).
          categorical: int32 `[rows, 26]`, ids.

        Returns:
          float32 `[rows]`.

        Raises:
          ServingError: the server can't be reached, or refuses the request.
        """
        inputs = {"dense": np.asarray(dense, np.float32), "categorical": np.asarray(categorical, np.int32)}
        return self.predict(inputs, outputs=("probability",))["probability"].reshape(-1)

    def predict(self, inputs: dict, signature_name: str = "", outputs=()) -> dict:
        """One Predict call: arrays in, arrays out, by the signature's names.

        Raises:
          ServingError: the server can't be reached, or refuses the request.
        """
        request = predict_pb2.PredictRequest()
        self._fill(request.model_spec)
        request.model_spec.signature_name = signature_name
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(to_proto(np.asarray(value), as_content=True))
        request.output_filter.extend(outputs)
        response = self._call(self._prediction.Predict, request)
        return {name: to_array(proto, name) for name, proto in response.outputs.items()}

    def status(self) -> list[dict]:
        """The model's versions, newest first: `{"version", "state", "error_code", "error_message"}`."""
        request = get_model_status_pb2.GetModelStatusRequest()
        self._fill(request.model_spec)
        names = get_model_status_pb2.ModelVersionStatus.State
        return [
            {
                "version": status.version,
                "state": names.Name(status.state),
                "error_code": status.status.error_code,
                "error_message": status.status.error_message,
            }
            for status in self._call(self._model.GetModelStatus, request).model_version_status
        ]

    def metadata(self) -> dict:
        """Signature name -> SignatureDef as a dict (protobuf's JSON form)."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill(request.model_spec)
        response = self._call(self._prediction.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return json_format.MessageToDict(signatures, preserving_proto_field_name=True)["signature_def"]

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _fill(self, spec) -> None:
        spec.name = self.model_name
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label

    def _call(self, method, request):
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as e:
            raise ServingError(f"{self.target}, model {self.model_name}: {e.code().name}: {e.details()}") from e
