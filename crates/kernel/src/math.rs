//! TEMP
use infc_ir::Scalar;
/// TEMP
pub fn lower(s: Scalar, _fma: bool) -> Scalar {
    s
}
