//! The compiler's end: a backend that asks a program.

use crate::{Answer, Request, VERSION, checked};
use infc_artifact::program::Program;
use infc_ir::{Problem, Problems};
use infc_kernel::backend::{Backend, Code, Object, Os};
use infc_kernel::bounded::Layout;
use infc_kernel::loops::Kernel;
use infc_kernel::target::TargetDesc;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The backend of a machine that has a plugin.
#[derive(Clone, Debug)]
pub struct Plugin {
    target: TargetDesc,
}

impl Plugin {
    /// For a machine; nothing if it has no plugin.
    pub fn of(target: &TargetDesc) -> Option<Plugin> {
        target.plugin.is_some().then(|| Plugin { target: target.clone() })
    }

    fn problem(&self, message: impl Into<String>, help: &str) -> Problems {
        let command = self.target.plugin.iter().flat_map(|p| &p.command).map(String::as_str).collect::<Vec<_>>().join(" ");
        Problems::one(format!("target '{}', plugin '{command}'", self.target.name), message.into(), help)
    }

    /// Starts the program, asks it, and waits for the answer and its end.
    fn ask(&self, ask: &str, kernels: &[Kernel]) -> Result<Answer, Problems> {
        let plugin = self.target.plugin.as_ref().expect("checked when it was made");
        let request = serde_json::to_vec(&Request::new(&self.target, ask, kernels)).expect("numbers and texts");
        let help = "the machine file's table [plugin] has the command";
        let Some((program, arguments)) = plugin.command.split_first() else {
            return Err(self.problem("the command is empty", help));
        };
        let child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| self.problem(format!("cannot be started: {e}"), help))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (mut requests, mut answers) = pipes.expect("both are piped");
        // A program may answer before it has read everything, or nothing at all.
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            // What it does not read, it does not want.
            let _ = requests.write_all(&request);
        });
        std::thread::spawn(move || {
            let mut text = vec![];
            let read = answers.read_to_end(&mut text).map(|_| text);
            let _ = sender.send(read);
        });
        let (begin, limit) = (Instant::now(), Duration::from_secs(plugin.seconds));
        let late = |child: &mut Child| {
            let _ = child.kill();
            let _ = child.wait();
            let message = format!("gave no answer in {} s", plugin.seconds);
            self.problem(message, "the key `seconds` of the machine file's table [plugin] gives it more")
        };
        let read = receiver.recv_timeout(limit).map_err(|_| late(&mut child))?;
        // Its answer counts when it has ended: it may close its output and go on.
        let status = loop {
            match child.try_wait().map_err(|e| self.problem(e.to_string(), ""))? {
                Some(status) => break status,
                None if begin.elapsed() >= limit => return Err(late(&mut child)),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let text =
            read.map_err(|e| self.problem(format!("its answer cannot be read: {e} ({status})"), "what it printed stands above"))?;
        if !status.success() {
            return Err(self.problem(format!("ended with {status}"), "what it printed stands above"));
        }
        let answer: Answer = serde_json::from_slice(&text).map_err(|e| {
            self.problem(format!("the answer is no JSON object of the plugin messages: {e}"), "docs/add-a-target.md has them")
        })?;
        if answer.version != VERSION {
            return Err(self.problem(
                format!("answers with version {}, this compiler knows {VERSION}", answer.version),
                "use a plugin for this compiler",
            ));
        }
        if !answer.problems.is_empty() {
            let told = |p: crate::Told| Problem {
                at: format!("target '{}': {}", self.target.name, p.at),
                message: p.message,
                help: p.help,
            };
            return Err(Problems(answer.problems.into_iter().map(told).collect()));
        }
        Ok(answer)
    }
}

impl Backend for Plugin {
    fn target(&self) -> &TargetDesc {
        &self.target
    }

    fn emit(&self, kernels: &[Kernel]) -> Result<Code, Problems> {
        checked(self.ask("code", kernels)?, kernels.len()).map_err(|e| self.problem(e, "this is a fault of the plugin"))
    }

    fn emit_object(&self, _: &Program, _: &Layout, _: &[Kernel], _: &[u8], name: &str, _: Os) -> Result<Object, Problems> {
        let message = format!("plugins make code for artifacts; it cannot make the object file '{name}'");
        Err(self.problem(message, "`--emit infc` makes an artifact for the runtime instead"))
    }

    fn emit_text(&self, kernels: &[Kernel], kind: &str) -> Result<String, Problems> {
        let answer = self.ask(kind, kernels)?;
        answer.text.ok_or_else(|| {
            self.problem(format!("was asked for the text '{kind}' and gave none"), "this is a fault of the plugin")
        })
    }
}
