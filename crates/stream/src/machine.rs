//! Parts as data: what a device has. Built-in rows are TOML files in `machines/`; users may give their own file.

use infc_ir::Problems;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A device (or a region of one) that a design must fit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name on the command line: `xc7z020`.
    pub name: String,
    /// A sentence for lists.
    pub doc: String,
    /// The vendor's full part name, for scripts: `xc7z020clg400-1`.
    pub part: String,
    /// Multiplier blocks.
    pub dsp: u64,
    /// Look-up tables.
    pub lut: u64,
    /// Flip-flops.
    pub ff: u64,
    /// Block memories of 36 Kbit.
    pub bram: u64,
    /// Ultra memories of 288 Kbit.
    #[serde(default)]
    pub uram: u64,
    /// Widths of a multiplier block's signed factors, the wider first: 25 and 18, or 27 and 18.
    pub dsp_width: [u32; 2],
    /// Products of 8-bit numbers with a common factor that share a multiplier block (1 where that is not used).
    #[serde(default = "one")]
    pub dsp_pack: u32,
    /// Clock period that designs are made for unless the user says another, in ns.
    pub clock_ns: f64,
    /// The most copies of a loop body that the tool unrolls in reasonable time.
    #[serde(default = "unroll")]
    pub max_unroll: u64,
    /// Share of each resource that a design may take (routing needs the rest).
    #[serde(default = "fill")]
    pub fill: f64,
}

fn one() -> u32 {
    1
}
fn unroll() -> u64 {
    4096
}
fn fill() -> f64 {
    0.8
}

const FILES: [&str; 3] =
    [include_str!("../machines/xc7z020.toml"), include_str!("../machines/zu7ev.toml"), include_str!("../machines/vu9p.toml")];

/// All built-in machines.
pub fn machines() -> Vec<Machine> {
    FILES.iter().map(|text| toml::from_str(text).expect("built-in machine files are tested")).collect()
}

impl Machine {
    /// A built-in machine by name, or a machine file (ending `.toml`).
    pub fn find(name: &str) -> Result<Machine, Problems> {
        if let Some(m) = machines().into_iter().find(|m| m.name == name) {
            return Ok(m);
        }
        let known: Vec<String> = machines().into_iter().map(|m| m.name).collect();
        let known = format!("known parts: {}; or a machine file: FILE.toml", known.join(", "));
        if !name.ends_with(".toml") {
            return Err(Problems::one(format!("machine '{name}'"), "there is no such part", known));
        }
        let text = std::fs::read_to_string(Path::new(name)).map_err(|e| Problems::one(name, e.to_string(), known))?;
        Machine::from_toml(&text).map_err(|e| Problems::one(name, e, "docs/fpga.md lists the keys of a machine file"))
    }
    /// Reads a machine file.
    pub fn from_toml(text: &str) -> Result<Machine, String> {
        let m: Machine = toml::from_str(text).map_err(|e| e.to_string())?;
        let good = m.clock_ns > 0.0 && m.clock_ns.is_finite() && m.fill > 0.0 && m.fill <= 1.0 && m.max_unroll > 0;
        if !good || m.dsp_width.contains(&0) || m.dsp_pack == 0 {
            return Err("clock_ns, max_unroll, dsp_width and dsp_pack must be positive, fill above 0 and at most 1".to_owned());
        }
        Ok(m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_machines_read_and_unknown_ones_are_listed() {
        let names: Vec<_> = machines().into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["xc7z020", "zu7ev", "vu9p"]);
        for text in FILES {
            Machine::from_toml(text).unwrap();
        }
        let error = Machine::find("xc7z999").unwrap_err().to_string();
        assert!(names.iter().all(|n| error.contains(n)), "{error}");
        assert!(Machine::find("none.toml").is_err());
        assert!(Machine::from_toml(&FILES[0].replace("fill = 0.8", "fill = 2.0")).is_err());
        assert!(Machine::from_toml(&format!("{}\nfoo = 1", FILES[0])).unwrap_err().contains("foo"));
    }
}
