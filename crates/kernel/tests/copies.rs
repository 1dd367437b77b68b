//! Copies between a device and the host: where they stand, and that there are no others.

use infc_artifact::program::{Program, Step};
use infc_kernel::copies;
use infc_kernel::loops::text::parse_all;
use std::collections::HashSet;

/// The steps after copies were put in. `x` is @0, `y` @1; the others are in the arena for the steps that `lives` says. Kernel 0 of each side reads its
/// first buffer and writes the second one: all of it, where the number of its step is in `whole`.
fn with_copies(lives: &[(u32, u32)], whole: &[u32], steps: &str) -> (Program, String) {
    let mut text = String::from("symbol 0 \"i\" = step\ninput 0 \"x\" f32[4] @0\noutput 0 \"y\" f32[4] @1\n");
    text += "buffer @0 input 0, bytes 16\nbuffer @1 output 0, bytes 16\n";
    for (k, (first, last)) in lives.iter().enumerate() {
        text += &format!("buffer @{} arena steps {first}..={last}, bytes 16\n", k + 2);
    }
    text += "kernel 0 \"f\" entry 0x0 scratch 0\nhost_kernel 0 \"g\" entry 0x0 scratch 0\nmessage 0 \"n\" \"why\"\n";
    text += &format!("steps {{\n{steps}\n}}\n");
    let mut program = infc_artifact::parse::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    program.validate_beside(1, 1, 0).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let kernel = parse_all(
        "kernel \"k\" () tasks 1 as i0 {\n b0 \"a\": f32[4] strides [1] global read\n b1 \"b\": f32[4] strides [1] global write\n}\n",
    );
    let kernel = kernel.unwrap_or_else(|e| panic!("{e:?}"));
    let whole: HashSet<u32> = whole.iter().copied().collect();
    copies::insert(&mut program, &kernel, &kernel, &whole);
    program.validate_beside(1, 1, 0).unwrap_or_else(|e| panic!("{e}\n{program}"));
    let mut lines = vec![];
    brief(&program.steps, &mut lines);
    (program, lines.join(" "))
}

/// `f(2 3)`, `g(2 3)`, `>2` to the host, `<2` to the device, and braces.
fn brief(steps: &[Step], out: &mut Vec<String>) {
    for step in steps {
        match step {
            Step::Launch { buffers, .. } => out.push(format!("f({} {})", buffers[0].buffer, buffers[1].buffer)),
            Step::HostLaunch { buffers, .. } => out.push(format!("g({} {})", buffers[0].buffer, buffers[1].buffer)),
            Step::ToHost { buffer } => out.push(format!(">{buffer}")),
            Step::ToDevice { buffer } => out.push(format!("<{buffer}")),
            Step::If { then, otherwise, .. } => {
                out.push("if{".into());
                brief(then, out);
                out.push("}else{".into());
                brief(otherwise, out);
                out.push("}".into());
            }
            Step::Loop { body, .. } => {
                out.push("for{".into());
                brief(body, out);
                out.push("}".into());
            }
            _ => out.push("other".into()),
        }
    }
}

fn f(from: u32, to: u32) -> String {
    format!("launch 0 \"f\" (@{from}, @{to}) [] tasks 1\n")
}

fn g(from: u32, to: u32) -> String {
    format!("host_launch 0 \"g\" (@{from}, @{to}) [] tasks 1 message 0\n")
}

#[track_caller]
fn check(lives: &[(u32, u32)], whole: &[u32], steps: &[String], expected: &str) -> Program {
    let (program, got) = with_copies(lives, whole, &steps.concat());
    assert_eq!(got, expected);
    program
}

#[test]
fn a_step_of_the_host_between_two_of_the_device() {
    let p = check(&[(0, 1), (1, 2)], &[], &[f(0, 2), g(2, 3), f(3, 1)], "f(0 2) >2 g(2 3) <3 f(3 1)");
    let lives: Vec<String> = p.buffers[2..].iter().map(|b| format!("{:?}", b.place)).collect();
    assert!(lives[0].contains("first: 0, last: 2") && lives[1].contains("first: 2, last: 4"), "{lives:?}");
}

#[test]
fn steps_of_the_host_in_a_row_need_no_copies_between_them() {
    check(&[(0, 1), (1, 2), (2, 3)], &[], &[f(0, 2), g(2, 3), g(3, 4), f(4, 1)], "f(0 2) >2 g(2 3) g(3 4) <4 f(4 1)");
}

#[test]
fn inputs_and_outputs_of_the_host_alone_are_not_copied() {
    check(&[(0, 1)], &[], &[g(0, 2), g(2, 1)], "g(0 2) g(2 1)");
    // The input is on both sides; the output is read on the device, and so taken from there.
    check(&[], &[], &[g(0, 1), f(1, 1)], "g(0 1) <1 f(1 1)");
}

#[test]
fn who_writes_a_part_needs_the_rest() {
    check(&[(0, 3)], &[], &[f(0, 2), g(0, 2), f(2, 1), g(0, 2)], "f(0 2) >2 g(0 2) <2 f(2 1) g(0 2)");
    check(&[(0, 3)], &[1], &[f(0, 2), g(0, 2), f(2, 1), g(0, 2)], "f(0 2) g(0 2) <2 f(2 1) g(0 2)");
}

#[test]
fn what_was_copied_once_is_not_copied_again() {
    check(&[(0, 3), (1, 3)], &[], &[f(0, 2), g(2, 3), g(2, 3), f(2, 1)], "f(0 2) >2 g(2 3) g(2 3) f(2 1)");
}

#[test]
fn branches_leave_the_same_state() {
    let branches = |then: &str, otherwise: &str| format!("if @0 {{\n{then}}} else {{\n{otherwise}}}\n");
    let steps = [branches(&f(0, 2), &g(0, 2)), f(2, 1)];
    check(&[(0, 3)], &[], &steps, "if{ f(0 2) }else{ g(0 2) <2 } f(2 1)");
    // Where nobody looks at it afterwards, nothing is copied.
    let steps = [branches(&(f(0, 2) + &f(2, 1)), &(g(0, 2) + &f(2, 1)))];
    check(&[(0, 4)], &[], &steps, "if{ f(0 2) f(2 1) }else{ g(0 2) <2 f(2 1) }");
    // A copy in one branch alone says nothing of what comes after both.
    let steps = [f(0, 2), branches(&g(2, 3), ""), g(2, 1), f(3, 1)];
    check(&[(0, 3), (1, 4)], &[], &steps, "f(0 2) if{ >2 g(2 3) }else{ } >2 g(2 1) <3 <1 f(3 1)");
}

#[test]
fn rounds_begin_as_they_end() {
    let repeat = |body: &str| format!("for i below 3 {{\n{body}}}\n");
    // What a round leaves to the next one goes back to the device at its end; what only it uses begins anew.
    let steps = [f(0, 2), repeat(&(f(2, 3) + &g(3, 2))), f(2, 1)];
    check(&[(0, 4), (2, 3)], &[0, 2, 3, 4], &steps, "f(0 2) for{ f(2 3) >3 g(3 2) <2 } f(2 1)");
    // What was on both sides before the first round is not so before the second one.
    let steps = [f(0, 2), g(2, 3), repeat(&(g(2, 3) + &f(0, 2))), f(3, 1)];
    check(&[(0, 5), (1, 5)], &[0, 1, 3, 4, 5], &steps, "f(0 2) >2 g(2 3) for{ >2 g(2 3) f(0 2) } <3 f(3 1)");
}
