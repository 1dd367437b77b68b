//! LLVM itself: modules of assembly text to optimised objects, on as many threads as there are.
//!
//! Which kernels share a module depends on their number alone, so the bytes do not depend on threads. The loop and SLP
//! vectorisers and the unroller stay off: the schedule has decided.

use crate::arch::Arch;
use crate::emit::{self, Text};
use crate::library;
use infc_ir::{Fault, Problems, fault};
use infc_kernel::loops::Kernel;
use infc_kernel::target::TargetDesc;
use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once};

/// Kernels of one module.
const MODULE: usize = 8;

// One round of instcombine need not reach a fixpoint; by default LLVM ends the process where it does not.
const PASSES: &str = "function(sroa,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg),\
    function(loop-mssa(licm),gvn,instcombine<no-verify-fixpoint>,early-cse<memssa>,dse,simplifycfg,\
    instcombine<no-verify-fixpoint>)";

/// Object files of the modules, each with the number of its kernels, and the scratch size of each kernel.
pub fn compile(kernels: &[Kernel], target: &TargetDesc) -> Result<(Vec<(Vec<u8>, usize)>, Vec<u64>), Problems> {
    let chunks: Vec<&[Kernel]> = kernels.chunks(MODULE).collect();
    let done: Vec<Mutex<Option<Result<(Vec<u8>, Vec<u64>), Problems>>>> = chunks.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(chunks.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(chunk) = chunks.get(i) else { return };
                    let result = object(chunk, target);
                    *done[i].lock().expect("no thread panicked with it") = Some(result);
                }
            });
        }
    });
    let (mut objects, mut scratch, mut problems) = (vec![], vec![], vec![]);
    for slot in done {
        match slot.into_inner().ok().flatten().expect("every chunk was compiled") {
            Ok((object, sizes)) => {
                objects.push((object, sizes.len()));
                scratch.extend(sizes);
            }
            Err(p) => problems.extend(p.0),
        }
    }
    if problems.is_empty() { Ok((objects, scratch)) } else { Err(Problems(problems)) }
}

fn object(kernels: &[Kernel], target: &TargetDesc) -> Result<(Vec<u8>, Vec<u64>), Problems> {
    let (text, scratch) = module_text(kernels, target)?;
    let object = with_module(&text, target, true, written);
    Ok((object.map_err(|e| internal(kernels, e))?, scratch))
}

/// Parses and verifies a module.
pub fn check_text(text: &str) -> Result<(), String> {
    let context = Context::create();
    let buffer = MemoryBuffer::create_from_memory_range_copy(text.as_bytes(), "text");
    let module = context.create_module_from_ir(buffer).map_err(|e| e.to_string())?;
    module.verify().map_err(|e| e.to_string())
}

fn written(module: &Module, machine: &TargetMachine) -> Result<Vec<u8>, Fault> {
    let object = machine.write_to_memory_buffer(module, FileType::Object).map_err(|e| fault!("LLVM: {e}"))?;
    Ok(object.as_slice().to_vec())
}

/// LLVM's object of a module that is no set of kernels.
pub fn plain_object(text: &str, target: &TargetDesc) -> Result<Vec<u8>, Fault> {
    let arch = Arch::of(target)?;
    let text = format!("target triple = \"{}\"\n\n{text}{}", arch.triple(), arch.convention());
    with_module(&text, target, true, written)
}

/// LLVM's assembly of the kernels before (`false`) or after (`true`) optimisation.
pub fn llvm_ir(kernels: &[Kernel], target: &TargetDesc, optimised: bool) -> Result<String, Problems> {
    let (text, _) = module_text(kernels, target)?;
    if !optimised {
        return Ok(text);
    }
    with_module(&text, target, true, |module, _| Ok(module.print_to_string().to_string())).map_err(|e| internal(kernels, e))
}

/// Machine code of the kernels as text.
pub fn assembly(kernels: &[Kernel], target: &TargetDesc) -> Result<String, Problems> {
    let (text, _) = module_text(kernels, target)?;
    with_module(&text, target, true, |module, machine| {
        let text = machine.write_to_memory_buffer(module, FileType::Assembly).map_err(|e| fault!("LLVM: {e}"))?;
        Ok(String::from_utf8_lossy(text.as_slice()).trim_end_matches('\0').to_string())
    })
    .map_err(|e| internal(kernels, e))
}

pub fn internal(kernels: &[Kernel], e: Fault) -> Problems {
    let names: Vec<&str> = kernels.iter().map(|k| k.name.as_str()).collect();
    Problems::one(format!("code generation of {}", names.join(", ")), e.0, "this is a bug of the compiler")
}

/// One module with all the kernels.
fn module_text(kernels: &[Kernel], target: &TargetDesc) -> Result<(String, Vec<u64>), Problems> {
    let (mut functions, mut scratch, mut problems) = (String::new(), vec![], vec![]);
    let (mut declarations, mut helpers, mut globals) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, kernel) in kernels.iter().enumerate() {
        match emit::kernel(kernel, i, target) {
            Ok(Text { functions: text, declarations: d, helpers: h, globals: g, scratch: s }) => {
                functions += &text;
                functions.push('\n');
                scratch.push(s);
                declarations.extend(d);
                helpers.extend(h);
                globals.extend(g);
            }
            Err(e) => problems.extend(Problems::one(format!("kernel '{}'", kernel.name), e.0, "").0),
        }
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let arch = Arch::of(target).map_err(|e| Problems::one(format!("machine '{}'", target.name), e.0, ""))?;
    let mut text = format!("target triple = \"{}\"\n\n", arch.triple());
    for line in globals {
        text += &line;
        text.push('\n');
    }
    text += &functions;
    for helper in helpers {
        text += &helper.definition();
    }
    for line in declarations {
        text += &line;
        text.push('\n');
    }
    let wide = if target.vector_bytes >= 64 { "\"prefer-vector-width\"=\"512\" \"min-legal-vector-width\"=\"512\" " } else { "" };
    let common = format!("nounwind \"no-builtins\" \"no-jump-tables\"=\"true\" {}", arch.stack());
    text += &format!("attributes #0 = {{ {common} {wide}}}\nattributes #1 = {{ {common} noinline {wide}}}\n");
    text += arch.convention();
    Ok((text, scratch))
}

fn with_module<T>(
    text: &str,
    target: &TargetDesc,
    optimise: bool,
    run: impl FnOnce(&Module, &TargetMachine) -> Result<T, Fault>,
) -> Result<T, Fault> {
    static INITIALISED: Once = Once::new();
    let arch = Arch::of(target)?;
    library::has(arch).map_err(|e| fault!("{e}"))?;
    INITIALISED.call_once(|| {
        let config = InitializationConfig::default();
        if library::has(Arch::X86).is_ok() {
            Target::initialize_x86(&config);
        }
        if library::has(Arch::Arm).is_ok() {
            Target::initialize_aarch64(&config);
        }
        if library::has(Arch::Riscv).is_ok() {
            Target::initialize_riscv(&config);
        }
        if library::has(Arch::Wasm).is_ok() {
            Target::initialize_webassembly(&config);
        }
    });
    let context = Context::create();
    let buffer = MemoryBuffer::create_from_memory_range_copy(text.as_bytes(), "kernels");
    let module = context.create_module_from_ir(buffer).map_err(|e| fault!("LLVM rejects the module: {e}\n{text}"))?;
    let machine = machine(target)?;
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    module.verify().map_err(|e| fault!("LLVM rejects the module: {e}\n{text}"))?;
    if optimise {
        let options = PassBuilderOptions::create();
        options.set_loop_vectorization(false);
        options.set_loop_slp_vectorization(false);
        options.set_loop_unrolling(false);
        options.set_loop_interleaving(false);
        module.run_passes(PASSES, &machine, options).map_err(|e| fault!("LLVM passes: {e}"))?;
    }
    run(&module, &machine)
}

fn machine(target: &TargetDesc) -> Result<TargetMachine, Fault> {
    let arch = Arch::of(target)?;
    let triple = TargetTriple::create(arch.triple());
    let llvm = Target::from_triple(&triple).map_err(|e| fault!("LLVM: {e}"))?;
    let cpu = arch.cpu(&target.name);
    let mut features: Vec<String> = target.features.iter().map(|f| format!("+{f}")).collect();
    features.extend(arch.options().iter().map(|&o| o.to_owned()));
    // A module of WebAssembly is laid out here, at addresses that are known.
    let relocations = if arch == Arch::Wasm { RelocMode::Static } else { RelocMode::PIC };
    llvm.create_target_machine(&triple, cpu, &features.join(","), OptimizationLevel::Aggressive, relocations, CodeModel::Small)
        .ok_or_else(|| fault!("LLVM has no machine '{}'", target.name))
}
