"""One SparkContext for all tests: starting one takes seconds."""

import pytest

from dlrm_tf.data.spark.context import spark_context


@pytest.fixture(scope="session")
def context():
    with spark_context("local[2]", {"spark.driver.memory": "1g"}) as started:
        yield started
