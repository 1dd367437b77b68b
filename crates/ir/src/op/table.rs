//! The rows of the operator table, and what is derived from them: a struct per operator, [`Op`], names, attributes.
//!
//! Row: `Name "domain" "OnnxName" since (operands) (results) ["region", ...] { attribute: type = default, ... }`.
//! An attribute without a default is required. Definitions: the ONNX operator documentation (version 1.23, opset 28), ONNX
//! Runtime's contrib operators for `com.microsoft`, the QONNX repository for `Quant`.
//!
//! `captures` of Loop, Scan and SequenceMap is no ONNX attribute: it counts the captured operands (see `control`).

use super::attr::{read, write};
use super::*;

/// "Any number" in an arity.
pub const MANY: usize = usize::MAX;

macro_rules! ops {
    ($($family:ident { $(
        $(#[doc = $doc:literal])* $name:ident $domain:literal $onnx:literal $since:literal $ins:tt $outs:tt [$($region:literal),*]
        { $($attr:ident : $ty:ty $(= $default:expr)?),* $(,)? }
    )* })*) => {
        $($(
            $(#[doc = $doc])*
            #[derive(Clone, Debug, PartialEq)]
            pub struct $name { $(
                #[doc = concat!("ONNX attribute `", stringify!($attr), "`.")]
                pub $attr: $ty,
            )* }

            impl From<$name> for Op {
                fn from(op: $name) -> Op { Op::$name(op) }
            }
        )*)*

        /// An operator with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op { $($(
            $(#[doc = $doc])*
            $name($name),
        )*)* }

        /// All rows, in the order of the table.
        pub static OPS: &[OpInfo] = &[$($(OpInfo {
            domain: $domain,
            name: $onnx,
            since: $since,
            inputs: $ins,
            outputs: $outs,
            regions: &[$($region),*],
            attributes: &[$(stringify!($attr)),*],
            family: stringify!($family),
            doc: concat!($($doc),*),
        },)*)*];

        #[repr(usize)]
        enum Row { $($($name,)*)* }

        impl Op {
            /// The row it belongs to.
            pub fn info(&self) -> &'static OpInfo {
                match self { $($(Op::$name(_) => &OPS[Row::$name as usize],)*)* }
            }

            /// Its attributes in generic form; those at their default are left out.
            pub fn attrs(&self) -> Attrs {
                let mut attrs = Attrs::default();
                match self { $($(Op::$name(_op) => { $(
                    write(&mut attrs, attr_name(stringify!($attr)), &_op.$attr, ops!(@default $($default)?));
                )* })*)* }
                attrs
            }

            /// The operator of that domain and name with these attributes; takes those it knows out of `attrs`.
            /// `None` if there is no such row.
            pub fn from_attrs(domain: &str, name: &str, attrs: &mut Attrs) -> Option<Result<Op, Fault>> {
                match (domain, name) {
                    $($(($domain, $onnx) => Some((|| Ok(Op::$name($name { $(
                        $attr: read(attrs, attr_name(stringify!($attr)), ops!(@default $($default)?))?,
                    )* })))()),)*)*
                    _ => None,
                }
            }

            fn def(&self) -> &dyn OpDef {
                match self { $($(Op::$name(op) => op,)*)* }
            }
        }
    };
    (@default $e:expr) => { Some($e) };
    (@default) => { None };
}

impl Op {
    /// Its ONNX name.
    pub fn name(&self) -> &'static str {
        self.info().name
    }
    /// See [`OpDef::infer`]; checks the arity first.
    pub fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let info = self.info();
        let (least, most) = info.inputs;
        // Captured values follow the operands of an operator with bodies.
        let most = if info.regions.is_empty() { most } else { MANY };
        if !arity((least, most)).contains(&cx.inputs.len()) {
            let most = if most == MANY { "any number of".to_owned() } else { most.to_string() };
            return Err(fault!("takes {least} to {most} operands, got {}", cx.inputs.len()));
        }
        if cx.outputs > info.outputs.1 {
            return Err(fault!("has at most {} results, got {}", info.outputs.1, cx.outputs));
        }
        self.def().infer(cx)
    }
    /// See [`OpDef::meaning`].
    pub fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        self.def().meaning(cx, outs)
    }
    /// See [`OpDef::data_dims`].
    pub fn data_dims(&self, cx: &Ctx) -> Result<DataDims, Fault> {
        self.def().data_dims(cx)
    }
}

/// Raw identifiers lose their `r#`.
fn attr_name(name: &'static str) -> &'static str {
    name.strip_prefix("r#").unwrap_or(name)
}

ops! {
    elementwise {
        /// Absolute value.
        Abs "" "Abs" 13 (1, 1) (1, 1) [] {  }
        /// Inverse cosine.
        Acos "" "Acos" 22 (1, 1) (1, 1) [] {  }
        /// Inverse hyperbolic cosine.
        Acosh "" "Acosh" 22 (1, 1) (1, 1) [] {  }
        /// Sum with broadcasting.
        Add "" "Add" 14 (2, 2) (1, 1) [] {  }
        /// Logical and with broadcasting.
        And "" "And" 7 (2, 2) (1, 1) [] {  }
        /// Inverse sine.
        Asin "" "Asin" 22 (1, 1) (1, 1) [] {  }
        /// Inverse hyperbolic sine.
        Asinh "" "Asinh" 22 (1, 1) (1, 1) [] {  }
        /// Inverse tangent.
        Atan "" "Atan" 22 (1, 1) (1, 1) [] {  }
        /// Inverse hyperbolic tangent.
        Atanh "" "Atanh" 22 (1, 1) (1, 1) [] {  }
        /// The same bits as another dtype.
        BitCast "" "BitCast" 26 (1, 1) (1, 1) [] { to: i64 }
        /// Bits shifted left or right.
        BitShift "" "BitShift" 28 (2, 2) (1, 1) [] { direction: String }
        /// Bitwise and.
        BitwiseAnd "" "BitwiseAnd" 18 (2, 2) (1, 1) [] {  }
        /// Bitwise complement.
        BitwiseNot "" "BitwiseNot" 18 (1, 1) (1, 1) [] {  }
        /// Bitwise or.
        BitwiseOr "" "BitwiseOr" 18 (2, 2) (1, 1) [] {  }
        /// Bitwise exclusive or.
        BitwiseXor "" "BitwiseXor" 18 (2, 2) (1, 1) [] {  }
        /// Conversion to the dtype `to`.
        Cast "" "Cast" 28 (1, 1) (1, 1) [] { round_mode: String = String::from("up"), saturate: i64 = 1, to: i64 }
        /// Conversion to the dtype of the second operand.
        CastLike "" "CastLike" 25 (2, 2) (1, 1) [] { round_mode: String = String::from("up"), saturate: i64 = 1 }
        /// Rounding towards infinity.
        Ceil "" "Ceil" 13 (1, 1) (1, 1) [] {  }
        /// max(0, x) + min(0, alpha (e^(x / alpha) - 1)).
        Celu "" "Celu" 28 (1, 1) (1, 1) [] { alpha: f32 = 1.0 }
        /// Limited to between two optional scalars.
        Clip "" "Clip" 13 (1, 3) (1, 1) [] {  }
        /// Cosine.
        Cos "" "Cos" 22 (1, 1) (1, 1) [] {  }
        /// Hyperbolic cosine.
        Cosh "" "Cosh" 22 (1, 1) (1, 1) [] {  }
        /// Quotient with broadcasting; integers truncate.
        Div "" "Div" 14 (2, 2) (1, 1) [] {  }
        /// x, or alpha (e^x - 1) below zero.
        Elu "" "Elu" 22 (1, 1) (1, 1) [] { alpha: f32 = 1.0 }
        /// Are the elements equal?
        Equal "" "Equal" 19 (2, 2) (1, 1) [] {  }
        /// Error function.
        Erf "" "Erf" 13 (1, 1) (1, 1) [] {  }
        /// e^x.
        Exp "" "Exp" 13 (1, 1) (1, 1) [] {  }
        /// Rounding towards minus infinity.
        Floor "" "Floor" 13 (1, 1) (1, 1) [] {  }
        /// x Phi(x), exact or by the tanh approximation.
        Gelu "" "Gelu" 20 (1, 1) (1, 1) [] { approximate: String = String::from("none") }
        /// Is the first greater?
        Greater "" "Greater" 13 (2, 2) (1, 1) [] {  }
        /// Is the first greater or equal?
        GreaterOrEqual "" "GreaterOrEqual" 16 (2, 2) (1, 1) [] {  }
        /// max(0, min(1, alpha x + beta)).
        HardSigmoid "" "HardSigmoid" 22 (1, 1) (1, 1) [] { alpha: f32 = 0.2, beta: f32 = 0.5 }
        /// x max(0, min(1, x / 6 + 0.5)).
        HardSwish "" "HardSwish" 22 (1, 1) (1, 1) [] {  }
        /// The operand itself.
        Identity "" "Identity" 25 (1, 1) (1, 1) [] {  }
        /// Is it infinite, of the asked-for sign?
        IsInf "" "IsInf" 20 (1, 1) (1, 1) [] { detect_negative: i64 = 1, detect_positive: i64 = 1 }
        /// Is it NaN?
        IsNaN "" "IsNaN" 20 (1, 1) (1, 1) [] {  }
        /// x, or alpha x below zero.
        LeakyRelu "" "LeakyRelu" 16 (1, 1) (1, 1) [] { alpha: f32 = 0.01 }
        /// Is the first less?
        Less "" "Less" 13 (2, 2) (1, 1) [] {  }
        /// Is the first less or equal?
        LessOrEqual "" "LessOrEqual" 16 (2, 2) (1, 1) [] {  }
        /// Natural logarithm.
        Log "" "Log" 13 (1, 1) (1, 1) [] {  }
        /// The largest of all operands, with broadcasting.
        Max "" "Max" 13 (1, MANY) (1, 1) [] {  }
        /// The mean of all operands, with broadcasting.
        Mean "" "Mean" 13 (1, MANY) (1, 1) [] {  }
        /// The smallest of all operands, with broadcasting.
        Min "" "Min" 13 (1, MANY) (1, 1) [] {  }
        /// x tanh(softplus(x)).
        Mish "" "Mish" 22 (1, 1) (1, 1) [] {  }
        /// Remainder with the divisor's sign, or C's `fmod`.
        Mod "" "Mod" 28 (2, 2) (1, 1) [] { fmod: bool = false }
        /// Product with broadcasting.
        Mul "" "Mul" 14 (2, 2) (1, 1) [] {  }
        /// Minus.
        Neg "" "Neg" 13 (1, 1) (1, 1) [] {  }
        /// Logical not.
        Not "" "Not" 1 (1, 1) (1, 1) [] {  }
        /// Logical or with broadcasting.
        Or "" "Or" 7 (2, 2) (1, 1) [] {  }
        /// x, or slope x below zero, with a slope tensor.
        PRelu "" "PRelu" 16 (2, 2) (1, 1) [] {  }
        /// Power with broadcasting; the result has the base's dtype.
        Pow "" "Pow" 15 (2, 2) (1, 1) [] {  }
        /// 1 / x.
        Reciprocal "" "Reciprocal" 13 (1, 1) (1, 1) [] {  }
        /// max(0, x).
        Relu "" "Relu" 14 (1, 1) (1, 1) [] {  }
        /// Rounding to nearest, ties to even.
        Round "" "Round" 22 (1, 1) (1, 1) [] {  }
        /// gamma x, or gamma alpha (e^x - 1) below zero.
        Selu "" "Selu" 22 (1, 1) (1, 1) [] { alpha: f32 = 1.673_263_2, gamma: f32 = 1.050_701 }
        /// x moved towards zero by `bias`, zero within `lambd`.
        Shrink "" "Shrink" 9 (1, 1) (1, 1) [] { bias: f32 = 0.0, lambd: f32 = 0.5 }
        /// 1 / (1 + e^-x).
        Sigmoid "" "Sigmoid" 13 (1, 1) (1, 1) [] {  }
        /// -1, 0 or 1.
        Sign "" "Sign" 13 (1, 1) (1, 1) [] {  }
        /// Sine.
        Sin "" "Sin" 22 (1, 1) (1, 1) [] {  }
        /// Hyperbolic sine.
        Sinh "" "Sinh" 22 (1, 1) (1, 1) [] {  }
        /// ln(1 + e^x).
        Softplus "" "Softplus" 22 (1, 1) (1, 1) [] {  }
        /// x / (1 + |x|).
        Softsign "" "Softsign" 22 (1, 1) (1, 1) [] {  }
        /// Square root.
        Sqrt "" "Sqrt" 13 (1, 1) (1, 1) [] {  }
        /// Difference with broadcasting.
        Sub "" "Sub" 14 (2, 2) (1, 1) [] {  }
        /// The sum of all operands, with broadcasting.
        Sum "" "Sum" 13 (1, MANY) (1, 1) [] {  }
        /// Gated linear unit with the swish of one half.
        SwiGLU "" "SwiGLU" 28 (2, 2) (1, 1) [] { alpha: f32 = 1.0 }
        /// x sigmoid(alpha x).
        Swish "" "Swish" 24 (1, 1) (1, 1) [] { alpha: f32 = 1.0 }
        /// Tangent.
        Tan "" "Tan" 22 (1, 1) (1, 1) [] {  }
        /// Hyperbolic tangent.
        Tanh "" "Tanh" 13 (1, 1) (1, 1) [] {  }
        /// x above alpha, else 0.
        ThresholdedRelu "" "ThresholdedRelu" 22 (1, 1) (1, 1) [] { alpha: f32 = 1.0 }
        /// The second operand where the first is true, else the third.
        Where "" "Where" 16 (3, 3) (1, 1) [] {  }
        /// Logical exclusive or with broadcasting.
        Xor "" "Xor" 7 (2, 2) (1, 1) [] {  }
    }
    reduce {
        /// Index of the largest element along an axis.
        ArgMax "" "ArgMax" 13 (1, 1) (1, 1) [] { axis: i64 = 0, keepdims: bool = true, select_last_index: bool = false }
        /// Index of the smallest element along an axis.
        ArgMin "" "ArgMin" 13 (1, 1) (1, 1) [] { axis: i64 = 0, keepdims: bool = true, select_last_index: bool = false }
        /// Running product along an axis.
        CumProd "" "CumProd" 26 (2, 2) (1, 1) [] { exclusive: bool = false, reverse: bool = false }
        /// Running sum along an axis.
        CumSum "" "CumSum" 14 (2, 2) (1, 1) [] { exclusive: bool = false, reverse: bool = false }
        /// 1 at the first largest element along an axis, else 0.
        Hardmax "" "Hardmax" 13 (1, 1) (1, 1) [] { axis: i64 = -1 }
        /// Logarithm of softmax along an axis.
        LogSoftmax "" "LogSoftmax" 13 (1, 1) (1, 1) [] { axis: i64 = -1 }
        /// Sum of absolute values over axes.
        ReduceL1 "" "ReduceL1" 18 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Root of the sum of squares over axes.
        ReduceL2 "" "ReduceL2" 18 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Logarithm of the sum over axes.
        ReduceLogSum "" "ReduceLogSum" 28 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Logarithm of the sum of exponentials over axes.
        ReduceLogSumExp "" "ReduceLogSumExp" 28 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Largest element over axes.
        ReduceMax "" "ReduceMax" 20 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Mean over axes.
        ReduceMean "" "ReduceMean" 18 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Smallest element over axes.
        ReduceMin "" "ReduceMin" 20 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Product over axes.
        ReduceProd "" "ReduceProd" 18 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Sum over axes.
        ReduceSum "" "ReduceSum" 13 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// Sum of squares over axes.
        ReduceSumSquare "" "ReduceSumSquare" 18 (1, 2) (1, 1) [] { keepdims: bool = true, noop_with_empty_axes: bool = false }
        /// e^x over its sum along an axis.
        Softmax "" "Softmax" 13 (1, 1) (1, 1) [] { axis: i64 = -1 }
    }
    contract {
        /// Scaled dot-product attention with optional mask and cache.
        Attention "" "Attention" 25 (3, 7) (1, 4) [] { is_causal: bool = false, kv_num_heads: Option<i64> = None, left_window_size: i64 = -1, q_num_heads: Option<i64> = None, qk_matmul_output_mode: i64 = 0, right_window_size: i64 = -1, scale: Option<f32> = None, softcap: f32 = 0.0, softmax_precision: Option<i64> = None }
        /// Determinant of the last two dims.
        Det "" "Det" 22 (1, 1) (1, 1) [] {  }
        /// Sum of products by an index equation.
        Einsum "" "Einsum" 28 (1, MANY) (1, 1) [] { equation: String }
        /// alpha A B + beta C, with optional transposition.
        Gemm "" "Gemm" 13 (2, 3) (1, 1) [] { alpha: f32 = 1.0, beta: f32 = 1.0, transA: i64 = 0, transB: i64 = 0 }
        /// Attention without softmax, as a recurrence.
        LinearAttention "" "LinearAttention" 27 (3, 6) (2, 2) [] { chunk_size: i64 = 64, kv_num_heads: i64, q_num_heads: i64, scale: f32 = 0.0, update_rule: String = String::from("gated_delta") }
        /// Matrix product over the last two dims, batched as in numpy.
        MatMul "" "MatMul" 13 (2, 2) (1, 1) [] {  }
        /// Rotary position embedding of query or key.
        RotaryEmbedding "" "RotaryEmbedding" 23 (3, 4) (1, 1) [] { interleaved: i64 = 0, num_heads: Option<i64> = None, rotary_embedding_dim: i64 = 0 }
    }
    conv {
        /// Causal depthwise convolution that carries its tail as state.
        CausalConvWithState "" "CausalConvWithState" 27 (2, 4) (2, 2) [] { activation: String = String::from("none") }
        /// Sum of overlapping blocks back into an image.
        Col2Im "" "Col2Im" 18 (3, 3) (1, 1) [] { dilations: Vec<i64> = vec![], pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// Convolution, grouped and of any rank.
        Conv "" "Conv" 22 (2, 3) (1, 1) [] { auto_pad: String = String::from("NOTSET"), dilations: Vec<i64> = vec![], group: i64 = 1, kernel_shape: Vec<i64> = vec![], pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// Transposed convolution.
        ConvTranspose "" "ConvTranspose" 22 (2, 3) (1, 1) [] { auto_pad: String = String::from("NOTSET"), dilations: Vec<i64> = vec![], group: i64 = 1, kernel_shape: Vec<i64> = vec![], output_padding: Vec<i64> = vec![], output_shape: Vec<i64> = vec![], pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// Convolution with learned sampling offsets.
        DeformConv "" "DeformConv" 22 (3, 5) (1, 1) [] { dilations: Vec<i64> = vec![], group: i64 = 1, kernel_shape: Vec<i64> = vec![], offset_group: i64 = 1, pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
    }
    pool {
        /// The sampling grid of affine matrices.
        AffineGrid "" "AffineGrid" 20 (2, 2) (1, 1) [] { align_corners: i64 = 0 }
        /// Mean over sliding windows.
        AveragePool "" "AveragePool" 22 (1, 1) (1, 1) [] { auto_pad: String = String::from("NOTSET"), ceil_mode: i64 = 0, count_include_pad: bool = false, dilations: Vec<i64> = vec![], kernel_shape: Vec<i64>, pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// Mean over all spatial dims.
        GlobalAveragePool "" "GlobalAveragePool" 22 (1, 1) (1, 1) [] {  }
        /// Lp norm over all spatial dims.
        GlobalLpPool "" "GlobalLpPool" 22 (1, 1) (1, 1) [] { p: i64 = 2 }
        /// Largest element over all spatial dims.
        GlobalMaxPool "" "GlobalMaxPool" 22 (1, 1) (1, 1) [] {  }
        /// Samples at positions given by a grid.
        GridSample "" "GridSample" 22 (2, 2) (1, 1) [] { align_corners: i64 = 0, mode: String = String::from("linear"), padding_mode: String = String::from("zeros") }
        /// Lp norm over sliding windows.
        LpPool "" "LpPool" 22 (1, 1) (1, 1) [] { auto_pad: String = String::from("NOTSET"), ceil_mode: i64 = 0, dilations: Vec<i64> = vec![], kernel_shape: Vec<i64>, p: i64 = 2, pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// Largest element of sliding windows, with indices.
        MaxPool "" "MaxPool" 22 (1, 1) (1, 2) [] { auto_pad: String = String::from("NOTSET"), ceil_mode: i64 = 0, dilations: Vec<i64> = vec![], kernel_shape: Vec<i64>, pads: Vec<i64> = vec![], storage_order: i64 = 0, strides: Vec<i64> = vec![] }
        /// Largest element in each cell of regions of interest.
        MaxRoiPool "" "MaxRoiPool" 22 (2, 2) (1, 1) [] { pooled_shape: Vec<i64>, spatial_scale: f32 = 1.0 }
        /// Elements put back where MaxPool took them.
        MaxUnpool "" "MaxUnpool" 22 (2, 3) (1, 1) [] { kernel_shape: Vec<i64>, pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// Nearest, linear or cubic resampling.
        Resize "" "Resize" 19 (1, 4) (1, 1) [] { antialias: i64 = 0, axes: Vec<i64> = vec![], coordinate_transformation_mode: String = String::from("half_pixel"), cubic_coeff_a: f32 = -0.75, exclude_outside: i64 = 0, extrapolation_value: f32 = 0.0, keep_aspect_ratio_policy: String = String::from("stretch"), mode: String = String::from("nearest"), nearest_mode: String = String::from("round_prefer_floor") }
        /// Interpolated samples in each cell of regions of interest.
        RoiAlign "" "RoiAlign" 22 (3, 3) (1, 1) [] { coordinate_transformation_mode: String = String::from("half_pixel"), mode: String = String::from("avg"), output_height: i64 = 1, output_width: i64 = 1, sampling_ratio: i64 = 0, spatial_scale: f32 = 1.0 }
    }
    shape {
        /// Cropped or padded around the centre to a shape.
        CenterCropPad "" "CenterCropPad" 18 (2, 2) (1, 1) [] { axes: Vec<i64> = vec![] }
        /// Operands one after another along an axis.
        Concat "" "Concat" 13 (1, MANY) (1, 1) [] { axis: i64 }
        /// A tensor of one repeated value.
        ConstantOfShape "" "ConstantOfShape" 25 (1, 1) (1, 1) [] { value: Option<Tensor> = None }
        /// Blocks of channels moved to space.
        DepthToSpace "" "DepthToSpace" 28 (1, 1) (1, 1) [] { blocksize: i64, mode: String = String::from("DCR") }
        /// Broadcast to a shape.
        Expand "" "Expand" 13 (2, 2) (1, 1) [] {  }
        /// Ones on a diagonal.
        EyeLike "" "EyeLike" 22 (1, 1) (1, 1) [] { dtype: Option<i64> = None, k: i64 = 0 }
        /// Reshaped to two dims at an axis.
        Flatten "" "Flatten" 25 (1, 1) (1, 1) [] { axis: i64 = 1 }
        /// Elements added at (or cut from) the borders.
        Pad "" "Pad" 25 (2, 4) (1, 1) [] { mode: String = String::from("constant") }
        /// Numbers from start to limit by delta.
        Range "" "Range" 27 (3, 3) (1, 1) [] { stash_type: i64 = 1 }
        /// The same elements with other dims.
        Reshape "" "Reshape" 25 (2, 2) (1, 1) [] { allowzero: bool = false }
        /// Prefixes of given lengths reversed.
        ReverseSequence "" "ReverseSequence" 28 (2, 2) (1, 1) [] { batch_axis: i64 = 1, time_axis: i64 = 0 }
        /// The dims as a tensor.
        Shape "" "Shape" 25 (1, 1) (1, 1) [] { end: Option<i64> = None, start: i64 = 0 }
        /// The number of elements.
        Size "" "Size" 25 (1, 1) (1, 1) [] {  }
        /// Elements by start, end and step along axes.
        Slice "" "Slice" 13 (3, 5) (1, 1) [] {  }
        /// Blocks of space moved to channels.
        SpaceToDepth "" "SpaceToDepth" 28 (1, 1) (1, 1) [] { blocksize: i64, mode: String = String::from("DCR") }
        /// Cut into pieces along an axis.
        Split "" "Split" 18 (1, 2) (1, MANY) [] { axis: i64 = 0, num_outputs: Option<i64> = None }
        /// Dims of extent 1 taken out.
        Squeeze "" "Squeeze" 25 (1, 2) (1, 1) [] {  }
        /// Repeated along each axis.
        Tile "" "Tile" 13 (2, 2) (1, 1) [] {  }
        /// Dims permuted.
        Transpose "" "Transpose" 25 (1, 1) (1, 1) [] { perm: Vec<i64> = vec![] }
        /// Upper or lower triangle.
        Trilu "" "Trilu" 14 (1, 2) (1, 1) [] { upper: i64 = 1 }
        /// Dims of extent 1 put in.
        Unsqueeze "" "Unsqueeze" 25 (2, 2) (1, 1) [] {  }
    }
    index {
        /// Slices along an axis by index.
        Gather "" "Gather" 13 (2, 2) (1, 1) [] { axis: i64 = 0 }
        /// Elements along an axis by an index tensor of the result's shape.
        GatherElements "" "GatherElements" 13 (2, 2) (1, 1) [] { axis: i64 = 0 }
        /// Slices by index tuples.
        GatherND "" "GatherND" 13 (2, 2) (1, 1) [] { batch_dims: i64 = 0 }
        /// One-hot vectors from indices.
        OneHot "" "OneHot" 28 (3, 3) (1, 1) [] { axis: i64 = -1 }
        /// A copy with elements replaced along an axis by index.
        ScatterElements "" "ScatterElements" 18 (3, 3) (1, 1) [] { axis: i64 = 0, reduction: String = String::from("none") }
        /// A copy with slices replaced by index tuples.
        ScatterND "" "ScatterND" 18 (3, 3) (1, 1) [] { reduction: String = String::from("none") }
        /// A cache with new entries written at positions.
        TensorScatter "" "TensorScatter" 24 (2, 3) (1, 1) [] { axis: i64 = -2, mode: String = String::from("linear") }
    }
    norm {
        /// Normalised by running mean and variance per channel.
        BatchNormalization "" "BatchNormalization" 15 (5, 5) (1, 3) [] { epsilon: f32 = 1e-5, momentum: f32 = 0.9, training_mode: bool = false }
        /// Normalised over groups of channels.
        GroupNormalization "" "GroupNormalization" 21 (3, 3) (1, 1) [] { epsilon: f32 = 1e-5, num_groups: i64, stash_type: i64 = 1 }
        /// Normalised over space per channel and sample.
        InstanceNormalization "" "InstanceNormalization" 22 (3, 3) (1, 1) [] { epsilon: f32 = 1e-5 }
        /// Local response normalisation over channels.
        LRN "" "LRN" 13 (1, 1) (1, 1) [] { alpha: f32 = 1e-4, beta: f32 = 0.75, bias: f32 = 1.0, size: i64 }
        /// Normalised over the trailing axes, with scale and bias.
        LayerNormalization "" "LayerNormalization" 17 (2, 3) (1, 3) [] { axis: i64 = -1, epsilon: f32 = 1e-5, stash_type: i64 = 1 }
        /// Divided by the Lp norm along an axis.
        LpNormalization "" "LpNormalization" 22 (1, 1) (1, 1) [] { axis: i64 = -1, p: i64 = 2 }
        /// Mean 0 and variance 1 over axes.
        MeanVarianceNormalization "" "MeanVarianceNormalization" 13 (1, 1) (1, 1) [] { axes: Vec<i64> = vec![0, 2, 3] }
        /// Divided by the root mean square of the trailing axes, with scale.
        RMSNormalization "" "RMSNormalization" 23 (2, 2) (1, 1) [] { axis: i64 = -1, epsilon: f32 = 1e-5, stash_type: i64 = 1 }
    }
    quant {
        /// Convolution of 8-bit integers into i32.
        ConvInteger "" "ConvInteger" 10 (2, 4) (1, 1) [] { auto_pad: String = String::from("NOTSET"), dilations: Vec<i64> = vec![], group: i64 = 1, kernel_shape: Vec<i64> = vec![], pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// (x - zero point) * scale.
        DequantizeLinear "" "DequantizeLinear" 28 (2, 3) (1, 1) [] { axis: i64 = 1, block_size: i64 = 0, output_dtype: i64 = 0 }
        /// u8 quantisation by the range of the data itself.
        DynamicQuantizeLinear "" "DynamicQuantizeLinear" 11 (1, 1) (3, 3) [] {  }
        /// Matrix product of 8-bit integers into i32.
        MatMulInteger "" "MatMulInteger" 10 (2, 4) (1, 1) [] {  }
        /// Convolution of quantised tensors into a quantised tensor.
        QLinearConv "" "QLinearConv" 10 (8, 9) (1, 1) [] { auto_pad: String = String::from("NOTSET"), dilations: Vec<i64> = vec![], group: i64 = 1, kernel_shape: Vec<i64> = vec![], pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// Matrix product of quantised tensors into a quantised tensor.
        QLinearMatMul "" "QLinearMatMul" 21 (8, 8) (1, 1) [] {  }
        /// Saturated round(x / scale) + zero point.
        QuantizeLinear "" "QuantizeLinear" 28 (2, 3) (1, 1) [] { axis: i64 = 1, block_size: i64 = 0, output_dtype: i64 = 0, precision: i64 = 0, saturate: i64 = 1 }
        /// Sum of two quantised tensors, requantised (ONNX Runtime's QLinearAdd).
        QLinearAdd "com.microsoft" "QLinearAdd" 1 (7, 8) (1, 1) [] {  }
        /// Product of two quantised tensors, requantised.
        QLinearMul "com.microsoft" "QLinearMul" 1 (7, 8) (1, 1) [] {  }
        /// Elements of one of two quantised tensors by a condition, requantised.
        QLinearWhere "com.microsoft" "QLinearWhere" 1 (9, 9) (1, 1) [] {  }
        /// Sigmoid of a quantised tensor, requantised.
        QLinearSigmoid "com.microsoft" "QLinearSigmoid" 1 (4, 5) (1, 1) [] {  }
        /// LeakyRelu of a quantised tensor, requantised.
        QLinearLeakyRelu "com.microsoft" "QLinearLeakyRelu" 1 (4, 5) (1, 1) [] { alpha: f32 = 0.01 }
        /// Quantised tensors one after another along an axis, requantised.
        QLinearConcat "com.microsoft" "QLinearConcat" 1 (5, MANY) (1, 1) [] { axis: i64 }
        /// Softmax of a quantised tensor, requantised.
        QLinearSoftmax "com.microsoft" "QLinearSoftmax" 1 (4, 5) (1, 1) [] { axis: i64 = -1, opset: i64 }
        /// Mean over sliding windows of a quantised tensor, requantised.
        QLinearAveragePool "com.microsoft" "QLinearAveragePool" 1 (4, 5) (1, 1) [] { auto_pad: String = String::from("NOTSET"), ceil_mode: i64 = 0, channels_last: i64 = 0, count_include_pad: bool = false, dilations: Vec<i64> = vec![], kernel_shape: Vec<i64>, pads: Vec<i64> = vec![], strides: Vec<i64> = vec![] }
        /// Mean over all spatial dims of a quantised tensor, requantised.
        QLinearGlobalAveragePool "com.microsoft" "QLinearGlobalAveragePool" 1 (5, 5) (1, 1) [] { channels_last: i64 = 0 }
        /// QONNX: quantised and dequantised in one step, any bit width.
        Quant "qonnx.custom_op.general" "Quant" 1 (4, 4) (1, 1) [] { signed: i64 = 1, narrow: i64 = 0, rounding_mode: String = String::from("ROUND") }
        /// The scale with the sign of the operand.
        BipolarQuant "qonnx.custom_op.general" "BipolarQuant" 1 (2, 2) (1, 1) [] {  }
        /// Quantised values with low bits cut off: by bit widths (5 operands) or to another scale (6 operands).
        Trunc "qonnx.custom_op.general" "Trunc" 1 (5, 6) (1, 1) [] { narrow: i64 = 0, rounding_mode: String = String::from("FLOOR"), signed: i64 = 1 }
    }
    random {
        /// 1 with the probability given by the operand.
        Bernoulli "" "Bernoulli" 22 (1, 1) (1, 1) [] { dtype: Option<i64> = None, seed: Option<f32> = None }
        /// The operand itself at inference; scaled random zeros in training mode.
        Dropout "" "Dropout" 22 (1, 3) (1, 2) [] { seed: Option<i64> = None }
        /// Samples from unnormalised log-probabilities.
        Multinomial "" "Multinomial" 22 (1, 1) (1, 1) [] { dtype: i64 = 6, sample_size: i64 = 1, seed: Option<f32> = None }
        /// Normally distributed numbers.
        RandomNormal "" "RandomNormal" 22 (0, 0) (1, 1) [] { dtype: i64 = 1, mean: f32 = 0.0, scale: f32 = 1.0, seed: Option<f32> = None, shape: Vec<i64> }
        /// Normally distributed numbers of an operand's shape.
        RandomNormalLike "" "RandomNormalLike" 22 (1, 1) (1, 1) [] { dtype: Option<i64> = None, mean: f32 = 0.0, scale: f32 = 1.0, seed: Option<f32> = None }
        /// Uniformly distributed numbers.
        RandomUniform "" "RandomUniform" 22 (0, 0) (1, 1) [] { dtype: i64 = 1, high: f32 = 1.0, low: f32 = 0.0, seed: Option<f32> = None, shape: Vec<i64> }
        /// Uniformly distributed numbers of an operand's shape.
        RandomUniformLike "" "RandomUniformLike" 22 (1, 1) (1, 1) [] { dtype: Option<i64> = None, high: f32 = 1.0, low: f32 = 0.0, seed: Option<f32> = None }
    }
    control {
        /// One of two bodies by a condition.
        If "" "If" 25 (1, 1) (1, MANY) ["then_branch", "else_branch"] {  }
        /// A body repeated by count and condition.
        Loop "" "Loop" 25 (2, MANY) (0, MANY) ["body"] { captures: i64 = 0 }
        /// A body over slices, with carried state.
        Scan "" "Scan" 25 (1, MANY) (1, MANY) ["body"] { captures: i64 = 0, num_scan_inputs: i64, scan_input_axes: Vec<i64> = vec![], scan_input_directions: Vec<i64> = vec![], scan_output_axes: Vec<i64> = vec![], scan_output_directions: Vec<i64> = vec![] }
    }
    sort {
        /// Slices where a condition is true.
        Compress "" "Compress" 28 (2, 2) (1, 1) [] { axis: Option<i64> = None }
        /// Boxes that do not overlap a better one of the same class.
        NonMaxSuppression "" "NonMaxSuppression" 11 (2, 5) (1, 1) [] { center_point_box: bool = false }
        /// Coordinates of the elements that are not zero.
        NonZero "" "NonZero" 13 (1, 1) (1, 1) [] {  }
        /// The k largest or smallest elements along an axis.
        TopK "" "TopK" 24 (2, 2) (2, 2) [] { axis: i64 = -1, largest: i64 = 1, sorted: i64 = 1 }
        /// Distinct elements or slices.
        Unique "" "Unique" 28 (1, 1) (1, 4) [] { axis: Option<i64> = None, sorted: i64 = 1 }
    }
    rnn {
        /// Gated recurrent unit over a sequence.
        GRU "" "GRU" 22 (3, 6) (0, 2) [] { activation_alpha: Vec<f32> = vec![], activation_beta: Vec<f32> = vec![], activations: Vec<String> = vec![], clip: Option<f32> = None, direction: String = String::from("forward"), hidden_size: Option<i64> = None, layout: i64 = 0, linear_before_reset: bool = false }
        /// Long short-term memory over a sequence.
        LSTM "" "LSTM" 22 (3, 8) (0, 3) [] { activation_alpha: Vec<f32> = vec![], activation_beta: Vec<f32> = vec![], activations: Vec<String> = vec![], clip: Option<f32> = None, direction: String = String::from("forward"), hidden_size: Option<i64> = None, input_forget: i64 = 0, layout: i64 = 0 }
        /// Simple recurrent network over a sequence.
        RNN "" "RNN" 22 (3, 6) (0, 2) [] { activation_alpha: Vec<f32> = vec![], activation_beta: Vec<f32> = vec![], activations: Vec<String> = vec![String::from("Tanh"), String::from("Tanh")], clip: Option<f32> = None, direction: String = String::from("forward"), hidden_size: Option<i64> = None, layout: i64 = 0 }
    }
    signal {
        /// Blackman window.
        BlackmanWindow "" "BlackmanWindow" 17 (1, 1) (1, 1) [] { output_datatype: i64 = 1, periodic: i64 = 1 }
        /// Discrete Fourier transform along an axis.
        DFT "" "DFT" 20 (1, 3) (1, 1) [] { inverse: i64 = 0, onesided: i64 = 0 }
        /// Hamming window.
        HammingWindow "" "HammingWindow" 17 (1, 1) (1, 1) [] { output_datatype: i64 = 1, periodic: i64 = 1 }
        /// Hann window.
        HannWindow "" "HannWindow" 17 (1, 1) (1, 1) [] { output_datatype: i64 = 1, periodic: i64 = 1 }
        /// Matrix from spectrum to mel bins.
        MelWeightMatrix "" "MelWeightMatrix" 17 (5, 5) (1, 1) [] { output_datatype: i64 = 1 }
        /// Short-time Fourier transform.
        STFT "" "STFT" 17 (2, 4) (1, 1) [] { onesided: i64 = 1 }
    }
    loss {
        /// Negative log-likelihood of the target classes.
        NegativeLogLikelihoodLoss "" "NegativeLogLikelihoodLoss" 22 (2, 3) (1, 1) [] { ignore_index: Option<i64> = None, reduction: String = String::from("mean") }
        /// Cross entropy of softmax scores.
        SoftmaxCrossEntropyLoss "" "SoftmaxCrossEntropyLoss" 13 (2, 3) (1, 2) [] { ignore_index: Option<i64> = None, reduction: String = String::from("mean") }
    }
    text {
        /// An image file decoded to pixels.
        ImageDecoder "" "ImageDecoder" 20 (1, 1) (1, 1) [] { pixel_format: String = String::from("RGB") }
        /// Does the whole string match?
        RegexFullMatch "" "RegexFullMatch" 20 (1, 1) (1, 1) [] { pattern: Option<String> = None }
        /// Strings joined element by element.
        StringConcat "" "StringConcat" 20 (2, 2) (1, 1) [] {  }
        /// Strings in one case, stop words removed.
        StringNormalizer "" "StringNormalizer" 10 (1, 1) (1, 1) [] { case_change_action: String = String::from("NONE"), is_case_sensitive: i64 = 0, locale: Option<String> = None, stopwords: Vec<String> = vec![] }
        /// Strings split at a delimiter.
        StringSplit "" "StringSplit" 20 (1, 1) (2, 2) [] { delimiter: Option<String> = None, maxsplit: Option<i64> = None }
        /// Weighted counts of n-grams.
        TfIdfVectorizer "" "TfIdfVectorizer" 9 (1, 1) (1, 1) [] { max_gram_length: i64, max_skip_count: i64, min_gram_length: i64, mode: String, ngram_counts: Vec<i64>, ngram_indexes: Vec<i64>, pool_int64s: Vec<i64> = vec![], pool_strings: Vec<String> = vec![], weights: Vec<f32> = vec![] }
        /// A dictionary to a dense tensor.
        CastMap "ai.onnx.ml" "CastMap" 1 (1, 1) (1, 1) [] { cast_to: String = String::from("TO_FLOAT"), map_form: String = String::from("DENSE"), max_map: i64 = 1 }
        /// Strings to integers and back by a table.
        CategoryMapper "ai.onnx.ml" "CategoryMapper" 1 (1, 1) (1, 1) [] { cats_int64s: Vec<i64> = vec![], cats_strings: Vec<String> = vec![], default_int64: i64 = -1, default_string: String = String::from("_Unused") }
        /// A dictionary to a dense row.
        DictVectorizer "ai.onnx.ml" "DictVectorizer" 1 (1, 1) (1, 1) [] { int64_vocabulary: Vec<i64> = vec![], string_vocabulary: Vec<String> = vec![] }
        /// Values replaced by a table.
        LabelEncoder "ai.onnx.ml" "LabelEncoder" 4 (1, 1) (1, 1) [] { default_float: f32 = -0.0, default_int64: i64 = -1, default_string: String = String::from("_Unused"), default_tensor: Option<Tensor> = None, keys_floats: Vec<f32> = vec![], keys_int64s: Vec<i64> = vec![], keys_strings: Vec<String> = vec![], keys_tensor: Option<Tensor> = None, values_floats: Vec<f32> = vec![], values_int64s: Vec<i64> = vec![], values_strings: Vec<String> = vec![], values_tensor: Option<Tensor> = None }
        /// Scores as dictionaries by class.
        ZipMap "ai.onnx.ml" "ZipMap" 1 (1, 1) (1, 1) [] { classlabels_int64s: Vec<i64> = vec![], classlabels_strings: Vec<String> = vec![] }
    }
    container {
        /// The tensors of a sequence joined along an axis.
        ConcatFromSequence "" "ConcatFromSequence" 11 (1, 1) (1, 1) [] { axis: i64, new_axis: i64 = 0 }
        /// A value as an optional.
        Optional "" "Optional" 28 (0, 1) (1, 1) [] { r#type: Option<Type> = None }
        /// The value in an optional.
        OptionalGetElement "" "OptionalGetElement" 28 (1, 1) (1, 1) [] {  }
        /// Is there a value?
        OptionalHasElement "" "OptionalHasElement" 28 (0, 1) (1, 1) [] {  }
        /// An element of a sequence.
        SequenceAt "" "SequenceAt" 11 (2, 2) (1, 1) [] {  }
        /// A sequence of the operands.
        SequenceConstruct "" "SequenceConstruct" 11 (1, MANY) (1, 1) [] {  }
        /// A sequence without elements.
        SequenceEmpty "" "SequenceEmpty" 11 (0, 0) (1, 1) [] { dtype: Option<i64> = None }
        /// A sequence less an element.
        SequenceErase "" "SequenceErase" 11 (1, 2) (1, 1) [] {  }
        /// A sequence with an element put in.
        SequenceInsert "" "SequenceInsert" 11 (2, 3) (1, 1) [] {  }
        /// The number of elements.
        SequenceLength "" "SequenceLength" 11 (1, 1) (1, 1) [] {  }
        /// A body applied to every element.
        SequenceMap "" "SequenceMap" 17 (1, MANY) (1, MANY) ["body"] { captures: i64 = 0 }
        /// A tensor cut into a sequence.
        SplitToSequence "" "SplitToSequence" 24 (1, 2) (1, 1) [] { axis: i64 = 0, keepdims: bool = true }
    }
    ml {
        /// Columns by index.
        ArrayFeatureExtractor "ai.onnx.ml" "ArrayFeatureExtractor" 1 (2, 2) (1, 1) [] {  }
        /// 1 above a threshold, else 0.
        Binarizer "ai.onnx.ml" "Binarizer" 1 (1, 1) (1, 1) [] { threshold: f32 = 0.0 }
        /// Operands joined into one feature row.
        FeatureVectorizer "ai.onnx.ml" "FeatureVectorizer" 1 (1, MANY) (1, 1) [] { inputdimensions: Vec<i64> = vec![] }
        /// Missing values replaced.
        Imputer "ai.onnx.ml" "Imputer" 1 (1, 1) (1, 1) [] { imputed_value_floats: Vec<f32> = vec![], imputed_value_int64s: Vec<i64> = vec![], replaced_value_float: f32 = 0.0, replaced_value_int64: i64 = 0 }
        /// Scores and labels of a linear model.
        LinearClassifier "ai.onnx.ml" "LinearClassifier" 1 (1, 1) (2, 2) [] { classlabels_ints: Vec<i64> = vec![], classlabels_strings: Vec<String> = vec![], coefficients: Vec<f32>, intercepts: Vec<f32> = vec![], multi_class: i64 = 0, post_transform: String = String::from("NONE") }
        /// Predictions of a linear model.
        LinearRegressor "ai.onnx.ml" "LinearRegressor" 1 (1, 1) (1, 1) [] { coefficients: Vec<f32> = vec![], intercepts: Vec<f32> = vec![], post_transform: String = String::from("NONE"), targets: i64 = 1 }
        /// Rows divided by their norm.
        Normalizer "ai.onnx.ml" "Normalizer" 1 (1, 1) (1, 1) [] { norm: String = String::from("MAX") }
        /// One-hot rows of categories.
        OneHotEncoder "ai.onnx.ml" "OneHotEncoder" 1 (1, 1) (1, 1) [] { cats_int64s: Vec<i64> = vec![], cats_strings: Vec<String> = vec![], zeros: i64 = 1 }
        /// Scores and labels of a support vector machine.
        SVMClassifier "ai.onnx.ml" "SVMClassifier" 1 (1, 1) (2, 2) [] { classlabels_ints: Vec<i64> = vec![], classlabels_strings: Vec<String> = vec![], coefficients: Vec<f32> = vec![], kernel_params: Vec<f32> = vec![], kernel_type: String = String::from("LINEAR"), post_transform: String = String::from("NONE"), prob_a: Vec<f32> = vec![], prob_b: Vec<f32> = vec![], rho: Vec<f32> = vec![], support_vectors: Vec<f32> = vec![], vectors_per_class: Vec<i64> = vec![] }
        /// Predictions of a support vector machine.
        SVMRegressor "ai.onnx.ml" "SVMRegressor" 1 (1, 1) (1, 1) [] { coefficients: Vec<f32> = vec![], kernel_params: Vec<f32> = vec![], kernel_type: String = String::from("LINEAR"), n_supports: i64 = 0, one_class: i64 = 0, post_transform: String = String::from("NONE"), rho: Vec<f32> = vec![], support_vectors: Vec<f32> = vec![] }
        /// (x - offset) * scale by feature.
        Scaler "ai.onnx.ml" "Scaler" 1 (1, 1) (1, 1) [] { offset: Vec<f32> = vec![], scale: Vec<f32> = vec![] }
        /// Sums of leaf values of decision trees.
        TreeEnsemble "ai.onnx.ml" "TreeEnsemble" 5 (1, 1) (1, 1) [] { aggregate_function: i64 = 1, leaf_targetids: Vec<i64>, leaf_weights: Tensor, membership_values: Option<Tensor> = None, n_targets: Option<i64> = None, nodes_falseleafs: Vec<i64>, nodes_falsenodeids: Vec<i64>, nodes_featureids: Vec<i64>, nodes_hitrates: Option<Tensor> = None, nodes_missing_value_tracks_true: Vec<i64> = vec![], nodes_modes: Tensor, nodes_splits: Tensor, nodes_trueleafs: Vec<i64>, nodes_truenodeids: Vec<i64>, post_transform: i64 = 0, tree_roots: Vec<i64> }
        /// Sums of votes at the leaves of decision trees, and the class with the most; raised from version 1 as it is.
        TreeEnsembleClassifier "ai.onnx.ml" "TreeEnsembleClassifier" 3 (1, 1) (2, 2) [] { base_values: Vec<f32> = vec![], base_values_as_tensor: Option<Tensor> = None, class_ids: Vec<i64> = vec![], class_nodeids: Vec<i64> = vec![], class_treeids: Vec<i64> = vec![], class_weights: Vec<f32> = vec![], class_weights_as_tensor: Option<Tensor> = None, classlabels_int64s: Vec<i64> = vec![], classlabels_strings: Vec<String> = vec![], nodes_falsenodeids: Vec<i64> = vec![], nodes_featureids: Vec<i64> = vec![], nodes_hitrates: Vec<f32> = vec![], nodes_hitrates_as_tensor: Option<Tensor> = None, nodes_missing_value_tracks_true: Vec<i64> = vec![], nodes_modes: Vec<String> = vec![], nodes_nodeids: Vec<i64> = vec![], nodes_treeids: Vec<i64> = vec![], nodes_truenodeids: Vec<i64> = vec![], nodes_values: Vec<f32> = vec![], nodes_values_as_tensor: Option<Tensor> = None, post_transform: String = String::from("NONE") }
        /// Sums (or mean, least, largest) of leaf values of decision trees.
        TreeEnsembleRegressor "ai.onnx.ml" "TreeEnsembleRegressor" 3 (1, 1) (1, 1) [] { aggregate_function: String = String::from("SUM"), base_values: Vec<f32> = vec![], base_values_as_tensor: Option<Tensor> = None, n_targets: Option<i64> = None, nodes_falsenodeids: Vec<i64> = vec![], nodes_featureids: Vec<i64> = vec![], nodes_hitrates: Vec<f32> = vec![], nodes_hitrates_as_tensor: Option<Tensor> = None, nodes_missing_value_tracks_true: Vec<i64> = vec![], nodes_modes: Vec<String> = vec![], nodes_nodeids: Vec<i64> = vec![], nodes_treeids: Vec<i64> = vec![], nodes_truenodeids: Vec<i64> = vec![], nodes_values: Vec<f32> = vec![], nodes_values_as_tensor: Option<Tensor> = None, post_transform: String = String::from("NONE"), target_ids: Vec<i64> = vec![], target_nodeids: Vec<i64> = vec![], target_treeids: Vec<i64> = vec![], target_weights: Vec<f32> = vec![], target_weights_as_tensor: Option<Tensor> = None }
    }
    internal {
        /// The number of the leaf that each row of operand 0 falls into, for each tree; operands are tables of nodes (see `ml::tree`).
        TreeLeaves "infc" "TreeLeaves" 1 (5, 7) (1, 1) [] { depth: i64, interior: i64, mode: i64 }
        /// Operand 0; an error of the model unless operand 1, one integer, is `value`.
        Expect "infc" "Expect" 1 (2, 2) (1, 1) [] { text: String, value: i64 }
        /// A 1-D (or scalar) integer tensor whose elements are expressions of the model's symbols.
        DimVector "infc" "DimVector" 1 (0, 0) (1, 1) [] { exprs: Vec<Expr>, dtype: i64 = 7, scalar: bool = false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_documented() {
        let mut names: Vec<_> = OPS.iter().map(|o| (o.domain, o.name)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OPS.len());
        assert!(OPS.iter().all(|o| !o.doc.trim().is_empty()));
    }
}
