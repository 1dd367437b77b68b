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
