//! What of a program for a device runs on the host beside it, and what is copied for that, in words.

use infc_artifact::program::{Program, Step, each_step};

/// A line for each such step and each copy, in the order of the steps; none for a program without.
pub fn lines(program: &Program) -> Vec<String> {
    let names: Vec<&str> = program.symbols.iter().map(|s| s.name.as_str()).collect();
    let message = |code: u32| program.messages.get(code as usize).map_or(("", ""), |m| (m.node.as_str(), m.text.as_str()));
    let bytes = |buffer: u32| program.buffers.get(buffer as usize).map_or_else(String::new, |b| b.bytes.text(&names));
    let (mut lines, mut number) = (vec![], 0);
    each_step(&program.steps, &mut |step| {
        match step {
            Step::HostLaunch { kernel, code, .. } => {
                let ((node, why), name) = (message(*code), program.host_kernels.get(*kernel as usize).map_or("", |k| &k.name));
                // Borders are of no node.
                let node = if node.is_empty() { name } else { node };
                lines.push(format!("step {number} on the host: {node} ({why})"));
            }
            Step::Host { routine, code, .. } if program.two_sided() => {
                lines.push(format!("step {number} on the host: {} (routine {routine})", message(*code).0));
            }
            Step::ToHost { buffer } => {
                lines.push(format!("step {number} copies to the host: buffer {buffer}, bytes {}", bytes(*buffer)))
            }
            Step::ToDevice { buffer } => {
                lines.push(format!("step {number} copies to the GPU: buffer {buffer}, bytes {}", bytes(*buffer)));
            }
            _ => {}
        }
        number += 1;
    });
    lines
}
