"""Flags of the C++ server that change nothing here, and why: a deployment's command line is taken as it is."""

# Flag -> its type, and why nothing follows from it. What `ServerOptions` has are the other flags.
UNUSED_FLAGS: dict[str, tuple[type, str]] = {
    "num_unload_threads": (int, "a version is always unloaded on a thread of its own"),
    "flush_filesystem_caches": (bool, "the system drops pages of read files by itself"),
    "platform_config_file": (str, "there is one platform, tensorflow; the other flags configure it"),
    "remove_unused_fields_from_bundle_metagraph": (bool, "only the signatures of a meta graph are ever kept"),
    "num_tflite_interpreters_per_pool": (int, "an interpreter takes a whole batch; num_tflite_pools says how many there are"),
    "xla_cpu_compilation_enabled": (bool, "a graph that asks for XLA gets it"),
    "xla_gpu_compilation_enabled": (bool, "a graph that asks for XLA gets it"),
    "enable_profiler": (bool, "TensorFlow's Python has no ProfilerService for a server's port"),
    "thread_pool_factory_config_file": (str, "the thread pools are TensorFlow's"),
    "mixed_precision": (str, "a graph is run in the types it was saved with"),
    "skip_initialize_tpu": (bool, "there is no TPU support"),
}
