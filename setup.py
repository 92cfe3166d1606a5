from setuptools import setup

setup(
    packages=["dive", "dive.data", "dive.demo", "dive.lexicon", "dive.metrics", "dive.kernels"],
    package_dir={"dive": "dive", "dive.kernels": "kernels"},
)
