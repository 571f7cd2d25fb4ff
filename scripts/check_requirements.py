"""Says whether this Python satisfies requirements files: exit 0; 1 and what is missing; 3 when Python itself is too old.

    python scripts/check_requirements.py requirements.txt requirements-dev.txt

Reads what is installed; no network. Must run on any Python, also one that is too old for the rest of the project.
"""

import sys

OLDEST = (3, 10)


def read(path):
    """Requirement lines of a file, those of files it includes with -r first."""
    lines = []
    with open(path) as file:
        for line in file:
            line = line.split("#")[0].strip()
            if line.startswith("-r "):
                folder = path.rpartition("/")[0]
                lines += read((folder + "/" if folder else "") + line[3:].strip())
            elif line:
                lines.append(line)
    return lines


def main(paths):
    if sys.version_info < OLDEST:
        print("Python {}.{}, needs {}.{} or newer".format(*(sys.version_info[:2] + OLDEST)))
        return 3
    import contextlib  # not in Python 2
    import importlib
    from importlib import metadata

    requirement_class = None
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        with contextlib.suppress(ImportError):
            requirement_class = requirement_class or importlib.import_module(module).Requirement
    if requirement_class is None:
        print("pip is missing")
        return 1
    missing = []
    for line in dict.fromkeys(line for path in paths for line in read(path)):
        requirement = requirement_class(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(line)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            missing.append(line + " (is " + version + ")")
    print("missing: " + ", ".join(missing) if missing else "satisfied")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
