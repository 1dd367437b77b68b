"""The part of onnxruntime's interface: the same answers, and an error for all that it lacks."""

import unittest

import infc
import infc.ort as ort
import numpy as np
from kit import EXAMPLES, F32, by_hand, model, stored, trained

DIGITS = EXAMPLES / "digits_mlp" / "model.onnx"


class Sessions(unittest.TestCase):
    def test_runs(self):
        (source, given), (target, expected) = stored("digits_mlp", 1)
        for path in (str(DIGITS), DIGITS.read_bytes(), trained("digits_mlp")):
            session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            for names in (None, [], [target]):
                (logits,) = session.run(names, {source: given})
                np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
        self.assertIs(infc.InferenceSession, ort.InferenceSession)

    def test_ports(self):
        session = ort.InferenceSession(trained("glyphs_cnn"))
        (port,) = session.get_inputs()
        self.assertEqual((port.name, port.type, port.shape), ("input", "tensor(float)", ["batch", 1, 28, 28]))
        self.assertEqual([p.name for p in session.get_outputs()], ["logits"])
        self.assertEqual(ort.InferenceSession(trained("language_gru")).get_inputs()[0].type, "tensor(int64)")
        self.assertEqual(session.get_providers(), ["CPUExecutionProvider"])

    def test_outputs_in_the_order_asked(self):
        ports = [("x", F32, ["n"])], [("a", F32, ["n"]), ("b", F32, ["n"])]
        session = ort.InferenceSession(by_hand(model(["a = Neg x", "b = Abs x"], *ports)))
        feeds = {"x": np.array([-2], np.float32)}
        self.assertEqual([y.tolist() for y in session.run(["b", "a", "b"], feeds)], [[2], [2], [2]])
        self.assertEqual([y.tolist() for y in session.run(None, feeds)], [[2], [2]])

    def test_every_input_is_needed(self):
        ports = [("x", F32, ["n"]), ("z", F32, ["n"])], [("y", F32, ["n"])]
        path, x = by_hand(model(["y = Add x z"], *ports)), np.ones(2, np.float32)
        session = ort.InferenceSession(path)
        session.run(None, {"x": x, "z": x})
        with self.assertRaisesRegex(infc.Error, "inputs are missing: z"):
            session.run(None, {"x": x})
        with_state = ort.InferenceSession(by_hand(model(["y = Add x z"], *ports), "--state", "y=z"))
        for expected in (1, 2):
            self.assertEqual(with_state.run(None, {"x": x})[0].tolist(), [expected, expected])

    def test_options(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.inter_op_num_threads = 1
        ort.InferenceSession(trained("digits_mlp"), options)
        fixed = ort.InferenceSession(DIGITS, options, dims={"batch": 2})
        self.assertEqual(fixed.get_inputs()[0].shape, [2, 64])

    def test_what_is_missing_is_an_error(self):
        path = trained("digits_mlp")
        for providers in (
            ["CUDAExecutionProvider"],
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
            [("CPUExecutionProvider", {"a": 1})],
        ):
            with self.assertRaisesRegex(NotImplementedError, "execution provider"):
                ort.InferenceSession(path, providers=providers)
        options = ort.SessionOptions()
        with self.assertRaisesRegex(NotImplementedError, "enable_profiling"):
            options.enable_profiling = True
        with self.assertRaisesRegex(NotImplementedError, "inter_op_num_threads"):
            options.inter_op_num_threads = 2
        with self.assertRaises(AttributeError):
            options.add_session_config_entry("a", "b")
        with self.assertRaises(TypeError):
            ort.InferenceSession(path, object())
        session = ort.InferenceSession(path)
        with self.assertRaisesRegex(AttributeError, "io_binding"):
            session.io_binding()
        with self.assertRaises(NotImplementedError):
            session.run(None, {}, object())
        with self.assertRaisesRegex(AttributeError, "GraphOptimizationLevel"):
            ort.GraphOptimizationLevel
        with self.assertRaisesRegex(infc.Error, "there is no output 'z'"):
            session.run(["z"], {"input": np.zeros((1, 64), np.float32)})
        with self.assertRaisesRegex(infc.Error, "expected float32, given float64"):
            session.run(None, {"input": np.zeros((1, 64))})


if __name__ == "__main__":
    unittest.main()
