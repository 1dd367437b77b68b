//! Random numbers, and Dropout.

use super::*;

gaps! {
    Bernoulli, Dropout, Multinomial, RandomNormal, RandomNormalLike, RandomUniform, RandomUniformLike
}
