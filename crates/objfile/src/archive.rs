//! Static libraries: an index of symbols and the object file, as the linker of each operating system takes them, so that no tool is needed to write one.

use infc_kernel::backend::Os;

const MAGIC: &[u8] = b"!<arch>\n";
/// Bytes of what stands before each member.
const HEADER: usize = 60;

/// A static library of one object file, which defines these functions. No times and no owners: equal input, equal bytes.
pub fn archive(object: &[u8], name: &str, functions: &[String], os: Os) -> Vec<u8> {
    match os {
        Os::Linux => system_v(object, &format!("{name}.o"), functions),
        // A name that is short enough to stand in the member's header: of longer ones Microsoft's linker has another idea than GNU's.
        Os::Windows => system_v(object, "model.obj", functions),
        Os::Macos => bsd(object, &format!("{name}.o"), functions),
    }
}

/// The format of System V, which GNU's and Microsoft's tools read.
fn system_v(object: &[u8], file: &str, functions: &[String]) -> Vec<u8> {
    let names: Vec<u8> = functions.iter().flat_map(|s| s.bytes().chain([0])).collect();
    let index_bytes = 4 + 4 * functions.len() + names.len();
    let short = file.len() < 16;
    // Long names are in a member of their own.
    let long = if short { String::new() } else { format!("{file}/\n") };
    let after_index = MAGIC.len() + HEADER + index_bytes.next_multiple_of(2);
    let start = after_index + if short { 0 } else { HEADER + long.len().next_multiple_of(2) };
    let mut out = MAGIC.to_vec();
    let mut index = (functions.len() as u32).to_be_bytes().to_vec();
    for _ in functions {
        index.extend((start as u32).to_be_bytes());
    }
    index.extend(names);
    member(&mut out, "/", &index);
    if short {
        member(&mut out, &format!("{file}/"), object);
    } else {
        member(&mut out, "//", long.as_bytes());
        member(&mut out, "/0", object);
    }
    out
}

/// The format of BSD, as macOS has it: names before the contents, which begin at multiples of 8; symbols of C begin with `_`.
fn bsd(object: &[u8], file: &str, functions: &[String]) -> Vec<u8> {
    let names: Vec<u8> = functions.iter().flat_map(|s| b"_".iter().copied().chain(s.bytes()).chain([0])).collect();
    let strings = names.len().next_multiple_of(8);
    let title = named("__.SYMDEF", MAGIC.len());
    let index_bytes = 4 + 8 * functions.len() + 4 + strings;
    let start = (MAGIC.len() + HEADER + title.len() + index_bytes).next_multiple_of(8);
    let mut index = (8 * functions.len() as u32).to_le_bytes().to_vec();
    let mut at = 0;
    for function in functions {
        index.extend((at as u32).to_le_bytes());
        index.extend((start as u32).to_le_bytes());
        at += function.len() + 2;
    }
    index.extend((strings as u32).to_le_bytes());
    index.extend(&names);
    index.resize(start - MAGIC.len() - HEADER - title.len(), 0);
    let mut out = MAGIC.to_vec();
    member(&mut out, &format!("#1/{}", title.len()), &[title, index].concat());
    let title = named(file, start);
    let mut content = title.clone();
    content.extend(object);
    // The size tells of this too.
    content.resize(content.len().next_multiple_of(8), b'\n');
    member(&mut out, &format!("#1/{}", title.len()), &content);
    out
}

/// A name that is as long as lets what follows begin at a multiple of 8, of a member whose header is at `start`.
fn named(name: &str, start: usize) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    let end = (start + HEADER + bytes.len() + 1).next_multiple_of(8);
    bytes.resize(end - start - HEADER, 0);
    bytes
}

fn member(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, bytes.len()).bytes());
    out.extend(bytes);
    if bytes.len() % 2 == 1 {
        out.push(b'\n');
    }
}
