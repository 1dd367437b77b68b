"""The compiler from Python: options, places of its program, errors, and `load`."""

import os
import pickle
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import infc
import numpy as np
from kit import EXAMPLES, FOLDER, stored, trained

DIGITS = EXAMPLES / "digits_mlp" / "model.onnx"


class Compile(unittest.TestCase):
    def test_options(self):
        path = infc.compile(DIGITS, FOLDER / "options.infc", target="cranelift-x86-64", dims={"batch": 3}, threads=2, math="f32")
        self.assertEqual(path, str(FOLDER / "options.infc"))
        with infc.Model(path, variant="cranelift-x86-64") as model:
            self.assertEqual(model.inputs[0].dims, (3, 64))

    def test_the_output_has_a_name(self):
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                self.assertEqual(infc.compile(DIGITS), "model.infc")
                self.assertTrue(Path("model.infc").exists())
            finally:
                os.chdir(before)
        with self.assertRaises(ValueError):
            infc.compile(DIGITS.read_bytes())
        with self.assertRaises(ValueError):
            infc.compile(DIGITS, args=["--emit=ir"])
        infc.compile(DIGITS, FOLDER / "graph.txt", args=["--emit=ir"])
        self.assertTrue((FOLDER / "graph.txt").read_text().startswith("graph "))

    def test_errors_are_the_compilers(self):
        for call, text in (
            (lambda: infc.compile(FOLDER / "none.onnx", FOLDER / "x.infc"), "none.onnx"),
            (lambda: infc.compile(b"no model", FOLDER / "x.infc"), "model.onnx"),
            (lambda: infc.compile(DIGITS, FOLDER / "x.infc", target="abacus"), "abacus"),
            (lambda: infc.compile(DIGITS, FOLDER / "x.infc", dims={"depth": 3}), "depth"),
            (lambda: infc.compile(DIGITS, FOLDER / "x.infc", args=["--no-such"]), "--no-such"),
        ):
            with self.assertRaises(infc.CompileError) as caught:
                call()
            self.assertIn(text, str(caught.exception))
            self.assertFalse(str(caught.exception).startswith("error"))
            self.assertIsNone(caught.exception.status)
            self.assertEqual(str(pickle.loads(pickle.dumps(caught.exception))), str(caught.exception))
        self.assertFalse((FOLDER / "x.infc").exists())

    def test_what_runs(self):
        found = infc.compiler()
        with mock.patch.dict(os.environ, {"INFC": found}):
            self.assertEqual(infc.compiler(), found)
        with mock.patch.dict(os.environ, {"INFC": "/no/infc"}):
            with self.assertRaisesRegex(infc.CompileError, "INFC=/no/infc"):
                infc.compiler()
        with mock.patch.dict(os.environ, {"INFC": "", "PATH": os.path.dirname(found)}):
            self.assertEqual(os.path.basename(infc.compiler()), "infc")
        with mock.patch.dict(os.environ, {"INFC": "", "PATH": ""}), mock.patch("infc._compile._installed", lambda: []):
            with self.assertRaisesRegex(infc.CompileError, "nor on PATH"):
                infc.compiler()


class Load(unittest.TestCase):
    def test_models_and_artifacts(self):
        (_, given), (_, expected) = stored("digits_mlp", 0)
        artifact = trained("digits_mlp")
        for source in (DIGITS, str(DIGITS), DIGITS.read_bytes(), artifact, Path(artifact).read_bytes()):
            logits = infc.load(source).session().run({"input": given})["logits"]
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
        self.assertEqual(infc.load(DIGITS, dims={"batch": 2}).inputs[0].dims, (2, 64))
        self.assertIn(repr(str(DIGITS)), repr(infc.load(DIGITS)))

    def test_nothing_is_left_behind(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(tempfile, "tempdir", folder):
            infc.load(DIGITS)
            infc.load(DIGITS.read_bytes())
            self.assertEqual(os.listdir(folder), [])

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "dims cannot be chosen any more"):
            infc.load(trained("digits_mlp"), dims={"batch": 2})
        with self.assertRaisesRegex(ValueError, "neither .infc nor .onnx"):
            infc.load("model.pt")
        with self.assertRaises(infc.Error):
            infc.load(FOLDER / "none.infc")
        with self.assertRaises(infc.CompileError):
            infc.load(FOLDER / "none.onnx")


if __name__ == "__main__":
    unittest.main()
