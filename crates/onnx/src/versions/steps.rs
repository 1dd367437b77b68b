//! The steps of the domains `ai.onnx` and `ai.onnx.ml`.

use super::*;
use infc_ir::op::normal_axis;

const BINARY: &[&str] = &["Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"];
const REDUCE: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];
const CONSUMERS: &[&str] = &[
    "Abs",
    "Add",
    "BatchNormalization",
    "Ceil",
    "Clip",
    "Div",
    "Dropout",
    "Elu",
    "Exp",
    "Floor",
    "HardSigmoid",
    "InstanceNormalization",
    "LeakyRelu",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "Neg",
    "PRelu",
    "Reciprocal",
    "Relu",
    "Reshape",
    "Selu",
    "Sigmoid",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
];

const fn step(ops: &'static [&'static str], below: i64, what: &'static str, apply: fn(&mut Raise) -> Result<(), Fault>) -> Step {
    Step { domain: "", ops, below, what, apply }
}

/// What changed in the step of Casts that is for some dtypes only.
pub const NARROW: &str = "floats out of range of 4-bit integers saturate";

/// See [`super`].
pub const STEPS: &[Step] = &[
    step(CONSUMERS, 6, "attribute consumed_inputs said nothing", |r| r.take::<Vec<i64>>("consumed_inputs").map(drop)),
    step(BINARY, 7, "attributes axis and broadcast become dims of the second operand", legacy_broadcast),
    step(&["PRelu"], 7, "a slope per channel gets the dims after it", legacy_slope),
    step(&["Concat"], 4, "axis was 1", |r| {
        r.default("axis", Attr::Int(1));
        Ok(())
    }),
    step(&["Selu"], 6, "alpha and gamma had fewer digits", |r| {
        r.default("alpha", Attr::Float(1.6732));
        r.default("gamma", Attr::Float(1.0507));
        Ok(())
    }),
    step(&["Cast"], 6, "the dtype was a name", cast_to_name),
    // ONNX leaves open what becomes of floats out of range; its tests of then and of today differ.
    step(&["Cast", "CastLike"], 23, NARROW, saturate_narrow),
    step(&["Gemm"], 7, "C may always be broadcast", |r| r.take::<i64>("broadcast").map(drop)),
    step(&["BatchNormalization", "Dropout"], 7, "is_test is what we do", |r| r.take::<i64>("is_test").map(drop)),
    step(&["GRU", "LSTM", "RNN"], 7, "the results say whether the sequence is wanted", |r| {
        r.take::<i64>("output_sequence").map(drop)
    }),
    step(&["BatchNormalization"], 9, "spatial=0: statistics by element", batch_norm_spatial),
    step(&["BatchNormalization"], 14, "saved statistics are training only", |r| {
        if r.outputs > 1 { Err(fault!("results beyond the first are for training, which is not supported")) } else { Ok(()) }
    }),
    step(&["Reshape"], 5, "shape becomes an operand", |r| r.ints_to_input("shape", 1)),
    step(&["Tile"], 6, "tiles and axis become repeats", tile_1),
    step(&["Pad"], 2, "paddings was the name of pads", |r| {
        if let Some(pads) = r.attrs.take("paddings") {
            r.attrs.set("pads", pads);
        }
        Ok(())
    }),
    step(&["Pad"], 11, "pads and value become operands", |r| {
        let dtype = r.tensor(0)?.dtype;
        r.ints_to_input("pads", 1)?;
        r.float_to_input("value", dtype, 2)
    }),
    step(&["Clip"], 11, "min and max become operands", |r| {
        let dtype = r.tensor(0)?.dtype;
        r.float_to_input("min", dtype, 1)?;
        r.float_to_input("max", dtype, 2)
    }),
    step(&["Slice"], 10, "starts, ends and axes become operands", |r| {
        r.ints_to_input("starts", 1)?;
        r.ints_to_input("ends", 2)?;
        r.ints_to_input("axes", 3)
    }),
    step(&["TopK"], 10, "k becomes an operand", |r| {
        let k = r.take::<i64>("k")?.ok_or_else(|| fault!("attribute 'k' is required"))?;
        let v = r.builder.ints(&[k]);
        r.set_input(1, Some(v));
        Ok(())
    }),
    step(&["Upsample"], 7, "scales were two attributes", |r| {
        let h = r.take::<f32>("height_scale")?.unwrap_or(1.0);
        let w = r.take::<f32>("width_scale")?.unwrap_or(1.0);
        r.attrs.set("scales", Attr::Floats(vec![1.0, 1.0, h, w]));
        Ok(())
    }),
    step(&["Upsample"], 9, "scales become an operand", |r| {
        let scales = r.take::<Vec<f32>>("scales")?.ok_or_else(|| fault!("attribute 'scales' is required"))?;
        let v = r.builder.constant(Tensor::from_vec([scales.len()], scales));
        r.set_input(1, Some(v));
        Ok(())
    }),
    step(&["Upsample"], 10, "is Resize of operator set 10", |r| {
        r.rename("Resize");
        Ok(())
    }),
    step(&["Resize"], 11, "asymmetric coordinates, nearest by floor; operand roi", |r| {
        let scales = r.input(1)?;
        r.inputs = vec![Some(r.input(0)?), None, Some(scales)];
        r.attrs.set("coordinate_transformation_mode", Attr::Str("asymmetric".into()));
        r.attrs.set("nearest_mode", Attr::Str("floor".into()));
        Ok(())
    }),
    step(&["Resize"], ALWAYS, "empty operands are absent ones", |r| {
        for i in 1..r.inputs.len() {
            let empty = r.optional(i).map(|v| r.builder.dims(v)).transpose()?.is_some_and(|d| d.iter().any(|d| d.is(0)));
            if empty {
                r.inputs[i] = None;
            }
        }
        Ok(())
    }),
    step(&["Scatter"], 11, "is ScatterElements", |r| {
        r.rename("ScatterElements");
        Ok(())
    }),
    step(&["RoiAlign"], 16, "samples were not shifted by half a pixel", |r| {
        r.default("coordinate_transformation_mode", Attr::Str("output_half_pixel".into()));
        Ok(())
    }),
    step(&["Dropout"], 10, "the mask had the dtype of the data", dropout_mask),
    step(&["Dropout"], 12, "ratio becomes an operand", |r| r.float_to_input("ratio", DType::F32, 1)),
    step(&["Softmax", "LogSoftmax", "Hardmax"], 13, "over all dims from axis on", flat_softmax),
    step(&["Squeeze", "Unsqueeze", "ReduceSum"], 13, "axes become an operand", |r| r.ints_to_input("axes", 1)),
    step(&["Split"], 13, "split becomes an operand", |r| r.ints_to_input("split", 1)),
    step(&["Split"], 18, "equal parts by number of results", |r| {
        if r.optional(1).is_none() {
            r.attrs.set("num_outputs", Attr::Int(r.outputs as i64));
        }
        Ok(())
    }),
    step(REDUCE, 18, "axes become an operand", |r| r.ints_to_input("axes", 1)),
    step(&["GridSample"], 20, "modes lose the prefix bi", |r| {
        let mode = match r.take::<String>("mode")?.as_deref() {
            None | Some("bilinear") => "linear".to_owned(),
            Some("bicubic") => "cubic".to_owned(),
            Some(other) => other.to_owned(),
        };
        r.attrs.set("mode", Attr::Str(mode));
        Ok(())
    }),
    step(&["DFT"], 20, "axis becomes an operand", |r| {
        let axis = r.take::<i64>("axis")?.unwrap_or(1);
        let v = r.builder.constant(Tensor::from_vec([], vec![axis]));
        r.set_input(2, Some(v));
        Ok(())
    }),
    step(&["GroupNormalization"], 21, "scale and bias by group become those by channel", group_norm_18),
    // Written by ONNX Runtime's optimiser into the default domain.
    step(&["SimplifiedLayerNormalization"], ALWAYS, "is RMSNormalization", |r| {
        if r.outputs > 1 {
            return Err(fault!("its second result is for training, which is not supported"));
        }
        r.rename("RMSNormalization");
        Ok(())
    }),
    Step {
        domain: "ai.onnx.ml",
        ops: &["LabelEncoder"],
        below: 2,
        what: "classes become keys and values",
        apply: label_encoder_1,
    },
];

/// Before operator set 7 a broadcast had to be asked for, from `axis` on.
fn legacy_broadcast(r: &mut Raise) -> Result<(), Fault> {
    let (asked, axis) = (r.take::<i64>("broadcast")?.unwrap_or(0), r.take::<i64>("axis")?);
    let (a, b) = (r.tensor(0)?, r.tensor(1)?);
    if asked == 0 || axis.is_none() {
        return Ok(());
    }
    let axis = normal_axis(axis.unwrap_or(0), a.rank().max(1))?;
    let after = a.rank().checked_sub(axis + b.rank()).ok_or_else(|| fault!("axis {axis} does not fit {a} and {b}"))?;
    if after > 0 {
        let dims: Result<Vec<i64>, Fault> = b.dims.iter().map(|&d| known_dim(d, "a broadcast dim")).collect();
        let dims: Vec<i64> = dims?.into_iter().chain(std::iter::repeat_n(1, after)).collect();
        let v = r.reshape(r.input(1)?, &dims)?;
        r.set_input(1, Some(v));
    }
    Ok(())
}

fn legacy_slope(r: &mut Raise) -> Result<(), Fault> {
    let (x, slope) = (r.tensor(0)?, r.tensor(1)?);
    if slope.rank() == 1 && x.rank() > 2 && !slope.dims[0].is(1) {
        let mut dims = vec![known_dim(slope.dims[0], "the number of slopes")?];
        dims.resize(x.rank() - 1, 1);
        let v = r.reshape(r.input(1)?, &dims)?;
        r.set_input(1, Some(v));
    }
    Ok(())
}

fn cast_to_name(r: &mut Raise) -> Result<(), Fault> {
    let Some(Attr::Str(name)) = r.attrs.get("to") else { return Ok(()) };
    let dtype = match name.to_uppercase().as_str() {
        "FLOAT" => DType::F32,
        "UINT8" => DType::U8,
        "INT8" => DType::I8,
        "UINT16" => DType::U16,
        "INT16" => DType::I16,
        "INT32" => DType::I32,
        "INT64" => DType::I64,
        "STRING" => DType::String,
        "BOOL" => DType::Bool,
        "FLOAT16" => DType::F16,
        "DOUBLE" => DType::F64,
        "UINT32" => DType::U32,
        "UINT64" => DType::U64,
        other => return Err(fault!("unknown dtype '{other}'")),
    };
    r.attrs.set("to", Attr::Int(i64::from(dtype.onnx())));
    Ok(())
}

/// Floats to 4-bit integers: the nearest that there is.
fn saturate_narrow(r: &mut Raise) -> Result<(), Fault> {
    let to = match (r.op.as_str(), r.attrs.get("to")) {
        ("Cast", Some(Attr::Int(to))) => i32::try_from(*to).ok().and_then(DType::from_onnx),
        ("CastLike", _) => Some(r.tensor(1)?.dtype),
        _ => None,
    };
    let from = r.tensor(0)?.dtype;
    if !matches!(to, Some(DType::I4 | DType::U4)) || !matches!(from, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
        return Ok(());
    }
    let (low, high) = if to == Some(DType::I4) { (-8.0, 7.0) } else { (0.0, 15.0) };
    let (low, high) = (r.builder.number(from, low), r.builder.number(from, high));
    let x = r.node("Clip", &[], &[r.input(0)?, low, high])?;
    r.set_input(0, Some(x));
    Ok(())
}

/// y = (x - mean) / sqrt(var + epsilon) * scale + bias with statistics for each element of a sample.
fn batch_norm_spatial(r: &mut Raise) -> Result<(), Fault> {
    let spatial = r.take::<i64>("spatial")?.unwrap_or(1);
    if spatial != 0 || r.tensor(0)?.rank() <= 2 && r.tensor(1)?.rank() == 1 {
        return Ok(());
    }
    if r.outputs > 1 {
        return Err(fault!("results beyond the first are for training, which is not supported"));
    }
    let dtype = r.tensor(0)?.dtype;
    let epsilon = r.take::<f32>("epsilon")?.unwrap_or(1e-5);
    let [x, scale, bias, mean, var] = [r.input(0)?, r.input(1)?, r.input(2)?, r.input(3)?, r.input(4)?];
    let epsilon = r.builder.number(dtype, f64::from(epsilon));
    let var = r.node("Add", &[], &[var, epsilon])?;
    let deviation = r.node("Sqrt", &[], &[var])?;
    let factor = r.node("Div", &[], &[scale, deviation])?;
    let centred = r.node("Sub", &[], &[x, mean])?;
    let scaled = r.node("Mul", &[], &[centred, factor])?;
    let y = r.node("Add", &[], &[scaled, bias])?;
    r.results = Some(vec![y]);
    Ok(())
}

fn tile_1(r: &mut Raise) -> Result<(), Fault> {
    let rank = r.tensor(0)?.rank();
    let number = |r: &Raise, i: usize| match r.constant(i) {
        Some(t) if t.len() == 1 && t.dtype != DType::String => Ok(t.float(0) as i64),
        _ => Err(fault!("operand {i} must be a constant")),
    };
    let (tiles, axis) = (number(r, 1)?, normal_axis(number(r, 2)?, rank)?);
    let repeats: Vec<i64> = (0..rank).map(|i| if i == axis { tiles } else { 1 }).collect();
    let v = r.builder.ints(&repeats);
    r.inputs = vec![Some(r.input(0)?), Some(v)];
    Ok(())
}

/// The mask was of the dtype of the data until operator set 10; it is rarely asked for.
fn dropout_mask(r: &mut Raise) -> Result<(), Fault> {
    r.take::<f32>("ratio")?;
    if r.outputs < 2 {
        return Ok(());
    }
    let dtype = r.tensor(0)?.dtype;
    let made = r.node_with("Dropout", &[], &[Some(r.input(0)?)], 2)?;
    let mask = r.node("Cast", &[("to", Attr::Int(i64::from(dtype.onnx())))], &[made[1]])?;
    r.results = Some(vec![made[0], mask]);
    Ok(())
}

/// Until operator set 13 the tensor was taken as a matrix, cut at `axis`.
fn flat_softmax(r: &mut Raise) -> Result<(), Fault> {
    let x = r.tensor(0)?;
    // `axis` could be the rank itself only by mistake; a scalar is its own row.
    let axis = normal_axis(r.take::<i64>("axis")?.unwrap_or(1), x.rank().max(1))?;
    if x.dims.iter().skip(axis + 1).all(|d| d.is(1)) {
        r.attrs.set("axis", Attr::Int(axis as i64));
        return Ok(());
    }
    let v = r.input(0)?;
    let shape = r.shape_of(v)?;
    let flat = r.node("Flatten", &[("axis", Attr::Int(axis as i64))], &[v])?;
    let op = r.op.clone();
    let rows = r.node(&op, &[("axis", Attr::Int(-1))], &[flat])?;
    let y = r.node("Reshape", &[], &[rows, shape])?;
    r.results = Some(vec![y]);
    Ok(())
}

fn group_norm_18(r: &mut Raise) -> Result<(), Fault> {
    let x = r.tensor(0)?;
    let channels = known_dim(*x.dims.get(1).ok_or_else(|| fault!("operand 0 needs a channel dim"))?, "the number of channels")?;
    let groups = match r.attrs.get("num_groups") {
        Some(Attr::Int(g)) if *g > 0 && channels % g == 0 => *g,
        _ => return Err(fault!("attribute 'num_groups' must divide {channels} channels")),
    };
    for i in [1, 2] {
        let column = r.reshape(r.input(i)?, &[groups, 1])?;
        let dims = r.builder.ints(&[groups, channels / groups]);
        let wide = r.node("Expand", &[], &[column, dims])?;
        let v = r.reshape(wide, &[channels])?;
        r.set_input(i, Some(v));
    }
    Ok(())
}

/// Strings to their index in a list, or back.
fn label_encoder_1(r: &mut Raise) -> Result<(), Fault> {
    let Some(classes) = r.take::<Vec<String>>("classes_strings")? else { return Ok(()) };
    let indices = (0..classes.len() as i64).collect();
    let (keys, values) = match r.tensor(0)?.dtype {
        DType::String => (("keys_strings", Attr::Strs(classes)), ("values_int64s", Attr::Ints(indices))),
        _ => (("keys_int64s", Attr::Ints(indices)), ("values_strings", Attr::Strs(classes))),
    };
    r.attrs.set(keys.0, keys.1);
    r.attrs.set(values.0, values.1);
    Ok(())
}
