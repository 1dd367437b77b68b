//! The program of an artifact: buffers, symbols and steps, as plain data.
//!
//! Sizes that depend on the model's symbols are [`Size`] expressions, evaluated when shapes are bound. Steps run in order;
//! the runtime needs to know nothing else about a model.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// An integer expression over the program's symbols in postfix form. Division rounds down, by zero gives zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Size(pub Vec<SizeOp>);

/// One operation of a [`Size`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SizeOp {
    /// Pushes a constant.
    Const(i64),
    /// Pushes the value of a symbol.
    Symbol(u32),
    /// Sum of the two on top.
    Add,
    /// Product.
    Mul,
    /// Floor division.
    Div,
    /// Remainder of floor division.
    Mod,
    /// The smaller.
    Min,
    /// The larger.
    Max,
}

/// Element types that cross the border of a model, numbered as in ONNX's `TensorProto.DataType`.
pub type DTypeCode = u8;

/// An input or output of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The model's name for it.
    pub name: String,
    /// Element type. For a value of the host: that of strings, or 0 if it is no tensor.
    pub dtype: DTypeCode,
    /// Bytes of one element; 0 for a value of the host.
    pub element: u8,
    /// Dims.
    pub dims: Vec<Size>,
    /// The buffer it is; for a value of the host the slot.
    pub buffer: u32,
}

impl Port {
    /// True for a value of the host, which has no buffer: `buffer` is its slot.
    pub fn is_host(&self) -> bool {
        self.element == 0
    }
}

/// A place for a value of the host: strings, a sequence, an optional, a map, or a tensor on its way there or back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What is in it.
    pub ty: HostType,
    /// Where that comes from.
    pub place: SlotPlace,
}

/// Where the value of a slot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotPlace {
    /// The caller's value for an input.
    Input(u32),
    /// The value of an output.
    Output(u32),
    /// In the artifact's constants, in the form of the host's values.
    Constant {
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// A step makes it.
    Temp,
}

/// The type of a value of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostType {
    /// A tensor with dims that are known or not.
    Tensor(DTypeCode, Vec<Option<u64>>),
    /// A tensor of any rank.
    Any(DTypeCode),
    /// A list.
    Sequence(Box<HostType>),
    /// A value or nothing.
    Optional(Box<HostType>),
    /// A dictionary with keys of this type.
    Map(DTypeCode, Box<HostType>),
}

/// An operand or result of a [`Step::Host`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostValue {
    /// The value in a slot.
    Slot(u32),
    /// A tensor in a buffer.
    Tensor {
        /// Element type.
        dtype: DTypeCode,
        /// Dims; of a result, what it must have.
        dims: Vec<Size>,
        /// Its first element.
        view: View,
    },
}

/// A symbolic dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The model's name for it.
    pub name: String,
    /// Where its value comes from.
    pub source: SymbolSource,
}

/// Where a symbol's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolSource {
    /// Dim `axis` of input `input`.
    Input {
        /// Input number.
        input: u32,
        /// Axis.
        axis: u32,
    },
    /// A [`Step::Bind`] or the counter of a [`Step::Loop`] sets it.
    Step,
}

/// A buffer of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its size in bytes.
    pub bytes: Size,
    /// Where it lies.
    pub place: Place,
}

/// Where a buffer lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The caller's memory for an input.
    Input(u32),
    /// The caller's (or session's) memory for an output.
    Output(u32),
    /// In the artifact's constants, at this offset.
    Constant(u64),
    /// In the arena, live from step `first` to step `last` (numbered in depth-first order over all nested steps, both included).
    Arena {
        /// First step that touches it.
        first: u32,
        /// Last step that touches it.
        last: u32,
        /// Its place if it was decided at compile time (all sizes constant).
        offset: Option<u64>,
    },
    /// Kept by the session from run to run; starts as zeros.
    State(u32),
}

/// A place in a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The buffer.
    pub buffer: u32,
    /// Bytes from its start.
    pub offset: Size,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Runs a kernel.
    Launch {
        /// Which one.
        kernel: u32,
        /// Its buffers, in the order of its parameters.
        buffers: Vec<View>,
        /// Values of its symbols.
        extents: Vec<Size>,
        /// Number of tasks.
        tasks: Size,
    },
    /// Copies bytes; the ranges do not overlap.
    Copy {
        /// From here.
        from: View,
        /// To here.
        to: View,
        /// How many.
        bytes: Size,
    },
    /// Sets a symbol from an `i64` element; an error if it is not in `0..=bound`. With a bound of `i64::MAX`, buffers that
    /// depend on the symbol get their memory at this step, outside of the arena.
    Bind {
        /// The symbol.
        symbol: u32,
        /// The element.
        from: View,
        /// The largest value that buffers are made for.
        bound: Size,
    },
    /// An error with message `code` unless the two are equal or, if `or_one`, one of them is 1.
    Require {
        /// One side.
        left: Size,
        /// Other side.
        right: Size,
        /// 1 is fine too.
        or_one: bool,
        /// Which message.
        code: u32,
    },
    /// Runs one of two lists by a byte that is 0 or not.
    If {
        /// The condition.
        cond: View,
        /// Where it is not 0.
        then: Vec<Step>,
        /// Where it is 0.
        otherwise: Vec<Step>,
    },
    /// Runs a list `count` times, the counter being a symbol; ends early when the byte `cond` is 0 (looked at before each round).
    Loop {
        /// The symbol that counts from 0.
        counter: u32,
        /// How often at most.
        count: Size,
        /// The condition, if there is one.
        cond: Option<View>,
        /// What runs.
        body: Vec<Step>,
        /// Rounds may run in any order and at the same time, each with memory of its own for the buffers that live inside of the loop
        /// alone. Such a loop has no condition and only launches inside.
        apart: bool,
    },
    /// Calls a routine of the host. What goes wrong in it is an error of the node that message `code` names.
    Host {
        /// Its name.
        routine: String,
        /// Its attributes, in a form of its own.
        attributes: Vec<u8>,
        /// Operands; `None` is one that is left out.
        inputs: Vec<Option<HostValue>>,
        /// Results.
        outputs: Vec<HostValue>,
        /// The message with the node.
        code: u32,
    },
    /// Runs a kernel on the CPU beside the device that all other launches of the program run on.
    HostLaunch {
        /// Which one of [`Program::host_kernels`].
        kernel: u32,
        /// Its buffers, in the order of its parameters.
        buffers: Vec<View>,
        /// Values of its symbols.
        extents: Vec<Size>,
        /// Number of tasks.
        tasks: Size,
        /// The message with the node, and why it is here.
        code: u32,
    },
    /// Copies a buffer, as large as it is at this moment, from the device to the memory of the host that its steps use.
    ToHost {
        /// The buffer.
        buffer: u32,
    },
    /// Copies a buffer from there to the device.
    ToDevice {
        /// The buffer.
        buffer: u32,
    },
}

/// All views of all steps.
pub fn each_view(steps: &[Step], see: &mut dyn FnMut(&View)) {
    for step in steps {
        match step {
            Step::Launch { buffers, .. } | Step::HostLaunch { buffers, .. } => buffers.iter().for_each(&mut *see),
            Step::Copy { from, to, .. } => [from, to].into_iter().for_each(&mut *see),
            Step::Bind { from, .. } => see(from),
            Step::Require { .. } | Step::ToHost { .. } | Step::ToDevice { .. } => {}
            Step::If { cond, then, otherwise } => {
                see(cond);
                each_view(then, see);
                each_view(otherwise, see);
            }
            Step::Loop { cond, body, .. } => {
                cond.iter().for_each(&mut *see);
                each_view(body, see);
            }
            Step::Host { inputs, outputs, .. } => {
                for value in inputs.iter().flatten().chain(outputs) {
                    if let HostValue::Tensor { view, .. } = value {
                        see(view);
                    }
                }
            }
        }
    }
}

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// A readable name.
    pub name: String,
    /// Offset of its function in the code image.
    pub entry: u64,
    /// Bytes of scratch for one call.
    pub scratch: u64,
}

/// What can go wrong while running, with the words to say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The node: `Gather 'embed' (opset 18)`.
    pub node: String,
    /// What is wrong: `index out of range`.
    pub text: String,
}

/// A compiled model.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Program {
    /// Inputs in the model's order.
    pub inputs: Vec<Port>,
    /// Outputs in the model's order.
    pub outputs: Vec<Port>,
    /// Symbols.
    pub symbols: Vec<Symbol>,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// Kernels.
    pub kernels: Vec<Kernel>,
    /// What runs.
    pub steps: Vec<Step>,
    /// Messages of checks.
    pub messages: Vec<Message>,
    /// Pairs (output, input) of which the output of one run is the input of the next.
    pub states: Vec<(u32, u32)>,
    /// Bytes of the arena if all sizes are known at compile time.
    pub arena: Option<u64>,
    /// Threads of a session that is not told how many; 0 is one for each CPU. Without it, one.
    pub threads: Option<u32>,
    /// Places for values of the host.
    pub slots: Vec<Slot>,
    /// Kernels for the CPU beside the device, in a code section of their own.
    pub host_kernels: Vec<Kernel>,
}

/// Which buffers of a program for a device its steps touch there, and which on the host. Copies between the two sides are no touch, nor are
/// reads of sizes and conditions, which are taken from the side that has the buffer: the device, where that touches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sides {
    /// On the device, by buffer.
    pub device: Vec<bool>,
    /// On the host.
    pub host: Vec<bool>,
    /// By a copy between them.
    pub copied: Vec<bool>,
}

/// All steps in depth-first order, as they are numbered.
pub fn each_step<'a>(steps: &'a [Step], see: &mut dyn FnMut(&'a Step)) {
    for step in steps {
        see(step);
        match step {
            Step::If { then, otherwise, .. } => {
                each_step(then, see);
                each_step(otherwise, see);
            }
            Step::Loop { body, .. } => each_step(body, see),
            Step::Launch { .. }
            | Step::Copy { .. }
            | Step::Bind { .. }
            | Step::Require { .. }
            | Step::Host { .. }
            | Step::HostLaunch { .. }
            | Step::ToHost { .. }
            | Step::ToDevice { .. } => {}
        }
    }
}

impl Program {
    /// Does it have launches on the CPU beside a device, or copies between the two?
    pub fn two_sided(&self) -> bool {
        let mut found = !self.host_kernels.is_empty();
        each_step(&self.steps, &mut |step| {
            found |= matches!(step, Step::HostLaunch { .. } | Step::ToHost { .. } | Step::ToDevice { .. });
        });
        found
    }

    /// Where the steps of a program for a device touch its buffers. Views must be those of a program that was validated.
    pub fn sides(&self) -> Sides {
        let none = || alloc::vec![false; self.buffers.len()];
        let mut sides = Sides { device: none(), host: none(), copied: none() };
        each_step(&self.steps, &mut |step| match step {
            Step::Launch { buffers, .. } => buffers.iter().for_each(|v| sides.device[v.buffer as usize] = true),
            Step::Copy { from, to, .. } => [from, to].iter().for_each(|v| sides.device[v.buffer as usize] = true),
            Step::HostLaunch { buffers, .. } => buffers.iter().for_each(|v| sides.host[v.buffer as usize] = true),
            Step::Host { inputs, outputs, .. } => {
                for value in inputs.iter().flatten().chain(outputs) {
                    if let HostValue::Tensor { view, .. } = value {
                        sides.host[view.buffer as usize] = true;
                    }
                }
            }
            Step::ToHost { buffer } | Step::ToDevice { buffer } => sides.copied[*buffer as usize] = true,
            Step::Bind { .. } | Step::If { .. } | Step::Require { .. } | Step::Loop { .. } => {}
        });
        sides
    }

    /// The nodes that run on the host, in the order of the steps, each once: `StringConcat 'join' (opset 20)`.
    pub fn host_nodes(&self) -> Vec<&str> {
        fn walk<'a>(program: &'a Program, steps: &[Step], out: &mut Vec<&'a str>) {
            for step in steps {
                match step {
                    Step::Host { code, .. } | Step::HostLaunch { code, .. } => {
                        let node = program.messages.get(*code as usize).map_or("", |m| m.node.as_str());
                        if !out.contains(&node) {
                            out.push(node);
                        }
                    }
                    Step::If { then, otherwise, .. } => {
                        walk(program, then, out);
                        walk(program, otherwise, out);
                    }
                    Step::Loop { body, .. } => walk(program, body, out),
                    Step::Launch { .. }
                    | Step::Copy { .. }
                    | Step::Bind { .. }
                    | Step::Require { .. }
                    | Step::ToHost { .. }
                    | Step::ToDevice { .. } => {}
                }
            }
        }
        let mut out = Vec::new();
        walk(self, &self.steps, &mut out);
        out
    }

    /// The parts of the constants that the program uses, each as offset and bytes: in order, those that touch or overlap joined.
    pub fn constants(&self) -> Vec<(u64, u64)> {
        let of_buffer = |b: &Buffer| match b.place {
            Place::Constant(offset) => Some((offset, b.bytes.known().and_then(|n| u64::try_from(n).ok()).unwrap_or(0))),
            Place::Input(_) | Place::Output(_) | Place::Arena { .. } | Place::State(_) => None,
        };
        let of_slot = |s: &Slot| match s.place {
            SlotPlace::Constant { offset, bytes } => Some((offset, bytes)),
            SlotPlace::Input(_) | SlotPlace::Output(_) | SlotPlace::Temp => None,
        };
        let mut parts: Vec<(u64, u64)> = self.buffers.iter().filter_map(of_buffer).collect();
        parts.extend(self.slots.iter().filter_map(of_slot));
        parts.retain(|p| p.1 > 0);
        parts.sort_unstable();
        let mut out: Vec<(u64, u64)> = Vec::new();
        for (offset, bytes) in parts {
            match out.last_mut() {
                Some(last) if offset <= last.0.saturating_add(last.1) => {
                    last.1 = last.1.max(offset.saturating_add(bytes) - last.0);
                }
                _ => out.push((offset, bytes)),
            }
        }
        out
    }
}

/// The most threads that a program may ask for.
pub const MAX_THREADS: u32 = 1024;

impl Size {
    /// A constant.
    pub fn constant(value: i64) -> Size {
        Size(alloc::vec![SizeOp::Const(value)])
    }
    /// Its value if it is a constant.
    pub fn known(&self) -> Option<i64> {
        match self.0.as_slice() {
            [SizeOp::Const(c)] => Some(*c),
            _ => None,
        }
    }
    /// Its value for the symbols given. Ill-formed code gives `None`.
    pub fn eval(&self, symbols: &[i64]) -> Option<i64> {
        // Depth is bounded by `Program::validate`; a fixed stack keeps the run path free of allocation.
        let mut stack = [0i64; Size::DEPTH];
        let mut top = 0;
        for op in &self.0 {
            let value = match *op {
                SizeOp::Const(c) => c,
                SizeOp::Symbol(s) => *symbols.get(s as usize)?,
                _ => {
                    top = usize::checked_sub(top, 2)?;
                    let (a, b) = (*stack.get(top)?, *stack.get(top + 1)?);
                    match op {
                        SizeOp::Add => a.saturating_add(b),
                        SizeOp::Mul => a.saturating_mul(b),
                        SizeOp::Div if b == 0 => 0,
                        SizeOp::Mod if b == 0 => 0,
                        SizeOp::Div => a.wrapping_div(b) - i64::from(a.wrapping_rem(b) != 0 && (a < 0) != (b < 0)),
                        SizeOp::Mod => match a.wrapping_rem(b) {
                            r if r != 0 && (r < 0) != (b < 0) => r + b,
                            r => r,
                        },
                        SizeOp::Min => a.min(b),
                        SizeOp::Max => a.max(b),
                        SizeOp::Const(_) | SizeOp::Symbol(_) => return None,
                    }
                }
            };
            *stack.get_mut(top)? = value;
            top += 1;
        }
        (top == 1).then_some(stack[0])
    }
    /// The deepest stack an expression may need.
    pub const DEPTH: usize = 64;
}
