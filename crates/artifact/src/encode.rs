//! Binary form of a [`Program`]: numbers as LEB128 varints (signed ones zigzag), lists as a count and their items.
//!
//! `decode.rs` is its mirror; both list the fields in the order of `program.rs`.

use crate::program::*;
use alloc::vec::Vec;

/// The version of this form, its first number.
pub const VERSION: u64 = 3;
/// That of programs with launches and copies beside a device ([`Program::two_sided`]). All others keep the version before, and its bytes.
pub const VERSION_TWO_SIDED: u64 = 4;

/// The bytes of a program.
pub fn encode(program: &Program) -> Vec<u8> {
    let mut out = Encoder::default();
    let two_sided = program.two_sided();
    out.number(if two_sided { VERSION_TWO_SIDED } else { VERSION });
    out.list(&program.inputs, Encoder::port);
    out.list(&program.outputs, Encoder::port);
    out.list(&program.symbols, Encoder::symbol);
    out.list(&program.buffers, Encoder::buffer);
    out.list(&program.kernels, Encoder::kernel);
    out.list(&program.steps, Encoder::step);
    out.list(&program.messages, |out, m| {
        out.text(&m.node);
        out.text(&m.text);
    });
    out.list(&program.states, |out, &(output, input)| {
        out.number(output.into());
        out.number(input.into());
    });
    out.optional(program.arena);
    out.optional(program.threads.map(u64::from));
    out.list(&program.slots, Encoder::slot);
    if two_sided {
        out.list(&program.host_kernels, Encoder::kernel);
    }
    out.bytes
}

/// Bytes that grow.
#[derive(Default)]
pub(crate) struct Encoder {
    /// What was written.
    pub(crate) bytes: Vec<u8>,
}

impl Encoder {
    pub(crate) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }
    pub(crate) fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Encoder, &T)) {
        self.number(items.len() as u64);
        for item in items {
            each(self, item);
        }
    }
    fn signed(&mut self, value: i64) {
        self.number(((value << 1) ^ (value >> 63)) as u64);
    }
    fn tag(&mut self, tag: u8) {
        self.bytes.push(tag);
    }
    fn optional(&mut self, value: Option<u64>) {
        match value {
            None => self.tag(0),
            Some(v) => {
                self.tag(1);
                self.number(v);
            }
        }
    }
    fn size(&mut self, size: &Size) {
        self.list(&size.0, |out, op| match *op {
            SizeOp::Const(c) => {
                out.tag(0);
                out.signed(c);
            }
            SizeOp::Symbol(s) => {
                out.tag(1);
                out.number(s.into());
            }
            SizeOp::Add => out.tag(2),
            SizeOp::Mul => out.tag(3),
            SizeOp::Div => out.tag(4),
            SizeOp::Mod => out.tag(5),
            SizeOp::Min => out.tag(6),
            SizeOp::Max => out.tag(7),
        });
    }
    fn kernel(&mut self, kernel: &Kernel) {
        self.text(&kernel.name);
        self.number(kernel.entry);
        self.number(kernel.scratch);
    }
    fn view(&mut self, view: &View) {
        self.number(view.buffer.into());
        self.size(&view.offset);
    }
    fn port(&mut self, port: &Port) {
        self.text(&port.name);
        self.tag(port.dtype);
        self.tag(port.element);
        self.list(&port.dims, Encoder::size);
        self.number(port.buffer.into());
    }
    fn symbol(&mut self, symbol: &Symbol) {
        self.text(&symbol.name);
        match symbol.source {
            SymbolSource::Input { input, axis } => {
                self.tag(0);
                self.number(input.into());
                self.number(axis.into());
            }
            SymbolSource::Step => self.tag(1),
        }
    }
    fn buffer(&mut self, buffer: &Buffer) {
        self.size(&buffer.bytes);
        match buffer.place {
            Place::Input(i) => {
                self.tag(0);
                self.number(i.into());
            }
            Place::Output(i) => {
                self.tag(1);
                self.number(i.into());
            }
            Place::Constant(offset) => {
                self.tag(2);
                self.number(offset);
            }
            Place::Arena { first, last, offset } => {
                self.tag(3);
                self.number(first.into());
                self.number(last.into());
                self.optional(offset);
            }
            Place::State(i) => {
                self.tag(4);
                self.number(i.into());
            }
        }
    }
    fn step(&mut self, step: &Step) {
        match step {
            Step::Launch { kernel, buffers, extents, tasks } => {
                self.tag(0);
                self.number((*kernel).into());
                self.list(buffers, Encoder::view);
                self.list(extents, Encoder::size);
                self.size(tasks);
            }
            Step::Copy { from, to, bytes } => {
                self.tag(1);
                self.view(from);
                self.view(to);
                self.size(bytes);
            }
            Step::Bind { symbol, from, bound } => {
                self.tag(2);
                self.number((*symbol).into());
                self.view(from);
                self.size(bound);
            }
            Step::Require { left, right, or_one, code } => {
                self.tag(3);
                self.size(left);
                self.size(right);
                self.tag((*or_one).into());
                self.number((*code).into());
            }
            Step::If { cond, then, otherwise } => {
                self.tag(4);
                self.view(cond);
                self.list(then, Encoder::step);
                self.list(otherwise, Encoder::step);
            }
            Step::Loop { counter, count, cond, body, apart } => {
                self.tag(if *apart { 7 } else { 5 });
                self.number((*counter).into());
                self.size(count);
                match cond {
                    None => self.tag(0),
                    Some(view) => {
                        self.tag(1);
                        self.view(view);
                    }
                }
                self.list(body, Encoder::step);
            }
            Step::Host { routine, attributes, inputs, outputs, code } => {
                self.tag(6);
                self.text(routine);
                self.number(attributes.len() as u64);
                self.bytes.extend_from_slice(attributes);
                self.list(inputs, |out, value| match value {
                    None => out.tag(0),
                    Some(value) => out.host_value(value),
                });
                self.list(outputs, Encoder::host_value);
                self.number((*code).into());
            }
            Step::HostLaunch { kernel, buffers, extents, tasks, code } => {
                self.tag(8);
                self.number((*kernel).into());
                self.list(buffers, Encoder::view);
                self.list(extents, Encoder::size);
                self.size(tasks);
                self.number((*code).into());
            }
            Step::ToHost { buffer } => {
                self.tag(9);
                self.number((*buffer).into());
            }
            Step::ToDevice { buffer } => {
                self.tag(10);
                self.number((*buffer).into());
            }
        }
    }
    fn host_value(&mut self, value: &HostValue) {
        match value {
            HostValue::Slot(slot) => {
                self.tag(1);
                self.number((*slot).into());
            }
            HostValue::Tensor { dtype, dims, view } => {
                self.tag(2);
                self.tag(*dtype);
                self.list(dims, Encoder::size);
                self.view(view);
            }
        }
    }
    fn slot(&mut self, slot: &Slot) {
        self.host_type(&slot.ty);
        match slot.place {
            SlotPlace::Input(i) => {
                self.tag(0);
                self.number(i.into());
            }
            SlotPlace::Output(i) => {
                self.tag(1);
                self.number(i.into());
            }
            SlotPlace::Constant { offset, bytes } => {
                self.tag(2);
                self.number(offset);
                self.number(bytes);
            }
            SlotPlace::Temp => self.tag(3),
        }
    }
    fn host_type(&mut self, ty: &HostType) {
        match ty {
            HostType::Tensor(dtype, dims) => {
                self.tag(0);
                self.tag(*dtype);
                self.list(dims, |out, d| out.optional(*d));
            }
            HostType::Any(dtype) => {
                self.tag(1);
                self.tag(*dtype);
            }
            HostType::Sequence(of) => {
                self.tag(2);
                self.host_type(of);
            }
            HostType::Optional(of) => {
                self.tag(3);
                self.host_type(of);
            }
            HostType::Map(key, of) => {
                self.tag(4);
                self.tag(*key);
                self.host_type(of);
            }
        }
    }
}
