//! Small kernels with what they must do, and what must be told.

use crate::{Fault, Grid, Memory, Module, launch};

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
