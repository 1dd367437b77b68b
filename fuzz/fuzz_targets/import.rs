//! Any bytes as an ONNX model: an error or a graph that is valid, prints, parses and exports; never a crash.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(graph) = infc_onnx::import_bytes(bytes::Bytes::copy_from_slice(data), None) else { return };
    if let Err(problems) = infc_ir::verify::verify(&graph) {
        panic!("the importer made a graph that is not valid: {problems}");
    }
    let text = infc_ir::text::print(&graph);
    assert_eq!(infc_ir::text::parse(&text).as_ref(), Ok(&graph.compact()));
    let _ = infc_onnx::export(&graph);
});
