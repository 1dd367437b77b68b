//! Backends outside of infc: programs that make code, the messages that they and the compiler speak, and both ends of them.
//!
//! A machine file with a table `[plugin]` names a program. For each artifact it is started, gets one request as a JSON object on standard input, up to its end,
//! gives one answer as a JSON object on standard output, and ends. What it prints on standard error is for people. The request:
//!
//! | key | what |
//! |---|---|
//! | `version` | [`VERSION`]; a program that does not know it answers with a problem |
//! | `ask` | `code`, or the kind of a text for people (`asm`, ...) |
//! | `target` | the machine file's keys, as an object |
//! | `kernels` | the kernels in the text form of loops (`docs/ir.md`), one after another |
//!
//! The answer has `version`, and either `image` (one position-independent image as hexadecimal digits, two a byte), `entries` (the offset of each kernel's
//! function, in their order) and `scratch` (the bytes that a task of each kernel needs); or `text`; or `problems`, a list of objects with `at`, `message` and `help`.
//! The functions follow the kernel ABI of [`infc_artifact::abi`]; what else has to be right is what [`infc_kernel::backend::Code`] says.
//!
//! A plugin in Rust implements [`Backend`] and calls [`answer`]; `infc emit` is one, around the backends of infc itself.

#![forbid(unsafe_code)]

mod client;
mod hex;

pub use client::Plugin;

use infc_ir::{Problem, Problems};
use infc_kernel::backend::{Backend, Code};
use infc_kernel::loops::{self, Kernel};
use infc_kernel::target::TargetDesc;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};

/// The version of the messages.
pub const VERSION: u32 = 1;

/// What the compiler asks.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    version: u32,
    ask: String,
    target: TargetDesc,
    kernels: String,
}

/// What a plugin answers.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scratch: Option<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Told>,
}

/// A problem.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    at: String,
    message: String,
    #[serde(default)]
    help: String,
}

impl Request {
    fn new(target: &TargetDesc, ask: &str, kernels: &[Kernel]) -> Request {
        let kernels = kernels.iter().map(|k| format!("{k}\n")).collect();
        Request { version: VERSION, ask: ask.to_owned(), target: target.clone(), kernels }
    }
}

impl Answer {
    fn code(code: &Code) -> Answer {
        Answer {
            version: VERSION,
            image: Some(hex::digits(&code.image)),
            entries: Some(code.entries.clone()),
            scratch: Some(code.scratch.clone()),
            ..Answer::default()
        }
    }
    fn text(text: String) -> Answer {
        Answer { version: VERSION, text: Some(text), ..Answer::default() }
    }
    fn problems(problems: Problems) -> Answer {
        let told = |p: Problem| Told { at: p.at, message: p.message, help: p.help };
        Answer { version: VERSION, problems: problems.0.into_iter().map(told).collect(), ..Answer::default() }
    }
}

/// Reads the request from `input` and writes to `output` what the backend answers: a plugin's whole work. `backend` makes it for a machine.
pub fn answer(
    input: &mut impl Read,
    output: &mut impl Write,
    backend: impl FnOnce(TargetDesc) -> Result<Box<dyn Backend>, Problems>,
) -> std::io::Result<()> {
    let mut text = vec![];
    input.read_to_end(&mut text)?;
    let answer = asked(&text, backend).unwrap_or_else(Answer::problems);
    serde_json::to_writer(&mut *output, &answer)?;
    output.write_all(b"\n")?;
    output.flush()
}

fn asked(text: &[u8], backend: impl FnOnce(TargetDesc) -> Result<Box<dyn Backend>, Problems>) -> Result<Answer, Problems> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let wrong = |message: String| Problems::one("the request", message, "it comes from the compiler; see docs/add-a-target.md");
    let Version { version } = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
    if version != VERSION {
        return Err(wrong(format!("it is of version {version}, this plugin knows version {VERSION}")));
    }
    let request: Request = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
    let kernels = loops::text::parse_all(&request.kernels).map_err(|p| Problems(vec![p]))?;
    let backend = backend(request.target)?;
    match request.ask.as_str() {
        "code" => backend.emit(&kernels).map(|code| Answer::code(&code)),
        kind => backend.emit_text(&kernels, kind).map(Answer::text),
    }
}

/// The code of an answer, checked against the kernels that were asked for.
fn checked(answer: Answer, kernels: usize) -> Result<Code, String> {
    let Answer { image: Some(image), entries: Some(entries), scratch: Some(scratch), .. } = answer else {
        return Err("the answer has neither problems nor all of image, entries and scratch".to_owned());
    };
    let image = hex::bytes(&image)?;
    if [entries.len(), scratch.len()] != [kernels, kernels] {
        return Err(format!(
            "{kernels} kernels were asked for, the answer has {} entries and {} sizes of scratch",
            entries.len(),
            scratch.len()
        ));
    }
    if let Some(&e) = entries.iter().find(|&&e| e >= image.len() as u64) {
        return Err(format!("an entry is at byte {e} of an image of {} bytes", image.len()));
    }
    const MOST: u64 = 1 << 40;
    if let Some(s) = scratch.iter().find(|&&s| s > MOST) {
        return Err(format!("a task would need {s} bytes of scratch, at most {MOST} can be had"));
    }
    Ok(Code { image, entries, scratch })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(request: &str) -> String {
        let none = |t: TargetDesc| Err(Problems::one(t.name, "no such backend", ""));
        let mut out = vec![];
        answer(&mut request.as_bytes(), &mut out, none).expect("memory");
        String::from_utf8(out).expect("JSON")
    }

    fn machine() -> TargetDesc {
        let text = "name = \"t\"\nbackend = \"b\"\ndoc = \"\"\narch = \"x86_64\"\nfeatures = []\nvector_bytes = 32\nvector_registers = 16\n\
                    fma = true\nl1_bytes = 32768\nl2_bytes = 524288\nl3_bytes = 2097152\n";
        TargetDesc::from_toml(text).expect("a machine file")
    }

    #[test]
    fn wrong_requests_are_told() {
        for (request, word) in [
            ("", "EOF"),
            ("[]", "version"),
            ("{\"version\": 2}", "of version 2, this plugin knows version 1"),
            ("{\"version\": 1, \"ask\": \"code\"}", "missing field `target`"),
        ] {
            let answer = answered(request);
            assert!(answer.contains("\"problems\":[{\"at\":\"the request\"") && answer.contains(word), "{request}: {answer}");
        }
        let with =
            |kernels: &str| serde_json::to_string(&Request { kernels: kernels.into(), ..Request::new(&machine(), "code", &[]) });
        let text = answered(&with("kernel").expect("a request"));
        assert!(text.contains("problems"), "{text}");
        assert!(answered(&with("").expect("a request")).contains("no such backend"));
    }

    #[test]
    fn answers_are_checked() {
        let code = Code { image: vec![1, 2, 3], entries: vec![0, 2], scratch: vec![0, 64] };
        assert_eq!(checked(Answer::code(&code), 2), Ok(code.clone()));
        let wrong = |change: &dyn Fn(&mut Answer), kernels: usize| {
            let mut answer = Answer::code(&code);
            change(&mut answer);
            checked(answer, kernels).expect_err("wrong")
        };
        assert!(wrong(&|_| (), 3).contains("3 kernels were asked for, the answer has 2 entries and 2 sizes"));
        assert!(wrong(&|a| a.entries = Some(vec![0, 3]), 2).contains("an entry is at byte 3 of an image of 3 bytes"));
        assert!(wrong(&|a| a.scratch = Some(vec![0, u64::MAX]), 2).contains("bytes of scratch"));
        assert!(wrong(&|a| a.image = Some("0".into()), 2).contains("no even number"));
        assert!(wrong(&|a| a.image = None, 2).contains("neither problems nor all"));
    }
}
