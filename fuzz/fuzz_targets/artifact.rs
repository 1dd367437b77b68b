//! Any bytes as an artifact, as a program, and as the text of one: an error or a model, never a crash.
#![no_main]

use infc_artifact::container::{Artifact, Reader, Requirements, Variant};
use infc_artifact::program::{Program, Step};
use infc_artifact::{decode::decode, encode::encode, parse::parse};
use infc_runtime::{Model, Options, Session, Tensor, Value};
use libfuzzer_sys::fuzz_target;

/// Every symbolic dim of the inputs that are tried.
const DIM: i64 = 3;
/// Programs that need more memory are not run.
const LIMIT: i64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    if let Ok(reader) = Reader::open(data) {
        let _ = reader.check_constants();
        let _ = infc_runtime::variant::choose(reader.requirements(), None);
    }
    let _ = Model::from_bytes(data);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(program) = parse(text)
    {
        assert_eq!(decode(&encode(&program)).as_ref(), Ok(&program));
        load(&program);
    }
    if let Ok(program) = decode(data) {
        assert_eq!(encode(&program), data);
        load(&program);
    }
});

/// Loads a program with right digests around it, and runs it if it has no machine code.
fn load(program: &Program) {
    let _ = program.to_string();
    let requirements = Requirements::default();
    let variant = Variant { requirements, program: encode(program), code: vec![0xc3; 64], host_code: vec![] };
    let bytes = Artifact { variants: &[variant], constants: &[&[7; 256]], ..Artifact::default() }.to_bytes();
    let Ok(model) = Model::from_bytes(&bytes) else { return };
    let symbols = vec![(0, DIM); program.symbols.len()];
    let sizes = program.buffers.iter().map(|b| &b.bytes).chain(program.inputs.iter().flat_map(|p| &p.dims));
    let small = sizes.map(|s| s.range(&symbols)).all(|r| r.is_some_and(|(low, high)| low >= 0 && high <= LIMIT));
    let scratch = program.kernels.iter().all(|k| k.scratch <= LIMIT as u64);
    if !(small && scratch && program.arena.unwrap_or(0) <= LIMIT as u64 && plain(&program.steps)) {
        return;
    }
    let Ok(mut session) = Session::new(model, Options::default()) else { return };
    for (i, port) in program.inputs.iter().enumerate() {
        let dims: Vec<i64> = port.dims.iter().map(|d| d.eval(&vec![DIM; symbols.len()]).unwrap_or(0)).collect();
        if dims.iter().fold(1i64, |a, &d| a.saturating_mul(d)) > LIMIT {
            return;
        }
        if port.is_host() {
            for value in values(&dims) {
                let _ = session.set_value(i, value);
            }
        } else {
            let _ = session.input_mut(i, &dims);
        }
    }
    if session.run().is_ok() {
        for i in 0..program.outputs.len() {
            let _ = session.value(i);
            if program.outputs[i].is_host() {
                continue;
            }
            let sum: u64 = session.output(i).unwrap().bytes.iter().map(|&b| u64::from(b)).sum();
            std::hint::black_box(sum);
        }
    }
}

/// Values of which one may be what an input of the host takes.
fn values(dims: &[i64]) -> Vec<Value> {
    let dims: Vec<usize> = dims.iter().map(|&d| d.max(0) as usize).collect();
    let words = ["1", "a b", ""].map(|w| w.as_bytes().to_vec().into());
    let strings = Tensor::from_strings(dims.clone(), words.into_iter().cycle().take(dims.iter().product())).map(Value::Tensor);
    let floats = Value::from(Tensor::from_floats(vec![2], &[1.5, -2.0]).unwrap());
    let mut all = vec![Value::Optional(None), Value::Map(vec![]), Value::Sequence(vec![]), floats.clone(), Value::Sequence(vec![floats])];
    all.extend(strings);
    all
}

/// No machine code, no loop that may take for ever.
fn plain(steps: &[Step]) -> bool {
    steps.iter().all(|step| match step {
        Step::Copy { .. } | Step::Bind { .. } | Step::Require { .. } | Step::Host { .. } => true,
        Step::If { then, otherwise, .. } => plain(then) && plain(otherwise),
        Step::Launch { .. } | Step::Loop { .. } | Step::HostLaunch { .. } | Step::ToHost { .. } | Step::ToDevice { .. } => false,
    })
}
