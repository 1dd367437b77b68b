//! Prints loop IR as PTX for NVIDIA GPUs.
//!
//! A kernel becomes an `.entry` whose threads, warps or blocks take its tasks (`emit`, `layout`, `together`, `wide`, `pairs`, `group`); expressions become instructions (`scalars`, `ops`, `narrow`)
//! by the rows of one table (`rows`), over registers without types (`asm`). The driver's assembler allocates registers and schedules.
//! Knows loops, no graph, no ONNX and no driver.

#![forbid(unsafe_code)]

mod asm;
mod emit;
mod group;
mod layout;
mod narrow;
mod ops;
mod pairs;
mod pipeline;
pub mod rows;
mod scalars;
mod together;
mod wide;

pub use asm::Class;
pub use emit::Block;

use infc_artifact::program::Program;
use infc_ir::{DType, Fault, Problems, fault};
use infc_kernel::backend::{Backend, Code, Object, Os};
use infc_kernel::bounded::Layout;
use infc_kernel::loops::{Kernel, Space};
use infc_kernel::target::TargetDesc;
use std::fmt::Write;

/// The machine files.
const FILES: [&str; 2] = [include_str!("../machines/nvidia-sm80.toml"), include_str!("../machines/nvidia-sm90a.toml")];

/// All machines.
pub fn machines() -> Vec<TargetDesc> {
    FILES.iter().map(|text| TargetDesc::from_toml(text).unwrap_or_else(|e| panic!("machine file: {e}"))).collect()
}

/// The machine that is meant where none is named.
pub fn default_machine() -> TargetDesc {
    machines().swap_remove(0)
}

/// The backend for one machine.
#[derive(Clone, Debug)]
pub struct Ptx {
    target: TargetDesc,
}

impl Ptx {
    /// PTX for `target`, one of [`machines`] or a machine file of the same backend.
    pub fn new(target: TargetDesc) -> Ptx {
        Ptx { target }
    }
}

/// A module with all kernels.
#[derive(Clone, Debug)]
pub struct Text {
    /// The text. It begins with a comment for each kernel that says how it is launched: `//@ k0 threads 128`, whose tasks are threads of
    /// blocks of this size; `//@ k1 warps 128`, whose tasks are warps of such blocks; or `//@ k2 blocks 256`, whose tasks are blocks, perhaps with
    /// `shared 132160` behind it: bytes of shared memory that the launch gives, `cluster 2`: blocks of a cluster, of which the grid has whole ones, and `map ...` for each tensor map. Kernel `n` is the entry `k<n>`: pointers to its buffers, values of its symbols, the number of tasks, the address of
    /// an error slot of 32 bits (0, or `code + 1` of a check that failed), the address of scratch memory, all of 64 bits; then the maps.
    pub text: String,
    /// Bytes of scratch memory that each thread of a launch needs.
    pub scratch: Vec<u64>,
    /// Who takes a task of each kernel.
    pub blocks: Vec<Block>,
    /// Bytes of shared memory that a launch of each kernel gives.
    pub shared: Vec<u64>,
    /// Tensor maps that each kernel takes behind its other parameters.
    pub maps: Vec<Vec<Map>>,
    /// Blocks of a cluster of each kernel.
    pub clusters: Vec<u32>,
}

/// A tensor map of a kernel: a tensor in one of its buffers, and the box of it that a copy takes, in the swizzle of 128 bytes.
///
/// In the text: `map <buffer> <dtype> <offset> <extent>:<stride>:<part> ...`, offset and strides in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// The kernel's buffer.
    pub buffer: u32,
    /// What it holds.
    pub dtype: DType,
    /// Bytes before the tensor.
    pub offset: u64,
    /// For each axis, that of neighbours first: extent, distance in bytes, extent of the box.
    pub axes: Vec<(u64, u64, u32)>,
}

impl std::fmt::Display for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.buffer, self.dtype, self.offset)?;
        self.axes.iter().try_for_each(|(size, stride, part)| write!(f, " {size}:{stride}:{part}"))
    }
}

/// Threads of a block of a kernel whose tasks are for threads or warps.
pub const THREADS: u32 = 128;

/// Tasks for warps up to which each has a block of its own, so that they are spread over all multiprocessors: four for each of 132.
const SPREAD: i64 = 528;

/// Threads of a block of a kernel whose tasks are for warps.
fn threads_of_warps(kernel: &Kernel) -> u32 {
    if kernel.tasks.known().is_some_and(|n| n <= SPREAD) { 32 } else { THREADS }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of blocks.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of scratch memory of all threads.
    pub scratch: u64,
    /// Bytes of shared memory that the launch gives each block.
    pub shared: u32,
}

impl Text {
    /// The tensors of a kernel's maps, by addresses of its buffers: bytes of an element, address (0 where the tensor is not at a multiple of 16
    /// bytes: the kernel takes no map then), axes as in [`Map`].
    pub fn tensors<'a>(
        &'a self,
        kernel: usize,
        places: &'a [u64],
    ) -> impl Iterator<Item = (usize, u64, Vec<(u64, u64, u32)>)> + 'a {
        self.maps[kernel].iter().map(|m| {
            let address = places[m.buffer as usize] + m.offset;
            (m.dtype.bytes(), if address % 16 == 0 { address } else { 0 }, m.axes.clone())
        })
    }
    /// The shape of a launch of a kernel with so many tasks and at most `most` blocks.
    pub fn shape(&self, kernel: usize, tasks: i64, most: u32) -> Shape {
        let tasks = tasks.max(1) as u64;
        let (threads, wanted) = match self.blocks[kernel] {
            Block::Threads => (THREADS, tasks.div_ceil(u64::from(THREADS))),
            Block::Warps(threads) => (threads, tasks.div_ceil(u64::from(threads) / 32)),
            Block::Block(threads) => (threads, tasks),
        };
        let cluster = self.clusters[kernel];
        let blocks = (wanted.min(u64::from(most)) as u32 / cluster).max(1) * cluster;
        Shape {
            blocks,
            threads,
            scratch: self.scratch[kernel] * u64::from(blocks) * u64::from(threads),
            shared: self.shared[kernel] as u32,
        }
    }
}

/// The most parameters of a kernel, all of 64 bits: the driver takes 4,096 bytes.
const MOST_PARAMETERS: usize = 512;

/// The kernel as an entry, if the machine can have it.
fn entry(kernel: &Kernel, name: &str, target: &TargetDesc) -> Result<emit::Entry, Fault> {
    let buffers = kernel.buffers.iter().filter(|b| b.space == Space::Global).count();
    // Behind them come the number of tasks, and the addresses of the error slot and of scratch memory.
    let parameters = buffers + kernel.symbols.len() + 3;
    if parameters > MOST_PARAMETERS {
        return Err(fault!("it has {parameters} parameters, a kernel on a GPU has {MOST_PARAMETERS} at most"));
    }
    emit::entry(kernel, name, target.shared_bytes)
}

/// Prints kernels for a machine.
pub fn module(kernels: &[Kernel], target: &TargetDesc) -> Result<Text, Problems> {
    let arch = &target.arch;
    let (mut head, mut text) = (String::new(), String::new());
    let (mut scratch, mut blocks, mut shared, mut maps, mut problems) = (vec![], vec![], vec![], vec![], vec![]);
    let mut clusters = vec![];
    let mut mixed = false;
    for (k, kernel) in kernels.iter().enumerate() {
        match entry(kernel, &format!("k{k}"), target) {
            Ok(entry) => {
                let _ = write!(text, "\n// {}\n{}", kernel.name.replace(['\n', '\r'], " "), entry.text);
                let _ = match entry.block {
                    Block::Threads => write!(head, "//@ k{k} threads {THREADS}"),
                    Block::Warps(threads) => write!(head, "//@ k{k} warps {threads}"),
                    Block::Block(threads) => write!(head, "//@ k{k} blocks {threads}"),
                };
                if entry.shared > 0 {
                    let _ = write!(head, " shared {}", entry.shared);
                }
                if entry.cluster > 1 {
                    let _ = write!(head, " cluster {}", entry.cluster);
                }
                clusters.push(entry.cluster);
                entry.maps.iter().for_each(|m| head += &format!(" map {m}"));
                head.push('\n');
                scratch.push(entry.scratch);
                blocks.push(entry.block);
                shared.push(entry.shared);
                maps.push(entry.maps);
                mixed |= entry.mixed;
            }
            Err(e) => problems.extend(Problems::one(format!("kernel '{}'", kernel.name), e.0, "").0),
        }
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    // The lowest version that has all instructions.
    let version = match arch.starts_with("sm_9") {
        true if mixed => "8.4",
        true => "8.0",
        false => "7.1",
    };
    let _ = write!(head, ".version {version}\n.target {arch}\n.address_size 64\n");
    if shared.iter().any(|&s| s > 0) {
        head += ".extern .shared .align 1024 .b8 ring[];\n";
    }
    Ok(Text { text: head + &text, scratch, blocks, shared, maps, clusters })
}

impl Backend for Ptx {
    fn target(&self) -> &TargetDesc {
        &self.target
    }
    fn emit(&self, kernels: &[Kernel]) -> Result<Code, Problems> {
        let module = module(kernels, &self.target)?;
        let mut image = module.text.into_bytes();
        image.push(0); // the driver takes a C string
        Ok(Code { image, entries: (0..kernels.len() as u64).collect(), scratch: module.scratch })
    }
    fn refuses(&self, kernel: &Kernel) -> Option<String> {
        entry(kernel, "k", &self.target).err().map(|e| e.0)
    }
    fn emit_object(&self, _: &Program, _: &Layout, _: &[Kernel], _: &[u8], name: &str, _: Os) -> Result<Object, Problems> {
        let help = "use --emit infc, or a target of another backend";
        Err(Problems::one(format!("object file '{name}'"), "the ptx backend makes no object files", help))
    }
    fn emit_text(&self, kernels: &[Kernel], kind: &str) -> Result<String, Problems> {
        match kind {
            "ptx" => Ok(module(kernels, &self.target)?.text),
            _ => Err(Problems::one(format!("text '{kind}'"), "the ptx backend cannot write it", "known kinds: ptx")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ptx, default_machine};
    use infc_kernel::backend::Backend;

    #[test]
    fn kernels_with_too_many_parameters_are_refused() {
        let mut k = infc_kernel::loops::Kernel {
            name: "many".into(),
            buffers: vec![],
            symbols: (0..510).map(|i| &*format!("s{i}").leak()).collect(),
            tasks: infc_ir::Expr::int(1),
            task: 0,
            body: vec![],
            axes: Default::default(),
            boxes: Default::default(),
        };
        let ptx = Ptx::new(default_machine());
        assert!(ptx.refuses(&k).expect("refused").contains("513 parameters"));
        assert!(ptx.emit(std::slice::from_ref(&k)).unwrap_err().to_string().contains("513 parameters"));
        k.symbols.truncate(509);
        assert_eq!(ptx.refuses(&k), None);
    }

    #[test]
    fn machine_files_parse_and_name_themselves() {
        let names: Vec<_> = super::machines().into_iter().map(|m| (m.name, m.backend, m.arch)).collect();
        let want = ["sm80", "sm90a"].map(|a| (format!("nvidia-{a}"), "ptx".to_owned(), a.replace("sm", "sm_")));
        assert_eq!(names, want);
    }
}
