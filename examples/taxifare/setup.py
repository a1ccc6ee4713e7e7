"""The package that a training job installs; TensorFlow comes with the job's runtime."""

from setuptools import setup

setup(
    name="trainer",
    version="0.1",
    description="Guesses taxi fares: the taxi-fare lab's trainer",
    packages=["trainer"],
    python_requires=">=3.10",
)
