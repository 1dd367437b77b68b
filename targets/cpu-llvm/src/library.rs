//! LLVM's shared library, loaded when code is first generated.
//!
//! It takes tens of milliseconds to load, which a program that only runs artifacts shall not pay, and it need not be there for
//! that. So `inkwell` is built without linking LLVM, and the functions of LLVM's C interface that it calls here are defined in this
//! file: each jumps to the one of the library. A function that is missing in the list is an undefined symbol when linking.

use crate::arch::Arch;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

type P = *mut c_void;

/// Names under which systems have the library, and LLVM's own place for it.
#[cfg(feature = "llvm22")]
const FILES: &[&str] = &["libLLVM.so.22.1", "libLLVM-22.so", "/usr/lib/llvm-22/lib/libLLVM.so"];
#[cfg(not(feature = "llvm22"))]
const FILES: &[&str] = &["libLLVM.so.19.1", "libLLVM-19.so", "/usr/lib/llvm-19/lib/libLLVM.so"];

/// LLVM's folder when this was built.
#[cfg(feature = "llvm22")]
const PREFIX: Option<&str> = option_env!("LLVM_SYS_221_PREFIX");
#[cfg(not(feature = "llvm22"))]
const PREFIX: Option<&str> = option_env!("LLVM_SYS_191_PREFIX");

/// Loads LLVM, if that has not been done. To be called before any function of `inkwell`.
pub fn load() -> Result<(), String> {
    table().as_ref().map(|_| ()).map_err(Clone::clone)
}

fn table() -> &'static Result<Vec<usize>, String> {
    static TABLE: OnceLock<Result<Vec<usize>, String>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let own = PREFIX.map(|p| format!("{p}/lib/libLLVM.so"));
        let files: Vec<&str> = own.iter().map(String::as_str).chain(FILES.iter().copied()).collect();
        let mut reasons = vec![];
        for file in &files {
            // Safety: LLVM's initialisers may run in any thread.
            match unsafe { libloading::Library::new(file) } {
                // It stays loaded for as long as the process lives.
                Ok(library) => return resolve(Box::leak(Box::new(library)), file),
                Err(e) => reasons.push(e.to_string()),
            }
        }
        Err(format!("LLVM's library cannot be loaded: {}", reasons.join("; ")))
    })
}

fn resolve(library: &'static libloading::Library, file: &str) -> Result<Vec<usize>, String> {
    let address = |name: &&str| {
        // Safety: only the address is taken; the functions below say what it is.
        let symbol = unsafe { library.get::<*const c_void>(name.as_bytes()) };
        symbol.map(|s| *s as usize).map_err(|e| format!("'{file}' is no LLVM that this compiler can use: {e}"))
    };
    // LLVM may have been built without an architecture.
    NAMES.iter().map(|name| address(name).or_else(|e| if optional(name) { Ok(0) } else { Err(e) })).collect()
}

fn optional(name: &str) -> bool {
    name.starts_with("LLVMInitialize")
}

/// Whether the library makes code for an architecture; it must have been loaded.
pub fn has(arch: Arch) -> Result<(), String> {
    let part = match arch {
        Arch::X86 => "LLVMInitializeX86",
        Arch::Arm => "LLVMInitializeAArch64",
        Arch::Riscv => "LLVMInitializeRISCV",
    };
    let table = table().as_ref().map_err(Clone::clone)?;
    let lacks = NAMES.iter().zip(table).any(|(name, &address)| name.starts_with(part) && address == 0);
    if lacks { Err(format!("LLVM's library was built without {}", arch.triple())) } else { Ok(()) }
}

/// The address of function number `i` of the list.
fn address(i: usize) -> usize {
    match table() {
        Ok(addresses) => addresses[i],
        Err(e) => panic!("LLVM is used before it was loaded: {e}"),
    }
}

/// Declares functions of LLVM's C interface, as its headers do. All pointers are `P`.
macro_rules! functions {
    ($($(#[$when:meta])? $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "LLVM's names")]
        #[repr(usize)]
        enum Number { $($(#[$when])? $name),* }

        const NAMES: &[&str] = &[$($(#[$when])? stringify!($name)),*];

        $(
            $(#[$when])?
            // Safety: the signature is that of LLVM's header; the caller keeps the contract of LLVM's function.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $ty),*) $(-> $out)? {
                type Function = unsafe extern "C" fn($($ty),*) $(-> $out)?;
                // Safety: `resolve` found the function of this name at this address.
                let function = unsafe { std::mem::transmute::<usize, Function>(address(Number::$name as usize)) };
                // Safety: by the caller.
                unsafe { function($($arg),*) }
            }
        )*
    };
}

functions! {
    LLVMContextCreate() -> P;
    LLVMContextDispose(context: P);
    LLVMCopyStringRepOfTargetData(data: P) -> P;
    LLVMCreateMemoryBufferWithMemoryRangeCopy(data: P, bytes: usize, name: P) -> P;
    LLVMCreateMessage(text: P) -> P;
    LLVMCreatePassBuilderOptions() -> P;
    LLVMCreateTargetDataLayout(machine: P) -> P;
    LLVMCreateTargetMachine(target: P, triple: P, cpu: P, features: P, level: c_int, relocations: c_int, model: c_int) -> P;
    LLVMDisposeExecutionEngine(engine: P);
    LLVMDisposeMemoryBuffer(buffer: P);
    LLVMDisposeMessage(text: P);
    LLVMDisposeModule(module: P);
    LLVMDisposePassBuilderOptions(options: P);
    LLVMDisposeTargetData(data: P);
    LLVMDisposeTargetMachine(machine: P);
    LLVMGetBufferSize(buffer: P) -> usize;
    LLVMGetBufferStart(buffer: P) -> P;
    LLVMGetDataLayoutStr(module: P) -> P;
    LLVMGetErrorMessage(error: P) -> P;
    LLVMGetTargetFromTriple(triple: P, target: P, message: P) -> c_int;
    LLVMInitializeAArch64AsmParser();
    LLVMInitializeAArch64AsmPrinter();
    LLVMInitializeAArch64Disassembler();
    LLVMInitializeAArch64Target();
    LLVMInitializeAArch64TargetInfo();
    LLVMInitializeAArch64TargetMC();
    LLVMInitializeRISCVAsmParser();
    LLVMInitializeRISCVAsmPrinter();
    LLVMInitializeRISCVDisassembler();
    LLVMInitializeRISCVTarget();
    LLVMInitializeRISCVTargetInfo();
    LLVMInitializeRISCVTargetMC();
    LLVMInitializeX86AsmParser();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeX86Disassembler();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86TargetMC();
    #[cfg(not(feature = "llvm22"))]
    LLVMParseIRInContext(context: P, buffer: P, module: P, message: P) -> c_int;
    #[cfg(feature = "llvm22")]
    LLVMParseIRInContext2(context: P, buffer: P, module: P, message: P) -> c_int;
    LLVMPassBuilderOptionsSetLoopInterleaving(options: P, on: c_int);
    LLVMPassBuilderOptionsSetLoopUnrolling(options: P, on: c_int);
    LLVMPassBuilderOptionsSetLoopVectorization(options: P, on: c_int);
    LLVMPassBuilderOptionsSetSLPVectorization(options: P, on: c_int);
    LLVMPrintModuleToString(module: P) -> P;
    LLVMRunPasses(module: P, passes: P, machine: P, options: P) -> P;
    LLVMSetDataLayout(module: P, layout: P);
    LLVMTargetMachineEmitToMemoryBuffer(machine: P, module: P, kind: c_int, message: P, buffer: P) -> c_int;
    LLVMVerifyModule(module: P, action: c_int, message: P) -> c_int;
}
