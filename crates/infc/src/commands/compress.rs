//! What the compression commands have in common: the model, its data, the report.

use super::compile::{self, How};
use crate::say;
use crate::term::{Failure, Result};
use infc::cases;
use infc::executor::Compiler;
use infc_compress::data::ReadPb;
use infc_compress::{Data, Report};
use infc_ir::interp::Item;
use infc_ir::{Graph, Problems, Tensor, Type};
use std::path::{Path, PathBuf};

/// Where samples come from.
#[derive(clap::Args, Clone, Debug)]
pub struct Samples {
    /// Samples of the inputs: a folder in ONNX's test layout or of .npy files, or an .npz file whose rows are samples.
    #[arg(long, value_name = "DIR|FILE.npz")]
    pub data: Option<PathBuf>,
    /// Use at most this many samples, evenly spread.
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Draw the samples at random with this seed instead.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
}

/// Where the report goes.
#[derive(clap::Args, Clone, Debug)]
pub struct Reports {
    /// Write a report: .html is a page that needs no other file, .json has the figures. May be given twice.
    #[arg(long, value_name = "FILE.html|FILE.json")]
    pub report: Vec<PathBuf>,
}

fn read_pb(path: &Path, ty: &Type) -> std::result::Result<Tensor, Problems> {
    match cases::read_pb(path, ty)? {
        Item::Tensor(t) => Ok(t),
        _ => Err(Problems::one(path.display().to_string(), "is no tensor", "only tensors can be calibrated on")),
    }
}

/// Reads `.pb` files for [`Data`].
pub const READ_PB: ReadPb = &read_pb;

impl Samples {
    /// The samples for this model; `None` if no data is given.
    pub fn read(&self, graph: &Graph) -> Result<Option<Data<'static>>> {
        let Some(path) = &self.data else { return Ok(None) };
        if !path.exists() {
            return Err(Failure::io(path, &std::io::Error::from(std::io::ErrorKind::NotFound)));
        }
        let mut data = Data::read(path, graph, READ_PB)?;
        match self.samples {
            Some(0) => return Err(Failure::usage("--samples 0 leaves no data", "give at least one")),
            Some(n) => data.limit(n, self.seed),
            None => {}
        }
        Ok(Some(data))
    }
    /// The samples, which are needed.
    pub fn needed(&self, graph: &Graph, what: &str) -> Result<Data<'static>> {
        let help = "--data DIR|FILE.npz: a folder in ONNX's test layout or of .npy files, or an .npz file";
        self.read(graph)?.ok_or_else(|| Failure::usage(format!("{what} needs data"), help))
    }
}

impl Reports {
    /// Writes the report to all files asked for.
    pub fn write(&self, report: &Report) -> Result<()> {
        for path in &self.report {
            let text = match path.extension().and_then(|e| e.to_str()) {
                Some("html" | "htm") => report.to_html(),
                Some("json") => report.to_json(),
                _ => return Err(Failure::usage(format!("--report {}: .html or .json is needed", path.display()), "")),
            };
            compile::write_file(path, text.as_bytes())?;
            say!("{}: report", path.display());
        }
        Ok(())
    }
}

/// The executor for this machine.
pub fn executor(how: &How) -> Result<Compiler> {
    Ok(Compiler { options: how.options()? })
}
