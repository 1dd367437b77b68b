//! Mapped files: the model itself and the external data beside it, which must stay inside the model's folder.

use bytes::Bytes;
use infc_ir::Fault;
use infc_ir::fault;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// Maps a file read-only; an empty file gives no bytes.
pub fn map(path: &Path) -> std::io::Result<Bytes> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("is not a file"));
    }
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // Safety: the mapping is private and only read. As everyone who maps models, we rely on nobody truncating the file while it is
    // in use; our own writers replace files by renaming.
    #[allow(unsafe_code)] // the one place that maps
    let mapping = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(mapping))
}

/// The external data files of one model.
#[derive(Default)]
pub struct Files {
    base: Option<PathBuf>,
    mapped: HashMap<PathBuf, Bytes>,
}

impl Files {
    /// Files of a model in `base`; without a folder there can be no external data.
    pub fn new(base: Option<&Path>) -> Files {
        let base = base.map(|b| if b.as_os_str().is_empty() { PathBuf::from(".") } else { b.to_owned() });
        Files { base, mapped: HashMap::new() }
    }

    /// `needed` bytes of `location` from `offset`; `length` is what the model declares.
    pub fn read(&mut self, location: &str, offset: u64, length: Option<u64>, needed: usize) -> Result<Bytes, Fault> {
        if length.is_some_and(|l| l != needed as u64) {
            return Err(fault!("external data '{location}': its type takes {needed} bytes, length says {}", length.unwrap_or(0)));
        }
        let file = self.open(location)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start.checked_add(needed) {
            Some(end) if end <= file.len() => Ok(file.slice(start..end)),
            _ => {
                Err(fault!("external data '{location}': {needed} bytes at {offset} are outside the file of {} bytes", file.len()))
            }
        }
    }

    fn open(&mut self, location: &str) -> Result<Bytes, Fault> {
        let Some(base) = &self.base else {
            return Err(fault!("external data '{location}' cannot be found: the model was not read from a folder"));
        };
        let relative = Path::new(location);
        let plain = |c: Component| matches!(c, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !relative.components().all(plain) {
            return Err(fault!("external data '{location}' must be a relative path inside the model's folder, without '..'"));
        }
        let path = base.join(relative);
        if let Some(bytes) = self.mapped.get(&path) {
            return Ok(bytes.clone());
        }
        let failed = |e: std::io::Error| fault!("external data file '{}': {e}; it belongs beside the model", path.display());
        let (real, folder) = (path.canonicalize().map_err(failed)?, base.canonicalize().map_err(failed)?);
        if !real.starts_with(&folder) {
            return Err(fault!("external data '{location}' leads out of the model's folder (to '{}')", real.display()));
        }
        let bytes = map(&real).map_err(failed)?;
        self.mapped.insert(path.clone(), bytes.clone());
        Ok(bytes)
    }
}
