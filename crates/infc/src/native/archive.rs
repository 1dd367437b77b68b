//! Static libraries: the `ar` format of System V, with an index of symbols, so that no tool is needed to write one.

const MAGIC: &[u8] = b"!<arch>\n";

/// A static library of one object file, which defines these symbols. No times and no owners: equal input, equal bytes.
pub fn archive(object: &[u8], name: &str, symbols: &[String]) -> Vec<u8> {
    let names: Vec<u8> = symbols.iter().flat_map(|s| s.bytes().chain([0])).collect();
    let index_bytes = 4 + 4 * symbols.len() + names.len();
    let long = format!("{name}.o/\n");
    let after_index = MAGIC.len() + 60 + index_bytes.next_multiple_of(2);
    let start = after_index + 60 + long.len().next_multiple_of(2);
    let mut out = MAGIC.to_vec();
    let mut index = (symbols.len() as u32).to_be_bytes().to_vec();
    for _ in symbols {
        index.extend((start as u32).to_be_bytes());
    }
    index.extend(names);
    member(&mut out, "/", &index);
    // Long names are in a member of their own.
    member(&mut out, "//", long.as_bytes());
    member(&mut out, "/0", object);
    out
}

fn member(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, bytes.len()).bytes());
    out.extend(bytes);
    if bytes.len() % 2 == 1 {
        out.push(b'\n');
    }
}
