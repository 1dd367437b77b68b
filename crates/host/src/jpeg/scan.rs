//! Entropy-coded scans: Huffman codes to coefficients.

use super::{Component, Frame, ZIGZAG};
use crate::Fault;
use crate::fault::fault;

/// A Huffman table: codes of each length are consecutive.
pub(crate) struct Huffman {
    /// One past the largest code of each length, and what to add to a code for its place among the values.
    limits: [(i32, i32); 17],
    values: Vec<u8>,
}

impl Huffman {
    /// From the number of codes of each length, and the values in the order of the codes.
    pub(crate) fn new(counts: &[u8], values: &[u8]) -> Result<Huffman, Fault> {
        let mut limits = [(0, 0); 17];
        let (mut code, mut first) = (0i32, 0i32);
        for (bits, &n) in counts.iter().enumerate() {
            let n = i32::from(n);
            limits[bits + 1] = (if n > 0 { code + n } else { 0 }, first - code);
            if code + n > 1 << (bits + 1) {
                return Err(fault!("a JPEG Huffman table has more codes than there are"));
            }
            code = (code + n) << 1;
            first += n;
        }
        Ok(Huffman { limits, values: values.to_vec() })
    }

    fn decode(&self, bits: &mut Bits) -> Result<u8, Fault> {
        let mut code = 0i32;
        for &(limit, offset) in &self.limits[1..] {
            code = code << 1 | bits.bit()?;
            if code < limit {
                let value = usize::try_from(code + offset).ok().and_then(|at| self.values.get(at));
                return value.copied().ok_or_else(bad);
            }
        }
        Err(bad())
    }
}

fn bad() -> Fault {
    fault!("a JPEG scan has a code that its table does not have")
}

/// Bits of a scan; stuffed bytes are left out, markers end it.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    buffer: u8,
    left: u32,
}

impl Bits<'_> {
    fn bit(&mut self) -> Result<i32, Fault> {
        if self.left == 0 {
            self.buffer = match self.bytes[self.at.min(self.bytes.len())..] {
                [0xff, 0, ..] => {
                    self.at += 2;
                    0xff
                }
                [0xff, ..] | [] => return Err(super::early()),
                [byte, ..] => {
                    self.at += 1;
                    byte
                }
            };
            self.left = 8;
        }
        self.left -= 1;
        Ok(i32::from(self.buffer >> self.left & 1))
    }

    fn bits(&mut self, n: u32) -> Result<i32, Fault> {
        let mut value = 0;
        for _ in 0..n {
            value = value << 1 | self.bit()?;
        }
        Ok(value)
    }

    /// A number of `n` bits whose sign is its first bit (T.81, F.2.2.1).
    fn signed(&mut self, n: u32) -> Result<i32, Fault> {
        let value = self.bits(n)?;
        Ok(if n > 0 && value < 1 << (n - 1) { value - (1 << n) + 1 } else { value })
    }

    /// Over a restart marker.
    fn restart(&mut self) -> Result<(), Fault> {
        self.left = 0;
        match self.bytes.get(self.at..self.at + 2) {
            Some([0xff, 0xd0..=0xd7]) => self.at += 2,
            _ => return Err(fault!("a JPEG scan lacks a restart marker")),
        }
        Ok(())
    }
}

/// Huffman tables and the MCUs between restarts (0: no restarts).
pub(crate) struct Tables<'a> {
    pub(crate) dc: &'a [Option<Huffman>; 4],
    pub(crate) ac: &'a [Option<Huffman>; 4],
    pub(crate) restart: usize,
}

/// Which coefficients a scan has: first and last in zigzag order, and for progressive ones which bits.
pub(crate) struct Scan {
    first: usize,
    last: usize,
    high: u32,
    low: u32,
}

/// A component of a scan with the numbers of its DC and AC tables.
type Member = (usize, usize, usize);

impl Scan {
    pub(crate) fn read(head: &[u8], frame: &Frame) -> Result<(Scan, Vec<Member>), Fault> {
        let (&count, rest) = head.split_first().ok_or_else(super::early)?;
        let (specs, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or_else(super::early)?;
        let [first, last, bits, ..] = *rest else { return Err(super::early()) };
        let mut members = vec![];
        for spec in specs.chunks_exact(2) {
            let c = frame.components.iter().position(|c| c.id == spec[0]);
            let c = c.ok_or_else(|| fault!("a JPEG scan has a component that the frame does not have"))?;
            members.push((c, usize::from(spec[1] >> 4 & 3), usize::from(spec[1] & 3)));
        }
        let scan = match frame.progressive {
            false => Scan { first: 0, last: 63, high: 0, low: 0 },
            true => Scan { first: first.into(), last: last.into(), high: u32::from(bits >> 4), low: u32::from(bits & 15) },
        };
        let ac = scan.first > 0;
        let good = scan.first <= scan.last && scan.last < 64 && scan.low < 14 && (scan.high == 0 || scan.high == scan.low + 1);
        let shape = if frame.progressive { ac == (scan.last > 0) && (!ac || members.len() == 1) } else { true };
        if !good || !shape || members.is_empty() || members.len() > frame.components.len() {
            return Err(fault!("a JPEG scan has parameters that no scan can have"));
        }
        Ok((scan, members))
    }
}

/// What is carried from block to block.
struct State<'a> {
    bits: Bits<'a>,
    /// The last DC of each component.
    dc: [i32; 4],
    /// Blocks without coefficients still to come.
    run: u32,
}

/// Decodes a scan into the coefficients; gives the bytes it took.
pub(crate) fn run(scan: &Scan, members: &[Member], frame: &mut Frame, tables: &Tables, bytes: &[u8]) -> Result<usize, Fault> {
    let mut state = State { bits: Bits { bytes, at: 0, buffer: 0, left: 0 }, dc: [0; 4], run: 0 };
    // A scan of one component has no padding blocks.
    let single = members.len() == 1;
    let (wide, high) = match single {
        true => (frame.components[members[0].0].blocks_wide, frame.components[members[0].0].blocks_high),
        false => (frame.mcus_wide, frame.mcus_high),
    };
    let progressive = frame.progressive;
    for mcu in 0..wide * high {
        if tables.restart > 0 && mcu > 0 && mcu % tables.restart == 0 {
            state.bits.restart()?;
            (state.dc, state.run) = ([0; 4], 0);
        }
        let (x, y) = (mcu % wide, mcu / wide);
        for &(c, dc, ac) in members {
            let component: &mut Component = &mut frame.components[c];
            let (h, v) = if single { (1, 1) } else { (component.h, component.v) };
            for block in 0..h * v {
                let at = ((y * v + block / h) * component.stride + x * h + block % h) * 64;
                let block = &mut component.coefficients[at..at + 64];
                match progressive {
                    false => baseline(&mut state, c, table(tables.dc, dc)?, table(tables.ac, ac)?, block)?,
                    true if scan.first == 0 => match scan.high {
                        0 => dc_first(&mut state, c, table(tables.dc, dc)?, scan.low, block)?,
                        _ => block[0] |= (state.bits.bit()? << scan.low) as i16,
                    },
                    true => match scan.high {
                        0 => ac_first(&mut state, table(tables.ac, ac)?, scan, block)?,
                        _ => ac_refine(&mut state, table(tables.ac, ac)?, scan, block)?,
                    },
                }
            }
        }
    }
    Ok(state.bits.at)
}

fn table(tables: &[Option<Huffman>; 4], number: usize) -> Result<&Huffman, Fault> {
    tables[number].as_ref().ok_or_else(|| fault!("a JPEG scan uses a Huffman table that is missing"))
}

/// The next DC: a difference from the last one.
fn next_dc(state: &mut State, c: usize, table: &Huffman) -> Result<i32, Fault> {
    let size = u32::from(table.decode(&mut state.bits)?);
    if size > 15 {
        return Err(bad());
    }
    state.dc[c] = state.dc[c].wrapping_add(state.bits.signed(size)?);
    Ok(state.dc[c])
}

fn baseline(state: &mut State, c: usize, dc: &Huffman, ac: &Huffman, block: &mut [i16]) -> Result<(), Fault> {
    block[0] = next_dc(state, c, dc)? as i16;
    let mut k = 1;
    while k < 64 {
        let code = ac.decode(&mut state.bits)?;
        let (skip, size) = (usize::from(code >> 4), u32::from(code & 15));
        if size == 0 {
            if skip < 15 {
                break;
            }
            k += 16;
            continue;
        }
        k += skip;
        *block.get_mut(*ZIGZAG.get(k).ok_or_else(bad)?).ok_or_else(bad)? = state.bits.signed(size)? as i16;
        k += 1;
    }
    Ok(())
}

fn dc_first(state: &mut State, c: usize, table: &Huffman, low: u32, block: &mut [i16]) -> Result<(), Fault> {
    block[0] = (next_dc(state, c, table)? << low) as i16;
    Ok(())
}

fn ac_first(state: &mut State, table: &Huffman, scan: &Scan, block: &mut [i16]) -> Result<(), Fault> {
    if state.run > 0 {
        state.run -= 1;
        return Ok(());
    }
    let mut k = scan.first;
    while k <= scan.last {
        let code = table.decode(&mut state.bits)?;
        let (skip, size) = (u32::from(code >> 4), u32::from(code & 15));
        if size == 0 && skip < 15 {
            // A run of blocks that end here; this is the first.
            state.run = (1 << skip) - 1 + state.bits.bits(skip)? as u32;
            break;
        }
        k += skip as usize;
        if size > 0 {
            block[*ZIGZAG.get(k).ok_or_else(bad)?] = (state.bits.signed(size)? << scan.low) as i16;
        }
        k += 1;
    }
    Ok(())
}

/// One more bit of every coefficient that is not 0, between the new ones (T.81, G.1.2.3).
fn ac_refine(state: &mut State, table: &Huffman, scan: &Scan, block: &mut [i16]) -> Result<(), Fault> {
    let one = 1i16 << scan.low;
    let mut k = scan.first;
    if state.run == 0 {
        while k <= scan.last {
            let code = table.decode(&mut state.bits)?;
            let (mut skip, size) = (u32::from(code >> 4), code & 15);
            let mut new = 0;
            match size {
                0 if skip < 15 => {
                    state.run = (1 << skip) + state.bits.bits(skip)? as u32;
                    break;
                }
                0 => {}
                1 => new = if state.bits.bit()? == 1 { one } else { -one },
                _ => return Err(bad()),
            }
            while k <= scan.last {
                let value = &mut block[ZIGZAG[k]];
                if *value != 0 {
                    refine(state, one, value)?;
                } else if skip == 0 {
                    if new != 0 {
                        *value = new;
                    }
                    k += 1;
                    break;
                } else {
                    skip -= 1;
                }
                k += 1;
            }
        }
    }
    if state.run > 0 {
        for &place in &ZIGZAG[k.min(64)..=scan.last] {
            if block[place] != 0 {
                refine(state, one, &mut block[place])?;
            }
        }
        state.run -= 1;
    }
    Ok(())
}

fn refine(state: &mut State, one: i16, value: &mut i16) -> Result<(), Fault> {
    if state.bits.bit()? == 1 && *value & one == 0 {
        *value = if *value > 0 { value.wrapping_add(one) } else { value.wrapping_sub(one) };
    }
    Ok(())
}
