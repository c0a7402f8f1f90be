"""One model's calls over REST."""

import base64
import json
import urllib.parse
from collections.abc import Collection
from typing import Any, Optional

import numpy as np
import urllib3
from google.protobuf import json_format
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse

from dlrm_tf.errors import ServingError
from dlrm_tf.score.transport import Arrays, Tls, Transport, Unavailable
from dlrm_tf.serving_api.names import DEFAULT_SIGNATURE
from dlrm_tf.serving_api.status import states
from dlrm_tf.serving_api.tensors import numpy_dtype


class RestTransport(Transport):
    """Calls `/v1/models/NAME` at `http(s)://host:port`; without `tls`, https trusts the system's authorities."""

    def __init__(self, target: str, model_name: str, version: Optional[int], label: Optional[str], tls: Optional[Tls]):
        self._target, self._model_name = target.rstrip("/"), model_name
        self._url = f"{self._target}/v1/models/{urllib.parse.quote(model_name, safe='')}"
        if version is not None:
            self._url += f"/versions/{version}"
        if label is not None:
            self._url += f"/labels/{urllib.parse.quote(label, safe='')}"
        files: dict[str, Any] = {}
        if tls is not None:
            files = {"ca_certs": tls.ca_file, "cert_file": tls.cert_file, "key_file": tls.key_file}
            files["assert_hostname"] = files["server_hostname"] = tls.server_name
        self._pool = urllib3.PoolManager(retries=False, **{name: file for name, file in files.items() if file is not None})
        # Signature -> dtypes of its outputs, from the metadata: a number in JSON has no dtype.
        self._dtypes: dict[str, dict[str, Optional[np.dtype]]] = {}

    def predict(self, arrays: Arrays, signature_name: str, outputs: Collection[str], timeout: float) -> Arrays:
        request: dict[str, Any] = {"inputs": {name: array.tolist() for name, array in arrays.items()}}
        if signature_name:
            request["signature_name"] = signature_name
        types = self._output_types(signature_name or DEFAULT_SIGNATURE, timeout)
        for name in outputs:
            if name not in types:
                raise ServingError(
                    f"{self._target}, model {self._model_name}: output tensor alias not found in signature: {name} Outputs "
                    f"expected to be in the set {{{','.join(sorted(types))}}}."
                )
        result = self._call("POST", ":predict", timeout, request)["outputs"]
        result = {next(iter(types)): result} if len(types) == 1 else result
        return {name: np.array(value, types.get(name)) for name, value in result.items() if not outputs or name in outputs}

    def _output_types(self, signature_name: str, timeout: float) -> dict[str, Optional[np.dtype]]:
        if signature_name not in self._dtypes:
            signature = self.metadata(timeout).get(signature_name)
            if signature is None:
                raise ServingError(f"{self._target}, model {self._model_name}: no signature {signature_name}")
            self._dtypes[signature_name] = {
                name: numpy_dtype(types_pb2.DataType.Value(info["dtype"])) for name, info in signature["outputs"].items()
            }
        return self._dtypes[signature_name]

    def status(self, timeout: float) -> list[dict[str, Any]]:
        answer = self._call("GET", "", timeout)
        return states(json_format.ParseDict(answer, GetModelStatusResponse(), ignore_unknown_fields=True))

    def metadata(self, timeout: float) -> dict[str, Any]:
        return self._call("GET", "/metadata", timeout)["metadata"]["signature_def"]["signature_def"]

    def reload(self, model_config_file: str, timeout: float) -> None:
        raise ServingError(f"{self._target}: a reload goes over gRPC only; give the server's gRPC address")

    def close(self) -> None:
        self._pool.clear()

    def _call(self, method: str, tail: str, timeout: float, document: Any = None) -> dict[str, Any]:
        where = f"{self._target}, model {self._model_name}"
        try:
            response = self._pool.request(
                method,
                self._url + tail,
                body=None if document is None else json.dumps(document, default=_as_base64).encode(),
                headers={"Content-Type": "application/json"},
                timeout=urllib3.Timeout(total=timeout),
            )
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ProtocolError) as e:
            raise Unavailable(f"{where}: UNAVAILABLE: {e}") from e
        except urllib3.exceptions.TimeoutError as e:
            raise ServingError(f"{where}: DEADLINE_EXCEEDED: no answer in time") from e
        except urllib3.exceptions.HTTPError as e:
            raise ServingError(f"{where}: {e}") from e
        try:
            result = json.loads(response.data)
        except ValueError as e:
            raise ServingError(f"{where}: HTTP {response.status}, and the answer is not JSON: {response.data[:100]!r}") from e
        if response.status != 200:
            kind = Unavailable if response.status == 503 else ServingError
            raise kind(f"{where}: HTTP {response.status}: {result.get('error', result) if isinstance(result, dict) else result}")
        return result


def _as_base64(value: bytes) -> dict[str, str]:
    """JSON's form of bytes."""
    return {"b64": base64.b64encode(value).decode()}
