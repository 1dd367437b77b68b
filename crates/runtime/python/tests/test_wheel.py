"""The wheel: names, tags, what may be executed, the list of its files, and the same bytes each time."""

import base64
import csv
import hashlib
import importlib
import sys
import unittest
import zipfile
from pathlib import Path

from infc._library import library
from kit import FOLDER

HERE = Path(__file__).resolve().parents[1]


def script(name):
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


class Wheel(unittest.TestCase):
    def test_contents(self):
        wheel, built = script("wheel"), Path(library()._name)
        # Any program will do, and the library is small.
        path = wheel.main("1.2.3", built, built, FOLDER / "wheels")
        self.assertRegex(path.name, r"^infc-1\.2\.3-py3-none-manylinux_2_\d+_(x86_64|aarch64)\.whl$")
        with zipfile.ZipFile(path) as archive:
            files = {info.filename: info for info in archive.infolist()}
            read = {name: archive.read(name) for name in files}
        executable = {name for name, info in files.items() if info.external_attr >> 16 & 0o111}
        self.assertEqual(executable, {"infc/libinfc_runtime.so", "infc-1.2.3.data/scripts/infc"})
        info = "infc-1.2.3.dist-info/"
        self.assertEqual(read["infc-1.2.3.data/scripts/infc"], built.read_bytes())
        self.assertIn(f"Tag: {path.stem.split('-', 2)[2]}\n".encode(), read[info + "WHEEL"])
        self.assertIn(b"\nVersion: 1.2.3\n", read[info + "METADATA"])
        expected = {f"infc/{file.name}" for file in (HERE / "infc").glob("*.py")} | {"infc/py.typed"}
        expected |= {info + f"licenses/{name}" for name in ("LICENSE", "LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY.txt")}
        expected |= executable | {info + name for name in ("METADATA", "WHEEL", "RECORD")}
        self.assertEqual(set(files), expected)
        others = read[info + "licenses/THIRD-PARTY.txt"].decode()
        self.assertRegex(others, r"(?m)^memmap2 [\d.]+ +(MIT OR Apache-2.0|Apache-2.0 OR MIT)$")
        self.assertIn("Permission is hereby granted", others)
        self.assertNotRegex(others, r"(?m)^infc|^proptest|^insta")
        record = {name: (digest, size) for name, digest, size in csv.reader(read[info + "RECORD"].decode().splitlines())}
        self.assertEqual(set(record), set(files))
        for name, (digest, size) in record.items():
            if name != info + "RECORD":
                right = base64.urlsafe_b64encode(hashlib.sha256(read[name]).digest()).decode().rstrip("=")
                self.assertEqual((digest, size), (f"sha256={right}", str(len(read[name]))))

        first = path.read_bytes()
        self.assertEqual(wheel.main("1.2.3", built, built, FOLDER / "wheels").read_bytes(), first)
        self.assertEqual(list((FOLDER / "wheels").iterdir()), [path])

    def test_licences(self):
        taken = script("licences").taken
        for good in ("MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-3.0) AND Unicode-3.0", "Apache-2.0 WITH LLVM-exception"):
            self.assertTrue(taken(good), good)
        for bad in ("", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Zlib) AND LGPL-2.1", "GPL-2.0 WITH Classpath-exception-2.0"):
            self.assertFalse(taken(bad), bad)


if __name__ == "__main__":
    unittest.main()
