"""Install the environments of the peers: `python benches/python/peers.py install [NAME ...]`.

Each peer has its own virtual environment, because no two of them have to agree on anything but
uvloop and msgspec, whose versions `peers/base.txt` pins for all. They lie under `build/peers`, use
the interpreter that runs this script, and are built again when a requirement file changes.
"""

import argparse
import json
import shutil
import subprocess
import sys
import venv

import environments

# Prints what is installed in the environment whose interpreter runs it.
_LIST = """
import importlib.metadata, json
print(json.dumps({d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}))
"""

# What an environment holds besides what was asked for.
_TOOLS = frozenset({"pip", "setuptools"})


def install(name: str) -> None:
    """Build one environment anew, and mark it as whole."""
    folder = environments.BUILT / name
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    required = environments.REQUIREMENTS / f"{name}.txt"
    options = ["--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--requirement"]
    subprocess.run([environments.python(name), "-m", "pip", "install", *options, required], check=True)
    environments.installed_mark(name).write_text(environments.requirements(name))


def versions(name: str) -> dict[str, str]:
    """Return the packages of an installed environment, as it reports them itself."""
    command = [environments.python(name), "-c", _LIST]
    answer = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return {
        package: version for package, version in sorted(json.loads(answer).items()) if package not in _TOOLS
    }


def main() -> int:
    """Install what is asked for and not there yet, or say what there is."""
    parser = argparse.ArgumentParser(description="The peers' environments, under build/peers.")
    parser.add_argument("command", choices=("install", "list"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(environments.names())}; all if left out")
    options = parser.parse_args()
    unknown = set(options.names) - set(environments.names())
    if unknown:
        parser.error(f"no environment {', '.join(sorted(unknown))}")
    for name in options.names or environments.names():
        ready = environments.is_installed(name)
        if options.command == "install" and not ready:
            print(f"{name}: installing", flush=True)
            install(name)
            ready = True
        print(f"{name}: {'installed' if ready else 'not installed'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
