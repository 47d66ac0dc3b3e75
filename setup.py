"""What pyproject.toml cannot say: pipelines/ lies beside the package in the checkout and inside it once installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["streamcvit*"]), "streamcvit.pipelines"],
    package_dir={"streamcvit.pipelines": "pipelines"},
)
