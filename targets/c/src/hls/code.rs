//! Lines of C++ and constants in it.

use infc_stream::design::Format;
use std::fmt::Write;

/// Lines with their depth.
#[derive(Default)]
pub struct Code {
    /// The text so far.
    pub text: String,
    depth: usize,
}

impl Code {
    /// A line; a pragma stands at the left.
    pub fn line(&mut self, text: impl AsRef<str>) {
        let text = text.as_ref();
        let depth = if text.starts_with('#') { 0 } else { self.depth };
        let _ = writeln!(self.text, "{}{text}", "    ".repeat(depth));
    }
    /// A line that opens a block.
    pub fn open(&mut self, text: impl AsRef<str>) {
        self.line(format!("{} {{", text.as_ref()));
        self.depth += 1;
    }
    /// `label: for (int var = 0; var < n; var++) {`.
    pub fn each(&mut self, label: &str, var: &str, n: usize) {
        self.open(format!("{label}: for (int {var} = 0; {var} < {n}; {var}++)"));
    }
    /// As [`Code::each`]; one iteration a cycle.
    pub fn pipelined(&mut self, label: &str, var: &str, n: usize) {
        self.each(label, var, n);
        self.line("#pragma HLS PIPELINE II=1");
    }
    /// As [`Code::each`]; all iterations at once.
    pub fn unrolled(&mut self, label: &str, var: &str, n: usize) {
        self.each(label, var, n);
        self.line("#pragma HLS UNROLL");
    }
    /// Closes blocks.
    pub fn close(&mut self, blocks: usize) {
        for _ in 0..blocks {
            self.depth -= 1;
            self.line("}");
        }
    }
    /// Closes a block and opens the other branch.
    pub fn otherwise(&mut self) {
        self.depth -= 1;
        self.line("} else {");
        self.depth += 1;
    }
}

/// `ap_int<8>`.
pub fn ap(f: Format) -> String {
    format!("ap_{}int<{}>", if f.signed { "" } else { "u" }, f.bits)
}

/// A constant that may need more than 32 bits.
pub fn number(v: i64) -> String {
    match v {
        i64::MIN => "INT64_MIN".to_owned(),
        v if i32::try_from(v).is_ok_and(|v| v != i32::MIN) => v.to_string(),
        v => format!("{v}ll"),
    }
}

/// The C type that holds all of these, and the format that they need.
pub fn holder(values: &[i64]) -> (&'static str, Format) {
    let (least, most) = (values.iter().copied().min().unwrap_or(0), values.iter().copied().max().unwrap_or(0));
    let format = Format::of(least, most);
    let ty = match (format.signed, format.bits) {
        (true, ..=8) => "int8_t",
        (true, ..=16) => "int16_t",
        (true, ..=32) => "int32_t",
        (true, _) => "int64_t",
        (false, ..=8) => "uint8_t",
        (false, ..=16) => "uint16_t",
        (false, ..=32) => "uint32_t",
        (false, _) => "uint64_t",
    };
    (ty, format)
}

/// `static const int8_t name[4][2] = {...};` and the format of its elements. The values stand in the order of the dims.
pub fn table(out: &mut String, name: &str, dims: &[usize], values: &[i64]) -> Format {
    let (ty, format) = holder(values);
    let brackets: String = dims.iter().map(|d| format!("[{d}]")).collect();
    let _ = write!(out, "static const {ty} {name}{brackets} = {{");
    let inner: usize = dims.iter().skip(1).product();
    let mut column = usize::MAX;
    for (i, &v) in values.iter().enumerate() {
        // Braces around the parts of the inner dims.
        let mut before = String::new();
        let mut size = inner;
        for d in dims.iter().skip(1) {
            if i % size == 0 {
                before.push('{');
            }
            size /= d;
        }
        let mut item = before + &number(v);
        let mut size = 1;
        for d in dims.iter().skip(1).rev() {
            size *= d;
            if (i + 1) % size == 0 {
                item.push('}');
            }
        }
        item.push(',');
        if column.saturating_add(item.len()) > 130 {
            out.push_str("\n    ");
            column = 4;
        } else {
            out.push(' ');
        }
        column += item.len() + 1;
        out.push_str(&item);
    }
    out.push_str("\n};\n");
    format
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_narrowest_type_and_braces_of_their_dims() {
        let mut text = String::new();
        let format = table(&mut text, "w", &[2, 2, 1], &[1, -2, 3, 200]);
        assert_eq!(text, "static const int16_t w[2][2][1] = {\n    {{1}, {-2}}, {{3}, {200}},\n};\n");
        assert_eq!(format, Format { signed: true, bits: 9 });
        assert_eq!(number(i64::from(u32::MAX)), "4294967295ll");
    }
}
