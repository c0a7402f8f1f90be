"""Install truth of dlrm_tf: what it needs, and why each optional group exists (reasons and pins: BUILD_NOTES.md)."""

from setuptools import find_packages, setup

SERVING = [
    "tensorflow-serving-api>=2.20,<2.22",
    "grpcio>=1.60,<2",
    "grpcio-health-checking>=1.60,<2",
    "grpcio-reflection>=1.60,<2",
    "aiohttp>=3.10,<4",
    "urllib3>=2,<3",
    "prometheus-client>=0.20,<1",
]
LITE = ["ai-edge-litert>=2.0,<3"]
REPORT = ["matplotlib>=3.7,<4"]
# The Ascend plugin npu_device 2.6.5 (from Huawei, not on PyPI) is built against this TensorFlow; Python 3.9 is its newest.
ASCEND = ["tensorflow==2.6.5", "tensorflow-recommenders==0.6.0", "protobuf<3.21", "numpy<1.24"]
# To convert PyTorch checkpoints. Before 2.6 a crafted file could run code even with weights_only=True (CVE-2025-32434).
TORCH = ["torch>=2.6,<3"]
# The named peers of benchmarks/; everything else that they need is above.
BENCHMARKS = TORCH + ["onnx>=1.17,<2", "onnxruntime>=1.20,<2"]
TEST = ["pytest>=8,<10", "hypothesis>=6.100,<7", "ruff>=0.17,<0.18", "trustme>=1.1,<2", "pyyaml>=6,<7", "coverage>=7.10,<8"]

setup(
    name="dlrm_tf",
    version="0.1.0",
    description="MindSpore's DLRM in TensorFlow: convert, retrain, serve, score on a device",
    packages=find_packages(include=["dlrm_tf", "dlrm_tf.*"]),
    package_data={"dlrm_tf.checkpoints": ["golden/*"]},
    python_requires=">=3.9",
    install_requires=[
        # TF 2.6.5 (the Ascend plugin's) is chosen by the `ascend` extra; elsewhere the newest line measured here.
        'tensorflow>=2.21,<2.22; python_version>="3.10"',
        'tf_keras>=2.21,<2.22; python_version>="3.10"',
        'tensorflow-recommenders>=0.7.7,<0.8; python_version>="3.10"',
        'keras>=3.4,<4; python_version>="3.10"',
        # Not a dependency of TensorFlow since 2.21, but its tf.summary writes nothing without it.
        'tensorboard>=2.20,<3; python_version>="3.10"',
        "numpy>=1.19",
        "h5py>=3.1,<4",
        "absl-py>=0.15,<3",
        "tqdm>=4.60,<5",
    ],
    extras_require={
        "serving": SERVING,
        "lite": LITE,
        # `prepare --report` draws; reading and preparing data need nothing more.
        "data": REPORT,
        "report": REPORT,
        "benchmarks": BENCHMARKS + SERVING + LITE + REPORT,
        "torch": TORCH,
        "test": TEST + SERVING + LITE + REPORT,
        "ascend": ASCEND,
        "ascend-test": ASCEND + ["pytest>=8,<9", "hypothesis>=6.100,<7"],
        "all": SERVING + LITE + REPORT,
    },
    entry_points={"console_scripts": ["dlrm-tf = dlrm_tf.cli.main:entry"]},
)
