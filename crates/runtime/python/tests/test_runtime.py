"""Models and sessions: stored outputs of trained models, shapes, state, threads, memory, and every kind of error."""

import gc
import os
import pickle
import sys
import threading
import tracemalloc
import unittest
from pathlib import Path
from unittest import mock

import infc
import numpy as np
from kit import BF16, BOOL, DTYPES, EXAMPLES, F32, FOLDER, I64, TRAINED, by_hand, model, stored, trained

# s is the sum of all x so far.
SUM = model(["t = Add x s"], [("x", F32, ["n"]), ("s", F32, ["n"])], [("t", F32, ["n"])])
PICK = model(["y = Gather x i"], [("x", F32, ["n"]), ("i", I64, ["m"])], [("y", F32, ["m"])])


def identity(dtype, dims=("n", 3)):
    return model(["y = Identity x"], [("x", dtype, dims)], [("y", dtype, dims)])


def running_sum():
    return infc.Model(by_hand(SUM, "--state", "t=s"))


def resident() -> int:
    """Bytes of this process in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Trained(unittest.TestCase):
    def test_stored_outputs(self):
        for name in TRAINED:
            session = infc.Model(trained(name)).session()
            for number in (0, 1):  # another batch size
                (source, given), (target, expected) = stored(name, number)
                outputs = session.run({source: given})
                self.assertEqual(list(outputs), [target])
                self.assertEqual(outputs[target].dtype, expected.dtype)
                np.testing.assert_allclose(outputs[target], expected, rtol=1e-3, atol=1e-4)

    def test_ports(self):
        glyphs = infc.Model(trained("glyphs_cnn"))
        self.assertEqual(glyphs.inputs, (infc.Port("input", np.dtype("float32"), ("batch", 1, 28, 28)),))
        self.assertEqual(glyphs.outputs[0].dims[0], "batch")
        self.assertTrue(glyphs.variant)
        text = repr(glyphs)
        self.assertIn(f"for {glyphs.variant}", text)
        self.assertIn("input  input: float32[batch, 1, 28, 28]", text)
        self.assertIn("output logits: float32[batch, ", text)
        self.assertIn("float32[batch, 1, 28, 28]", repr(glyphs.session()))

    def test_any_batch(self):
        session = infc.Model(trained("digits_mlp")).session()
        rows = np.random.default_rng(0).random((9, 64), np.float32)
        expected = np.concatenate([session.run({"input": rows[i : i + 1]})["logits"] for i in range(9)])
        for n in (9, 3, 1, 0, 9):
            logits = session.run({"input": rows[:n]})["logits"]
            self.assertEqual(logits.shape, (n, 10))
            np.testing.assert_allclose(logits, expected[:n], rtol=1e-5, atol=1e-6)

    def test_threads_give_the_same_bits(self):
        text = np.random.default_rng(0).integers(0, 256, (64, 64))
        results = []
        for threads in (None, 1, 2, 3, 0):
            with infc.Model(trained("language_gru")).session(threads=threads, spin_us=20) as session:
                results.append(session.run({"input": text})["logits"].tobytes())
        self.assertEqual(len(set(results)), 1)

    def test_bytes(self):
        data = Path(trained("digits_mlp")).read_bytes()
        (_, given), (_, expected) = stored("digits_mlp", 0)
        name = infc.Model(data).variant
        for loaded in (infc.Model(data), infc.Model(bytearray(data)), infc.Model(memoryview(data), variant=name)):
            np.testing.assert_allclose(loaded.session().run({"input": given})["logits"], expected, rtol=1e-3, atol=1e-4)
        with self.assertRaises(infc.Error) as caught:
            infc.Model(data, variant="other")
        self.assertIn("no variant 'other'", str(caught.exception))

    def test_variants(self):
        path = FOLDER / "variants.infc"
        arm = os.uname().machine == "aarch64"
        names = ["aarch64", "aarch64-dotprod"] if arm else ["x86-64-v2", "x86-64-v3"]
        infc.compile(EXAMPLES / "digits_mlp" / "model.onnx", path, args=["--cpu", ",".join(names)])
        self.assertEqual(infc.Model(path, variant=names[0]).variant, names[0])
        self.assertEqual(infc.Model(path.read_bytes(), variant=names[0]).variant, names[0])


class Arrays(unittest.TestCase):
    def test_every_dtype(self):
        for number, name in DTYPES.items():
            opened = infc.Model(by_hand(identity(number)))
            self.assertEqual(opened.inputs[0].dtype, np.dtype(name))
            x = np.arange(-3, 3).reshape(2, 3).astype(name)
            y = opened.session().run({"x": x})["y"]
            self.assertEqual(y.dtype, x.dtype)
            np.testing.assert_array_equal(y, x)

    def test_bfloat16(self):
        path = by_hand(identity(BF16))
        with mock.patch.dict(sys.modules, {"ml_dtypes": None}):
            with self.assertRaises(infc.Error) as caught:
                infc.Model(path)
            self.assertIn("'x' is bfloat16, which numpy lacks: install the package ml_dtypes", str(caught.exception))
        import ml_dtypes

        x = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
        session = infc.Model(path).session()
        for copy in (True, False):
            y = session.run({"x": x}, copy=copy)["y"]
            self.assertEqual(y.dtype, x.dtype)
            np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))
        with self.assertRaises(infc.Error):
            session.run({"x": x.view(np.uint16)})

    def test_any_layout(self):
        session = infc.Model(by_hand(identity(F32))).session()
        base = np.arange(36, dtype=np.float32).reshape(6, 6)
        for x in (base[:, ::2], base[::-1, :3], np.asfortranarray(base[:, :3]), base[:3].T, np.broadcast_to(base[0, :3], (2, 3))):
            np.testing.assert_array_equal(session.run({"x": x})["y"], x)

    def test_scalars_and_lists(self):
        session = infc.Model(by_hand(identity(F32, ()))).session()
        for x in (np.float32(2.5), np.array(2.5, np.float32)):
            y = session.run({"x": x})["y"]
            self.assertEqual((y.shape, float(y)), ((), 2.5))
        with self.assertRaises(infc.Error):
            session.run({"x": 2.5})  # a float64
        flags = infc.Model(by_hand(identity(BOOL))).session()
        self.assertEqual(flags.run({"x": [[True, False, True]]})["y"].tolist(), [[True, False, True]])

    def test_nothing_is_cast(self):
        session = infc.Model(by_hand(identity(F32))).session()
        for dtype in ("float64", "float16", "int32", ">f4"):
            with self.assertRaises(infc.Error) as caught:
                session.run({"x": np.zeros((2, 3), dtype)})
            self.assertEqual(caught.exception.status, infc.Status.INPUT)
            self.assertIn(f"input 'x': expected float32, given {np.dtype(dtype)}", str(caught.exception))

    def test_outputs_are_copies_or_views(self):
        session = infc.Model(by_hand(identity(F32))).session()
        one, two = np.full((2, 3), 1, np.float32), np.full((2, 3), 2, np.float32)
        copied = session.run({"x": one})["y"]
        viewed = session.run({"x": one}, copy=False)["y"]
        again = session.run({"x": two}, copy=False)["y"]
        self.assertTrue((copied == 1).all() and (again == 2).all())
        self.assertTrue(np.shares_memory(viewed, again) and not np.shares_memory(copied, again))
        copied[:] = 5
        with self.assertRaises(ValueError):
            again[:] = 5
        # They outlive the session.
        session.close()
        del session
        gc.collect()
        self.assertTrue((again == 2).all())

    def test_outputs_by_name(self):
        ports = [("x", F32, ["n"])], [("a", F32, ["n"]), ("b", F32, ["n"])]
        session = infc.Model(by_hand(model(["a = Neg x", "b = Abs x"], *ports))).session()
        x = np.array([-1, 2], np.float32)
        self.assertEqual(list(session.run({"x": x})), ["a", "b"])
        self.assertEqual({k: v.tolist() for k, v in session.run({"x": x}, ["b"]).items()}, {"b": [1, 2]})
        self.assertEqual(session.run({"x": x}, []), {})

    def test_memory_of_an_input(self):
        session = infc.Model(by_hand(identity(F32))).session()
        x = session.input_memory("x", [2, 3])
        self.assertEqual((x.shape, x.dtype), ((2, 3), np.float32))
        for value in (1, 2):
            x[...] = value
            self.assertTrue((session.run()["y"] == value).all())
        # A value stays until another one is set.
        session.run({"x": np.zeros((1, 3), np.float32)})
        self.assertEqual(session.run()["y"].tolist(), [[0, 0, 0]])
        self.assertEqual(session.input_memory("x", (0, 3)).shape, (0, 3))
        with self.assertRaises(infc.Error) as caught:
            session.input_memory("x", [2])
        self.assertEqual(caught.exception.status, infc.Status.INPUT)
        for dims in ([-1, 3], [2**64, 3]):
            with self.assertRaisesRegex(infc.Error, "is no shape"):
                session.input_memory("x", dims)


class State(unittest.TestCase):
    def test_state_goes_on_until_reset(self):
        opened = running_sum()
        self.assertEqual((opened.outputs[0].state, opened.inputs[1].state), ("s", "t"))
        self.assertIn("(state: s)", repr(opened))
        session, ones = opened.session(), np.ones(3, np.float32)
        for expected in (1, 2, 3):
            self.assertEqual(session.run({"x": ones})["t"].tolist(), [expected] * 3)
        self.assertEqual(session.run({"x": ones, "s": 10 * ones})["t"].tolist(), [11] * 3)
        session.input_memory("s", [3])[:] = 20
        self.assertEqual(session.run({"x": ones})["t"].tolist(), [21] * 3)
        self.assertEqual(session.run({"x": ones}, copy=False)["t"].tolist(), [22] * 3)
        session.reset()
        self.assertEqual(session.run({"x": ones})["t"].tolist(), [1] * 3)

    def test_sessions_have_their_own(self):
        opened = running_sum()
        a, b, ones = opened.session(), opened.session(threads=2), np.ones(2, np.float32)
        a.run({"x": ones})
        a.run({"x": ones})
        self.assertEqual(b.run({"x": ones})["t"].tolist(), [1, 1])
        self.assertEqual(a.run({"x": ones})["t"].tolist(), [3, 3])


class Lives(unittest.TestCase):
    def test_in_any_order(self):
        ones = np.ones(2, np.float32)
        opened = running_sum()
        session = opened.session()
        opened.close()
        del opened
        gc.collect()
        self.assertEqual(session.run({"x": ones})["t"].tolist(), [1, 1])
        self.assertEqual(session.model.inputs[0].name, "x")
        x = session.input_memory("x", [2])
        view = session.run({"x": ones}, copy=False)["t"]
        del session
        gc.collect()
        self.assertEqual(view.tolist(), [2, 2])
        x[:] = 3
        self.assertEqual(x.tolist(), [3, 3])

    def test_context_managers(self):
        with running_sum() as opened, opened.session() as session:
            session.run({"x": np.ones(2, np.float32)})
        for call in (session.run, session.reset, session.memory, lambda: session.input_memory("x", [1]), opened.session):
            with self.assertRaises(infc.Error) as caught:
                call()
            self.assertEqual(caught.exception.status, infc.Status.USAGE)
        self.assertIn("closed", repr(session))
        session.close()
        opened.close()

    def test_a_session_of_several_threads(self):
        session = infc.Model(trained("digits_mlp")).session()
        rows = np.random.default_rng(0).random((8, 64), np.float32)
        expected = [session.run({"input": rows[i : i + 1]})["logits"].tobytes() for i in range(8)]
        wrong = []

        def work(i):
            for _ in range(300):
                if session.run({"input": rows[i : i + 1]})["logits"].tobytes() != expected[i]:
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_memory_does_not_grow(self):
        opened = infc.Model(trained("digits_mlp"))
        session, x = opened.session(), np.zeros((4, 64), np.float32)

        def work(n):
            for _ in range(n):
                session.run({"input": x})
                session.run({"input": x}, copy=False)
            for _ in range(n // 20):
                opened.session().run({"input": x})
                infc.Model(trained("digits_mlp"))
                with self.assertRaises(infc.Error):
                    session.run({"input": x[0]})

        work(1000)
        gc.collect()
        memory, before = session.memory(), resident()
        tracemalloc.start()
        work(1000)
        gc.collect()
        first = tracemalloc.get_traced_memory()[0]
        work(1000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - first
        tracemalloc.stop()
        work(8000)
        gc.collect()
        self.assertLess(grown, 10_000)
        self.assertLess(resident() - before, 4_000_000)
        self.assertEqual(session.memory(), memory)
        self.assertGreater(memory.constants, 6_570 * 4 - 1)
        self.assertGreater(memory.session, 4 * 64 * 4)


class Errors(unittest.TestCase):
    def fails(self, status, text, call, *arguments, **options):
        with self.assertRaises(infc.Error) as caught:
            call(*arguments, **options)
        self.assertEqual(caught.exception.status, status, caught.exception)
        self.assertIn(text, str(caught.exception))

    def test_each_kind(self):
        junk = FOLDER / "junk.infc"
        junk.write_bytes(b"junk")
        foreign = by_hand(identity(F32), "--target", "x86-64-v3" if os.uname().machine == "aarch64" else "aarch64")
        session, x = infc.Model(by_hand(PICK)).session(), np.arange(4, dtype=np.float32)
        first, beyond = np.zeros(1, np.int64), np.full(1, 9)
        self.fails(infc.Status.IO, "not-there.infc", infc.Model, FOLDER / "not-there.infc")
        self.fails(infc.Status.ARTIFACT, "not an infc artifact", infc.Model, junk)
        self.fails(infc.Status.ARTIFACT, "", infc.Model, b"junk")
        self.fails(infc.Status.ARTIFACT, "", infc.Model, b"")
        self.fails(infc.Status.MACHINE, "", infc.Model, foreign)
        self.fails(infc.Status.INPUT, "input 0 'x' has no value", session.run)
        self.fails(infc.Status.INPUT, "there is no input 'q'; the model has 'x', 'i'", session.run, {"q": x})
        self.fails(infc.Status.INPUT, "there is no input 'q'", session.input_memory, "q", [1])
        self.fails(infc.Status.INPUT, "input 0 'x': expected f32[n], given f32[1, 4]", session.run, {"x": x[None], "i": first})
        self.fails(infc.Status.OUTPUT, "there is no output 'z'; the model has 'y'", session.run, {"x": x, "i": first}, ["z"])
        self.fails(infc.Status.RUN, "node_Gather", session.run, {"x": x, "i": beyond})
        self.fails(infc.Status.MEMORY, "", session.input_memory, "x", [2**60])
        self.fails(infc.Status.USAGE, "at most 1024", infc.Model(by_hand(PICK)).session, threads=5000)
        self.fails(infc.Status.USAGE, "threads is -1", infc.Model(by_hand(PICK)).session, threads=-1)
        self.fails(infc.Status.USAGE, "no variant 'x'", infc.Model, by_hand(PICK), "x")
        with self.assertRaisesRegex(ValueError, "zero byte"):
            infc.Model(by_hand(PICK) + "\0")
        # The session goes on.
        self.assertEqual(session.run({"x": x, "i": first})["y"].tolist(), [0])

    def test_dims_that_contradict(self):
        session = running_sum().session()
        self.fails(infc.Status.INPUT, "input 1 's'", session.run, {"x": np.ones(2, np.float32), "s": np.ones(3, np.float32)})

    def test_the_library_is_named_where_it_is_missing(self):
        from infc import _library

        with mock.patch.object(_library, "_loaded", None), mock.patch.dict(os.environ, {"INFC_RUNTIME": "/no/library.so"}):
            self.fails(infc.Status.IO, "/no/library.so", infc.Model, trained("digits_mlp"))

    def test_names(self):
        error = pickle.loads(pickle.dumps(infc.Error(infc.Status.RUN, "text")))
        self.assertEqual((str(error), error.status, type(error).__module__), ("text", infc.Status.RUN, "infc"))

    def test_version(self):
        self.assertRegex(infc.__version__, r"^\d+\.\d+\.\d+")
        with self.assertRaises(AttributeError):
            infc.nothing


if __name__ == "__main__":
    unittest.main()
