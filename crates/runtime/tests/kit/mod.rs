//! Small artifacts for the tests: kernels in C, made by the system's compiler, and programs put together by hand.
#![allow(dead_code, reason = "each test uses a part")]

use infc_artifact::container::{Artifact, Requirements, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::*;
use object::{Object, ObjectSection, ObjectSymbol};
use std::process::Command;
use std::sync::OnceLock;

/// Kernels of the ABI; buffers `b`, extents `e`, scratch `s`, tasks `i..n`.
const KERNELS: &str = r#"
typedef unsigned long long u64; typedef long long i64;
#define KERNEL(name) u64 name(void *const *b, const i64 *e, void *s, i64 i, i64 n)
#define F(k) ((float *)b[k])
/* out[t] = sum over j of x[t][j] * w[j], with rows of e[0] elements kept in scratch first */
KERNEL(dot) {
  float *row = s;
  for (; i < n; i++) {
    float sum = 0;
    for (i64 j = 0; j < e[0]; j++) row[j] = F(0)[i * e[0] + j] * F(1)[j];
    for (i64 j = 0; j < e[0]; j++) sum += row[j];
    F(2)[i] = sum;
  }
  return 0;
}
/* out = a + b, elementwise */
KERNEL(add) { for (; i < n; i++) F(2)[i] = F(0)[i] + F(1)[i]; return 0; }
/* out[t] = a[t] + e[0] */
KERNEL(plus) { for (; i < n; i++) F(1)[i] = F(0)[i] + (float)e[0]; return 0; }
/* fails with code t / 10 at the first t with x[t] < 0 */
KERNEL(guard) { for (; i < n; i++) if (F(0)[i] < -0.f) return 1 + i / 10; return 0; }
/* out[0] = number of positive elements, which are written to the second output */
KERNEL(positive) {
  i64 k = 0;
  for (i64 j = 0; j < e[0]; j++) if (F(0)[j] > 0) F(2)[k++] = F(0)[j];
  *(i64 *)b[1] = k;
  return 0;
}
/* flag = x[0] < e[0] */
KERNEL(less) { *(unsigned char *)b[1] = F(0)[0] < (float)e[0]; return 0; }
/* x += 1 in place */
KERNEL(bump) { for (; i < n; i++) F(0)[i] += (float)e[0]; return 0; }
/* writes the thread's rounding of a subnormal: 0 if it is flushed */
KERNEL(tiny) { for (; i < n; i++) F(1)[i] = F(0)[i] * F(0)[i]; return 0; }
"#;

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

/// The machine code of the kernels above.
pub fn code() -> &'static (Vec<u8>, Vec<Kernel>) {
    static CODE: OnceLock<(Vec<u8>, Vec<Kernel>)> = OnceLock::new();
    CODE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (source, object) = (dir.path().join("k.c"), dir.path().join("k.so"));
        std::fs::write(&source, KERNELS).unwrap();
        // Linked, since an object for RISC-V leaves even branches to the linker.
        let flags = ["-O1", "-fPIC", "-shared", "-nostdlib", "-Wl,-z,defs", "-ffreestanding", "-fno-stack-protector"];
        let status = Command::new(COMPILER).args(flags).arg(&source).arg("-o").arg(&object).status().unwrap();
        assert!(status.success());
        let bytes = std::fs::read(&object).unwrap();
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
