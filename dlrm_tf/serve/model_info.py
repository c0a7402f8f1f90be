"""What a server says about its models: GetModelMetadata and GetModelStatus, after TensorFlow Serving's *_impl.cc."""

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from dlrm_tf.serving_api.status import invalid_argument


def get_model_metadata(manager, request) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Answers one GetModelMetadata call: the signatures of a loaded version.

    Raises:
      RequestError: with TensorFlow Serving's code and message.
    """
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    with manager.servable(request.model_spec) as (servable, version):
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version
    response.metadata["signature_def"].Pack(signatures)
    return response


def get_model_status(manager, request) -> get_model_status_pb2.GetModelStatusResponse:
    """Answers one GetModelStatus call: states of a model's versions, newest first.

    Raises:
      RequestError: with TensorFlow Serving's code and message.
    """
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in manager.status(request.model_spec):
        status = response.model_version_status.add(version=version.number, state=version.state)
        status.status.error_code = version.error_code
        status.status.error_message = version.error_message
    return response
