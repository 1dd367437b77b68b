//! Artifacts with host steps: values in and out, steady runs, several sessions, and what goes wrong.

mod kit;

use infc_artifact::program::*;
use infc_host::Routine;
use infc_runtime::{ErrorKind, Model, Options, Session, Tensor, TensorRef, Value};
use kit::{at, c, file, launch, port};
use std::sync::Arc;

fn text(list: &[&str]) -> Value {
    Tensor::from_strings(vec![list.len()], list.iter().map(|s| s.as_bytes().to_vec().into())).unwrap().into()
}

fn floats(values: &[f32]) -> Value {
    Tensor::from_floats(vec![values.len()], values).unwrap().into()
}

fn host(routine: &Routine, inputs: &[HostValue], outputs: &[HostValue]) -> Step {
    Step::Host {
        routine: routine.name().into(),
        attributes: routine.attributes(),
        inputs: inputs.iter().cloned().map(Some).collect(),
        outputs: outputs.to_vec(),
        code: 0,
    }
}

fn slot(ty: HostType, place: SlotPlace) -> Slot {
    Slot { ty, place }
}

fn tensor(dims: Vec<Size>, buffer: u32) -> HostValue {
    HostValue::Tensor { dtype: 1, dims, view: at(buffer) }
}

fn on_host(name: &str, dtype: u8, dims: Vec<Size>, slot: u32) -> Port {
    Port { name: name.into(), dtype, element: 0, dims, buffer: slot }
}

/// `y = number(s) + 1` with `s: string[n]`; `parts = split(s)`.
fn parse() -> Program {
    let n = Size::symbol(0);
    let string = |dims| HostType::Tensor(8, dims);
    Program {
        inputs: vec![on_host("s", 8, vec![n.clone()], 0)],
        outputs: vec![port("y", vec![n.clone()], 1), on_host("parts", 0, vec![], 1)],
        symbols: vec![kit::symbol("n", 0, 0)],
        buffers: vec![kit::arena(kit::n(4), 0, 1), kit::buffer(kit::n(4), Place::Output(0))],
        slots: vec![
            slot(string(vec![None]), SlotPlace::Input(0)),
            slot(HostType::Sequence(Box::new(string(vec![Some(1)]))), SlotPlace::Output(1)),
        ],
        steps: vec![
            host(&Routine::Cast { to: 1 }, &[HostValue::Slot(0)], &[tensor(vec![n.clone()], 0)]),
            launch("plus", &[0, 1], vec![c(1)], n),
            host(&Routine::SplitToSequence { axis: 0, keepdims: true }, &[HostValue::Slot(0)], &[HostValue::Slot(1)]),
        ],
        messages: vec![Message { node: "Cast 'parse' (opset 25)".into(), text: "fails".into() }],
        ..Program::default()
    }
}

fn open(program: &Program) -> Result<Arc<Model>, String> {
    Model::from_bytes(&file(program)).map_err(|e| e.to_string())
}

fn session(program: &Program) -> Session {
    Session::new(open(program).unwrap(), Options::default()).unwrap()
}

#[test]
fn values_go_in_and_come_out() {
    let mut s = session(&parse());
    assert_eq!(s.model().inputs()[0].to_string(), "string[n]");
    assert_eq!(s.model().outputs()[1].to_string(), "seq(string[1])");
    assert_eq!(s.model().program().host_nodes(), ["Cast 'parse' (opset 25)"]);
    for list in [&["1", "2.5"][..], &["1", "2.5"], &[], &["-4", "7", "1e3"]] {
        s.set_value("s", text(list)).unwrap();
        for _ in 0..3 {
            s.run().unwrap();
            let want: Vec<f32> = list.iter().map(|t| t.parse::<f32>().unwrap() + 1.0).collect();
            assert_eq!(s.value("y").unwrap(), floats(&want));
            assert_eq!(s.output("y").unwrap().values::<f32>().unwrap(), want);
            let parts: Vec<Value> = list.iter().map(|t| text(&[t])).collect();
            assert_eq!(s.value(1).unwrap(), Value::Sequence(parts));
        }
    }
}

#[test]
fn sessions_do_not_share_values() {
    let model = open(&parse()).unwrap();
    let run = |list: &[&str]| {
        let mut s = Session::new(model.clone(), Options::default()).unwrap();
        s.set_value(0, text(list)).unwrap();
        s.run().map(|()| s.output(0).unwrap().values::<f32>().unwrap().to_vec()).map_err(|e| e.to_string())
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|i| scope.spawn(move || (i, run(&[&i.to_string()])))).collect();
        for thread in all {
            let (i, made) = thread.join().unwrap();
            assert_eq!(made, Ok(vec![i as f32 + 1.0]));
        }
    });
    assert_eq!(run(&["one"]).unwrap_err(), "Cast 'parse' (opset 25): 'one' is no number");
}

#[test]
fn wrong_use_is_told() {
    let mut s = session(&parse());
    assert_eq!(s.run().unwrap_err().to_string(), "input 0 's' has no value: set it (string[n]) before the run");
    assert_eq!(s.value(1).unwrap_err().to_string(), "output 1 'parts' has no value: run the model first");
    let wrong = s.set_value("s", floats(&[1.0])).unwrap_err();
    assert_eq!((wrong.kind(), wrong.to_string()), (ErrorKind::Input, "input 0 's': expected string[n], given f32[1]".into()));
    let wrong = s.set_value("s", Value::Sequence(vec![])).unwrap_err().to_string();
    assert_eq!(wrong, "input 0 's': expected string[n], given a sequence of 0");
    let wrong = s.set_input("s", TensorRef::of(&[1], &[1.0f32])).unwrap_err().to_string();
    assert_eq!(wrong, "input 0 's': expected string[n], given f32[1]: set it with `set_value`");
    s.set_value("s", text(&["1"])).unwrap();
    let mut memory = [0u8; 8];
    let wrong = s.run_with(&[], &mut [(1, &mut memory)]).unwrap_err().to_string();
    assert!(wrong.contains("'parts' is seq(string[1]), which has no memory"), "{wrong}");
    s.run().unwrap();
    assert!(s.output(1).unwrap_err().to_string().contains("read it with `value`"));
    // What fails leaves no outputs, and does no harm to the next run.
    s.set_value("s", text(&["x"])).unwrap();
    s.run().unwrap_err();
    assert!(s.value(0).is_err() && s.value(1).is_err());
    s.set_value("s", text(&["4"])).unwrap();
    s.run().unwrap();
    assert_eq!(s.value(0).unwrap(), floats(&[5.0]));
}

#[test]
fn results_must_fit_their_memory() {
    let mut program = parse();
    let Step::Host { inputs, outputs, .. } = &mut program.steps[0] else { panic!("a host step") };
    *outputs = vec![tensor(vec![c(2)], 0)];
    inputs[0] = Some(HostValue::Slot(0));
    let mut s = session(&program);
    s.set_value("s", text(&["1", "2", "3"])).unwrap();
    assert_eq!(s.run().unwrap_err().to_string(), "Cast 'parse' (opset 25): its result is f32[3], f32[2] is needed");
    // A slot that nothing was put into.
    let mut program = parse();
    program.slots.push(slot(HostType::Any(8), SlotPlace::Temp));
    program.steps[0] = host(&Routine::Cast { to: 1 }, &[HostValue::Slot(2)], &[tensor(vec![Size::symbol(0)], 0)]);
    let mut s = session(&program);
    s.set_value("s", text(&["1"])).unwrap();
    assert_eq!(s.run().unwrap_err().to_string(), "Cast 'parse' (opset 25): slot 2 has no value yet");
}

#[test]
fn tampered_artifacts_are_refused() {
    let check = |change: &dyn Fn(&mut Program), expected: &str| {
        let mut program = parse();
        change(&mut program);
        let error = open(&program).map(drop).unwrap_err();
        assert!(error.starts_with("malformed: ") && error.contains(expected), "{error}");
    };
    fn step(p: &mut Program) -> (&mut String, &mut Vec<u8>, &mut Vec<Option<HostValue>>, &mut Vec<HostValue>) {
        let Step::Host { routine, attributes, inputs, outputs, .. } = &mut p.steps[0] else { panic!("a host step") };
        (routine, attributes, inputs, outputs)
    }
    check(&|p| *step(p).0 = "System".into(), "step 0, Cast 'parse' (opset 25): there is no host routine 'System'");
    check(&|p| step(p).1.clear(), "the attribute 'to' is missing");
    check(&|p| step(p).1[0] = 9, "unknown kind");
    check(&|p| step(p).2.clear(), "'Cast' with 0 operands and 1 results");
    check(&|p| step(p).3.push(HostValue::Slot(1)), "'Cast' with 1 operands and 2 results");
    check(&|p| step(p).3[0] = HostValue::Slot(0), "step 0: it writes slot 0, which is only read");
    check(&|p| step(p).2[0] = Some(HostValue::Slot(7)), "step 0: there is no slot 7");
    check(&|p| p.slots.push(slot(HostType::Any(8), SlotPlace::Constant { offset: 0, bytes: 20 })), "slot 2: there is no dtype 0");
    check(&|p| p.slots.push(slot(HostType::Any(8), SlotPlace::Constant { offset: 20, bytes: 20 })), "slot 2: it is not in");
    // Every byte of the program changed: an error or a model, and never a crash.
    let bytes = infc_artifact::encode::encode(&parse());
    for i in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[i] ^= 1 << (i % 8);
        let Ok(program) = infc_artifact::decode::decode(&changed) else { continue };
        if program.validate(1 << 20, 32).is_err() || program.kernels != parse().kernels {
            continue;
        }
        let _ = Model::from_bytes(&file(&program));
    }
}

#[test]
fn loops_and_branches_carry_values() {
    // Puts `x` into a list as often as it says, then takes the first; none at all is an error.
    let list = HostType::Sequence(Box::new(HostType::Tensor(1, vec![Some(2)])));
    let program = Program {
        inputs: vec![port("x", vec![c(2)], 0), Port { dtype: 7, element: 8, ..port("n", vec![], 1) }],
        outputs: vec![port("y", vec![c(2)], 2), on_host("all", 0, vec![], 0)],
        symbols: vec![
            Symbol { name: "n".into(), source: SymbolSource::Step },
            Symbol { name: "i".into(), source: SymbolSource::Step },
        ],
        buffers: vec![
            kit::buffer(c(8), Place::Input(0)),
            kit::buffer(c(8), Place::Input(1)),
            kit::buffer(c(8), Place::Output(0)),
            kit::buffer(c(8), Place::Constant(0)),
        ],
        slots: vec![slot(list, SlotPlace::Output(1)), slot(HostType::Tensor(7, vec![]), SlotPlace::Temp)],
        steps: vec![
            Step::Bind { symbol: 0, from: at(1), bound: c(100) },
            host(&Routine::SequenceEmpty, &[], &[HostValue::Slot(0)]),
            Step::Loop {
                counter: 1,
                count: Size::symbol(0),
                cond: None,
                body: vec![host(&Routine::SequenceInsert, &[HostValue::Slot(0), tensor(vec![c(2)], 0)], &[HostValue::Slot(0)])],
                apart: false,
            },
            host(&Routine::SequenceLength, &[HostValue::Slot(0)], &[HostValue::Slot(1)]),
            host(&Routine::ConcatFromSequence { axis: 0, new_axis: false }, &[HostValue::Slot(0)], &[tensor(vec![c(2)], 2)]),
        ],
        messages: vec![Message { node: "ConcatFromSequence 'join'".into(), text: "fails".into() }],
        ..Program::default()
    };
    let mut s = session(&program);
    s.set_input("x", TensorRef::of(&[2], &[1.5f32, 2.5])).unwrap();
    let mut run = |n: i64| {
        s.set_input("n", TensorRef::of(&[], &[n])).unwrap();
        s.run().map_err(|e| e.to_string())?;
        Ok::<_, String>((s.value(0).unwrap(), s.value(1).unwrap()))
    };
    let x = floats(&[1.5, 2.5]);
    for _ in 0..2 {
        assert_eq!(run(1), Ok((x.clone(), Value::Sequence(vec![x.clone()]))));
        assert_eq!(run(0).unwrap_err(), "ConcatFromSequence 'join': the sequence is empty, so there is nothing to join");
        assert_eq!(run(2).unwrap_err(), "ConcatFromSequence 'join': its result is f32[4], f32[2] is needed");
    }
}

#[test]
fn the_seed_of_the_fuzz_target_is_a_program_that_runs() {
    let seed = include_str!("../../../fuzz/seeds/artifact/host.txt");
    let mut s = session(&infc_artifact::parse::parse(seed).unwrap());
    s.set_value("s", text(&["a", ""])).unwrap();
    s.run().unwrap();
    assert_eq!(s.output("y").unwrap().bytes, [0, 1]);
    assert_eq!(s.value("z").unwrap().to_string(), "a sequence of 2");
}
