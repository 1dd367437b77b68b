//! Instructions in this process's own code, which trap where the CPU lacks them.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use proptest::prelude::*;
use std::arch::asm;

/// What VPDPBUSD makes of 32 bytes of sums and factors, the second one in memory. ZMM registers tell whether the upper half is zero after it.
fn byte_dot(sums: [i32; 8], a: &[u8; 32], b: &[u8; 32]) -> [i32; 8] {
    let mut out = sums;
    // Safety: the code reads and writes these arrays only.
    unsafe {
        asm!(
            "vmovdqu ymm3, [{c}]", "vmovdqu ymm12, [{a}]", "{{vex}} vpdpbusd ymm3, ymm12, [{b}]", "vmovdqu [{c}], ymm3",
            c = in(reg) out.as_mut_ptr(), a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(), out("ymm3") _, out("ymm12") _,
        );
    }
    out
}

/// The same with all operands in registers, 16 bytes wide; the upper halves of both registers of sums.
fn narrow(sums: [i32; 8], a: &[u8; 32], b: &[u8; 32]) -> [i32; 8] {
    let mut out = sums;
    // Safety: as above.
    unsafe {
        asm!(
            "vmovdqu ymm3, [{c}]", "vmovdqu ymm12, [{a}]", "vmovdqu ymm7, [{b}]",
            "{{vex}} vpdpbusd xmm3, xmm12, xmm7", "vmovdqu [{c}], ymm3",
            c = in(reg) out.as_mut_ptr(), a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(), out("ymm3") _, out("ymm7") _, out("ymm12") _,
        );
    }
    out
}

proptest! {
    #[test]
    fn products_in_lanes(sums in any::<[i32; 8]>(), a in any::<[u8; 32]>(), b in any::<[u8; 32]>()) {
        infc_trapvm::install();
        let product = |k: usize| (4 * k..4 * k + 4).map(|j| i32::from(a[j]) * i32::from(b[j] as i8)).sum::<i32>();
        let want: [i32; 8] = std::array::from_fn(|k| sums[k].wrapping_add(product(k)));
        prop_assert_eq!(byte_dot(sums, &a, &b), want);
        let want: [i32; 8] = std::array::from_fn(|k| if k < 4 { want[k] } else { 0 });
        prop_assert_eq!(narrow(sums, &a, &b), want);
    }
}

/// A configuration of three tiles: sums of `m` rows and `n` columns, and factors of `k` groups of 4 bytes.
fn config(m: u8, n: u8, k: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    for (t, (width, rows)) in [(4 * n, m), (4 * k, m), (4 * n, k)].into_iter().enumerate() {
        (bytes[16 + 2 * t], bytes[48 + t]) = (width, rows);
    }
    bytes
}

#[test]
fn tiles_are_loaded_multiplied_and_stored() {
    infc_trapvm::install();
    // Each thread has its own.
    std::thread::scope(|scope| {
        for thread in 0..3u8 {
            scope.spawn(move || {
                let (m, n, k) = (5usize + usize::from(thread), 7usize, 6usize);
                let a: Vec<u8> = (0..m * 50).map(|i| ((i * 7 + 3) as u8).wrapping_add(thread)).collect();
                let b: Vec<u8> = (0..k * 64).map(|i| (i * 11 + 5) as u8).collect();
                let (mut c, mut kept) = (vec![0i32; m * 10], [0u8; 64]);
                let config = config(m as u8, n as u8, k as u8);
                // Safety: rows of a are 50 bytes apart and have 24, those of b 64 and 28, those of c 40 and 28.
                unsafe {
                    asm!(
                        "ldtilecfg [{config}]", "sttilecfg [{kept}]", "tilezero tmm0",
                        "tileloadd tmm1, [{a} + {fifty}]", "tileloaddt1 tmm2, [{b} + 4*{sixteen}]", "tdpbusd tmm0, tmm1, tmm2", "tdpbusd tmm0, tmm1, tmm2",
                        "tilestored [{c} + 8*{five}], tmm0", "tilerelease",
                        config = in(reg) config.as_ptr(), kept = in(reg) kept.as_mut_ptr(), a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(),
                        c = in(reg) c.as_mut_ptr(), fifty = in(reg) 50usize, sixteen = in(reg) 16usize, five = in(reg) 5usize,
                    );
                }
                assert_eq!(kept, config);
                for (i, &got) in c.iter().enumerate() {
                    let (row, column) = (i / 10, i % 10);
                    let product = |j: usize| i32::from(a[row * 50 + j]) * i32::from(b[j / 4 * 64 + column * 4 + j % 4] as i8);
                    assert_eq!(got, if column < n { 2 * (0..4 * k).map(product).sum::<i32>() } else { 0 }, "{row}, {column}");
                }
            });
        }
    });
}

/// Runs this test alone in a process of its own, where it does what it shall not; gives what that says.
fn dying(name: &str) -> String {
    let me = std::env::current_exe().expect("this test");
    let out =
        std::process::Command::new(me).args(["--exact", name, "--nocapture"]).env("INFC_DIE", "1").output().expect("it runs");
    assert!(!out.status.success(), "{name} went on");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn tiles_without_a_configuration_end_the_process() {
    if std::env::var_os("INFC_DIE").is_none() {
        let text = dying("tiles_without_a_configuration_end_the_process");
        // A CPU that has tiles only traps.
        assert!(
            std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|t| t.contains("amx_tile"))
                || text.contains("no tile configuration is loaded"),
            "{text}"
        );
        return;
    }
    infc_trapvm::install();
    // Safety: it touches no memory.
    unsafe { asm!("tilezero tmm3") };
}

#[test]
fn other_instructions_trap_as_ever() {
    if std::env::var_os("INFC_DIE").is_none() {
        dying("other_instructions_trap_as_ever");
        return;
    }
    infc_trapvm::install();
    // Safety: it ends the process.
    unsafe { asm!("ud2") };
}

/// Can instructions of AVX-512 FP16 be executed here, by the CPU or by this crate?
fn wide() -> bool {
    infc_trapvm::install();
    std::arch::is_x86_feature_detected!("avx512bw") && std::arch::is_x86_feature_detected!("avx512vl")
}

/// Numbers near one, of any size, and special ones.
fn half() -> impl Strategy<Value = u16> {
    prop_oneof![
        4 => (0u16..0x1000).prop_map(|v| 0x3800 + (v & 0x7ff) + ((v >> 11) << 15)),
        2 => any::<u16>(),
        1 => prop::sample::select(vec![0, 0x8000, 1, 0x3ff, 0x8001, 0x400, 0x7c00, 0xfc00, 0x7e00, 0x7bff, 0xfbff]),
    ]
}

fn same(a: u16, b: u16) -> bool {
    let nan = |x: u16| x & 0x7fff > 0x7c00;
    a == b || nan(a) && nan(b)
}

/// What `body` makes of a vector in zmm20, with others in zmm3 and at `{b}`, and a mask in k2.
macro_rules! on_vectors {
    ($c:expr, $a:expr, $b:expr, $mask:expr, $($body:literal),+) => {{
        let mut out: [u16; 32] = *$c;
        // Safety: the code reads and writes these arrays only.
        unsafe {
            asm!(
                "vmovdqu16 zmm20, [{c}]", "vmovdqu16 zmm3, [{a}]", "vmovdqu16 zmm25, [{b}]", "kmovd k2, {m:e}", $($body,)+ "vmovdqu16 [{c}], zmm20",
                c = in(reg) out.as_mut_ptr(), a = in(reg) $a.as_ptr(), b = in(reg) $b.as_ptr(), m = in(reg) $mask,
                out("zmm3") _, out("zmm20") _, out("zmm25") _, out("k1") _, out("k2") _,
            );
        }
        out
    }};
}

proptest! {
    /// Registers beyond the sixteenth, memory, one element for all lanes, masks, vectors of each size: what is written and what stays.
    #[test]
    fn vectors_of_f16(
        c in prop::collection::vec(half(), 32), a in prop::collection::vec(half(), 32), b in prop::collection::vec(half(), 32), mask: u32,
    ) {
        if !wide() {
            return Ok(());
        }
        let [c, a, b]: [[u16; 32]; 3] = [c, a, b].map(|v| v.try_into().expect("32"));
        let v = infc_trapvm::half::value;
        let near = infc_trapvm::half::nearest;
        let check = |name: &str, got: [u16; 32], want: &dyn Fn(usize) -> u16| {
            for k in 0..32 {
                prop_assert!(same(got[k], want(k)), "{name} {k}: {:04x} instead of {:04x} of {:04x} {:04x} {:04x}", got[k], want(k), c[k], a[k], b[k]);
            }
            Ok(())
        };
        let on = |k: usize| mask >> k & 1 == 1;
        check("add", on_vectors!(&c, a, b, mask, "vaddph zmm20, zmm3, zmm25"), &|k| near(v(a[k]) + v(b[k])))?;
        check("mul", on_vectors!(&c, a, b, mask, "vmulph zmm20 {{k2}}, zmm3, [{b}]"), &|k| if on(k) { near(v(a[k]) * v(b[k])) } else { c[k] })?;
        check("fma", on_vectors!(&c, a, b, mask, "vfmadd231ph zmm20, zmm3, [{b} + 6]{{1to32}}"), &|k| near(v(a[k]) * v(b[3]) + v(c[k])))?;
        check("div", on_vectors!(&c, a, b, mask, "vdivph ymm20 {{k2}} {{z}}, ymm3, ymm25"), &|k| if k < 16 && on(k) { near(v(a[k]) / v(b[k])) } else { 0 })?;
        check("scalar", on_vectors!(&c, a, b, mask, "vsubsh xmm20, xmm3, xmm25"), &|k| match k {
            0 => near(v(a[0]) - v(b[0])),
            1..8 => a[k],
            _ => 0,
        })?;
        check("load", on_vectors!(&c, a, b, mask, "vmovsh xmm20, [{b} + 4]"), &|k| if k == 0 { b[2] } else { 0 })?;
        check("less", on_vectors!(&c, a, b, mask, "vcmpltph k1 {{k2}}, zmm3, zmm25", "vpmovm2w zmm20, k1"), &|k| {
            if on(k) && v(a[k]) < v(b[k]) { 0xffff } else { 0 }
        })?;
        // Through f32 and back nothing changes; products in f32 of both halves, rounded, are those of f16.
        check("wide", on_vectors!(&c, a, b, mask,
            "vcvtph2psx zmm3, ymm3", "vcvtph2psx zmm25, [{b}]", "vmulps zmm25, zmm3, zmm25", "vcvtps2phx ymm20, zmm25"
        ), &|k| if k < 16 { near(v(a[k]) * v(b[k])) } else { 0 })?;
        let word: u32;
        // Safety: it touches no memory but what it reads.
        unsafe {
            asm!("vmovw xmm20, [{b}]", "vmovw {w:e}, xmm20", b = in(reg) b.as_ptr(), w = out(reg) word, out("xmm20") _);
        }
        prop_assert_eq!(word, u32::from(b[0]));
        let flags: u64;
        // Safety: as above; the flags are saved and restored.
        unsafe {
            asm!("vmovw xmm20, [{a}]", "vucomish xmm20, [{b}]", "pushfq", "pop {f}", a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(), f = out(reg) flags, out("xmm20") _);
        }
        let (x, y) = (v(a[0]), v(b[0]));
        let unordered = x.is_nan() || y.is_nan();
        prop_assert_eq!([flags & 1 != 0, flags & 4 != 0, flags & 0x40 != 0], [x < y || unordered, unordered, x == y || unordered]);
    }
}
