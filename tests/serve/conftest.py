"""Base paths of small SavedModels."""

import pytest
from serving_models import Echo, ExampleModel, LinearScorer, save


@pytest.fixture
def save_linear(tmp_path):
    """Function `(version, bias=None, model="dlrm") -> base path`; the bias is the version unless given."""

    def make(version, bias=None, model="dlrm"):
        base = tmp_path / model
        base.mkdir(exist_ok=True)
        module = LinearScorer(int(version) if bias is None else bias)
        save(module, str(base / str(version)), serving_default=module.predict)
        return str(base)

    return make


@pytest.fixture(scope="session")
def echo_model(tmp_path_factory):
    """Base path of `Echo` as version 1: signatures `serving_default` and `root`."""
    base = tmp_path_factory.mktemp("echo")
    module = Echo()
    save(module, str(base / "1"), serving_default=module.echo, root=module.root)
    return str(base)


@pytest.fixture(scope="session")
def example_model(tmp_path_factory):
    """Base path of `ExampleModel` as version 3: signatures `classify`, `scores_only`, `regress`."""
    base = tmp_path_factory.mktemp("example")
    module = ExampleModel()
    methods = (("classify", "classify"), ("scores_only", "classify"), ("regress", "regress"))
    signatures = {name: getattr(module, name) for name, _ in methods}
    save(module, str(base / "3"), methods, serving_default=module.classify, **signatures)
    return str(base)
