//! LLVM's shared library, loaded when code is first generated.
//!
//! It takes tens of milliseconds to load, which a program that only runs artifacts shall not pay, and it need not be there for
//! that. So `inkwell` is built without linking LLVM, and the functions of LLVM's C interface that it calls here are defined in this
//! file: each jumps to the one of the library. A function that is missing in the list is an undefined symbol when linking.

use crate::arch::Arch;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

type P = *mut c_void;

/// Versions whose interface and assembly text are those that are used here, the best one first.
const VERSIONS: [u32; 4] = [22, 21, 20, 19];

/// The environment may name the library's file.
const VARIABLE: &str = "INFC_LLVM";

/// Names under which systems have a version, and LLVM's own place for it; on macOS the places of Homebrew's packages.
fn files(version: u32) -> Vec<String> {
    if cfg!(target_vendor = "apple") {
        ["/opt/homebrew", "/usr/local"].map(|root| format!("{root}/opt/llvm@{version}/lib/libLLVM.dylib")).to_vec()
    } else if cfg!(windows) {
        vec![]
    } else {
        vec![
            format!("libLLVM.so.{version}.1"),
            format!("libLLVM-{version}.so"),
            format!("/usr/lib/llvm-{version}/lib/libLLVM.so"),
        ]
    }
}

/// Names that do not tell the version, to be tried after those that do. Windows has one LLVM alone.
fn others() -> Vec<String> {
    let names: &[&str] = if cfg!(target_vendor = "apple") {
        &["/opt/homebrew/opt/llvm/lib/libLLVM.dylib", "/usr/local/opt/llvm/lib/libLLVM.dylib", "libLLVM.dylib"]
    } else if cfg!(windows) {
        &["LLVM-C.dll", "C:\\Program Files\\LLVM\\bin\\LLVM-C.dll"]
    } else {
        &[]
    };
    names.iter().map(|&n| n.to_owned()).collect()
}

/// Loads LLVM, if that has not been done. To be called before any function of `inkwell`.
pub fn load() -> Result<(), String> {
    table().as_ref().map(|_| ()).map_err(Clone::clone)
}

/// An LLVM.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its version, as `LLVM 22.1.8`.
    pub version: String,
    /// Its library, as the system was asked for it.
    pub file: String,
}

/// The LLVM that makes code here; or why there is none.
pub fn found() -> Result<Found, String> {
    let loaded = table().as_ref().map_err(Clone::clone)?;
    let [major, minor, patch] = loaded.version;
    Ok(Found { version: format!("LLVM {major}.{minor}.{patch}"), file: loaded.file.clone() })
}

/// LLVM's functions, and what they are from.
struct Loaded {
    addresses: Vec<usize>,
    file: String,
    version: [u32; 3],
}

fn table() -> &'static Result<Loaded, String> {
    static TABLE: OnceLock<Result<Loaded, String>> = OnceLock::new();
    TABLE.get_or_init(|| {
        if let Some(named) = std::env::var_os(VARIABLE) {
            let file = named.to_string_lossy().into_owned();
            return opened(&file).map_err(|e| format!("{VARIABLE} names '{file}': {e}"));
        }
        let all: Vec<String> = VERSIONS.iter().flat_map(|&v| files(v)).chain(others()).collect();
        // A file that is there but is no such LLVM is told only where there is no other one.
        let mut reasons = vec![];
        for file in &all {
            match opened(file) {
                Ok(loaded) => return Ok(loaded),
                Err(e) => reasons.push(e),
            }
        }
        // Most are missing alike: the first of them stands for all, with what is wrong with those that are there.
        let odd = reasons.iter().skip(1).filter(|r| !r.contains("No such file"));
        let told: Vec<&str> = reasons.first().into_iter().chain(odd).map(String::as_str).collect();
        Err(format!("LLVM's library cannot be loaded, of none of the versions 22 to 19: {}", told.join("; ")))
    })
}

/// Opens a library, and finds out whether it is an LLVM that can be used here.
fn opened(file: &str) -> Result<Loaded, String> {
    // Safety: LLVM's initialisers may run in any thread.
    let library = unsafe { libloading::Library::new(file) }.map_err(|e| match std::error::Error::source(&e) {
        // Windows: the message names no file.
        Some(reason) => format!("'{file}': {reason}"),
        None => e.to_string(),
    })?;
    // It stays loaded for as long as the process lives.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let version = version(library).ok_or("it does not tell its version, as LLVM 16 and later do")?;
    if !VERSIONS.contains(&version[0]) {
        return Err(format!("'{file}' is LLVM {}, and 19 to 22 can be used", version[0]));
    }
    let address = |name: &&str| {
        // Safety: only the address is taken; the functions below say what it is.
        let symbol = unsafe { library.get::<*const c_void>(name.as_bytes()) };
        symbol.map(|s| *s as usize).map_err(|e| format!("'{file}' is no LLVM that this compiler can use: {e}"))
    };
    let addresses = NAMES.iter().map(|name| address(name).or_else(|e| if optional(name) { Ok(0) } else { Err(e) }));
    Ok(Loaded { addresses: addresses.collect::<Result<_, _>>()?, file: file.to_owned(), version })
}

fn version(library: &libloading::Library) -> Option<[u32; 3]> {
    type Function = unsafe extern "C" fn(*mut u32, *mut u32, *mut u32);
    // Safety: the signature is that of LLVM's header.
    let function = unsafe { library.get::<Function>(b"LLVMGetVersion") }.ok()?;
    let mut parts = [0; 3];
    let [major, minor, patch] = &mut parts;
    // Safety: it writes a number to each of them.
    unsafe { function(major, minor, patch) };
    Some(parts)
}

/// What a library may lack: an architecture that it was built without, and what came with a later version.
fn optional(name: &str) -> bool {
    name.starts_with("LLVMInitialize") || name.starts_with("LLVMParseIRInContext")
}

/// Whether the library makes code for an architecture; it must have been loaded.
pub fn has(arch: Arch) -> Result<(), String> {
    let part = match arch {
        Arch::X86 => "LLVMInitializeX86",
        Arch::Arm => "LLVMInitializeAArch64",
        Arch::Riscv => "LLVMInitializeRISCV",
        Arch::Wasm => "LLVMInitializeWebAssembly",
    };
    let table = table().as_ref().map_err(Clone::clone)?;
    let lacks = NAMES.iter().zip(&table.addresses).any(|(name, &address)| name.starts_with(part) && address == 0);
    if lacks { Err(format!("LLVM's library was built without {}", arch.triple())) } else { Ok(()) }
}

/// The address of function number `i` of the list.
fn address(i: usize) -> usize {
    match table() {
        Ok(loaded) => loaded.addresses[i],
        Err(e) => panic!("LLVM is used before it was loaded: {e}"),
    }
}

/// Declares functions of LLVM's C interface, as its headers do. All pointers are `P`.
macro_rules! functions {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "LLVM's names")]
        #[repr(usize)]
        enum Number { $($name,)* LLVMParseIRInContext, LLVMParseIRInContext2 }

        const NAMES: &[&str] = &[$(stringify!($name),)* "LLVMParseIRInContext", "LLVMParseIRInContext2"];

        $(
            // Safety: the signature is that of LLVM's header; the caller keeps the contract of LLVM's function.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $ty),*) $(-> $out)? {
                type Function = unsafe extern "C" fn($($ty),*) $(-> $out)?;
                // Safety: `opened` found the function of this name at this address.
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
    LLVMInitializeWebAssemblyAsmParser();
    LLVMInitializeWebAssemblyAsmPrinter();
    LLVMInitializeWebAssemblyDisassembler();
    LLVMInitializeWebAssemblyTarget();
    LLVMInitializeWebAssemblyTargetInfo();
    LLVMInitializeWebAssemblyTargetMC();
    LLVMInitializeX86AsmParser();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeX86Disassembler();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86TargetMC();
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

/// Parses assembly text; the buffer remains the caller's. LLVM has it from version 22 on; before, there is a function that takes the buffer for itself, which gets a copy.
// Safety: the signature is that of LLVM's header; the caller keeps the contract of LLVM's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn LLVMParseIRInContext2(context: P, buffer: P, module: P, message: P) -> c_int {
    type Function = unsafe extern "C" fn(P, P, P, P) -> c_int;
    let (new, old) = (address(Number::LLVMParseIRInContext2 as usize), address(Number::LLVMParseIRInContext as usize));
    // Safety: `opened` found the function of this name at this address; the caller keeps its contract. A copy of the buffer, which ends with a zero byte as that does, is given away.
    unsafe {
        if new != 0 {
            return std::mem::transmute::<usize, Function>(new)(context, buffer, module, message);
        }
        assert!(old != 0, "every LLVM before 22 has it");
        let copy = LLVMCreateMemoryBufferWithMemoryRangeCopy(
            LLVMGetBufferStart(buffer),
            LLVMGetBufferSize(buffer),
            c"text".as_ptr() as P,
        );
        std::mem::transmute::<usize, Function>(old)(context, copy, module, message)
    }
}
