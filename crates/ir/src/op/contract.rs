//! Contractions: matrix products, einsum, attention.

use super::*;

gaps! {
    Attention, Det, Einsum, Gemm, LinearAttention, MatMul, RotaryEmbedding
}
