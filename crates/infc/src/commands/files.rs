//! What is known of the files that a command writes before it works: whether they can be written, and that they are not what it reads.

use crate::term::{Failure, Result};
use std::io::{Error, ErrorKind};
use std::path::Path;

/// The result must not replace what it is made from.
pub fn not_the_model(out: &Path, model: &Path) -> Result<()> {
    match (out.canonicalize(), model.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => {
            Err(Failure::usage(format!("{} is the model itself", out.display()), "name another file with -o"))
        }
        _ => Ok(()),
    }
}

/// The folder that a file is written into must be there.
pub fn writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Failure::io(path, &ErrorKind::IsADirectory.into()));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::metadata(folder) {
        Ok(m) if m.is_dir() => Ok(()),
        Ok(_) => Err(Failure::io(path, &ErrorKind::NotADirectory.into())),
        Err(e) => Err(Failure::io(path, &e)),
    }
}

/// A file or folder that is read must be there.
pub fn readable(path: &Path) -> Result<()> {
    std::fs::metadata(path).map(|_| ()).map_err(|e: Error| Failure::io(path, &e))
}
