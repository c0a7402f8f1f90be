"""Serve SavedModels over gRPC and REST as TensorFlow Serving does, with its flags and its answers."""

import argparse
import dataclasses
import logging
import os
import signal
import sys
import threading
from typing import Any, Optional

import dlrm_tf
from dlrm_tf.errors import require
from dlrm_tf.keras2 import any_keras_tensorflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of `ServerOptions`, with its default, and the flags of the C++ server that do nothing here."""
    options, unused = _server_options()
    for field in dataclasses.fields(options):
        flag, kind, text = f"--{field.name}", field.metadata["type"], field.metadata["help"]
        if field.default is not None and field.default is not False and field.default != "":
            text += f" (default: {str(field.default).lower()})"
        _add(parser, flag, kind, field.default, field.metadata["metavar"], text)
    _add(parser, "--version", bool, False, None, "print the versions and end")
    group = parser.add_argument_group(
        "without effect", "Known to TensorFlow Serving; one that is given is answered with a warning."
    )
    for name, (kind, why) in unused.items():
        _add(group, f"--{name}", kind, None, "VALUE", why)


def _add(parser: Any, flag: str, kind: type, default: Any, metavar: Optional[str], text: str) -> None:
    if kind is bool:
        # As TF Serving takes them: --name, --name=true, --name=false.
        parser.add_argument(flag, type=_boolean, nargs="?", const=True, default=default, metavar="BOOL", help=text)
    else:
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"wanted true or false. Received {text!r}")
    return text.lower() in ("true", "1")


def _server_options() -> tuple[Any, dict[str, tuple[type, str]]]:
    """`ServerOptions`, and the C++ server's flags that it does not have."""
    for module in ("tensorflow_serving", "grpc_health", "grpc_reflection", "aiohttp", "prometheus_client"):
        require(module, "serving")
    from dlrm_tf.serve.options import ServerOptions
    from dlrm_tf.serve.unused_flags import UNUSED_FLAGS

    return ServerOptions, UNUSED_FLAGS


def run(args: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM; prints one line on stdout once ready."""
    tensorflow = any_keras_tensorflow()  # before the protos import TensorFlow: this holds back its start-up messages
    if args.version:
        print(f"TensorFlow ModelServer: dlrm-tf {dlrm_tf.__version__}\nTensorFlow Library: {tensorflow.__version__}")
        return
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="dlrm-tf serve: %(message)s")
    options, unused = _server_options()
    fields = {field.name for field in dataclasses.fields(options)}
    for name, (_, why) in unused.items():
        if getattr(args, name) is not None:
            logging.warning("--%s has no effect: %s", name, why)
    from dlrm_tf.serve.server import ModelServer

    server = ModelServer(**{name: value for name, value in vars(args).items() if name in fields})
    stopped = threading.Event()
    failure: list[BaseException] = []
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # On a thread, as loading may take minutes or wait for a first version, and signals must end the process meanwhile.
        threading.Thread(target=_start, args=(server, failure, stopped), daemon=True).start()
        # With a timeout, because a signal delivered to one of gRPC's or TensorFlow's threads does not wake this one.
        while not stopped.wait(0.2):
            pass
        if failure:
            raise failure[0]
        if not server.stop():
            # TensorFlow still works on something, which nothing can interrupt, and would hold up or crash an orderly end.
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)
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
        where += f" rest={server.rest_target}"
    print(where, flush=True)
