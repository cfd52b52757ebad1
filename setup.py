"""Metadata, dependencies and the package map: `kernels` and `benchmarks` are installed as folders of `vit_fast`."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "vit_fast/__init__.py").read_text(), re.M)

DEMO = ["scikit-image"]
TEST = [*DEMO, "accelerate", "peft", "pytest", "pytest-benchmark", "pytest-xdist", "setuptools>=77"]
# what the suite compares with and draws with. Not timm: it needs the torchvision of the very build of torch that is
# there, and pip would choose another; it is compared where it imports.
BENCH = [
    *DEMO,
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pytest",
    "pytest-benchmark",
]
# these need the tests beside them, and so a checkout
CHECKOUT = {"gpu", "candidates", "results"}


def folders(root: str, package: str) -> dict[str, str]:
    """package -> folder: `root` and all folders in it that hold Python files and ship."""
    found = {package: root}
    for path in sorted((HERE / root).rglob("*.py")):
        inside = path.parent.relative_to(HERE / root)
        if inside.parts and inside.parts[0] not in CHECKOUT:
            found[".".join((package, *inside.parts))] = (Path(root) / inside).as_posix()
    return found


PACKAGES = {
    "vit_fast": "vit_fast",
    "vit_fast.families": "vit_fast/families",
    # not a package of its own: transformers imports a PyPI package named `kernels` when it can
    "vit_fast.kernels": "kernels",
    **folders("benchmarks", "vit_fast.benchmarks"),
}

setup(
    name="vit-fast",
    version=VERSION[1],
    description="Runs the Vision Transformers of Hugging Face transformers faster, by changing one import",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    # tuned/: measured launch configs, a file for each GPU that was measured
    package_data={"vit_fast": ["py.typed"], "vit_fast.kernels": ["tuned/*.json"]},
    include_package_data=False,
    zip_safe=False,
    entry_points={"console_scripts": ["vit-fast = vit_fast.cli:main"]},
    install_requires=[
        "numpy",
        "pillow",
        "safetensors",
        "torch>=2.8",
        "tqdm",
        "transformers>=5.17,<6",
        'triton>=3.6; platform_system == "Linux"',
    ],
    extras_require={
        "demo": DEMO,
        "bench": BENCH,
        "test": TEST,
        "dev": [*TEST, "matplotlib", "ruff"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
