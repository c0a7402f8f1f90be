"""TensorFlow Serving's configuration messages that its Python package leaves out: batching, monitoring, SSL.

Written down here as descriptors with the fields of tensorflow_serving/servables/tensorflow/session_bundle_config.proto,
tensorflow_serving/config/monitoring_config.proto and ssl_config.proto, in a pool of their own, so that protobuf's text parser
checks a file exactly as the C++ server does. A text file names fields, so the numbers only have to differ.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_BOOL, _INT64, _STRING = _Field.TYPE_BOOL, _Field.TYPE_INT64, _Field.TYPE_STRING

# Message -> (field, type, repeated); a type that is a string is a message.
_MESSAGES = {
    "BatchingParameters": (
        ("max_batch_size", "google.protobuf.Int64Value", False),
        ("batch_timeout_micros", "google.protobuf.Int64Value", False),
        ("max_enqueued_batches", "google.protobuf.Int64Value", False),
        ("num_batch_threads", "google.protobuf.Int64Value", False),
        ("thread_pool_name", "google.protobuf.StringValue", False),
        ("allowed_batch_sizes", _INT64, True),
        ("pad_variable_length_inputs", _BOOL, False),
        ("enable_large_batch_splitting", "google.protobuf.BoolValue", False),
        ("max_execution_batch_size", "google.protobuf.Int64Value", False),
    ),
    "PrometheusConfig": (("enable", _BOOL, False), ("path", _STRING, False)),
    "MonitoringConfig": (("prometheus_config", "tensorflow.serving.PrometheusConfig", False),),
    "SSLConfig": (
        ("server_key", _STRING, False),
        ("server_cert", _STRING, False),
        ("custom_ca", _STRING, False),
        ("client_verify", _BOOL, False),
    ),
}


def _classes() -> dict:
    file = descriptor_pb2.FileDescriptorProto(
        name="dlrm_tf/serving_config.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, start=1):
            entry = message.field.add(name=field, number=number)
            entry.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if isinstance(kind, str):
                entry.type, entry.type_name = _Field.TYPE_MESSAGE, "." + kind
            else:
                entry.type = kind
    # Not the default pool: a program that has the real protos compiled in must not clash with these.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving." + name)) for name in _MESSAGES}


_CLASSES = _classes()
BatchingParameters = _CLASSES["BatchingParameters"]
MonitoringConfig = _CLASSES["MonitoringConfig"]
SSLConfig = _CLASSES["SSLConfig"]
