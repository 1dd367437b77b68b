//! The driver of an object file: the steps of a program as one function that calls the kernels, written with Cranelift's builder.
//!
//! The function does what the runtime does for an artifact (`infc-runtime`, `exec.rs`), with memory of the caller and without an
//! allocator: every size is a constant, or an expression over dims that the caller gives, loop counters and values that a step reads; all are bounded. The kernels and the
//! constants are symbols of the same object (`object`).

use crate::object::Name;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{self, I8, I32, I64};
use cranelift_codegen::ir::{
    AbiParam, Block, BlockArg, ExtFuncData, ExternalName, FuncRef, Function, GlobalValueData, InstBuilder, MemFlagsData,
    Signature, StackSlotData, StackSlotKind, UserFuncName, Value,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use infc_artifact::abi::ALIGN;
use infc_artifact::program::{Place, Program, Size, SizeOp, Step, View};
use infc_ir::{Fault, fault};
use infc_kernel::bounded::{self, Layout, changes};
use std::collections::HashMap;

/// The status of a dim that is out of bounds is -2, that of memory that is not aligned -1.
const OUT_OF_BOUNDS: &str = "a dim is below 0 or more than there is memory for";
const UNALIGNED: &str = "the arena or the state is not aligned to 64 bytes";

/// A driver.
pub struct Driver {
    /// Its functions: the end of their names (`_run`), and what they do.
    pub functions: Vec<(&'static str, Function)>,
    /// What `_message` reads: 32-bit distances of texts from the start, and these.
    pub texts: Vec<u8>,
    /// What a status of 1 + its index means.
    pub messages: Vec<String>,
    /// Bytes of state: one slot for each pair of the program's states.
    pub state_bytes: u64,
}

/// Where scratch memory begins in the arena.
pub fn scratch(layout: &Layout) -> u64 {
    layout.arena.next_multiple_of(ALIGN as u64)
}

/// The driver of a program. `mode` is the default floating-point environment; programs call it by a `convention`.
pub fn driver(
    program: &Program,
    layout: &Layout,
    mode: i64,
    convention: CallConv,
    config: TargetFrontendConfig,
) -> Result<Driver, Fault> {
    let (slots, state_bytes) = layout.state(program);
    let messages: Vec<String> = program.messages.iter().map(|m| format!("{}: {}", m.node, m.text)).collect();
    let (run, messages) = run(program, layout, slots, (mode, convention), messages, config)?;
    let mut functions = vec![("_run", run)];
    if state_bytes > 0 {
        functions.push(("_reset", reset(state_bytes, convention, config)));
    }
    let (message, texts) = message(&messages, bounded::given(program).next().is_some(), convention, config);
    functions.push(("_message", message));
    Ok(Driver { functions, texts, messages, state_bytes })
}

/// Kernels are called as on Linux everywhere.
fn signature(params: &[types::Type], returns: &[types::Type]) -> Signature {
    outside(CallConv::SystemV, params, returns)
}

/// A function that the system's programs call, or one of the C library, by the system's convention.
fn outside(convention: CallConv, params: &[types::Type], returns: &[types::Type]) -> Signature {
    let mut signature = Signature::new(convention);
    signature.params = params.iter().map(|&t| AbiParam::new(t)).collect();
    signature.returns = returns.iter().map(|&t| AbiParam::new(t)).collect();
    signature
}

/// Writes a function of these parameters.
fn written<T>(
    signature: Signature,
    body: impl FnOnce(FunctionBuilder, &[Value]) -> (T, Option<Fault>),
) -> Result<(Function, T), Fault> {
    let mut function = Function::with_name_signature(UserFuncName::user(Name::NAMESPACE, 0), signature);
    let mut context = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut function, &mut context);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let params = b.block_params(entry).to_vec();
    let (out, fault) = body(b, &params);
    match fault {
        Some(fault) => Err(fault),
        None => Ok((function, out)),
    }
}

/// The address of data of the object.
fn data(b: &mut FunctionBuilder, name: Name) -> Value {
    let name = b.func.declare_imported_user_function(name.external());
    let global = GlobalValueData::Symbol { name: ExternalName::user(name), offset: 0.into(), colocated: true, tls: false };
    let global = b.create_global_value(global);
    b.ins().symbol_value(I64, global)
}

/// A function of the object, or of the C library.
fn function(b: &mut FunctionBuilder, name: Name, signature: Signature) -> FuncRef {
    let name = b.func.declare_imported_user_function(name.external());
    let signature = b.import_signature(signature);
    b.import_function(ExtFuncData { name: ExternalName::user(name), signature, colocated: true, patchable: false })
}

/// `NAME_message`: from a status to its text.
fn message(messages: &[String], dims: bool, convention: CallConv, config: TargetFrontendConfig) -> (Function, Vec<u8>) {
    let first: &[&str] = if dims { &[OUT_OF_BOUNDS, UNALIGNED, "done"] } else { &[UNALIGNED, "done"] };
    let before = first.len() as i64 - 1;
    let all: Vec<&str> = first.iter().copied().chain(messages.iter().map(String::as_str)).chain(["no such status"]).collect();
    let (mut starts, mut bytes): (Vec<u8>, Vec<u8>) = (vec![], vec![]);
    for text in &all {
        starts.extend((4 * all.len() as u32 + bytes.len() as u32).to_le_bytes());
        bytes.extend(text.bytes().filter(|&b| b != 0).chain([0]));
    }
    let last = all.len() as i64 - 1;
    let made = written(outside(convention, &[I32], &[I64]), |mut b, params| {
        let texts = data(&mut b, Name::Texts);
        let wide = b.ins().sextend(I64, params[0]);
        let row = b.ins().iadd_imm_s(wide, before);
        let known = b.ins().icmp_imm_u(IntCC::UnsignedLessThan, row, last);
        let end = b.ins().iconst(I64, last);
        let index = b.ins().select(known, row, end);
        let at = b.ins().ishl_imm_u(index, 2);
        let at = b.ins().iadd(texts, at);
        let start = b.ins().load(I32, MemFlagsData::new().with_notrap(), at, 0);
        let start = b.ins().uextend(I64, start);
        let text = b.ins().iadd(texts, start);
        b.ins().return_(&[text]);
        b.seal_all_blocks();
        b.finalize(config);
        ((), None)
    });
    (made.unwrap_or_else(|e| unreachable!("it cannot fail: {}", e.0)).0, [starts, bytes].concat())
}

/// `NAME_reset`.
fn reset(bytes: u64, convention: CallConv, config: TargetFrontendConfig) -> Function {
    let made = written(outside(convention, &[I64], &[]), |mut b, params| {
        let memset = function(&mut b, Name::Memset, outside(convention, &[I64, I32, I64], &[I64]));
        let (zero, bytes) = (b.ins().iconst(I32, 0), b.ins().iconst(I64, bytes as i64));
        b.ins().call(memset, &[params[0], zero, bytes]);
        b.ins().return_(&[]);
        b.seal_all_blocks();
        b.finalize(config);
        ((), None)
    });
    made.unwrap_or_else(|e| unreachable!("it cannot fail: {}", e.0)).0
}

/// A number of 64 bits.
#[derive(Clone, Copy)]
enum Number {
    Known(i64),
    Value(Value),
}

struct Emit<'a, 'f> {
    b: FunctionBuilder<'f>,
    program: &'a Program,
    layout: &'a Layout,
    /// Inputs that are state, with the place of their slot.
    slots: Vec<(usize, u64)>,
    messages: Vec<String>,
    kernels: HashMap<usize, FuncRef>,
    memcpy: FuncRef,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// Where the dims of outputs that change go, or null.
    dims: Vec<Option<Value>>,
    constants: Value,
    arena: Value,
    scratch: Value,
    /// Memory of the stack: pointers and extents of a launch, and the symbols.
    pointers: Value,
    extents: Value,
    symbols: Value,
    /// Where the run ends, with a status.
    end: Block,
}

/// `NAME_run`, and all messages.
fn run(
    program: &Program,
    layout: &Layout,
    slots: Vec<(usize, u64)>,
    (mode, convention): (i64, CallConv),
    messages: Vec<String>,
    config: TargetFrontendConfig,
) -> Result<(Function, Vec<String>), Fault> {
    // The dims stand behind the pointers to inputs and outputs, the state behind them.
    let given: Vec<usize> = bounded::given(program).collect();
    let state = 2 + given.len();
    let params = vec![I64; state + if slots.is_empty() { 1 } else { 2 }];
    written(outside(convention, &params, &[I32]), |mut b, params| {
        let (pointers, extents) = most(&program.steps);
        let memory = |b: &mut FunctionBuilder, words: usize| {
            let data = StackSlotData::new(StackSlotKind::ExplicitSlot, 8 * words.max(1) as u32, 4);
            let slot = b.create_sized_stack_slot(data);
            b.ins().stack_addr(I64, slot, 0)
        };
        let (pointers, extents) = (memory(&mut b, pointers), memory(&mut b, extents));
        let (symbols, modes) = (memory(&mut b, program.symbols.len()), memory(&mut b, 2));
        let arena = *params.last().expect("the arena");
        let mut low = arena;
        if !slots.is_empty() {
            low = b.ins().bor(arena, params[state]);
        }
        let low = b.ins().band_imm_u(low, 63);
        let (start, unaligned, end) = (b.create_block(), b.create_block(), b.create_block());
        let status = b.append_block_param(end, I32);
        let none: [BlockArg; 0] = [];
        b.ins().brif(low, unaligned, &none, start, &none);
        b.switch_to_block(unaligned);
        let minus = b.ins().iconst(I32, 0xffff_ffff);
        b.ins().return_(&[minus]);
        b.switch_to_block(start);
        for (&dim, &symbol) in params[2..].iter().zip(&given) {
            // Unsigned, so that what is below 0 is too large.
            let most = b.ins().iconst(I64, layout.ranges[symbol].1);
            let fits = b.ins().icmp(IntCC::UnsignedLessThanOrEqual, dim, most);
            let (go_on, large) = (b.create_block(), b.create_block());
            b.ins().brif(fits, go_on, &none, large, &none);
            b.switch_to_block(large);
            let minus = b.ins().iconst(I32, 0xffff_fffe);
            b.ins().return_(&[minus]);
            b.switch_to_block(go_on);
        }
        // The default floating-point environment, whatever the caller's thread has set.
        let save = function(&mut b, Name::SaveMode, signature(&[I64], &[]));
        let set = function(&mut b, Name::SetMode, signature(&[I64], &[]));
        b.ins().call(save, &[modes]);
        let default = b.ins().iadd_imm_s(modes, 8);
        let word = b.ins().iconst(I64, mode);
        b.ins().store(MemFlagsData::new().with_notrap(), word, default, 0);
        b.ins().call(set, &[default]);
        let zero = b.ins().iconst(I64, 0);
        for s in 0..program.symbols.len() {
            let first = given.iter().position(|&g| g == s).map_or(zero, |k| params[2 + k]);
            b.ins().store(MemFlagsData::new().with_notrap(), first, symbols, 8 * s as i32);
        }
        let scratch = b.ins().iadd_imm_s(arena, scratch(layout) as i64);
        let memcpy = function(&mut b, Name::Memcpy, outside(convention, &[I64; 3], &[I64]));
        let constants = data(&mut b, Name::Constants);
        let (kernels, inputs, outputs, dims) = (HashMap::new(), vec![], vec![], vec![]);
        let mut e = Emit {
            b,
            program,
            layout,
            slots,
            messages,
            kernels,
            memcpy,
            inputs,
            outputs,
            dims,
            constants,
            arena,
            scratch,
            pointers,
            extents,
            symbols,
            end,
        };
        let done = e.whole(params, state);
        let fault = done.err();
        if fault.is_none() {
            let ok = e.b.ins().iconst(I32, 0);
            e.b.ins().jump(end, &[BlockArg::Value(ok)]);
            e.b.switch_to_block(end);
            e.b.ins().call(set, &[modes]);
            e.b.ins().return_(&[status]);
            e.b.seal_all_blocks();
            e.b.finalize(config);
        }
        (e.messages, fault)
    })
}

impl Emit<'_, '_> {
    /// `state` is the parameter that is the state, if there is one.
    fn whole(&mut self, params: &[Value], state: usize) -> Result<(), Fault> {
        self.ports(params, state);
        self.list(&self.program.steps)?;
        self.tell_dims()?;
        // Outputs that are the state of the next run.
        for &(output, input) in &self.program.states {
            let buffer = self.program.inputs[input as usize].buffer as usize;
            let bytes = self.size(&self.program.buffers[buffer].bytes)?;
            let bytes = self.value(bytes);
            self.b.ins().call(self.memcpy, &[self.inputs[input as usize], self.outputs[output as usize], bytes]);
        }
        Ok(())
    }

    fn flags() -> MemFlagsData {
        MemFlagsData::new().with_notrap()
    }

    /// Loads the caller's pointers. Inputs that are state have none.
    fn ports(&mut self, params: &[Value], state: usize) {
        let mut given = 0;
        for i in 0..self.program.inputs.len() {
            let input = match self.slots.iter().find(|s| s.0 == i) {
                Some(&(_, slot)) => self.b.ins().iadd_imm_s(params[state], slot as i64),
                None => {
                    given += 1;
                    self.b.ins().load(I64, Self::flags(), params[0], 8 * (given - 1))
                }
            };
            self.inputs.push(input);
        }
        let mut place = 0;
        let mut next = |e: &mut Self| {
            place += 8;
            e.b.ins().load(I64, Self::flags(), params[1], place - 8)
        };
        for port in &self.program.outputs {
            let output = next(self);
            self.outputs.push(output);
            let dims = changes(port).then(|| next(self));
            self.dims.push(dims);
        }
    }

    /// Dims of outputs that change, where the caller wants them.
    fn tell_dims(&mut self) -> Result<(), Fault> {
        for (i, port) in self.program.outputs.iter().enumerate() {
            let Some(to) = self.dims[i] else { continue };
            let (tell, after) = (self.b.create_block(), self.b.create_block());
            self.branch(to, tell, after);
            self.b.switch_to_block(tell);
            for (axis, dim) in port.dims.iter().enumerate() {
                let dim = self.size(dim)?;
                let dim = self.value(dim);
                self.b.ins().store(Self::flags(), dim, to, 8 * axis as i32);
            }
            self.jump(after);
            self.b.switch_to_block(after);
        }
        Ok(())
    }

    /// Narrows a condition to values of a symbol that its bound allows.
    fn bounded(&mut self, name: &str, value: Value, good: Option<Value>) -> Option<Value> {
        let Some(&most) = self.layout.bounds.get(name) else { return good };
        let most = self.b.ins().iconst(I64, most);
        let fits = self.b.ins().icmp(IntCC::UnsignedLessThanOrEqual, value, most);
        Some(good.map_or(fits, |good| self.b.ins().band(good, fits)))
    }

    fn list(&mut self, steps: &[Step]) -> Result<(), Fault> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn branch(&mut self, cond: Value, yes: Block, no: Block) {
        let none: [BlockArg; 0] = [];
        self.b.ins().brif(cond, yes, &none, no, &none);
    }

    fn jump(&mut self, to: Block) {
        let none: [BlockArg; 0] = [];
        self.b.ins().jump(to, &none);
    }

    fn value(&mut self, n: Number) -> Value {
        match n {
            Number::Known(n) => self.b.ins().iconst(I64, n),
            Number::Value(v) => v,
        }
    }

    fn symbol(&mut self, s: u32) -> Value {
        self.b.ins().load(I64, Self::flags(), self.symbols, 8 * s as i32)
    }

    fn set_symbol(&mut self, s: u32, v: Value) {
        self.b.ins().store(Self::flags(), v, self.symbols, 8 * s as i32);
    }

    fn step(&mut self, step: &Step) -> Result<(), Fault> {
        match step {
            Step::Launch { kernel, buffers, extents, tasks } => self.launch(*kernel as usize, buffers, extents, tasks)?,
            Step::Copy { from, to, bytes } => {
                let bytes = self.size(bytes)?;
                let (from, to) = (self.address(from, bytes)?, self.address(to, bytes)?);
                let bytes = self.value(bytes);
                self.b.ins().call(self.memcpy, &[to, from, bytes]);
            }
            Step::Bind { symbol, from, bound } => {
                let (at, bound) = (self.address(from, Number::Known(8))?, self.size(bound)?);
                let value = self.b.ins().load(I64, Self::flags(), at, 0);
                let bound = self.value(bound);
                let good = self.b.ins().icmp(IntCC::UnsignedLessThanOrEqual, value, bound);
                let name = &self.program.symbols[*symbol as usize].name;
                let good = self.bounded(name, value, Some(good)).expect("a condition");
                self.check(good, format!("the size '{name}' is out of its range"));
                self.set_symbol(*symbol, value);
            }
            Step::Require { left, right, or_one, code } => {
                let (a, b) = (self.size(left)?, self.size(right)?);
                let (a, b) = (self.value(a), self.value(b));
                let mut good = self.b.ins().icmp(IntCC::Equal, a, b);
                if *or_one {
                    for side in [a, b] {
                        let one = self.b.ins().icmp_imm_u(IntCC::Equal, side, 1);
                        good = self.b.ins().bor(good, one);
                    }
                }
                let code = self.b.ins().iconst(I32, i64::from(code + 1));
                self.check_code(good, code);
            }
            Step::If { cond, then, otherwise } => {
                let flag = self.flag(cond)?;
                let (yes, no, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
                self.branch(flag, yes, no);
                for (block, steps) in [(yes, then), (no, otherwise)] {
                    self.b.switch_to_block(block);
                    self.list(steps)?;
                    self.jump(after);
                }
                self.b.switch_to_block(after);
            }
            Step::HostLaunch { .. } | Step::ToHost { .. } | Step::ToDevice { .. } => {
                return Err(fault!("a step runs beside a device, which code without the runtime does not have"));
            }
            Step::Host { code, .. } => {
                let node = &self.program.messages[*code as usize].node;
                return Err(fault!("{node} runs on the host, which code without the runtime does not have"));
            }
            Step::Loop { counter, count, cond, body, .. } => {
                let (head, round, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
                let count = self.size(count)?;
                let count = self.value(count);
                let zero = self.b.ins().iconst(I64, 0);
                self.set_symbol(*counter, zero);
                self.jump(head);
                self.b.switch_to_block(head);
                let now = self.symbol(*counter);
                let mut more = self.b.ins().icmp(IntCC::SignedLessThan, now, count);
                if let Some(cond) = cond {
                    let flag = self.flag(cond)?;
                    more = self.b.ins().band(more, flag);
                }
                self.branch(more, round, after);
                self.b.switch_to_block(round);
                let name = &self.program.symbols[*counter as usize].name;
                if let Some(fits) = self.bounded(name, now, None) {
                    self.check(fits, format!("the size '{name}' is out of its range"));
                }
                self.list(body)?;
                let now = self.symbol(*counter);
                let next = self.b.ins().iadd_imm_s(now, 1);
                self.set_symbol(*counter, next);
                self.jump(head);
                self.b.switch_to_block(after);
            }
        }
        Ok(())
    }

    fn launch(&mut self, kernel: usize, buffers: &[View], extents: &[Size], tasks: &Size) -> Result<(), Fault> {
        if tasks.eval(&[]).is_some_and(|n| n <= 0) {
            return Ok(());
        }
        let tasks = self.size(tasks)?;
        let after = self.b.create_block();
        let tasks = match tasks {
            Number::Known(_) => self.value(tasks),
            Number::Value(tasks) => {
                let launch = self.b.create_block();
                let some = self.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, tasks, 0);
                self.branch(some, launch, after);
                self.b.switch_to_block(launch);
                tasks
            }
        };
        for (i, view) in buffers.iter().enumerate() {
            let address = self.address(view, Number::Known(0))?;
            self.b.ins().store(Self::flags(), address, self.pointers, 8 * i as i32);
        }
        for (i, extent) in extents.iter().enumerate() {
            let extent = self.size(extent)?;
            let extent = self.value(extent);
            self.b.ins().store(Self::flags(), extent, self.extents, 8 * i as i32);
        }
        let callee = match self.kernels.get(&kernel) {
            Some(&callee) => callee,
            None => {
                let callee = function(&mut self.b, Name::Kernel(kernel as u32), signature(&[I64; 5], &[I64]));
                self.kernels.insert(kernel, callee);
                callee
            }
        };
        let zero = self.b.ins().iconst(I64, 0);
        let call = self.b.ins().call(callee, &[self.pointers, self.extents, self.scratch, zero, tasks]);
        let status = self.b.inst_results(call)[0];
        let good = self.b.ins().icmp_imm_u(IntCC::Equal, status, 0);
        let code = self.b.ins().ireduce(I32, status);
        self.check_code(good, code);
        self.jump(after);
        self.b.switch_to_block(after);
        Ok(())
    }

    /// Ends the run with a message unless `good`.
    fn check(&mut self, good: Value, message: String) {
        let code = match self.messages.iter().position(|m| *m == message) {
            Some(at) => at + 1,
            None => {
                self.messages.push(message);
                self.messages.len()
            }
        };
        let code = self.b.ins().iconst(I32, code as i64);
        self.check_code(good, code);
    }

    fn check_code(&mut self, good: Value, code: Value) {
        let after = self.b.create_block();
        let none: [BlockArg; 0] = [];
        self.b.ins().brif(good, after, &none, self.end, &[BlockArg::Value(code)]);
        self.b.switch_to_block(after);
    }

    /// A byte as a condition.
    fn flag(&mut self, view: &View) -> Result<Value, Fault> {
        let at = self.address(view, Number::Known(1))?;
        let byte = self.b.ins().load(I8, Self::flags(), at, 0);
        Ok(self.b.ins().icmp_imm_u(IntCC::NotEqual, byte, 0))
    }

    /// The address of `bytes` bytes of a buffer; checked unless it is constant, which `Program::validate` has checked.
    fn address(&mut self, view: &View, bytes: Number) -> Result<Value, Fault> {
        let (base, start) = match &self.program.buffers[view.buffer as usize].place {
            Place::Input(i) => (self.inputs[*i as usize], 0),
            Place::Output(i) => (self.outputs[*i as usize], 0),
            Place::Constant(offset) => (self.constants, *offset),
            Place::Arena { .. } => (self.arena, self.layout.offsets[view.buffer as usize]),
            Place::State(_) => {
                return Err(fault!("buffer {} is kept by a session, which code without the runtime has not", view.buffer));
            }
        };
        let offset = self.size(&view.offset)?;
        if !matches!((offset, bytes), (Number::Known(_), Number::Known(_))) {
            let size = self.layout.bytes[view.buffer as usize] as i64;
            // Unsigned, so that a negative offset or length is too large; each is below 2^63, so that the sum does not wrap.
            let (offset, bytes) = (self.value(offset), self.value(bytes));
            let end = self.b.ins().iadd(offset, bytes);
            let parts = [offset, bytes, end].map(|v| self.b.ins().icmp_imm_u(IntCC::UnsignedLessThanOrEqual, v, size));
            let both = self.b.ins().band(parts[0], parts[1]);
            let good = self.b.ins().band(both, parts[2]);
            self.check(good, "a step leaves the memory of a value".to_owned());
        }
        let at = self.b.ins().iadd_imm_s(base, start as i64);
        let offset = self.value(offset);
        Ok(self.b.ins().iadd(at, offset))
    }

    /// The value of a size. As `Size::eval`.
    fn size(&mut self, size: &Size) -> Result<Number, Fault> {
        if let Some(value) = size.eval(&[]) {
            return Ok(Number::Known(value));
        }
        let mut stack: Vec<Value> = vec![];
        for op in &size.0 {
            let value = match op {
                SizeOp::Const(c) => self.value(Number::Known(*c)),
                SizeOp::Symbol(s) => self.symbol(*s),
                op => {
                    let (Some(b), Some(a)) = (stack.pop(), stack.pop()) else { return Err(fault!("a size lacks operands")) };
                    self.operation(*op, a, b)
                }
            };
            stack.push(value);
        }
        match (stack.pop(), stack.pop()) {
            (Some(value), None) => Ok(Number::Value(value)),
            _ => Err(fault!("a size is not one expression")),
        }
    }

    fn operation(&mut self, op: SizeOp, a: Value, b: Value) -> Value {
        match op {
            SizeOp::Min => self.b.ins().smin(a, b),
            SizeOp::Max => self.b.ins().smax(a, b),
            SizeOp::Add => {
                let sum = self.b.ins().iadd(a, b);
                // It overflows where both operands have another sign than the sum.
                let (x, y) = (self.b.ins().bxor(a, sum), self.b.ins().bxor(b, sum));
                let both = self.b.ins().band(x, y);
                let over = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, both, 0);
                self.saturated(over, a, sum)
            }
            SizeOp::Mul => {
                let (low, high) = (self.b.ins().imul(a, b), self.b.ins().smulhi(a, b));
                let sign = self.b.ins().sshr_imm_u(low, 63);
                let over = self.b.ins().icmp(IntCC::NotEqual, high, sign);
                let signs = self.b.ins().bxor(a, b);
                self.saturated(over, signs, low)
            }
            SizeOp::Div | SizeOp::Mod => self.floor(op == SizeOp::Div, a, b),
            SizeOp::Const(_) | SizeOp::Symbol(_) => unreachable!("not an operation"),
        }
    }

    /// `value`, or if it is over the least or the greatest number, by the sign.
    fn saturated(&mut self, over: Value, sign: Value, value: Value) -> Value {
        let sign = self.b.ins().sshr_imm_u(sign, 63);
        let most = self.b.ins().iconst(I64, i64::MAX);
        let end = self.b.ins().bxor(sign, most);
        self.b.ins().select(over, end, value)
    }

    /// Floor division and its remainder: 0 by zero; the least number by -1 wraps.
    fn floor(&mut self, quotient: bool, a: Value, b: Value) -> Value {
        let zero = self.b.ins().icmp_imm_u(IntCC::Equal, b, 0);
        let minus = self.b.ins().icmp_imm_s(IntCC::Equal, b, -1);
        let special = self.b.ins().bor(zero, minus);
        let (none, one) = (self.b.ins().iconst(I64, 0), self.b.ins().iconst(I64, 1));
        let divisor = self.b.ins().select(special, one, b);
        let q = self.b.ins().sdiv(a, divisor);
        let multiple = self.b.ins().imul(q, divisor);
        let r = self.b.ins().isub(a, multiple);
        let rest = self.b.ins().icmp_imm_u(IntCC::NotEqual, r, 0);
        let signs = self.b.ins().bxor(r, divisor);
        let differ = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, signs, 0);
        let down = self.b.ins().band(rest, differ);
        let (plain, of_minus) = if quotient {
            let lower = self.b.ins().iadd_imm_s(q, -1);
            (self.b.ins().select(down, lower, q), self.b.ins().ineg(a))
        } else {
            let upper = self.b.ins().iadd(r, divisor);
            (self.b.ins().select(down, upper, r), none)
        };
        let other = self.b.ins().select(minus, of_minus, plain);
        self.b.ins().select(zero, none, other)
    }
}

/// The most buffers and extents that a launch has.
fn most(steps: &[Step]) -> (usize, usize) {
    steps.iter().fold((0, 0), |(p, e), step| {
        let (q, f) = match step {
            Step::Launch { buffers, extents, .. } => (buffers.len(), extents.len()),
            Step::If { then, otherwise, .. } => {
                let (a, b) = (most(then), most(otherwise));
                (a.0.max(b.0), a.1.max(b.1))
            }
            Step::Loop { body, .. } => most(body),
            Step::Copy { .. }
            | Step::Bind { .. }
            | Step::Require { .. }
            | Step::Host { .. }
            | Step::HostLaunch { .. }
            | Step::ToHost { .. }
            | Step::ToDevice { .. } => (0, 0),
        };
        (p.max(q), e.max(f))
    })
}
