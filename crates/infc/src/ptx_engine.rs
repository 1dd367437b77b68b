//! A lowered program with its kernels as PTX, run by the PTX interpreter: what `infc verify --backend ptx` runs. Steps between kernels
//! are done as in the link of loops.

use crate::engine::Engine;
use crate::loops_engine::Loops;
use infc_ir::Problems;
use infc_kernel::loops::interp::Stop;
use infc_kernel::program::Lowered;
use infc_kernel::target::TargetDesc;
use infc_ptxvm::{Grid, MAP_BYTES, Memory, Module, TensorMap, launch};

/// The most blocks, so that threads have several tasks where there are many.
const BLOCKS: u32 = 64;

/// Prints the kernels, reads the text, and is ready to run it.
pub fn prepare(lowered: Lowered, target: &TargetDesc) -> Result<Box<dyn Engine>, Problems> {
    let text = infc_gpu_ptx::module(&lowered.kernels, target)?;
    let module = Module::parse(&text.text)
        .map_err(|f| Problems::one("the module just made", f.to_string(), "please report this model"))?;
    let runner = move |number: u32, _: &_, extents: &[i64], tasks: i64, buffers: &mut [Vec<u8>]| {
        let entry = module.kernel(&format!("k{number}")).ok_or_else(|| Stop::Internal(format!("no entry k{number}")))?;
        let shape = text.shape(number as usize, tasks, BLOCKS);
        run(entry, &|places| text.tensors(number as usize, places).collect(), shape, extents, tasks, buffers)
    };
    Ok(Box::new(Loops::with(lowered, Box::new(runner))))
}

/// Bytes of an element, address and axes of the tensor of a map.
type Tensor = (usize, u64, Vec<(u64, u64, u32)>);

/// The map of a tensor; of none, zeros.
fn map((width, address, axes): Tensor) -> Result<[u8; MAP_BYTES], String> {
    if address == 0 { Ok([0; MAP_BYTES]) } else { TensorMap { width, address, axes }.encode() }
}

/// One launch, in a memory of its own.
fn run(
    entry: &infc_ptxvm::Kernel,
    tensors: &dyn Fn(&[u64]) -> Vec<Tensor>,
    shape: infc_gpu_ptx::Shape,
    extents: &[i64],
    tasks: i64,
    buffers: &mut [Vec<u8>],
) -> Result<(), Stop> {
    if tasks <= 0 {
        return Ok(());
    }
    let mut memory = Memory::default();
    let places: Vec<u64> = buffers.iter_mut().map(|b| memory.insert(std::mem::take(b))).collect();
    let error = memory.insert(vec![0; 4]);
    let scratch = memory.insert(vec![0xa5; shape.scratch as usize]);
    let values = places.iter().copied().chain(extents.iter().map(|&e| e as u64)).chain([tasks as u64, error, scratch]);
    let maps: Result<Vec<_>, String> = tensors(&places).into_iter().map(map).collect();
    let maps = maps.map_err(Stop::Internal)?;
    let parameters = entry.lay_out(&values.collect::<Vec<_>>(), &maps);
    let grid = Grid { blocks: [shape.blocks, 1, 1], threads: [shape.threads, 1, 1], shared: shape.shared as usize };
    let done = launch(entry, grid, &parameters, &mut memory);
    for (b, &p) in buffers.iter_mut().zip(&places) {
        *b = memory.remove(p).unwrap_or_default();
    }
    done.map_err(|f| Stop::Internal(f.to_string()))?;
    let status = memory.remove(error).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    match status {
        0 => Ok(()),
        code => Err(Stop::Check(code - 1)),
    }
}
