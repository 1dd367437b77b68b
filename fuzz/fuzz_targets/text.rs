//! Any text as a graph, a step or a scalar body: an error, or something that prints as text which reads back the same.
#![no_main]

use infc_ir::text::cursor::Cursor;
use infc_ir::text::{parse, print, scalar, step};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(graph) = parse(text) {
        let printed = print(&graph);
        assert_eq!(parse(&printed).as_ref(), Ok(&graph.compact()), "{printed}");
        let _ = infc_ir::verify::verify(&graph);
    }
    if let Ok(s) = step::parse(&mut Cursor::new(text)) {
        assert_eq!(step::parse(&mut Cursor::new(&s.to_string())).as_ref(), Ok(&s));
    }
    if let Ok(s) = scalar::parse(&mut Cursor::new(text)) {
        assert_eq!(scalar::parse(&mut Cursor::new(&s.to_string())).as_ref(), Ok(&s));
    }
});
