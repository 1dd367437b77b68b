//! The handler of SIGILL: registers and memory of the interrupted code, and the way back behind the instruction.

use crate::decode::{self, Base, Inst, Place, Right};
use crate::dots;
use crate::tiles::Tiles;
use std::cell::UnsafeCell;
use std::fmt::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    // Of a constant and without a destructor: the handler may use it at any time, nothing is allocated.
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::NONE) };
}

/// Where a saved state has the upper halves of YMM0 to YMM15, and those of ZMM0 to ZMM15 (0 where there are none).
static UPPER: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// The action before, which everything else still has.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (place, leaf) in UPPER.iter().zip([2, 6]) {
            place.store(core::arch::x86_64::__cpuid_count(0xd, leaf).ebx as usize, Ordering::Relaxed);
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
                Inst::Vector { .. } => unreachable!("done above"),
            }
        })
    }

    fn vector(&mut self, kind: decode::Vector, wide: bool, sums: u8, left: u8, right: Right) -> Result<(), &'static str> {
        let bytes = if wide { 32 } else { 16 };
        let a = self.register(left)?;
        let b = match right {
            Right::Register(number) => self.register(number)?,
            Right::Memory(place) => {
                let mut value = [0; 32];
                // Safety: the instruction reads these bytes.
                unsafe { std::ptr::copy_nonoverlapping(self.address(&place), value.as_mut_ptr(), bytes) };
                value
            }
        };
        let mut c = self.register(sums)?;
        let word = |v: &[u8; 32], k: usize| u32::from_le_bytes([v[4 * k], v[4 * k + 1], v[4 * k + 2], v[4 * k + 3]]);
        for k in 0..bytes / 4 {
            let sum = dots::lane(kind, word(&c, k) as i32, word(&a, k), word(&b, k));
            c[4 * k..4 * k + 4].copy_from_slice(&sum.to_le_bytes());
        }
        c[bytes..].fill(0);
        self.set_register(sums, &c)
    }

    /// The saved state of vector registers.
    fn saved(&self) -> Result<*mut u8, &'static str> {
        let state = self.context.uc_mcontext.fpregs.cast::<u8>();
        // Safety: the state has at least the 512 bytes in which the mark lies.
        let mark = unsafe { state.add(MARK).cast::<u32>().read_unaligned() };
        if mark != EXTENDED || UPPER[0].load(Ordering::Relaxed) == 0 {
            return Err("the system saves no AVX registers for handlers of signals");
        }
        Ok(state)
    }

    /// The 32 bytes of a vector register.
    fn register(&self, number: u8) -> Result<[u8; 32], &'static str> {
        let (state, number) = (self.saved()?, usize::from(number));
        let mut value = [0; 32];
        let upper = UPPER[0].load(Ordering::Relaxed);
        // Safety: a state with the mark has all parts that CPUID leaf 13 lists, at its offsets. Parts in their first state hold zeros, whatever
        // lies in memory.
        unsafe {
            let parts = state.add(PARTS).cast::<u64>().read_unaligned();
            if parts & 2 != 0 {
                std::ptr::copy_nonoverlapping(state.add(XMM + 16 * number), value.as_mut_ptr(), 16);
            }
            if parts & 4 != 0 {
                std::ptr::copy_nonoverlapping(state.add(upper + 16 * number), value.as_mut_ptr().add(16), 16);
            }
        }
        Ok(value)
    }

    /// Sets a vector register; what lies beyond its 32 bytes becomes zero, as VEX instructions have it.
    fn set_register(&mut self, number: u8, value: &[u8; 32]) -> Result<(), &'static str> {
        let (state, number) = (self.saved()?, usize::from(number));
        let [upper, beyond] = [0, 1].map(|k| UPPER[k].load(Ordering::Relaxed));
        // Safety: as in `register`. A part that leaves its first state is set as a whole.
        unsafe {
            let parts = state.add(PARTS).cast::<u64>();
            let old = parts.read_unaligned();
            for (bit, place) in [(2, XMM), (4, upper)] {
                if old & bit == 0 {
                    std::ptr::write_bytes(state.add(place), 0, 256);
                }
            }
            parts.write_unaligned(old | 6);
            std::ptr::copy_nonoverlapping(value.as_ptr(), state.add(XMM + 16 * number), 16);
            std::ptr::copy_nonoverlapping(value.as_ptr().add(16), state.add(upper + 16 * number), 16);
            if old & 1 << 6 != 0 && beyond != 0 {
                std::ptr::write_bytes(state.add(beyond + 32 * number), 0, 32);
            }
        }
        Ok(())
    }
}
