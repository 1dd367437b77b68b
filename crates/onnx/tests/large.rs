//! A model with 2 GiB of weights beside it imports at once, without reading them.
#![cfg(target_os = "linux")]

mod kit;

use infc_onnx::proto::{StringStringEntryProto, TensorProto};
use kit::*;
use prost::Message;
use std::fs::{self, File};
use std::time::{Duration, Instant};

/// A line of what the system knows about this process, in KiB.
fn memory(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')).expect("such a line");
    found.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
#[ignore = "makes a (sparse) file of 2 GiB"]
fn two_gib_import_at_once() {
    const ROWS: i64 = 1 << 15;
    const COLUMNS: i64 = 1 << 14;
    let folder = tempfile::tempdir().expect("a folder");
    let data = File::create(folder.path().join("weights.bin")).expect("writable");
    data.set_len((ROWS * COLUMNS * 4) as u64).expect("a sparse file");
    let entry = |k: &str, v: &str| StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) };
    let w = TensorProto {
        name: Some("w".into()),
        dims: vec![ROWS, COLUMNS],
        data_type: Some(1),
        data_location: Some(1),
        external_data: vec![entry("location", "weights.bin"), entry("offset", "0")],
        ..TensorProto::default()
    };
    let g = graph(&["x f32[n, 32768]"], vec![node("y = MatMul(x, w)", [])], &["y f32[n, 16384]"], vec![w]);
    let path = folder.path().join("model.onnx");
    fs::write(&path, model(17, g).encode_to_vec()).expect("writable");
    let (before, start) = (memory("VmHWM"), Instant::now());
    let graph = infc_onnx::import(&path).unwrap_or_else(|p| panic!("{p}"));
    let (time, more) = (start.elapsed(), memory("VmHWM") - before);
    println!("import of {} GiB: {time:?}, {more} KiB more at the peak", (ROWS * COLUMNS * 4) >> 30);
    assert_eq!(graph.ty(graph.outputs()[0]).to_string(), "f32[n, 16384]");
    assert!(time < Duration::from_millis(500), "{time:?}");
    assert!(more < 64 << 10, "{more} KiB");
}
