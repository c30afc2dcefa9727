"""Imports every module of the three packages, and says how many there were; one that needs Triton, where that is not
installed, is named instead."""

import importlib
import pkgutil

import hswq_hub
import hswq_runtime
import spaces_app

names = [
    module.name
    for package in (hswq_runtime, hswq_hub, spaces_app)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith(".__main__")  # which would run
]
without_triton = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        without_triton.append(name)
print(
    f"{len(names) - len(without_triton)} modules imported",
    *(f"{name}: needs triton" for name in without_triton),
    sep="\n",
)
