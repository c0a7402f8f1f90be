"""One model's calls over gRPC."""

import pathlib
from collections.abc import Collection
from typing import Any, Optional

import grpc
import numpy as np
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from dlrm_tf.errors import ServingError
from dlrm_tf.score.transport import Arrays, Tls, Transport, Unavailable
from dlrm_tf.serving_api.config_files import read_model_config
from dlrm_tf.serving_api.status import states
from dlrm_tf.serving_api.tensors import to_array, to_proto


class GrpcTransport(Transport):
    """Calls PredictionService and ModelService at `host:port` or `unix:///path`."""

    def __init__(self, target: str, model_name: str, version: Optional[int], label: Optional[str], tls: Optional[Tls]):
        self._target, self._model_name, self._version, self._label = target, model_name, version, label
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if tls is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            if tls.server_name:
                options.append(("grpc.ssl_target_name_override", tls.server_name))
            files = (tls.ca_file, tls.key_file, tls.cert_file)
            credentials = grpc.ssl_channel_credentials(*(path and pathlib.Path(path).read_bytes() for path in files))
            self._channel = grpc.secure_channel(target, credentials, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, arrays: Arrays, signature_name: str, outputs: Collection[str], timeout: float) -> Arrays:
        request = predict_pb2.PredictRequest()
        self._fill(request.model_spec)
        request.model_spec.signature_name = signature_name
        for name, value in arrays.items():
            request.inputs[name].CopyFrom(to_proto(value, as_content=True))
        request.output_filter.extend(outputs)
        response = self._call(self._prediction.Predict, request, timeout)
        return {name: np.array(to_array(proto, name)) for name, proto in response.outputs.items()}

    def status(self, timeout: float) -> list[dict[str, Any]]:
        request = get_model_status_pb2.GetModelStatusRequest()
        self._fill(request.model_spec)
        return states(self._call(self._model.GetModelStatus, request, timeout))

    def metadata(self, timeout: float) -> dict[str, Any]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill(request.model_spec)
        response = self._call(self._prediction.GetModelMetadata, request, timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return json_format.MessageToDict(signatures, preserving_proto_field_name=True)["signature_def"]

    def reload(self, model_config_file: str, timeout: float) -> None:
        request = model_management_pb2.ReloadConfigRequest(config=read_model_config(model_config_file))
        response = self._call(self._model.HandleReloadConfigRequest, request, timeout)
        if response.status.error_code:
            raise ServingError(f"{self._target}: {response.status.error_message}")

    def close(self) -> None:
        self._channel.close()

    def _fill(self, spec) -> None:
        spec.name = self._model_name
        if self._version is not None:
            spec.version.value = self._version
        if self._label is not None:
            spec.version_label = self._label

    def _call(self, method, request, timeout: float):
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as e:
            # CANCELLED comes from the server only: a call it has not run, as it had too many.
            unrun = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            kind = Unavailable if e.code() in unrun else ServingError
            raise kind(f"{self._target}, model {self._model_name}: {e.code().name}: {e.details()}") from e
