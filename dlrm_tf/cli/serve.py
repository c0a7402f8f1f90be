"""Serve SavedModels over gRPC and REST, as TensorFlow Serving does; its flag names, its answers."""

import dataclasses
import logging
import signal
import sys
import threading

from dlrm_tf.errors import MissingExtraError


def add_arguments(parser):
    """Every field of `ServerOptions` that is a flag."""
    parser.add_argument("--model_name", default="default", metavar="NAME", help="name clients ask for (default: default)")
    parser.add_argument(
        "--model_base_path", metavar="DIR", help="absolute folder with one numbered folder a version, each a SavedModel"
    )
    parser.add_argument("--port", type=int, default=8500, help="TCP port of gRPC; 0 picks a free one (default: 8500)")
    parser.add_argument("--rest_api_port", type=int, help="TCP port of REST; 0 picks a free one (default: no REST)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between two looks for new versions; 0 looks only at the start (default: 1)",
    )
    parser.add_argument(
        "--max_num_load_retries", type=int, default=5, metavar="N", help="attempts more at a version that does not load"
    )
    parser.add_argument(
        "--load_retry_interval_micros", type=int, default=60_000_000, metavar="US", help="between those (default: a minute)"
    )
    parser.add_argument("--grpc_max_threads", type=int, metavar="N", help="requests worked on at a time (default: 4 a core)")
    parser.add_argument(
        "--enable_serialization_as_tensor_content", action="store_true", help="outputs as raw bytes, not in the typed field"
    )


def run(args):
    """Serves until SIGINT or SIGTERM; prints one line on stdout once ready."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="dlrm-tf serve: %(message)s")
    try:
        from dlrm_tf.serve import ModelServer, ServerOptions
    except ModuleNotFoundError as e:
        raise MissingExtraError(f"{e.name} is not installed: pip install 'dlrm_tf[serving]'") from e
    fields = {field.name for field in dataclasses.fields(ServerOptions)}
    server = ModelServer(**{name: value for name, value in vars(args).items() if name in fields})
    stopped, failure = threading.Event(), []
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # Loading may take minutes, or wait for a first version; a signal must be heard meanwhile.
        threading.Thread(target=_start, args=(server, failure, stopped), daemon=True).start()
        stopped.wait()
        if failure:
            raise failure[0]
        server.stop()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(server, failure, stopped):
    try:
        server.start()
    except BaseException as e:
        failure.append(e)
        stopped.set()
        return
    if stopped.is_set():
        return
    where = f"ready grpc={server.target}"
    if server.rest_api_port is not None:
        where += f" rest=http://{server.options.host}:{server.rest_api_port}"
    print(where, flush=True)
