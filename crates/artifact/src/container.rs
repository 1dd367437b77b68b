//! The `.infc` file: a header, a table of sections, and the sections.
//!
//! ```text
//! 0    magic "\x89INFC\r\n\n"      8 bytes
//! 8    format version              u32, little endian as all numbers
//! 12   kernel ABI version          u32
//! 16   number of sections          u32
//! 20   zero                        u32
//! 24   bytes of the file           u64
//! 32   digest of bytes 0..32 and of the table
//! 64   the table: for each section kind u32, variant u32, offset u64, length u64, zero u64, digest 32 bytes
//! ```
//! Sections come in the order of the table, at multiples of 64 (code that is mapped: of a page), with zeros between. A digest in the header covers
//! the table and so the digests of all sections. [`Reader::open`] checks everything but the constants, which it leaves
//! untouched so that large weights need not be read; [`Reader::check_constants`] checks those. [`Reader::table`] reads no more than is needed to
//! choose a variant.

use crate::abi;
use crate::decode::{DecodeError, Decoder};
use crate::encode::Encoder;
use crate::hash::{Digest, Hasher, digest};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The version of this format.
pub const VERSION: u32 = 3;
/// The oldest version that can be read. In version 2 all code begins at multiples of 65536.
const OLDEST: u32 = 2;
/// The first bytes of every artifact. Not text, and damaged by a transfer as text.
pub const MAGIC: [u8; 8] = *b"\x89INFC\r\n\n";
/// Sections start at multiples of this.
pub const ALIGN: u64 = 64;

/// Code for an architecture starts at multiples of this, so that it can be mapped by itself: of every page size that it has, if it is mapped. That for
/// GPUs is given to a driver.
fn page(arch: &str) -> u64 {
    match arch {
        "x86_64" => 4096,
        gpu if gpu.starts_with("sm_") => ALIGN,
        _ => 65536,
    }
}

const HEADER: usize = 64;
const ENTRY: usize = 64;
const MAX_SECTIONS: usize = 1024;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Kind {
    /// How the artifact was made, as a protobuf message; not needed to run it.
    Manifest = 1,
    /// What a machine must have to run a variant.
    Requirements = 2,
    /// The program of a variant.
    Program = 3,
    /// The machine code of a variant.
    Code = 4,
    /// Weights and tables, shared by all variants.
    Constants = 5,
    /// Text for people: names, sources. Not needed to run it.
    Debug = 6,
    /// The machine code of a variant for the CPU beside its device.
    HostCode = 7,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::Manifest, Kind::Requirements, Kind::Program, Kind::Code, Kind::Constants, Kind::Debug, Kind::HostCode];
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Requirements => "requirements",
            Kind::Program => "program",
            Kind::Code => "code",
            Kind::Constants => "constants",
            Kind::Debug => "debug",
            Kind::HostCode => "code for the host",
        }
    }
}

/// What a machine must have to run a variant.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Requirements {
    /// What the variant is called: the name of the machine that it was compiled for. No two variants of an artifact have the same.
    pub name: String,
    /// The instruction set architecture: `x86_64`. Empty for a program without kernels.
    pub arch: String,
    /// CPU features by LLVM's names: `avx2`, `fma`.
    pub features: Vec<String>,
    /// What the CPU beside a device must have, for a variant some of whose steps run there. It has none itself.
    pub host: Option<Box<Requirements>>,
}

/// One way to run the model, for one kind of machine.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Variant {
    /// Which machines.
    pub requirements: Requirements,
    /// The program, encoded.
    pub program: Vec<u8>,
    /// Its machine code: one position-independent image.
    pub code: Vec<u8>,
    /// The machine code for the CPU beside a device: an image too, there if the requirements speak of that CPU.
    pub host_code: Vec<u8>,
}

/// What an artifact is made of.
#[derive(Clone, Debug, Default)]
pub struct Artifact<'a> {
    /// A protobuf message on how it was made.
    pub manifest: &'a [u8],
    /// Ways to run it, the preferred first.
    pub variants: &'a [Variant],
    /// The constants in pieces, one after the other without gaps.
    pub constants: &'a [&'a [u8]],
    /// Text for people.
    pub debug: &'a [u8],
}

impl Artifact<'_> {
    /// Writes the file in pieces. The same artifact gives the same bytes.
    pub fn write<E>(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let requirements: Vec<Vec<u8>> = self.variants.iter().map(|v| encode_requirements(&v.requirements)).collect();
        let mut sections: Vec<(Kind, u32, Vec<&[u8]>)> = Vec::new();
        sections.push((Kind::Manifest, 0, alloc::vec![self.manifest]));
        for (i, variant) in self.variants.iter().enumerate() {
            let i = i as u32;
            sections.push((Kind::Requirements, i, alloc::vec![&requirements[i as usize]]));
            sections.push((Kind::Program, i, alloc::vec![&variant.program]));
            sections.push((Kind::Code, i, alloc::vec![&variant.code]));
            if variant.requirements.host.is_some() {
                sections.push((Kind::HostCode, i, alloc::vec![&variant.host_code]));
            }
        }
        sections.push((Kind::Constants, 0, self.constants.to_vec()));
        sections.push((Kind::Debug, 0, alloc::vec![self.debug]));

        let mut table = Vec::new();
        let mut at = (HEADER + ENTRY * sections.len()) as u64;
        let mut starts = Vec::new();
        for (kind, variant, pieces) in &sections {
            let required = self.variants.get(*variant as usize).map(|v| &v.requirements);
            let align = match (kind, required) {
                _ if pieces.iter().all(|p| p.is_empty()) => ALIGN,
                (Kind::Code, Some(r)) => page(&r.arch),
                (Kind::Constants, _) => crate::abi::CONSTANTS_ALIGN as u64,
                (Kind::HostCode, Some(r)) => r.host.as_ref().map_or(ALIGN, |host| page(&host.arch)),
                _ => ALIGN,
            };
            at = at.next_multiple_of(align);
            starts.push(at);
            let mut hasher = Hasher::default();
            pieces.iter().for_each(|p| hasher.update(p));
            let length: u64 = pieces.iter().map(|p| p.len() as u64).sum();
            table.extend_from_slice(&(*kind as u32).to_le_bytes());
            table.extend_from_slice(&variant.to_le_bytes());
            table.extend_from_slice(&at.to_le_bytes());
            table.extend_from_slice(&length.to_le_bytes());
            table.extend_from_slice(&0u64.to_le_bytes());
            table.extend_from_slice(&hasher.finish());
            at += length;
        }
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&abi::VERSION.to_le_bytes());
        header.extend_from_slice(&(sections.len() as u32).to_le_bytes());
        header.extend_from_slice(&0u32.to_le_bytes());
        header.extend_from_slice(&at.to_le_bytes());
        header.extend_from_slice(&header_digest(&header, &table));
        sink(&header)?;
        sink(&table)?;

        let mut written = (HEADER + table.len()) as u64;
        for ((_, _, pieces), start) in sections.iter().zip(starts) {
            const ZEROS: [u8; 4096] = [0; 4096];
            while written < start {
                let gap = (start - written).min(ZEROS.len() as u64);
                sink(&ZEROS[..gap as usize])?;
                written += gap;
            }
            for piece in pieces {
                sink(piece)?;
                written += piece.len() as u64;
            }
        }
        Ok(())
    }

    /// The whole file in memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let all = self.write::<core::convert::Infallible>(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        match all {
            Ok(()) => bytes,
            Err(never) => match never {},
        }
    }
}

fn header_digest(start: &[u8], table: &[u8]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(start);
    hasher.update(table);
    hasher.finish()
}

fn encode_requirements(r: &Requirements) -> Vec<u8> {
    let mut out = Encoder::default();
    for r in [Some(r), r.host.as_deref()].into_iter().flatten() {
        out.text(&r.name);
        out.text(&r.arch);
        out.list(&r.features, |out, f| out.text(f));
    }
    out.bytes
}

fn decode_requirements(bytes: &[u8]) -> Result<Requirements, DecodeError> {
    let mut input = Decoder::new(bytes);
    let one = |input: &mut Decoder<'_>| {
        Ok(Requirements { name: input.text()?, arch: input.text()?, features: input.list(Decoder::text)?, host: None })
    };
    let mut requirements = one(&mut input)?;
    if input.end().is_err() {
        requirements.host = Some(Box::new(one(&mut input)?));
    }
    input.end()?;
    Ok(requirements)
}

/// Why bytes are no artifact that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerError {
    /// The file ends before what is at `offset` does.
    Truncated {
        /// Where the missing part begins.
        offset: u64,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// It does not begin as an artifact does.
    Magic,
    /// It was made by a newer compiler.
    Newer {
        /// `format` or `kernel ABI`.
        what: &'static str,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// Bytes were changed after it was written.
    Tampered {
        /// Which part.
        section: &'static str,
        /// Where it begins.
        offset: u64,
    },
    /// It contradicts itself or the format.
    Malformed {
        /// Where.
        offset: u64,
        /// How.
        what: &'static str,
    },
}

impl fmt::Display for ContainerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContainerError::Truncated { offset, needed, length } => {
                write!(f, "truncated: {needed} bytes are needed at offset {offset}, the file has {length}")
            }
            ContainerError::Magic => write!(f, "not an infc artifact (offset 0: wrong first bytes)"),
            ContainerError::Newer { what, found, known } => {
                write!(
                    f,
                    "made by a newer compiler: {what} version {found}, this runtime knows up to {known}; update the runtime"
                )
            }
            ContainerError::Tampered { section, offset } => {
                write!(f, "damaged or tampered with: the {section} at offset {offset} does not match its digest")
            }
            ContainerError::Malformed { offset, what } => write!(f, "malformed: {what} (offset {offset})"),
        }
    }
}

impl core::error::Error for ContainerError {}

/// A section of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: Kind,
    /// Of which variant.
    pub variant: u32,
    /// Where it begins.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// Its digest.
    pub digest: Digest,
}

/// An artifact in memory, checked.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    sections: Vec<Section>,
    requirements: Vec<Requirements>,
}

impl<'a> Reader<'a> {
    /// Checks header, table and every section but the constants. `bytes` may go on after the end of the artifact.
    pub fn open(bytes: &'a [u8]) -> Result<Reader<'a>, ContainerError> {
        let reader = Reader::table(bytes)?;
        reader.sections.iter().filter(|s| s.kind != Kind::Constants).try_for_each(|s| reader.check(s))?;
        Ok(reader)
    }
    /// Checks header, table and requirements. Nothing else is read: [`Reader::check`] has to be asked about a section before it is used.
    pub fn table(bytes: &'a [u8]) -> Result<Reader<'a>, ContainerError> {
        let sections = read_table(bytes)?;
        check_variants(&sections)?;
        let mut reader = Reader { bytes, sections, requirements: Vec::new() };
        for variant in 0.. {
            let Some(section) = reader.find(Kind::Requirements, variant).copied() else { break };
            reader.check(&section)?;
            let requirements = decode_requirements(reader.bytes(&section))
                .map_err(|e| ContainerError::Malformed { offset: section.offset + e.at as u64, what: e.what })?;
            if reader.requirements.iter().any(|r| r.name == requirements.name) {
                return Err(ContainerError::Malformed { offset: section.offset, what: "two variants have the same name" });
            }
            if requirements.host.is_some() != reader.find(Kind::HostCode, variant).is_some() {
                let what = "code for the host without requirements of its CPU, or these without code";
                return Err(ContainerError::Malformed { offset: section.offset, what });
            }
            reader.requirements.push(requirements);
        }
        Ok(reader)
    }
    /// Checks the digest of a section, reading all of it.
    pub fn check(&self, section: &Section) -> Result<(), ContainerError> {
        if digest(self.bytes(section)) != section.digest {
            return Err(ContainerError::Tampered { section: section.kind.name(), offset: section.offset });
        }
        Ok(())
    }
    /// All sections.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }
    /// What each variant requires, the preferred first.
    pub fn requirements(&self) -> &[Requirements] {
        &self.requirements
    }
    /// The section of this kind and variant.
    pub fn find(&self, kind: Kind, variant: u32) -> Option<&Section> {
        self.sections.iter().find(|s| s.kind == kind && s.variant == variant)
    }
    /// The section of this kind and variant, which a complete artifact has.
    pub fn section(&self, kind: Kind, variant: u32) -> Result<&Section, ContainerError> {
        let missing = match kind {
            Kind::Manifest => "there is no manifest",
            Kind::Requirements => "there are no requirements of a variant",
            Kind::Program => "there is no program of a variant",
            Kind::Code => "there is no code of a variant",
            Kind::Constants => "there are no constants",
            Kind::Debug => "there is no debug text",
            Kind::HostCode => "there is no code of a variant for the host",
        };
        self.find(kind, variant).ok_or(ContainerError::Malformed { offset: HEADER as u64, what: missing })
    }
    /// The bytes of a section.
    pub fn bytes(&self, section: &Section) -> &'a [u8] {
        // In range: checked by `read_table`.
        &self.bytes[section.offset as usize..(section.offset + section.length) as usize]
    }
    /// Checks the digest of the constants, reading all of them.
    pub fn check_constants(&self) -> Result<(), ContainerError> {
        self.sections.iter().filter(|s| s.kind == Kind::Constants).try_for_each(|s| self.check(s))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The sections, in range and in order, of a header that matches its digest.
fn read_table(bytes: &[u8]) -> Result<Vec<Section>, ContainerError> {
    let length = bytes.len() as u64;
    let malformed = |offset: usize, what| Err(ContainerError::Malformed { offset: offset as u64, what });
    if bytes.len() >= 8 && bytes[..8] != MAGIC || !MAGIC.starts_with(&bytes[..bytes.len().min(8)]) {
        return Err(ContainerError::Magic);
    }
    if bytes.len() < HEADER {
        return Err(ContainerError::Truncated { offset: 0, needed: HEADER as u64, length });
    }
    match u32_at(bytes, 8) {
        OLDEST..=VERSION => {}
        0 => return malformed(8, "there is no version 0"),
        1..OLDEST => return malformed(8, "a format that is no longer supported; compile the model again"),
        found => return Err(ContainerError::Newer { what: "format", found, known: VERSION }),
    }
    let count = u32_at(bytes, 16) as usize;
    let table_end = count.checked_mul(ENTRY).and_then(|n| n.checked_add(HEADER));
    let Some(table) = table_end.and_then(|end| bytes.get(HEADER..end)) else {
        let needed = count as u64 * ENTRY as u64;
        return Err(ContainerError::Truncated { offset: HEADER as u64, needed, length });
    };
    if header_digest(&bytes[..32], table)[..] != bytes[32..HEADER] {
        return Err(ContainerError::Tampered { section: "header", offset: 0 });
    }
    match u32_at(bytes, 12) {
        abi::VERSION => {}
        found if found > abi::VERSION => return Err(ContainerError::Newer { what: "kernel ABI", found, known: abi::VERSION }),
        _ => return malformed(12, "a kernel ABI that is no longer supported; compile the model again"),
    }
    let total = u64_at(bytes, 24);
    if total > length {
        return Err(ContainerError::Truncated { offset: length, needed: total - length, length });
    }
    if count > MAX_SECTIONS {
        return malformed(16, "too many sections");
    }
    let mut sections: Vec<Section> = Vec::with_capacity(count);
    let mut end = (HEADER + table.len()) as u64;
    for (i, entry) in table.chunks_exact(ENTRY).enumerate() {
        let at = HEADER + i * ENTRY;
        let number = u32_at(entry, 0);
        let Some(kind) = Kind::ALL.into_iter().find(|k| *k as u32 == number) else {
            return malformed(at, "a section of unknown kind");
        };
        let (variant, offset, length) = (u32_at(entry, 4), u64_at(entry, 8), u64_at(entry, 16));
        if !offset.is_multiple_of(ALIGN) {
            return malformed(at, "a section is not aligned");
        }
        let Some(next) = offset.checked_add(length).filter(|&next| offset >= end && next <= total) else {
            return malformed(at, "a section is out of order or outside of the file");
        };
        if sections.iter().any(|s| s.kind == kind && s.variant == variant) {
            return malformed(at, "a section is there twice");
        }
        if bytes[end as usize..offset as usize].iter().any(|&b| b != 0) {
            return Err(ContainerError::Tampered { section: "padding", offset: end });
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(&entry[32..]);
        sections.push(Section { kind, variant, offset, length, digest });
        end = next;
    }
    Ok(sections)
}

/// Every variant has requirements, program and code, and they are numbered from 0. Other sections are of no variant.
fn check_variants(sections: &[Section]) -> Result<(), ContainerError> {
    let count = |kind| sections.iter().filter(|s| s.kind == kind).count();
    let variants = count(Kind::Requirements);
    for (i, section) in sections.iter().enumerate() {
        let (numbers, what) = match section.kind {
            Kind::Requirements => (variants, "the variants are not numbered one by one"),
            Kind::Program | Kind::Code | Kind::HostCode => (variants, "a program or code of a variant without requirements"),
            Kind::Manifest | Kind::Constants | Kind::Debug => (1, "a section of a variant that is shared by all"),
        };
        if section.variant as usize >= numbers {
            return Err(ContainerError::Malformed { offset: (HEADER + i * ENTRY) as u64, what });
        }
    }
    // No section is there twice: as many as there are numbers are all of them.
    for (kind, what) in [(Kind::Program, "there is no program of a variant"), (Kind::Code, "there is no code of a variant")] {
        if count(kind) != variants {
            return Err(ContainerError::Malformed { offset: HEADER as u64, what });
        }
    }
    Ok(())
}
