//! From accumulators to narrow integers: a function for each actor that does it.

use super::actors::Printer;
use super::code::{ap, number, table};
use infc_stream::design::{Format, Requant, RequantForm};

/// Prints the function `NAME_requant(acc, fold, lane)` for channels in folds of `lanes`; without a requantisation it converts to `out`.
pub fn requant(p: &mut Printer, name: &str, requant: Option<&Requant>, acc: Format, out: Format, channels: usize, lanes: usize) {
    let folds = channels / lanes;
    p.code.open(format!("static {} {name}_requant({} acc, int fold, int lane)", ap(out), ap(acc)));
    p.code.line("#pragma HLS INLINE");
    match requant {
        None => p.code.line("(void)fold, (void)lane;\n    return acc;"),
        Some(Requant { form: RequantForm::MultiplyShift { mul, add, shift, wide, half_even }, min, max, .. }) => {
            let (m, a) = if mul.len() == 1 && add.len() == 1 {
                p.code.line("(void)fold, (void)lane;");
                let one = |v: i64| format!("{}({})", ap(Format::of(v.min(0), v)), number(v));
                (one(mul[0]), one(add[0]))
            } else {
                let spread = |v: &[i64]| (0..channels).map(|c| v[if v.len() == 1 { 0 } else { c }]).collect::<Vec<i64>>();
                let m = constants(p, &format!("{name}_mul"), &[folds, lanes], &spread(mul));
                let a = constants(p, &format!("{name}_add"), &[folds, lanes], &spread(add));
                (format!("{}({name}_mul[fold][lane])", ap(m)), format!("{}({name}_add[fold][lane])", ap(a)))
            };
            let w = ap(*wide);
            if *half_even && *shift > 0 {
                let half = number((1i64 << (shift - 1)) - 1);
                p.code.line("/* To nearest, ties to even. */");
                p.code.line(format!("const {w} product = acc * {m};"));
                p.code.line(format!(
                    "const {w} rounded = product + {}({half}) + ap_uint<1>(product[{shift}]);",
                    ap(Format::of(0, (1i64 << (shift - 1)) - 1))
                ));
                p.code.line(format!("const auto q = {w}(rounded >> {shift}) + {a};"));
            } else {
                p.code.line(format!("const {w} scaled = acc * {m} + {a};"));
                p.code.line(format!("const {w} q = scaled >> {shift};"));
            }
            p.code.line(format!("if (q < {0}) return {0};", number(*min)));
            p.code.line(format!("if (q > {0}) return {0};", number(*max)));
            p.code.line("return q;");
        }
        Some(Requant { form: RequantForm::Float { mul, shift, add, wide }, min, max, .. }) => {
            p.nearest = true;
            let w = ap(*wide);
            let shift: Vec<i64> = shift.iter().map(|&s| i64::from(s)).collect();
            let (m, s) = if mul.len() == 1 && shift.len() == 1 {
                p.code.line("(void)fold, (void)lane;");
                (format!("{}({})", ap(Format::of(0, mul[0])), number(mul[0])), shift[0].to_string())
            } else {
                let spread = |v: &[i64]| (0..channels).map(|c| v[if v.len() == 1 { 0 } else { c }]).collect::<Vec<i64>>();
                let m = constants(p, &format!("{name}_mul"), &[folds, lanes], &spread(mul));
                constants(p, &format!("{name}_shift"), &[folds, lanes], &spread(&shift));
                (format!("{}({name}_mul[fold][lane])", ap(m)), format!("{name}_shift[fold][lane]"))
            };
            p.code.line("/* Rounded to 24 bits, as a float is, then to an integer. */");
            p.code.line(format!("const {w} product = acc * {m};"));
            p.code.line(format!(
                "const ap_uint<{0}> size = product < 0 ? ap_uint<{0}>(-product) : ap_uint<{0}>(product);",
                wide.bits
            ));
            p.code.line("int drop = 0;");
            if wide.bits > 24 {
                p.code.unrolled("bit", "i", wide.bits as usize - 24);
                p.code.line("if (size[i + 24]) drop = i + 1;");
                p.code.close(1);
            }
            p.code.line(format!("const {w} single = nearest<{w} >(product, drop) << drop;"));
            let zero = format!("{}({})", ap(Format::of((*add).min(0), (*add).max(0))), number(*add));
            p.code.line(format!("const auto q = nearest<{w} >(single, {s}) + {zero};"));
            p.code.line(format!("if (q < {0}) return {0};", number(*min)));
            p.code.line(format!("if (q > {0}) return {0};", number(*max)));
            p.code.line("return q;");
        }
        Some(Requant { form: RequantForm::Thresholds(lists), min, .. }) => {
            let count = lists.first().map_or(0, Vec::len);
            let one = lists.len() == 1;
            let values: Vec<i64> = if one { lists[0].clone() } else { lists.iter().flatten().copied().collect() };
            if count == 0 {
                p.code.line(format!("(void)acc, (void)fold, (void)lane;\n    return {};", number(*min)));
            } else {
                let at = if one { format!("{name}_steps[i]") } else { format!("{name}_steps[fold][lane][i]") };
                let dims = if one { vec![count] } else { vec![folds, lanes, count] };
                let f = constants(p, &format!("{name}_steps"), &dims, &values);
                if one {
                    p.code.line("(void)fold, (void)lane;");
                }
                p.code.line(format!("int count = {};", number(*min)));
                p.code.unrolled("step", "i", count);
                p.code.line(format!("if ({}({at}) <= acc) count++;", ap(f)));
                p.code.close(1);
                p.code.line("return count;");
            }
        }
    }
    p.code.close(1);
    p.code.line("");
}

/// A table of the weights file that is read at every inner index at once.
pub fn constants(p: &mut Printer, name: &str, dims: &[usize], values: &[i64]) -> Format {
    let format = table(&mut p.weights, name, dims, values);
    let first = if dims.len() == 1 { 1 } else { 2 };
    for dim in first..=dims.len() {
        p.code.line(format!("#pragma HLS ARRAY_PARTITION variable={name} dim={dim} complete"));
    }
    format
}
