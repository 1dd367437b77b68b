//! Small kernels with what they must do, and what must be told.

use crate::{Fault, Grid, Memory, Module, TensorMap, launch};

/// Runs the only kernel of a text on a buffer of u32, with its address as the parameter.
fn run(body: &str, threads: u32, buffer: &[u32]) -> Result<Vec<u32>, Fault> {
    let text = format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .pred %p<8>;\n.reg .b16 %h<8>;\n\
         .reg .b32 %r<32>;\n.reg .b64 %rd<8>;\n.shared .align 16 .b8 sh[1024];\nld.param.u64 %rd0, [p];\nmov.u32 %r0, %tid.x;\n\
         mul.wide.u32 %rd1, %r0, 4;\nadd.s64 %rd2, %rd0, %rd1;\n{body}\nret;\n}}\n"
    );
    let module = Module::parse(&text)?;
    let mut memory = Memory::default();
    let at = memory.insert(buffer.iter().flat_map(|v| v.to_le_bytes()).collect());
    let grid = Grid { blocks: [1, 1, 1], threads: [threads, 1, 1], shared: 0 };
    launch(module.kernel("k").expect("k"), grid, &at.to_le_bytes(), &mut memory)?;
    let bytes = memory.remove(at).expect("the buffer");
    Ok(bytes.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect())
}

#[test]
fn lanes_part_and_meet_again() {
    // Odd lanes count down from their number; then all lanes shuffle, which needs them together.
    let body = "and.b32 %r1, %r0, 1;\nsetp.eq.u32 %p0, %r1, 0;\nmov.u32 %r2, 7;\n@%p0 bra JOIN;\nmov.u32 %r2, 0;\nmov.u32 %r3, %r0;\n\
                LOOP:\nadd.u32 %r2, %r2, %r3;\nsub.u32 %r3, %r3, 1;\nsetp.ne.u32 %p1, %r3, 0;\n@%p1 bra LOOP;\nJOIN:\n\
                shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1;\nst.global.u32 [%rd2], %r4;";
    let got = run(body, 64, &[0; 64]).unwrap();
    let own = |l: u32| if l % 2 == 0 { 7 } else { l * (l + 1) / 2 };
    assert_eq!(got, (0..64).map(|l| own(l ^ 1)).collect::<Vec<_>>());
}

#[test]
fn blocks_exchange_through_shared_memory_with_a_barrier() {
    let exchange = |barrier: &str| {
        format!(
            "mov.u64 %rd3, sh;\nadd.s64 %rd4, %rd3, %rd1;\nst.shared.u32 [%rd4], %r0;\n{barrier}\nsub.u32 %r1, 95, %r0;\n\
             mul.wide.u32 %rd5, %r1, 4;\nadd.s64 %rd5, %rd3, %rd5;\nld.shared.u32 %r2, [%rd5];\nst.global.u32 [%rd2], %r2;"
        )
    };
    assert_eq!(run(&exchange("bar.sync 0;"), 96, &[0; 96]).unwrap(), (0..96).rev().collect::<Vec<u32>>());
    let race = run(&exchange(""), 96, &[0; 96]).unwrap_err();
    assert!(race.what.contains("since the last barrier"), "{race}");
    let half = run("setp.lt.u32 %p0, %r0, 8;\n@%p0 bra END;\nbar.sync 0;\nEND:", 32, &[0]).unwrap_err();
    assert!(half.what.contains("not all threads"), "{half}");
}

#[test]
fn accesses_outside_and_unaligned_ones_are_told() {
    let outside = run("st.global.u32 [%rd2], %r0;", 33, &[0; 32]).unwrap_err();
    assert!(outside.at.contains("thread 32") && outside.what.contains("128"), "{outside}");
    let unaligned = run("st.global.u64 [%rd2], %rd1;", 2, &[0; 32]).unwrap_err();
    assert!(unaligned.what.contains("not aligned"), "{unaligned}");
    let unknown = run("frobnicate.b32 %r0, %r1;", 1, &[]).unwrap_err();
    assert!(unknown.what.contains("frobnicate") && unknown.line > 10, "{unknown}");
}

#[test]
fn asynchronous_copies_happen_when_waited_for() {
    let body = |wait: &str| {
        format!(
            "mov.u64 %rd3, sh;\nadd.s64 %rd4, %rd3, %rd1;\nmov.u32 %r2, 5;\nst.shared.u32 [%rd4], %r2;\n\
             cp.async.ca.shared.global [%rd4], [%rd2], 4;\ncp.async.commit_group;\n{wait}\nld.shared.u32 %r1, [%rd4];\nst.global.u32 [%rd2], %r1;"
        )
    };
    assert_eq!(run(&body("cp.async.wait_group 0;"), 4, &[1, 2, 3, 4]).unwrap(), [1, 2, 3, 4]);
    assert_eq!(run(&body("cp.async.wait_group 1;"), 4, &[1, 2, 3, 4]).unwrap(), [5, 5, 5, 5]);
}

#[test]
fn matrix_rows_multiply() {
    // a: 16 x 16 of f16 in shared memory, row by row, loaded by ldmatrix; b is the unit matrix: the result is the left half of a.
    let one = "0x3c00";
    let body = format!(
        "mov.u64 %rd3, sh;\nshl.b32 %r1, %r0, 4;\ncvt.u64.u32 %rd4, %r1;\nadd.s64 %rd4, %rd3, %rd4;\n\
         shl.b32 %r2, %r0, 3;\ncvt.rn.f32.u32 %r3, %r2;\ncvt.rn.f16x2.f32 %r4, %r3, %r3;\n\
         st.shared.v4.b32 [%rd4], {{%r4, %r4, %r4, %r4}};\nbar.sync 0;\n\
         and.b32 %r5, %r0, 15;\nshl.b32 %r5, %r5, 5;\nand.b32 %r6, %r0, 16;\nadd.u32 %r5, %r5, %r6;\n\
         cvt.u64.u32 %rd5, %r5;\nadd.s64 %rd5, %rd3, %rd5;\nldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r8, %r9, %r10, %r11}}, [%rd5];\n\
         shr.u32 %r12, %r0, 2;\nand.b32 %r13, %r0, 3;\nshl.b32 %r13, %r13, 1;\nsetp.eq.u32 %p0, %r12, %r13;\nmov.u32 %r14, {one};\n\
         selp.b32 %r15, %r14, 0, %p0;\nadd.u32 %r16, %r13, 1;\nsetp.eq.u32 %p1, %r12, %r16;\nshl.b32 %r17, %r14, 16;\n\
         selp.b32 %r18, %r17, 0, %p1;\nor.b32 %r19, %r15, %r18;\nmov.u32 %r20, 0;\n\
         mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{%r21, %r22, %r23, %r24}}, {{%r8, %r9, %r10, %r11}}, {{%r19, %r20}}, \
         {{%r20, %r20, %r20, %r20}};\ncvt.rzi.u32.f32 %r25, %r21;\ncvt.rzi.u32.f32 %r26, %r24;\nshl.b32 %r26, %r26, 16;\n\
         or.b32 %r25, %r25, %r26;\nst.global.u32 [%rd2], %r25;"
    );
    // Lane l stored rows l / 2, columns 8 (l mod 2) on: the value is 8 l.
    let want = |l: u32| {
        let row = l / 4;
        (8 * (2 * row)) | (8 * (2 * (row + 8))) << 16
    };
    assert_eq!(run(&body, 32, &[0; 32]).unwrap(), (0..32).map(want).collect::<Vec<_>>());
}

/// A kernel for Hopper GPUs: its text has `{body}` with the address of a buffer in %q0, that of shared memory (aligned) in %q1, mbarriers at %q2 and
/// %q2 + 8, the thread in %r0.
fn hopper(body: &str, threads: u32, shared: usize, buffer: &[u8]) -> Result<Vec<u8>, Fault> {
    let text = format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 sh[];\n.visible .entry k(.param .u64 p)\n{{\n\
         .reg .pred %p<8>;\n.reg .b32 %r<32>;\n.reg .b32 %f<128>;\n.reg .b64 %q<16>;\nld.param.u64 %q0, [p];\nmov.u32 %r0, %tid.x;\n\
         mov.u64 %q1, sh;\nadd.s64 %q1, %q1, 1023;\nand.b64 %q1, %q1, -1024;\nadd.s64 %q2, %q1, {shared};\n{body}\nret;\n}}\n"
    );
    let module = Module::parse(&text)?;
    let mut memory = Memory::default();
    let at = memory.insert(buffer.to_vec());
    let grid = Grid { blocks: [1, 1, 1], threads: [threads, 1, 1], shared: shared + 1024 + 64 };
    launch(module.kernel("k").expect("k"), grid, &at.to_le_bytes(), &mut memory)?;
    Ok(memory.remove(at).expect("the buffer"))
}

/// Thread 0 makes both mbarriers: one of so many arrivals, one of one.
fn made(count: u32) -> String {
    format!(
        "setp.ne.u32 %p0, %r0, 0;\n@%p0 bra MADE;\nmbarrier.init.shared.b64 [%q2], {count};\nmbarrier.init.shared.b64 [%q2+8], 1;\n\
         MADE:\nbar.sync 0;\n"
    )
}

/// Waits for a phase of the first mbarrier.
fn waited(parity: u32) -> String {
    format!("mov.u32 %r9, {parity};\nWAIT:\nmbarrier.try_wait.parity.shared.b64 %p1, [%q2], %r9;\n@!%p1 bra WAIT;\n")
}

/// A case of `wgmma`: what stands behind the columns, bytes of an element, bytes of a row of the pattern, are factors transposed.
struct Case {
    types: &'static str,
    bytes: usize,
    width: [usize; 2],
    transposed: [bool; 2],
    columns: usize,
}

impl Case {
    fn depth(&self) -> usize {
        32 / self.bytes
    }
    /// Where an element of a factor lies, said in another way than the interpreter does: rows of the pattern whose pieces of 16 bytes are exchanged.
    fn place(&self, side: usize, line: usize, k: usize) -> usize {
        let (width, per) = (self.width[side], self.width[side] / self.bytes);
        let (row, byte) = match self.transposed[side] {
            // Blocks of 8 lines of a row each.
            false => (line, k * self.bytes),
            // Blocks of as many lines as a row has, of 16 rows.
            true => (line / per * self.depth() + k, line % per * self.bytes),
        };
        let (piece, pieces) = (byte / 16, width / 16);
        let turn = row * width / 128 % 8 % pieces.max(1);
        row * width + (piece ^ turn) * 16 + byte % 16
    }
    fn descriptor(&self, side: usize) -> u64 {
        let width = self.width[side] as u64;
        let mode = [(128, 1u64), (64, 2), (32, 3)].iter().find(|m| m.0 == width).expect("a mode").1;
        let leading = if self.transposed[side] { self.depth() as u64 * width / 16 } else { 1 };
        mode << 62 | (8 * width / 16) << 32 | leading << 16
    }
    fn element(&self, v: i64) -> Vec<u8> {
        match self.types {
            t if t.contains("bf16") => half::bf16::from_f32(v as f32).to_le_bytes().to_vec(),
            t if t.contains("f16") => half::f16::from_f32(v as f32).to_le_bytes().to_vec(),
            t if t.contains("tf32") => (v as f32).to_le_bytes().to_vec(),
            _ => vec![v as u8],
        }
    }
    fn run(&self, change: impl Fn(String) -> String) -> Result<(Vec<f64>, Vec<f64>), Fault> {
        let (n, depth) = (self.columns, self.depth());
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = |signed: bool| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % 200) as i64 - if signed { 100 } else { 0 }
        };
        let signed = [1, 2].map(|k| self.types.split('.').nth(k) != Some("u8"));
        let (bytes_a, bytes_b) = (8192usize, 32768usize);
        let mut image = vec![0u8; (bytes_a + bytes_b).max(64 * n * 4)];
        let mut fill = |side: usize, lines: usize, at: usize| -> Vec<Vec<i64>> {
            let one = |line: usize, k: usize, next: &mut dyn FnMut(bool) -> i64, image: &mut Vec<u8>| {
                let v = next(signed[side]);
                let raw = self.element(v);
                image[at + self.place(side, line, k)..][..raw.len()].copy_from_slice(&raw);
                v
            };
            (0..lines).map(|l| (0..depth).map(|k| one(l, k, &mut next, &mut image)).collect()).collect()
        };
        let (a, b) = (fill(0, 64, 0), fill(1, n, bytes_a));
        let sums: Vec<String> = (0..n / 2).map(|k| format!("%f{k}")).collect();
        let turned = self.transposed.map(u8::from);
        let tail = match self.bytes {
            1 => String::new(),
            2 => format!(", 1, 1, {}, {}", turned[0], turned[1]),
            _ => ", 1, 1".into(),
        };
        let mut body = format!(
            "mov.u32 %r1, %r0;\nCOPY:\nmul.wide.u32 %q3, %r1, 16;\nadd.s64 %q4, %q0, %q3;\nadd.s64 %q5, %q1, %q3;\n\
             ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%q4];\nst.shared.v4.b32 [%q5], {{%r2, %r3, %r4, %r5}};\nadd.u32 %r1, %r1, 128;\n\
             setp.lt.u32 %p0, %r1, {};\n@%p0 bra COPY;\nfence.proxy.async;\nbar.sync 0;\n\
             shr.u64 %q6, %q1, 4;\nor.b64 %q7, %q6, {:#x};\nadd.s64 %q8, %q6, {};\nor.b64 %q8, %q8, {:#x};\n",
            (bytes_a + bytes_b) / 16,
            self.descriptor(0),
            bytes_a / 16,
            self.descriptor(1),
        );
        // The first instruction writes, the second one adds.
        let wgmma = |add: u32| {
            format!(
                "wgmma.mma_async.sync.aligned.m64n{n}k{depth}.{} {{{}}}, %q7, %q8, %p{add}{tail};\n",
                self.types,
                sums.join(", ")
            )
        };
        body += &format!(
            "setp.ne.u32 %p2, 0, 0;\nsetp.eq.u32 %p3, 0, 0;\nwgmma.fence.sync.aligned;\n{}{}wgmma.commit_group.sync.aligned;\n\
             wgmma.wait_group.sync.aligned 0;\nmul.wide.u32 %q9, %r0, {};\nadd.s64 %q9, %q0, %q9;\n",
            wgmma(2),
            wgmma(3),
            2 * n
        );
        sums.iter().enumerate().for_each(|(k, f)| body += &format!("st.global.b32 [%q9+{}], {f};\n", 4 * k));
        let out = hopper(&change(body), 128, bytes_a + bytes_b, &image)?;
        let (mut got, mut want) = (vec![0f64; 64 * n], vec![0f64; 64 * n]);
        for thread in 0..128 {
            for r in 0..n / 2 {
                let (row, column) = (thread / 32 * 16 + thread % 32 / 4 + r / 2 % 2 * 8, r / 4 * 8 + thread % 4 * 2 + r % 2);
                let raw = u32::from_le_bytes(out[(thread * n / 2 + r) * 4..][..4].try_into().expect("4 bytes"));
                got[row * n + column] =
                    if self.types.starts_with('f') { f64::from(f32::from_bits(raw)) } else { f64::from(raw as i32) };
            }
        }
        for row in 0..64 {
            for column in 0..n {
                want[row * n + column] = 2.0 * (0..depth).map(|k| (a[row][k] * b[column][k]) as f64).sum::<f64>();
            }
        }
        Ok((got, want))
    }
}

#[test]
fn warpgroups_multiply_swizzled_tiles() {
    let both = [("f32.f16.f16", 2usize), ("f32.bf16.bf16", 2), ("f32.tf32.tf32", 4)];
    let bytes = ["s32.s8.s8", "s32.s8.u8", "s32.u8.s8", "s32.u8.u8"].map(|t| (t, 1usize));
    let mut runs = 0;
    for (types, bytes) in both.into_iter().chain(bytes) {
        for columns in [8, 64, 128, 256] {
            for width in [[128, 128], [64, 32]] {
                for transposed in [[false, false], [false, true], [true, true]] {
                    let per = width[1] / bytes;
                    if transposed[1] && (bytes != 2 || columns % per != 0 || columns == 8) {
                        continue;
                    }
                    // Rows of 32 bytes of products need patterns that have them.
                    let case = Case { types, bytes, width, transposed, columns };
                    let (got, want) =
                        case.run(|b| b).unwrap_or_else(|f| panic!("{types} {columns} {width:?} {transposed:?}: {f}"));
                    assert_eq!(got, want, "{types} {columns} {width:?} {transposed:?}");
                    runs += 1;
                }
            }
        }
    }
    assert!(runs > 60, "{runs}");
}

#[test]
fn what_matrix_instructions_must_wait_for_is_told() {
    let case = |from: &'static str, to: &'static str| {
        let case = Case { types: "f32.bf16.bf16", bytes: 2, width: [128, 128], transposed: [false, false], columns: 64 };
        case.run(|b| {
            assert!(b.contains(from), "{from}");
            b.replacen(from, to, 1)
        })
        .map(|_| ())
    };
    let told = |from, to, what: &str| {
        let fault = case(from, to).expect_err(what);
        assert!(fault.what.contains(what), "{fault}");
    };
    assert_eq!(case("bar.sync 0;", "bar.sync 0;"), Ok(()));
    told("fence.proxy.async;\n", "", "without fence.proxy.async");
    told("bar.sync 0;\n", "", "without an order");
    told("wgmma.wait_group.sync.aligned 0;\n", "", "not waited for");
    told("wgmma.wait_group.sync.aligned 0;\n", "wgmma.wait_group.sync.aligned 1;\n", "not waited for");
    told("wgmma.fence.sync.aligned;\n", "", "wgmma.fence");
    told("wgmma.fence.sync.aligned;\n", "wgmma.fence.sync.aligned;\nmov.u32 %f3, 0;\n", "no wgmma.fence stands between");
    told("wgmma.wait_group.sync.aligned 0;\n", "st.shared.b32 [%q1], %r0;\nwgmma.wait_group.sync.aligned 0;\n", "may still read");
    told(
        "wgmma.fence.sync.aligned;\n",
        "wgmma.fence.sync.aligned;\nand.b32 %r6, %r0, 64;\ncvt.u64.u32 %q10, %r6;\nadd.s64 %q7, %q7, %q10;\n",
        "different",
    );
}

#[test]
fn bulk_copies_come_when_an_mbarrier_counts_them() {
    // Thread 0 asks for 512 bytes; all wait, and store them beside.
    let body = |before: &str, wait: &str, bytes: u32| {
        made(1)
            + &format!(
                "{before}setp.ne.u32 %p0, %r0, 0;\n@%p0 bra ASKED;\nmbarrier.arrive.expect_tx.shared.b64 _, [%q2], {bytes};\n\
             cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%q1], [%q0], 512, [%q2];\nASKED:\n{wait}\
             mul.wide.u32 %q3, %r0, 4;\nadd.s64 %q4, %q1, %q3;\nld.shared.b32 %r1, [%q4];\nadd.s64 %q5, %q0, %q3;\nst.global.b32 [%q5+512], %r1;"
            )
    };
    let image: Vec<u8> = (0..1024u32).map(|k| (k * 37 % 251) as u8).collect();
    let got = hopper(&body("", &waited(0), 512), 128, 1024, &image).expect("it runs");
    assert_eq!(got[512..], image[..512]);
    let told = |text: String, what: &str| {
        let fault = hopper(&text, 128, 1024, &image).expect_err(what);
        assert!(fault.what.contains(what), "{fault}");
    };
    told(body("", "", 512), "a copy that is not waited for");
    // The phase before the first one is over.
    told(body("", &waited(1), 512), "a copy that is not waited for");
    told(body("", &waited(0), 528), "nobody completes");
    let written = "mul.wide.u32 %q3, %r0, 4;\nadd.s64 %q4, %q1, %q3;\nst.shared.b32 [%q4], %r0;\n";
    told(body(&format!("{written}bar.sync 0;\n"), &waited(0), 512), "without fence.proxy.async");
    told(body(&format!("{written}fence.proxy.async;\n"), &waited(0), 512), "others still use");
    assert!(hopper(&body(&format!("{written}fence.proxy.async;\nbar.sync 0;\n"), &waited(0), 512), 128, 1024, &image).is_ok());
}

#[test]
fn blocks_of_a_cluster_share_copies_and_mbarriers() {
    // Each block asks for a half of 512 bytes for both, waits for both halves, and stores them; then it tells the other one, and waits for that.
    let text = ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 sh[];\n.visible .entry k(.param .u64 p)\n.reqntid 128\n\
         .explicitcluster\n.reqnctapercluster 2\n{\n.reg .pred %p<8>;\n.reg .b16 %h<2>;\n.reg .b32 %r<8>;\n.reg .b64 %q<16>;\nld.param.u64 %q0, [p];\nmov.u32 %r0, %tid.x;\n\
         mov.u32 %r1, %cluster_ctarank;\nmov.u64 %q1, sh;\nadd.s64 %q1, %q1, 1023;\nand.b64 %q1, %q1, -1024;\nadd.s64 %q2, %q1, 512;\nmov.b16 %h0, 3;\n\
         setp.ne.u32 %p0, %r0, 0;\n@%p0 bra MADE;\nmbarrier.init.shared.b64 [%q2], 1;\nmbarrier.init.shared.b64 [%q2+8], 1;\nfence.mbarrier_init.release.cluster;\nMADE:\n\
         barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n@%p0 bra ASKED;\nmbarrier.arrive.expect_tx.shared.b64 _, [%q2], 512;\n\
         mul.wide.u32 %q3, %r1, 256;\nadd.s64 %q4, %q1, %q3;\nadd.s64 %q5, %q0, %q3;\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%q4], [%q5], 256, [%q2], %h0;\nASKED:\nmov.u32 %r2, 0;\nWAIT:\n\
         mbarrier.try_wait.parity.shared.b64 %p1, [%q2], %r2;\n@!%p1 bra WAIT;\nmul.wide.u32 %q6, %r0, 4;\nadd.s64 %q7, %q1, %q6;\nld.shared.b32 %r3, [%q7];\n\
         mul.wide.u32 %q8, %r1, 512;\nadd.s64 %q9, %q0, %q8;\nadd.s64 %q9, %q9, %q6;\nst.global.b32 [%q9+512], %r3;\nxor.b32 %r4, %r1, 1;\nadd.s64 %q10, %q2, 8;\n\
         mapa.shared::cluster.u64 %q11, %q10, %r4;\n@!%p0 mbarrier.arrive.shared::cluster.b64 _, [%q11];\nLAST:\n\
         mbarrier.try_wait.parity.shared.b64 %p2, [%q10], %r2;\n@!%p2 bra LAST;\nret;\n}\n";
    let image: Vec<u8> = (0..512 * 3u32).map(|k| (k * 37 % 251) as u8).collect();
    let run = |text: &str, blocks: u32| {
        let module = Module::parse(text)?;
        let mut memory = Memory::default();
        let at = memory.insert(image.clone());
        let grid = Grid { blocks: [blocks, 1, 1], threads: [128, 1, 1], shared: 512 + 1024 + 64 };
        launch(module.kernel("k").expect("k"), grid, &at.to_le_bytes(), &mut memory)?;
        Ok::<_, Fault>(memory.remove(at).expect("the buffer"))
    };
    let got = run(text, 2).expect("it runs");
    assert!(got[512..1024] == image[..512] && got[1024..] == image[..512]);
    let told = |from: &str, to: &str, what: &str| {
        assert!(text.contains(from), "{from}");
        let fault = run(&text.replace(from, to), 2).expect_err(what);
        assert!(fault.what.contains(what), "{from}: {fault}");
    };
    told("fence.mbarrier_init.release.cluster;\n", "", "without fence.mbarrier_init");
    told("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n", "", "mbarrier");
    told("barrier.cluster.arrive.release.aligned;\n", "", "without having come there");
    told("barrier.cluster.arrive.release.aligned;\n", "bar.sync 0;\n", "is not done here");
    told("mov.b16 %h0, 3;", "mov.b16 %h0, 1;", "nobody completes");
    told("mov.b16 %h0, 3;", "mov.b16 %h0, 7;", "block 2 of a cluster of 2");
    told("[%q2], 512;", "[%q2], 256;", "");
    told("xor.b32 %r4, %r1, 1;", "add.u32 %r4, %r1, 1;", "of a block that the cluster has not");
    told("arrive.shared::cluster.b64 _", "arrive.shared.b64 _", "no mbarrier");
    told("mbarrier.try_wait.parity.shared.b64 %p2, [%q10], %r2;\n@!%p2 bra LAST;\n", "", "which has ended");
    assert!(run(text, 3).expect_err("half a cluster").what.contains("in clusters of 2"));
}

#[test]
fn mbarriers_order_threads_and_have_phases() {
    // All threads of the second warp write; those of the first one wait, and copy what others wrote.
    let body = |arrive: &str, parity: u32| {
        made(32)
            + &format!(
                "setp.lt.u32 %p0, %r0, 32;\n@%p0 bra READ;\nsub.u32 %r1, %r0, 32;\nmul.wide.u32 %q3, %r1, 4;\nadd.s64 %q4, %q1, %q3;\n\
             st.shared.b32 [%q4], %r1;\n{arrive}bra OVER;\nREAD:\n{}sub.u32 %r1, 31, %r0;\nmul.wide.u32 %q3, %r1, 4;\nadd.s64 %q4, %q1, %q3;\nld.shared.b32 %r2, [%q4];\n\
             add.s64 %q5, %q0, %q3;\nst.global.b32 [%q5], %r2;\nOVER:\n",
                waited(parity)
            )
    };
    let arrive = "mbarrier.arrive.shared.b64 _, [%q2];\n";
    let got = hopper(&body(arrive, 0), 64, 1024, &[0; 128]).expect("it runs");
    assert_eq!(got, (0..32u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    let told = |text: String, what: &str| {
        let fault = hopper(&text, 64, 1024, &[0; 128]).expect_err(what);
        assert!(fault.what.contains(what), "{fault}");
    };
    told(body(arrive, 1), "since the last barrier");
    told(body("", 0), "nobody completes");
    told(body(arrive, 0).replace("bar.sync 0;\n", ""), "mbarrier");
}

#[test]
fn tensor_maps_bring_boxes_in_their_swizzle() {
    let mut memory = Memory::default();
    // 5 rows of 72 elements, 160 bytes apart.
    let image: Vec<u8> = (0..5 * 80u16).flat_map(|k| (k + 1).to_le_bytes()).collect();
    let address = memory.insert(image.clone());
    let map = TensorMap { width: 2, address, axes: vec![(72, 2, 64), (5, 160, 4)] };
    let bytes = map.encode().expect("it is as the manual wants it");
    assert_eq!(TensorMap::decode(&bytes).as_ref(), Ok(&map));
    for (first, to) in [([0, 0], 0usize), ([64, 3], 1024), ([-3, -1], 512)] {
        let got = map.gather(&first, to, &memory).expect("it is inside");
        assert_eq!(got.len(), 64 * 4 * 2);
        for row in 0..4i32 {
            for k in 0..64i32 {
                let (x, y) = (first[0] + k, first[1] + row);
                let inside = (0..72).contains(&x) && (0..5).contains(&y);
                let want = if inside { (y * 80 + x + 1) as u16 } else { 0 };
                // Pieces of 16 bytes, exchanged by the number of the row of 128 bytes in its pattern.
                let line = to / 128 + row as usize;
                let at = row as usize * 128 + ((k as usize / 8) ^ (line % 8)) * 16 + k as usize % 8 * 2;
                assert_eq!(u16::from_le_bytes([got[at], got[at + 1]]), want, "{first:?}, row {row}, element {k}");
            }
        }
    }
    let wrong = |change: &dyn Fn(&mut TensorMap), what: &str| {
        let mut map = map.clone();
        change(&mut map);
        let said = map.encode().expect_err(what);
        assert!(said.contains(what), "{said}");
    };
    wrong(&|m| m.address += 8, "no multiple of 16");
    wrong(&|m| m.axes[1].1 = 152, "152 bytes apart");
    wrong(&|m| m.axes[1].2 = 257, "boxes of 257");
    wrong(&|m| m.axes[0].2 = 72, "rows of 144 bytes");
    wrong(&|m| m.axes = vec![(8, 16, 8); 6], "6 axes");
    let taller = TensorMap { axes: vec![(72, 2, 64), (6, 160, 4)], ..map.clone() };
    assert!(taller.gather(&[0, 4], 0, &memory).expect_err("row 5").contains("at offset 800"), "it reads behind the buffer");
    assert!(TensorMap::decode(&[0; 128]).expect_err("zeros").contains("nobody encoded"));
}
