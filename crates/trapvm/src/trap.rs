//! The handler of SIGILL: registers and memory of the interrupted code, and the way back behind the instruction.

use crate::decode::{self, Base, Inst, Place, Right};
use crate::dots;
use crate::evex::{Elem, Half, Op};
use crate::half;
use crate::tiles::Tiles;
use std::cell::UnsafeCell;
use std::fmt::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    // Of a constant and without a destructor: the handler may use it at any time, nothing is allocated.
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::NONE) };
}

/// Parts of a saved state by their numbers: XMM0 to XMM15, the upper halves of YMM0 to YMM15, K0 to K7, the upper halves of ZMM0 to ZMM15, ZMM16 to ZMM31.
const SSE: usize = 1;
const UPPER: usize = 2;
const MASKS: usize = 5;
const BEYOND: usize = 6;
const HIGH: usize = 7;
/// Their bytes.
const SIZES: [usize; 8] = [0, 256, 256, 0, 0, 64, 512, 1024];
/// Where a state has them (0 where there are none).
static OFFSETS: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];

/// Tiles of a CPU that has them: their configuration and their data, parts of a state too.
const CONFIG: usize = 17;
const DATA: usize = 18;
/// Where a state has them; 0 where the CPU or the system has none.
static TILE_OFFSETS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// The action before, which everything else still has.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for part in [UPPER, MASKS, BEYOND, HIGH] {
            OFFSETS[part].store(core::arch::x86_64::__cpuid_count(0xd, part as u32).ebx as usize, Ordering::Relaxed);
        }
        // Instructions that the CPU has shall not trap; others find its tiles in the state.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        // Safety: asks for the use of tiles, and changes no memory.
        if unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, DATA as libc::c_long) } == 0 {
            for (part, offset) in [CONFIG, DATA].into_iter().zip(&TILE_OFFSETS) {
                offset.store(core::arch::x86_64::__cpuid_count(0xd, part as u32).ebx as usize, Ordering::Relaxed);
            }
        }
        // Safety: `sigaction` gets two valid structures; the handler does only what a handler of signals may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut before: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, std::ptr::null(), &mut before), 0, "SIGILL can be asked for");
            BEFORE.store(Box::into_raw(Box::new(before)) as usize, Ordering::Release);
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0, "SIGILL can be handled");
        }
    });
}

/// Executes instructions from the interrupted one on, for as long as they are of those that may be missing.
extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // Safety: the system gives a handler with SA_SIGINFO the state of the interrupted code, which is this thread's while the handler runs.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let mut done = 0;
    let own = Frame { context, next: 0 }.take_tiles();
    loop {
        let at = context.uc_mcontext.gregs[libc::REG_RIP as usize] as *const u8;
        // Safety: the code at the instruction pointer is about to be executed; further bytes are fetched only if the ones before need them.
        let Some((inst, length)) = decode::decode(&mut |k| unsafe { at.add(k).read() }) else { break };
        let mut frame = Frame { context, next: at as u64 + length as u64 };
        if let Err(wrong) = frame.execute(inst) {
            end(inst, wrong);
        }
        context.uc_mcontext.gregs[libc::REG_RIP as usize] += length as i64;
        done += 1;
    }
    if own && done > 0 {
        Frame { context, next: 0 }.give_tiles();
    }
    if done == 0 {
        // None of these: back to the action before, which the same instruction meets at once.
        let before = BEFORE.load(Ordering::Acquire) as *const libc::sigaction;
        // Safety: `install` has stored a valid structure that lives for good.
        unsafe { libc::sigaction(libc::SIGILL, before, std::ptr::null_mut()) };
    }
}

/// Tells what is wrong and ends the process: there is nothing that the interrupted code could go on with.
fn end(inst: Inst, wrong: &str) -> ! {
    let mut text = Text([0; 512], 0);
    let _ = writeln!(text, "an instruction is used wrongly: {wrong}: {inst:?}");
    // Safety: the bytes are those of a string on this stack.
    unsafe {
        libc::write(2, text.0.as_ptr().cast(), text.1);
        libc::abort()
    }
}

/// A text that needs no allocation; what does not fit is left out.
struct Text([u8; 512], usize);

impl Write for Text {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let fits = s.len().min(self.0.len() - self.1);
        self.0[self.1..self.1 + fits].copy_from_slice(&s.as_bytes()[..fits]);
        self.1 += fits;
        Ok(())
    }
}

/// General registers in the order of their numbers.
const GENERAL: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Offsets in the saved state (Intel's manual, volume 1, chapter 13, and Linux's `struct _fpx_sw_bytes`): the vector registers, the mark that
/// there is more than those, and which parts are not in their first state.
const XMM: usize = 160;
const MARK: usize = 464;
const PARTS: usize = 512;
/// Value of the mark.
const EXTENDED: u32 = 0x4650_5853;

struct Frame<'a> {
    context: &'a mut libc::ucontext_t,
    /// The address behind the instruction.
    next: u64,
}

impl Frame<'_> {
    fn general(&self, number: u8) -> u64 {
        self.context.uc_mcontext.gregs[GENERAL[usize::from(number)] as usize] as u64
    }

    /// The address of a place without its index, and the index.
    fn parts(&self, place: &Place) -> (u64, u64) {
        let base = match place.base {
            Base::None => 0,
            Base::Register(number) => self.general(number),
            Base::Next => self.next,
        };
        let index = place.index.map_or(0, |(number, scale)| self.general(number).wrapping_mul(u64::from(scale)));
        (base.wrapping_add(i64::from(place.displacement) as u64), index)
    }

    fn address(&self, place: &Place) -> *mut u8 {
        let (base, index) = self.parts(place);
        base.wrapping_add(index) as *mut u8
    }

    fn execute(&mut self, inst: Inst) -> Result<(), &'static str> {
        if let Inst::Vector { kind, wide, sums, left, right } = inst {
            return self.vector(kind, wide, sums, left, right);
        }
        if let Inst::Half(half) = inst {
            return self.half(&half);
        }
        TILES.with(|tiles| {
            // Safety: only this handler uses the thread's tiles, and SIGILL is blocked while it runs.
            let tiles = unsafe { &mut *tiles.get() };
            match inst {
                Inst::LoadConfig(place) => {
                    // Safety: the instruction reads these 64 bytes.
                    let bytes = unsafe { self.address(&place).cast::<[u8; 64]>().read_unaligned() };
                    tiles.configure(&bytes)
                }
                Inst::StoreConfig(place) => {
                    // Safety: the instruction writes these 64 bytes.
                    unsafe { self.address(&place).cast::<[u8; 64]>().write_unaligned(tiles.configuration()) };
                    Ok(())
                }
                Inst::Release => {
                    tiles.release();
                    Ok(())
                }
                Inst::Zero(tile) => tiles.zero(tile),
                Inst::Load(tile, place) => {
                    let (base, stride) = self.parts(&place);
                    tiles.load(tile, &mut |row, bytes| {
                        let from = base.wrapping_add(stride.wrapping_mul(row as u64)) as *const u8;
                        // Safety: the instruction reads the bytes of this row.
                        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
                    })
                }
                Inst::Store(tile, place) => {
                    let (base, stride) = self.parts(&place);
                    tiles.store(tile, &mut |row, bytes| {
                        let to = base.wrapping_add(stride.wrapping_mul(row as u64)) as *mut u8;
                        // Safety: the instruction writes the bytes of this row.
                        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
                    })
                }
                Inst::Matrix { kind, sums, left, right } => tiles.multiply(kind, sums, left, right),
                Inst::Vector { .. } | Inst::Half(_) => unreachable!("done above"),
            }
        })
    }

    fn vector(&mut self, kind: decode::Vector, wide: bool, sums: u8, left: u8, right: Right) -> Result<(), &'static str> {
        let bytes = if wide { 32 } else { 16 };
        let a = self.register(left)?;
        let b = match right {
            Right::Register(number) => self.register(number)?,
            Right::Memory(place) => {
                let mut value = [0; 64];
                // Safety: the instruction reads these bytes.
                unsafe { std::ptr::copy_nonoverlapping(self.address(&place), value.as_mut_ptr(), bytes) };
                value
            }
        };
        let mut c = self.register(sums)?;
        let word = |v: &[u8; 64], k: usize| u32::from_le_bytes([v[4 * k], v[4 * k + 1], v[4 * k + 2], v[4 * k + 3]]);
        for k in 0..bytes / 4 {
            let sum = dots::lane(kind, word(&c, k) as i32, word(&a, k), word(&b, k));
            c[4 * k..4 * k + 4].copy_from_slice(&sum.to_le_bytes());
        }
        c[bytes..].fill(0);
        self.set_register(sums, &c)
    }

    /// Where the state has the CPU's own tiles: their configuration and their data.
    fn own_tiles(&self) -> Option<[*mut u8; 2]> {
        let state = self.saved().ok()?;
        let [config, data] = TILE_OFFSETS.each_ref().map(|o| o.load(Ordering::Relaxed));
        // Safety: behind the mark and a size there is a word that says which parts the state has.
        let parts = unsafe { state.add(MARK + 8).cast::<u64>().read_unaligned() };
        let has = config > 0 && data > 0 && parts >> CONFIG & 3 == 3;
        has.then(|| [config, data].map(|at| state.wrapping_add(at)))
    }

    /// Takes the CPU's own tiles, if it has any; says whether it has.
    fn take_tiles(&mut self) -> bool {
        let (Some([config, data]), Ok(state)) = (self.own_tiles(), self.saved()) else { return false };
        TILES.with(|tiles| {
            // Safety: only this handler uses the thread's tiles; the state has the parts, and those in their first state are zeros whatever lies there.
            unsafe {
                let (tiles, parts) = (&mut *tiles.get(), state.add(PARTS).cast::<u64>().read_unaligned());
                let bytes = config.cast::<[u8; 64]>().read_unaligned();
                if parts >> CONFIG & 1 == 0 || tiles.configure(&bytes).is_err() {
                    tiles.release();
                } else if parts >> DATA & 1 == 1 {
                    std::ptr::copy_nonoverlapping(data, tiles.bytes().as_mut_ptr(), tiles.bytes().len());
                }
            }
        });
        true
    }

    /// Gives them back as they are now.
    fn give_tiles(&mut self) {
        let (Some([config, data]), Ok(state)) = (self.own_tiles(), self.saved()) else { return };
        TILES.with(|tiles| {
            // Safety: as above.
            unsafe {
                let tiles = &mut *tiles.get();
                let parts = state.add(PARTS).cast::<u64>();
                config.cast::<[u8; 64]>().write_unaligned(tiles.configuration());
                std::ptr::copy_nonoverlapping(tiles.bytes().as_ptr(), data, tiles.bytes().len());
                parts.write_unaligned(parts.read_unaligned() | 3 << CONFIG);
            }
        });
    }

    /// The saved state of vector registers.
    fn saved(&self) -> Result<*mut u8, &'static str> {
        let state = self.context.uc_mcontext.fpregs.cast::<u8>();
        // Safety: the state has at least the 512 bytes in which the mark lies.
        let mark = unsafe { state.add(MARK).cast::<u32>().read_unaligned() };
        if mark != EXTENDED || OFFSETS[UPPER].load(Ordering::Relaxed) == 0 {
            return Err("the system saves no AVX registers for handlers of signals");
        }
        Ok(state)
    }

    /// Copies `out.len()` bytes at `at` of a part of the saved state. Parts in their first state hold zeros, whatever lies in memory.
    fn part(&self, number: usize, at: usize, out: &mut [u8]) -> Result<(), &'static str> {
        let (state, place) = self.place_of(number)?;
        // Safety: a state with the mark has all parts that CPUID leaf 13 lists, at its offsets.
        unsafe {
            if state.add(PARTS).cast::<u64>().read_unaligned() >> number & 1 == 1 {
                std::ptr::copy_nonoverlapping(state.add(place + at), out.as_mut_ptr(), out.len());
            } else {
                out.fill(0);
            }
        }
        Ok(())
    }

    /// Sets bytes of a part. One that leaves its first state is set as a whole.
    fn set_part(&mut self, number: usize, at: usize, value: &[u8]) -> Result<(), &'static str> {
        let (state, place) = self.place_of(number)?;
        // Safety: as in `part`.
        unsafe {
            let parts = state.add(PARTS).cast::<u64>();
            let old = parts.read_unaligned();
            if old >> number & 1 == 0 {
                if value.iter().all(|&b| b == 0) {
                    return Ok(());
                }
                std::ptr::write_bytes(state.add(place), 0, SIZES[number]);
                parts.write_unaligned(old | 1 << number);
            }
            std::ptr::copy_nonoverlapping(value.as_ptr(), state.add(place + at), value.len());
        }
        Ok(())
    }

    /// The saved state, and where a part is in it.
    fn place_of(&self, number: usize) -> Result<(*mut u8, usize), &'static str> {
        let place = if number == SSE { XMM } else { OFFSETS[number].load(Ordering::Relaxed) };
        if place == 0 {
            return Err("the system saves no registers of this kind for handlers of signals");
        }
        Ok((self.saved()?, place))
    }

    /// The bytes of a vector register, zeros where the CPU has none.
    fn register(&self, number: u8) -> Result<[u8; 64], &'static str> {
        let number = usize::from(number);
        let mut value = [0; 64];
        if number >= 16 {
            self.part(HIGH, 64 * (number - 16), &mut value)?;
            return Ok(value);
        }
        self.part(SSE, 16 * number, &mut value[..16])?;
        self.part(UPPER, 16 * number, &mut value[16..32])?;
        if OFFSETS[BEYOND].load(Ordering::Relaxed) != 0 {
            self.part(BEYOND, 32 * number, &mut value[32..])?;
        }
        Ok(value)
    }

    fn set_register(&mut self, number: u8, value: &[u8; 64]) -> Result<(), &'static str> {
        let number = usize::from(number);
        if number >= 16 {
            return self.set_part(HIGH, 64 * (number - 16), value);
        }
        self.set_part(SSE, 16 * number, &value[..16])?;
        self.set_part(UPPER, 16 * number, &value[16..32])?;
        if OFFSETS[BEYOND].load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        self.set_part(BEYOND, 32 * number, &value[32..])
    }

    /// An instruction of AVX-512 FP16.
    fn half(&mut self, h: &Half) -> Result<(), &'static str> {
        let (from, to) = h.op.elements();
        let (read, made) = (from.bytes(), to.bytes());
        let lanes = if h.scalar { 1 } else { h.bytes / read.max(made) };
        // Scalar conversions have integers in general registers.
        let general = |kind: Elem| h.scalar && !matches!(kind, Elem::Float(_)) || h.op == Op::FromGeneral;
        let second = match h.second {
            _ if matches!(h.op, Op::Store | Op::ToGeneral) => [0; 64],
            Right::Register(number) if general(from) => widened(self.general(number)),
            Right::Register(number) => self.register(number)?,
            Right::Memory(place) => {
                let (mut value, address) = ([0; 64], self.address(&place));
                let mut mask = [0xff; 8];
                if h.mask != 0 {
                    self.part(MASKS, 8 * usize::from(h.mask), &mut mask)?;
                }
                for lane in (0..lanes).filter(|&lane| mask[lane / 8] >> (lane % 8) & 1 == 1) {
                    let at = if h.broadcast { 0 } else { read * lane };
                    // Safety: the instruction reads the elements of lanes that its mask has.
                    unsafe { std::ptr::copy_nonoverlapping(address.add(at), value.as_mut_ptr().add(read * lane), read) };
                }
                value
            }
        };
        let mut mask = [0xff; 8];
        if h.mask != 0 {
            self.part(MASKS, 8 * usize::from(h.mask), &mut mask)?;
        }
        let on = |lane: usize| mask[lane / 8] >> (lane % 8) & 1 == 1;
        let first = self.register(h.first)?;
        let element = |v: &[u8; 64], bytes: usize, lane: usize| {
            (0..bytes).fold(0u64, |bits, k| bits | u64::from(v[bytes * lane + k]) << (8 * k))
        };
        match (h.op, h.second) {
            (Op::Compare(_) | Op::Class(_), _) => {
                let of = |lane: usize| half::element(h.op, 0, element(&first, 2, lane), element(&second, 2, lane));
                let bits = (0..lanes).filter(|&k| on(k)).fold(0u64, |bits, k| bits | of(k) << k);
                return self.set_part(MASKS, 8 * usize::from(h.out), &bits.to_le_bytes());
            }
            (Op::Flags, _) => {
                let x = self.register(h.out)?;
                let order = half::order(half::value(element(&x, 2, 0) as u16), half::value(element(&second, 2, 0) as u16));
                // Carry, parity and zero; the others become 0.
                let flags = [(1, 1), (2, 0x40), (4, 0), (8, 0x45)].iter().find(|f| f.0 == order).map_or(0, |f| f.1);
                let all = &mut self.context.uc_mcontext.gregs[libc::REG_EFL as usize];
                *all = *all & !0x8d5 | flags;
                return Ok(());
            }
            (Op::Store | Op::ToGeneral, Right::Memory(place)) => {
                let x = self.register(h.out)?;
                if on(0) {
                    // Safety: the instruction writes these two bytes.
                    unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), self.address(&place), 2) };
                }
                return Ok(());
            }
            (Op::ToGeneral, Right::Register(number)) => {
                let x = self.register(h.out)?;
                self.context.uc_mcontext.gregs[GENERAL[usize::from(number)] as usize] = element(&x, 2, 0) as i64;
                return Ok(());
            }
            _ if general(to) && h.op != Op::FromGeneral => {
                let bits = half::element(h.op, 0, 0, element(&second, read, 0));
                self.context.uc_mcontext.gregs[GENERAL[usize::from(h.out)] as usize] = bits as i64;
                return Ok(());
            }
            _ => {}
        }
        let old = self.register(h.out)?;
        let mut value = [0; 64];
        if h.scalar && !matches!((h.op, h.second), (Op::Move, Right::Memory(_)) | (Op::FromGeneral, _)) {
            value[..16].copy_from_slice(&first[..16]);
        }
        for lane in 0..lanes {
            let before = element(&old, made, lane);
            let bits = match (on(lane), h.zeroing) {
                (true, _) => half::element(h.op, before, element(&first, 2, lane), element(&second, read, lane)),
                (false, true) => 0,
                (false, false) => before,
            };
            value[made * lane..made * (lane + 1)].copy_from_slice(&bits.to_le_bytes()[..made]);
        }
        self.set_register(h.out, &value)
    }
}

/// A word in the first bytes of a vector.
fn widened(word: u64) -> [u8; 64] {
    let mut value = [0; 64];
    value[..8].copy_from_slice(&word.to_le_bytes());
    value
}
