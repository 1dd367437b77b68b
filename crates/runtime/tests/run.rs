//! Sessions on hand-made artifacts: results, errors, state, control flow, threads, memory.

mod kit;

use infc_artifact::program::*;
use infc_runtime::{ErrorKind, Model, Options, Session, TensorRef};
use kit::*;

fn session(program: &Program) -> Session {
    Session::new(Model::from_bytes(&file(program)).unwrap(), Options::default()).unwrap()
}

/// Sets `f32` inputs, runs, returns the `f32` outputs.
fn run(session: &mut Session, inputs: &[(&str, &[i64], &[f32])]) -> Result<Vec<Vec<f32>>, String> {
    for (name, dims, values) in inputs {
        session.set_input(*name, TensorRef::of(dims, values)).map_err(|e| e.to_string())?;
    }
    session.run().map_err(|e| e.to_string())?;
    let outputs = 0..session.model().outputs().len();
    Ok(outputs.map(|i| session.output(i).unwrap().values::<f32>().unwrap().to_vec()).collect())
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32 * 0.37 - 5.0).collect()
}

/// What `affine` computes.
fn affine_of(x: &[f32], bias: &[f32]) -> Vec<f32> {
    let dot = |row: &[f32]| row.iter().enumerate().fold(0.0f32, |sum, (j, v)| sum + v * (j as f32 + 0.5));
    x.chunks(8).zip(bias).map(|(row, b)| dot(row) + b).collect()
}

#[test]
fn runs_from_file_and_memory_with_changing_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("affine.infc");
    std::fs::write(&path, file(&affine())).unwrap();
    let model = Model::open(&path).unwrap();
    assert_eq!(model.inputs()[0].to_string(), "f32[n, 8]");
    assert_eq!((model.constants_bytes(), model.manifest()), (32, &b"how it was made"[..]));
    let mut mapped = Session::new(model, Options { profile: true, ..Options::default() }).unwrap();
    let mut owned = session(&affine());
    for n in [1, 5, 3, 3, 100, 0, 2] {
        let (x, bias) = (ramp(8 * n), ramp(n));
        let dims = [n as i64, 8];
        let inputs = [("x", &dims[..], &x[..]), ("bias", &dims[..1], &bias[..])];
        let expected = vec![affine_of(&x, &bias)];
        assert_eq!(run(&mut mapped, &inputs).unwrap(), expected);
        assert_eq!(run(&mut owned, &inputs).unwrap(), expected);
        assert_eq!(mapped.output("y").unwrap().dims, [n as i64]);
    }
    assert_eq!(mapped.times()[0].calls, 7);
    assert!(mapped.memory().arena >= 400 && mapped.memory().constants == 32);
}

#[test]
fn threads_do_not_change_bits() {
    let model = Model::from_bytes(&file(&affine())).unwrap();
    let (x, bias) = (ramp(8 * 1000), ramp(1000));
    for (threads, spin_us) in [(1, 1000), (2, 20), (3, 1000), (3, 0), (7, 0), (7, 1000)] {
        let mut session = Session::new(model.clone(), Options { threads: Some(threads), spin_us, profile: false }).unwrap();
        for n in [1000usize, 1, 2, 999] {
            let dims = [n as i64, 8];
            for _ in 0..20 {
                let outputs = run(&mut session, &[("x", &dims, &x[..8 * n]), ("bias", &dims[..1], &bias[..n])]).unwrap();
                assert_eq!(outputs[0], affine_of(&x[..8 * n], &bias[..n]), "{threads} threads");
            }
        }
    }
}

#[test]
fn sessions_move_between_threads_and_share_a_model() {
    let model = Model::from_bytes(&file(&affine())).unwrap();
    let (x, bias) = (ramp(80), ramp(10));
    let work = |mut session: Session| {
        let outputs = run(&mut session, &[("x", &[10, 8], &x), ("bias", &[10], &bias)]).unwrap();
        assert_eq!(outputs[0], affine_of(&x, &bias));
        session
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let session = Session::new(model.clone(), Options { threads: Some(2), ..Options::default() }).unwrap();
            let session = scope.spawn(|| work(session)).join().unwrap();
            scope.spawn(|| work(session));
        }
    });
}

#[test]
fn wrong_inputs_are_named() {
    let mut s = session(&affine());
    let x = ramp(16);
    let mut check = |input: (&str, TensorRef), expected: &str| {
        let error = s.set_input(input.0, input.1).and_then(|()| s.run()).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Input, expected));
    };
    check(("z", TensorRef::of(&[2, 8], &x)), "there is no input 'z'; the model has 'x', 'bias'");
    check(("x", TensorRef::of(&[16], &x)), "input 0 'x': expected f32[n, 8], given f32[16]");
    check(("x", TensorRef::of(&[2, 8], &[0i32; 16])), "input 0 'x': expected f32[n, 8], given i32[2, 8]");
    check(("x", TensorRef::of(&[2, 7], &x)), "input 0 'x': f32[2, 7] takes 56 bytes, given 64");
    check(("x", TensorRef::of(&[-2, 8], &x)), "input 0 'x': [-2, 8] is no shape");
    check(("x", TensorRef::of(&[i64::MAX, 8], &x)), "input 0 'x': [9223372036854775807, 8] is no shape");
    check(("x", TensorRef::of(&[2, 8], &x)), "input 1 'bias' has no value: set it (f32[n]) before the run");
    check(("bias", TensorRef::of(&[3], &x[..3])), "input 1 'bias': expected f32[n], given f32[3]: dim 0 is 3, not 2 (n)");
    check(("x", TensorRef::of(&[4, 4], &x)), "input 0 'x': expected f32[n, 8], given f32[4, 4]: dim 1 is 4, not 8");
    assert_eq!(s.output(0).unwrap_err().to_string(), "output 0 'y' has no value: run the model first");
    assert_eq!(s.output("q").unwrap_err().to_string(), "there is no output 'q'; the model has 'y'");
    assert_eq!(s.output(1).unwrap_err().kind(), ErrorKind::Output);
}

#[test]
fn memory_of_the_caller() {
    let mut s = session(&affine());
    let (x, bias, mut y) = (ramp(24), ramp(3), vec![0u8; 12]);
    let inputs = [(0, TensorRef::of(&[3, 8], &x)), (1, TensorRef::of(&[3], &bias))];
    s.run_with(&inputs, &mut [(0, &mut y)]).unwrap();
    let values: Vec<f32> = y.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!((values, s.output_dims(0).unwrap()), (affine_of(&x, &bias), &[3i64][..]));
    assert_eq!(s.output(0).unwrap_err().to_string(), "output 0 'y' is in the memory that was given for it");
    let error = s.run_with(&inputs, &mut [(0, &mut y[..8])]).unwrap_err();
    assert_eq!(error.to_string(), "output 0 'y' needs 12 bytes, 8 were given");
    let error = s.run_with(&[(2, inputs[0].1)], &mut []).unwrap_err();
    assert_eq!(error.to_string(), "there is no input 2; the model has 2");
    let odd = [0u64; 13];
    let odd = TensorRef::of(&[1], &odd).bytes;
    let value = TensorRef { bytes: &odd[1..97], ..inputs[0].1 };
    let error = s.run_with(&[(0, value)], &mut []).unwrap_err();
    assert_eq!(error.to_string(), "the memory given for input 'x' is not aligned to 4 bytes, as f32 needs");
    // The session's own inputs serve again.
    s.input_mut("x", &[1, 8]).unwrap().fill(0);
    s.input_mut("bias", &[1]).unwrap().copy_from_slice(&2.5f32.to_le_bytes());
    assert_eq!(run(&mut s, &[]).unwrap(), [[2.5]]);
}

#[test]
fn state_goes_from_run_to_run() {
    let mut s = session(&sum());
    assert_eq!((s.model().inputs()[0].state, s.model().outputs()[0].state), (Some(0), Some(0)));
    // `n` comes from `x`, since `h` starts as zeros.
    assert_eq!(run(&mut s, &[("x", &[2], &[1.0, 2.0])]).unwrap(), [[1.0, 2.0]]);
    assert_eq!(run(&mut s, &[]).unwrap(), [[2.0, 4.0]]);
    assert_eq!(run(&mut s, &[("x", &[2], &[0.5, 0.0])]).unwrap(), [[2.5, 4.0]]);
    let error = run(&mut s, &[("x", &[1], &[0.5])]).unwrap_err();
    assert_eq!(error, "input 1 'x': expected f32[n], given f32[1]: dim 0 is 1, not 2 (n)");
    s.reset();
    assert_eq!(run(&mut s, &[]).unwrap(), [[0.5]]);
    assert_eq!(run(&mut s, &[("h", &[1], &[10.0])]).unwrap(), [[10.5]]);
    assert_eq!(run(&mut s, &[]).unwrap(), [[11.0]]);
    // Memory of the caller becomes state too.
    let mut y = 0f32.to_le_bytes();
    let mut aligned = [0u8; 8];
    let start = aligned.as_ptr().align_offset(4);
    s.run_with(&[], &mut [(0, &mut aligned[start..start + 4])]).unwrap();
    y.copy_from_slice(&aligned[start..start + 4]);
    assert_eq!(f32::from_le_bytes(y), 11.5);
    assert_eq!(run(&mut s, &[]).unwrap(), [[12.0]]);
    // Setting the state takes back the output.
    s.set_input("h", TensorRef::of(&[1], &[0.0f32])).unwrap();
    assert!(s.output(0).is_err());

    let mut alone = sum();
    alone.inputs[1].dims = vec![c(2)];
    alone.buffers[1].bytes = c(8);
    let error = run(&mut session(&alone), &[("x", &[2], &[1.0, 2.0])]).unwrap_err();
    assert_eq!(error, "input 0 'h' (f32[n]) cannot start as zeros, since nothing tells 'n': set it before the first run");
}

#[test]
fn state_in_place() {
    let program = Program {
        inputs: vec![port("h", vec![c(2)], 0)],
        outputs: vec![port("h2", vec![c(2)], 0)],
        buffers: vec![buffer(c(8), Place::State(0))],
        steps: vec![launch("bump", &[0], vec![c(1)], c(2))],
        states: vec![(0, 0)],
        arena: Some(0),
        ..Program::default()
    };
    let mut s = session(&program);
    assert_eq!(run(&mut s, &[]).unwrap(), [[1.0, 1.0]]);
    assert_eq!(run(&mut s, &[]).unwrap(), [[2.0, 2.0]]);
    assert_eq!(run(&mut s, &[("h", &[2], &[5.0, 6.0])]).unwrap(), [[6.0, 7.0]]);
    assert_eq!(run(&mut s, &[]).unwrap(), [[7.0, 8.0]]);
    s.reset();
    assert_eq!(run(&mut s, &[]).unwrap(), [[1.0, 1.0]]);
}

/// `x: f32[n]`; `if x[0] < 10 { y = x + 1 } else { copy }`.
#[test]
fn branches() {
    let copy = Step::Copy { from: at(0), to: at(1), bytes: n(4) };
    let program = Program {
        inputs: vec![port("x", vec![Size::symbol(0)], 0)],
        outputs: vec![port("y", vec![Size::symbol(0)], 1)],
        symbols: vec![symbol("n", 0, 0)],
        buffers: vec![buffer(n(4), Place::Input(0)), buffer(n(4), Place::Output(0)), arena(c(1), 0, 1)],
        steps: vec![
            launch("less", &[0, 2], vec![c(10)], c(1)),
            Step::If {
                cond: at(2),
                then: vec![launch("plus", &[0, 1], vec![c(1)], Size::symbol(0))],
                otherwise: vec![copy, launch("bump", &[1], vec![c(100)], c(1))],
            },
            launch("bump", &[1], vec![c(1000)], c(1)),
        ],
        ..Program::default()
    };
    let mut s = session(&program);
    assert_eq!(run(&mut s, &[("x", &[2], &[1.0, 20.0])]).unwrap(), [[1002.0, 21.0]]);
    assert_eq!(run(&mut s, &[("x", &[2], &[11.0, 20.0])]).unwrap(), [[1111.0, 20.0]]);
}

/// `y = x; for i in 0..5 while y[0] < 10 { y[0] += i }`.
#[test]
fn loops() {
    let i = SymbolSource::Step;
    let program = Program {
        inputs: vec![port("x", vec![c(1)], 0)],
        outputs: vec![port("y", vec![c(1)], 1)],
        symbols: vec![Symbol { name: "i".into(), source: i }],
        buffers: vec![buffer(c(4), Place::Input(0)), buffer(c(4), Place::Output(0)), arena(c(1), 1, 4)],
        steps: vec![
            Step::Copy { from: at(0), to: at(1), bytes: c(4) },
            launch("less", &[1, 2], vec![c(10)], c(1)),
            Step::Loop {
                counter: 0,
                count: c(5),
                cond: Some(at(2)),
                body: vec![launch("bump", &[1], vec![Size::symbol(0)], c(1)), launch("less", &[1, 2], vec![c(10)], c(1))],
                apart: false,
            },
        ],
        ..Program::default()
    };
    let mut s = session(&program);
    for (x, y) in [(0.0, 10.0), (-10.0, 0.0), (8.0, 11.0), (50.0, 50.0), (0.0, 10.0)] {
        assert_eq!(run(&mut s, &[("x", &[1], &[x])]).unwrap(), [[y]], "from {x}");
    }
}

/// `for i in 0..n { t = x[i] + 1; u = t + 10; guard t; y[i] = t + u }`, in which `t` and `u` are buffers of two elements inside of the loop.
fn rounds(n: i64) -> Program {
    let slice = |buffer| View { buffer, offset: Size(vec![SizeOp::Symbol(0), SizeOp::Const(8), SizeOp::Mul]) };
    let step = |kernel: &str, buffers: Vec<View>, extents| {
        let Step::Launch { kernel, .. } = launch(kernel, &[], vec![], c(2)) else { unreachable!("a launch") };
        Step::Launch { kernel, buffers, extents, tasks: c(2) }
    };
    let message = |node: &str| Message { node: node.into(), text: "is negative".into() };
    Program {
        inputs: vec![port("x", vec![c(2 * n)], 0)],
        outputs: vec![port("y", vec![c(2 * n)], 1)],
        symbols: vec![Symbol { name: "i".into(), source: SymbolSource::Step }],
        buffers: vec![
            buffer(c(8 * n), Place::Input(0)),
            buffer(c(8 * n), Place::Output(0)),
            arena(c(8), 1, 4),
            arena(c(8), 2, 4),
        ],
        steps: vec![Step::Loop {
            counter: 0,
            count: c(n),
            cond: None,
            body: vec![
                step("plus", vec![slice(0), at(2)], vec![c(1)]),
                step("plus", vec![at(2), at(3)], vec![c(10)]),
                step("guard", vec![at(2)], vec![]),
                step("add", vec![at(2), at(3), slice(1)], vec![]),
            ],
            apart: true,
        }],
        messages: vec![message("Guard 'g'")],
        ..Program::default()
    }
}

#[test]
fn rounds_that_are_apart_run_on_all_threads() {
    for n in [1, 2, 3, 8, 100] {
        let model = Model::from_bytes(&file(&rounds(n))).unwrap();
        let x: Vec<f32> = (0..2 * n).map(|i| i as f32).collect();
        let want = vec![x.iter().map(|x| (x + 1.0) + (x + 11.0)).collect::<Vec<f32>>()];
        for threads in [1, 2, 3, 7] {
            let options = Options { threads: Some(threads), profile: true, ..Options::default() };
            let mut s = Session::new(model.clone(), options).unwrap();
            for _ in 0..20 {
                assert_eq!(run(&mut s, &[("x", &[2 * n], &x)]).unwrap(), want, "{n} rounds, {threads} threads");
            }
            let calls: Vec<u64> = s.times().iter().map(|t| t.calls).collect();
            let each = 20 * n as u64;
            assert_eq!(calls, [20, each, each, each, each], "{n} rounds, {threads} threads");
            // The first thread's part of the arena, and a copy for each other one if there are rounds for all.
            assert!(s.memory().arena >= 16, "{:?}", s.memory());
            // What goes wrong is told of the first round in which it does.
            let mut bad = x.clone();
            bad[n as usize] = -5.0;
            assert_eq!(run(&mut s, &[("x", &[2 * n], &bad)]).unwrap_err(), "Guard 'g': is negative");
            assert_eq!(run(&mut s, &[("x", &[2 * n], &x)]).unwrap(), want);
        }
    }
}

#[test]
fn a_round_that_leaves_a_buffer_is_an_error() {
    // The output has room for fewer rounds than there are.
    let mut program = rounds(8);
    let Step::Loop { count, body, .. } = &mut program.steps[0] else { unreachable!("a loop") };
    *count = c(10);
    // Slices are so far apart that the first one that is not inside begins behind the end: at the end itself, which is a place, a kernel would read what lies there.
    for step in body {
        let Step::Launch { buffers, .. } = step else { unreachable!("a launch") };
        for op in buffers.iter_mut().flat_map(|view| &mut view.offset.0) {
            if *op == SizeOp::Const(8) {
                *op = SizeOp::Const(24);
            }
        }
    }
    for threads in [1, 2] {
        let options = Options { threads: Some(threads), ..Options::default() };
        let mut s = Session::new(Model::from_bytes(&file(&program)).unwrap(), options).unwrap();
        let told = run(&mut s, &[("x", &[16], &[1.0; 16])]).unwrap_err();
        assert!(told.starts_with("step ") && told.contains("bytes"), "{told}");
    }
}

/// The positive elements of `x: f32[n]`, their number known only at run time; then each plus that number.
fn positive(bound: Size) -> Program {
    Program {
        inputs: vec![port("x", vec![Size::symbol(0)], 0)],
        outputs: vec![port("y", vec![Size::symbol(1)], 1)],
        symbols: vec![symbol("n", 0, 0), Symbol { name: "k".into(), source: SymbolSource::Step }],
        buffers: vec![
            buffer(n(4), Place::Input(0)),
            buffer(Size(vec![SizeOp::Symbol(1), SizeOp::Const(4), SizeOp::Mul]), Place::Output(0)),
            arena(c(8), 0, 1),
            arena(n(4), 0, 3),
        ],
        steps: vec![
            launch("positive", &[0, 2, 3], vec![Size::symbol(0)], c(1)),
            Step::Bind { symbol: 1, from: at(2), bound },
            Step::Require { left: Size::symbol(1), right: c(3), or_one: true, code: 1 },
            launch("plus", &[3, 1], vec![Size::symbol(1)], Size::symbol(1)),
        ],
        messages: vec![
            Message { node: "Never 'a' (opset 1)".into(), text: "not this".into() },
            Message { node: "Add 'b' (opset 14)".into(), text: "shapes do not broadcast".into() },
        ],
        ..Program::default()
    }
}

#[test]
fn sizes_that_depend_on_data() {
    let mut s = session(&positive(Size::symbol(0)));
    assert_eq!(run(&mut s, &[("x", &[5], &[1.0, -1.0, 2.0, 3.0, -4.0])]).unwrap(), [[4.0, 5.0, 6.0]]);
    assert_eq!(run(&mut s, &[("x", &[2], &[1.0, -1.0])]).unwrap(), [[2.0]]);
    let error = run(&mut s, &[("x", &[2], &[1.0, 1.0])]).unwrap_err();
    assert_eq!(error, "Add 'b' (opset 14): shapes do not broadcast (2 and 3)");
    let mut s = session(&positive(c(1)));
    let error = run(&mut s, &[("x", &[2], &[1.0, 1.0])]).unwrap_err();
    assert_eq!(error, "step 1: the size 'k' is 2, which is not in 0..=1");
}

/// Without a bound, buffers get their memory when their size is known.
#[test]
fn sizes_without_a_bound() {
    let mut program = positive(c(i64::MAX));
    // A value in between that depends on it too.
    program.buffers.push(arena(Size(vec![SizeOp::Symbol(1), SizeOp::Const(4), SizeOp::Mul]), 3, 4));
    program.steps.splice(
        2..,
        [
            launch("plus", &[3, 4], vec![Size::symbol(1)], Size::symbol(1)),
            Step::Copy { from: at(4), to: at(1), bytes: Size(vec![SizeOp::Symbol(1), SizeOp::Const(4), SizeOp::Mul]) },
        ],
    );
    program.buffers[4].place = Place::Arena { first: 2, last: 3, offset: None };
    let mut s = session(&program);
    for k in [2usize, 100, 0, 3, 70] {
        let x: Vec<f32> = (0..k).map(|i| i as f32 + 1.0).chain([-1.0]).collect();
        let expected: Vec<f32> = (0..k).map(|i| (i + k) as f32 + 1.0).collect();
        assert_eq!(run(&mut s, &[("x", &[k as i64 + 1], &x)]).unwrap(), [expected]);
    }
    let mut y = [0u64; 4];
    // Safety: plain bytes.
    let y = unsafe { std::slice::from_raw_parts_mut(y.as_mut_ptr().cast::<u8>(), 32) };
    let x = [1.0f32; 9];
    s.run_with(&[(0, TensorRef::of(&[8], &x[..8]))], &mut [(0, &mut *y)]).unwrap();
    assert_eq!(f32::from_le_bytes(y[28..].try_into().unwrap()), 9.0);
    let error = s.run_with(&[(0, TensorRef::of(&[9], &x))], &mut [(0, y)]).unwrap_err();
    assert_eq!(error.to_string(), "the memory given for an output has 32 bytes, it needs 36");
}

#[test]
fn failed_checks_name_the_node_whatever_the_threads() {
    let message = |i: u32| Message { node: format!("Gather 'g{i}' (opset 13)"), text: "index out of range".into() };
    let program = Program {
        inputs: vec![port("x", vec![c(100)], 0)],
        buffers: vec![buffer(c(400), Place::Input(0))],
        steps: vec![launch("guard", &[0], vec![], c(100))],
        messages: (0..9).map(message).collect(),
        arena: Some(0),
        ..Program::default()
    };
    let model = Model::from_bytes(&file(&program)).unwrap();
    for threads in [1, 2, 3] {
        let mut s = Session::new(model.clone(), Options { threads: Some(threads), ..Options::default() }).unwrap();
        let mut x = [1.0f32; 100];
        run(&mut s, &[("x", &[100], &x)]).unwrap();
        (x[35], x[72], x[99]) = (-1.0, -1.0, -1.0);
        let error = run(&mut s, &[("x", &[100], &x)]).unwrap_err();
        assert_eq!(error, "Gather 'g3' (opset 13): index out of range");
        (x[35], x[72]) = (1.0, 1.0);
        let error = run(&mut s, &[("x", &[100], &x)]).unwrap_err();
        assert_eq!(error, "step 0: kernel 'guard' failed with unknown code 9");
    }
}

/// Offsets that follow from data cannot leave a buffer.
#[test]
fn offsets_are_checked_while_running() {
    let mut program = positive(Size::symbol(0));
    let past = View { buffer: 3, offset: Size(vec![SizeOp::Symbol(1), SizeOp::Const(8), SizeOp::Mul]) };
    program.steps[3] = Step::Copy { from: past, to: at(1), bytes: c(4) };
    let error = run(&mut session(&program), &[("x", &[3], &[1.0, 2.0, 3.0])]).unwrap_err();
    assert_eq!(error, "step 3: bytes 24..+4 of buffer 3, which has 12");
}

/// As in a concatenation along axis 1 of nothing along axis 0.
#[test]
fn parts_of_what_is_empty_are_empty() {
    let bytes = || Size(vec![SizeOp::Symbol(0), SizeOp::Const(4), SizeOp::Mul]);
    let part = |buffer: u32| View { buffer, offset: c(4) };
    let program = Program {
        inputs: vec![port("x", vec![Size::symbol(0)], 0)],
        outputs: vec![port("y", vec![Size::symbol(0)], 1)],
        symbols: vec![Symbol { name: "n".into(), source: SymbolSource::Input { input: 0, axis: 0 } }],
        buffers: vec![buffer(bytes(), Place::Input(0)), buffer(bytes(), Place::Output(0))],
        steps: vec![Step::Copy { from: part(0), to: part(1), bytes: c(0) }],
        ..Program::default()
    };
    assert_eq!(run(&mut session(&program), &[("x", &[0], &[])]), Ok(vec![vec![]]));
}

/// Subnormal results and operands are zeros (on RISC-V, which has no such mode: numbers are rounded up); and the bits that arithmetic sets by itself.
#[cfg(target_arch = "x86_64")]
const FLUSH: u64 = 0x9fc0;
#[cfg(target_arch = "aarch64")]
const FLUSH: u64 = 1 << 24;
#[cfg(target_arch = "riscv64")]
const FLUSH: u64 = 3;
const FLAGS: u64 = if cfg!(target_arch = "x86_64") { 0x3f } else { 0 };

/// Sets the control register of floating-point arithmetic of this thread; what it was.
fn set_float_mode(new: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let (mut old, new) = (0u32, new as u32);
        // Safety: stores the register to one variable and loads it from another.
        unsafe { std::arch::asm!("stmxcsr [{}]", "ldmxcsr [{}]", in(reg) &mut old, in(reg) &new) };
        old.into()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let old: u64;
        // Safety: reads and writes a register.
        unsafe { std::arch::asm!("mrs {}, fpcr", "msr fpcr, {}", out(reg) old, in(reg) new) };
        old
    }
    #[cfg(target_arch = "riscv64")]
    {
        let old: u64;
        // Safety: writes the register and gives what was in it.
        unsafe { std::arch::asm!("fsrm {}, {}", out(reg) old, in(reg) new) };
        old
    }
}

#[test]
fn the_float_environment_of_the_caller_does_not_matter() {
    let program = Program {
        inputs: vec![port("x", vec![c(8)], 0)],
        outputs: vec![port("y", vec![c(8)], 1)],
        buffers: vec![buffer(c(32), Place::Input(0)), buffer(c(32), Place::Output(0))],
        steps: vec![launch("tiny", &[0, 1], vec![], c(8))],
        arena: Some(0),
        ..Program::default()
    };
    let model = Model::from_bytes(&file(&program)).unwrap();
    let before = set_float_mode(FLUSH);
    let mut s = Session::new(model, Options { threads: Some(2), ..Options::default() }).unwrap();
    let outputs = run(&mut s, &[("x", &[8], &[1e-20; 8])]).unwrap();
    let after = set_float_mode(before);
    assert!(outputs[0].iter().all(|v| v.to_bits() != 0), "{outputs:?}");
    assert_eq!(after & !FLAGS, FLUSH, "the caller's setting is back");
}
