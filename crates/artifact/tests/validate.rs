//! Each way in which a program can contradict itself, and the words for it.

use infc_artifact::program::*;

fn c(value: i64) -> Size {
    Size::constant(value)
}

fn view(buffer: u32, offset: i64) -> View {
    View { buffer, offset: c(offset) }
}

/// `y = f(x)` through an arena buffer, one symbol `n`, one constant.
fn good() -> Program {
    let port = |name: &str, buffer| Port { name: name.into(), dtype: 1, element: 4, dims: vec![Size::symbol(0)], buffer };
    let four_n = Size(vec![SizeOp::Const(4), SizeOp::Symbol(0), SizeOp::Mul]);
    let buffer = |bytes: &Size, place| Buffer { bytes: bytes.clone(), place };
    Program {
        inputs: vec![port("x", 0)],
        outputs: vec![port("y", 1)],
        symbols: vec![
            Symbol { name: "n".into(), source: SymbolSource::Input { input: 0, axis: 0 } },
            Symbol { name: "i".into(), source: SymbolSource::Step },
        ],
        buffers: vec![
            buffer(&four_n, Place::Input(0)),
            buffer(&four_n, Place::Output(0)),
            buffer(&c(64), Place::Constant(128)),
            buffer(&c(100), Place::Arena { first: 0, last: 1, offset: Some(0) }),
            buffer(&c(64), Place::Arena { first: 2, last: 2, offset: Some(64) }),
        ],
        kernels: vec![Kernel { name: "f".into(), entry: 16, scratch: 0 }],
        steps: vec![
            Step::Launch {
                kernel: 0,
                buffers: vec![view(0, 0), view(2, 0), view(3, 0)],
                extents: vec![Size::symbol(0)],
                tasks: c(1),
            },
            Step::Launch { kernel: 0, buffers: vec![view(3, 0), view(1, 0)], extents: vec![], tasks: Size::symbol(0) },
            Step::Loop { counter: 1, count: c(3), cond: None, body: vec![], apart: false },
        ],
        messages: vec![Message { node: "F 'f'".into(), text: "wrong".into() }],
        states: vec![(0, 0)],
        arena: Some(128),
        threads: None,
        slots: vec![],
        host_kernels: vec![],
    }
}

/// `y = g(s)`, a tensor of `n` strings to numbers, by way of a constant and a temporary.
fn host() -> Program {
    let slot = |ty, place| Slot { ty, place };
    let text = |dim| HostType::Tensor(8, vec![dim]);
    Program {
        inputs: vec![Port { name: "s".into(), dtype: 8, element: 0, dims: vec![Size::symbol(0)], buffer: 0 }],
        outputs: vec![
            Port { name: "y".into(), dtype: 1, element: 4, dims: vec![Size::symbol(0)], buffer: 0 },
            Port { name: "z".into(), dtype: 0, element: 0, dims: vec![], buffer: 3 },
        ],
        symbols: vec![Symbol { name: "n".into(), source: SymbolSource::Input { input: 0, axis: 0 } }],
        buffers: vec![Buffer { bytes: Size(vec![SizeOp::Const(4), SizeOp::Symbol(0), SizeOp::Mul]), place: Place::Output(0) }],
        slots: vec![
            slot(text(None), SlotPlace::Input(0)),
            slot(text(Some(1)), SlotPlace::Constant { offset: 8, bytes: 20 }),
            slot(HostType::Map(7, Box::new(HostType::Any(1))), SlotPlace::Temp),
            slot(HostType::Sequence(Box::new(HostType::Optional(Box::new(text(None))))), SlotPlace::Output(1)),
        ],
        steps: vec![
            Step::Host {
                routine: "StringConcat".into(),
                attributes: vec![],
                inputs: vec![Some(HostValue::Slot(0)), None, Some(HostValue::Slot(1))],
                outputs: vec![HostValue::Slot(2)],
                code: 0,
            },
            Step::Host {
                routine: "Cast".into(),
                attributes: vec![1, 0xff],
                inputs: vec![Some(HostValue::Slot(2))],
                outputs: vec![HostValue::Tensor { dtype: 1, dims: vec![Size::symbol(0)], view: view(0, 0) }, HostValue::Slot(3)],
                code: 0,
            },
        ],
        messages: vec![Message { node: "G 'g'".into(), text: "fails".into() }],
        ..Program::default()
    }
}

#[test]
fn values_of_the_host() {
    host().validate(0, 28).unwrap();
    let text = host().to_string();
    assert_eq!(infc_artifact::parse::parse(&text), Ok(host()), "{text}");
    assert_eq!(host().host_nodes(), ["G 'g'"]);
    let check = |change: fn(&mut Program), expected: &str| {
        let mut program = host();
        change(&mut program);
        assert_eq!(program.validate(0, 28).expect_err(expected).to_string(), expected);
    };
    fn values(p: &mut Program, step: usize) -> (&mut Vec<Option<HostValue>>, &mut Vec<HostValue>) {
        let Step::Host { inputs, outputs, .. } = &mut p.steps[step] else { panic!("a host step") };
        (inputs, outputs)
    }
    check(|p| p.inputs[0].buffer = 9, "input 0 's': there is no slot 9");
    check(|p| p.inputs[0].buffer = 2, "input 0 's': slot 2 is not the place of this port");
    check(|p| p.inputs[0].dims = vec![], "input 0 's': slot 0 holds string[?], which is another type");
    check(|p| p.inputs[0].dtype = 1, "input 0 's': elements have no such width");
    check(|p| p.slots[0].place = SlotPlace::Temp, "input 0 's': slot 0 is not the place of this port");
    check(|p| p.slots[2].place = SlotPlace::Input(0), "slot 2: input 0 is another value");
    check(|p| p.slots[2].place = SlotPlace::Output(0), "slot 2: output 0 is another value");
    check(|p| p.slots[1].place = SlotPlace::Constant { offset: 9, bytes: 20 }, "slot 1: it is not in 28 bytes of constants");
    check(
        |p| p.slots[1].place = SlotPlace::Constant { offset: u64::MAX, bytes: 20 },
        "slot 1: it is not in 28 bytes of constants",
    );
    check(|p| p.slots[2].ty = HostType::Map(99, Box::new(HostType::Any(1))), "slot 2: its type has an unknown element type");
    check(|p| p.buffers[0].place = Place::Input(0), "output 0 'y': buffer 0 is not the memory of this output");
    check(|p| p.buffers.push(Buffer { bytes: c(4), place: Place::Input(0) }), "buffer 1: there is no input 0 with memory");
    check(|p| p.states = vec![(0, 0)], "state 0: a value of the host cannot be state");
    check(|p| values(p, 0).0[0] = Some(HostValue::Slot(4)), "step 0: there is no slot 4");
    check(|p| values(p, 0).1[0] = HostValue::Slot(1), "step 0: it writes slot 1, which is only read");
    check(|p| values(p, 0).1[0] = HostValue::Slot(0), "step 0: it writes slot 0, which is only read");
    check(
        |p| values(p, 1).1[0] = HostValue::Tensor { dtype: 8, dims: vec![], view: view(0, 0) },
        "step 1: a buffer has no elements of type 8",
    );
    check(|p| values(p, 1).1[0] = HostValue::Tensor { dtype: 1, dims: vec![], view: view(1, 0) }, "step 1: there is no buffer 1");
    check(
        |p| values(p, 1).1[0] = HostValue::Tensor { dtype: 1, dims: vec![Size::symbol(7)], view: view(0, 0) },
        "step 1: a size uses a symbol that does not exist",
    );
    check(|p| p.messages.clear(), "step 0: there is no message 0");
}

fn check(change: impl FnOnce(&mut Program), expected: &str) {
    let mut program = good();
    change(&mut program);
    let error = program.validate(32, 192).expect_err(expected).to_string();
    assert_eq!(error, expected);
}

#[test]
fn a_good_program_passes() {
    good().validate(32, 192).unwrap();
    let text = good().to_string();
    for part in [
        "input 0 \"x\" f32[n] @0",
        "buffer @0 input 0, bytes 4 * n",
        "launch 0 \"f\" (@0, @2, @3) [n] tasks 1",
        "for i below 3 {",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn ports_and_symbols() {
    check(|p| p.inputs[0].dtype = 99, "input 0 'x': unknown element type 99");
    check(|p| p.inputs[0].element = 8, "input 0 'x': elements have no such width");
    check(|p| p.inputs[0].dims = vec![Size::symbol(1)], "input 0 'x': a dim is known only while the program runs");
    check(|p| p.inputs[0].dims = vec![Size::symbol(2)], "input 0 'x': a size uses a symbol that does not exist");
    check(|p| p.inputs[0].buffer = 1, "input 0 'x': buffer 1 is not the memory of this input");
    check(|p| p.outputs[0].buffer = 9, "output 0 'y': buffer 9 is not the memory of this output");
    check(|p| p.symbols[0].source = SymbolSource::Input { input: 0, axis: 1 }, "symbol 'n': there is no axis 1 of input 0");
    check(|p| p.states[0] = (1, 0), "state 0: no such output or input");
    check(|p| p.states.push((0, 0)), "state 1: an output or input is in two states");
    check(|p| p.outputs[0].dtype = 6, "state 0: 'y' and 'x' differ in element type");
}

#[test]
fn buffers_and_kernels() {
    check(|p| p.buffers[2].place = Place::Constant(129), "buffer 2: it is not in 192 bytes of constants");
    check(|p| p.buffers[2].bytes = Size::symbol(0), "buffer 2: it is not in 192 bytes of constants");
    check(|p| p.buffers[3].bytes = c(-1), "buffer 3: its size is negative");
    check(|p| p.threads = Some(1025), "threads: at most 1024 can be asked for");
    check(|p| p.buffers[3].bytes = c(129), "buffer 3: it is not in 128 bytes of arena");
    check(
        |p| p.buffers[4].place = Place::Arena { first: 2, last: 3, offset: Some(0) },
        "buffer 4: its life 2..=3 is not in 3 steps",
    );
    check(|p| p.buffers[4].place = Place::Arena { first: 2, last: 2, offset: Some(8) }, "buffer 4: its place is not aligned");
    check(
        |p| p.buffers[4].place = Place::Arena { first: 2, last: 2, offset: None },
        "buffer 4: it has no place in an arena of known size",
    );
    check(
        |p| p.buffers[4].place = Place::Arena { first: 1, last: 2, offset: Some(64) },
        "buffer 4: it overlaps buffer 3 while both live",
    );
    check(|p| p.buffers[4].place = Place::Input(1), "buffer 4: there is no input 1 with memory");
    check(|p| p.kernels[0].entry = 32, "kernel 0 'f': entry 0x20 is not in 32 bytes of code");
}

#[test]
fn steps() {
    let put = |step: Step| move |p: &mut Program| p.steps[2] = step;
    let launch = |kernel, v| Step::Launch { kernel, buffers: vec![v], extents: vec![], tasks: c(1) };
    let copy = |from, to, bytes| Step::Copy { from, to, bytes: c(bytes) };
    check(put(launch(1, view(0, 0))), "step 2: there is no kernel 1");
    check(put(launch(0, view(5, 0))), "step 2: there is no buffer 5");
    check(put(launch(0, view(2, 65))), "step 2: it uses bytes that buffer 2 does not have");
    check(put(launch(0, view(2, -1))), "step 2: it uses bytes that buffer 2 does not have");
    check(put(launch(0, view(3, 0))), "step 2: it uses buffer 3, which lives only in steps 0..=1");
    check(put(copy(view(4, 0), view(2, 0), 8)), "step 2: it copies into memory that is only read");
    check(put(copy(view(4, 0), view(4, 4), 8)), "step 2: it copies between ranges that overlap");
    check(put(copy(view(4, 0), view(1, 0), -8)), "step 2: it uses bytes that buffer 4 does not have");
    check(put(Step::Bind { symbol: 0, from: view(4, 0), bound: c(1) }), "step 2: symbol 0 cannot be set by a step");
    check(put(Step::Bind { symbol: 1, from: view(4, 60), bound: c(1) }), "step 2: it uses bytes that buffer 4 does not have");
    check(put(Step::Require { left: c(1), right: c(1), or_one: false, code: 1 }), "step 2: there is no message 1");
    check(put(Step::Require { left: Size(vec![]), right: c(1), or_one: false, code: 0 }), "step 2: a size is not one expression");
    let body = vec![launch(0, view(4, 0))];
    check(
        put(Step::Loop { counter: 1, count: c(2), cond: None, body, apart: false }),
        "step 3: it uses buffer 4, which lives only in steps 2..=2",
    );
    let whole = "step 2: a loop whose rounds are apart has a condition, or other steps than launches";
    let apart = |cond, body| Step::Loop { counter: 1, count: c(2), cond, body, apart: true };
    check(put(apart(Some(view(2, 0)), vec![])), whole);
    check(put(apart(None, vec![copy(view(2, 0), view(1, 0), 4)])), whole);
    let deep = (0..40).fold(vec![], |body, _| vec![Step::Loop { counter: 1, count: c(2), cond: None, body, apart: false }]);
    check(|p| p.steps[2..].clone_from_slice(&deep), "step 35: steps nest too deeply");
}

#[test]
fn the_parts_of_the_constants_that_a_program_uses() {
    let at = |offset, bytes| Buffer { bytes: c(bytes), place: Place::Constant(offset) };
    let ty = HostType::Any(8);
    let slot = Slot { ty, place: SlotPlace::Constant { offset: 300, bytes: 7 } };
    let buffers = vec![at(128, 64), at(0, 0), at(64, 64), at(150, 10), at(0, 32), at(0, 32)];
    let program = Program { buffers, slots: vec![slot], ..Program::default() };
    assert_eq!(program.constants(), [(0, 32), (64, 128), (300, 7)]);
    assert_eq!(Program::default().constants(), []);
}

/// `y = g(f(x))` with `f` on a device and `g` on the CPU beside it.
fn beside() -> Program {
    let mut p = good();
    p.host_kernels = vec![Kernel { name: "g".into(), entry: 8, scratch: 0 }];
    let Step::Launch { buffers, .. } = &p.steps[1] else { panic!("a launch") };
    let (buffers, tasks) = (buffers.clone(), Size::symbol(0));
    p.steps[1] = Step::HostLaunch { kernel: 0, buffers, extents: vec![], tasks, code: 0 };
    p.steps[2] = Step::ToDevice { buffer: 1 };
    p.steps.insert(1, Step::ToHost { buffer: 3 });
    p.buffers[3].place = Place::Arena { first: 0, last: 2, offset: Some(0) };
    p.buffers[4].place = Place::Arena { first: 3, last: 3, offset: Some(0) };
    p
}

#[test]
fn launches_beside_a_device() {
    let good = beside();
    good.validate_beside(64, 16, 192).unwrap();
    assert_eq!(infc_artifact::parse::parse(&good.to_string()), Ok(good.clone()), "{good}");
    assert_eq!(infc_artifact::decode::decode(&infc_artifact::encode::encode(&good)), Ok(good.clone()));
    let seed = include_str!("../../../fuzz/seeds/artifact/beside.txt");
    let seed = infc_artifact::parse::parse(seed).expect("the seed of the fuzz target");
    seed.validate_beside(1, 1, 0).unwrap();
    assert_eq!(infc_artifact::decode::decode(&infc_artifact::encode::encode(&seed)), Ok(seed));
    assert_eq!(good.host_nodes(), ["F 'f'"]);
    let sides = good.sides();
    assert_eq!(sides.device, [true, false, true, true, false]);
    assert_eq!((sides.host, sides.copied), (vec![false, true, false, true, false], vec![false, true, false, true, false]));
    let check = |change: fn(&mut Program), expected: &str| {
        let mut program = beside();
        change(&mut program);
        assert_eq!(program.validate_beside(64, 16, 192).expect_err(expected).to_string(), expected);
    };
    fn launch(p: &mut Program) -> (&mut u32, &mut Vec<View>, &mut u32) {
        let Step::HostLaunch { kernel, buffers, code, .. } = &mut p.steps[2] else { panic!("a launch on the host") };
        (kernel, buffers, code)
    }
    check(|p| *launch(p).0 = 1, "step 2: there is no kernel 1 of the host");
    check(|p| launch(p).1[0].buffer = 9, "step 2: there is no buffer 9");
    check(|p| launch(p).1[0].buffer = 4, "step 2: it uses buffer 4, which lives only in steps 3..=3");
    check(|p| *launch(p).2 = 1, "step 2: there is no message 1");
    check(|p| p.steps[1] = Step::ToHost { buffer: 9 }, "step 1: there is no buffer 9");
    check(|p| p.steps[1] = Step::ToHost { buffer: 4 }, "step 1: it uses buffer 4, which lives only in steps 3..=3");
    let both = "step 1: it copies memory that is only read, which both sides have";
    check(|p| p.steps[1] = Step::ToDevice { buffer: 0 }, both);
    check(|p| p.steps[1] = Step::ToHost { buffer: 2 }, both);
    check(|p| p.host_kernels[0].entry = 16, "kernel of the host 0 'g': entry 0x10 is not in 16 bytes of code");
    let text = good.validate(64, 192).expect_err("no code of the host").to_string();
    assert_eq!(text, "kernel of the host 0 'g': entry 0x8 is not in 0 bytes of code");
}

#[test]
fn programs_without_steps_beside_a_device_keep_their_bytes() {
    use infc_artifact::{decode::decode, encode::encode};
    let (plain, two) = (encode(&good()), encode(&beside()));
    assert_eq!((plain[0], two[0]), (3, 4));
    // Neither form is taken for the other one.
    let with = |bytes: &[u8], version: u8| decode(&[&[version][..], &bytes[1..]].concat());
    assert!(with(&plain, 4).is_err() && with(&[&plain[..], &[0]].concat(), 4).is_err() && with(&two, 3).is_err());
    assert!(with(&plain, 5).unwrap_err().what.contains("newer"));
}
