//! Compiled code on another computer: artifacts and inputs go to a program there (`infc-worker`), outputs come back.
//!
//! The program is started by a command of the user's, `ssh board infc-worker` or `qemu-aarch64 infc-worker`; [`infc_runtime::worker`] has its end and the messages.

use crate::engine::Engine;
use infc_ir::interp::Item;
use infc_ir::{Problems, host};
use infc_runtime::worker::{HELLO, packed, receive, send, unpacked};
use std::io::{self, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a worker that no longer talks may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Another computer, by the command that starts a worker there.
#[derive(Debug)]
pub struct Elsewhere {
    command: Vec<String>,
    /// What it is called in errors, and what to do where it cannot be started.
    name: String,
    help: String,
    /// Workers that have nothing to do.
    idle: Mutex<Vec<Worker>>,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: ChildStdout,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Elsewhere {
    /// By a command whose words are separated by spaces; one worker is started at once, so that a command that does not work is an error now.
    pub fn new(command: &str) -> Result<Arc<Elsewhere>, Problems> {
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        let help = "give the words that start infc-worker on the other computer: --on 'ssh board infc-worker'";
        Elsewhere::with(words.clone(), format!("--on '{}'", words.join(" ")), help.to_owned())
    }

    /// The same by the words of the command, with what it is called in errors and what to do where it cannot be started.
    pub fn with(command: Vec<String>, name: String, help: String) -> Result<Arc<Elsewhere>, Problems> {
        let here = Elsewhere { command, name, help, idle: Mutex::default() };
        let worker = here.start()?;
        here.put_back(worker);
        Ok(Arc::new(here))
    }

    fn problem(&self, message: impl Into<String>, help: &str) -> Problems {
        Problems::one(self.name.clone(), message.into(), help)
    }

    fn lost(&self, worker: &mut Worker, e: Option<io::Error>) -> Problems {
        // What has not ended by itself by now, though it no longer talks, is not waited for.
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && matches!(worker.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let ended = match worker.child.try_wait() {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "it is still there, and was ended".to_owned(),
            Err(e) => e.to_string(),
        };
        let _ = worker.child.kill();
        let _ = worker.child.wait();
        let why = e.map_or(String::new(), |e| format!("{e}; "));
        self.problem(format!("the program there ended: {why}{ended}"), "what it printed stands above")
    }

    fn start(&self) -> Result<Worker, Problems> {
        let help = &self.help;
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(self.problem("no command is given", help));
        };
        let child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| self.problem(format!("'{program}' cannot be started: {e}"), help))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(self.problem("has no standard input and output", help));
        };
        let mut worker = Worker { child, requests, answers };
        let mut first = [0; 9 + HELLO.len()];
        if let Err(e) = worker.answers.read_exact(&mut first) {
            return Err(self.lost(&mut worker, Some(e)));
        }
        let length = u64::from_le_bytes(std::array::from_fn(|i| first[1 + i])) as usize;
        if first[0] != b'h' || &first[9..] != HELLO.as_bytes() || length > 1 << 16 {
            let text = String::from_utf8_lossy(&first).into_owned();
            return Err(self.problem(format!("is no {HELLO}: it begins with {text:?}"), help));
        }
        let mut rest = vec![0; length.saturating_sub(HELLO.len())];
        match worker.answers.read_exact(&mut rest) {
            Ok(()) => Ok(worker),
            Err(e) => Err(self.lost(&mut worker, Some(e))),
        }
    }

    fn take(&self) -> Result<Worker, Problems> {
        let idle = self.idle.lock().unwrap_or_else(|e| e.into_inner()).pop();
        idle.map_or_else(|| self.start(), Ok)
    }

    fn put_back(&self, worker: Worker) {
        self.idle.lock().unwrap_or_else(|e| e.into_inner()).push(worker);
    }

    /// The answer to a request.
    fn ask(&self, worker: &mut Worker, kind: u8, bytes: &[u8], answer: u8) -> Result<Vec<u8>, Problems> {
        if let Err(e) = send(&mut worker.requests, kind, bytes) {
            return Err(self.lost(worker, Some(e)));
        }
        match receive(&mut worker.answers) {
            Ok(Some(m)) if m.kind == answer => Ok(m.bytes),
            Ok(Some(m)) if m.kind == b'e' => {
                let text = String::from_utf8_lossy(&m.bytes).into_owned();
                Err(self.problem(text, ""))
            }
            Ok(Some(m)) => {
                Err(self.problem(format!("answered with {:?}", char::from(m.kind)), "are both ends of the same version?"))
            }
            Ok(None) => Err(self.lost(worker, None)),
            Err(e) => Err(self.lost(worker, Some(e))),
        }
    }

    /// A model that runs there.
    pub fn load(self: &Arc<Elsewhere>, artifact: &[u8]) -> Result<Remote, Problems> {
        let mut worker = self.take()?;
        match self.ask(&mut worker, b'a', artifact, b'o') {
            Ok(nodes) => {
                let nodes = String::from_utf8_lossy(&nodes).lines().map(str::to_owned).collect();
                Ok(Remote { there: self.clone(), worker: Some(worker), nodes })
            }
            Err(problems) => {
                self.put_back(worker);
                Err(problems)
            }
        }
    }
}

/// A model in a worker.
pub struct Remote {
    there: Arc<Elsewhere>,
    /// There until it ended.
    worker: Option<Worker>,
    nodes: Vec<String>,
}

impl Engine for Remote {
    fn run(&mut self, inputs: &[Item]) -> Result<Vec<Item>, Problems> {
        let Some(worker) = &mut self.worker else {
            return Err(self.there.problem("the program there ended in a run before", ""));
        };
        let wrong = |at: String| move |message: String| Problems::one(at, message, "");
        let value = |(i, item): (usize, &Item)| host::to_host(item).map_err(|f| wrong(format!("input {i}"))(f.0));
        let inputs: Vec<_> = inputs.iter().enumerate().map(value).collect::<Result<_, _>>()?;
        match self.there.ask(worker, b'r', &packed(inputs), b'v') {
            Ok(bytes) => {
                let values = unpacked(&bytes).map_err(|e| self.there.problem(e.to_string(), ""))?;
                let item = |(i, v)| host::from_host(v).map_err(|f| wrong(format!("output {i}"))(f.0));
                values.into_iter().enumerate().map(item).collect()
            }
            Err(problems) => {
                if worker.child.try_wait().map_or(true, |status| status.is_some()) {
                    self.worker = None;
                }
                Err(problems)
            }
        }
    }

    fn host_nodes(&self) -> Vec<String> {
        self.nodes.clone()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.there.put_back(worker);
        }
    }
}
