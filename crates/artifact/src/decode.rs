//! Reads the binary form of a [`Program`] (see `encode.rs`) from untrusted bytes: every count, tag and nesting is checked.

use crate::encode::{VERSION, VERSION_TWO_SIDED};
use crate::program::*;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// How deep steps may nest.
pub const NESTING: usize = 32;

/// Why bytes are no program: what, and at which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Offset of the byte.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

impl core::error::Error for DecodeError {}

/// The program that `bytes` describe. It is well-formed only after [`Program::validate`].
pub fn decode(bytes: &[u8]) -> Result<Program, DecodeError> {
    let mut input = Decoder::new(bytes);
    match input.number()? {
        VERSION => {}
        VERSION_TWO_SIDED => input.two_sided = true,
        v if v > VERSION_TWO_SIDED => return Err(DecodeError { at: 0, what: "a newer version of the program form" }),
        _ => return Err(DecodeError { at: 0, what: "an unknown version of the program form" }),
    }
    let program = Program {
        inputs: input.list(Decoder::port)?,
        outputs: input.list(Decoder::port)?,
        symbols: input.list(Decoder::symbol)?,
        buffers: input.list(Decoder::buffer)?,
        kernels: input.list(Decoder::kernel)?,
        steps: input.list(Decoder::step)?,
        messages: input.list(|d| Ok(Message { node: d.text()?, text: d.text()? }))?,
        states: input.list(|d| Ok((d.id()?, d.id()?)))?,
        arena: input.optional()?,
        threads: if input.flag()? { Some(input.id()?) } else { None },
        slots: input.list(|d| Ok(Slot { ty: d.host_type()?, place: d.slot_place()? }))?,
        host_kernels: if input.two_sided { input.list(Decoder::kernel)? } else { Vec::new() },
    };
    input.end()?;
    if input.two_sided != program.two_sided() {
        return Err(DecodeError { at: 0, what: "the version of a program with steps beside a device, for one without" });
    }
    Ok(program)
}

/// A place in bytes.
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// The program may have steps beside a device.
    two_sided: bool,
}

type Decoded<T> = Result<T, DecodeError>;

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { bytes, at: 0, depth: 0, two_sided: false }
    }
    fn fail<T>(&self, at: usize, what: &'static str) -> Decoded<T> {
        Err(DecodeError { at, what })
    }
    pub(crate) fn end(&self) -> Decoded<()> {
        if self.at == self.bytes.len() { Ok(()) } else { self.fail(self.at, "bytes after the end") }
    }
    fn byte(&mut self) -> Decoded<u8> {
        let Some(&byte) = self.bytes.get(self.at) else { return self.fail(self.at, "the data ends early") };
        self.at += 1;
        Ok(byte)
    }
    pub(crate) fn number(&mut self) -> Decoded<u64> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 || shift > 0 && byte == 0 {
                return self.fail(start, "a number that is too long");
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.fail(start, "a number that is too long")
    }
    fn signed(&mut self) -> Decoded<i64> {
        let value = self.number()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
    fn id(&mut self) -> Decoded<u32> {
        let at = self.at;
        match u32::try_from(self.number()?) {
            Ok(id) => Ok(id),
            Err(_) => self.fail(at, "an index that is too large"),
        }
    }
    fn flag(&mut self) -> Decoded<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => self.fail(self.at - 1, "a flag that is neither 0 nor 1"),
        }
    }
    pub(crate) fn text(&mut self) -> Decoded<String> {
        let at = self.at;
        match String::from_utf8(self.blob()?) {
            Ok(text) => Ok(text),
            Err(_) => self.fail(at, "a text that is not UTF-8"),
        }
    }
    /// Bytes behind their number.
    fn blob(&mut self) -> Decoded<Vec<u8>> {
        let at = self.at;
        let len = self.number()?;
        let rest = self.bytes.len() - self.at;
        if len > rest as u64 {
            return self.fail(at, "a text that is longer than the data");
        }
        let bytes = &self.bytes[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(bytes.to_vec())
    }
    /// Every item takes at least one byte, so that a count larger than the rest is wrong; memory grows only with items that are there.
    pub(crate) fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> Decoded<T>) -> Decoded<Vec<T>> {
        let at = self.at;
        let count = self.number()?;
        if count > (self.bytes.len() - self.at) as u64 {
            return self.fail(at, "a list that is longer than the data");
        }
        let mut items = Vec::with_capacity((count as usize).min(64));
        for _ in 0..count {
            items.push(each(self)?);
        }
        Ok(items)
    }
    fn optional(&mut self) -> Decoded<Option<u64>> {
        if self.flag()? { self.number().map(Some) } else { Ok(None) }
    }
    fn size(&mut self) -> Decoded<Size> {
        let ops = self.list(|d| {
            Ok(match d.byte()? {
                0 => SizeOp::Const(d.signed()?),
                1 => SizeOp::Symbol(d.id()?),
                2 => SizeOp::Add,
                3 => SizeOp::Mul,
                4 => SizeOp::Div,
                5 => SizeOp::Mod,
                6 => SizeOp::Min,
                7 => SizeOp::Max,
                _ => return d.fail(d.at - 1, "an unknown operation of a size"),
            })
        })?;
        Ok(Size(ops))
    }
    fn kernel(&mut self) -> Decoded<Kernel> {
        Ok(Kernel { name: self.text()?, entry: self.number()?, scratch: self.number()? })
    }
    fn view(&mut self) -> Decoded<View> {
        Ok(View { buffer: self.id()?, offset: self.size()? })
    }
    fn port(&mut self) -> Decoded<Port> {
        Ok(Port {
            name: self.text()?,
            dtype: self.byte()?,
            element: self.byte()?,
            dims: self.list(Decoder::size)?,
            buffer: self.id()?,
        })
    }
    fn symbol(&mut self) -> Decoded<Symbol> {
        let name = self.text()?;
        let source = match self.byte()? {
            0 => SymbolSource::Input { input: self.id()?, axis: self.id()? },
            1 => SymbolSource::Step,
            _ => return self.fail(self.at - 1, "an unknown source of a symbol"),
        };
        Ok(Symbol { name, source })
    }
    fn buffer(&mut self) -> Decoded<Buffer> {
        let bytes = self.size()?;
        let place = match self.byte()? {
            0 => Place::Input(self.id()?),
            1 => Place::Output(self.id()?),
            2 => Place::Constant(self.number()?),
            3 => Place::Arena { first: self.id()?, last: self.id()?, offset: self.optional()? },
            4 => Place::State(self.id()?),
            _ => return self.fail(self.at - 1, "an unknown place of a buffer"),
        };
        Ok(Buffer { bytes, place })
    }
    fn steps(&mut self) -> Decoded<Vec<Step>> {
        if self.depth == NESTING {
            return self.fail(self.at, "steps that nest too deeply");
        }
        self.depth += 1;
        let steps = self.list(Decoder::step);
        self.depth -= 1;
        steps
    }
    fn step(&mut self) -> Decoded<Step> {
        Ok(match self.byte()? {
            0 => Step::Launch {
                kernel: self.id()?,
                buffers: self.list(Decoder::view)?,
                extents: self.list(Decoder::size)?,
                tasks: self.size()?,
            },
            1 => Step::Copy { from: self.view()?, to: self.view()?, bytes: self.size()? },
            2 => Step::Bind { symbol: self.id()?, from: self.view()?, bound: self.size()? },
            3 => Step::Require { left: self.size()?, right: self.size()?, or_one: self.flag()?, code: self.id()? },
            4 => Step::If { cond: self.view()?, then: self.steps()?, otherwise: self.steps()? },
            tag @ (5 | 7) => Step::Loop {
                counter: self.id()?,
                count: self.size()?,
                cond: if self.flag()? { Some(self.view()?) } else { None },
                body: self.steps()?,
                apart: tag == 7,
            },
            6 => Step::Host {
                routine: self.text()?,
                attributes: self.blob()?,
                inputs: self.list(Decoder::host_value)?,
                outputs: self.list(|d| match d.host_value()? {
                    Some(value) => Ok(value),
                    None => d.fail(d.at - 1, "a result that is left out"),
                })?,
                code: self.id()?,
            },
            8 if self.two_sided => Step::HostLaunch {
                kernel: self.id()?,
                buffers: self.list(Decoder::view)?,
                extents: self.list(Decoder::size)?,
                tasks: self.size()?,
                code: self.id()?,
            },
            9 if self.two_sided => Step::ToHost { buffer: self.id()? },
            10 if self.two_sided => Step::ToDevice { buffer: self.id()? },
            _ => return self.fail(self.at - 1, "an unknown kind of step"),
        })
    }
    fn host_value(&mut self) -> Decoded<Option<HostValue>> {
        Ok(match self.byte()? {
            0 => None,
            1 => Some(HostValue::Slot(self.id()?)),
            2 => Some(HostValue::Tensor { dtype: self.byte()?, dims: self.list(Decoder::size)?, view: self.view()? }),
            _ => return self.fail(self.at - 1, "an unknown kind of operand"),
        })
    }
    fn slot_place(&mut self) -> Decoded<SlotPlace> {
        Ok(match self.byte()? {
            0 => SlotPlace::Input(self.id()?),
            1 => SlotPlace::Output(self.id()?),
            2 => SlotPlace::Constant { offset: self.number()?, bytes: self.number()? },
            3 => SlotPlace::Temp,
            _ => return self.fail(self.at - 1, "an unknown place of a slot"),
        })
    }
    fn host_type(&mut self) -> Decoded<HostType> {
        if self.depth == NESTING {
            return self.fail(self.at, "types that nest too deeply");
        }
        self.depth += 1;
        let ty = match self.byte()? {
            0 => HostType::Tensor(self.byte()?, self.list(Decoder::optional)?),
            1 => HostType::Any(self.byte()?),
            2 => HostType::Sequence(Box::new(self.host_type()?)),
            3 => HostType::Optional(Box::new(self.host_type()?)),
            4 => HostType::Map(self.byte()?, Box::new(self.host_type()?)),
            _ => return self.fail(self.at - 1, "an unknown kind of type"),
        };
        self.depth -= 1;
        Ok(ty)
    }
}
