"""The interpreter in which a Python revocation action runs, apart from the agent.

python -m keylime_agent.action_runner MODULE.py MESSAGE.json DIRECTORY
"""

import asyncio
import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import ModuleType


def load_module(path: Path) -> ModuleType:
    """The module in the file `path`. Raises ImportError, and whatever the module raises."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    module, document, directory = (Path(argument) for argument in sys.argv[1:])
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(name)s - %(levelname)s - %(message)s"
    )
    # Last, so that a payload's files cannot stand in for installed modules, and after these what stands in
    # for modules that actions of the field import and that are not there.
    stand_ins = Path(__file__).with_name("stand_ins")
    sys.path.extend({str(directory): None, str(module.parent): None, str(stand_ins): None})
    event = json.loads(document.read_bytes())
    asyncio.run(load_module(module).execute(event))


if __name__ == "__main__":
    main()
