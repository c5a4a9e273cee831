"""Looks for public names that the documentation site does not have: python documented.py SITE/objects.inv."""

import importlib
import inspect
import sys
from pathlib import Path

from sphinx.util.inventory import InventoryFile

ROOMS = ("data", "estimators", "evaluation", "functional", "importing", "models", "nnx", "quantizers")

with Path(sys.argv[1]).open("rb") as file:
    inventory = InventoryFile.load(file, "", lambda base, path: path)
documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
found, missing = 0, []
for room in ROOMS:
    module = importlib.import_module(f"vqjax.{room}")
    for name, value in vars(module).items():
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not value.__module__.startswith("vqjax") or (room == "nnx" and value.__module__ != module.__name__):
            continue
        found += 1
        if not {f"vqjax.{room}.{name}", f"{value.__module__}.{value.__name__}"} & documented:
            missing.append(f"vqjax.{room}.{name}")
if missing or found < 150:
    sys.exit(f"error: {len(missing)} of {found} public names are not on the site: {', '.join(missing)}")
print(f"all {found} public names are on the site")
