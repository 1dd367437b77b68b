//! Operators that ONNX does not define: every dtype that is listed for them is accepted, and no other.

mod kit;
use infc_ir::{DType, Tensor};
use infc_onnx::proto::AttributeProto;
use infc_onnx::supported;
use kit::*;

/// An operator, its operands (`T`: the dtype under test, `!`: an initializer, `_`: left out), integer attributes.
type Row = (&'static str, &'static str, &'static [(&'static str, i64)]);

/// One call of every operator that is raised.
const ROWS: &[Row] = &[
    ("Attention", "T[2,4,8] T[8,24] T[24]", &[("num_heads", 2)]),
    ("BiasGelu", "T[2,8] T[8]", &[]),
    ("DequantizeLinear", "T[2,3] f32[] T[]", &[]),
    ("DynamicQuantizeLSTM", "T[3,2,4] i8[1,4,20] i8[1,5,20] f32[1,40] _ _ _ _ f32[1] i8[1] f32[1] i8[1]", &[("hidden_size", 5)]),
    ("DynamicQuantizeMatMul", "T[2,8] i8[8,5] f32[]", &[]),
    ("EmbedLayerNormalization", "T[2,5] _ f32[11,8] f32[7,8] _ f32[8] f32[8]", &[]),
    ("FastGelu", "T[2,8] T[8]", &[]),
    ("FusedConv", "T[1,3,5,6] T[4,3,3,3] T[4]", &[]),
    ("FusedGemm", "T[3,4] T[4,5]", &[]),
    ("FusedMatMul", "T[3,4] T[5,4]", &[("transB", 1)]),
    ("Gelu", "T[2,8]", &[]),
    ("GridSample", "T[1,2,5,6] f32[1,3,4,2]", &[]),
    ("GroupQueryAttention", "T[2,5,64] T[2,5,32] T[2,5,32] _ _ i32[2] i32[]", &[("num_heads", 4), ("kv_num_heads", 2)]),
    ("MatMulIntegerToFloat", "T[3,8] i8[8,5] f32[] f32[]", &[]),
    ("MatMulNBits", "T[3,32] !u8[5,2,8] T[10]", &[("K", 32), ("N", 5), ("block_size", 16)]),
    ("MultiHeadAttention", "T[2,4,8] T[2,5,8] T[2,5,8]", &[("num_heads", 2)]),
    ("NhwcMaxPool", "T[1,5,6,3]", &[]),
    ("QGemm", "T[3,4] f32[] T[] i8[4,5] f32[] i8[]", &[]),
    ("QuantizeLinear", "T[2,3] T[] u8[]", &[]),
    ("QuickGelu", "T[2,8]", &[]),
    ("RotaryEmbedding", "T[2,3,16] i64[1] T[10,4] T[10,4]", &[]),
    ("SkipLayerNormalization", "T[2,8] T[2,8] T[8]", &[]),
    ("SkipSimplifiedLayerNormalization", "T[2,8] T[2,8] T[8]", &[]),
    ("TransposeMatMul", "T[3,4] T[5,4]", &[("transB", 1)]),
    ("Trilu", "T[4,5]", &[]),
    (":SimplifiedLayerNormalization", "T[2,8] T[8]", &[]),
];

fn accepted(&(name, operands, attributes): &Row, dtype: DType) -> Result<(), String> {
    let (mut inputs, mut constants, mut names) = (vec![], vec![], vec![]);
    for (k, operand) in operands.split(' ').enumerate() {
        if operand == "_" {
            names.push(String::new());
            continue;
        }
        names.push(format!("x{k}"));
        match operand.strip_prefix('!') {
            Some(fixed) => {
                let (_, dims) = fixed.trim_end_matches(']').split_once('[').expect("dims");
                let dims: Vec<usize> = dims.split(',').map(|d| d.parse().expect("a number")).collect();
                constants.push(constant(&format!("x{k}"), &Tensor::zeros(DType::U8, dims)));
            }
            None => inputs.push(format!("x{k} {}", operand.replace('T', dtype.name()).replace(',', ", "))),
        }
    }
    let ints = attributes.iter().map(|&(n, v)| int(n, v));
    let pool = (name == "NhwcMaxPool").then(|| self::ints("kernel_shape", &[2, 2]));
    let attributes: Vec<AttributeProto> = ints.chain(pool).collect();
    let call = match name.strip_prefix(':') {
        Some(own) => format!("y = {own}({})", names.join(", ")),
        None => format!("y = com.microsoft:{name}({})", names.join(", ")),
    };
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let mut g = graph(&inputs, vec![node(&call, attributes)], &["y f32[?]"], constants);
    // Whatever dtype the result has.
    g.output[0].r#type = None;
    import(&model(21, g)).map(drop).map_err(|p| format!("{name} of {dtype}: {p}"))
}

#[test]
fn listed_dtypes_are_accepted_and_no_others() {
    let mut failures = vec![];
    let raised: Vec<_> = supported().into_iter().filter(|s| s.row.is_none() && s.domain == "com.microsoft").collect();
    for s in &raised {
        let row = ROWS.iter().find(|r| r.0 == s.name).unwrap_or_else(|| panic!("{} has no call here", s.name));
        for &dtype in DType::ALL.iter().filter(|&&d| d != DType::String) {
            match (accepted(row, dtype), s.dtypes.contains(&dtype)) {
                (Ok(()), true) | (Err(_), false) => {}
                (Ok(()), false) => failures.push(format!("{} takes {dtype}, which is not listed", s.name)),
                (Err(e), true) => failures.push(e),
            }
        }
    }
    assert!(raised.len() + 1 == ROWS.len(), "{} operators are raised, {} calls are here", raised.len(), ROWS.len() - 1);
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        failures.extend(accepted(&ROWS[ROWS.len() - 1], dtype).err());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
