//! Functions that emitted code may call: what has no short branch-free form. They stand in the same image, and are written here with
//! Cranelift's builder.

use crate::function::Fun;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{self, Type};
use cranelift_codegen::ir::{
    AbiParam, BlockArg, ExtFuncData, ExternalName, Function, InstBuilder, MemFlagsData, Signature, UserExternalName,
    UserFuncName, Value,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

/// A helper function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Helper {
    /// C `fmod` of f32.
    FmodF32,
    /// C `fmod` of f64.
    FmodF64,
    /// Integer power modulo 2^64, signed operands.
    PowSigned,
    /// Integer power modulo 2^64, unsigned operands.
    PowUnsigned,
}

/// The namespace of helpers among the functions that code names.
pub const NAMESPACE: u32 = 1;

impl Helper {
    /// All of them, by number.
    pub const ALL: [Helper; 4] = [Helper::FmodF32, Helper::FmodF64, Helper::PowSigned, Helper::PowUnsigned];

    /// The type of its operands and its result.
    fn ty(self) -> Type {
        match self {
            Helper::FmodF32 => types::F32,
            Helper::FmodF64 => types::F64,
            Helper::PowSigned | Helper::PowUnsigned => types::I64,
        }
    }

    fn signature(self) -> Signature {
        let mut signature = Signature::new(CallConv::SystemV);
        signature.params = vec![AbiParam::new(self.ty()); 2];
        signature.returns = vec![AbiParam::new(self.ty())];
        signature
    }

    /// Its definition.
    pub fn definition(self, config: TargetFrontendConfig) -> Function {
        let name = UserFuncName::User(UserExternalName::new(NAMESPACE, self as u32));
        let mut function = Function::with_name_signature(name, self.signature());
        let mut context = FunctionBuilderContext::new();
        let mut b = FunctionBuilder::new(&mut function, &mut context);
        match self {
            Helper::FmodF32 => fmod(&mut b, types::F32, 23),
            Helper::FmodF64 => fmod(&mut b, types::F64, 52),
            Helper::PowSigned => pow(&mut b, true),
            Helper::PowUnsigned => pow(&mut b, false),
        }
        b.seal_all_blocks();
        b.finalize(config);
        function
    }
}

/// A call of a helper.
pub fn call(f: &mut Fun, helper: Helper, x: Value, y: Value) -> Value {
    let function = match f.helpers.get(&helper) {
        Some(&function) => function,
        None => {
            let name = f.b.func.declare_imported_user_function(UserExternalName::new(NAMESPACE, helper as u32));
            let signature = f.b.import_signature(helper.signature());
            let data = ExtFuncData { name: ExternalName::user(name), signature, colocated: true, patchable: false };
            let function = f.b.import_function(data);
            f.helpers.insert(helper, function);
            function
        }
    };
    let call = f.b.ins().call(function, &[x, y]);
    f.b.inst_results(call)[0]
}

/// The parameters in the first block.
fn start(b: &mut FunctionBuilder) -> (Value, Value) {
    let block = b.create_block();
    b.append_block_params_for_function_params(block);
    b.switch_to_block(block);
    let params = b.block_params(block);
    (params[0], params[1])
}

/// Long division of the significands: exact. Bits are brought down some at a time.
fn fmod(b: &mut FunctionBuilder, ty: Type, mantissa: i64) {
    let bits = i64::from(ty.bits());
    let int = Type::int(ty.bits() as u16).expect("a float has 32 or 64 bits");
    let abs = ((1u64 << (bits - 1)) - 1) as i64;
    let hidden = 1i64 << mantissa;
    let low = hidden - 1;
    let inf = abs - low;
    let bias = (1i64 << (bits - mantissa - 2)) - 1;
    let step = 63 - mantissa;
    // A value with exponent field e (1 for subnormals) and significand m is m * 2^(e - bias - mantissa).
    let unit = -bias - mantissa; // exponent of the unit, less e
    let least = 1 - bias; // least exponent of a normal value
    let flags = MemFlagsData::new();

    let (x, y) = start(b);
    let (nan, finite, same, divide, head, more, done) = (
        b.create_block(),
        b.create_block(),
        b.create_block(),
        b.create_block(),
        b.create_block(),
        b.create_block(),
        b.create_block(),
    );
    let none: [BlockArg; 0] = [];
    let xb = b.ins().bitcast(int, flags, x);
    let yb = b.ins().bitcast(int, flags, y);
    let xa = b.ins().band_imm_u(xb, abs);
    let ya = b.ins().band_imm_u(yb, abs);
    let zero = b.ins().icmp_imm_u(IntCC::Equal, ya, 0);
    let yn = b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, ya, inf);
    let xn = b.ins().icmp_imm_u(IntCC::UnsignedGreaterThanOrEqual, xa, inf);
    let bad = b.ins().bor(zero, yn);
    let bad = b.ins().bor(bad, xn);
    b.ins().brif(bad, nan, &none, finite, &none);

    b.switch_to_block(nan);
    let r = if ty == types::F32 { b.ins().f32const(f32::NAN) } else { b.ins().f64const(f64::NAN) };
    b.ins().return_(&[r]);

    b.switch_to_block(finite);
    let less = b.ins().icmp(IntCC::UnsignedLessThan, xa, ya);
    b.ins().brif(less, same, &none, divide, &none);

    b.switch_to_block(same);
    b.ins().return_(&[x]);

    // Exponent field and significand of what is no NaN and no infinity.
    b.switch_to_block(divide);
    let mut parts = |a: Value| {
        let e = b.ins().ushr_imm_u(a, mantissa);
        let subnormal = b.ins().icmp_imm_u(IntCC::Equal, e, 0);
        let (one, none, hidden) = (b.ins().iconst(int, 1), b.ins().iconst(int, 0), b.ins().iconst(int, hidden));
        let e = b.ins().select(subnormal, one, e);
        let top = b.ins().select(subnormal, none, hidden);
        let m = b.ins().band_imm_u(a, low);
        let m = b.ins().bor(m, top);
        (e, if int == types::I64 { m } else { b.ins().uextend(types::I64, m) })
    };
    let ((xe, xm), (ye, ym)) = (parts(xa), parts(ya));
    let apart = b.ins().isub(xe, ye);
    let m0 = b.ins().urem(xm, ym);
    let m = b.append_block_param(head, types::I64);
    let d = b.append_block_param(head, int);
    b.ins().jump(head, &[BlockArg::Value(m0), BlockArg::Value(apart)]);

    b.switch_to_block(head);
    b.ins().brif(d, more, &none, done, &none);

    b.switch_to_block(more);
    let most = b.ins().iconst(int, step);
    let part = b.ins().icmp(IntCC::UnsignedLessThan, d, most);
    let s = b.ins().select(part, d, most);
    let m1 = b.ins().ishl(m, s);
    let m2 = b.ins().urem(m1, ym);
    let d2 = b.ins().isub(d, s);
    b.ins().jump(head, &[BlockArg::Value(m2), BlockArg::Value(d2)]);

    b.switch_to_block(done);
    let k = b.ins().iadd_imm_s(ye, unit);
    let normal = b.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, k, least);
    let kn = b.ins().iadd_imm_s(k, bias);
    let nb = b.ins().ishl_imm_u(kn, mantissa);
    let ks = b.ins().iadd_imm_s(k, -unit - 1);
    let none = b.ins().iconst(int, 0);
    let ks = b.ins().select(normal, none, ks);
    let one = b.ins().iconst(int, 1);
    let sb = b.ins().ishl(one, ks);
    let ub = b.ins().select(normal, nb, sb);
    let u = b.ins().bitcast(ty, flags, ub);
    let mi = if int == types::I64 { m } else { b.ins().ireduce(int, m) };
    let mf = b.ins().fcvt_from_sint(ty, mi);
    let r = b.ins().fmul(mf, u);
    let rb = b.ins().bitcast(int, flags, r);
    let sign = b.ins().iconst(int, (1u64 << (bits - 1)) as i64);
    let sign = b.ins().band(xb, sign);
    let out = b.ins().bor(rb, sign);
    let out = b.ins().bitcast(ty, flags, out);
    b.ins().return_(&[out]);
}

/// Repeated squaring. Signed: negative exponents give 1 for base 1, 1 or -1 for base -1, else 0.
fn pow(b: &mut FunctionBuilder, signed: bool) {
    let (x, e) = start(b);
    let (inverse, head, more, done) = (b.create_block(), b.create_block(), b.create_block(), b.create_block());
    let none: [BlockArg; 0] = [];
    let (r, q, n) =
        (b.append_block_param(head, types::I64), b.append_block_param(head, types::I64), b.append_block_param(head, types::I64));
    let one = b.ins().iconst(types::I64, 1);
    let first = [BlockArg::Value(one), BlockArg::Value(x), BlockArg::Value(e)];
    if signed {
        let negative = b.ins().icmp_imm_s(IntCC::SignedLessThan, e, 0);
        b.ins().brif(negative, inverse, &none, head, &first);
        b.switch_to_block(inverse);
        let (zero, minus) = (b.ins().iconst(types::I64, 0), b.ins().iconst(types::I64, -1));
        let odd = b.ins().band_imm_u(e, 1);
        let sign = b.ins().select(odd, minus, one);
        let is_minus = b.ins().icmp(IntCC::Equal, x, minus);
        let is_one = b.ins().icmp(IntCC::Equal, x, one);
        let r = b.ins().select(is_minus, sign, zero);
        let r = b.ins().select(is_one, one, r);
        b.ins().return_(&[r]);
    } else {
        b.ins().jump(head, &first);
    }

    b.switch_to_block(head);
    b.ins().brif(n, more, &none, done, &none);

    b.switch_to_block(more);
    let take = b.ins().band_imm_u(n, 1);
    let product = b.ins().imul(r, q);
    let r2 = b.ins().select(take, product, r);
    let q2 = b.ins().imul(q, q);
    let n2 = b.ins().ushr_imm_u(n, 1);
    b.ins().jump(head, &[BlockArg::Value(r2), BlockArg::Value(q2), BlockArg::Value(n2)]);

    b.switch_to_block(done);
    b.ins().return_(&[r]);
}
