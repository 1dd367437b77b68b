//! The driver of an object file: the steps of a program as one LLVM function that calls the kernels.
//!
//! The function does what the runtime does for an artifact (`infc-runtime`, `exec.rs`), with memory of the caller and without an
//! allocator: every size is a constant, or an expression over dims that the caller gives, loop counters and values that a step reads; all are bounded. The kernels and the
//! constants are symbols of the same object (`object`).

use crate::arch::Arch;
use infc_artifact::abi::ALIGN;
use infc_artifact::program::{Place, Program, Size, SizeOp, Step, SymbolSource, View};
use infc_ir::{Fault, fault};
use infc_kernel::backend::Os;
use infc_kernel::bounded::{self, Layout, changes};
use std::fmt::Write;

/// Name in the driver's module of kernel number `k`.
pub fn kernel_symbol(k: usize) -> String {
    format!("infc.kernel.{k}")
}

/// Name in the driver's module of the constants.
pub const CONSTANTS: &str = "infc.constants";

/// The status of a dim that is out of bounds is -2, that of memory that is not aligned -1.
const OUT_OF_BOUNDS: &str = "a dim is below 0 or more than there is memory for";
const UNALIGNED: &str = "the arena or the state is not aligned to 64 bytes";

/// A product of sizes that does not wrap, but ends at the largest or the least number: of magnitudes, whose high halves are not both above zero where it fits.
const PRODUCT: &str = "declare i64 @llvm.abs.i64(i64, i1)
define internal i64 @infc.product(i64 %a, i64 %b) #0 {
  %x = call i64 @llvm.abs.i64(i64 %a, i1 false)
  %y = call i64 @llvm.abs.i64(i64 %b, i1 false)
  %x1 = lshr i64 %x, 32
  %y1 = lshr i64 %y, 32
  %x0 = and i64 %x, 4294967295
  %y0 = and i64 %y, 4294967295
  %x2 = icmp ne i64 %x1, 0
  %y2 = icmp ne i64 %y1, 0
  %both = and i1 %x2, %y2
  %left = mul i64 %x1, %y0
  %right = mul i64 %x0, %y1
  %cross = add i64 %left, %right
  %far = icmp ugt i64 %cross, 2147483647
  %high = shl i64 %cross, 32
  %low = mul i64 %x0, %y0
  %sum = add i64 %high, %low
  %any = or i64 %low, %sum
  %top = icmp slt i64 %any, 0
  %wide = or i1 %both, %far
  %over = or i1 %wide, %top
  %signs = xor i64 %a, %b
  %negative = icmp slt i64 %signs, 0
  %minus = sub i64 0, %sum
  %product = select i1 %negative, i64 %minus, i64 %sum
  %end = select i1 %negative, i64 -9223372036854775808, i64 9223372036854775807
  %result = select i1 %over, i64 %end, i64 %product
  ret i64 %result
}
";

/// A driver.
pub struct Driver {
    /// Its module as LLVM assembly.
    pub text: String,
    /// What a status of 1 + its index means.
    pub messages: Vec<String>,
    /// Bytes of state: one slot for each pair of the program's states.
    pub state_bytes: u64,
}

/// For WebAssembly: a kernel of fewer tasks is called once, one of more so many times.
const FEW: i64 = 4;
const PARTS: i64 = 16;

/// Where scratch memory begins in the arena.
pub fn scratch(layout: &Layout) -> u64 {
    layout.arena.next_multiple_of(ALIGN as u64)
}

/// Prints the driver of a program whose functions are called `NAME_run`, `NAME_message` and `NAME_reset`. There are `constants` bytes of constants.
///
/// Kernels are called as on Linux everywhere. What programs of the operating system call, and what it calls of the C library, follows that system's convention, which
/// is another one on Windows on x86-64.
pub fn driver(program: &Program, layout: &Layout, name: &str, (arch, os): (Arch, Os), constants: u64) -> Result<Driver, Fault> {
    let (slots, state_bytes) = layout.state(program);
    let messages = program.messages.iter().map(|m| format!("{}: {}", m.node, m.text)).collect();
    let mut emit = Emit {
        program,
        layout,
        arch,
        convention: convention(arch, os),
        slots,
        scratch: scratch(layout),
        messages,
        text: String::new(),
        temps: 0,
        blocks: 0,
    };
    emit.run(name)?;
    emit.reset(name, state_bytes);
    let mut text = globals(program, constants);
    text += &emit.text;
    text += &message(name, emit.convention, bounded::given(program).next().is_some(), &emit.messages);
    text += match emit.convention {
        "" => "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)\ndeclare void @llvm.memset.p0.i64(ptr, i8, i64, i1)\n",
        _ => "declare win64cc ptr @memcpy(ptr, ptr, i64)\ndeclare win64cc ptr @memset(ptr, i32, i64)\n",
    };
    text += "declare i64 @llvm.sadd.sat.i64(i64, i64)\ndeclare {i64, i1} @llvm.smul.with.overflow.i64(i64, i64)\n\
             declare i64 @llvm.smin.i64(i64, i64)\ndeclare i64 @llvm.smax.i64(i64, i64)\n\
             attributes #1 = { nobuiltin }\n";
    let _ = writeln!(text, "attributes #0 = {{ nounwind \"no-builtins\" {} }}", arch.stack());
    text += match arch {
        Arch::X86 => "declare void @llvm.x86.sse.stmxcsr(ptr)\ndeclare void @llvm.x86.sse.ldmxcsr(ptr)\n",
        Arch::Arm => "declare i64 @llvm.aarch64.get.fpcr()\ndeclare void @llvm.aarch64.set.fpcr(i64)\n",
        Arch::Riscv => "",
        Arch::Wasm => PRODUCT,
    };
    Ok(Driver { text, messages: emit.messages, state_bytes })
}

/// How the system's programs call functions, where LLVM's default is not it.
fn convention(arch: Arch, os: Os) -> &'static str {
    if (arch, os) == (Arch::X86, Os::Windows) { "win64cc " } else { "" }
}

fn globals(program: &Program, constants: u64) -> String {
    let mut text = format!("@{CONSTANTS} = external hidden constant [{constants} x i8], align 64\n");
    for k in 0..program.kernels.len() {
        let _ = writeln!(text, "declare hidden i64 @{}(ptr, ptr, ptr, i64, i64)", kernel_symbol(k));
    }
    text
}

/// `NAME_message`: from a status to its text.
fn message(name: &str, convention: &str, dims: bool, messages: &[String]) -> String {
    let first: &[&str] = if dims { &[OUT_OF_BOUNDS, UNALIGNED, "done"] } else { &[UNALIGNED, "done"] };
    let texts = first.iter().copied().chain(messages.iter().map(String::as_str)).chain(["no such status"]);
    let before = first.len() - 1;
    let (mut bytes, mut starts) = (vec![], vec![]);
    for text in texts {
        starts.push(format!("i32 {}", bytes.len()));
        bytes.extend(text.bytes().filter(|&b| b != 0).chain([0]));
    }
    let literal: String = bytes.iter().map(|b| format!("\\{b:02X}")).collect();
    let (length, count) = (bytes.len(), starts.len());
    format!(
        "@infc.texts = private constant [{length} x i8] c\"{literal}\"\n\
         @infc.starts = private constant [{count} x i32] [{}]\n\
         define {convention}ptr @{name}_message(i32 %status) #0 {{\n  %wide = sext i32 %status to i64\n  %row = add i64 %wide, {before}\n  \
         %known = icmp ult i64 %row, {last}\n  %index = select i1 %known, i64 %row, i64 {last}\n  \
         %at = getelementptr i32, ptr @infc.starts, i64 %index\n  %start = load i32, ptr %at\n  %offset = zext i32 %start to i64\n  \
         %text = getelementptr i8, ptr @infc.texts, i64 %offset\n  ret ptr %text\n}}\n",
        starts.join(", "),
        last = count - 1
    )
}

struct Emit<'a> {
    program: &'a Program,
    layout: &'a Layout,
    arch: Arch,
    /// Before the types of functions that the system's programs call.
    convention: &'static str,
    /// Inputs that are state, with the place of their slot.
    slots: Vec<(usize, u64)>,
    scratch: u64,
    messages: Vec<String>,
    text: String,
    temps: usize,
    blocks: usize,
}

impl Emit<'_> {
    fn line(&mut self, text: &str) {
        self.text += "  ";
        self.text += text;
        self.text.push('\n');
    }

    /// A line that defines a value; its name.
    fn value(&mut self, text: &str) -> String {
        let name = format!("%t{}", self.temps);
        self.temps += 1;
        self.line(&format!("{name} = {text}"));
        name
    }

    /// A new label.
    fn block(&mut self) -> String {
        self.blocks += 1;
        format!("b{}", self.blocks)
    }

    /// Starts a block; the block before falls into it if `falls`.
    fn begin(&mut self, label: &str, falls: bool) {
        if falls {
            self.line(&format!("br label %{label}"));
        }
        let _ = writeln!(self.text, "{label}:");
    }

    /// `NAME_run`.
    fn run(&mut self, name: &str) -> Result<(), Fault> {
        let (pointers, extents) = most(&self.program.steps);
        let state = if self.slots.is_empty() { "" } else { "ptr %state, " };
        let dims: String = bounded::given(self.program).map(|s| format!("i64 %dim{s}, ")).collect();
        let _ = writeln!(
            self.text,
            "define {}i32 @{name}_run(ptr %inputs, ptr %outputs, {dims}{state}ptr %arena) #0 {{",
            self.convention
        );
        self.line(&format!("%pointers = alloca [{} x ptr], align 16", pointers.max(1)));
        self.line(&format!("%extents = alloca [{} x i64], align 16", extents.max(1)));
        self.line("%status = alloca i32");
        match self.arch {
            Arch::X86 => {
                self.line("%mode = alloca i32");
                self.line("%default = alloca i32");
            }
            Arch::Arm | Arch::Riscv => self.line("%mode = alloca i64"),
            Arch::Wasm => self.line("%task = alloca i64"),
        }
        for (s, symbol) in self.program.symbols.iter().enumerate() {
            let first = match symbol.source {
                SymbolSource::Step => "0".to_owned(),
                SymbolSource::Input { .. } => format!("%dim{s}"),
            };
            self.line(&format!("%symbol{s} = alloca i64"));
            self.line(&format!("store i64 {first}, ptr %symbol{s}"));
        }
        self.line("%low.0 = ptrtoint ptr %arena to i64");
        let mut low = "%low.0".to_owned();
        if !self.slots.is_empty() {
            self.line("%low.1 = ptrtoint ptr %state to i64");
            low = self.value("or i64 %low.0, %low.1");
        }
        let low = self.value(&format!("and i64 {low}, 63"));
        let aligned = self.value(&format!("icmp eq i64 {low}, 0"));
        self.line(&format!("br i1 {aligned}, label %start, label %unaligned"));
        self.begin("unaligned", false);
        self.line("ret i32 -1");
        self.begin("start", false);
        let dims: Vec<usize> = bounded::given(self.program).collect();
        if !dims.is_empty() {
            let mut fit = "true".to_owned();
            for s in dims {
                // Unsigned, so that what is below 0 is too large.
                let one = self.value(&format!("icmp ule i64 %dim{s}, {}", self.layout.ranges[s].1));
                fit = self.value(&format!("and i1 {fit}, {one}"));
            }
            self.line(&format!("br i1 {fit}, label %fits, label %large"));
            self.begin("large", false);
            self.line("ret i32 -2");
            self.begin("fits", false);
        }
        // The default floating-point environment, whatever the caller's thread has set.
        match self.arch {
            Arch::X86 => {
                self.line("call void @llvm.x86.sse.stmxcsr(ptr %mode)");
                self.line("store i32 8064, ptr %default");
                self.line("call void @llvm.x86.sse.ldmxcsr(ptr %default)");
            }
            Arch::Arm => {
                self.line("%fpcr = call i64 @llvm.aarch64.get.fpcr()");
                self.line("store i64 %fpcr, ptr %mode");
                self.line("call void @llvm.aarch64.set.fpcr(i64 0)");
            }
            // The rounding mode; there is nothing else to choose.
            Arch::Riscv => {
                self.line("%frm = call i64 asm sideeffect \"fsrm $0, zero\", \"=r\"()");
                self.line("store i64 %frm, ptr %mode");
            }
            // It has no other one.
            Arch::Wasm => {}
        }
        self.line(&format!("%scratch = getelementptr i8, ptr %arena, i64 {}", self.scratch));
        self.ports()?;
        self.list(&self.program.steps)?;
        self.tell_dims()?;
        self.keep_states()?;
        self.line("store i32 0, ptr %status");
        self.begin("end", true);
        match self.arch {
            Arch::X86 => self.line("call void @llvm.x86.sse.ldmxcsr(ptr %mode)"),
            Arch::Arm => {
                self.line("%before = load i64, ptr %mode");
                self.line("call void @llvm.aarch64.set.fpcr(i64 %before)");
            }
            Arch::Riscv => {
                self.line("%before = load i64, ptr %mode");
                self.line("call void asm sideeffect \"fsrm $0\", \"r\"(i64 %before)");
            }
            Arch::Wasm => {}
        }
        self.line("%result = load i32, ptr %status");
        self.line("ret i32 %result");
        self.text += "}\n";
        Ok(())
    }

    /// Loads the caller's pointers. Inputs that are state have none.
    fn ports(&mut self) -> Result<(), Fault> {
        let mut given = 0;
        for i in 0..self.program.inputs.len() {
            if let Some(&(_, slot)) = self.slots.iter().find(|s| s.0 == i) {
                self.line(&format!("%input{i} = getelementptr i8, ptr %state, i64 {slot}"));
                continue;
            }
            let at = self.value(&format!("getelementptr ptr, ptr %inputs, i64 {given}"));
            self.line(&format!("%input{i} = load ptr, ptr {at}, align {}", self.arch.pointer_bytes()));
            given += 1;
        }
        let mut place = 0;
        for (i, port) in self.program.outputs.iter().enumerate() {
            let names = [Some("output"), changes(port).then_some("dims")];
            for name in names.into_iter().flatten() {
                let at = self.value(&format!("getelementptr ptr, ptr %outputs, i64 {place}"));
                self.line(&format!("%{name}{i} = load ptr, ptr {at}, align {}", self.arch.pointer_bytes()));
                place += 1;
            }
        }
        Ok(())
    }

    /// Dims of outputs that change, where the caller wants them.
    fn tell_dims(&mut self) -> Result<(), Fault> {
        for (i, port) in self.program.outputs.iter().enumerate().filter(|(_, p)| changes(p)) {
            let (tell, after) = (self.block(), self.block());
            let wanted = self.value(&format!("icmp ne ptr %dims{i}, null"));
            self.line(&format!("br i1 {wanted}, label %{tell}, label %{after}"));
            self.begin(&tell, false);
            for (axis, dim) in port.dims.iter().enumerate() {
                let dim = self.size(dim)?;
                let at = self.value(&format!("getelementptr i64, ptr %dims{i}, i64 {axis}"));
                self.line(&format!("store i64 {dim}, ptr {at}, align 8"));
            }
            self.begin(&after, true);
        }
        Ok(())
    }

    /// Outputs that are the state of the next run.
    fn keep_states(&mut self) -> Result<(), Fault> {
        for &(output, input) in &self.program.states {
            let buffer = self.program.inputs[input as usize].buffer as usize;
            let bytes = self.size(&self.program.buffers[buffer].bytes)?;
            self.copy(&format!("%input{input}"), &format!("%output{output}"), &bytes);
        }
        Ok(())
    }

    /// `NAME_reset`, if there is state.
    fn reset(&mut self, name: &str, bytes: u64) {
        if !self.slots.is_empty() {
            let _ = writeln!(self.text, "define {}void @{name}_reset(ptr %state) #0 {{", self.convention);
            match self.convention {
                "" => self.line(&format!("call void @llvm.memset.p0.i64(ptr %state, i8 0, i64 {bytes}, i1 false)")),
                _ => self.line(&format!("call win64cc ptr @memset(ptr %state, i32 0, i64 {bytes}) #1")),
            }
            self.line("ret void");
            self.text += "}\n";
        }
    }

    /// Copies bytes. LLVM would call the C library by the convention of Linux.
    fn copy(&mut self, to: &str, from: &str, bytes: &str) {
        match self.convention {
            "" => self.line(&format!("call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {from}, i64 {bytes}, i1 false)")),
            _ => self.line(&format!("call win64cc ptr @memcpy(ptr {to}, ptr {from}, i64 {bytes}) #1")),
        }
    }

    fn list(&mut self, steps: &[Step]) -> Result<(), Fault> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&mut self, step: &Step) -> Result<(), Fault> {
        match step {
            Step::Launch { kernel, buffers, extents, tasks } => self.launch(*kernel as usize, buffers, extents, tasks)?,
            Step::Copy { from, to, bytes } => {
                let bytes = self.size(bytes)?;
                let (from, to) = (self.address(from, &bytes)?, self.address(to, &bytes)?);
                self.copy(&to, &from, &bytes);
            }
            Step::Bind { symbol, from, bound } => {
                let (at, bound) = (self.address(from, "8")?, self.size(bound)?);
                let value = self.value(&format!("load i64, ptr {at}, align 1"));
                let mut good = self.value(&format!("icmp ule i64 {value}, {bound}"));
                let name = &self.program.symbols[*symbol as usize].name;
                if let Some(most) = self.layout.bounds.get(name) {
                    let fits = self.value(&format!("icmp ule i64 {value}, {most}"));
                    good = self.value(&format!("and i1 {good}, {fits}"));
                }
                self.check(&good, format!("the size '{name}' is out of its range"));
                self.line(&format!("store i64 {value}, ptr %symbol{symbol}"));
            }
            Step::Require { left, right, or_one, code } => {
                let (a, b) = (self.size(left)?, self.size(right)?);
                let mut good = self.value(&format!("icmp eq i64 {a}, {b}"));
                if *or_one {
                    for side in [&a, &b] {
                        let one = self.value(&format!("icmp eq i64 {side}, 1"));
                        good = self.value(&format!("or i1 {good}, {one}"));
                    }
                }
                self.check_code(&good, &format!("{}", code + 1));
            }
            Step::If { cond, then, otherwise } => {
                let flag = self.flag(cond)?;
                let (yes, no, after) = (self.block(), self.block(), self.block());
                self.line(&format!("br i1 {flag}, label %{yes}, label %{no}"));
                self.begin(&yes, false);
                self.list(then)?;
                self.line(&format!("br label %{after}"));
                self.begin(&no, false);
                self.list(otherwise)?;
                self.begin(&after, true);
            }
            Step::HostLaunch { .. } | Step::ToHost { .. } | Step::ToDevice { .. } => {
                return Err(fault!("a step runs beside a device, which code without the runtime does not have"));
            }
            Step::Host { code, .. } => {
                let node = &self.program.messages[*code as usize].node;
                return Err(fault!("{node} runs on the host, which code without the runtime does not have"));
            }
            Step::Loop { counter, count, cond, body, .. } => {
                let (head, round, after) = (self.block(), self.block(), self.block());
                let count = self.size(count)?;
                self.line(&format!("store i64 0, ptr %symbol{counter}"));
                self.begin(&head, true);
                let now = self.value(&format!("load i64, ptr %symbol{counter}"));
                let mut more = self.value(&format!("icmp slt i64 {now}, {count}"));
                if let Some(cond) = cond {
                    let flag = self.flag(cond)?;
                    more = self.value(&format!("and i1 {more}, {flag}"));
                }
                self.line(&format!("br i1 {more}, label %{round}, label %{after}"));
                self.begin(&round, false);
                let name = &self.program.symbols[*counter as usize].name;
                if let Some(most) = self.layout.bounds.get(name) {
                    let fits = self.value(&format!("icmp ule i64 {now}, {most}"));
                    self.check(&fits, format!("the size '{name}' is out of its range"));
                }
                self.list(body)?;
                let now = self.value(&format!("load i64, ptr %symbol{counter}"));
                let next = self.value(&format!("add i64 {now}, 1"));
                self.line(&format!("store i64 {next}, ptr %symbol{counter}"));
                self.line(&format!("br label %{head}"));
                self.begin(&after, false);
            }
        }
        Ok(())
    }

    fn launch(&mut self, kernel: usize, buffers: &[View], extents: &[Size], tasks: &Size) -> Result<(), Fault> {
        if tasks.eval(&[]).is_some_and(|n| n <= 0) {
            return Ok(());
        }
        let tasks = self.size(tasks)?;
        let after = self.block();
        if tasks.parse::<i64>().is_err() {
            let launch = self.block();
            let some = self.value(&format!("icmp sgt i64 {tasks}, 0"));
            self.line(&format!("br i1 {some}, label %{launch}, label %{after}"));
            self.begin(&launch, false);
        }
        for (i, view) in buffers.iter().enumerate() {
            let address = self.address(view, "0")?;
            let at = self.value(&format!("getelementptr ptr, ptr %pointers, i64 {i}"));
            self.line(&format!("store ptr {address}, ptr {at}, align {}", self.arch.pointer_bytes()));
        }
        for (i, extent) in extents.iter().enumerate() {
            let extent = self.size(extent)?;
            let at = self.value(&format!("getelementptr i64, ptr %extents, i64 {i}"));
            self.line(&format!("store i64 {extent}, ptr {at}, align 8"));
        }
        if self.arch == Arch::Wasm && tasks.parse::<i64>().map_or(true, |n| n >= FEW) {
            self.in_parts(kernel, &tasks);
        } else {
            self.call(kernel, "0", &tasks);
        }
        self.begin(&after, true);
        Ok(())
    }

    /// Calls a kernel for some of its tasks.
    fn call(&mut self, kernel: usize, begin: &str, end: &str) {
        let symbol = kernel_symbol(kernel);
        let call = format!("call i64 @{symbol}(ptr %pointers, ptr %extents, ptr %scratch, i64 {begin}, i64 {end})");
        let status = self.value(&call);
        let good = self.value(&format!("icmp eq i64 {status}, 0"));
        let code = self.value(&format!("trunc i64 {status} to i32"));
        self.check_code(&good, &code);
    }

    /// Calls a kernel for all tasks, some at a time: engines compile a function well while it runs, and run that code from its next call on.
    fn in_parts(&mut self, kernel: usize, tasks: &str) {
        let step = match tasks.parse::<i64>() {
            Ok(n) => ((n + PARTS - 1) / PARTS).to_string(),
            Err(_) => {
                let sum = self.value(&format!("add i64 {tasks}, {}", PARTS - 1));
                self.value(&format!("udiv i64 {sum}, {PARTS}"))
            }
        };
        self.line("store i64 0, ptr %task");
        let next = self.block();
        self.begin(&next, true);
        let begin = self.value("load i64, ptr %task");
        let most = self.value(&format!("add i64 {begin}, {step}"));
        let end = self.value(&format!("call i64 @llvm.smin.i64(i64 {most}, i64 {tasks})"));
        self.line(&format!("store i64 {end}, ptr %task"));
        self.call(kernel, &begin, &end);
        let (more, done) = (self.value(&format!("icmp slt i64 {end}, {tasks}")), self.block());
        self.line(&format!("br i1 {more}, label %{next}, label %{done}"));
        self.begin(&done, false);
    }

    /// Ends the run with a message unless `good`.
    fn check(&mut self, good: &str, message: String) {
        let code = match self.messages.iter().position(|m| *m == message) {
            Some(at) => at + 1,
            None => {
                self.messages.push(message);
                self.messages.len()
            }
        };
        self.check_code(good, &format!("{code}"));
    }

    fn check_code(&mut self, good: &str, code: &str) {
        let (bad, after) = (self.block(), self.block());
        self.line(&format!("br i1 {good}, label %{after}, label %{bad}"));
        self.begin(&bad, false);
        self.line(&format!("store i32 {code}, ptr %status"));
        self.line("br label %end");
        self.begin(&after, false);
    }

    /// A byte as a condition.
    fn flag(&mut self, view: &View) -> Result<String, Fault> {
        let at = self.address(view, "1")?;
        let byte = self.value(&format!("load i8, ptr {at}"));
        Ok(self.value(&format!("icmp ne i8 {byte}, 0")))
    }

    /// The address of `bytes` bytes of a buffer; checked unless it is constant, which `Program::validate` has checked.
    fn address(&mut self, view: &View, bytes: &str) -> Result<String, Fault> {
        let (base, start) = match &self.program.buffers[view.buffer as usize].place {
            Place::Input(i) => (format!("%input{i}"), 0),
            Place::Output(i) => (format!("%output{i}"), 0),
            Place::Constant(offset) => (format!("@{CONSTANTS}"), *offset),
            Place::Arena { .. } => ("%arena".to_owned(), self.layout.offsets[view.buffer as usize]),
            Place::State(_) => {
                return Err(fault!("buffer {} is kept by a session, which code without the runtime has not", view.buffer));
            }
        };
        let offset = self.size(&view.offset)?;
        if offset.parse::<i64>().is_err() || bytes.parse::<i64>().is_err() {
            let size = self.layout.bytes[view.buffer as usize];
            // Unsigned, so that a negative offset or length is too large; each is below 2^63, so that the sum does not wrap.
            let from = self.value(&format!("icmp ule i64 {offset}, {size}"));
            let length = self.value(&format!("icmp ule i64 {bytes}, {size}"));
            let end = self.value(&format!("add i64 {offset}, {bytes}"));
            let end = self.value(&format!("icmp ule i64 {end}, {size}"));
            let both = self.value(&format!("and i1 {from}, {length}"));
            let good = self.value(&format!("and i1 {both}, {end}"));
            self.check(&good, "a step leaves the memory of a value".to_owned());
        }
        let at = if start == 0 { base } else { self.value(&format!("getelementptr i8, ptr {base}, i64 {start}")) };
        Ok(if offset == "0" { at } else { self.value(&format!("getelementptr i8, ptr {at}, i64 {offset}")) })
    }

    /// The value of a size: a number, or the name of an `i64`. As `Size::eval`.
    fn size(&mut self, size: &Size) -> Result<String, Fault> {
        if let Some(value) = size.eval(&[]) {
            return Ok(value.to_string());
        }
        let mut stack: Vec<String> = vec![];
        for op in &size.0 {
            let value = match op {
                SizeOp::Const(c) => c.to_string(),
                SizeOp::Symbol(s) => self.value(&format!("load i64, ptr %symbol{s}")),
                op => {
                    let (Some(b), Some(a)) = (stack.pop(), stack.pop()) else { return Err(fault!("a size lacks operands")) };
                    self.operation(*op, &a, &b)
                }
            };
            stack.push(value);
        }
        match (stack.pop(), stack.pop()) {
            (Some(value), None) => Ok(value),
            _ => Err(fault!("a size is not one expression")),
        }
    }

    fn operation(&mut self, op: SizeOp, a: &str, b: &str) -> String {
        match op {
            SizeOp::Add => self.value(&format!("call i64 @llvm.sadd.sat.i64(i64 {a}, i64 {b})")),
            SizeOp::Min => self.value(&format!("call i64 @llvm.smin.i64(i64 {a}, i64 {b})")),
            SizeOp::Max => self.value(&format!("call i64 @llvm.smax.i64(i64 {a}, i64 {b})")),
            // LLVM would call a function of 128 bits.
            SizeOp::Mul if self.arch == Arch::Wasm => self.value(&format!("call i64 @infc.product(i64 {a}, i64 {b})")),
            SizeOp::Mul => {
                let pair = self.value(&format!("call {{i64, i1}} @llvm.smul.with.overflow.i64(i64 {a}, i64 {b})"));
                let product = self.value(&format!("extractvalue {{i64, i1}} {pair}, 0"));
                let over = self.value(&format!("extractvalue {{i64, i1}} {pair}, 1"));
                let signs = self.value(&format!("xor i64 {a}, {b}"));
                let negative = self.value(&format!("icmp slt i64 {signs}, 0"));
                let end = self.value(&format!("select i1 {negative}, i64 {}, i64 {}", i64::MIN, i64::MAX));
                self.value(&format!("select i1 {over}, i64 {end}, i64 {product}"))
            }
            SizeOp::Div | SizeOp::Mod => self.floor(op == SizeOp::Div, a, b),
            SizeOp::Const(_) | SizeOp::Symbol(_) => unreachable!("not an operation"),
        }
    }

    /// Floor division and its remainder: 0 by zero; the least number by -1 wraps.
    fn floor(&mut self, quotient: bool, a: &str, b: &str) -> String {
        let zero = self.value(&format!("icmp eq i64 {b}, 0"));
        let minus = self.value(&format!("icmp eq i64 {b}, -1"));
        let special = self.value(&format!("or i1 {zero}, {minus}"));
        let divisor = self.value(&format!("select i1 {special}, i64 1, i64 {b}"));
        let q = self.value(&format!("sdiv i64 {a}, {divisor}"));
        let r = self.value(&format!("srem i64 {a}, {divisor}"));
        let rest = self.value(&format!("icmp ne i64 {r}, 0"));
        let signs = self.value(&format!("xor i64 {r}, {divisor}"));
        let differ = self.value(&format!("icmp slt i64 {signs}, 0"));
        let down = self.value(&format!("and i1 {rest}, {differ}"));
        let (plain, of_minus) = if quotient {
            let one = self.value(&format!("zext i1 {down} to i64"));
            let lower = self.value(&format!("sub i64 {q}, {one}"));
            let negated = self.value(&format!("sub i64 0, {a}"));
            (lower, negated)
        } else {
            let upper = self.value(&format!("add i64 {r}, {divisor}"));
            (self.value(&format!("select i1 {down}, i64 {upper}, i64 {r}")), "0".to_owned())
        };
        let other = self.value(&format!("select i1 {minus}, i64 {of_minus}, i64 {plain}"));
        self.value(&format!("select i1 {zero}, i64 0, i64 {other}"))
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
