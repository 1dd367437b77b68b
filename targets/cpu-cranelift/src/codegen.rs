//! Cranelift itself: kernels to machine code, on as many threads as there are, and one image of all of them.
//!
//! Each kernel is compiled by itself, and their order in the image is that of their numbers: the bytes do not depend on threads.

use crate::emit;
use crate::helpers::{self, Helper};
use crate::invariant;
use crate::schedule;
use cranelift_codegen::binemit::{Addend, CodeOffset, Reloc};
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{ExternalName, Function, UserExternalName};
use cranelift_codegen::isa::{self, OwnedTargetIsa, TargetFrontendConfig};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, FinalizedRelocTarget, print_errors};
use infc_artifact::abi::ALIGN;
use infc_ir::{Fault, Problems, fault};
use infc_kernel::backend::Code;
use infc_kernel::loops::Kernel;
use infc_kernel::target::TargetDesc;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machine code of a function, and where it needs the address of something.
pub struct Generated {
    /// The code.
    pub bytes: Vec<u8>,
    /// Places that need addresses.
    pub relocations: Vec<Relocation>,
    /// The code as text, if it was asked for.
    pub text: String,
}

/// A place that needs the address of something.
pub struct Relocation {
    /// Bytes from the start of the function.
    pub at: CodeOffset,
    /// In which form.
    pub kind: Reloc,
    /// What is added.
    pub addend: Addend,
    /// Of what.
    pub to: UserExternalName,
}

/// Machine code of one function of the image.
pub struct Compiled {
    bytes: Vec<u8>,
    calls: Vec<Call>,
    scratch: u64,
    /// The code as text, if it was asked for.
    text: String,
}

/// A place that needs the address of a function.
struct Call {
    at: CodeOffset,
    kind: Reloc,
    addend: Addend,
    to: Helper,
}

/// What Cranelift calls the features of machine files that it makes use of.
const FEATURES: [(&str, &str, &str); 15] = [
    ("x86_64", "sse3", "has_sse3"),
    ("x86_64", "ssse3", "has_ssse3"),
    ("x86_64", "sse4.1", "has_sse41"),
    ("x86_64", "sse4.2", "has_sse42"),
    ("x86_64", "popcnt", "has_popcnt"),
    ("x86_64", "avx", "has_avx"),
    ("x86_64", "avx2", "has_avx2"),
    ("x86_64", "fma", "has_fma"),
    ("x86_64", "bmi", "has_bmi1"),
    ("x86_64", "bmi2", "has_bmi2"),
    ("x86_64", "lzcnt", "has_lzcnt"),
    ("x86_64", "avxvnni", "has_avx_vnni"),
    ("aarch64", "lse", "has_lse"),
    ("aarch64", "dotprod", "has_dotprod"),
    ("aarch64", "i8mm", "has_i8mm"),
];

/// The instruction set of a machine, with which code is optimised, and the same with which it is only generated.
pub struct Isa {
    optimising: OwnedTargetIsa,
    generating: OwnedTargetIsa,
}

/// The instruction set of a machine: what its file says, whatever computer this is.
pub fn isa(target: &TargetDesc) -> Result<Isa, Fault> {
    Ok(Isa { optimising: isa_with(target, "speed")?, generating: isa_with(target, "none")? })
}

impl Isa {
    /// Is it one of Arm's?
    pub fn is_arm(&self) -> bool {
        self.generating.triple().architecture.to_string() == "aarch64"
    }
    /// What the builder has to know of it.
    pub fn config(&self) -> TargetFrontendConfig {
        self.generating.frontend_config()
    }
}

fn isa_with(target: &TargetDesc, level: &str) -> Result<OwnedTargetIsa, Fault> {
    let mut shared = settings::builder();
    let checks = if cfg!(debug_assertions) { "true" } else { "false" };
    for (name, value) in [
        ("opt_level", level),
        // Names are near, and so by their distance, in an image and in an object file; with this setting they would come from a table.
        ("is_pic", "false"),
        ("unwind_info", "false"),
        // Frames larger than a page are touched page by page, as Windows gives memory to stacks.
        ("enable_probestack", "true"),
        ("probestack_strategy", "inline"),
        ("enable_verifier", checks),
    ] {
        shared.set(name, value).map_err(|e| fault!("Cranelift's setting {name}: {e}"))?;
    }
    let triple = format!("{}-unknown-linux-gnu", target.arch);
    let mut builder = isa::lookup_by_name(&triple).map_err(|e| fault!("Cranelift has no machine '{}': {e}", target.arch))?;
    for (_, name, flag) in FEATURES.iter().filter(|f| f.0 == target.arch) {
        if target.features.iter().any(|f| f == name) {
            builder.enable(flag).map_err(|e| fault!("Cranelift's setting {flag}: {e}"))?;
        }
    }
    builder.finish(settings::Flags::new(shared)).map_err(|e| fault!("Cranelift: {e}"))
}

/// The image of the kernels.
pub fn compile(kernels: &[Kernel], target: &TargetDesc) -> Result<Code, Problems> {
    let isa = isa(target).map_err(|e| Problems::one(format!("target '{}'", target.name), e.0, ""))?;
    let compiled = each(kernels, |i, kernel| compiled(kernel, i, target, &isa, false))?;
    image(compiled, &isa).map_err(|e| Problems::one("code generation", e.0, "this is a bug of the compiler"))
}

/// The kernels in Cranelift's IR, before it is optimised.
pub fn clif(kernels: &[Kernel], target: &TargetDesc) -> Result<String, Problems> {
    let isa = isa(target).map_err(|e| Problems::one(format!("target '{}'", target.name), e.0, ""))?;
    let texts = each(kernels, |i, kernel| {
        let written = emit::kernel(kernel, i, target, isa.config())?;
        Ok(format!("; {}\n{}", kernel.name, written.function.display()))
    })?;
    Ok(texts.join("\n"))
}

/// Their machine code as text.
pub fn assembly(kernels: &[Kernel], target: &TargetDesc) -> Result<String, Problems> {
    let isa = isa(target).map_err(|e| Problems::one(format!("target '{}'", target.name), e.0, ""))?;
    let texts = each(kernels, |i, kernel| Ok(format!("; {}\n{}", kernel.name, compiled(kernel, i, target, &isa, true)?.text)))?;
    Ok(texts.join("\n"))
}

/// Something for each kernel, on as many threads as there are; the problems of all of them if there are any.
fn each<T: Send>(kernels: &[Kernel], run: impl Fn(usize, &Kernel) -> Result<T, Fault> + Sync) -> Result<Vec<T>, Problems> {
    let done: Vec<Mutex<Option<Result<T, Fault>>>> = kernels.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(kernels.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernel) = kernels.get(i) else { return };
                    *done[i].lock().expect("no thread panicked with it") = Some(run(i, kernel));
                }
            });
        }
    });
    let (mut out, mut problems) = (vec![], vec![]);
    for (slot, kernel) in done.into_iter().zip(kernels) {
        match slot.into_inner().ok().flatten().expect("every kernel was compiled") {
            Ok(one) => out.push(one),
            Err(e) => problems.extend(Problems::one(format!("kernel '{}'", kernel.name), e.0, "").0),
        }
    }
    if problems.is_empty() { Ok(out) } else { Err(Problems(problems)) }
}

fn compiled(kernel: &Kernel, number: usize, target: &TargetDesc, isa: &Isa, text: bool) -> Result<Compiled, Fault> {
    let written = emit::kernel(kernel, number, target, isa.config())?;
    Ok(Compiled { scratch: written.scratch, ..function(written.function, isa, text)? })
}

/// Machine code of a function. What it needs of a library of Cranelift is an error that names it.
pub fn generated(function: Function, isa: &Isa, text: bool) -> Result<Generated, Fault> {
    let mut context = Context::for_function(function);
    context.set_disasm(text);
    let mut control = ControlPlane::default();
    let anchors = invariant::anchor(&mut context.func);
    let optimised = context.optimize(&*isa.optimising, &mut control);
    if optimised.is_ok() {
        anchors.weigh(&mut context.func);
        schedule::schedule(&mut context.func);
    }
    let generated = optimised.and_then(|()| context.compile(&*isa.generating, &mut control).map(|_| ()).map_err(|e| e.inner));
    if let Err(e) = generated {
        return Err(fault!("Cranelift: {}", print_errors::pretty_error(&context.func, e)));
    }
    let code = context.take_compiled_code().ok_or_else(|| fault!("Cranelift gave no code"))?;
    let relocations = code.buffer.relocs().iter().map(|r| match &r.target {
        FinalizedRelocTarget::ExternalName(ExternalName::User(name)) => {
            let to = context.func.params.user_named_funcs()[*name].clone();
            Ok(Relocation { at: r.offset, kind: r.kind, addend: r.addend, to })
        }
        FinalizedRelocTarget::ExternalName(name) => {
            Err(fault!("the code needs '{}', which is not in the image", name.display(Some(&context.func.params))))
        }
        FinalizedRelocTarget::Func(_) => Err(fault!("relocation {:?} in the function itself", r.kind)),
    });
    let relocations = relocations.collect::<Result<_, Fault>>()?;
    Ok(Generated { bytes: code.buffer.data().to_vec(), relocations, text: code.vcode.unwrap_or_default() })
}

/// Machine code of a function of the image, and the calls in it. It may call helpers; whatever else it needs is an error that names it.
pub fn function(function: Function, isa: &Isa, text: bool) -> Result<Compiled, Fault> {
    let Generated { bytes, relocations, text } = generated(function, isa, text)?;
    let calls = relocations.into_iter().map(|r| {
        let to = Helper::ALL.get(r.to.index as usize).copied().filter(|_| r.to.namespace == helpers::NAMESPACE);
        let to = to.ok_or_else(|| fault!("the code needs '{}', which is not in the image", r.to))?;
        Ok(Call { at: r.at, kind: r.kind, addend: r.addend, to })
    });
    Ok(Compiled { bytes, calls: calls.collect::<Result<_, Fault>>()?, scratch: 0, text })
}

/// The functions one after another, with the helpers that they call at the end.
fn image(kernels: Vec<Compiled>, isa: &Isa) -> Result<Code, Fault> {
    let (mut image, mut entries) = (vec![], vec![]);
    let mut place = |code: &Compiled| {
        image.resize(image.len().next_multiple_of(ALIGN), 0);
        let at = image.len() as u64;
        image.extend_from_slice(&code.bytes);
        at
    };
    entries.extend(kernels.iter().map(&mut place));
    let called: BTreeMap<Helper, ()> = kernels.iter().flat_map(|k| &k.calls).map(|c| (c.to, ())).collect();
    let mut at = BTreeMap::new();
    for &helper in called.keys() {
        let code = function(helper.definition(isa.config()), isa, false)?;
        if !code.calls.is_empty() {
            return Err(fault!("helper {helper:?} calls something"));
        }
        at.insert(helper, place(&code));
    }
    for (code, &entry) in kernels.iter().zip(&entries) {
        for call in &code.calls {
            resolve(&mut image, entry + u64::from(call.at), at[&call.to], call)?;
        }
    }
    Ok(Code { image, entries, scratch: kernels.iter().map(|k| k.scratch).collect() })
}

/// Puts the distance to a function into a call.
fn resolve(image: &mut [u8], place: u64, to: u64, call: &Call) -> Result<(), Fault> {
    let distance = to as i64 + call.addend - place as i64;
    let field = &mut image[place as usize..place as usize + 4];
    let far = || fault!("the image is too large for calls within it");
    match call.kind {
        Reloc::X86CallPCRel4 => {
            let distance = i32::try_from(distance).map_err(|_| far())?;
            field.copy_from_slice(&distance.to_le_bytes());
        }
        // The lower 26 bits of the instruction count words.
        Reloc::Arm64Call => {
            let words = distance / 4;
            if !(-(1 << 25)..1 << 25).contains(&words) {
                return Err(far());
            }
            let old = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
            let new = old & 0xfc00_0000 | words as u32 & 0x03ff_ffff;
            field.copy_from_slice(&new.to_le_bytes());
        }
        kind => return Err(fault!("relocation {kind:?} of helper {:?} cannot be resolved in an image", call.to)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cranelift_codegen::ir::{AbiParam, InstBuilder, Signature, UserFuncName, types};
    use cranelift_codegen::isa::CallConv;
    use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

    /// What becomes of `a * b + c` as one instruction of Cranelift's.
    fn fused(machine: &str) -> Result<Compiled, Fault> {
        let isa = isa(&crate::machine(machine).unwrap()).unwrap();
        let mut signature = Signature::new(CallConv::SystemV);
        signature.params = vec![AbiParam::new(types::F32); 3];
        signature.returns = vec![AbiParam::new(types::F32)];
        let mut code = Function::with_name_signature(UserFuncName::user(0, 0), signature);
        let mut context = FunctionBuilderContext::new();
        let mut b = FunctionBuilder::new(&mut code, &mut context);
        let block = b.create_block();
        b.append_block_params_for_function_params(block);
        b.switch_to_block(block);
        b.seal_block(block);
        let p = b.block_params(block).to_vec();
        let r = b.ins().fma(p[0], p[1], p[2]);
        b.ins().return_(&[r]);
        b.finalize(isa.config());
        function(code, &isa, false)
    }

    #[test]
    fn calls_of_a_library_are_refused_by_name() {
        assert!(fused("cranelift-x86-64-v3").is_ok());
        let error = fused("cranelift-x86-64").err().expect("there is no such instruction").0;
        assert!(error.contains("the code needs '") && error.contains("Fma"), "{error}");
    }

    #[test]
    fn calls_lead_to_helpers() {
        for (kind, field, to, want) in [
            (Reloc::X86CallPCRel4, [0; 4], 0x40u64, (0x40i32 - 4 - 8).to_le_bytes()),
            (Reloc::Arm64Call, 0x9400_0000u32.to_le_bytes(), 0x40, (0x9400_0000u32 | ((0x40 - 8) / 4)).to_le_bytes()),
            (Reloc::Arm64Call, 0x9400_0000u32.to_le_bytes(), 0, (0x9400_0000u32 | 0x03ff_fffe).to_le_bytes()),
        ] {
            let mut image = [[0; 8].as_slice(), &field].concat();
            let addend = if kind == Reloc::X86CallPCRel4 { -4 } else { 0 };
            resolve(&mut image, 8, to, &Call { at: 8, kind, addend, to: Helper::FmodF32 }).unwrap();
            assert_eq!(image[8..], want, "{kind:?}");
        }
        let call = Call { at: 0, kind: Reloc::Abs8, addend: 0, to: Helper::FmodF32 };
        assert!(resolve(&mut [0; 8], 0, 0, &call).unwrap_err().0.contains("Abs8 of helper FmodF32"));
    }
}
