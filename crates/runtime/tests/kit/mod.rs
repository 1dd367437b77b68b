//! Small artifacts for the tests: kernels in C, made by the system's compiler, and programs put together by hand.
#![allow(dead_code, reason = "each test uses a part")]

use infc_artifact::container::{Artifact, Requirements, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::*;
use object::{Object, ObjectSection, ObjectSymbol};
use std::process::Command;
use std::sync::OnceLock;

/// Kernels of the ABI; buffers `b`, extents `e`, scratch `s`, tasks `i..n`.
const KERNELS: &str = include_str!("kernels.c");

/// The architecture of these tests, a feature that each of its machines has, and its C compiler, in an emulator too.
#[cfg(target_arch = "x86_64")]
pub const HERE: (&str, &str, &str) = ("x86_64", "sse2", "cc");
#[cfg(target_arch = "aarch64")]
pub const HERE: (&str, &str, &str) = ("aarch64", "neon", "aarch64-linux-gnu-gcc");
#[cfg(target_arch = "riscv64")]
pub const HERE: (&str, &str, &str) = ("riscv64", "d", "riscv64-linux-gnu-gcc");
pub const ARCH: &str = HERE.0;
pub const FEATURE: &str = HERE.1;
const COMPILER: &str = HERE.2;

/// The kernels, compiled and linked, since an object for RISC-V leaves even branches to the linker.
fn compiled() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (source, object) = (dir.path().join("k.c"), dir.path().join("k.so"));
    std::fs::write(&source, KERNELS).unwrap();
    let flags = ["-O1", "-fPIC", "-shared", "-nostdlib", "-Wl,-z,defs", "-ffreestanding", "-fno-stack-protector"];
    let status = Command::new(COMPILER).args(flags).arg(&source).arg("-o").arg(&object).status().unwrap();
    assert!(status.success());
    std::fs::read(&object).unwrap()
}

/// The machine code of the kernels above.
pub fn code() -> &'static (Vec<u8>, Vec<Kernel>) {
    static CODE: OnceLock<(Vec<u8>, Vec<Kernel>)> = OnceLock::new();
    CODE.get_or_init(|| {
        let bytes = match std::env::var_os("INFC_TEST_KERNELS") {
            // As below, made before, for systems whose own compilers follow another convention.
            Some(made) => std::fs::read(made).unwrap(),
            None => compiled(),
        };
        let file = object::File::parse(&*bytes).unwrap();
        let text = file.section_by_name(".text").unwrap();
        assert_eq!(file.dynamic_relocations().map_or(0, |r| r.count()), 0, "kernels must not refer to anything");
        let kernels = file.symbols().filter(|s| s.kind() == object::SymbolKind::Text && s.is_global());
        let entry = |address: u64| address - text.address();
        let kernels = kernels.map(|s| Kernel { name: s.name().unwrap().into(), entry: entry(s.address()), scratch: 4096 });
        (text.data().unwrap().to_vec(), kernels.collect())
    })
}

pub fn c(value: i64) -> Size {
    Size::constant(value)
}

/// Symbol 0 times a number.
pub fn n(times: i64) -> Size {
    Size(vec![SizeOp::Symbol(0), SizeOp::Const(times), SizeOp::Mul])
}

pub fn at(buffer: u32) -> View {
    View { buffer, offset: c(0) }
}

pub fn launch(kernel: &str, buffers: &[u32], extents: Vec<Size>, tasks: Size) -> Step {
    let kernel = code().1.iter().position(|k| k.name == kernel).expect("a kernel of the kit") as u32;
    Step::Launch { kernel, buffers: buffers.iter().map(|&b| at(b)).collect(), extents, tasks }
}

pub fn port(name: &str, dims: Vec<Size>, buffer: u32) -> Port {
    Port { name: name.into(), dtype: 1, element: 4, dims, buffer }
}

pub fn symbol(name: &str, input: u32, axis: u32) -> Symbol {
    Symbol { name: name.into(), source: SymbolSource::Input { input, axis } }
}

pub fn buffer(bytes: Size, place: Place) -> Buffer {
    Buffer { bytes, place }
}

pub fn arena(bytes: Size, first: u32, last: u32) -> Buffer {
    buffer(bytes, Place::Arena { first, last, offset: None })
}

/// The file of a program, with eight constants 0.5, 1.5, ...
pub fn file(program: &Program) -> Vec<u8> {
    file_for(program, ARCH, &[FEATURE])
}

/// The same with requirements.
pub fn file_for(program: &Program, arch: &str, features: &[&str]) -> Vec<u8> {
    let program = Program { kernels: code().1.clone(), ..program.clone() };
    let constants: Vec<u8> = (0..8).flat_map(|i| (i as f32 + 0.5).to_le_bytes()).collect();
    let features = features.iter().map(|f| f.to_string()).collect();
    let requirements = Requirements { name: "kit".into(), arch: arch.into(), features, host: None };
    let variant = Variant { requirements, program: encode(&program), code: code().0.clone(), host_code: vec![] };
    Artifact { manifest: b"how it was made", variants: &[variant], constants: &[&constants], debug: b"" }.to_bytes()
}

/// `y[i] = (sum_j x[i, j] w[j]) + bias[i]`, `x: f32[n, 8]`, through the arena.
pub fn affine() -> Program {
    Program {
        inputs: vec![port("x", vec![Size::symbol(0), c(8)], 0), port("bias", vec![Size::symbol(0)], 1)],
        outputs: vec![port("y", vec![Size::symbol(0)], 2)],
        symbols: vec![symbol("n", 0, 0)],
        buffers: vec![
            buffer(n(32), Place::Input(0)),
            buffer(n(4), Place::Input(1)),
            buffer(n(4), Place::Output(0)),
            buffer(c(32), Place::Constant(0)),
            arena(n(4), 0, 1),
        ],
        steps: vec![launch("dot", &[0, 3, 4], vec![c(8)], Size::symbol(0)), launch("add", &[4, 1, 2], vec![], Size::symbol(0))],
        ..Program::default()
    }
}

/// `y = h + x` where `h` is the `y` of the last run; `x: f32[n]`.
pub fn sum() -> Program {
    Program {
        inputs: vec![port("h", vec![Size::symbol(0)], 0), port("x", vec![Size::symbol(0)], 1)],
        outputs: vec![port("y", vec![Size::symbol(0)], 2)],
        symbols: vec![symbol("n", 0, 0)],
        buffers: vec![buffer(n(4), Place::Input(0)), buffer(n(4), Place::Input(1)), buffer(n(4), Place::Output(0))],
        steps: vec![launch("add", &[0, 1, 2], vec![], Size::symbol(0))],
        states: vec![(0, 0)],
        ..Program::default()
    }
}
