//! Compiles printed code by the system's C compiler, loads it and runs it: for tests and `infc verify`.

use crate::source::{ALIGN, Source};
use infc_ir::Problems;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::process::Command;

/// A loaded library; its files are removed with it.
pub struct Library {
    library: libloading::Library,
    _folder: tempfile::TempDir,
}

/// Options of the C compiler for results that equal the interpreter's.
pub const FLAGS: &str = "-std=c99 -ffp-contract=off";

/// Compiles C files (name, text) with these options to a library and loads it. The compiler is `cc`, or what `CC` names.
pub fn compile(files: &[(&str, &str)], flags: &str) -> Result<Library, Problems> {
    let io = |e: std::io::Error| Problems::one("a temporary folder", e.to_string(), "check the disk and TMPDIR");
    let folder = tempfile::Builder::new().prefix("infc-c-").tempdir().map_err(io)?;
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).map_err(io)?;
    }
    let sources = files.iter().map(|f| f.0).filter(|n| n.ends_with(".c"));
    let cc = std::env::var("CC").ok().filter(|c| !c.trim().is_empty()).unwrap_or("cc".to_owned());
    let mut words = cc.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("cc"));
    command.args(words).args(["-shared", "-fPIC", "-o", "library.so"]).args(flags.split_whitespace()).args(sources).arg("-lm");
    let output = command.current_dir(folder.path()).output().map_err(|e| {
        Problems::one(
            format!("the C compiler '{cc}'"),
            e.to_string(),
            "install one (Debian, Ubuntu: apt-get install gcc), or set CC",
        )
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Problems::one(format!("the C compiler '{cc}'"), text.trim_end(), "see what it says about the code"));
    }
    load(&folder.path().join("library.so")).map(|library| Library { library, _folder: folder })
}

fn load(path: &Path) -> Result<libloading::Library, Problems> {
    // Safety: code that was printed and compiled just now; it has no initialisers.
    unsafe { libloading::Library::new(path) }.map_err(|e| Problems::one("the library just made", e.to_string(), ""))
}

type Entry = unsafe extern "C" fn(*const *mut c_void, *const i64, *mut c_void) -> u64;

impl Library {
    /// Runs a kernel of [`crate::kernels`] by the name of its entry. Buffers and scratch must have the bytes that it takes.
    ///
    /// # Safety
    /// The entry is one of this library, and the memory is as large as the kernel's buffers for these extents.
    pub unsafe fn kernel(
        &self,
        entry: &str,
        buffers: &mut [Vec<u8>],
        extents: &[i64],
        scratch: &mut [u64],
    ) -> Result<u64, Problems> {
        let pointers: Vec<*mut c_void> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
        // Safety: the type is that of all entries; the rest is the caller's duty.
        unsafe {
            let run = self.library.get::<Entry>(entry.as_bytes()).map_err(|e| Problems::one(entry, e.to_string(), ""))?;
            Ok(run(pointers.as_ptr(), extents.as_ptr(), scratch.as_mut_ptr().cast()))
        }
    }
}

type Call = unsafe extern "C" fn(
    *const *const c_void,
    *const *mut c_void,
    *const *mut i64,
    *const i64,
    *const c_void,
    *mut c_void,
    *mut c_void,
) -> i32;
type Message = unsafe extern "C" fn(i32) -> *const c_char;

/// A model in a library, with the memory that it runs in.
pub struct Model {
    library: Library,
    source: Source,
    weights: Vec<u64>,
    state: Vec<u64>,
    arena: Vec<u64>,
}

/// Memory of 8-byte words for so many bytes.
fn words(bytes: u64) -> Vec<u64> {
    vec![0; bytes.div_ceil(ALIGN) as usize]
}

/// The bytes in words, so that elements of any type are aligned.
fn aligned(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut whole = [0; 8];
        whole[..chunk.len()].copy_from_slice(chunk);
        u64::from_ne_bytes(whole)
    };
    bytes.chunks(8).map(word).collect()
}

impl Model {
    /// Compiles and loads a printed model.
    pub fn new(source: Source, flags: &str) -> Result<Model, Problems> {
        let (c, h) = (format!("{}.c", source.name), format!("{}.h", source.name));
        let files = [(c.as_str(), source.c.as_str()), (h.as_str(), &source.h), ("call.c", &source.call)];
        let library = compile(&files, flags)?;
        let weights = aligned(source.weights.as_deref().unwrap_or_default());
        let (state, arena) = (words(source.state_bytes), words(source.arena_bytes));
        Ok(Model { library, source, weights, state, arena })
    }

    /// What was printed.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Runs the model on the inputs that are no state, with these dims; gives the bytes of the outputs and their dims where these change.
    /// A status is an error in the model's words.
    pub fn run(&mut self, inputs: &[&[u8]], dims: &[i64]) -> Result<(Vec<Vec<u8>>, Vec<Vec<i64>>), Problems> {
        let s = &self.source;
        let mut symbols = vec![0; s.symbols];
        s.dims.iter().zip(dims).for_each(|(d, &n)| symbols[d.symbol] = n);
        let enough =
            |(size, given): (&infc_artifact::program::Size, &&[u8])| size.eval(&symbols).is_some_and(|n| n <= given.len() as i64);
        if dims.len() != s.dims.len() || inputs.len() != s.input_bytes.len() || !s.input_bytes.iter().zip(inputs).all(enough) {
            return Err(Problems::one("inputs", "are not what the model takes", "give every input with the bytes of its dims"));
        }
        let given: Vec<Vec<u64>> = inputs.iter().map(|bytes| aligned(bytes)).collect();
        self.call(&given, dims)
    }

    fn call(&mut self, given: &[Vec<u64>], dims: &[i64]) -> Result<(Vec<Vec<u8>>, Vec<Vec<i64>>), Problems> {
        let s = &self.source;
        let given: Vec<*const c_void> = given.iter().map(|m| m.as_ptr().cast()).collect();
        let mut outputs: Vec<Vec<u64>> = s.output_bytes.iter().map(|&n| words(n + 1)).collect();
        let mut sizes: Vec<Vec<i64>> = s.output_ranks.iter().map(|&n| vec![0; n]).collect();
        let places: Vec<*mut c_void> = outputs.iter_mut().map(|m| m.as_mut_ptr().cast()).collect();
        let size_places: Vec<*mut i64> = sizes.iter_mut().map(|m| m.as_mut_ptr()).collect();
        // Safety: `call.c` has this type and passes on what the header asks for, of the sizes that it names.
        let status = unsafe {
            let call =
                self.library.library.get::<Call>(b"infc_call").map_err(|e| Problems::one("infc_call", e.to_string(), ""))?;
            call(
                given.as_ptr(),
                places.as_ptr(),
                size_places.as_ptr(),
                dims.as_ptr(),
                self.weights.as_ptr().cast(),
                self.state.as_mut_ptr().cast(),
                self.arena.as_mut_ptr().cast(),
            )
        };
        if status != 0 {
            return Err(Problems::one("run", self.message(status)?, ""));
        }
        let bytes = |(m, &n): (Vec<u64>, &u64)| m.into_iter().flat_map(u64::to_ne_bytes).take(n as usize).collect();
        Ok((outputs.into_iter().zip(&s.output_bytes).map(bytes).collect(), sizes))
    }

    /// What a status means.
    fn message(&self, status: i32) -> Result<String, Problems> {
        let name = format!("{}_message", self.source.name);
        // Safety: the function of the header, which gives a string of the library.
        unsafe {
            let message =
                self.library.library.get::<Message>(name.as_bytes()).map_err(|e| Problems::one(&name, e.to_string(), ""))?;
            Ok(CStr::from_ptr(message(status)).to_string_lossy().into_owned())
        }
    }
}
