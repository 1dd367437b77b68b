//! LLVM's object files of WebAssembly as one module that needs nothing: functions, read-only data and constants at fixed addresses of its memory, every relocation resolved.
//!
//! The memory begins with the stack, so that one that grows too large leaves the memory, which is a trap. Read-only data follows, then the constants, then what is the
//! caller's: the module exports the address of its first byte. The format is that of the WebAssembly tool conventions (`Linking.md`); what kernels and drivers do not have
//! (tables, threads, thread-local data, weak symbols) is an error.

use crate::Weights;
use crate::driver::{CONSTANTS, kernel_symbol};
use infc_ir::{Fault, fault};
use std::collections::HashMap;
use std::ops::Range;
use wasm_encoder as out;
use wasmparser::{Import, KnownCustom, Linking, Parser, Payload, RelocationType, SymbolInfo, TypeRef, ValType};

/// Bytes of the stack, which is at the beginning of the memory.
const STACK: u32 = 64 << 10;

/// Bytes of a page of memory.
const PAGE: u64 = 64 << 10;

/// The alignment of constants and of the caller's memory.
const ALIGN: u64 = infc_artifact::abi::ALIGN as u64;

/// What memory of 32-bit addresses holds, but for a last page, so that the end of everything is an address.
pub const REACH: u64 = (1 << 32) - PAGE;

/// An object of kernels, with how many it has; they are called `kernel.0` and so on in each.
pub type Kernels<'a> = (&'a [u8], usize);

/// What a whole model has beside its kernels.
pub struct Whole<'a> {
    /// LLVM's object of its driver.
    pub driver: &'a [u8],
    /// Its constants.
    pub constants: &'a [u8],
    /// Whether they are in the module.
    pub weights: Weights,
    /// The functions to export, by their names in the driver and outside.
    pub functions: &'a [(&'static str, &'static str)],
}

/// A module.
pub struct Module {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Those of its functions.
    pub code_bytes: u64,
    /// The first byte of its memory that is the caller's.
    pub heap: u64,
}

/// Links kernels, called `names`, to a module: alone, exported as `k0`, `k1`, ..., or as a whole model.
pub fn link(kernels: &[Kernels<'_>], names: &[&str], whole: Option<Whole<'_>>) -> Result<Module, Fault> {
    let mut linker = Linker::default();
    let mut exports = vec![];
    let mut number = 0;
    for (bytes, count) in kernels {
        let part = Part::read(bytes)?;
        let base = linker.functions.len() as u32;
        for k in 0..*count {
            let index = part.function(&format!("kernel.{k}"))?;
            linker.known.insert(kernel_symbol(number), Place::Function(base + index));
            if whole.is_none() {
                exports.push((format!("k{number}"), base + index));
            }
            linker.names.insert(base + index, names.get(number).map_or_else(String::new, |n| format!("{number} {n}")));
            number += 1;
        }
        linker.add(part)?;
    }
    if let Some(whole) = whole {
        let part = Part::read(whole.driver)?;
        let base = linker.functions.len() as u32;
        for (inside, outside) in whole.functions {
            let index = part.function(inside)?;
            linker.names.insert(base + index, (*outside).to_owned());
            exports.push(((*outside).to_owned(), base + index));
        }
        let constants = linker.reserve(ALIGN, whole.constants.len() as u64)?;
        match whole.weights {
            Weights::Inside => linker.data.push((constants, whole.constants.to_vec())),
            Weights::Apart => linker.constants = Some(constants),
        }
        linker.known.insert(CONSTANTS.to_owned(), Place::Address(constants));
        linker.add(part)?;
    }
    linker.finish(&exports)
}

/// Where a symbol is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The function of this number.
    Function(u32),
    /// In memory.
    Address(u32),
    /// The global of this number.
    Global(u32),
}

/// An object file.
struct Part<'a> {
    types: Vec<(Vec<ValType>, Vec<ValType>)>,
    /// Functions that it takes from elsewhere.
    imported: Vec<&'a str>,
    /// Numbers of the types of its own ones, and their bodies.
    functions: Vec<u32>,
    bodies: Vec<Range<usize>>,
    /// Contents of the sections of code and data, and where they begin in the file.
    code: (Vec<u8>, usize),
    data: (Vec<u8>, usize),
    /// Pieces of data, each with its alignment.
    segments: Vec<(Range<usize>, u64)>,
    symbols: Vec<SymbolInfo<'a>>,
    /// Kind, place, symbol (or type) and addend, of code and of data.
    relocations: [Vec<(RelocationType, usize, u32, i64)>; 2],
}

fn wrong(e: impl std::fmt::Display) -> Fault {
    fault!("LLVM's object file of WebAssembly: {e}")
}

impl<'a> Part<'a> {
    fn read(bytes: &'a [u8]) -> Result<Part<'a>, Fault> {
        let mut part = Part {
            types: vec![],
            imported: vec![],
            functions: vec![],
            bodies: vec![],
            code: (vec![], 0),
            data: (vec![], 0),
            segments: vec![],
            symbols: vec![],
            relocations: [vec![], vec![]],
        };
        let mut alignments = vec![];
        // Which section is which, for relocations.
        let (mut sections, mut code, mut data) = (0u32, None, None);
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload.map_err(wrong)?;
            match &payload {
                Payload::TypeSection(reader) => {
                    for ty in reader.clone().into_iter_err_on_gc_types() {
                        let ty = ty.map_err(wrong)?;
                        part.types.push((ty.params().to_vec(), ty.results().to_vec()));
                    }
                }
                Payload::ImportSection(reader) => {
                    for import in reader.clone().into_imports() {
                        let Import { name, ty, .. } = import.map_err(wrong)?;
                        match ty {
                            TypeRef::Func(_) => part.imported.push(name),
                            TypeRef::Memory(_) => {}
                            TypeRef::Global(_) if name == STACK_POINTER => {}
                            _ => return Err(fault!("the code needs '{name}', which no module of infc has")),
                        }
                    }
                }
                Payload::FunctionSection(reader) => {
                    for ty in reader.clone() {
                        part.functions.push(ty.map_err(wrong)?);
                    }
                }
                Payload::CodeSectionStart { .. } => {
                    let Some((_, range)) = payload.as_section() else { continue };
                    let range = range.start as usize..range.end as usize;
                    part.code = (bytes[range.clone()].to_vec(), range.start);
                    code = Some(sections);
                }
                Payload::CodeSectionEntry(body) => {
                    let range = body.range();
                    part.bodies.push(range.start as usize - part.code.1..range.end as usize - part.code.1);
                }
                Payload::DataSection(reader) => {
                    let range = reader.range();
                    let range = range.start as usize..range.end as usize;
                    part.data = (bytes[range.clone()].to_vec(), range.start);
                    data = Some(sections);
                    for segment in reader.clone() {
                        let segment = segment.map_err(wrong)?;
                        let end = segment.range.end as usize - range.start;
                        part.segments.push((end - segment.data.len()..end, 1));
                    }
                }
                Payload::CustomSection(reader) => match reader.as_known() {
                    KnownCustom::Linking(reader) => {
                        for sub in reader.subsections() {
                            match sub.map_err(wrong)? {
                                Linking::SegmentInfo(map) => {
                                    for segment in map {
                                        alignments.push(segment.map_err(wrong)?.alignment);
                                    }
                                }
                                Linking::SymbolTable(map) => {
                                    for symbol in map {
                                        part.symbols.push(symbol.map_err(wrong)?);
                                    }
                                }
                                Linking::InitFuncs(_) => return Err(fault!("the code has constructors")),
                                _ => {}
                            }
                        }
                    }
                    KnownCustom::Reloc(reader) => {
                        let section = Some(reader.section_index());
                        let list = match () {
                            () if section == code => &mut part.relocations[0],
                            () if section == data => &mut part.relocations[1],
                            () => continue,
                        };
                        for entry in reader.entries() {
                            let entry = entry.map_err(wrong)?;
                            list.push((entry.ty, entry.offset as usize, entry.index, entry.addend));
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
            if payload.as_section().is_some() && !matches!(payload, Payload::CodeSectionEntry(_)) {
                sections += 1;
            }
        }
        for (segment, alignment) in part.segments.iter_mut().zip(alignments) {
            segment.1 = 1 << alignment;
        }
        if part.functions.len() != part.bodies.len() {
            return Err(wrong("it has bodies for other functions than it declares"));
        }
        Ok(part)
    }

    /// The number among its own functions of the one of this name.
    fn function(&self, wanted: &str) -> Result<u32, Fault> {
        let found = self.symbols.iter().find_map(|s| match s {
            SymbolInfo::Func { index, name: Some(name), .. } if *name == wanted => Some(*index),
            _ => None,
        });
        let own = found.and_then(|index| index.checked_sub(self.imported.len() as u32));
        own.ok_or_else(|| fault!("LLVM made no function '{wanted}'"))
    }
}

const STACK_POINTER: &str = "__stack_pointer";

#[derive(Default)]
struct Linker {
    types: Vec<(Vec<ValType>, Vec<ValType>)>,
    /// The type of each function, and its body.
    functions: Vec<(u32, Vec<u8>)>,
    names: HashMap<u32, String>,
    /// Pieces of memory, by address.
    data: Vec<(u32, Vec<u8>)>,
    /// The first byte behind what has been put into the memory.
    end: u64,
    /// Where the constants are to be put by whoever makes an instance.
    constants: Option<u32>,
    known: HashMap<String, Place>,
}

impl Linker {
    /// Keeps `bytes` of memory for something; where it is.
    fn reserve(&mut self, align: u64, bytes: u64) -> Result<u32, Fault> {
        let at = self.end.max(u64::from(STACK)).next_multiple_of(align);
        if at + bytes > REACH {
            return Err(fault!("its constants take {bytes} bytes, a module of WebAssembly has room for {}", REACH - at));
        }
        self.end = at + bytes;
        Ok(at as u32)
    }

    /// Adds an object, whose symbols from elsewhere must be known by now.
    fn add(&mut self, mut part: Part<'_>) -> Result<(), Fault> {
        let base = self.functions.len() as u32;
        let types: Vec<u32> = part.types.iter().map(|ty| self.ty(ty)).collect();
        let mut addresses = vec![];
        for (range, align) in &part.segments {
            addresses.push(self.reserve(*align, range.len() as u64)?);
        }
        let mut places = vec![];
        for symbol in &part.symbols {
            places.push(self.place(symbol, base, &part.imported, &addresses)?);
        }
        for (list, section) in part.relocations.iter().zip([&mut part.code.0, &mut part.data.0]) {
            for &(kind, offset, index, addend) in list {
                let place = places.get(index as usize).copied().flatten();
                let value = match (kind, place) {
                    (RelocationType::TypeIndexLeb, _) => types.get(index as usize).copied().map(i64::from),
                    (RelocationType::FunctionIndexLeb, Some(Place::Function(f))) => Some(i64::from(f)),
                    (RelocationType::GlobalIndexLeb, Some(Place::Global(g))) => Some(i64::from(g)),
                    (
                        RelocationType::MemoryAddrLeb | RelocationType::MemoryAddrSleb | RelocationType::MemoryAddrI32,
                        Some(Place::Address(at)),
                    ) => Some(i64::from(at) + addend),
                    _ => None,
                };
                let value = value.filter(|v| (0..1 << 32).contains(v));
                let signed = kind == RelocationType::MemoryAddrSleb;
                let patched = match (value, kind) {
                    (None, _) => None,
                    (Some(v), RelocationType::MemoryAddrI32) => section.get_mut(offset..offset + 4).map(|to| {
                        to.copy_from_slice(&(v as u32).to_le_bytes());
                    }),
                    (Some(v), _) => section.get_mut(offset..offset + 5).map(|to| to.copy_from_slice(&padded(v as u32, signed))),
                };
                let name = part.symbols.get(index as usize).and_then(name).unwrap_or("?");
                patched.ok_or_else(|| fault!("relocation {kind:?} of '{name}' cannot be resolved"))?;
            }
        }
        for (&ty, body) in part.functions.iter().zip(&part.bodies) {
            let ty = *types.get(ty as usize).ok_or_else(|| wrong("a function has no type"))?;
            self.functions.push((ty, part.code.0[body.clone()].to_vec()));
        }
        for ((range, _), at) in part.segments.into_iter().zip(addresses) {
            self.data.push((at, part.data.0[range].to_vec()));
        }
        Ok(())
    }

    fn ty(&mut self, ty: &(Vec<ValType>, Vec<ValType>)) -> u32 {
        let at = self.types.iter().position(|t| t == ty).unwrap_or_else(|| {
            self.types.push(ty.clone());
            self.types.len() - 1
        });
        at as u32
    }

    /// Where a symbol of an object is; nothing for what only tools for debugging name.
    fn place(&self, symbol: &SymbolInfo<'_>, base: u32, imported: &[&str], addresses: &[u32]) -> Result<Option<Place>, Fault> {
        let elsewhere = |name: &str| {
            let place = self.known.get(name).copied();
            place.map(Some).ok_or_else(|| fault!("the code needs '{name}', which is not in the module"))
        };
        match *symbol {
            SymbolInfo::Func { index, name, .. } => match imported.get(index as usize) {
                None => Ok(Some(Place::Function(base + index - imported.len() as u32))),
                Some(import) => elsewhere(name.unwrap_or(import)),
            },
            SymbolInfo::Data { symbol: Some(at), .. } => {
                let segment = addresses.get(at.index as usize).ok_or_else(|| wrong("a symbol lies in no segment"))?;
                Ok(Some(Place::Address(segment + at.offset)))
            }
            SymbolInfo::Data { name, .. } => elsewhere(name),
            // The stack pointer is the only global.
            SymbolInfo::Global { .. } => Ok(Some(Place::Global(0))),
            SymbolInfo::Section { .. } | SymbolInfo::Event { .. } | SymbolInfo::Table { .. } => Ok(None),
        }
    }

    fn finish(self, exports: &[(String, u32)]) -> Result<Module, Fault> {
        let mut module = out::Module::new();
        let mut types = out::TypeSection::new();
        for (params, results) in &self.types {
            types.ty().function(values(params)?, values(results)?);
        }
        module.section(&types);
        let mut functions = out::FunctionSection::new();
        self.functions.iter().for_each(|f| _ = functions.function(f.0));
        module.section(&functions);
        let heap = self.end.max(u64::from(STACK)).next_multiple_of(ALIGN);
        let mut memories = out::MemorySection::new();
        memories.memory(out::MemoryType {
            minimum: heap.div_ceil(PAGE),
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        module.section(&memories);
        let mut globals = out::GlobalSection::new();
        let global = |mutable| out::GlobalType { val_type: out::ValType::I32, mutable, shared: false };
        globals.global(global(true), &out::ConstExpr::i32_const(STACK as i32));
        globals.global(global(false), &out::ConstExpr::i32_const(heap as u32 as i32));
        if let Some(at) = self.constants {
            globals.global(global(false), &out::ConstExpr::i32_const(at as i32));
        }
        module.section(&globals);
        let mut list = out::ExportSection::new();
        list.export("memory", out::ExportKind::Memory, 0);
        list.export("heap", out::ExportKind::Global, 1);
        if self.constants.is_some() {
            list.export("constants", out::ExportKind::Global, 2);
        }
        exports.iter().for_each(|(name, f)| _ = list.export(name, out::ExportKind::Func, *f));
        module.section(&list);
        let mut code = out::CodeSection::new();
        self.functions.iter().for_each(|f| _ = code.raw(&f.1));
        let code_bytes = code.byte_len() as u64;
        module.section(&code);
        let mut data = out::DataSection::new();
        for (at, bytes) in self.data.iter().filter(|d| !d.1.is_empty()) {
            data.active(0, &out::ConstExpr::i32_const(*at as i32), bytes.iter().copied());
        }
        module.section(&data);
        let (mut names, mut map) = (out::NameSection::new(), out::NameMap::new());
        let mut sorted: Vec<_> = self.names.iter().collect();
        sorted.sort();
        sorted.into_iter().for_each(|(&f, name)| map.append(f, name));
        names.functions(&map);
        module.section(&names);
        Ok(Module { bytes: module.finish(), code_bytes, heap })
    }
}

/// The name of a symbol.
fn name<'a>(symbol: &SymbolInfo<'a>) -> Option<&'a str> {
    match *symbol {
        SymbolInfo::Func { name, .. } | SymbolInfo::Global { name, .. } | SymbolInfo::Table { name, .. } => name,
        SymbolInfo::Data { name, .. } => Some(name),
        SymbolInfo::Section { .. } | SymbolInfo::Event { .. } => None,
    }
}

fn values(types: &[ValType]) -> Result<Vec<out::ValType>, Fault> {
    let value = |ty: &ValType| match ty {
        ValType::I32 => Ok(out::ValType::I32),
        ValType::I64 => Ok(out::ValType::I64),
        ValType::F32 => Ok(out::ValType::F32),
        ValType::F64 => Ok(out::ValType::F64),
        ValType::V128 => Ok(out::ValType::V128),
        ValType::Ref(_) => Err(fault!("a function has references")),
    };
    types.iter().map(value).collect()
}

/// A number in five bytes, as LEB128 has it, of 32 bits with or without a sign.
fn padded(value: u32, signed: bool) -> [u8; 5] {
    let wide = if signed { i64::from(value as i32) } else { i64::from(value) };
    std::array::from_fn(|k| {
        let bits = (wide >> (7 * k)) as u8 & 0x7f;
        if k < 4 { bits | 0x80 } else { bits & if signed { 0x7f } else { 0x0f } }
    })
}

#[cfg(test)]
mod tests {
    use super::padded;

    #[test]
    fn numbers_in_five_bytes() {
        assert_eq!(padded(3, false), [0x83, 0x80, 0x80, 0x80, 0]);
        assert_eq!(padded(u32::MAX, false), [0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(padded(0x8000_0000, true), [0x80, 0x80, 0x80, 0x80, 0x78]);
        assert_eq!(padded(65536, true), [0x80, 0x80, 0x84, 0x80, 0]);
    }
}
