//! A loaded artifact: checked, mapped, immutable, shared by sessions.

use crate::error::{Error, ErrorKind, fail};
#[cfg(feature = "std")]
use crate::map;
use crate::memory::Aligned;
use crate::tensor::DType;
use crate::variant::{self, is_gpu};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use infc_artifact::abi::ALIGN;
use infc_artifact::container::{ContainerError, Kind, Reader, Requirements, Section};
use infc_artifact::decode::decode;
use infc_artifact::program::{HostType, Place, Port, Program, Size, Step, SymbolSource};

/// A dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this.
    Fixed(i64),
    /// Any size; dims of the same name are equal.
    Symbol(String),
    /// Follows from others: `2 * n`.
    Expr(String),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Symbol(text) | Dim::Expr(text) => f.write_str(text),
        }
    }
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dims.
    pub dims: Vec<Dim>,
    /// The type of a value of the host.
    pub host: Option<HostType>,
    /// For an input: the output of the previous run that it takes when none is given. For an output: the input that takes it.
    pub state: Option<usize>,
}

impl fmt::Display for PortInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Strings have a dtype and dims too.
        if let (Some(ty), 0) = (&self.host, self.dtype.0) {
            return write!(f, "{ty}");
        }
        write!(f, "{}[", self.dtype)?;
        for (i, dim) in self.dims.iter().enumerate() {
            write!(f, "{}{dim}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// What is known of a step before any shapes are.
#[derive(Clone, Copy, Default)]
pub(crate) struct StepInfo {
    /// Number of the step after it and all its nested steps.
    pub(crate) end: usize,
    /// For an `If`: number of the first step of `otherwise`.
    pub(crate) otherwise: usize,
    /// For a `Launch`: where its pointers begin among those of all launches.
    pub(crate) pointers: usize,
    /// For a `Launch`: where its extents begin.
    pub(crate) extents: usize,
    /// Its sizes do not change while the program runs.
    pub(crate) fixed: bool,
}

/// What keeps the memory that pointers of a model lead to.
#[allow(dead_code, reason = "held for its Drop")]
enum Keep {
    #[cfg(feature = "std")]
    File {
        constants: Option<memmap2::Mmap>,
        code: Option<memmap2::Mmap>,
    },
    #[cfg(feature = "std")]
    Memory {
        constants: Aligned,
        code: Option<memmap2::Mmap>,
    },
    Caller {
        constants: Aligned,
    },
}

/// A model ready to run. Make [`crate::Session`]s from it.
pub struct Model {
    pub(crate) program: Program,
    pub(crate) steps: Vec<StepInfo>,
    /// Pointers and extents of all launches.
    pub(crate) launch_room: (usize, usize),
    pub(crate) scratch: u64,
    /// Where offset 0 of the constants would be. Only those that the program uses are there.
    pub(crate) constants: *const u8,
    pub(crate) code: *const u8,
    /// Code and weights on a GPU, if the model is for one.
    #[cfg(feature = "gpu")]
    pub(crate) gpu: Option<Arc<crate::gpu::Loaded>>,
    /// What host steps need.
    #[cfg(feature = "host")]
    pub(crate) hosted: crate::host::Hosted,
    constants_bytes: u64,
    inputs: Vec<PortInfo>,
    outputs: Vec<PortInfo>,
    requirements: Requirements,
    manifest: Vec<u8>,
    _keep: Keep,
}

// Safety: the memory behind the pointers is never written, and lives as long as `_keep`.
unsafe impl Send for Model {}
// Safety: as above.
unsafe impl Sync for Model {}

/// The chosen variant of an artifact, before its memory is mapped.
struct Chosen {
    program: Program,
    requirements: Requirements,
    #[cfg_attr(not(feature = "std"), allow(dead_code, reason = "the caller has mapped it"))]
    code: Section,
    /// Code for the CPU beside a GPU.
    #[cfg_attr(not(feature = "std"), allow(dead_code, reason = "as above"))]
    host_code: Option<Section>,
    constants: Option<Section>,
    manifest: Vec<u8>,
}

impl Chosen {
    /// Is it code for a GPU?
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "it never is"))]
    fn is_gpu(&self) -> bool {
        is_gpu(&self.requirements.arch)
    }
    /// The code that this CPU runs, if there is some.
    #[cfg_attr(not(feature = "std"), allow(dead_code, reason = "the caller has mapped the code"))]
    fn mapped(&self) -> Option<&Section> {
        if is_gpu(&self.requirements.arch) { self.host_code.as_ref() } else { Some(&self.code) }
    }
}

impl Model {
    /// Loads an artifact file. The weights that the model uses are mapped, not read, and shared with other processes that use the file. It
    /// must not be changed while the model lives; replace it by renaming a new one over it.
    #[cfg(feature = "std")]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Arc<Model>, Error> {
        Model::open_variant(path, None)
    }

    /// The same, for the variant of this name instead of the best one that this machine can run.
    #[cfg(feature = "std")]
    pub fn open_variant(path: impl AsRef<std::path::Path>, variant: Option<&str>) -> Result<Arc<Model>, Error> {
        let path = path.as_ref();
        let named = |e: Error| Error::new(e.kind(), alloc::format!("{}: {e}", path.display()));
        let (file, bytes) = map::file(path)?;
        let chosen = choose(&bytes, variant).map_err(named)?;
        let (at, length) = chosen.mapped().map_or((0, 0), |s| (s.offset, s.length as usize));
        let code = map::code_of_file(&file, at, length).map_err(named)?;
        let section = range(chosen.constants.as_ref());
        let parts = parts(&chosen, &bytes, &bytes[section.clone()]).map_err(named)?;
        // What was read to choose is not kept: the operating system counts pages of a file as memory of the process while they are mapped.
        drop(bytes);
        let used = used(&chosen.program);
        let constants = map::constants_of_file(&file, (section.start + used.start) as u64, used.len()).map_err(named)?;
        let start = constants.as_ref().map_or(core::ptr::null(), |c| c.as_ptr()).wrapping_sub(used.start);
        let entry = code.as_ref().map_or(core::ptr::null(), |c| c.as_ptr());
        Ok(finish(chosen, parts, start, entry, Keep::File { constants, code }))
    }

    /// Loads an artifact from memory. The weights that the model uses and its code are copied.
    #[cfg(feature = "std")]
    pub fn from_bytes(bytes: &[u8]) -> Result<Arc<Model>, Error> {
        Model::from_bytes_variant(bytes, None)
    }

    /// The same, for the variant of this name instead of the best one that this machine can run.
    #[cfg(feature = "std")]
    pub fn from_bytes_variant(bytes: &[u8], variant: Option<&str>) -> Result<Arc<Model>, Error> {
        let chosen = choose(bytes, variant)?;
        let source = &bytes[range(chosen.constants.as_ref())];
        let parts = parts(&chosen, bytes, source)?;
        let used = used(&chosen.program);
        let mut constants = Aligned::zeroed(used.len() as u64)?;
        constants.bytes_mut().copy_from_slice(&source[used.clone()]);
        let code = map::code_of_bytes(&bytes[range(chosen.mapped())])?;
        let entry = code.as_ref().map_or(core::ptr::null(), |c| c.as_ptr());
        let start = constants.pointer().wrapping_sub(used.start);
        Ok(finish(chosen, parts, start, entry, Keep::Memory { constants, code }))
    }

    /// Loads an artifact that lies in memory for good, as in flash. Constants are used where they are if they are aligned to 64 bytes, else copied.
    ///
    /// # Safety
    /// `code` is executable memory that holds the code section of the variant that runs here (for one of a GPU, the section for the host), for as long
    /// as the model lives; it may be that section itself. [`infc_artifact::container::Reader`] has the sections, [`crate::variant::choose`] tells which variant it is.
    pub unsafe fn from_static(bytes: &'static [u8], code: NonNull<u8>) -> Result<Arc<Model>, Error> {
        let chosen = choose(bytes, None)?;
        let source = &bytes[range(chosen.constants.as_ref())];
        let parts = parts(&chosen, bytes, source)?;
        let mut constants = Aligned::default();
        let mut start = source.as_ptr();
        if start.align_offset(ALIGN) != 0 {
            constants.reserve(source.len() as u64)?;
            constants.bytes_mut()[..source.len()].copy_from_slice(source);
            start = constants.pointer();
        }
        Ok(finish(chosen, parts, start, code.as_ptr(), Keep::Caller { constants }))
    }

    /// Its inputs, in order.
    pub fn inputs(&self) -> &[PortInfo] {
        &self.inputs
    }
    /// Its outputs, in order.
    pub fn outputs(&self) -> &[PortInfo] {
        &self.outputs
    }
    /// What the machine must have; this one has it.
    pub fn requirements(&self) -> &Requirements {
        &self.requirements
    }
    /// Bytes of constants (weights) that it uses; an artifact with several variants may hold more.
    pub fn constants_bytes(&self) -> u64 {
        self.constants_bytes
    }
    /// The manifest: a protobuf message on how the artifact was made.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }
    /// What runs, for tools.
    pub fn program(&self) -> &Program {
        &self.program
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("inputs", &self.inputs).field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

impl From<ContainerError> for Error {
    fn from(e: ContainerError) -> Error {
        Error::new(ErrorKind::Artifact, alloc::format!("{e}"))
    }
}

fn range(section: Option<&Section>) -> core::ops::Range<usize> {
    section.map_or(0..0, |s| s.offset as usize..(s.offset + s.length) as usize)
}

/// Where in the constants those of a program lie, from a multiple of [`ALIGN`] on. `validate` has checked that it is inside of them.
#[cfg(feature = "std")]
fn used(program: &Program) -> core::ops::Range<usize> {
    let parts = program.constants();
    match (parts.first(), parts.last()) {
        (Some(&(first, _)), Some(&(last, bytes))) => first as usize / ALIGN * ALIGN..(last + bytes) as usize,
        _ => 0..0,
    }
}

/// Checks an artifact and picks the variant to run. Programs and code of other variants are not read.
fn choose(bytes: &[u8], variant: Option<&str>) -> Result<Chosen, Error> {
    let reader = Reader::table(bytes)?;
    let number = variant::choose(reader.requirements(), variant)?;
    let requirements = reader.requirements()[number].clone();
    let checked = |kind, number| -> Result<Section, Error> {
        let section = reader.section(kind, number)?;
        reader.check(section)?;
        Ok(*section)
    };
    let section = checked(Kind::Program, number as u32)?;
    let program = match decode(reader.bytes(&section)) {
        Ok(program) => program,
        Err(e) => fail!(Artifact, "malformed: {} (offset {})", e.what, section.offset + e.at as u64),
    };
    let code = checked(Kind::Code, number as u32)?;
    let host_code = match &requirements.host {
        Some(_) => Some(checked(Kind::HostCode, number as u32)?),
        None => None,
    };
    if let Some(e) = misplaced(&program, &requirements) {
        fail!(Artifact, "malformed: {e} (program at offset {})", section.offset);
    }
    let constants = reader.find(Kind::Constants, 0).copied();
    let lengths = (code.length, host_code.map_or(0, |c| c.length), constants.map_or(0, |c| c.length));
    if let Err(e) = program.validate_beside(lengths.0, lengths.1, lengths.2) {
        fail!(Artifact, "malformed: {e} (program at offset {})", section.offset);
    }
    let manifest = match reader.find(Kind::Manifest, 0) {
        Some(_) => reader.bytes(&checked(Kind::Manifest, 0)?).to_vec(),
        None => Vec::new(),
    };
    Ok(Chosen { program, requirements, code, host_code, constants, manifest })
}

/// Steps on the side of a machine that does not have it, or that use each other's buffers without a copy.
fn misplaced(program: &Program, requirements: &Requirements) -> Option<String> {
    if !is_gpu(&requirements.arch) {
        let beside = program.two_sided() || requirements.host.is_some();
        return beside.then(|| String::from("steps beside a device, in code that is for none"));
    }
    // What `validate` would say of views comes first.
    let mut known = true;
    infc_artifact::program::each_view(&program.steps, &mut |v| known &= (v.buffer as usize) < program.buffers.len());
    infc_artifact::program::each_step(&program.steps, &mut |step| {
        if let Step::ToHost { buffer } | Step::ToDevice { buffer } = step {
            known &= (*buffer as usize) < program.buffers.len();
        }
    });
    if !known {
        return None;
    }
    let sides = program.sides();
    let apart = |b: usize| {
        let made = matches!(program.buffers[b].place, Place::Arena { .. } | Place::Output(_));
        made && sides.device[b] && sides.host[b] && !sides.copied[b]
    };
    let found = (0..program.buffers.len()).find(|&b| apart(b))?;
    Some(alloc::format!("buffer {found} is used by the GPU and by the host, and never copied; compile the model again"))
}

/// What a model has beside its program and memory.
struct Parts {
    #[cfg_attr(not(feature = "host"), allow(dead_code, reason = "nothing is in it"))]
    hosted: Hosted,
    #[cfg(feature = "gpu")]
    gpu: Option<Arc<crate::gpu::Loaded>>,
}

fn parts(chosen: &Chosen, bytes: &[u8], constants: &[u8]) -> Result<Parts, Error> {
    let _ = bytes;
    Ok(Parts {
        hosted: hosted(&chosen.program, constants)?,
        #[cfg(feature = "gpu")]
        gpu: match chosen.is_gpu() {
            true => Some(Arc::new(crate::gpu::Loaded::new(&chosen.program, &bytes[range(Some(&chosen.code))], constants)?)),
            false => None,
        },
    })
}

#[cfg(feature = "host")]
use crate::host::Hosted;
/// Nothing runs on the host.
#[cfg(not(feature = "host"))]
struct Hosted;

/// What host steps need, decoded and checked.
#[cfg(feature = "host")]
fn hosted(program: &Program, constants: &[u8]) -> Result<Hosted, Error> {
    Hosted::load(program, constants)
}

/// Without the host's routines: no step may need them, and no input or output.
#[cfg(not(feature = "host"))]
fn hosted(program: &Program, _: &[u8]) -> Result<Hosted, Error> {
    let nodes = program.host_nodes();
    if nodes.is_empty() && program.slots.is_empty() {
        return Ok(Hosted);
    }
    let nodes = if nodes.is_empty() { String::from("its inputs and outputs") } else { nodes.join(", ") };
    fail!(Artifact, "the model needs host routines (feature `host` of the runtime, which this one is built without): {nodes}")
}

#[cfg_attr(not(feature = "host"), allow(unused_variables, reason = "nothing to keep"))]
fn finish(chosen: Chosen, parts: Parts, constants: *const u8, code: *const u8, keep: Keep) -> Arc<Model> {
    let Chosen { program, requirements, manifest, .. } = chosen;
    let mut inputs: Vec<PortInfo> = program.inputs.iter().map(|p| port_info(p, &program)).collect();
    let mut outputs: Vec<PortInfo> = program.outputs.iter().map(|p| port_info(p, &program)).collect();
    for &(output, input) in &program.states {
        outputs[output as usize].state = Some(input as usize);
        inputs[input as usize].state = Some(output as usize);
    }
    let on_gpu = is_gpu(&requirements.arch);
    let mut survey = Survey { program: &program, on_gpu, steps: Vec::new(), pointers: 0, extents: 0, scratch: 0 };
    survey.visit(&program.steps);
    let Survey { steps, pointers, extents, scratch, .. } = survey;
    let constants_bytes = program.constants().iter().map(|c| c.1).sum();
    let launch_room = (pointers, extents);
    Arc::new(Model {
        program,
        steps,
        launch_room,
        scratch,
        constants,
        code,
        #[cfg(feature = "gpu")]
        gpu: parts.gpu,
        #[cfg(feature = "host")]
        hosted: parts.hosted,
        constants_bytes,
        inputs,
        outputs,
        requirements,
        manifest,
        _keep: keep,
    })
}

fn port_info(port: &Port, program: &Program) -> PortInfo {
    use infc_artifact::program::SizeOp;
    let names: Vec<&str> = program.symbols.iter().map(|s| s.name.as_str()).collect();
    let dim = |size: &Size| match size.0.as_slice() {
        [SizeOp::Const(n)] => Dim::Fixed(*n),
        [SizeOp::Symbol(_)] => Dim::Symbol(size.text(&names)),
        _ => Dim::Expr(size.text(&names)),
    };
    let host = if port.is_host() { Some(program.slots[port.buffer as usize].ty.clone()) } else { None };
    PortInfo { name: port.name.clone(), dtype: DType(port.dtype), dims: port.dims.iter().map(dim).collect(), host, state: None }
}

/// One walk over all steps, in the order of their numbers.
struct Survey<'a> {
    program: &'a Program,
    /// Launches are for a GPU, but for those of the host.
    on_gpu: bool,
    steps: Vec<StepInfo>,
    pointers: usize,
    extents: usize,
    scratch: u64,
}

impl Survey<'_> {
    fn fixed(&self, size: &Size) -> bool {
        size.symbols().all(|s| self.program.symbols[s as usize].source != SymbolSource::Step)
    }
    fn fixed_buffer(&self, buffer: u32) -> bool {
        self.fixed(&self.program.buffers[buffer as usize].bytes)
    }
    fn visit(&mut self, steps: &[Step]) {
        for step in steps {
            let number = self.steps.len();
            self.steps.push(StepInfo::default());
            match step {
                Step::Launch { kernel, buffers, extents, tasks } | Step::HostLaunch { kernel, buffers, extents, tasks, .. } => {
                    let of_buffers = buffers.iter().flat_map(|v| [&v.offset, &self.program.buffers[v.buffer as usize].bytes]);
                    let mut sizes = of_buffers.chain(extents).chain([tasks]);
                    let fixed = sizes.all(|s| self.fixed(s));
                    self.steps[number] =
                        StepInfo { pointers: self.pointers, extents: self.extents, fixed, ..StepInfo::default() };
                    self.pointers += buffers.len();
                    self.extents += extents.len();
                    let scratch = match step {
                        Step::HostLaunch { .. } => self.program.host_kernels[*kernel as usize].scratch,
                        _ if self.on_gpu => 0,
                        _ => self.program.kernels[*kernel as usize].scratch,
                    };
                    self.scratch = self.scratch.max(scratch);
                }
                Step::If { then, otherwise, .. } => {
                    self.visit(then);
                    self.steps[number].otherwise = self.steps.len();
                    self.visit(otherwise);
                }
                Step::Loop { body, .. } => self.visit(body),
                Step::Copy { from, to, bytes } => {
                    let whole = [from, to].map(|v| self.fixed(&v.offset) && self.fixed_buffer(v.buffer));
                    self.steps[number].fixed = self.fixed(bytes) && whole == [true; 2];
                }
                Step::Require { left, right, .. } => self.steps[number].fixed = self.fixed(left) && self.fixed(right),
                Step::ToHost { buffer } | Step::ToDevice { buffer } => self.steps[number].fixed = self.fixed_buffer(*buffer),
                Step::Bind { .. } | Step::Host { .. } => {}
            }
            self.steps[number].end = self.steps.len();
        }
    }
}
