"""Hostile REST input: malformed and oversize bodies, slow and silent clients, many connections; others are served as before."""

import gzip
import json
import socket
import zlib

import numpy as np
import pytest
import urllib3
from hostile import FUZZ, assert_no_defect
from hypothesis import example, given
from hypothesis import strategies as st
from serving_models import config_text, model
from waiting import eventually

from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer

ROW = {"dense": [0.25] * 13, "categorical": [1] * 26}
PREDICT = "/v1/models/dlrm:predict"


@pytest.fixture(scope="module")
def config(tmp_path_factory, linear_model, echo_model):
    """A models.config with a linear scorer and an echo."""
    config = tmp_path_factory.mktemp("hostile") / "models.config"
    config.write_text(config_text(model("dlrm", linear_model), model("echo", echo_model)))
    return str(config)


def start(config, seconds):
    options = {"rest_api_timeout_in_ms": seconds * 1000, "rest_api_max_body_bytes": 1 << 20}
    return ModelServer(model_config_file=config, rest_api_port=0, file_system_poll_wait_seconds=0, **options)


@pytest.fixture(scope="module")
def server(config):
    with start(config, 120) as server:
        yield server


@pytest.fixture(scope="module")
def hurried(config):
    """A server that ends a request, and closes a silent connection, after two seconds."""
    with start(config, 2) as server:
        yield server


@pytest.fixture(scope="module")
def pool():
    return urllib3.PoolManager(retries=False, timeout=120)


def post(pool, server, body, path=PREDICT, method="POST", **keywords):
    return pool.request(method, server.rest_target + path, body=body, **keywords)


@pytest.fixture(autouse=True)
def others_are_served_as_before(server, pool, caplog):
    body = json.dumps({"instances": [ROW]}).encode()
    expected = post(pool, server, body).data
    yield
    response = post(pool, server, body)
    assert response.status == 200 and response.data == expected
    assert_no_defect(caplog)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.just({"b64": "AA=="})
    | st.fixed_dictionaries({"b64": st.text(max_size=4)})
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=12
)
INPUTS = st.fixed_dictionaries({"text": VALUES, "number": VALUES})


@FUZZ
@given(st.binary(max_size=100), st.sampled_from(["predict", "classify", "regress"]))
def test_any_bytes(server, pool, body, call):
    assert post(pool, server, body, f"/v1/models/dlrm:{call}").status == 400


@FUZZ
@given(
    st.fixed_dictionaries(
        {}, optional={"instances": VALUES | st.lists(INPUTS, max_size=3), "inputs": VALUES | INPUTS, "signature_name": VALUES}
    )
    | VALUES,
    st.sampled_from(["echo", "dlrm"]),
)
def test_any_json(server, pool, document, model):
    response = post(pool, server, json.dumps(document).encode(), f"/v1/models/{model}:predict")
    assert response.status in (200, 400)
    answer = json.loads(response.data)
    assert set(answer) <= {"error", "outputs", "predictions"}


@FUZZ
@given(st.fixed_dictionaries({"examples": VALUES | st.lists(VALUES, max_size=3)}, optional={"context": VALUES}))
@example({"examples": [{"x": True}]})
def test_any_examples(server, pool, document):
    response = post(pool, server, json.dumps(document).encode(), "/v1/models/dlrm:regress")
    assert response.status == 400 and json.loads(response.data)["error"]


@FUZZ
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "FOO"]),
    st.lists(
        st.sampled_from(
            ["v1", "models", "dlrm", "versions", "labels", "metadata", "1", "99999999999999999999", "..", "%2e", "", "%"]
        )
        | st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/?#%"), max_size=5),
        max_size=7,
    ),
    st.sampled_from(["", ":predict", ":classify", ":", "?x=1", ":predict?y"]),
)
def test_any_route(server, pool, method, parts, tail):
    response = post(pool, server, None, "/" + "/".join(parts) + tail, method)
    assert response.status in (200, 400, 404, 405)


@pytest.mark.parametrize("opening", [b"[", b'{"inputs":', b'{"instances": [' + b"["])
def test_deep_json(server, pool, opening):
    for depth in (40, 300, 5_000, 300_000 // len(opening)):
        response = post(pool, server, opening * depth)
        assert response.status == 400
    nested = b"[" * 200 + b"1" + b"]" * 200
    assert post(pool, server, b'{"inputs": {"text": "a", "number": ' + nested + b"}}", "/v1/models/echo:predict").status == 400


def connect(server):
    return socket.create_connection((server.options.host, server.rest_api_port), timeout=120)


def closed_by_server(connection):
    """What the server sent until it closed the connection."""
    said = b""
    while True:
        try:
            piece = connection.recv(4096)
        except ConnectionResetError:
            return said
        if not piece:
            return said
        said += piece


@pytest.mark.slow
def test_silent_and_slow_clients_are_disconnected(hurried):
    head = b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\n"
    connections = [connect(hurried) for _ in range(3)]
    connections[1].sendall(head)
    connections[2].sendall(head + b"Content-Length: 100\r\n\r\n{")
    replies = [closed_by_server(connection) for connection in connections]
    assert replies[0] == b""
    assert replies[2].startswith(b"HTTP/1.1 504")
    for connection in connections:
        connection.close()


def test_a_client_that_goes_away_in_the_middle(server):
    for tail in (b"", b"Content-Length: 1000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"):
        for _ in range(20):
            with connect(server) as connection:
                connection.sendall(b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\n" + tail)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01" + b"\x00" * 100,
        b"nonsense\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/models/dlrm HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    ],
)
def test_malformed_http(server, raw):
    with connect(server) as connection:
        try:
            connection.sendall(raw)
        except (BrokenPipeError, ConnectionResetError):
            return
        said = closed_by_server(connection)
    assert said == b"" or int(said.split()[1]) in (400, 413, 414, 431), said[:200]


@pytest.mark.parametrize(
    "encoding, body, status",
    [
        ("br", b"abcd", 415),
        ("zstd", b"abcd", 415),
        ("gzip, gzip", b"abcd", 415),
        ("deflate", b"abcd", 400),
        ("gzip", b"abcd", 400),
        ("gzip", b"", 400),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-1], 400),
        ("deflate", zlib.compress(b"{}")[:-1], 400),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"abcd", 400),
        ("gzip", gzip.compress(bytes(2 << 20), mtime=0), 413),
    ],
)
def test_a_body_that_does_not_decompress_is_an_error_in_json(server, pool, encoding, body, status):
    response = post(pool, server, body, headers={"Content-Encoding": encoding})
    assert response.status == status and set(json.loads(response.data)) == {"error"}


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "deflate", "identity"])
def test_bodies_are_decompressed(server, pool, encoding):
    body = json.dumps({"instances": [ROW] * 5000}).encode()
    assert 1 << 19 < len(body) < 1 << 20
    half = len(body) // 2
    packed = {"deflate": zlib.compress(body), "identity": body}.get(
        encoding, gzip.compress(body[:half], 9) + gzip.compress(body[half:], 0)
    )
    response = post(pool, server, packed, headers={"Content-Encoding": encoding})
    assert response.data == post(pool, server, body).data and len(json.loads(response.data)["predictions"]) == 5000


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400 + ".0"])
def test_a_number_too_large_for_a_double_is_refused_and_the_literals_are_not(server, pool, number):
    predict = json.dumps({"instances": [{**ROW, "dense": ["X"] * 13}]}).replace('"X"', "X")
    for call, body in (("predict", predict), ("regress", f'{{"examples": [{{"x": [{", ".join("X" * 13)}]}}]}}')):
        path = f"/v1/models/dlrm:{call}"
        for literal in ("NaN", "Infinity", "-Infinity"):
            response = post(pool, server, body.replace("X", literal), path)
            assert (response.status == 200) == (call == "predict") and b"too big" not in response.data
        response = post(pool, server, body.replace("X", "Infinity", 12).replace("X", number), path)
        assert response.status == 400 and "Number too big to be stored in double" in json.loads(response.data)["error"]


def test_an_endless_chunked_body_is_cut_at_the_limit(server):
    with connect(server) as connection:
        connection.sendall(b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(100):
                connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # cut while still sending
        assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 413"


@pytest.mark.slow
def test_thousands_of_idle_connections_do_not_keep_others_waiting_and_are_closed(server, hurried):
    connections = []
    try:
        for _ in range(1000):
            connections += [connect(server), connect(hurried)]
        with Client(server.rest_target, retries=0) as client, Client(server.target, retries=0) as over_grpc:
            dense, categorical = np.full((2, 13), 0.25), np.ones((2, 26), np.int32)
            np.testing.assert_array_equal(client.score(dense, categorical), over_grpc.score(dense, categorical))
        eventually(lambda: len(server._http._idle_since) >= 1000)
        eventually(lambda: len(hurried._http._idle_since) <= 100)
    finally:
        for connection in connections:
            connection.close()


def test_large_bodies_together_are_bounded(server):
    """Five bodies of the largest size wait half sent: four are held, the fifth is told to come again."""
    body, held = b" " * ((1 << 20) - 10), []
    for n in range(1, 6):
        connection = connect(server)
        connection.sendall(b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n" % len(body) + body + b"\r\n")
        held.append(connection)
        if n < 5:
            eventually(lambda n=n: server._http._buffered_bytes == n * len(body))
    assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 429"
    for connection in held:
        connection.close()
    eventually(lambda: server._http._buffered_bytes == 0)
