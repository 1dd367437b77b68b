//! Models for NVIDIA GPUs: their code and weights on the device (`Loaded`), and what a session has there (`exec`). The driver is
//! opened when the first such model is loaded (`driver`).

mod driver;
mod exec;
mod library;

pub(crate) use driver::Registered;
pub(crate) use exec::Gpu;

use crate::error::{Error, fail};
use alloc::string::String;
use alloc::vec::Vec;
use driver::{Device, Handle, MOST_AXES, Map, Mem, Module};
use infc_artifact::program::Program;

/// Is this the architecture of a GPU?
pub(crate) fn is_gpu(arch: &str) -> bool {
    arch.starts_with("sm_")
}

/// Whether the device runs code for `arch`: `sm_80` on it and all later ones, `sm_90a` on 9.0 alone.
pub(crate) fn check(arch: &str) -> Result<(), Error> {
    let device = driver::device()?;
    let (major, minor) = device.capability;
    let have = major * 10 + minor;
    let digits: String = arch.chars().filter(char::is_ascii_digit).collect();
    let want: i32 = digits.parse().unwrap_or(i32::MAX);
    let fits = if arch.ends_with('a') { have == want } else { have >= want };
    if !fits {
        let name = &device.name;
        fail!(
            Machine,
            "the artifact is for {arch}, the GPU '{name}' has compute capability {major}.{minor}; compile for it: \
             --target nvidia-sm80 runs on 8.0 and above"
        );
    }
    Ok(())
}

/// A kernel on the device.
struct Function {
    handle: Handle,
    /// Threads of a block.
    threads: u32,
    /// Threads that take a task together.
    together: u32,
    /// Bytes of scratch memory of a thread.
    scratch: u64,
    /// Bytes of shared memory that a launch gives each block.
    shared: u32,
    /// Blocks of a cluster; a launch has whole ones.
    cluster: u32,
    /// Tensor maps that it takes behind its other parameters.
    maps: Vec<Tensor>,
}

/// The tensor of a map.
#[derive(Debug, PartialEq, Eq)]
struct Tensor {
    /// Which of the launch's buffers it lies in, and the bytes before it.
    buffer: usize,
    offset: u64,
    /// Bytes from its first element to behind its last.
    bytes: u64,
    map: Map,
}

/// Code and weights of a model on the device.
pub(crate) struct Loaded {
    device: &'static Device,
    functions: Vec<Function>,
    constants: Mem,
    _module: Module,
}

// Safety: handles of kernels may be used from any thread.
unsafe impl Send for Loaded {}
// Safety: as above.
unsafe impl Sync for Loaded {}

impl Loaded {
    /// Loads the code, and copies the weights.
    pub(crate) fn new(program: &Program, code: &[u8], constants: &[u8]) -> Result<Loaded, Error> {
        let device = driver::device()?;
        device.enter()?;
        if code.last() != Some(&0) {
            fail!(Artifact, "malformed: code for a GPU that does not end with a zero");
        }
        let free = device.free_bytes()?;
        if constants.len() as u64 > free {
            fail!(Memory, "the weights take {} bytes of device memory, '{}' has {free} free", constants.len(), device.name);
        }
        let module = device.load(code)?;
        let text = core::str::from_utf8(&code[..code.len() - 1]).unwrap_or("");
        let mut functions = Vec::new();
        for (n, kernel) in program.kernels.iter().enumerate() {
            let Some(Shape { threads, together, shared, cluster, maps }) = shape(text, n) else {
                fail!(Artifact, "malformed: the code does not say how kernel {n} '{}' is launched", kernel.name);
            };
            let handle = module.function(&alloc::format!("k{n}"))?;
            if shared > 0 {
                module.allow_shared(handle, shared)?;
            }
            if !maps.is_empty() && !device.has_maps() {
                fail!(
                    Machine,
                    "the driver of '{}' has no tensor maps, which the artifact needs: install that of CUDA 12 or newer",
                    device.name
                );
            }
            functions.push(Function { handle, threads, together, scratch: kernel.scratch, shared, cluster, maps });
        }
        let memory = device.alloc(constants.len() as u64)?;
        if !constants.is_empty() {
            let stream = device.stream()?;
            // Safety: the constants stay until the copy is done, which is waited for.
            unsafe { stream.to_device(memory.address, constants.as_ptr(), constants.len()) }?;
            stream.wait()?;
        }
        Ok(Loaded { device, functions, constants: memory, _module: module })
    }
}

/// How a kernel is launched.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    /// Threads of a block.
    threads: u32,
    /// How many of them take a task together.
    together: u32,
    /// Bytes of shared memory that the launch gives.
    shared: u32,
    /// Blocks of a cluster.
    cluster: u32,
    /// Tensor maps.
    maps: Vec<Tensor>,
}

/// A tensor map from its words: `<buffer> <dtype> <offset>`, then `<extent>:<stride>:<part>` for each axis. Bytes but for extents and parts.
fn tensor(words: &str) -> Option<Tensor> {
    let mut words = words.split_whitespace();
    let (buffer, dtype, offset) = (words.next()?.parse().ok()?, words.next()?, words.next()?.parse::<u64>().ok()?);
    // Numbers of `cuda.h`.
    let (dtype, width) = match dtype {
        "u8" | "i8" => (0, 1),
        "f16" => (6, 2),
        "bf16" => (9, 2),
        "f32" => (7, 4),
        _ => return None,
    };
    let mut map = Map { dtype, rank: 0, sizes: [1; MOST_AXES], strides: [0; MOST_AXES], parts: [1; MOST_AXES] };
    let mut bytes = width;
    for word in words {
        let mut numbers = word.split(':').map(|n| n.parse::<u64>().ok());
        let (size, stride, part) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let k = map.rank;
        let fits =
            if k == 0 { stride == width && part * width == 128 } else { stride % 16 == 0 && (16..1 << 40).contains(&stride) };
        if k >= MOST_AXES || !fits || numbers.next().is_some() || !(1..=1 << 31).contains(&size) || !(1..=256).contains(&part) {
            return None;
        }
        map.sizes[k] = size;
        map.parts[k] = part as u32;
        if k > 0 {
            map.strides[k - 1] = stride;
        }
        map.rank += 1;
        bytes = (size - 1).checked_mul(stride)?.checked_add(bytes)?;
    }
    (map.rank > 0 && offset % 16 == 0).then_some(Tensor { buffer, offset, bytes, map })
}

/// How kernel `n` is launched: from the line `//@ k<n> threads <count>`, where a task is for a thread, `warps` or `blocks`, and perhaps
/// `shared <bytes>` behind it, `cluster <blocks>`, and `map ...` for each tensor map that it takes.
fn shape(text: &str, n: usize) -> Option<Shape> {
    let mut lines = text.lines().take_while(|l| !l.contains(".entry")).filter_map(|l| l.strip_prefix("//@ "));
    let line = lines.find_map(|l| l.strip_prefix(&alloc::format!("k{n} ")))?;
    let (kind, count) = line.split_once(' ')?;
    let mut parts = count.split(" map ");
    let count = parts.next()?;
    let maps = parts.map(tensor).collect::<Option<Vec<_>>>()?;
    let mut words = count.split_whitespace();
    let count: u32 = words.next()?.parse().ok().filter(|c| (1..=1024).contains(c))?;
    let (mut shared, mut cluster) = (0, 1);
    while let Some(word) = words.next() {
        match word {
            "shared" => shared = words.next()?.parse().ok()?,
            "cluster" => cluster = words.next()?.parse().ok().filter(|b| (1..=8).contains(b))?,
            _ => return None,
        }
    }
    let together = match kind {
        "threads" => 1,
        "warps" => 32,
        "blocks" => count,
        _ => return None,
    };
    (count % together == 0).then_some(Shape { threads: count, together, shared, cluster, maps })
}
