//! Several sessions of an engine side by side: processes of this program, each on a core of its own, that begin together and count their runs.

use crate::{Args, engines, random_inputs};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The engines' names on the command line, as their columns are named.
const ENGINES: [(&str, &str); 3] = [("infc", "infc"), ("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")];

/// Runs a second of all sessions together, for each engine; empty if they are not asked for.
pub fn side_by_side(model: &Path, artifact: &Path, args: &Args) -> Result<Vec<(&'static str, f64)>> {
    let mut rates = vec![];
    if args.sessions < 2 {
        return Ok(rates);
    }
    for (key, name) in ENGINES {
        if key == "openvino" && args.openvino.is_none() {
            continue;
        }
        let mut started = (0..args.sessions).map(|core| start(key, core, model, artifact, args)).collect::<Result<Vec<_>>>()?;
        for (_, lines) in &mut started {
            line(lines).with_context(|| format!("a session of {name} does not load"))?;
        }
        for (child, _) in &mut started {
            child.stdin.as_mut().context("a pipe")?.write_all(b"go\n")?;
        }
        let mut rate = 0.0;
        for (child, lines) in &mut started {
            rate += line(lines)?.trim().parse::<f64>()?;
            child.wait()?;
        }
        rates.push((name, rate));
    }
    Ok(rates)
}

fn line(from: &mut BufReader<ChildStdout>) -> Result<String> {
    let mut text = String::new();
    match from.read_line(&mut text)? {
        0 => bail!("the process ended early"),
        _ => Ok(text),
    }
}

fn start(key: &str, core: usize, model: &Path, artifact: &Path, args: &Args) -> Result<(Child, BufReader<ChildStdout>)> {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(std::env::current_exe()?).arg(model).args(["--session-of", key]);
    command.arg("--artifact").arg(artifact).arg("--ort").arg(&args.ort);
    if let Some(library) = &args.openvino {
        command.arg("--openvino").arg(library);
    }
    for (name, size) in &args.dims {
        command.args(["--dim", &format!("{name}={size}")]);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("taskset, of util-linux")?;
    let lines = BufReader::new(child.stdout.take().context("a pipe")?);
    Ok((child, lines))
}

/// One of the sessions: loads, warms up, says so, waits for a line, and prints its runs a second.
pub fn one(key: &str, args: &Args) -> Result<()> {
    let model = &args.models[0];
    let dims: BTreeMap<String, i64> = args.dims.iter().cloned().collect();
    let given = random_inputs(&infc_onnx::import(model)?, &dims)?;
    let mut loaded = match key {
        "infc" => engines::infc(args.artifact.as_deref().context("--artifact")?, &given, 1)?,
        "onnxruntime" => engines::onnx_runtime(&engines::ort_environment(&args.ort)?, model, &given, 1)?,
        "openvino" => engines::openvino(args.openvino.as_deref().context("--openvino")?, model, &given, 1, Some("f32"))?,
        other => bail!("no engine '{other}'"),
    };
    for _ in 0..3 {
        loaded.engine.run()?;
    }
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let (start, time, mut runs) = (Instant::now(), Duration::from_secs_f64(1.5), 0u64);
    while start.elapsed() < time || runs < 3 {
        loaded.engine.run()?;
        runs += 1;
    }
    println!("{}", runs as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
