//! Lists of known gaps: tests that are known to fail, each with its reason. A list cannot hide that something got better, or that a
//! test is gone.

use crate::cases::io_problem;
use crate::verify::{Report, Verdict};
use infc_ir::{Problem, Problems};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A list of gaps, and which of them were met.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    file: PathBuf,
    reasons: BTreeMap<String, String>,
    met: Vec<String>,
}

impl Gaps {
    /// Reads a file of lines `NAME: REASON`. Lines that start with `#` are comments.
    pub fn read(file: &Path) -> Result<Gaps, Problems> {
        let text = std::fs::read_to_string(file).map_err(|e| io_problem(file, &e))?;
        let mut gaps = Gaps { file: file.to_owned(), ..Gaps::default() };
        let mut problems = vec![];
        let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'));
        for (number, line) in lines {
            let at = || format!("{}:{}", file.display(), number + 1);
            match line.split_once(": ").map(|(n, r)| (n.trim(), r.trim())) {
                Some((name, reason)) if !name.is_empty() && !reason.is_empty() => {
                    if gaps.reasons.insert(name.to_owned(), reason.to_owned()).is_some() {
                        problems.push(Problem { at: at(), message: format!("'{name}' is listed twice"), help: String::new() });
                    }
                }
                _ => problems.push(Problem {
                    at: at(),
                    message: "is no gap".to_owned(),
                    help: "write a line NAME: REASON for each test".to_owned(),
                }),
            }
        }
        if problems.is_empty() { Ok(gaps) } else { Err(Problems(problems)) }
    }

    /// A failure that is listed becomes a known gap, a listed test that passes a failure.
    pub fn judge(&mut self, report: &mut Report) {
        let Some(reason) = self.reasons.get(&report.name) else { return };
        self.met.push(report.name.clone());
        report.verdict = match report.verdict {
            Verdict::Failed(_) => Verdict::Gap(reason.clone()),
            _ => Verdict::Failed(format!("passes now: take it off {}", self.file.display())),
        };
    }

    /// An error if tests are listed that have not been run.
    pub fn all_met(&self) -> Result<(), Problems> {
        let left: Vec<&str> = self.reasons.keys().filter(|n| !self.met.contains(n)).map(String::as_str).collect();
        if left.is_empty() {
            return Ok(());
        }
        let message = format!("lists tests that were not run: {}", left.join(", "));
        Err(Problems::one(self.file.display().to_string(), message, "take them off the list, or verify the folder they are in"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Outcome;

    fn report(name: &str, verdict: Verdict) -> Report {
        Report {
            name: name.to_owned(),
            verdict,
            sets: 1,
            worst: Outcome::default(),
            host: vec![],
            time: std::time::Duration::ZERO,
        }
    }

    fn read(text: &str) -> Result<Gaps, Problems> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Gaps::read(file.path())
    }

    #[test]
    fn a_list_excuses_failures_and_nothing_else() {
        let mut gaps = read("# comment\n\nbad: no such operator\ngood: was broken\n").unwrap();
        let failed = || Verdict::Failed("is wrong".to_owned());
        let cases = [
            ("bad", failed(), Verdict::Gap("no such operator".to_owned())),
            ("other", failed(), failed()),
            ("fine", Verdict::Passed, Verdict::Passed),
        ];
        for (name, before, after) in cases {
            let mut r = report(name, before);
            gaps.judge(&mut r);
            assert_eq!(r.verdict, after, "{name}");
        }
        assert!(gaps.all_met().unwrap_err().to_string().contains("not run: good"));
        let mut r = report("good", Verdict::Passed);
        gaps.judge(&mut r);
        assert!(matches!(&r.verdict, Verdict::Failed(m) if m.contains("passes now")), "{:?}", r.verdict);
        gaps.all_met().unwrap();
    }

    #[test]
    fn a_gap_needs_a_reason() {
        assert!(read("a: b\nlonely\n").unwrap_err().to_string().contains(":2"));
        assert!(read("a: b\na: c\n").unwrap_err().to_string().contains("listed twice"));
    }
}
